"""Carbon dioxide at Mauna Loa, 1958 to 2001, by the month, with its gaps: trend, season, what is left, and a forecast.

    python examples/co2.py [--out out/co2.png] [--months 526]

The series is that of statsmodels (`pip install statsmodels`).
"""

import argparse
from pathlib import Path

import statespan as ss
from statespan.plots import plot_components


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fit, forecast, draw; what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/co2.png"), help="where the picture goes")
    parser.add_argument("--months", type=int, default=526, help="how many months, from the first")
    arguments = parser.parse_args(argv)
    from statsmodels.datasets import co2

    series = co2.load_pandas().data["co2"].resample("MS").mean()[: arguments.months]
    y = series.to_numpy(copy=True)
    model = ss.level() + ss.slope() + ss.seasonal(12, trigonometric=True)
    fitter = ss.LBFGS(iterations=60)
    model.fit(y[:-24], by=fitter)
    print(
        f"{len(y)} months, {series.isna().sum()} missing; {len(fitter.history)} iterations to {fitter.history[-1]:.3f}"
    )

    ahead = model.forecast(y[:-24], steps=24, samples=2000)
    low, high = ahead.quantile([0.025, 0.975])[..., 0].numpy()
    inside = float(((y[-24:] >= low) & (y[-24:] <= high)).mean())
    error = float(abs(ahead.mean[:, 0].numpy() - y[-24:]).mean())
    print(f"the last two years: {error:.2f} ppm off on average, {100 * inside:.0f} % inside the 95 % interval")

    first = plot_components(ss.decompose(model, y), y, series.index, "CO2 (ppm)")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    first.figure.savefig(arguments.out, dpi=120)
    print(f"wrote {arguments.out}")
    return {"error": error, "inside": inside, "log_prob": fitter.history[-1]}


if __name__ == "__main__":
    main()
