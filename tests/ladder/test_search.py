"""Searches: what is drawn, given up, taken up again and kept, with Optuna's own studies."""

import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch

from statespan import cli
from statespan.errors import StatespanError
from statespan.ladder import ledger, material, recipe, rungs, search, workers
from statespan.ladder.search import RowSearch, SearchRun
from statespan.ladder.trials import Trials
from statespan.ladder.workers import Failed, Finished, Job, Paused, attempt

RECIPE = """
[run]
title = "toy"
rungs = ["any"]
[text]
name = "toy"
train = "words.txt"
valid = "valid.txt"
test = "valid.txt"
[model]
width = 4
[training]
batch = 4
evaluations = 1
save_every = 0
[rungs."any"]
rung = "elman"
[search]
trials = 4
epochs = 3
[search.space]
rung = ["hmm", "keep/sigmoid-add/*/softmax"]
learning_rate = { low = 0.01, high = 0.3, log = true }
window = { low = 4, high = 6 }
dropout = [[0.0, 0.0, 0.0], [0.2, 0.0, 0.1]]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("search")
    generator = torch.Generator().manual_seed(0)
    words = ["the", "a", "dog", "cat", "runs"]
    lines = [" ".join(words[i] for i in torch.randint(0, 5, (4,), generator=generator).tolist()) for _ in range(40)]
    (made / "words.txt").write_text("\n".join(lines))
    (made / "valid.txt").write_text("\n".join(lines[:10]))
    (made / "toy.toml").write_text(RECIPE)
    return made


def plan_of(folder: Path, change: tuple[str, str] = ("", "")) -> recipe.Recipe:
    (folder / "changed.toml").write_text(RECIPE.replace(*change) if change[0] else RECIPE)
    return recipe.read(folder / "changed.toml")


def rows(folder: Path, study: optuna.Study, out: str = "here") -> RowSearch:
    plan = plan_of(folder)
    return RowSearch(plan.entries[0], plan, "text", study, Path(out))


def curve(value: float, until: int) -> list[dict[str, float]]:
    return [{"epoch": float(until), "valid_perplexity": value}]


def test_a_space_is_ranges_and_lists_and_patterns_of_rungs(folder):
    space = plan_of(folder).search.space
    assert space["window"] == (4, 6, False) and isinstance(space["window"].low, int)
    assert space["rung"].values == ("hmm", "keep/sigmoid-add/softmax/softmax", "keep/sigmoid-add/raw/softmax")
    made = space["dropout"].suggest("dropout", optuna.trial.FixedTrial({"dropout": "[0.2, 0.0, 0.1]"}))
    assert made == (0.2, 0.0, 0.1)
    assert len(rungs.legal("*/*/*/*")) == len(set(rungs.legal("*/*/*/*"))) > 100


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("[search.space]", "[search.spaces]"), "did you mean 'space'|unknown key 'spaces'"),
        (("learning_rate = {", "learning_rat = {"), "did you mean 'learning_rate'"),
        (("low = 0.01", "low = 0.0"), "log needs a low above 0"),
        (("low = 4, high = 6", "low = 6, high = 4"), "low must be below high"),
        (("low = 4, high = 6", "low = 4"), "needs low and high"),
        (("keep/sigmoid-add/*/softmax", "product/lstm/*/softmax"), "no legal rung is like"),
        (("trials = 4", "trials = 0"), "trials = 0 must be at least 1"),
        (("window = { low = 4, high = 6 }", "window = 5"), "must be a list of values"),
        (("window = { low = 4, high = 6 }", "optimizer = { low = 1, high = 2 }"), "optimizer is no number"),
    ],
)
def test_what_is_wrong_with_a_space_is_named(folder, change, line):
    with pytest.raises(StatespanError, match=line):
        plan_of(folder, change)


def test_trials_go_on_an_epoch_at_a_time_or_are_given_up(folder):
    study = optuna.create_study(pruner=optuna.pruners.SuccessiveHalvingPruner(**search.HALVING))
    mine = rows(folder, study)
    first, second = mine.take(), mine.take()
    assert (first.until, second.until) == (1, 1) and first.entry.name == "any #000"
    mine.told(Paused(first.entry.name, 1, curve(10.0, 1)))
    mine.told(Paused(second.entry.name, 1, curve(90.0, 1)))
    assert study.trials[1].state == optuna.trial.TrialState.PRUNED
    assert mine.take() == Job(first.entry, 2)
    mine.told(Paused(first.entry.name, 2, curve(9.0, 2)))
    assert mine.take() == Job(first.entry, 0), "the last epoch is trained to the end"
    mine.told(Finished(first.entry.name, {"valid_perplexity": 8.0}))
    third = mine.take()
    mine.told(Failed(third.entry.name, "too large a step"))
    assert mine.take() is not None and mine.take() is None, "four trials in all"
    entry, point, out = mine.best()
    assert entry == first.entry and point["learning_rate"] == entry.how.learning_rate and out == Path("here")
    assert study.best_value == 8.0 and mine.failures == {third.entry.name: "too large a step"}


def test_what_a_killed_search_was_trying_is_taken_up(folder):
    study = optuna.create_study()
    before, elsewhere = rows(folder, study), rows(folder, study, "there")
    lost, others = before.take(), elsewhere.take()
    again = rows(folder, study)
    assert again.take() == lost, "by its name, so from its checkpoint"
    assert again.drawn == 2 and again.take().entry.name not in (lost.entry.name, others.entry.name)
    with pytest.raises(StatespanError, match="another --study"):
        RowSearch(plan_of(folder).entries[0], plan_of(folder), "another text", study, Path("here"))


def here(plan, queue, source, out):
    """Jobs done in this process, one after the other."""
    text = material.fetch(source)
    while (job := queue.take()) is not None:
        event = attempt(job, plan, text, out, lambda progress: None, lambda: False)
        yield event
        queue.told(event)


def treebank(count: int) -> str:
    """Sentences of CoNLL-U: words, UPOS tags, and a multiword range that is no word of its own."""
    generator = torch.Generator().manual_seed(1)
    pairs = [("the", "DET"), ("dog", "NOUN"), ("cat", "NOUN"), ("runs", "VERB")]
    lines = []
    for pick in torch.randint(0, 4, (count, 3), generator=generator).tolist():
        lines += ["# text", "1-2\tboth\t_\t_"]
        lines += [f"{i}\t{pairs[k][0]}\t_\t{pairs[k][1]}" for i, k in enumerate(pick, 1)]
        lines.append("")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("command", ["sweep", "search"])
def test_any_treebank_by_the_same_command(command, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workers, "work", here)
    (tmp_path / "small.conllu").write_text(treebank(60))
    sweep = "[sweep]\nepochs = [1]\nkeep = []\n[[sweep.grid]]\nlearning_rate = 0.1\n[search]"
    one = RECIPE.replace('"hmm", "keep/sigmoid-add/*/softmax"', '"hmm"').replace("trials = 4", "trials = 1")
    (tmp_path / "toy.toml").write_text(one.replace('rung = "elman"', 'rung = "hmm"').replace("[search]", sweep, 1))
    arguments = ["--tagged", tmp_path / "small.conllu", "--out", tmp_path / "out", "--results", tmp_path]
    monkeypatch.setattr(sys, "argv", ["statespan", "ladder", command, *map(str, [tmp_path / "toy.toml", *arguments])])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code and "3 tags" in capsys.readouterr().out
    (line,) = ledger.read(tmp_path / ledger.LADDER)
    assert (line["corpus"], line["recipe"].partition(":")[0]) == ("small", "toy")
    tagged = ledger.read(tmp_path / ledger.TAGGING)
    assert [row["protocol"] for row in tagged] == ["prefix", "prefix-state", "filtered", "viterbi"]
    assert all(row["dev_accuracy"] == row["dev_accuracy_universal"] for row in tagged)
    assert float(tagged[3]["test_accuracy"]) > 0.3


def test_two_searches_share_a_study_and_the_best_is_kept(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "work", here)
    text, storage = material.read(plan_of(folder).text, folder), f"sqlite:///{tmp_path / 'study.db'}"

    def searched(name: str, trials: int) -> tuple[SearchRun, list]:
        plan = plan_of(folder, ("trials = 4", f"trials = {trials}"))
        run = SearchRun(Trials(plan, "toy", text, None, tmp_path / name, tmp_path / name / "results"), storage)
        with closing(run.train()) as events:
            return run, list(events)

    searched("one", 3)
    run, events = searched("two", 5)
    assert {event.name for event in events} == {"any #003", "any #004"}
    (line,) = ledger.read(tmp_path / "two" / "results" / ledger.LADDER)
    made, point, out = run.rows["any"].best()
    assert line["rung"] == point["rung"] and f"learning_rate={point['learning_rate']}" in line["recipe"]
    record = workers.finished(out, made, run.trials.recipe, text.digest)
    assert float(line["dev_perplexity"]) == pytest.approx(record["valid_perplexity"], rel=1e-4)
    assert run.say()[0].startswith("any: 5 trials, best dev")
    with (
        search._alone(tmp_path / "one"),
        pytest.raises(StatespanError, match="another search works here"),
        closing(SearchRun(replace(run.trials, out=tmp_path / "one"), storage).train()) as events,
    ):
        next(events)
    with (
        pytest.raises(StatespanError, match="cannot be opened"),
        closing(SearchRun(replace(run.trials, out=tmp_path / "bad"), "nosuch://x").train()) as events,
    ):
        next(events)
