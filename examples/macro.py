"""The US economy, 1959 to 2009, as one number a quarter: a dynamic factor, and GDP before it is published.

    python examples/macro.py [--out out/macro.png]

Growth of GDP, consumption, investment and disposable income, and the change of unemployment: the macrodata of
statsmodels (`pip install statsmodels`). One factor with two lags is fitted by EM. GDP of the last forty quarters is
hidden, from the fit too, and filled in by what the other series say; the line to beat is the mean of GDP's growth.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import statespan as ss
from statespan.plots import COLOURS

HIDDEN = 40
"""Quarters whose GDP the model does not see."""
NAMES = ("GDP", "consumption", "investment", "income", "unemployment")


def growth() -> tuple[torch.Tensor, np.ndarray]:
    """(202, 5): growth in per cent of four series, the change of the fifth in points; and the quarters."""
    from statsmodels.datasets import macrodata

    table = macrodata.load_pandas().data
    logs = np.log(table[["realgdp", "realcons", "realinv", "realdpi"]].to_numpy(copy=True))
    y = np.concatenate([100 * np.diff(logs, axis=0), np.diff(table["unemp"])[:, None]], 1)
    quarters = np.datetime64("1959-04") + 3 * np.arange(len(y))
    return torch.tensor(y), quarters


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fit, fill in, draw; what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/macro.png"), help="where the picture goes")
    parser.add_argument("--iterations", type=int, default=40, help="of EM, at most")
    args = parser.parse_args(argv)
    y, quarters = growth()
    seen = y.clone()
    seen[-HIDDEN:, 0] = torch.nan

    model = ss.dynamic_factor(observed=5, factors=1, order=2, seed=0)
    em = ss.EM(iterations=args.iterations, tolerance=1e-5)
    model.fit(seen, by=em, restarts=2, seed=0)
    loadings = model.emission.loadings[:, 0].detach()
    sign = loadings[0].sign()  # the data do not tell the sign
    print(f"log-likelihood {em.history[-1]:.2f}")
    for name, loading in zip(NAMES, sign * loadings, strict=True):
        print(f"{name:>12}: {loading:+.2f} a unit of the factor's shock")
    found = {"log_prob": em.history[-1], **dict(zip(NAMES, (sign * loadings).tolist(), strict=True))}

    filled, truth = model.impute(seen)[-HIDDEN:, 0], y[-HIDDEN:, 0]
    found["error"] = (filled - truth).square().mean().sqrt().item()
    found["flat"] = (seen[:-HIDDEN, 0].mean() - truth).square().mean().sqrt().item()
    print(f"hidden GDP: {found['error']:.2f} % off (root mean square); by its mean {found['flat']:.2f} %")

    from matplotlib import pyplot

    posterior = model.smooth(seen)
    factor, spread = sign * posterior.mean[:, 0], 1.96 * posterior.covariance[:, 0, 0].sqrt()
    _, (top, below) = pyplot.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
    top.fill_between(quarters, factor - spread, factor + spread, color=COLOURS[0], alpha=0.2, linewidth=0)
    top.plot(quarters, factor, color=COLOURS[0])
    top.axhline(0, color="0.7", linewidth=0.8)
    top.set(title="The factor, 95 %", ylabel="standard deviations of a shock")
    below.plot(quarters, y[:, 0], color="0.2", linewidth=1, label="GDP, % a quarter")
    below.plot(quarters[-HIDDEN:], filled, ".-", color=COLOURS[2], label="filled in where it was hidden")
    below.axvspan(quarters[-HIDDEN], quarters[-1], color="0.93", zorder=0)
    below.legend(frameon=False, loc="upper right")
    for axes in (top, below):
        axes.spines[["top", "right"]].set_visible(False)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    top.figure.savefig(args.out, dpi=120)
    print(f"wrote {args.out}")
    return found


if __name__ == "__main__":
    main()
