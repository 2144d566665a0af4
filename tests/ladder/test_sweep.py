"""Sweeps: who goes on, that a trial goes on from its checkpoint, a kill at any point, and the results that stay."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

from statespan.errors import StatespanError
from statespan.ladder import figures as figuring
from statespan.ladder import ledger, material, recipe, row, tables, workers
from statespan.ladder.figures import askable, read_gold
from statespan.ladder.recipe import Entry, Recipe, Sweep, Text
from statespan.ladder.sweep import Bracket, SweepRun
from statespan.ladder.trials import Trials, reached
from statespan.ladder.workers import Failed, Finished, Job, Paused
from statespan.language.training import Training

RECIPE = """
[run]
title = "toy"
workers = 2
rungs = ["hmm", "elman"]
[text]
name = "toy"
train = "words.txt"
valid = "valid.txt"
test = "valid.txt"
[tags]
lexicon = "valid.tagged"
valid = "valid.tagged"
test = "valid.tagged"
[model]
width = 4
uniform = 0.5
first = "columns"
[training]
batch = 4
window = 5
evaluations = 1
epochs = 9
save_every = 0
[sweep]
epochs = [1, 2, 4]
keep = [2, 1]
[[sweep.grid]]
optimizer = "sgd"
learning_rate = [1.0, 20]
[[sweep.grid]]
optimizer = "amsgrad"
learning_rate = 0.05
dropout = [[0.0, 0.0, 0.0], [0.2, 0.0, 0.1]]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("sweep")
    generator = torch.Generator().manual_seed(0)
    pairs = [("the", "D"), ("a", "D"), ("dog", "N"), ("cat", "N"), ("runs", "V"), ("sees", "V")]
    picks = torch.randint(0, len(pairs), (60, 4), generator=generator).tolist()
    lines = [[pairs[i] for i in pick] for pick in picks]
    (made / "words.txt").write_text("\n".join(" ".join(w for w, _ in line) for line in lines))
    (made / "valid.txt").write_text("\n".join(" ".join(w for w, _ in line) for line in lines[:12]))
    (made / "valid.tagged").write_text("\n".join(" ".join(f"{w}/{t}" for w, t in line) for line in lines[:12]))
    (made / "toy.toml").write_text(RECIPE)
    return made


def begun(folder: Path, out: Path, resume: bool = False) -> SweepRun:
    plan = recipe.read(folder / "toy.toml")
    text = material.read(plan.text, folder)
    return SweepRun(Trials(plan, "toy", text, read_gold(plan, text, folder), out, out / "results"), resume)


def main(folder: str, out: str) -> None:
    """A whole sweep, as another process runs it."""
    with closing(begun(Path(folder), Path(out)).train()) as events:
        for _ in events:
            pass


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> tuple[Path, list]:
    """A sweep that nothing disturbed, and what happened."""
    out = tmp_path_factory.mktemp("whole")
    with closing(begun(folder, out).train()) as events:
        return out, list(events)


def figures(out: Path) -> list[list[str]]:
    """The rows of both files without when and where."""
    return [
        sorted([line[column] for column in ledger.WHAT[name]] for line in ledger.read(out / "results" / name))
        for name in (ledger.LADDER, ledger.TAGGING)
    ]


# ------------------------------------------------------------------------------------------------- recipes


def test_a_grid_is_the_product_of_its_lists(folder):
    plan = recipe.read(folder / "toy.toml")
    assert plan.sweep is not None
    assert [dict(p) for p in plan.sweep.points] == [
        {"optimizer": "sgd", "learning_rate": 1.0},
        {"optimizer": "sgd", "learning_rate": 20.0},
        {"optimizer": "amsgrad", "learning_rate": 0.05, "dropout": (0.0, 0.0, 0.0)},
        {"optimizer": "amsgrad", "learning_rate": 0.05, "dropout": (0.2, 0.0, 0.1)},
    ]
    trials = plan.sweep.trials(plan.entries[1])
    assert [t.name for t in trials] == [f"elman @0{i}" for i in range(4)]
    assert {t.how.epochs for t in trials} == {4} and trials[3].dropout == (0.2, 0.0, 0.1)
    assert trials[1].how.learning_rate == 20.0 and trials[1].uniform == 0.5


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("[1, 2, 4]", "[2, 2, 4]"), "[sweep] epochs = [2, 2, 4] must rise"),
        (("[2, 1]", "[2]"), "[sweep] keep = [2] must have one number fewer than epochs"),
        (("[2, 1]", "[2, 2]"), "[sweep] keep = [2, 2] must end in 1"),
        (("0.05\n", '"x"\n'), "[[sweep.grid]] learning_rate = 'x' must be a number"),
        (
            ('optimizer = "amsgrad"', "optimiser = 1"),
            "[[sweep.grid]] unknown key 'optimiser'; did you mean 'optimizer'?",
        ),
        (('first = "columns"', 'first = "ones"'), "[rungs.\"hmm\"] first = 'ones' must be one of learnt"),
        (('lexicon = "valid.tagged"\n', ""), "[tags] name lexicon, valid and test"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_named(folder, tmp_path, change, line):
    (tmp_path / "r.toml").write_text(RECIPE.replace(*change))
    with pytest.raises(StatespanError) as caught:
        recipe.read(tmp_path / "r.toml")
    assert str(caught.value).startswith(f"{tmp_path / 'r.toml'}: {line}")


def test_em_is_not_swept():
    with pytest.raises(StatespanError, match="is trained by EM; what is tried is of gradients"):
        Sweep(({"learning_rate": 1.0},), (1,), ()).trials(Entry("hmm", "hmm", "EM", width=3))


# ------------------------------------------------------------------------------------------------- halving


def curve(*values: float) -> list[dict[str, float]]:
    return [{"epoch": float(i), "valid_perplexity": v} for i, v in enumerate(values, 1)]


def test_the_best_of_each_round_go_on():
    plan = Sweep(tuple({"learning_rate": float(i + 1)} for i in range(5)), (1, 3, 6), (3, 1))
    trials = plan.trials(Entry("x", "hmm", width=3))
    dropped: list[str] = []
    bracket = Bracket(trials, plan, lambda job: None, lambda entry: dropped.append(entry.name))
    jobs = [bracket.take() for _ in range(6)]
    assert [j and (j.entry.name, j.until) for j in jobs] == [(t.name, 1) for t in trials] + [None]
    for trial, score in zip(trials, (50.0, 30.0, None, 40.0, 60.0), strict=True):
        bracket.told(Failed(trial.name, "why") if score is None else Paused(trial.name, 1, curve(score)))
    assert dropped == ["x @02", "x @04"] and bracket.alive == ["x @01", "x @03", "x @00"]
    assert [(j.entry.name, j.until) for j in iter(bracket.take, None)] == [("x @01", 3), ("x @03", 3), ("x @00", 3)]
    bracket.told(Paused("x @00", 3, curve(50, 45, 44)))
    bracket.told(Paused("x @01", 3, curve(30, 35, 36)))
    assert bracket.take() is None and bracket.open
    bracket.told(Paused("x @03", 3, curve(40, 29, 33)))
    last = bracket.take()
    assert last == Job(trials[3], 0), "the best value so far decides, and the last round goes to the end"
    bracket.told(Finished("x @03", {"curve": curve(40, 29, 33)}))
    assert bracket.winner == trials[3] and not bracket.open


def test_a_bracket_knows_what_was_done():
    plan = Sweep(({"learning_rate": 1.0}, {"learning_rate": 2.0}), (1, 2), (1,))
    trials = plan.trials(Entry("x", "hmm", width=3))
    done = {"x @00": curve(9, 8), "x @01": curve(7, 6)}
    bracket = Bracket(trials, plan, lambda job: done[job.entry.name] if job.until else None, lambda entry: None)
    assert bracket.take() == Job(trials[1], 0)
    everything = Bracket(trials, plan, lambda job: done[job.entry.name], lambda entry: None)
    assert everything.winner == trials[1] and everything.take() is None
    failed = Bracket(trials, plan, lambda job: None, lambda entry: None)
    for trial in trials:
        assert failed.take() == Job(trial, 1)
        failed.told(Failed(trial.name, "why"))
    assert failed.winner is None and not failed.open and failed.take() is None
    assert reached(curve(5, 4, 3), 2) == 4 and reached([], 3) == float("inf")


# --------------------------------------------------------------------------------------------------- a run


def test_the_winner_is_as_if_it_had_been_trained_alone(whole, folder, tmp_path):
    out, events = whole
    plan = recipe.read(folder / "toy.toml")
    text = material.read(plan.text, folder)
    ended = [event for event in events if isinstance(event, Finished)]
    assert len(ended) == 2
    counts = [sum(isinstance(e, Paused) and e.until == until for e in events) for until in (1, 2, 4)]
    assert counts == [8, 4, 0], "4 points of 2 rows, then 2 of each; the last round is a Finished"
    assert plan.sweep is not None
    for entry in plan.entries:
        trials = plan.sweep.trials(entry)
        alone = {t.name: row.train(t, text, 0, tmp_path / t.name.replace("/", "-")) for t in trials}
        scores = {name: [p["valid_perplexity"] for p in record["curve"]] for name, record in alone.items()}
        first = sorted(scores, key=lambda name: scores[name][0])[:2]
        best = min(first, key=lambda name: min(scores[name][:2]))
        (event,) = (event for event in ended if event.name in alone)
        assert event.name == best
        assert event.record["test_perplexity"] == alone[best]["test_perplexity"]
        (kept,) = (r for r in ledger.read(out / "results" / ledger.LADDER) if r["rung"] == entry.name)
        assert float(kept["test_perplexity"]) == pytest.approx(alone[best]["test_perplexity"], rel=1e-4)
        assert kept["corpus"] == "toy" and kept["recipe"].startswith("toy: optimizer=") and kept["seed"] == "0"
        dropped = [t for t in trials if t.name != best]
        assert not any((workers.folder_of(out, t) / name).exists() for t in dropped for name in row.CHECKPOINTS)
    tagged = ledger.read(out / "results" / ledger.TAGGING)
    assert [r["protocol"] for r in tagged if r["rung"] == "elman"] == ["prefix"]
    assert [r["protocol"] for r in tagged if r["rung"] == "hmm"] == list(askable(recipe.find("hmm")))
    assert all(0 <= float(r["dev_accuracy_universal_independent"]) <= 1 for r in tagged)


@pytest.mark.parametrize("trials_done", [5])
def test_a_killed_sweep_goes_on_to_the_same_figures(trials_done, whole, folder, tmp_path, monkeypatch):
    code = f"import test_sweep; test_sweep.main({str(folder)!r}, {str(tmp_path)!r})"
    where = Path(__file__).parent
    process = subprocess.Popen([sys.executable, "-c", code], cwd=where, start_new_session=True)
    end = time.monotonic() + 120
    while len(list(tmp_path.glob("*/trial.json"))) < trials_done and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob("*/trial.json"))
    again = begun(folder, tmp_path, resume=True)
    with closing(again.train()) as events:
        happened = list(events)
    assert sum(isinstance(e, Paused | Finished) for e in happened) < 14, "what was done is not done again"
    assert figures(tmp_path) == figures(whole[0])
    monkeypatch.setattr(figuring, "tagging_rows", None)  # what is there is not asked again
    done = begun(folder, tmp_path, resume=True)
    with closing(done.train()) as events:
        assert not list(events), "nothing is left to do"
    assert figures(tmp_path) == figures(whole[0]), "and no row is added twice"


def test_a_row_is_left_at_an_epoch_and_gone_on_with(folder, tmp_path):
    text = material.read(recipe.read(folder / "toy.toml").text, folder)
    how = Training(batch=4, window=5, epochs=5, evaluations=2, schedule="linear", learning_rate=0.05)
    entry = Entry("elman", "elman", width=4, how=how, dropout=(0.2, 0.1, 0.2))
    assert [p["epoch"] for p in row.advance(entry, text, 0, tmp_path / "a", 2)][-1] == 2
    assert row.advance(entry, text, 0, tmp_path / "a", 1)[-1]["epoch"] == 2, "it is farther already"
    assert row.advance(entry, text, 0, tmp_path / "a", 4)[-1]["epoch"] == 4
    record = row.train(entry, text, 0, tmp_path / "a")
    assert record["test_perplexity"] == row.train(entry, text, 0, tmp_path / "b")["test_perplexity"]


def test_starts(folder):
    text = material.read(recipe.read(folder / "toy.toml").text, folder)
    made = row.build(Entry("hmm", "hmm", width=50, uniform=0.3, first="columns"), text, 0)
    weight = made.emission.table.weight.detach()
    assert weight.abs().max() <= 0.3 and weight.abs().max() > 0.28 and abs(float(weight.mean())) < 0.02
    torch.testing.assert_close(made.initial.logits, made.transition.logits.sum(0))
    held = row.build(Entry("hmm", "hmm", width=5, first="uniform"), text, 0)
    assert not held.initial.logits.requires_grad and not held.initial.logits.any()
    row.build(Entry("hmm/gated", "hmm/gated", width=5, first="columns"), text, 0)
    row.build(Entry("elman", "elman", width=5, first="columns"), text, 0)
    plain = row.build(Entry("elman", "elman", width=50), text, 0).emission.table.weight.detach()
    assert plain.abs().max() > 0.2, "normal unless told otherwise"


def test_what_a_rung_can_be_asked():
    assert askable(recipe.find("hmm/late-emission")) == ("prefix", "prefix-state", "filtered")
    assert askable(recipe.find("hmm/sigmoid")) == ("prefix", "filtered")
    assert askable(recipe.find("elman/softmax")) == ("prefix", "prefix-state")


# ------------------------------------------------------------------------------------------------ results


def line(**options) -> dict[str, object]:
    return dict.fromkeys(ledger.COLUMNS[ledger.LADDER], 1.0) | {"rung": "hmm", "corpus": "toy", "recipe": "r"} | options


def test_rows_are_added_once_and_a_strange_file_is_refused(tmp_path):
    path = tmp_path / "new" / ledger.LADDER
    assert ledger.append(path, []) == 0 and path.read_text() == ",".join(ledger.COLUMNS[ledger.LADDER]) + "\n"
    assert ledger.append(path, [line(), line(seed=2, minutes=None)]) == 2
    assert ledger.append(path, [line(minutes=9.0, commit="x"), line(seed=3)]) == 1
    assert [r["seed"] for r in ledger.read(path)] == ["1", "2", "3"] and ledger.read(path)[1]["minutes"] == ""
    with pytest.raises(StatespanError, match="exactly the file's columns; see commit"):
        ledger.append(path, [{k: v for k, v in line().items() if k != "commit"}])
    whole = path.read_text()
    path.write_text(whole[:-3])
    with pytest.raises(StatespanError, match="line 4: not a whole row"):
        ledger.append(path, [line(seed=5)])
    path.write_text("a,b\n")
    with pytest.raises(StatespanError, match="its columns are a, b; this version writes rung"):
        ledger.read(path)
    assert ledger.read(tmp_path / ledger.TAGGING) == []


def test_many_writers_lose_nothing(tmp_path):
    path = tmp_path / ledger.LADDER
    code = (
        "import sys; sys.path.insert(0, '.'); import test_sweep as t; from pathlib import Path;"
        f"[t.ledger.append(Path({str(path)!r}), [t.line(seed=f'{{sys.argv[1]}}-{{i}}')]) for i in range(40)]"
    )
    many = [subprocess.Popen([sys.executable, "-c", code, str(n)], cwd=Path(__file__).parent) for n in range(2)]
    assert [process.wait() for process in many] == [0, 0]
    assert {r["seed"] for r in ledger.read(path)} == {f"{n}-{i}" for n in range(2) for i in range(40)}


def test_tables_and_figures(tmp_path):
    path = tmp_path / ledger.LADDER
    rows = [
        line(corpus="Penn Treebank", parameters=9_999_000, dev_perplexity=270.0, recipe="ptb-10m: a=1", seed=0),
        line(corpus="Penn Treebank", parameters=9_999_000, dev_perplexity=280.0, recipe="ptb-10m: a=1", seed=1),
        line(corpus="Penn Treebank", parameters=2_000_000, dev_perplexity=300.0, recipe="ptb-200: a=1"),
        line(rung="lstm", corpus="Penn Treebank", parameters=9_999_000, dev_perplexity=79.0, recipe="ptb-10m: b=2"),
    ]
    ledger.append(path, rows)
    share = dict.fromkeys(ledger.ACCURACIES, 0.5)
    where = {k: rows[0][k] for k in (*ledger.BEGIN, *ledger.END)}
    ledger.append(tmp_path / ledger.TAGGING, [where | share | {"protocol": p} for p in ("prefix", "filtered")])
    page, *drawings = tables.write(tmp_path)
    lines = page.read_text().splitlines()
    assert any(x.startswith("| hmm | 1 | 284.59 | 270.00 | 0.949 |") and "270.00 to 280.00 (2)" in x for x in lines)
    assert any(x.startswith("| hmm | 1 |  | 300.00 |") for x in lines), "of another size: no paper's figure beside it"
    assert any(x.startswith("| hmm | filtered | 52.36 / 68.23 | 50.00 / 50.00 |") for x in lines)
    assert any(x.startswith("| hmm | prefix |  | 50.00 / 50.00 |") for x in lines), "52.36 never stands beside prefix"
    for drawing in drawings:
        text = drawing.read_text()
        assert text.startswith("<svg") and text.count("<circle") >= 2 and "nan" not in text
    assert tables.write(tmp_path)[0] == page


def test_what_ships_can_be_swept():
    folder = Path(__file__).parents[2] / "recipes"
    plan = recipe.read(folder / "ptb-10m.toml")
    assert plan.sweep is not None and (plan.sweep.epochs, plan.sweep.keep) == ((3, 10, 40), (4, 1))
    points = [json.dumps(dict(p), sort_keys=True) for p in plan.sweep.points]
    assert len(points) == len(set(points)) == 13
    sgd, ams = ([p for p in plan.sweep.points if p["optimizer"] == name] for name in ("sgd", "amsgrad"))
    assert [(p["learning_rate"], p["batch"], p["uniform"]) for p in sgd] == [(r, 20, 0.1) for r in (5.0, 10.0, 20.0)]
    assert {(p["learning_rate"], p["weight_decay"]) for p in ams} == {
        (rate, decay) for rate in (0.001, 0.002) for decay in (0.0, 1e-4, 1e-5, 1e-6, 1e-7)
    }
    assert {(p["batch"], p["uniform"]) for p in ams} == {(32, 0.8)}
    for name in ("ptb-10m", "ptb-10m-released", "ptb-200"):
        shipped: Recipe = recipe.read(folder / f"{name}.toml")
        assert shipped.sweep is not None and shipped.text == Text(
            train="ptb/ptb.train.txt", valid="ptb/ptb.valid.txt", test="ptb/ptb.test.txt", name="Penn Treebank"
        )
        for entry in shipped.entries:
            shipped.sweep.trials(entry)
    released = recipe.read(folder / "ptb-10m-released.toml")
    assert {e.how.reset for e in released.entries} == {0.01} and {e.first for e in released.entries} == {"uniform"}
