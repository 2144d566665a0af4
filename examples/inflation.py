"""US inflation with a trend that moves in calm and in wild times: a switching local level, and a forecast.

    python examples/inflation.py [--out out/inflation.png]

Quarterly inflation, 1959 to 2009, comes with statsmodels (`pip install statsmodels`). Inflation is a trend and what
passes; the trend is a random walk, and how far both move in a quarter depends on the regime, as in the models of
Stock and Watson (2007, "Why has US inflation become harder to forecast?").
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import statespan as ss
from statespan.plots import plot_forecast

FIRST = np.datetime64("1959-01")


def inflation() -> torch.Tensor:
    """Per cent a year, quarter by quarter, from the second of 1959 on: (202,)."""
    from statsmodels.datasets import macrodata

    return torch.as_tensor(macrodata.load_pandas().data["infl"].to_numpy()[1:].copy())


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fit, tell calm from wild, forecast, draw; what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/inflation.png"), help="where the picture goes")
    parser.add_argument("--iterations", type=int, default=60, help="of EM")
    parser.add_argument("--steps", type=int, default=12, help="quarters to forecast")
    args = parser.parse_args(argv)
    y = inflation()

    # Both regimes have a random walk seen as it is; only the variances differ, and they are what is fitted.
    model = ss.switching_linear(
        states=2,
        dynamics=[[1.0]],
        state_offset=[0.0],
        state_noise=[[[0.1]], [[2.0]]],
        observation=[[1.0]],
        observation_offset=[0.0],
        observation_noise=[[[1.0]], [[4.0]]],
        initial_mean=y[:1],
        initial_covariance=[[4.0]],
    )
    for part in (*model.transition.dynamics, *model.emission.vectors):
        part.matrix.requires_grad_(False)
        part.offset.requires_grad_(False)
    em = ss.EM(iterations=args.iterations)
    model.fit(y, by=em, hold=["initial"])

    moves = torch.stack([part.covariance[0, 0] for part in model.transition.dynamics]).sqrt()
    noise = torch.stack([part.covariance[0, 0] for part in model.emission.vectors]).sqrt()
    stays = model.transition.probs.diagonal()
    past = model.smooth(y)
    wild = past.probs[:, 1]
    found = {"bound": em.history[-1], "log_prob": past.log_prob.item()}
    for k, name in enumerate(("calm", "wild")):
        found |= {f"{name}_trend": moves[k].item(), f"{name}_noise": noise[k].item()}
        print(
            f"{name}: the trend moves by {moves[k]:.2f} a quarter, {noise[k]:.2f} passes; "
            f"it lasts {1 / (1 - stays[k]):.0f} quarters"
        )
    years = 1959 + 0.25 * torch.arange(1, len(y) + 1)
    found["seventies"] = wild[(years >= 1973) & (years < 1983)].mean().item()
    found["nineties"] = wild[(years >= 1991) & (years < 1999)].mean().item()
    print(f"p(wild): {found['seventies']:.0%} in 1973 to 1982, {found['nineties']:.0%} in 1991 to 1998")
    ahead = model.forecast(y, steps=args.steps, samples=2000)
    low, high = ahead.quantile([0.1, 0.9])
    found["next"] = ahead.mean[0, 0].item()
    print(f"next quarter: {found['next']:.1f} %, 80 % between {low[0, 0]:.1f} and {high[0, 0]:.1f}")

    from matplotlib import pyplot

    figure, (series, below, fan) = pyplot.subplots(3, 1, figsize=(10, 8), layout="constrained")
    times = FIRST + np.arange(1, len(y) + 1 + args.steps) * np.timedelta64(3, "M")
    trend, spread = past.mean[:, 0], past.covariance[:, 0, 0].sqrt()
    series.plot(times[: len(y)], y, color="0.55", linewidth=1, label="inflation")
    series.plot(times[: len(y)], trend, color="C0", label="trend, 95 %")
    series.fill_between(times[: len(y)], trend - 1.96 * spread, trend + 1.96 * spread, color="C0", alpha=0.2)
    series.set(title="US inflation and its trend", ylabel="% a year")
    series.legend(frameon=False)
    below.fill_between(times[: len(y)], 0, wild, color="C3", alpha=0.8, linewidth=0)
    below.set(ylim=(0, 1), ylabel="probability", title="p(wild), by the whole series")
    for axes in (series, below):
        axes.set_xlim(times[0], times[len(y) - 1])
    plot_forecast(ahead, axes=fan, y=y, times=times[: len(y)], ahead=times[len(y) :])
    fan.set(ylabel="% a year")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=120)
    print(f"wrote {args.out}")
    return found


if __name__ == "__main__":
    main()
