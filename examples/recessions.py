"""US recessions told from the growth of GNP alone: Hamilton's Markov-switching autoregression, and a forecast.

    python examples/recessions.py [--out out/recessions.png]

The series, 1951 to 1984, and the recessions as the NBER dates them are those that the tests of statsmodels print
(`pip install statsmodels`). Hamilton (1989) and Kim and Nelson (1999, chapter 4) print the estimates.
"""

import argparse
import ast
from pathlib import Path

import numpy as np
import torch

import statespan as ss
from statespan.plots import plot_forecast

FIRST = np.datetime64("1951-04")
"""The second quarter of 1951."""


def growth() -> tuple[torch.Tensor, torch.Tensor]:
    """Quarterly growth of real GNP in per cent, and whether the NBER dates a recession there."""
    import statsmodels

    text = Path(statsmodels.__file__).parent / "tsa/regime_switching/tests/test_markov_autoregression.py"
    lists = {}
    for node in ast.parse(text.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.List):
            lists[node.targets[0].id] = node.value
    y, recession = (torch.tensor(ast.literal_eval(lists[name]), dtype=torch.float64) for name in ("rgnp", "rec"))
    return y, recession


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fit, tell recessions, forecast, draw; what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/recessions.png"), help="where the picture goes")
    parser.add_argument("--steps", type=int, default=12, help="quarters to forecast")
    args = parser.parse_args(argv)
    y, recession = growth()

    # The mean switches, at once; the four lags and the variance are common to both regimes.
    model = ss.markov_switching(states=2, lags=4, switching=["intercept"], adjusted=True, seed=1)
    model.fit(y, by=[ss.EM(iterations=20), ss.LBFGS()], restarts=3, seed=0)
    means, table = model.emission.coefficients[:, 0], model.transition.chain.probs
    low = int(means.argmin())
    lasts = 1 / (1 - table.diagonal())
    found = {
        "log_prob": model.log_prob(y).item(),
        "recession": means[low].item(),
        "expansion": means[1 - low].item(),
        "recession_lasts": lasts[low].item(),
        "expansion_lasts": lasts[1 - low].item(),
    }
    found |= {f"lag {i}": weight for i, weight in enumerate(model.emission.autoregression[0].tolist(), 1)}
    probs = model.smooth(y).probs[:, low]
    agree = ((probs > 0.5) == (recession > 0.5))[4:].double().mean().item()
    found["agree"] = agree
    print(f"log-likelihood {found['log_prob']:.5f}")
    print(f"recession: {found['recession']:.2f} % a quarter, lasting {found['recession_lasts']:.1f} quarters")
    print(f"expansion: {found['expansion']:.2f} % a quarter, lasting {found['expansion_lasts']:.1f} quarters")
    print(f"the same as the NBER in {agree:.0%} of quarters")

    ahead = model.forecast(y, steps=args.steps, samples=2000)
    bottom, top = ahead.quantile([0.1, 0.9])[:, 0, 0].tolist()
    found["next"] = ahead.mean[0, 0].item()
    print(f"next quarter: {found['next']:.2f} %, 80 % between {bottom:.2f} and {top:.2f}")

    from matplotlib import pyplot

    figure, (series, below, fan) = pyplot.subplots(3, 1, figsize=(10, 7.5), layout="constrained")
    times = FIRST + np.arange(len(y) + args.steps) * np.timedelta64(3, "M")
    series.plot(times[: len(y)], y, color="0.2", linewidth=1.2)
    series.set(title="Growth of US GNP; grey: a recession by the NBER", ylabel="% a quarter")
    below.plot(times[4 : len(y)], probs[4:], color="C3")
    below.set(ylim=(0, 1), ylabel="probability", title="p(recession), by the whole series")
    for axes in (series, below):
        shown = axes.get_xaxis_transform()
        axes.fill_between(
            times[: len(y)], 0, 1, where=recession.numpy() > 0.5, transform=shown, step="mid", color="0.85"
        )
        axes.set_xlim(times[0], times[len(y) - 1])
        axes.set_axisbelow(True)
    plot_forecast(ahead, axes=fan, y=y, times=times[: len(y)], ahead=times[len(y) :])
    fan.set(ylabel="% a quarter")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=120)
    print(f"wrote {args.out}")
    return found


if __name__ == "__main__":
    main()
