"""The example of Markov switching runs and shows what it says."""

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
    assert found["log_prob"] == pytest.approx(-181.26339, abs=1e-4)
    assert found["recession"] == pytest.approx(-0.3588, abs=5e-3)
    assert found["expansion"] == pytest.approx(1.1635, abs=5e-3)
    assert found["agree"] > 0.85
    assert (tmp_path / "recessions.png").stat().st_size > 10_000
