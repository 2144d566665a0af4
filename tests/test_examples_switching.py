"""The example of Markov switching runs, and its fit reaches the optimum that Hamilton (1989) published."""

import runpy
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")
pytest.importorskip("statsmodels")
pytestmark = pytest.mark.filterwarnings("ignore")
EXAMPLES = Path(__file__).parent.parent / "examples"


def test_recessions(tmp_path: Path):
    found = runpy.run_path(str(EXAMPLES / "recessions.py"))["main"](["--out", str(tmp_path / "recessions.png")])
    assert -181.26340 < found["log_prob"] < -181.26329
    assert found["recession"] == pytest.approx(-0.3588, abs=2e-3)
    assert found["expansion"] == pytest.approx(1.1635, abs=2e-3)
    assert [found[f"lag {i}"] for i in (1, 2, 3, 4)] == pytest.approx(
        [0.013486, -0.057521, -0.246983, -0.212923], abs=2e-3
    )
    assert found["agree"] > 0.85
    assert (tmp_path / "recessions.png").stat().st_size > 10_000
