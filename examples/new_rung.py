"""Two rungs that the paper does not have: one spelled out, one with a move of our own.

    python examples/new_rung.py [--epochs 10]

A rung is four choices: how the state is conditioned on the symbol just seen, how it moves, what it is fed of that
symbol, how it scores the next one. Any legal combination has a name; a new choice is a class of a few lines.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import statespan as ss
from statespan.ladder.rungs import MOVES, Choice, Kind
from statespan.tree import Shared


class Leaky(ss.Part):
    """c = a c + (1 - a) tanh(W c + U e + b): each unit leaks at its own rate a."""

    fed = True

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.input = nn.Linear(width, width)
        self.rate = nn.Parameter(torch.zeros(width))

    def constants(self) -> tuple[Tensor, Tensor]:
        """What is made of parameters alone, once a window: W and a."""
        return self.weight, self.rate.sigmoid()

    def tables(self, u: Any, constants: tuple[Tensor, Tensor]) -> Shared:
        """What `push` needs at each step: the same at all."""
        return Shared(constants)

    def drive(self, e: Tensor, constants: tuple[Tensor, Tensor]) -> Tensor:
        """What the symbols feed, for all steps at once."""
        return self.input(e)

    def push(self, state: Tensor, tables: tuple[Tensor, Tensor], fed: Tensor) -> Tensor:
        """One step."""
        weight, rate = tables
        return rate * state + (1 - rate) * torch.addmm(fed, state, weight).tanh()


MOVES["leaky"] = Choice(
    "leaky", lambda width, table: Leaky(width), "a c + (1 - a) tanh(...)", Kind.REAL, Kind.REAL, True
)

RUNGS = {
    "hmm": "hmm",
    "elman": "elman",
    "an Elman network that also conditions by Bayes' rule": "bayes/sigmoid-add/raw/softmax",
    "leaky": "keep/leaky/raw/softmax",
}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train each on text drawn from an HMM; the perplexity of each on text it has not seen."""
    parser = argparse.ArgumentParser(description="Rungs that the paper does not have.")
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    truth = ss.hmm(
        initial=torch.full((8,), 1 / 8),
        transition=(3 * torch.randn(8, 8)).softmax(-1),
        emission=ss.Categorical(probs=(2 * torch.randn(8, 20)).softmax(-1)),
    )
    train, test = truth.sample(n=400, length=50, seed=1)[1], truth.sample(n=100, length=50, seed=2)[1]

    def perplexity(model: ss.StateSpace) -> float:
        with torch.no_grad():
            return (-model.log_prob(test).sum() / test.numel()).exp().item()

    found = {"the HMM that wrote it": perplexity(truth)}
    for title, name in RUNGS.items():
        model = ss.ladder(name, vocabulary=20, parameters=1500, seed=0)
        model.fit(train, by=ss.SGD(epochs=given.epochs, learning_rate=0.02, batch=20, clip=1.0), seed=0)
        found[title] = perplexity(model)
    for title, value in found.items():
        print(f"{value:7.2f}  {title}")

    # `model` is the leaky one; its file names the class and holds no code, so loading needs `Leaky` imported.
    path = Path(tempfile.mkdtemp()) / "leaky.safetensors"
    model.save(path)
    assert torch.allclose(ss.load(path).log_prob(test), model.log_prob(test))
    try:
        ss.ladder("bayes/leaky/raw/mixture", vocabulary=20, width=4)
    except ss.StatespanError as error:
        print(f"and one that cannot be: {error}")
    return found


if __name__ == "__main__":
    main()
