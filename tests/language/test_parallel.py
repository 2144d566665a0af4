"""Two processes that train one model give the numbers of one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import statespan as ss
from statespan.ladder import together, workers
from statespan.ladder.material import Material
from statespan.ladder.recipe import Entry, Recipe, Text
from statespan.ladder.run import Run
from statespan.language import parallel
from statespan.language.expectation import EMTrainer
from statespan.language.training import Stopped, Trainer, Training
from statespan.language.vocabulary import Vocabulary, stream

V, EOS = 7, 1
HOW = Training(optimizer="sgd", learning_rate=0.5, batch=4, window=4, epochs=2, evaluations=2, reset=0.3, average=0.5)


def sentences(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 6, (count,), generator=generator).tolist()
    return [torch.cat([torch.randint(2, V, (n,), generator=generator), torch.tensor([EOS])]) for n in lengths]


def gradients(folder: Path, rung: str, stop_at: int | None = None) -> Trainer:
    """A model trained by gradients; stopped, and gone on with, where `stop_at` says."""
    made = ss.ladder(rung, vocabulary=V, width=5, start=EOS, seed=3, spread=0.7)
    columns, valid = stream(sentences(31), HOW.batch), stream(sentences(6, 9), 2)
    trainer = Trainer(made, columns, valid, HOW, 5, folder / f"{rung}.safetensors")
    if stop_at is None:
        trainer.run()
        return trainer
    first = parallel.place() == 0  # one process alone is told
    with pytest.raises(Stopped):
        trainer.run(stop=lambda: first and trainer.state.position == stop_at)
    return gradients(folder, rung)


def em() -> EMTrainer:
    text = sentences(60)
    counts = torch.bincount(torch.cat(text), minlength=V).double() + 1
    made = ss.ladder("hmm", vocabulary=V, width=4, start=EOS, seed=3).double()
    trainer = EMTrainer(made, text, stream(sentences(10, 4), 2), 4, 1.0, counts / counts.sum())
    trainer.run()
    return trainer


def numbers(folder: Path) -> dict[str, list[torch.Tensor]]:
    """The parameters of everything trained here."""
    found = {rung: gradients(folder, rung).model for rung in ("hmm", "lstm")}
    found |= {"resumed": gradients(folder / "resumed", "elman", stop_at=3).model, "em": em().model}
    return {name: [p.detach() for p in model.parameters()] for name, model in found.items()}


def ladder(folder: Path) -> list[float]:
    """Test perplexities of a run of the ladder, whose folder only the first process writes."""
    parts = {"train": sentences(40), "valid": sentences(8, 3), "test": sentences(8, 4)}
    text = Material("toy", Vocabulary([f"w{i}" for i in range(2, V)]), **parts)
    entries = (Entry("hmm", "hmm", width=3, how=HOW), Entry("em", "hmm", trainer="EM", width=3, iterations=2))
    run = Run(Recipe("toy", Text(train="none"), entries, references=(2,)), text, folder / "ladder")
    events = list(together.execute(run.recipe, run.todo, text, run.out))
    assert [event.name for event in events] == ["hmm", "hmm", "em", "em"]
    return [event.record["test_perplexity"] for event in events if isinstance(event, workers.Finished)]


def main(folder: str) -> None:
    """What each of two processes runs."""
    torch.set_num_threads(1)
    with parallel.together():
        assert parallel.processes() == 2
        found = numbers(Path(folder))
        torch.save((found, ladder(Path(folder))), Path(folder) / f"found.{parallel.place()}.pt")


def test_two_processes_give_the_numbers_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr("statespan.language.expectation.BATCH_NUMBERS", 200)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import statespan.language.expectation as e; e.BATCH_NUMBERS = 400; import test_parallel; "
        f"test_parallel.main({str(tmp_path / 'two')!r})"
    )
    (tmp_path / "two" / "resumed").mkdir(parents=True)
    (tmp_path / "one" / "resumed").mkdir(parents=True)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            env={
                **os.environ,
                **{"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            },
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=600) for process in both] == [0, 0]
    alone = numbers(tmp_path / "one")
    rungs = ladder(tmp_path / "one")
    (first, one), (second, other) = (torch.load(tmp_path / "two" / f"found.{rank}.pt") for rank in range(2))
    assert one == other == pytest.approx(rungs, rel=1e-4), "rows of the ladder are those of one process"
    kept = {file.name for file in (tmp_path / "two" / "ladder").rglob("*") if file.is_file()}
    assert kept == {"model.safetensors", "record.json"}, "the first process alone writes"
    for name, want in alone.items():
        for mine, other, expected in zip(first[name], second[name], want, strict=True):
            assert torch.equal(mine, other), "the processes hold the same bits"
            tight = {"rtol": 1e-9, "atol": 1e-12} if name == "em" else {"rtol": 2e-4, "atol": 2e-5}
            torch.testing.assert_close(mine, expected, **tight)


def test_a_state_is_dropped_as_often_as_asked_and_where_it_was():
    made = ss.ladder("lstm", vocabulary=V, width=5, start=EOS, seed=3)
    columns = stream(sentences(400), 2)
    trainer = Trainer(made, columns, columns, Training(window=1, batch=2, reset=0.3))
    dropped = []
    for _ in range(300):
        dropped.append(trainer._starts_anew())
        trainer.state.position += 1
    assert 0.2 < sum(dropped) / 300 < 0.4
    torch.rand(5)
    trainer.state.position = 0
    assert trainer._starts_anew() == dropped[0]


def test_the_running_mean_is_what_is_kept():
    columns = stream(sentences(30), 3)
    made = ss.ladder("elman", vocabulary=V, width=5, start=EOS, seed=3)
    trainer = Trainer(made, columns, columns, Training(window=4, batch=3, epochs=1, evaluations=1, average=0.9))
    mean = [p.detach().clone() for p in made.parameters()]
    seen: list[list[torch.Tensor]] = []

    def follow() -> bool:
        seen.append([p.detach().clone() for p in made.parameters()])
        return False

    trainer.run(stop=follow)
    for step in seen:
        mean = [0.9 * m + 0.1 * p for m, p in zip(mean, step, strict=True)]
    assert not torch.equal(seen[-1][0], mean[0])
    for kept, want in zip(made.parameters(), mean, strict=True):
        torch.testing.assert_close(kept.detach(), want)


def test_the_plateau_waits():
    how = Training(window=4, batch=3, epochs=6, evaluations=1, learning_rate=1e-9, wait=2, optimizer="sgd")
    columns = stream(sentences(30), 3)
    made = ss.ladder("elman", vocabulary=V, width=5, start=EOS, seed=3)
    trainer = Trainer(made, columns, columns, how)
    rates = []
    trainer.state.best = 0.0  # nothing is better
    trainer.run(stop=lambda: bool(rates.append(trainer.state.rate)))
    each = [rates[i * trainer.windows] for i in range(6)]
    assert each == pytest.approx([1e-9, 1e-9, 1e-9 / 4, 1e-9 / 4, 1e-9 / 16, 1e-9 / 16])
