import pytest
import torch

from statespan.kernels.gated import gated_push


def plain(probs, logits, gate):
    return torch.einsum("bl,blk->bk", probs, (logits * gate[:, None, :]).softmax(-1))


def problem(batch, states, dtype=torch.float64):
    probs = torch.rand(batch, states, dtype=dtype).softmax(-1)
    logits = 3 * torch.randn(states, states, dtype=dtype)
    gate = torch.rand(batch, states, dtype=dtype)
    return [x.requires_grad_() for x in (probs, logits, gate)]


@pytest.mark.parametrize(("batch", "states"), [(1, 1), (1, 5), (3, 8), (4, 17), (2, 40)])
def test_value_and_gradient_are_those_of_the_dense_table(batch, states):
    inputs = problem(batch, states)
    ours, theirs = gated_push(*inputs), plain(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    outer = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, inputs, outer), torch.autograd.grad(theirs, inputs, outer), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_gradcheck():
    assert torch.autograd.gradcheck(gated_push, problem(2, 3))


def test_a_state_without_mass_moves_nothing_and_still_has_a_gradient():
    probs, logits, gate = problem(2, 6)
    with torch.no_grad():
        probs[:, 2] = 0
    ours, theirs = gated_push(probs, logits, gate), plain(probs, logits, gate)
    torch.testing.assert_close(ours, theirs)
    outer = torch.randn_like(ours)
    (a,), (b,) = (torch.autograd.grad(x, [probs], outer) for x in (ours, theirs))
    torch.testing.assert_close(a, b)


def test_float32_agrees_within_rounding():
    inputs = [x.detach().float() for x in problem(3, 30)]
    torch.testing.assert_close(gated_push(*inputs), plain(*inputs), rtol=2e-6, atol=1e-7)


def test_opcheck():
    torch.library.opcheck(torch.ops.statespan.gated_push, tuple(problem(2, 5)))


def test_shapes_are_checked():
    probs, logits, gate = problem(2, 4)
    with pytest.raises(ValueError, match="gate must be"):
        gated_push(probs, logits, gate[:1])
