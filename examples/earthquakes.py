"""Earthquakes a year: how many regimes, and did they begin in their long run? Numbers that a book prints.

    python examples/earthquakes.py [--out out/earthquakes.png]

Earthquakes of magnitude 7 or more in the world, 1900 to 2006 (US Geological Survey), after Zucchini, MacDonald and
Langrock, Hidden Markov Models for Time Series 2016, sections 1.1 and 3.4. Counts of independent events would have
variance equal to their mean; these have three times it, and last year's count tells of this year's.
"""

import argparse
from pathlib import Path

import torch

import statespan as ss
from statespan.plots import COLOURS

QUAKES = [
    *(13, 14, 8, 10, 16, 26, 32, 27, 18, 32, 36, 24, 22, 23, 22, 18, 25, 21, 21, 14),
    *(8, 11, 14, 23, 18, 17, 19, 20, 22, 19, 13, 26, 13, 14, 22, 24, 21, 22, 26, 21),
    *(23, 24, 27, 41, 31, 27, 35, 26, 28, 36, 39, 21, 17, 22, 17, 19, 15, 34, 10, 15),
    *(22, 18, 15, 20, 15, 22, 19, 16, 30, 27, 29, 23, 20, 16, 21, 21, 25, 16, 18, 15),
    *(18, 14, 10, 15, 8, 15, 6, 11, 8, 7, 18, 16, 13, 12, 13, 20, 15, 16, 12, 18),
    *(15, 16, 13, 15, 16, 11, 11),
]
YEARS = range(1900, 1900 + len(QUAKES))


def fit(states: int, stationary: bool, restarts: int) -> ss.StateSpace:
    """A Poisson hidden Markov model of the counts, its states in the order of their rates."""
    initial = ss.Stationary() if stationary else None
    model = ss.hmm(states=states, emission=ss.Poisson(), initial=initial, seed=0)
    y = torch.tensor(QUAKES, dtype=torch.float64)
    return model.fit(y, by=ss.EM(iterations=300, tolerance=1e-6), restarts=restarts, seed=0)


def main(arguments: list[str] | None = None) -> dict[tuple[int, bool], float]:
    """Fit, compare, forecast, draw."""
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description="Earthquakes a year.")
    parser.add_argument("--most", type=int, default=3, help="states to try")
    parser.add_argument("--restarts", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("out/earthquakes.png"))
    given = parser.parse_args(arguments)
    y = torch.tensor(QUAKES, dtype=torch.float64)
    print(f"{len(y)} years, mean {y.mean():.1f}, variance {y.var():.1f}")

    found, models, criteria = {}, {}, {}
    for stationary in (False, True):
        for states in range(1, given.most + 1):
            model = fit(states, stationary, given.restarts)
            value = float(model.log_prob(y).detach())
            free = states + states * (states - 1) + (0 if stationary else states - 1)
            aic, bic = 2 * (free - value), free * torch.tensor(len(y)).log().item() - 2 * value
            found[states, stationary], models[states, stationary], criteria[states, stationary] = value, model, bic
            start = "stationary start" if stationary else "free start"
            print(f"{states} states, {start:>16}: log-likelihood {value:.4f}, AIC {aic:.1f}, BIC {bic:.1f}")
    best = min(criteria, key=criteria.__getitem__)
    model = models[best]
    rates = model.emission.rate.detach()[:, 0]
    print(f"BIC takes {best[0]} states, rates {', '.join(f'{r:.2f}' for r in sorted(rates.tolist()))}")

    posterior, ahead = model.smooth(y), model.forecast(y, steps=10, samples=4000)
    low, high = ahead.quantile([0.05, 0.95])[:, :, 0]
    figure, axes = plt.subplots(figsize=(10, 4), layout="constrained")
    axes.bar(YEARS, QUAKES, color="#c9c5ba", width=0.8, label="earthquakes of magnitude 7 and above")
    axes.plot(YEARS, (posterior.probs @ rates).numpy(), color=COLOURS[0], linewidth=2, label="the rate, in hindsight")
    axes.step(
        YEARS, rates[model.decode(y)].numpy(), where="mid", color=COLOURS[1], linewidth=1, label="the likeliest path"
    )
    future = range(YEARS.stop, YEARS.stop + 10)
    axes.fill_between(
        future, low.numpy(), high.numpy(), color=COLOURS[0], alpha=0.2, linewidth=0, label="forecast, central 90 %"
    )
    axes.plot(future, ahead.mean[:, 0].numpy(), color=COLOURS[0], linewidth=2)
    axes.set_ylabel("a year")
    axes.legend(frameon=False, fontsize="small", ncols=4, loc="upper center")
    axes.set_ylim(0, 48)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.out, dpi=110)
    plt.close(figure)
    print(f"picture: {given.out}")
    return found


if __name__ == "__main__":
    main()
