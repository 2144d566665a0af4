"""Seattle's weather: yes-or-no beside numbers in one table, days that are missing, and seasons that drive the chain.

    python examples/weather.py [--out out/weather.png]

Four years of days (NOAA, from the package `vega-datasets`): was it wet, how much fell (on a dry day that is missing),
the highest temperature, the wind. One emission a column makes a hidden state a kind of day. What kind follows what
depends on the season, told by the sine and cosine of the day of the year: a softmax regression for each row of the
transition. The temperature of each kind of day follows the season too. The last year is held out, and forecast. (The
table's words, "rain" or "fog", are left out: their rules changed in 2013, as the numbers beside them show.)
"""

import argparse
import math
from pathlib import Path

import torch

import statespan as ss
from statespan.plots import COLOURS

WET, TEMPERATURE = 0, 2
NAN = float("nan")


def days() -> tuple[torch.Tensor, torch.Tensor]:
    """(1461, 4): wet 1 or dry 0, millimetres, degrees, wind; and the season of each day, (1461, 2)."""
    from vega_datasets import local_data

    frame = local_data.seattle_weather()
    rain, *rest = torch.tensor(frame[["precipitation", "temp_max", "wind"]].to_numpy(), dtype=torch.float64).T
    angle = torch.tensor(frame["date"].dt.day_of_year.to_numpy(), dtype=torch.float64) * (2 * math.pi / 365.25)
    columns = [(rain > 0).double(), torch.where(rain > 0, rain, NAN), *rest]
    return torch.stack(columns, 1), torch.stack([angle.sin(), angle.cos()], 1)


def kinds(states: int, seasons: bool) -> ss.StateSpace:
    """A hidden Markov model of the four columns; with seasons its chain and its temperatures follow the year."""
    temperature = ss.LinearRegression(dim=1, inputs=2) if seasons else ss.Gaussian(1)
    emission = ss.Product(ss.Categorical(2), ss.LogNormal(), temperature, ss.LogNormal())
    transition = ss.SoftmaxTransition(states, inputs=2, precision=1.0) if seasons else None
    return ss.hmm(states=states, emission=emission, transition=transition, seed=0)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Fit with and without seasons, compare on the year held out, draw."""
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description="Seattle's weather.")
    parser.add_argument("--states", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("out/weather.png"))
    given = parser.parse_args(arguments)
    y, season = days()
    train, test = slice(0, 1096), slice(1096, None)  # 2012 to 2014, and 2015
    lost = y.clone()
    lost[200:215] = NAN  # two weeks without any record, and a month of a broken thermometer
    lost[560:590, TEMPERATURE] = NAN

    found, models = {}, {}
    for name, seasons in (("without seasons", False), ("with seasons", True)):
        u = season if seasons else None
        model = kinds(given.states, seasons).fit(
            lost[train], inputs=None if u is None else u[train], by=ss.EM(iterations=given.iterations)
        )
        known = model.filter(lost[train], inputs=None if u is None else u[train])
        score = model.log_prob(y[test], inputs=None if u is None else u[test], belief=known.belief)
        models[name], found[name] = model, score.item() / 365
        print(f"{name:>15}: {found[name]:.3f} nats a day on 2015")

    model = models["with seasons"]
    filled = model.impute(lost[train], inputs=season[train])[560:590, TEMPERATURE]
    error = (filled - y[560:590, TEMPERATURE]).abs().mean().item()
    flat = (y[560:590, TEMPERATURE] - y[train, TEMPERATURE].mean()).abs().mean().item()
    print(f"the 30 temperatures that were lost: filled to {error:.1f} degrees, by the mean of all days to {flat:.1f}")

    ahead = model.forecast(lost[train], steps=365, samples=1000, inputs=season[train], future=season[test])
    torch.manual_seed(0)
    each_day = ahead.distribution.sample((10_000,))[:, 0, :, TEMPERATURE]  # of each day by itself: smoother than paths
    low, high = each_day.quantile(each_day.new_tensor([0.05, 0.95]), dim=0)
    inside = ((y[test, TEMPERATURE] >= low) & (y[test, TEMPERATURE] <= high)).double().mean().item()
    print(f"2015's temperatures: {100 * inside:.0f} % within the central 90 % forecast a year ahead")
    rain = ahead.mean[:, WET]

    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(10, 5.4), height_ratios=[1.6, 1], layout="constrained", sharex=True
    )
    across = range(365)
    top.fill_between(across, low, high, color=COLOURS[0], alpha=0.2, linewidth=0, label="forecast, central 90 %")
    top.plot(ahead.mean[:, TEMPERATURE].numpy(), color=COLOURS[0], linewidth=2, label="forecast, mean")
    top.plot(y[test, TEMPERATURE].numpy(), ".", color="#333333", markersize=3, label="2015, not seen in fitting")
    top.set_ylabel("highest temperature, °C")
    top.legend(frameon=False, fontsize="small", ncols=3)
    wet = y[test, WET]
    month = torch.nn.functional.avg_pool1d(wet[None, None], 29, 1, 14, count_include_pad=False)[0, 0]
    bottom.plot(rain.numpy(), color=COLOURS[0], linewidth=2, label="forecast")
    bottom.plot(month.numpy(), color="#333333", linewidth=1, label="2015, mean of four weeks around")
    bottom.set_ylabel("share of wet days")
    bottom.set_ylim(0, 1)
    bottom.set_xlabel("day of 2015")
    bottom.legend(frameon=False, fontsize="small", ncols=2)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.out, dpi=110)
    plt.close(figure)
    print(f"picture: {given.out}")
    return found | {"filled": error, "flat": flat, "inside": inside}


if __name__ == "__main__":
    main()
