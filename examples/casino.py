"""The occasionally dishonest casino: when was the loaded die in play? The truth is known here, so one can look.

    python examples/casino.py [--rolls 300] [--out out/casino.png]

A fair die and a loaded one (a six every second roll), swapped now and then out of sight: Durbin, Eddy, Krogh and
Mitchison, Biological Sequence Analysis 1998, section 3.2. Four questions to one model: what was known at the time
(filter), what is known in hindsight (smooth), the likeliest story (decode), and whether the dice can be learnt from the
rolls alone (fit).
"""

import argparse
from pathlib import Path

import torch

import statespan as ss
from statespan.plots import COLOURS

CASINO = {
    "initial": [0.5, 0.5],
    "transition": [[0.95, 0.05], [0.10, 0.90]],
    "emission": [[1 / 6] * 6, [0.1] * 5 + [0.5]],
}


def casino() -> ss.StateSpace:
    """The book's casino: state 1 is the loaded die."""
    return ss.hmm(
        initial=CASINO["initial"], transition=CASINO["transition"], emission=ss.Categorical(probs=CASINO["emission"])
    )


def learn(rolls: torch.Tensor, restarts: int = 8) -> ss.StateSpace:
    """Two dice from rolls alone; the one with more sixes is put second."""
    model = ss.hmm(states=2, transition=ss.Dense(2, sticky=5.0), emission=ss.Categorical(6), seed=0)
    model.fit(rolls, by=ss.EM(iterations=200), restarts=restarts, seed=0)
    probs = model.emission.probs.detach()
    order = probs[:, 5].argsort()
    return ss.hmm(
        initial=model.initial.probs().detach()[order],
        transition=model.transition.probs.detach()[order][:, order],
        emission=ss.Categorical(probs=probs[order]),
    )


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Roll, infer, learn, draw."""
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description="The occasionally dishonest casino.")
    parser.add_argument("--rolls", type=int, default=300)
    parser.add_argument("--lessons", type=int, default=20_000, help="rolls to learn the dice from")
    parser.add_argument("--out", type=Path, default=Path("out/casino.png"))
    given = parser.parse_args(arguments)
    model = casino()
    truth, rolls = model.sample(length=given.rolls, seed=4)

    online, hindsight, story = model.filter(rolls), model.smooth(rolls), model.decode(rolls)
    right = {
        "filter": (online.states == truth).double().mean().item(),
        "smooth": (hindsight.states == truth).double().mean().item(),
        "decode": (story == truth).double().mean().item(),
        "always fair": (truth == 0).double().mean().item(),
    }
    learnt = learn(model.sample(length=given.lessons, seed=5)[1])
    error = (learnt.emission.probs - torch.tensor(CASINO["emission"])).abs().max().item()

    figure, (top, middle, bottom) = plt.subplots(
        3, 1, figsize=(10, 6), height_ratios=[2, 1.4, 2], layout="constrained", sharex=False
    )
    steps = range(given.rolls)
    for axes, name in ((top, "what is known of the die"), (middle, "the rolls")):
        loaded = {"where": (truth == 1).numpy(), "label": "the loaded die was in play"}
        across = axes.get_xaxis_transform()
        axes.fill_between(
            steps, 0, 1, step="mid", color=COLOURS[1], alpha=0.25, linewidth=0, transform=across, **loaded
        )
        axes.set_title(name, fontsize="small", loc="left")
        axes.set_xlim(0, given.rolls)
    top.plot(online.probs[:, 1].numpy(), color=COLOURS[2], linewidth=1, label="filter: at the time")
    top.plot(hindsight.probs[:, 1].numpy(), color=COLOURS[0], linewidth=1.8, label="smooth: in hindsight")
    top.plot(story.numpy() * 0.04 - 0.12, color="#333333", linewidth=2.5, label="decode: the likeliest story")
    top.set_ylabel("p(loaded)")
    top.legend(fontsize="x-small", ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
    middle.scatter(steps, rolls.numpy() + 1, s=5, color="#333333")
    middle.set_yticks(range(1, 7))
    for k, name in enumerate(("fair die", "loaded die")):
        at = torch.arange(1, 7) + (k - 0.5) * 0.4
        bottom.bar(
            at.numpy(), learnt.emission.probs[k].detach().numpy(), 0.36, color=COLOURS[k], label=f"{name}, learnt"
        )
        bottom.scatter(
            at.numpy(), CASINO["emission"][k], marker="_", s=180, color="#111111", label="truth" if k == 0 else None
        )
    bottom.set_title(f"the dice, learnt from {given.lessons:,} rolls alone", fontsize="small", loc="left")
    bottom.legend(fontsize="x-small", frameon=False)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.out, dpi=110)
    plt.close(figure)

    for name, share in right.items():
        print(f"{name:>12}: the right die at {100 * share:.1f} % of {given.rolls} rolls")
    print(f"dice learnt from {given.lessons:,} rolls: no face is off by more than {error:.3f}")
    print(f"picture: {given.out}")
    return right | {"error": error}


if __name__ == "__main__":
    main()
