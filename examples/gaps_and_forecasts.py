"""Series with gaps and of different lengths, in two families and one vocabulary.

    python examples/gaps_and_forecasts.py [--out out/gaps_and_forecasts.png]

The same five lines filter, fill, forecast and follow a hidden Markov model and a Kalman filter.
"""

import argparse
from pathlib import Path

import torch

import statespan as ss
from statespan.plots import plot_forecast, plot_posterior

MODELS = {
    "HMM: three regimes": ss.hmm(
        initial=[0.6, 0.2, 0.2],
        transition=[[0.94, 0.03, 0.03], [0.10, 0.88, 0.02], [0.10, 0.02, 0.88]],
        emission=ss.Gaussian(mean=[[0.0], [3.0], [-3.0]], covariance=torch.tensor([0.5, 1.5, 1.5]).view(3, 1, 1)),
    ),
    "Kalman: a position and its velocity, the position seen": ss.linear_gaussian(
        dynamics=[[1.0, 1.0], [0.0, 0.95]],
        state_noise=[[0.05, 0.0], [0.0, 0.02]],
        observation=[[1.0, 0.0]],
        observation_noise=[[1.0]],
    ),
}


def look(model: ss.StateSpace, axes: tuple) -> dict[str, torch.Tensor]:
    """Gaps, ragged lengths, forecasts, a stream: the same for every model."""
    _, y = model.sample(n=2, length=80, seed=5)
    long, short = y[0], y[1, :30].clone()
    long[36:50] = torch.nan  # a gap is NaN (None, or -1 for symbols); lengths differ freely in a list
    short[-3:] = torch.nan  # a gap at the end is not the end

    posterior = model.smooth([long, short])
    filled = model.impute([long, short])
    forecast = model.forecast([long, short], steps=20, samples=2000)
    plot_posterior(posterior, 0, axes[0])
    plot_forecast(forecast, 0, axes[1])

    stream = model.stream()
    for value in long:
        stream.update(value)
    ahead = stream.forecast(20)
    return {
        "log_prob": posterior.log_prob,
        "streamed": stream.log_prob,
        "filled": filled[0][36:50],
        "mean": forecast.mean[0],
        "from the stream": ahead.mean,
    }


def main(arguments: list[str] | None = None) -> dict[str, dict[str, torch.Tensor]]:
    """Run, print, draw."""
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description="Gaps, ragged lengths, forecasts and streams.")
    parser.add_argument("--out", type=Path, default=Path("out/gaps_and_forecasts.png"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figure, grid = plt.subplots(len(MODELS), 2, figsize=(11, 6), width_ratios=[2, 1], layout="constrained")
    answers = {}
    for (title, model), axes in zip(MODELS.items(), grid, strict=True):
        answers[title] = answer = look(model, axes)
        axes[0].set_title(f"{title}; steps 36 to 49 are missing", fontsize="small", loc="left")
        print(title)
        print(f"  log-probability {answer['log_prob'][0].item():.3f}, step by step {answer['streamed'].item():.3f}")
        print(f"  filled in the gap: {', '.join(f'{x:.2f}' for x in answer['filled'][:5, 0].tolist())}, ...")
        print(f"  next: {', '.join(f'{x:.2f}' for x in answer['mean'][:5, 0].tolist())}, ...")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.out, dpi=110)
    plt.close(figure)
    print(f"picture: {given.out}")
    return answers


if __name__ == "__main__":
    main()
