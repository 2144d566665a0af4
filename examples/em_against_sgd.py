"""EM and gradient descent on the same HMM, from the same start.

    python examples/em_against_sgd.py [--text king-james] [--out out/em_against_sgd.png]

Each has its own local optimum: which is higher depends on the start. By default the data are drawn from an HMM. With
`--text king-james` (the demo extra) they are the letters of the Bible, spaces and all else left out, after Markov, who
counted the vowels and consonants of Onegin: two states find them by themselves, but for t and d, which "the" and "and"
draw to the vowels' side.
"""

import argparse
import copy
import time
from pathlib import Path

import torch

import statespan as ss
from statespan.plots import plot_curves

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def sampled(n: int, length: int) -> tuple[ss.StateSpace, list[torch.Tensor]]:
    """A blank HMM and sequences drawn from another."""
    truth = ss.hmm(states=6, emission=ss.Categorical(20), seed=7)
    return ss.hmm(states=6, emission=ss.Categorical(20), seed=1), list(truth.sample(n, length, seed=0)[1])


def letters(verses: int) -> tuple[ss.StateSpace, list[torch.Tensor]]:
    """A blank HMM of two states and the letters of some verses."""
    from statespan.language.corpora import king_james

    text = ["".join(verse.words) for verse in king_james().train[:verses]]
    y = [torch.tensor([LETTERS.index(c) for c in verse if c in LETTERS]) for verse in text]
    return ss.hmm(states=2, emission=ss.Categorical(26), seed=2), y


def against(model: ss.StateSpace, y: list[torch.Tensor], iterations: int, epochs: int, rate: float) -> dict:
    """Fit by SGD, then by EM; each curve is (seconds, nats a symbol) before each pass."""
    symbols = sum(len(row) for row in y)
    start = copy.deepcopy(model.state_dict())
    (-model.log_prob(y).mean()).backward()  # the first call compiles the kernels; keep that out of the timings

    sgd = ss.SGD(epochs=epochs, learning_rate=rate)
    began = time.perf_counter()
    model.fit(y, by=sgd)
    each = (time.perf_counter() - began) / epochs
    print(f"SGD, {epochs} epochs:  log-likelihood {model.log_prob(y).sum().item():,.1f} in {each * epochs:.1f} s")

    model.load_state_dict(start)
    moments = [0.0]
    em = ss.EM(iterations=iterations, callback=lambda iteration, value: moments.append(time.perf_counter() - began))
    began = time.perf_counter()
    model.fit(y, by=em)
    print(
        f"EM, {len(em.history)} iterations: log-likelihood {model.log_prob(y).sum().item():,.1f} in {moments[-1]:.1f} s"
    )
    return {
        "EM": [(moment, value / symbols) for moment, value in zip(moments, em.history, strict=False)],
        f"Adam, rate {rate:g}": [(each * i, value / symbols) for i, value in enumerate(sgd.history)],
    }


def main(arguments: list[str] | None = None) -> dict:
    """Run, print, draw."""
    parser = argparse.ArgumentParser(description="EM and gradient descent on the same HMM.")
    parser.add_argument("--text", choices=["king-james"], help="the letters of the King James Bible")
    parser.add_argument("--sequences", type=int, default=400, help="sequences, or verses")
    parser.add_argument("--length", type=int, default=100, help="symbols a drawn sequence")
    parser.add_argument("--iterations", type=int, default=100, help="of EM")
    parser.add_argument("--epochs", type=int, default=200, help="of gradient descent")
    parser.add_argument("--rate", type=float, default=0.1, help="its learning rate")
    parser.add_argument("--out", type=Path, default=Path("out/em_against_sgd.png"), help="the picture")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)

    model, y = letters(given.sequences) if given.text else sampled(given.sequences, given.length)
    curves = against(model, y, given.iterations, given.epochs, given.rate)
    if given.text:
        # p(state | letter) from p(letter | state) and how often each state is visited
        posterior = model.smooth(y)
        visits = torch.cat(posterior.probs).sum(0)
        likelier = (model.emission.probs * visits[:, None]).argmax(0)
        for k in range(2):
            print(
                f"state {k}: {' '.join(c for c, state in zip(LETTERS, likelier.tolist(), strict=True) if state == k)}"
            )

    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    plot_curves(curves, left, "seconds", "log-likelihood, nats a symbol")
    passes = {name: [(i, value) for i, (_, value) in enumerate(curve)] for name, curve in curves.items()}
    plot_curves(passes, right, "passes over the data", "")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.out, dpi=120)
    plt.close(figure)
    print(f"picture: {given.out}")
    return curves


if __name__ == "__main__":
    main()
