"""Every rung against its equations and torch's layers, every combination of choices. See also contract/."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import statespan as ss
from oracles import all_rows, next_symbols
from statespan.ladder.rungs import CONDITIONS, FEEDS, LADDER, MOVES, SCORES, Rung, check, count, find, width_for
from statespan.method import run
from statespan.parts.state_dropout import StateDropout
from statespan.sequences import Sequences

TIGHT = {"rtol": 0.0, "atol": 1e-9}


def rung(name: str, **options) -> ss.StateSpace:
    return ss.ladder(name, vocabulary=5, width=4, spread=1.0, dtype=torch.float64, seed=3, **options)


def steps(model: ss.StateSpace, y: torch.Tensor, kernel: bool = True) -> torch.Tensor:
    """Log p of each step of a batch y (N, T)."""
    return run(model, ss.method_for(model), Sequences(y=y.T), kernel=kernel).log_prob.T


SENTENCES = torch.randint(5, (3, 12), generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------------------------------------- equations


def test_the_hmm_rung_is_the_hmm():
    model = rung("hmm")
    same = ss.hmm(
        initial=model.initial.probs(),
        transition=model.transition.probs,
        emission=ss.Categorical(probs=model.emission.probs),
    )
    assert [type(p) for p in model.parts] == [type(p) for p in same.parts]
    assert_close(model.log_prob(SENTENCES), same.log_prob(SENTENCES), **TIGHT)
    assert_close(rung("bayes/rows/none/mixture").log_prob(SENTENCES), model.log_prob(SENTENCES), **TIGHT)


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("name", [n for n in LADDER if not LADDER[n].exact])
def test_every_recurrent_rung_step_by_step(name: str, kernel: bool):
    model = rung(name, start=2)
    for row, found in zip(SENTENCES, steps(model, SENTENCES, kernel), strict=True):
        assert_close(found, next_symbols(model, name, row).gather(1, row[:, None])[:, 0], **TIGHT)


def test_a_hand_written_elman_network():
    """Equations 19 to 21, with the tied embedding, the biases, and `<eos>` fed to a zero state."""
    model = rung("elman", start=1)
    e, d = model.emission.table.weight, model.emission.table.bias
    w, u, b = model.transition.move.weight.T, model.transition.move.input.weight, model.transition.move.bias
    c, before, total = torch.zeros(4).double(), 1, 0.0
    for word in SENTENCES[0].tolist():
        c = torch.sigmoid(w @ c + u @ e[before] + b)
        total = total + torch.log_softmax(e @ c + d, 0)[word]
        before = word
    assert_close(model.log_prob(SENTENCES[0]), total, **TIGHT)


@pytest.mark.parametrize(("name", "layer"), [("lstm", nn.LSTM), ("gru", nn.GRU)])
@pytest.mark.parametrize("kernel", [True, False])
def test_torchs_layers_with_the_same_weights(name: str, layer: type, kernel: bool):
    model = rung(name, start=0)
    cell, table = model.transition.move.cell, model.emission.table
    peer = layer(4, 4, batch_first=True).double()
    with torch.no_grad():
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(peer, f"{part}_l0").copy_(getattr(cell, part))
    fed = torch.cat([torch.zeros(3, 1, dtype=torch.long), SENTENCES[:, :-1]], 1)
    out, _ = peer(table.weight[fed])
    truth = (out @ table.weight.T + table.bias).log_softmax(-1).gather(-1, SENTENCES[..., None])[..., 0]
    assert_close(steps(model, SENTENCES, kernel), truth, **TIGHT)


def test_the_bigram_sees_one_word():
    model = rung("bigram", start=4)
    each = steps(model, SENTENCES)
    other = SENTENCES.clone()
    other[:, :5] = 0
    assert_close(each[:, 7:], steps(model, other)[:, 7:], **TIGHT)


def test_untied_embeddings_are_two():
    tied, free = rung("elman"), rung("elman", tied=False)
    assert tied.transition.feature.table is tied.emission.table
    assert free.transition.feature.table is not free.emission.table
    assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters()) == 5 * 4


# ------------------------------------------------------------------------------------------- combinations


def legal() -> list[str]:
    names = []
    for pieces in itertools.product(CONDITIONS, MOVES, FEEDS, SCORES):
        try:
            find("/".join(pieces))
        except ss.StatespanError:
            continue
        names.append("/".join(pieces))
    return names


LEGAL = legal()


def test_every_combination_is_legal_or_names_the_two_that_clash():
    count_illegal = 0
    for pieces in itertools.product(CONDITIONS, MOVES, FEEDS, SCORES):
        name = "/".join(pieces)
        if name in LEGAL:
            continue
        with pytest.raises(ss.StatespanError) as error:
            find(name)
        message = str(error.value)
        assert "\n" not in message
        assert name in message
        named = sum(
            f"{what} {piece}" in message
            for what, piece in zip(("condition", "move", "feed", "score"), pieces, strict=True)
        )
        assert named >= 2, message
        count_illegal += 1
    assert len(LEGAL) > 60
    assert count_illegal > 60


@pytest.mark.parametrize("first", CONDITIONS)
def test_every_legal_combination_builds_scores_and_sums_to_one(first: str):
    every = all_rows(3, 3)
    for name in (n for n in LEGAL if n.startswith(f"{first}/")):
        model = ss.ladder(name, vocabulary=3, width=2, spread=1.0, dtype=torch.float64, seed=1)
        p = model.log_prob(every).exp()
        assert_close(p.sum().item(), 1.0, rtol=0, atol=1e-9, msg=name)
        p.log().sum().backward()
        assert all(bool(q.grad.isfinite().all()) for q in model.parameters() if q.grad is not None), name
        ahead = model.forecast([0, 1, None], steps=2, samples=5)
        assert_close(ahead.probs.sum(-1), torch.ones(2).double(), rtol=0, atol=1e-9, msg=name)
        assert model.sample(2, 3, seed=0)[1].shape == (2, 3)
        rung_ = find(name)
        assert rung_.method == type(ss.method_for(model)).__name__
        if rung_.simplex:
            probs = model.filter([0, None, 2]).probs
            assert_close(probs.sum(-1), torch.ones(3).double(), rtol=0, atol=1e-9, msg=name)


def test_every_row_of_the_table_is_legal_and_written_out():
    for name, row in LADDER.items():
        assert check(name, row) is row
        spelled = "/".join(choice.name for choice in row[:4])
        assert spelled in LEGAL
        assert find(spelled) == Rung(*row[:4])
    assert {LADDER[n].method for n in LADDER if n.startswith("hmm/late") or "sigmoid" in n} == {"Recurrent"}
    assert [n for n in LADDER if LADDER[n].exact] == [
        *("hmm", "hmm/tensor", "hmm/tensor-raw", "hmm/addition", "hmm/addition-raw", "hmm/gated"),
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("elmann", "unknown rung 'elmann'; did you mean 'elman'"),
        ("hmm/gate", "did you mean 'hmm/gated'"),
        ("hmm/late-emision", "did you mean 'hmm/late-emission'"),
        ("qqqq", "unknown rung 'qqqq'; Known: hmm, "),
        ("bayes/sigmiod/none/softmax", "unknown move 'sigmiod'; did you mean 'sigmoid'"),
        ("bays/sigmoid/none/softmax", "unknown condition 'bays'; did you mean 'bayes'"),
        ("bayes/sigmoid/none/mixture", "score mixture needs a distribution state, and move sigmoid yields a positive"),
        ("bayes/lstm/raw/softmax", "condition bayes needs a positive state, and move lstm yields a pair"),
        ("keep/rows-add/none/softmax", "move rows-add .* feed none"),
        ("keep/sigmoid/raw/softmax", "feed raw is used by neither condition keep nor move sigmoid"),
    ],
)
def test_wrong_names_are_answered_in_one_line(name: str, words: str):
    with pytest.raises(ss.StatespanError, match=words) as error:
        ss.ladder(name, vocabulary=5, width=3)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize("name", LADDER)
def test_the_width_for_a_budget_is_the_largest_that_fits(name: str):
    row = LADDER[name]
    for budget in (3_000, 20_000):
        width = width_for(name, row, 200, budget)
        assert count(row, 200, width) <= budget < count(row, 200, width + 1)
    model = ss.ladder(name, vocabulary=200, parameters=3_000)
    made = sum(p.numel() for p in model.parameters())
    assert made == count(row, 200, width_for(name, row, 200, 3_000)) <= 3_000


def test_the_papers_budget():
    widths = {
        n: width_for(n, LADDER[n], 10_000, 10_000_000) for n in ("hmm", "elman", "hmm/gated", "lstm", "hmm/tensor")
    }
    assert widths["hmm"] == pytest.approx(915, abs=5)
    assert widths["elman"] == pytest.approx(853, abs=5)
    assert widths["hmm/gated"] == pytest.approx(853, abs=5)
    assert widths["lstm"] == pytest.approx(655, abs=5)
    assert widths["hmm/tensor"] == pytest.approx(199, abs=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vocabulary": 50, "parameters": 10}, "no width fits 10 parameters with 50 symbols; width 1 has"),
        ({"vocabulary": 50}, "either width= or parameters=, not neither"),
        ({"vocabulary": 50, "width": 3, "parameters": 10}, "either width= or parameters=, not both"),
        ({"vocabulary": 0, "width": 3}, "vocabulary=0"),
        ({"vocabulary": 5, "width": 0}, "width=0"),
        ({"vocabulary": 5, "width": 2, "start": 5}, r"start=5 is no symbol; choose one of 0\.\.4"),
    ],
)
def test_bad_sizes_are_named(options: dict, words: str):
    with pytest.raises(ss.StatespanError, match=words):
        ss.ladder("elman", **options)


# ------------------------------------------------------------------------------------------ starts, dropout


def test_where_a_text_starts():
    assert_close(rung("elman").initial.start(2), torch.zeros(2, 4).double())
    assert_close(rung("hmm/sigmoid").initial.start(2), torch.full((2, 4), 0.25).double())
    assert_close(rung("elman/softmax").initial.start(1), torch.full((1, 4), 0.25).double())
    assert [x.shape for x in rung("lstm").initial.start(2)] == [(2, 4), (2, 4)]
    one, other = (steps(rung("lstm", start=s), SENTENCES)[:, 0] for s in (0, 1))
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("name", LADDER)
def test_dropout_acts_in_training_only_and_never_on_a_probability(name: str):
    model = rung(name, dropout=(0.5, 0.5, 0.5))
    plain = rung(name)
    for mine, other in zip(plain.parameters(), model.parameters(), strict=True):
        mine.data.copy_(other)
    model.eval()
    assert_close(model.log_prob(SENTENCES), plain.log_prob(SENTENCES), **TIGHT)
    model.train()
    noisy = [model.log_prob(SENTENCES[:1].expand(40, -1)) for _ in range(2)]
    assert bool(noisy[0].isfinite().all())
    drops = [m for m in model.modules() if isinstance(m, nn.Dropout | StateDropout) and m.p > 0]
    assert torch.equal(*noisy) == (not drops)
    if LADDER[name].simplex:
        probs = model.filter(SENTENCES).probs
        assert_close(probs.sum(-1), torch.ones(3, 12).double(), rtol=0, atol=1e-9)


def test_a_seed_repeats_the_start():
    for name in ("hmm", "hmm/gated", "lstm"):
        a, b, c = (ss.ladder(name, vocabulary=5, width=3, seed=s) for s in (1, 1, 2))
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
        assert not all(torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))
        assert all(p.dtype == torch.float32 for p in a.parameters())


def test_shorthands_are_the_same_rungs():
    for make, name in ((ss.lstm, "lstm"), (ss.gru, "gru"), (ss.elman, "elman"), (ss.jordan, "jordan")):
        a, b = make(5, 3, seed=1), ss.ladder(name, 5, 3, seed=1)
        assert torch.equal(a.log_prob(SENTENCES), b.log_prob(SENTENCES))


def test_a_gap_costs_a_bayesian_rung_nothing_it_knew():
    """Where nothing was seen, Bayes' rule leaves the state alone: with a mixture that is exact."""
    exact = rung("hmm")
    cell = ss.ladder("bayes/rows/none/softmax", vocabulary=5, width=4, dtype=torch.float64, seed=3)
    with torch.no_grad():
        cell.transition.move.logits.copy_(exact.transition.logits)
        cell.transition.condition.table.weight.copy_(exact.emission.table.weight)
        exact.initial.logits.copy_((cell.initial.start(1)[0] @ exact.transition.probs).log())
    start = cell.initial.symbol
    seen = [start, 3, None, 1, None]
    truth = ss.hmm(
        initial=[0.25] * 4, transition=exact.transition.probs, emission=ss.Categorical(probs=exact.emission.probs)
    )
    found = cell.filter(seen[1:]).probs
    assert_close(found, truth.filter(seen).probs[1:], **TIGHT)


def test_perplexity_of_a_uniform_rung():
    for name in LADDER:
        model = rung(name)
        with torch.no_grad():
            model.emission.table.weight.zero_()
            if model.emission.table.bias is not None:
                model.emission.table.bias.zero_()
        assert_close(steps(model, SENTENCES).exp(), torch.full((3, 12), 0.2, dtype=torch.float64), rtol=0, atol=1e-12)
        assert model.log_prob(SENTENCES[0]).item() == pytest.approx(12 * math.log(0.2))


def test_mixed_softmaxes_are_their_formula():
    model = ss.ladder("keep/sigmoid-add/raw/softmaxes", vocabulary=7, width=5, spread=1.0, seed=2, dtype=torch.float64)
    score, state = model.emission, torch.rand(3, 5, dtype=torch.float64)
    table, each = score.table, (state @ score.project.weight.T + score.project.bias).tanh().view(3, 4, 5)
    shares = (state @ score.share.weight.T).softmax(-1)
    want = torch.einsum("ni,niv->nv", shares, (each @ table.weight.T + table.bias).softmax(-1))
    assert torch.allclose(score.predict(state, None).probs, want)
    y = torch.tensor([0, 3, 6])
    assert torch.allclose(score.log_prob(state, y, None).exp(), want[torch.arange(3), y])


def test_states_are_left_out_of_a_window_in_training_alone(tmp_path):
    made = {"vocabulary": 7, "width": 6, "spread": 1.0, "seed": 2, "dtype": torch.float64}
    model, y = ss.ladder("hmm", dropout=(0.0, 0.5, 0.0), **made), [[3, 1, 4, 1, 5], [2, 6]]
    whole = ss.ladder("hmm", **made)
    assert torch.equal(model.eval().log_prob(y), whole.log_prob(y))
    assert torch.equal(model.decode(y[0]), whole.decode(y[0]))
    model.save(tmp_path / "model.safetensors")
    assert torch.equal(ss.load(tmp_path / "model.safetensors").eval().log_prob(y), whole.log_prob(y))
    model.train()
    torch.manual_seed(4)
    kept = torch.rand(6) >= 0.5
    table = whole.transition.probs * kept
    whole.transition.set_probs(table / table.sum(-1, keepdim=True))
    torch.manual_seed(4)
    assert torch.allclose(model.log_prob(y), whole.log_prob(y))
    assert 0 < kept.sum() < 6
    model.log_prob(y).sum().backward()
    assert model.transition.move.logits.grad.isfinite().all()


def test_a_rung_of_low_rank_is_exact_and_small():
    low = find("bayes/rows-low-rank/none/mixture")
    assert low.exact and count(low, 10, 64) == count(LADDER["hmm"], 10, 64) - 64 * 64 + 2 * 64 * 8


def test_state_vectors_make_many_states_cheap():
    name = "bayes/rows-embedded/none/mixture-embedded"
    model = ss.ladder(name, vocabulary=10, width=64, embedding=4, classes=4, seed=0)
    assert find(name).exact and sum(p.numel() for p in model.parameters()) < count(LADDER["hmm"], 10, 64) / 3
    every = all_rows(10, 2)
    assert_close(model.log_prob(every).exp().sum().item(), 1.0, rtol=0, atol=1e-5)
    with pytest.raises(ss.StatespanError, match="classes is for score mixture-embedded"):
        ss.ladder("hmm", vocabulary=10, width=8, classes=2)
    with pytest.raises(ss.StatespanError, match="9 states cannot be shared evenly by 2 classes"):
        ss.ladder(name, vocabulary=10, width=9, classes=2)
    with pytest.raises(ss.StatespanError, match="condition keep makes none"):
        find("keep/softmax-add/raw/mixture-embedded")
    with pytest.raises(ss.StatespanError, match="score mixture needs an embedding as wide"):
        ss.ladder("hmm", vocabulary=10, width=8, embedding=4)
