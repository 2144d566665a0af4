"""`varying_chain` against a plain loop, and the transitions that use it against the scan."""

import pytest
import torch
from torch import Tensor

import statespan as ss
from statespan.kernels.varying_chain import varying_chain


def plain(
    predicted: Tensor, tables: Tensor, which: Tensor, likelihood: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Step by step in torch; an impossible observation leaves a belief of zeros."""
    belief, logs, kept = predicted, [], []
    for t in range(len(likelihood)):
        if t:
            belief = (belief[:, None] @ tables[which[t]])[:, 0]
        inside = t < lengths
        joint = torch.where(inside[:, None], belief * likelihood[t], 0.0)
        c = joint.sum(1)
        belief = joint / torch.where(c > 0, c, 1.0)[:, None]
        logs.append(torch.where(inside, torch.where(c > 0, c, 1.0).log() + torch.where(c > 0, 0.0, -torch.inf), 0.0))
        kept.append(belief)
    return torch.stack(logs), torch.stack(kept)


def example(T: int, B: int, K: int, M: int | None, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(T + B + K)
    count = T * B if M is None else M
    predicted, tables, likelihood = (
        torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((B, K), (count, K, K), (T, B, K))
    )
    likelihood[T // 2, 0] = 0  # impossible
    which = torch.arange(T * B).view(T, B) if M is None else torch.randint(0, M, (T, B), generator=generator)
    predicted, tables = (x / x.sum(-1, keepdim=True) for x in (predicted, tables))
    return predicted, tables, which, likelihood, torch.randint(0, T + 1, (B,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("M", [None, 3])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 4, 3), (6, 3, 9), (7, 2, 17)])
def test_agrees_with_the_plain_loop(dtype: torch.dtype, M: int | None, shape: tuple[int, int, int]) -> None:
    predicted, tables, which, likelihood, lengths = example(*shape, M, dtype)
    free = [x.requires_grad_() for x in (predicted, tables, likelihood)]
    small = 1e-11 if dtype == torch.float64 else 1e-4
    got = varying_chain(predicted, tables, None if M is None else which, likelihood, lengths)
    expected = plain(predicted, tables, which, likelihood, lengths)
    gradients = []
    for log, filtered in (got, expected):
        total = torch.where(log.isfinite(), log, 0.0).sum() + (filtered[..., 0] * torch.arange(shape[1])).sum()
        gradients.append(torch.autograd.grad(total, free, materialize_grads=True))
    torch.testing.assert_close(got[0], expected[0].double(), atol=small, rtol=small)
    for a, b in zip([got[1], *gradients[0]], [expected[1], *gradients[1]], strict=True):
        torch.testing.assert_close(a, b, atol=small, rtol=small)


def test_several_threads_add_to_the_same_matrices() -> None:
    arguments = example(40, 30, 16, 2, torch.float64)
    before, answers = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        tables = arguments[1].clone().requires_grad_()
        log, _ = varying_chain(arguments[0], tables, *arguments[2:])
        answers.append(torch.autograd.grad(log[log.isfinite()].sum(), tables)[0])
    torch.set_num_threads(before)
    torch.testing.assert_close(*answers)


TRANSITIONS = {
    "regimes": (lambda: ss.Regimes(regimes=3), lambda u: u[..., :1].mul(3).floor()),
    "generator": (lambda: ss.Generator(), lambda u: u[..., :1].mul(4).ceil()),
    "softmax": (lambda: ss.SoftmaxTransition(inputs=2), lambda u: u),
}


@pytest.mark.parametrize("name", TRANSITIONS)
def test_the_same_numbers_as_the_scan(name: str) -> None:
    transition, inputs = TRANSITIONS[name]
    model = ss.hmm(4, ss.Categorical(6), transition=transition(), seed=0)
    generator = torch.Generator().manual_seed(1)
    u = inputs(torch.rand(3, 8, 2, generator=generator, dtype=torch.float64))
    y = torch.randint(0, 6, (3, 8), generator=generator)
    data, _ = ss.verbs.ask(model, y, torch.tensor([8, 3, 5]), u)
    keep = ("log_prob", "filtered", "last")
    free = [p for p in model.parameters() if p.requires_grad]
    here, there = (ss.run(model, ss.Forward(), data, keep=keep, kernel=kernel) for kernel in (True, False))
    torch.testing.assert_close(here.log_prob, there.log_prob)
    torch.testing.assert_close(here.last.probs, there.last.probs)
    torch.testing.assert_close(here.filtered.probs[data.within], there.filtered.probs[data.within])
    gradients = (torch.autograd.grad(x.log_prob.sum(), free, materialize_grads=True) for x in (here, there))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_wrong_arguments() -> None:
    predicted, tables, which, likelihood, lengths = example(3, 2, 4, 2, torch.float64)
    with pytest.raises(ValueError, match="must be of 4 states"):
        varying_chain(predicted, tables[:, :3], which, likelihood, lengths)
    with pytest.raises(ValueError, match="must be of 4 states"):
        varying_chain(predicted, tables, None, likelihood, lengths)


@pytest.mark.filterwarnings("default")
def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.statespan.varying_chain, example(3, 2, 4, 2, torch.float64))
