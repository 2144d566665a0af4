"""The example of switching linear dynamics runs and shows what it says."""

import runpy
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")
pytest.importorskip("statsmodels")
pytestmark = pytest.mark.filterwarnings("ignore")
EXAMPLES = Path(__file__).parent.parent / "examples"


def test_inflation(tmp_path: Path):
    main = runpy.run_path(str(EXAMPLES / "inflation.py"))["main"]
    found = main(["--iterations", "12", "--out", str(tmp_path / "inflation.png")])
    assert found["bound"] < found["log_prob"] < found["bound"] + 30
    assert found["calm_trend"] < 0.6 < found["wild_trend"]
    assert found["seventies"] > 0.85
    assert found["nineties"] < 0.1
    assert (tmp_path / "inflation.png").stat().st_size > 10_000
