"""The examples of structural series run and show what they say."""

import runpy
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")
pytest.importorskip("statsmodels")
pytestmark = pytest.mark.filterwarnings("ignore")
EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: object):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]([str(a) for a in arguments])


def test_nile(tmp_path: Path):
    found = run("nile", "--out", tmp_path / "nile.png")
    assert found["log_prob"] == pytest.approx(-633.464564, abs=1e-5)
    assert found["noise"] == pytest.approx(15098.5, rel=2e-3)
    assert (tmp_path / "nile.png").stat().st_size > 10_000


def test_co2(tmp_path: Path):
    found = run("co2", "--out", tmp_path / "co2.png", "--months", 240)
    assert found["error"] < 1.0
    assert found["inside"] > 0.7
    assert (tmp_path / "co2.png").stat().st_size > 10_000
