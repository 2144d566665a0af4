import torch

from statespan.kernels import linear_cross_entropy, normalised_gather


def test_the_plain_versions_are_the_kernels_values_and_gradients():
    weight, bias = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    hidden, index = torch.randn(5, 4, dtype=torch.float64), torch.randint(0, 7, (5,))
    inputs = [x.requires_grad_() for x in (hidden, weight, bias)]
    ours = linear_cross_entropy.linear_log_softmax_gather(*inputs, index)
    plain = linear_cross_entropy.plain(*inputs, index)
    _same(ours, plain, inputs)
    normaliser = normalised_gather.column_logsumexp(weight, bias)
    ours = normalised_gather.gather_log_softmax(weight, bias, normaliser, index)
    _same(ours, normalised_gather.plain(weight, bias, index), inputs[1:])


def _same(ours, plain, inputs):
    torch.testing.assert_close(ours, plain)
    outer = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, inputs, outer), torch.autograd.grad(plain, inputs, outer), strict=True):
        torch.testing.assert_close(a, b)
