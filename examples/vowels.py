"""Markov's experiment of 1913, on another book: do vowels and consonants show in the order of letters alone?

    python examples/vowels.py [--verses 1000] [--out out/vowels.png]

Markov sorted 20,000 letters of Onegin into vowels and consonants by hand, and counted how often one follows the other:
the first Markov chain. Here the letters are the King James Bible's (the demo extra), and nobody says which letters are
vowels. Two states find a vowel side that "the" and "and" pull t and d to; with a third state for such letters the
vowels stand nearly alone. The counts by hand are the same model fitted with its states told.
"""

import argparse
from pathlib import Path

import torch

import statespan as ss
from statespan.plots import COLOURS

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOWELS = "aeiou"


def letters(verses: int) -> list[torch.Tensor]:
    """The letters of each verse, 0 to 25."""
    from statespan.language.corpora import king_james

    text = ["".join(verse.words) for verse in king_james().train[:verses]]
    return [torch.tensor([LETTERS.index(c) for c in verse.lower() if c in LETTERS]) for verse in text]


def by_hand(y: list[torch.Tensor]) -> torch.Tensor:
    """Markov's counts, p(next side | side): consonants 0, vowels 1. With every state told, a fit is counting."""
    side = torch.tensor([int(letter in VOWELS) for letter in LETTERS])
    model = ss.hmm(states=2, emission=ss.Categorical(26), seed=0)
    return model.fit(y, states=[side[row] for row in y], by=ss.EM(iterations=1)).transition.probs.detach()


def learn(y: list[torch.Tensor], states: int, restarts: int) -> tuple[ss.StateSpace, torch.Tensor]:
    """A model of the letters, and for each letter the share of it that each state wrote, (K, 26)."""
    model = ss.hmm(states=states, emission=ss.Categorical(26), seed=0)
    model.fit(y, by=ss.EM(iterations=150, tolerance=1e-5), restarts=restarts, seed=1)
    long_run = torch.linalg.matrix_power(model.transition.probs.detach(), 1000)[0]
    joint = long_run[:, None] * model.emission.probs.detach()
    return model, joint / joint.sum(0)


def main(arguments: list[str] | None = None) -> dict[int, list[str]]:
    """Count, learn, print, draw."""
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description="Vowels and consonants, after Markov 1913.")
    parser.add_argument("--verses", type=int, default=1000)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("out/vowels.png"))
    given = parser.parse_args(arguments)
    y = letters(given.verses)
    print(f"{sum(map(len, y)):,} letters of {len(y)} verses")
    (cc, cv), (vc, vv) = by_hand(y).tolist()
    print(f"counted: after a consonant a vowel {cv:.3f}, another consonant {cc:.3f}; after a vowel {vv:.3f}, {vc:.3f}")

    sides = {}
    figure, rows = plt.subplots(2, 1, figsize=(10, 4.6), layout="constrained")
    for states, axes in zip((2, 3), rows, strict=True):
        model, shares = learn(y, states, given.restarts)
        order = shares[:, [LETTERS.index(v) for v in VOWELS]].sum(1).argsort(descending=True)  # the vowels' state first
        shares = shares[order]
        sides[states] = ["".join(c for i, c in enumerate(LETTERS) if shares[:, i].argmax() == k) for k in range(states)]
        low = torch.zeros(26, dtype=shares.dtype)
        for k, share in enumerate(shares):
            axes.bar(
                range(26),
                share.numpy(),
                bottom=low.numpy(),
                color=COLOURS[k],
                width=0.86,
                label=f"state {k}: {sides[states][k]}",
            )
            low += share
        axes.set_xticks(range(26), list(LETTERS))
        axes.set_ylabel("share of the letter")
        axes.set_title(f"{states} states", fontsize="small", loc="left")
        axes.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        table = model.transition.probs.detach()[order][:, order]
        print(f"{states} states: {' | '.join(sides[states])}; a vowel after state 0 with probability {table[0, 0]:.3f}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.out, dpi=110)
    plt.close(figure)
    print(f"picture: {given.out}")
    return sides


if __name__ == "__main__":
    main()
