"""The E-step and the best paths against hmmlearn's, to a relative 1e-8."""

import pytest
import torch

from statespan.benchmarks import agree, chains
from statespan.fit import EM
from statespan.methods import Forward

pytest.importorskip("hmmlearn")


@pytest.mark.parametrize("dim", [None, 3])
@pytest.mark.parametrize("lengths", [[20, 7, 33, 1] * 5, [3000]])
@pytest.mark.parametrize("states", [2, 7, 20])
def test_the_likelihood_of_an_e_step(states: int, lengths: list[int], dim: int | None) -> None:
    work = chains(states, dim, lengths)
    agree("E-step", work.expect(), work.peer_expect())


def test_the_statistics_of_an_e_step() -> None:
    work = chains(5, None, [20, 7, 33, 1] * 5)
    statistics = EM().expect(work.model, Forward(), work.groups)[1]
    expected = work.peer._initialize_sufficient_statistics()
    for y in work.sequences:
        lattice, _, *answers = work.peer._fit_scaling(y)
        work.peer._accumulate_sufficient_statistics(expected, y, lattice, *answers)
    torch.testing.assert_close(statistics.initial, torch.as_tensor(expected["start"]))
    torch.testing.assert_close(statistics.transition, torch.as_tensor(expected["trans"]))
    torch.testing.assert_close(statistics.emission, torch.as_tensor(expected["obs"]).T.contiguous())


@pytest.mark.parametrize("states", [2, 9])
def test_the_score_of_the_best_path(states: int) -> None:
    work = chains(states, None, [20, 7, 33, 1, 500])
    for y in work.sequences:
        paths, score = work.model.decode(y[:, 0], k=1)
        expected, path = work.peer.decode(y)
        assert score.item() == pytest.approx(expected, rel=1e-8)
        assert paths.reshape(-1).tolist() == path.tolist()
