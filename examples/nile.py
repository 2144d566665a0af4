"""The flow of the Nile at Aswan, 1871 to 1970: a level that wanders, with twenty years hidden and ten to come.

    python examples/nile.py [--out out/nile.png]

The series is that of statsmodels (`pip install statsmodels`). Durbin and Koopman (2012, chapter 2) print the variances.
"""

import argparse
from pathlib import Path

import torch

import statespan as ss
from statespan.plots import plot_forecast, plot_posterior


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fit, forecast, draw; what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/nile.png"), help="where the picture goes")
    out = parser.parse_args(argv).out
    from statsmodels.datasets import nile

    y = torch.tensor(nile.load_pandas().data["volume"].to_numpy(copy=True), dtype=torch.float64)
    model = ss.level()
    model.fit(y, by=ss.LBFGS())
    found = {
        "noise": model.emission.affine(None).scale.item() ** 2,
        "level": model.transition.affine(None).scale.item() ** 2,
        "log_prob": model.log_prob(y).item(),
    }
    print(f"noise {found['noise']:.1f}, level {found['level']:.1f}: log-likelihood {found['log_prob']:.6f}")

    gaps = y.clone()
    gaps[20:40] = torch.nan  # a gap is NaN
    ahead = model.forecast(gaps, steps=10, samples=2000)
    low, high = ahead.quantile([0.1, 0.9])[:, 0, 0].tolist()
    print(f"1971: {ahead.mean[0, 0]:.0f}, 80 % between {low:.0f} and {high:.0f}")

    from matplotlib import pyplot

    _, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.4), width_ratios=[3, 1], sharey=True, layout="constrained")
    years = torch.arange(1871, 1971)
    plot_posterior(model.smooth(gaps), axes=left, times=years)
    left.plot(years, gaps, ".", color="0.4")
    left.set(xlabel="year", ylabel="flow, and the level with 95 %")
    plot_forecast(ahead, axes=right)
    out.parent.mkdir(parents=True, exist_ok=True)
    left.figure.savefig(out, dpi=120)
    print(f"wrote {out}")
    return found


if __name__ == "__main__":
    main()
