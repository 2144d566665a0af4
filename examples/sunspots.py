"""Sunspots, 1700 to 2008, by the year: a cycle of some eleven years on a level that wanders, and the next one.

    python examples/sunspots.py [--out out/sunspots.png]

The series is that of statsmodels (`pip install statsmodels`). On the square root, which evens out the spread, two
models are fitted to all but the last eleven years and forecast those: a level and a damped cycle (Harvey 1989, section
2.3.3), and an autoregression of order nine. The line to beat is the mean of the years before.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import statespan as ss
from statespan.plots import COLOURS, plot_forecast

HELD = 11
"""Years that are forecast."""


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fit, forecast, take apart, draw; what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/sunspots.png"), help="where the picture goes")
    parser.add_argument("--iterations", type=int, default=30, help="of each fit, at most")
    args = parser.parse_args(argv)
    from statsmodels.datasets import sunspots

    table = sunspots.load_pandas().data
    years = np.array([f"{int(year)}" for year in table["YEAR"]], dtype="datetime64[Y]")
    roots = torch.tensor(table["SUNACTIVITY"].to_numpy(copy=True), dtype=torch.float64).sqrt()
    y, truth = roots[:-HELD], roots[-HELD:]

    models = {
        "level + cycle": ss.level() + ss.cycle(period=11.0),
        "autoregression": ss.level(variance=0.0) + ss.arima(9, 0, 0),
    }
    found, ahead = {"mean": (y.mean() - truth).abs().mean().item()}, {}
    for name, model in models.items():
        fitter = ss.LBFGS(iterations=args.iterations, tolerance=1e-6)
        model.fit(y, by=fitter)
        ahead[name] = model.forecast(y, steps=HELD, samples=1000)
        found[name] = (ahead[name].mean[:, 0] - truth).abs().mean().item()
        low, high = ahead[name].quantile([0.05, 0.95])[..., 0]
        inside = ((truth >= low) & (truth <= high)).double().mean().item()
        print(
            f"{name}: log-likelihood {fitter.history[-1]:.2f}; the last {HELD} years {found[name]:.2f} off on average, "
            f"{inside:.0%} inside the 90 % interval"
        )
    print(f"the mean of the years before: {found['mean']:.2f} off on average")
    wave = models["level + cycle"].transition.each[1]
    found["period"] = wave.period.item()
    print(f"a cycle of {found['period']:.1f} years, damped by {wave.damping.sigmoid().item():.3f} a year")

    from matplotlib import pyplot

    _, (whole, fan) = pyplot.subplots(2, 1, figsize=(9, 6), layout="constrained")
    level = ss.decompose(models["level + cycle"], y)["level"]
    whole.plot(years, roots, color="0.2", linewidth=1, label="root of sunspots")
    low, high = level.mean - 1.96 * level.deviation, level.mean + 1.96 * level.deviation
    whole.fill_between(years[:-HELD], low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
    whole.plot(years[:-HELD], level.mean, color=COLOURS[0], label="level, 95 %")
    whole.legend(frameon=False, ncols=2, loc="upper left")
    whole.spines[["top", "right"]].set_visible(False)
    plot_forecast(ahead["autoregression"], axes=fan, y=y, times=years[:-HELD], ahead=years[-HELD:])
    fan.plot(years[-HELD:], truth, ".-", color="0.2", linewidth=1, label="what came")
    fan.plot(years[-HELD:], ahead["level + cycle"].mean, "--", color=COLOURS[2], label="by level + cycle")
    fan.set_ylabel("root of sunspots")
    fan.legend(frameon=False, fontsize="small", ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    whole.figure.savefig(args.out, dpi=120)
    print(f"wrote {args.out}")
    return found


if __name__ == "__main__":
    main()
