"""Log-likelihoods as rows that steps may share, against those of every step by itself."""

import pytest
import torch
from torch.testing import assert_close

import statespan as ss
from statespan.method import run
from statespan.methods import rows
from statespan.methods.finite import finite_prepare

SYMBOLS = [[0, 1, None, 3, 2, 2, 0], [2], [None, None], [3, 3, 0]]
NUMBERS = [[0.3, -1.0, float("nan"), 2.5], [0.1], [4.0, -2.0]]


@pytest.mark.parametrize("piece", [rows.PIECE, 4])
@pytest.mark.parametrize("case", ["symbols", "few symbols", "numbers", "labels", "durations"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_step_reads_its_own(case: str, dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows, "PIECE", piece)
    emission = {"numbers": ss.Gaussian(1), "few symbols": ss.Categorical(400)}.get(case, ss.Categorical(4))
    family = ss.semi_markov if case == "durations" else ss.hmm
    model = family(states=3, emission=emission, seed=0).to(dtype)
    y = NUMBERS if case == "numbers" else SYMBOLS
    labels = [[-1 if t else 1 for t in range(len(row))] for row in y] if case == "labels" else None
    data, _ = ss.verbs.ask(model, y, states=labels)
    method = ss.MaxProduct()
    with torch.no_grad():
        constants = method.constants(model)
        seen = method.prepare(model, constants, data)[1]
        expected = finite_prepare(model, constants, data)[1].exactly()
        fast, slow = (run(model, method, data, keep=("paths",), kernel=kernel).paths for kernel in (True, False))
    found = seen.rows.value[seen.which].double()
    assert_close(found[data.within], expected[data.within], rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=1e-12)
    assert fast is not None and slow is not None
    assert fast[0].equal(slow[0])
    assert_close(fast[1], slow[1], rtol=1e-12, atol=0)


def test_a_density_below_every_number_still_has_a_path():
    model = ss.hmm(states=2, emission=ss.Gaussian(mean=[[0.0], [100.0]], covariance=[[[1.0]], [[1e-4]]]), seed=0)
    model.transition.set_probs(torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double())
    assert model.decode([0.0, 100.0, 0.0]).tolist() == [0, 0, 0]
