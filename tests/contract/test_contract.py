"""The contract: what holds for every (model, method, kernel). A new part joins by one line in `cases.py`."""

import copy
import itertools
import math

import pytest
import torch
from cases import (
    ANY,
    ANYWHERE,
    APPROXIMATE,
    CERTAIN,
    EXACT,
    FINITE,
    KERNELS,
    ROUND,
    SYMBOLIC,
    SYMBOLS,
    WIDTH,
    Case,
    case,
)
from torch.testing import assert_close

import statespan as ss
from laws import laws
from oracles import all_rows, condition, enumerate_finite, finite, joint_normal, next_symbols
from statespan.method import Trace, prepare, run, scan, smooth_backward
from statespan.sequences import Sequences
from statespan.tree import leaves, tree_map

TIGHT = {"rtol": 0.0, "atol": 1e-9}
BITS = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture
def any_case(request: pytest.FixtureRequest) -> Case:
    return case(request.param)


def over(names: list[str]):
    return pytest.mark.parametrize("any_case", names, indirect=True, ids=names)


def gapped(y: torch.Tensor, *at: tuple[int, ...]) -> torch.Tensor:
    """A float copy with NaN at the given places."""
    y = y.double().clone()
    for place in at:
        y[place] = math.nan
    return y


# ------------------------------------------------------------------------------------- log-probabilities


@over(SYMBOLIC)
def test_next_symbol_probabilities_sum_to_one(any_case: Case):
    model, y = any_case.model, any_case.data(1)[0]
    for t in (0, 2, 4):
        each = torch.arange(SYMBOLS)[:, None]
        longer = torch.cat([y[:t].expand(SYMBOLS, -1), each], 1)
        before = model.log_prob(y[:t]) if t else torch.zeros(())
        assert_close((model.log_prob(longer) - before).exp().sum().item(), 1.0, rtol=0, atol=1e-9)
    ahead = model.forecast(y, steps=3).probs
    assert ahead.shape == (3, SYMBOLS)
    assert_close(ahead.sum(-1), torch.ones(3).double(), rtol=0, atol=1e-9)
    assert_close(ahead[0], _next(any_case, y), **TIGHT)


def _next(any_case: Case, y: torch.Tensor) -> torch.Tensor:
    longer = torch.cat([y.expand(SYMBOLS, -1), torch.arange(SYMBOLS)[:, None]], 1)
    return (any_case.model.log_prob(longer) - any_case.model.log_prob(y)).exp().detach()


@over(SYMBOLIC)
def test_all_sequences_of_a_length_sum_to_one_and_samples_follow_them(any_case: Case):
    every = all_rows(SYMBOLS, 3)
    p = any_case.model.log_prob(every).exp().detach()
    assert_close(p.sum().item(), 1.0, rtol=0, atol=1e-9)
    n = 10_000
    drawn = any_case.model.sample(n, 3, seed=4)[1]
    counts = torch.bincount(drawn @ torch.tensor([16, 4, 1]), minlength=64).double()
    chi2 = ((counts - n * p) ** 2 / (n * p)).sum().item()
    assert chi2 < 63 + 4.5 * math.sqrt(2 * 63), f"chi-square {chi2:.1f} on 63 degrees of freedom"


@over([n for n in EXACT if n not in SYMBOLIC])
def test_samples_of_vectors_follow_the_density(any_case: Case):
    # E_p[q(y) / p(y)] = 1 for any density q with lighter tails than p.
    y = any_case.data(4000, 3, seed=5)
    if any_case.name in ANYWHERE:
        centre, spread = y.mean(0), 0.6 * y.std(0)
        q = torch.distributions.Normal(centre, spread).log_prob(y).sum((-1, -2))
    else:  # another model of the kind, near by
        twin = copy.deepcopy(any_case.model)
        with torch.no_grad():
            for parameter in twin.emission.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
        q = twin.log_prob(y).detach()
    ratio = (q - any_case.model.log_prob(y).detach()).exp()
    error = ratio.std() / math.sqrt(len(ratio))
    assert error < 0.1
    assert abs(ratio.mean() - 1) < 4.5 * error


@over(CERTAIN)
def test_log_prob_is_the_sum_of_stream_steps(any_case: Case):
    y = any_case.data(1)[0]
    stream = any_case.model.stream()
    steps = []
    for row in y:
        stream.update(row)
        steps.append(-stream.surprise)
    assert_close(torch.stack(steps).sum(), any_case.model.log_prob(y).detach(), **BITS)
    assert_close(stream.log_prob, any_case.model.log_prob(y).detach(), **BITS)
    each = run(any_case.model, any_case.method, Sequences(y=y[:, None])).log_prob
    assert_close(torch.stack(steps), each[:, 0].detach(), **BITS)


@over(FINITE)
def test_log_prob_equals_enumeration(any_case: Case):
    chain = finite(any_case.model)
    for y in any_case.data(3, 5):
        seen = torch.ones_like(y, dtype=torch.bool)
        assert_close(any_case.model.log_prob(y), enumerate_finite(chain, y, seen).log_prob, **TIGHT)


@over([n for n in CERTAIN if n in ss.LADDER and n not in FINITE])
def test_log_prob_equals_the_printed_equations(any_case: Case):
    for y in any_case.data(3, 5):
        each = run(any_case.model, any_case.method, Sequences(y=y[:, None])).log_prob[:, 0]
        assert_close(each, next_symbols(any_case.model, any_case.name, y).gather(1, y[:, None])[:, 0], **TIGHT)


# ------------------------------------------------------------------------------------------------ gaps


@over([n for n in EXACT if n in SYMBOLIC])
@pytest.mark.parametrize("at", [(0,), (2,), (4,), (1, 2), (0, 1, 4)])
def test_a_gap_marginalises(any_case: Case, at: tuple[int, ...]):
    y = any_case.data(1)[0]
    fills = y.repeat(SYMBOLS ** len(at), 1)
    fills[:, list(at)] = all_rows(SYMBOLS, len(at))
    with_gap = any_case.model.log_prob(gapped(y, (list(at),)))
    assert_close(with_gap, any_case.model.log_prob(fills).logsumexp(0), **TIGHT)
    chain = finite(any_case.model)
    seen = torch.ones(5, dtype=torch.bool)
    seen[list(at)] = False
    truth = enumerate_finite(chain, y, seen)
    assert_close(with_gap, truth.log_prob, **TIGHT)
    assert_close(any_case.model.smooth(gapped(y, (list(at),))).probs, truth.smoothed(WIDTH).detach(), **TIGHT)


@over([n for n in EXACT if n not in SYMBOLIC])
def test_missing_coordinates_and_rows_marginalise(any_case: Case):
    y = gapped(any_case.data(1)[0], (0, 1), (2,), (3, 0), (4, 1))
    seen = ~y.isnan()
    if any_case.name.endswith("linear-gaussian"):
        truth = condition(joint_normal(any_case.model, 5), y.nan_to_num(), seen)[0]
    else:
        truth = enumerate_finite(finite(any_case.model), y.nan_to_num(), seen).log_prob
    assert_close(any_case.model.log_prob(y), truth, **TIGHT)


@over(CERTAIN)
def test_a_gap_scores_nothing_and_touches_no_other_sequence(any_case: Case):
    y = any_case.data(3)
    data, _ = ss.verbs.ask(any_case.model, gapped(y, (1, 2)))
    each = run(any_case.model, any_case.method, data).log_prob.detach()
    whole = run(any_case.model, any_case.method, Sequences(y=y.transpose(0, 1))).log_prob.detach()
    assert abs(each[2, 1]) < 1e-12
    assert bool(each.isfinite().all())
    assert_close(each[:, [0, 2]], whole[:, [0, 2]], **BITS)
    assert_close(each[:2, 1], whole[:2, 1], **BITS)
    loss = -any_case.model.log_prob(gapped(y, (1, 2), (0, 0))).sum()
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in any_case.model.parameters() if p.grad is not None)


@over(CERTAIN)
def test_nothing_observed_at_all(any_case: Case):
    y = gapped(any_case.data(2), (0,))
    assert abs(any_case.model.log_prob(y)[0]) < 1e-12
    belief = any_case.model.filter(y)
    assert all(bool(v.isfinite().all()) for v in belief.values.values())


# --------------------------------------------------------------------------- carry, padding, order, forms


@over(CERTAIN)
@pytest.mark.parametrize("holes", [(), ((0, 1), (1, 2), (2, 3))])
def test_a_carried_belief_equals_the_whole(any_case: Case, holes: tuple):
    y = gapped(any_case.data(3, 6), *holes) if holes else any_case.data(3, 6)
    whole, smoothed = any_case.model.filter(y), any_case.model.smooth(y).values
    for cut in (1, 3, 5):
        first = any_case.model.filter(y[:, :cut])
        rest = any_case.model.filter(y[:, cut:], belief=first.belief)
        assert_close(first.log_prob + rest.log_prob, whole.log_prob, **BITS)
        for name, value in rest.values.items():
            assert_close(value, whole.values[name][:, cut:], **BITS)
        after = any_case.model.smooth(y[:, cut:], belief=first.belief)
        for name, value in smoothed.items():
            assert_close(after.values[name], value[:, cut:], rtol=1e-9, atol=1e-9)


@over(CERTAIN)
def test_a_ragged_belief_is_each_sequences_own_end(any_case: Case):
    y = any_case.data(3, 6)
    heads, tails = [y[0, :2], y[1, :5], y[2, :3]], [y[0, 2:], y[1, 5:], y[2, 3:]]
    belief = any_case.model.filter(heads).belief
    both = any_case.model.log_prob(heads) + any_case.model.log_prob(tails, belief=belief)
    assert_close(both, any_case.model.log_prob(y), **BITS)


@over(CERTAIN)
def test_padding_and_order_change_nothing(any_case: Case):
    model, y = any_case.model, any_case.data(4, 6)
    ends = [3, 6, 1, 5]
    alone = [model.log_prob(row[:n]) for row, n in zip(y, ends, strict=True)]
    smoothed = [model.smooth(row[:n]).values for row, n in zip(y, ends, strict=True)]
    filtered = [model.filter(row[:n]).values for row, n in zip(y, ends, strict=True)]
    rows = [row[:n] for row, n in zip(y, ends, strict=True)]
    garbage = y.clone().double()
    for i, n in enumerate(ends):
        garbage[i, n:] = torch.tensor([math.nan, 3.0, 1e6])[torch.arange(6 - n) % 3].view(-1, *[1] * (y.dim() - 2))
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        mixed = [rows[i] for i in order]
        assert_close(model.log_prob(mixed), torch.stack([alone[i] for i in order]), **BITS)
        padded = model.log_prob(garbage[order], lengths=[ends[i] for i in order])
        assert_close(padded, torch.stack([alone[i] for i in order]), **BITS)
        for answer, truth in ((model.smooth(mixed), smoothed), (model.filter(mixed), filtered)):
            for name, values in answer.values.items():
                for j, i in enumerate(order):
                    assert_close(values[j], truth[i][name], rtol=1e-9, atol=1e-9)
        for name, values in model.smooth(garbage[order], lengths=[ends[i] for i in order]).values.items():
            for j, i in enumerate(order):
                assert_close(values[j, : ends[i]], smoothed[i][name], rtol=1e-9, atol=1e-9)
                assert bool((values[j, ends[i] :] == 0).all())


@over(ANY)
def test_answers_follow_the_question(any_case: Case):
    model, method, y = any_case.model, any_case.method, any_case.data(2, 4)
    tail = y.shape[2:]
    assert model.log_prob(y[0], method=method).shape == ()
    assert model.log_prob(y, method=method).shape == (2,)
    assert model.log_prob([y[0], y[1, :3]], method=method).shape == (2,)
    for verb in (model.filter, model.smooth):
        one, batch, many = (verb(q, method=method).values for q in (y[0], y, [y[0], y[1, :3]]))
        for name in one:
            assert one[name].shape[0] == 4
            assert batch[name].shape[:2] == (2, 4)
            assert [len(v) for v in many[name]] == [4, 3]
    for n, front in ((None, ()), (3, (3,))):
        drawn = model.sample(n, 5, seed=0, method=method)[1]
        assert drawn.shape == (*front, 5, *tail)
    one, batch = model.forecast(y[0], 3, 5, method=method), model.forecast(y, 3, 5, method=method)
    assert one.samples.shape == (5, 3, *tail)
    assert batch.samples.shape == (5, 2, 3, *tail)
    filled = [model.impute(q, method=method) for q in (y[0], y, [y[0], y[1, :3]])]
    assert filled[0].shape == y[0].shape
    assert filled[1].shape == y.shape
    assert [len(f) for f in filled[2]] == [4, 3]
    paths = model.sample_posterior(y[0], n=3, seed=0, method=method)
    assert leaves(paths)[0].shape[:2] == (3, 4)
    if any_case.name in FINITE:
        assert model.decode(y[0], method=method).shape == (4,)
        assert [len(p) for p in model.decode([y[0], y[1, :3]], method=method)] == [4, 3]
        best, score = model.decode(y, k=2, method=method)
        assert best[0].shape == (4, 2)
        assert score.shape == (2, 2)


# --------------------------------------------------------------------------------------------- smoothing


def seams(any_case: Case, data: Sequences):
    """The filtered beliefs of a scan and the gradient of log p with respect to each."""
    model, method = any_case.model, any_case.method
    steps = list(scan(model, method, prepare(model, method, data), *data.shape))
    states = [step.filtered.state for step in steps]
    total = sum(step.log_prob.sum() for step in steps)
    flat = [x for state in states for x in state]
    grads = torch.autograd.grad(total, flat, allow_unused=True, materialize_grads=True)
    size = len(states[0])
    return states, [grads[i * size : (i + 1) * size] for i in range(len(states))]


@over(EXACT)
@pytest.mark.parametrize("holes", [(), ((1, 2), (0, 0), (2, 4))])
def test_smoothing_is_a_gradient_is_the_backward_pass(any_case: Case, holes: tuple):
    model, method = any_case.model, any_case.method
    y = gapped(any_case.data(3), *holes) if holes else any_case.data(3)
    data, _ = ss.verbs.ask(model, y)
    smoothed = model.smooth(y)
    back = smooth_backward(model, method, prepare(model, method, data), None, data.shape).state.summary()
    for name, value in smoothed.values.items():
        assert_close(value, back[name].transpose(0, 1).detach(), **TIGHT)
    states, grads = seams(any_case, data)
    for t, (state, gradient) in enumerate(zip(states, grads, strict=True)):
        if any_case.name in FINITE:  # mean + covariance of the one-hot state times the gradient
            p, g = state.probs, gradient[0]
            found = p + p * g - p * (p * g).sum(-1, keepdim=True)
            assert_close(smoothed.probs[:, t], found.detach(), **TIGHT)
        else:
            covariance = state.scale @ state.scale.mT
            found = state.mean + (covariance @ gradient[0][..., None])[..., 0]
            assert_close(smoothed.mean[:, t], found.detach(), **TIGHT)


@over(FINITE)
def test_smoothing_and_posterior_paths_equal_enumeration(any_case: Case):
    y = any_case.data(2, 5)
    smoothed = any_case.model.smooth(y).probs
    chain = finite(any_case.model)
    n = 4000
    for i in range(2):
        truth = enumerate_finite(chain, y[i], torch.ones_like(y[i], dtype=torch.bool))
        assert_close(smoothed[i], truth.smoothed(WIDTH).detach(), **TIGHT)
        paths = any_case.model.sample_posterior(y[i], n=n, seed=3)
        drawn = torch.nn.functional.one_hot(paths, WIDTH).double().mean(0)
        error = (smoothed[i] * (1 - smoothed[i]) / n).sqrt()
        assert bool(((drawn - smoothed[i]).abs() < 4.5 * error + 1e-3).all())
        pairs = torch.bincount((paths[:, :-1] * WIDTH + paths[:, 1:]).flatten(), minlength=WIDTH**2) / n
        exact = truth.pairs(WIDTH).flatten().detach()
        assert bool(((pairs - exact).abs() < 4.5 * (exact.clamp_min(1e-3) * 4 / n).sqrt() + 1e-3).all())


@over([n for n in EXACT if n not in FINITE])
def test_smoothing_equals_the_dense_joint(any_case: Case):
    y = gapped(any_case.data(1)[0], (1,), (3, 0))
    joint = joint_normal(any_case.model, 5)
    log, mean, covariance = (x.detach() for x in condition(joint, y.nan_to_num(), ~y.isnan()))
    smoothed = any_case.model.smooth(y)
    assert_close(smoothed.log_prob, log, **TIGHT)
    n = 5 * joint.state
    assert_close(smoothed.mean.flatten(), mean[:n], **TIGHT)
    for t in range(5):
        at = slice(2 * t, 2 * t + 2)
        assert_close(smoothed.covariance[t], covariance[at, at], **TIGHT)
    for t in range(5):
        past = condition(joint_normal(any_case.model, t + 1), y[: t + 1].nan_to_num(), ~y[: t + 1].isnan())
        at = slice(2 * t, 2 * t + 2)
        assert_close(any_case.model.filter(y).mean[t], past[1][at].detach(), **TIGHT)
        assert_close(any_case.model.filter(y).covariance[t], past[2][at, at].detach(), **TIGHT)
    paths = any_case.model.sample_posterior(y, n=4000, seed=0)
    flat = paths.flatten(1)
    spread = covariance[:n, :n].diagonal().clamp_min(0).sqrt()
    assert bool(((flat.mean(0) - mean[:n]).abs() < 4.5 * spread / math.sqrt(4000) + 1e-9).all())
    assert_close(torch.cov(flat.T), covariance[:n, :n], rtol=0, atol=0.12)


@over(APPROXIMATE)
def test_a_function_of_the_past_is_smoothed_as_it_is_filtered(any_case: Case):
    y = any_case.data(3)
    filtered, smoothed = any_case.model.filter(y), any_case.model.smooth(y)
    assert filtered.values.keys() == smoothed.values.keys()
    for name, value in filtered.values.items():
        assert_close(value, smoothed.values[name], **BITS)


# ----------------------------------------------------------------------------------------------- kernels


FORMS = [(form, torch.float64) for form in ("whole", "ragged", "gaps", "carried")] + [("ragged", torch.float32)]


@over(KERNELS)
@pytest.mark.parametrize(("form", "dtype"), FORMS)
def test_a_kernel_equals_the_scan(any_case: Case, form: str, dtype: torch.dtype):
    model, method = any_case.model.to(dtype), any_case.method
    size = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-5}
    y = any_case.data(5, 7).to(dtype) if any_case.symbols is None else any_case.data(5, 7)
    belief = model.filter(y[:, :2]).belief if form == "carried" else None
    asked = {"ragged": [r[: 7 - i] for i, r in enumerate(y)], "gaps": gapped(y, (0, 2), (3, 0), (4, 6))}
    data, _ = ss.verbs.ask(model, asked.get(form, y))
    inside = data.within

    def same(a: torch.Tensor, b: torch.Tensor) -> None:
        if a.dim() >= 2 and a.shape[:2] == inside.shape:  # past the end there is nothing to agree on
            a, b = a[inside], b[inside]
        assert_close(a, b, **size)

    def gradient(trace: Trace) -> tuple[torch.Tensor, ...]:
        parameters = list(model.parameters())
        return torch.autograd.grad(trace.log_prob.sum(), parameters, allow_unused=True, materialize_grads=True)

    slow = run(model, method, data, belief, ("predicted", "filtered", "last", "log_prob"), kernel=False)
    truth = gradient(slow)
    for keep in (("log_prob",), ("filtered", "last", "log_prob"), ("predicted", "log_prob"), ("last",)):
        fast = run(model, method, data, belief, keep)
        for name in keep:
            tree_map(same, getattr(fast, name), getattr(slow, name))
        if "log_prob" in keep:
            for a, b in zip(gradient(fast), truth, strict=True):
                assert_close(a, b, **size)


@over(CERTAIN)
@pytest.mark.parametrize("kernel", [True, False])
def test_the_gradient_is_the_slope(any_case: Case, kernel: bool):
    data, _ = ss.verbs.ask(any_case.model, gapped(any_case.data(3), (0, 1)))
    parameters = list(any_case.model.parameters())
    way = [torch.randn_like(p) for p in parameters]

    def value() -> torch.Tensor:
        return run(any_case.model, any_case.method, data, kernel=kernel).log_prob.sum()

    gradients = torch.autograd.grad(value(), parameters, allow_unused=True, materialize_grads=True)
    slope = sum((g * w).sum() for g, w in zip(gradients, way, strict=True))
    ends, step = [], 1e-5
    with torch.no_grad():
        for sign in (1, -2):
            for p, w in zip(parameters, way, strict=True):
                p += sign * step * w
            ends.append(value())
    assert_close(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------- forecast and imputation


@over([n for n in EXACT if n in SYMBOLIC])
@pytest.mark.parametrize("holes", [(), (3,), (1, 3)])
def test_forecasts_of_symbols_equal_enumeration(any_case: Case, holes: tuple[int, ...]):
    y = any_case.data(1, 4)[0]
    seen = torch.tensor([t not in holes for t in range(4)] + [False] * 3)
    truth = enumerate_finite(finite(any_case.model), torch.cat([y, y.new_zeros(3)]), seen).symbols(SYMBOLS)
    ahead = any_case.model.forecast(gapped(y, (list(holes),)) if holes else y, steps=3, samples=1500)
    assert ahead.exact
    assert_close(ahead.probs, truth[4:].detach(), **TIGHT)
    drawn = torch.nn.functional.one_hot(ahead.samples, SYMBOLS).double().mean(0)
    assert_close(drawn, ahead.probs, rtol=0, atol=4.5 * 0.5 / math.sqrt(1500))


@over([n for n in EXACT if n not in FINITE])
def test_forecasts_of_vectors_equal_the_dense_joint(any_case: Case):
    y = any_case.data(1, 3)[0]
    seen = torch.tensor([[True], [True], [True], [False], [False]]).expand(5, 3)
    joint = joint_normal(any_case.model, 5)
    _, mean, covariance = (x.detach() for x in condition(joint, torch.cat([y, y[:2]]), seen))
    ahead = any_case.model.forecast(y, steps=2, samples=4000)
    at = slice(5 * 2 + 9, None)
    assert_close(ahead.mean.flatten(), mean[at], **TIGHT)
    found = ahead.distribution.covariance_matrix[0]
    for h in range(2):
        block = slice(19 + 3 * h, 22 + 3 * h)
        assert_close(found[h], covariance[block, block], **TIGHT)
    assert_close(ahead.samples.mean(0).flatten(), mean[at], rtol=0, atol=0.1)
    assert_close(torch.cov(ahead.samples.flatten(1).T), covariance[at, at], rtol=0, atol=0.25)
    low, high = ahead.quantile([0.1, 0.9])
    assert bool((low < ahead.mean).all() and (high > ahead.mean).all())


@over([n for n in FINITE if n not in SYMBOLIC and n not in ROUND])
def test_forecasts_of_a_mixture(any_case: Case):
    y = any_case.data(1, 4)[0]
    model = any_case.model
    p = model.smooth(y).probs[-1] @ model.transition.probs.detach()
    ahead = model.forecast(y, steps=2, samples=4000)
    nothing = torch.zeros_like(y[0], dtype=torch.bool).numpy()
    means = torch.stack([torch.as_tensor(law.mean(y[0].numpy(), nothing)) for law in laws(model.emission)])
    assert_close(ahead.mean[0], p @ means, **TIGHT)
    assert_close(ahead.mean[1], p @ model.transition.probs.detach() @ means, **TIGHT)
    error = ahead.samples.std(0) / math.sqrt(4000)
    assert bool(((ahead.samples.mean(0) - ahead.mean).abs() < 4.5 * error).all())


@over(SYMBOLIC)
def test_imputed_symbols(any_case: Case):
    y = any_case.data(2)
    holes = gapped(y, (0, 1), (0, 3), (1, 4))
    filled = any_case.model.impute(holes)
    assert_close(filled[~holes.isnan()], y[~holes.isnan()])
    assert filled.dtype == torch.long
    if any_case.exact:
        for i in range(2):
            truth = enumerate_finite(finite(any_case.model), y[i], ~holes[i].isnan()).symbols(SYMBOLS)
            assert_close(filled[i], truth.argmax(-1))


@over([n for n in EXACT if n not in SYMBOLIC and n not in ROUND])
def test_imputed_vectors(any_case: Case):
    y = any_case.data(1)[0]
    holes = gapped(y, (0, 1), (2,), (4, 0))
    seen, filled = ~holes.isnan(), any_case.model.impute(holes)
    assert_close(filled[seen], y[seen])
    if any_case.name.endswith("linear-gaussian"):
        truth = condition(joint_normal(any_case.model, 5), holes.nan_to_num(), seen)[1][10:].view(5, 3)
    else:
        model = any_case.model
        posterior = enumerate_finite(finite(model), holes.nan_to_num(), seen).smoothed(WIDTH)
        truth = y.clone()
        for t in range(5):
            means = [torch.as_tensor(law.mean(y[t].numpy(), seen[t].numpy())) for law in laws(model.emission)]
            truth[t] = torch.where(seen[t], y[t], (posterior[t] @ torch.stack(means)).detach())
    assert_close(filled, truth.detach(), **TIGHT)


# ------------------------------------------------------------------------------- files, dtype, seeds


@over(ANY)
def test_save_and_load_give_the_same_bits(any_case: Case, tmp_path):
    model, path = any_case.model, tmp_path / "m.safetensors"
    model.save(path)
    again = ss.load(path)
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        assert torch.equal(after[name], value), name
    y = any_case.data(2)
    torch.manual_seed(7)
    first = model.log_prob(y, method=any_case.method)
    torch.manual_seed(7)
    assert torch.equal(first, again.log_prob(y, method=any_case.method))
    assert len(list(again.parameters())) == len(list(model.parameters())), "a tie was lost"
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@over(CERTAIN)
def test_float32_agrees_within_rounding(any_case: Case):
    y = any_case.data(3)
    truth = any_case.model.log_prob(y).detach()
    smoothed = any_case.model.smooth(y)
    single = any_case.model.to(torch.float32)
    y = y.float() if any_case.symbols is None else y
    found = single.log_prob(y)
    assert found.dtype == torch.float64
    assert_close(found.detach(), truth, rtol=1e-4, atol=1e-4)
    for name, value in single.smooth(y).values.items():
        assert value.dtype == torch.float32
        assert_close(value.double(), smoothed.values[name], rtol=1e-3, atol=1e-4)
    assert all(bool(p.grad.isfinite().all()) for p in single.parameters() if p.grad is not None)


@over(ANY)
def test_a_seed_repeats_and_leaves_the_global_generator_alone(any_case: Case):
    model, method, y = any_case.model, any_case.method, any_case.data(2)
    torch.manual_seed(11)
    state = torch.random.get_rng_state()

    def draws(seed: int):
        return (
            model.sample(4, 6, seed=seed, method=method)[1],
            model.forecast(y, 2, 3, seed=seed, method=method).samples,
            leaves(tuple(model.sample_posterior(y, 5, seed=seed, method=method)))[0],
        )

    first, second, other = draws(1), draws(1), draws(2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(torch.random.get_rng_state(), state)


@over(ANY)
def test_a_copy_is_a_model_of_its_own(any_case: Case, tmp_path):
    model, y = any_case.model, any_case.data(2)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5)
    twin.save(tmp_path / "twin.safetensors")
    again = ss.load(tmp_path / "twin.safetensors")
    torch.manual_seed(0)
    a = twin.log_prob(y, method=any_case.method)
    torch.manual_seed(0)
    assert torch.equal(a, again.log_prob(y, method=any_case.method))


@over(APPROXIMATE)
def test_an_approximate_forecast_says_so_and_follows_ancestral_samples(any_case: Case):
    y = any_case.data(1)[0]
    ahead = any_case.model.forecast(y, steps=2, samples=3000)
    assert not ahead.exact
    first = _next(any_case, y)
    assert_close(ahead.probs[0], first, **TIGHT)
    truth = sum(first[v] * _next(any_case, torch.cat([y, y.new_tensor([v])])) for v in range(SYMBOLS))
    assert_close(ahead.probs[1], truth, rtol=0, atol=4.5 * 0.5 / math.sqrt(3000))


def test_every_pair_of_cases_differs():
    """The factories make different models: no two rungs give the same probabilities."""
    y = torch.tensor([[0, 1, 2, 3, 0]])
    values = {name: case(name).model.log_prob(y).item() for name in SYMBOLIC}
    for a, b in itertools.combinations(values, 2):
        assert abs(values[a] - values[b]) > 1e-6, (a, b)
