"""Training a model of text, against references written by hand here: no scan, no kernel, no shared code."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import statespan as ss
from statespan.language import expectation, training
from statespan.language.expectation import EMTrainer
from statespan.language.scoring import alike, batches, perplexity, score_sentences, score_stream
from statespan.language.training import Stopped, Trainer, Training
from statespan.language.vocabulary import stream

V, EOS = 7, 1
RUNGS = ("hmm", "elman", "lstm")
HOW = Training(optimizer="adam", learning_rate=0.05, schedule="constant", batch=3, window=4, epochs=2, evaluations=2)


def sentences(count: int, seed: int = 0) -> list[Tensor]:
    """Sentences of 0 to 5 words, each with its end."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 6, (count,), generator=generator).tolist()
    return [torch.cat([torch.randint(2, V, (n,), generator=generator), torch.tensor([EOS])]) for n in lengths]


def model(rung: str, seed: int = 3, dropout: tuple[float, float, float] = (0.0, 0.0, 0.0), tied: bool = True):
    made = ss.ladder(rung, vocabulary=V, width=5, start=EOS, seed=seed, dropout=dropout, tied=tied, spread=0.7)
    with torch.no_grad():
        made.emission.table.bias.copy_(torch.linspace(-1, 1, V))
    return made


def by_hand(made, rung: str, words: Tensor) -> Tensor:
    """Log p(words) of one sequence from the start, by the paper's equations, with gradients."""
    table, bias = made.emission.table.weight, made.emission.table.bias
    total = torch.zeros((), dtype=torch.float64)
    if rung == "hmm":
        move = made.transition.logits.softmax(-1)
        emit = (table + bias[:, None]).softmax(0)
        state = made.initial.logits.softmax(-1)
        for t, word in enumerate(words.tolist()):
            state = state if t == 0 else state @ move
            joint = state * emit[word]
            total = total + joint.sum().double().log()
            state = joint / joint.sum()
        return total
    cell = made.transition.move
    hidden, memory, before = torch.zeros(5), torch.zeros(5), EOS
    for word in words.tolist():
        fed = table[before]
        if rung == "elman":
            hidden = torch.sigmoid(hidden @ cell.weight + cell.input.weight @ fed + cell.bias)
        else:
            at = cell.cell
            gates = at.weight_ih @ fed + at.bias_ih + at.weight_hh @ hidden + at.bias_hh
            i, f, g, o = gates.chunk(4)
            memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * memory.tanh()
        total = total + (table @ hidden + bias).log_softmax(0)[word].double()
        before = word
    return total


# ------------------------------------------------------------------------------------------------- scoring


@pytest.mark.parametrize("rung", RUNGS)
def test_perplexity_carried_and_independent(rung):
    made, text = model(rung), sentences(7)
    columns = stream(text, 3)
    whole = torch.cat(text)
    assert len(whole) % 3, "the last column must lack a word, so that padding is tried"
    carried = sum(by_hand(made, rung, part).item() for part in whole.split(len(columns)))
    score = score_stream(made, columns, length=3)
    assert score.symbols == len(whole) == sum(len(s) for s in text)
    assert score.log_prob == pytest.approx(carried, abs=1e-4)
    assert score.perplexity == pytest.approx(math.exp(-carried / len(whole)), rel=1e-5)
    alone = sum(by_hand(made, rung, s).item() for s in text)
    found = score_sentences(made, text, tokens=11)
    assert found.symbols == len(whole)
    assert found.log_prob == pytest.approx(alone, abs=1e-4)
    assert abs(alone - carried) > 1e-3


def test_perplexity_stays_a_number():
    assert perplexity(1e9, 1) == pytest.approx(math.exp(700))
    assert math.isnan(perplexity(0.0, 0))


def test_sentences_of_like_length_go_together():
    lengths = [5, 1, 9, 2, 2, 4]
    text = [torch.arange(n) for n in lengths]
    groups = alike(text, 8)
    assert sorted(i for group in groups for i in group) == list(range(6))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= 8
    padded = batches(text, 8)
    assert [tuple(b.y.shape[::-1]) for b in padded] == [(len(g), max(lengths[i] for i in g)) for g in groups]


# ------------------------------------------------------------------------------------------------- one step


@pytest.mark.parametrize("rung", RUNGS)
def test_belief_is_carried_and_gradient_cut(rung):
    """Two windows: the second one's loss is log p(second | first), its gradient that of a state that is given."""
    columns = stream(sentences(12), 1)[:8]
    made, how = model(rung), replace(HOW, optimizer="sgd", learning_rate=1e-12, clip=0.0, window=4)
    trainer = Trainer(made, columns, columns, how)
    trainer.step()
    first = trainer.state.loss
    trainer.step()
    second = trainer.state.loss - first
    words = columns[:, 0]
    both, begun = by_hand(made, rung, words), by_hand(made, rung, words[:4])
    assert first == pytest.approx(-begun.item(), abs=1e-4)
    assert second == pytest.approx((begun - both).item(), abs=1e-4)
    # Cut: the state's own initial parameters cannot matter to the second window any more.
    if rung == "hmm":
        assert made.initial.logits.grad is None or not made.initial.logits.grad.abs().sum()
    full = torch.autograd.grad((begun - both) / 4, made.emission.table.weight)[0]
    assert not torch.allclose(full, made.emission.table.weight.grad, atol=1e-6)


@pytest.mark.parametrize("rung", RUNGS)
def test_first_gradient_is_that_of_the_mean_loss(rung):
    columns = stream(sentences(7), 2)
    made = model(rung)
    trainer = Trainer(made, columns, columns, replace(HOW, optimizer="sgd", learning_rate=1.0, clip=0.0, window=99))
    before = made.emission.table.weight.detach().clone()
    there = [column[column >= 0] for column in columns.T]
    loss = -sum(by_hand(made, rung, words) for words in there) / sum(map(len, there))
    want = torch.autograd.grad(loss, made.emission.table.weight)[0]
    trainer.step()
    torch.testing.assert_close(before - made.emission.table.weight.detach(), want.float(), atol=2e-6, rtol=1e-4)


def gradient_of(how: Training) -> tuple[Tensor, Tensor, Tensor]:
    """A parameter before a step, its gradient, and the parameter after."""
    columns = stream(sentences(7), 2)
    made = model("elman")
    parameter = made.emission.table.weight
    before = parameter.detach().clone()
    Trainer(made, columns, columns, how).step()
    assert parameter.grad is not None
    return before, parameter.grad.clone(), parameter.detach().clone()


def test_clipping_bounds_the_norm_of_all():
    columns = stream(sentences(7), 2)
    made = model("elman")
    Trainer(made, columns, columns, replace(HOW, clip=0.01)).step()
    norm = torch.stack([p.grad.norm() for p in made.parameters()]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)
    made = model("elman")
    Trainer(made, columns, columns, replace(HOW, clip=0.0)).step()
    assert float(torch.stack([p.grad.norm() for p in made.parameters()]).norm()) > 0.05


def test_weight_decay_is_l2_but_for_adamw():
    rate, decay = 0.1, 0.5
    how = replace(HOW, learning_rate=rate, weight_decay=decay, clip=0.0)
    before, gradient, after = gradient_of(replace(how, optimizer="sgd"))
    torch.testing.assert_close(after, before - rate * (gradient + decay * before))
    before, gradient, after = gradient_of(replace(how, optimizer="adamw"))
    torch.testing.assert_close(after, before * (1 - rate * decay) - rate * gradient / (gradient.abs() + 1e-8))
    before, gradient, after = gradient_of(replace(how, optimizer="adam"))
    with_decay = gradient + decay * before
    torch.testing.assert_close(after, before - rate * with_decay / (with_decay.abs() + 1e-8))


def test_amsgrad_has_no_momentum_and_a_rising_scale():
    """AMSGrad with beta1 = 0, written out: v = .999 v + .001 g^2, top = max(v), step g / sqrt(top / bias)."""
    columns = stream(sentences(12), 2)
    made, rate = model("elman"), 0.1
    trainer = Trainer(made, columns, columns, replace(HOW, optimizer="amsgrad", learning_rate=rate, clip=0.0))
    parameter = made.emission.table.weight
    v, top, want = torch.zeros(V, 5), torch.zeros(V, 5), parameter.detach().clone()
    for step in range(1, 4):
        trainer.step()
        g = parameter.grad
        v = 0.999 * v + 0.001 * g**2
        top = torch.maximum(top, v)
        want = want - rate * g / ((top / (1 - 0.999**step)).sqrt() + 1e-8)
        torch.testing.assert_close(parameter.detach(), want, rtol=1e-5, atol=1e-6)


def test_tied_and_untied():
    tied, untied = model("lstm"), model("lstm", tied=False)
    assert sum(p.numel() for p in untied.parameters()) == sum(p.numel() for p in tied.parameters()) + V * 5
    assert tied.transition.feature.table is tied.emission.table
    assert untied.transition.feature.table is not untied.emission.table


# --------------------------------------------------------------------------------------------------- dropout


SITES = [("input", (0.5, 0.0, 0.0)), ("state", (0.0, 0.5, 0.0)), ("output", (0.0, 0.0, 0.5))]


@pytest.mark.parametrize("rung", ["elman", "lstm", "gru"])
@pytest.mark.parametrize(("site", "dropout"), SITES)
def test_dropout_acts_in_training_only(rung, site, dropout):
    columns = stream(sentences(40), 4)
    plain = model(rung)
    dropped = model(rung, dropout=dropout)
    dropped.load_state_dict(plain.state_dict())

    def losses(made, seed: int) -> float:
        torch.manual_seed(seed)
        trainer = Trainer(made, columns, columns, replace(HOW, optimizer="sgd", learning_rate=1e-12, window=99))
        trainer.step()
        return trainer.state.loss

    assert losses(plain, 0) == losses(plain, 1)
    assert abs(losses(dropped, 0) - losses(dropped, 1)) > 1e-3
    dropped.eval()
    plain.eval()
    assert score_stream(dropped, columns).log_prob == pytest.approx(score_stream(plain, columns).log_prob, abs=1e-3)


def test_dropout_at_an_exact_rungs_feature_and_never_on_a_table():
    made = model("hmm/addition-raw", dropout=(0.5, 0.5, 0.5))
    columns = stream(sentences(40), 4)
    trainer = Trainer(made, columns, columns, replace(HOW, optimizer="sgd", learning_rate=1e-12, window=99))
    trainer.step()
    made.train()
    words = columns[:3, :1]
    totals, before = [], set()
    for word in range(V):
        torch.manual_seed(0)  # the same dropout for each
        with torch.no_grad():
            y = torch.cat([words, torch.tensor([[word]])])
            each = ss.run(made, ss.method_for(made), ss.Sequences(y=y)).log_prob[:, 0]
        totals.append(float(each[-1].exp()))
        before.add(round(float(each[:-1].sum()), 5))
    assert len(before) == 1
    assert sum(totals) == pytest.approx(1.0, abs=1e-5), "nothing was dropped from a table"


# -------------------------------------------------------------------------------------- schedules and choice


def scripted(monkeypatch, values: list[float]) -> None:
    """Make the validation perplexities these, one after the other."""
    rest = iter(values)
    monkeypatch.setattr(training, "score_stream", lambda *_: training_score(next(rest)))


def training_score(value: float):
    from statespan.language.scoring import Score

    return Score(-math.log(value), 1)


def test_plateau_divides_only_without_improvement(monkeypatch):
    scripted(monkeypatch, [50, 40, 41, 39, 39, 45])
    columns = stream(sentences(6), 2)
    how = replace(HOW, schedule="plateau", decay=4.0, learning_rate=16.0, optimizer="sgd", epochs=3, clip=1e-9)
    trainer = Trainer(model("elman"), columns, columns, how)
    rates = []
    evaluate = trainer._evaluate

    def noted(seconds: float) -> None:
        evaluate(seconds)
        rates.append(trainer.optimiser.param_groups[0]["lr"])

    monkeypatch.setattr(trainer, "_evaluate", noted)
    trainer.run()
    assert rates == [16, 16, 4, 4, 1, 0.25]
    assert [p["valid_perplexity"] for p in trainer.curve] == pytest.approx([50, 40, 41, 39, 39, 45])


def test_patience_stops_early_and_the_best_parameters_are_kept(monkeypatch):
    scripted(monkeypatch, [50, 40, 41, 42, 30])
    columns = stream(sentences(12), 2)
    made = model("elman")
    trainer = Trainer(made, columns, columns, replace(HOW, patience=2, epochs=9, evaluations=1))
    seen = []
    evaluate = trainer._evaluate

    def noted(seconds: float) -> None:
        seen.append([p.detach().clone() for p in made.parameters()])
        evaluate(seconds)

    monkeypatch.setattr(trainer, "_evaluate", noted)
    trainer.run()
    assert len(trainer.curve) == 4 and trainer.state.epoch == 3
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), seen[1], strict=True))
    assert not torch.equal(seen[1][0], seen[3][0])
    assert not made.training


def test_linear_schedule_goes_to_zero():
    columns = stream(sentences(12), 2)
    how = replace(HOW, schedule="linear", learning_rate=0.1, epochs=2, window=4)
    trainer = Trainer(model("elman"), columns, columns, how)
    rates = []
    trainer.run(stop=lambda: bool(rates.append(trainer.state.rate)))
    steps = 2 * trainer.windows
    assert rates == pytest.approx([0.1 * (1 - i / steps) for i in range(steps)])


def test_less_exact_products_are_for_training_alone():
    columns, found, before = stream(sentences(30), 3), {}, torch.get_float32_matmul_precision()
    for precision in training.PRECISIONS:
        trainer = Trainer(model("lstm"), columns, columns, replace(HOW, precision=precision))
        within = set()
        trainer.run(stop=lambda within=within: bool(within.add(torch.get_float32_matmul_precision())))
        assert within == {precision} and torch.get_float32_matmul_precision() == before
        found[precision] = trainer.curve[-1]["valid_perplexity"]
    assert found["medium"] == pytest.approx(found["highest"], rel=0.005)


def test_evaluations_an_epoch_and_progress():
    text = sentences(30)
    columns = stream(text, 3)
    how = replace(HOW, evaluations=3, epochs=2, window=2)
    trainer = Trainer(model("hmm"), columns, columns, how)
    reports = []
    trainer.run(reports.append)
    assert len(trainer.curve) == 6
    assert trainer.curve[-1]["epoch"] == 2 and trainer.curve[2]["epoch"] == 1
    assert reports[-1].tokens == reports[-1].total == 2 * sum(map(len, text))
    assert reports[-1].rate > 0 and reports[-1].valid == trainer.curve[-1]["valid_perplexity"]
    assert trainer.curve[-1]["train_perplexity"] < trainer.curve[0]["train_perplexity"]


def test_more_evaluations_than_windows():
    columns = stream(sentences(3), 3)
    trainer = Trainer(model("hmm"), columns, columns, replace(HOW, evaluations=50, epochs=1, window=2))
    trainer.run()
    assert len(trainer.curve) == trainer.windows


# ----------------------------------------------------------------------------------------- stopped and resumed


class Killed(Exception):
    """Stands for a process that is gone."""


CASES = {
    "hmm": ("hmm", (0.0, 0.0, 0.0), "adam", "plateau"),
    "exact, fed": ("hmm/addition-raw", (0.4, 0.0, 0.0), "adam", "linear"),
    "exact, of vectors": ("bayes/rows-embedded/none/mixture-embedded", (0.0, 0.5, 0.0), "adam", "linear"),
    "elman": ("elman", (0.3, 0.2, 0.4), "amsgrad", "linear"),
    "lstm": ("lstm", (0.3, 0.2, 0.4), "adamw", "plateau"),
    "sgd": ("hmm/sigmoid+late-emission", (0.0, 0.3, 0.4), "sgd", "plateau"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_resumes_to_the_same_bits(case, tmp_path):
    rung, dropout, optimizer, schedule = CASES[case]
    columns, valid = stream(sentences(30), 3), stream(sentences(5, seed=9), 2)
    averaged = 0.5 if case == "sgd" else 0.0
    how = replace(HOW, schedule=schedule, optimizer=optimizer, epochs=3, window=4, save_every=0.0, average=averaged)
    assert int((columns < 0).sum()) or len(columns) % 4, "a window with padding or a short one must be met"

    def trainer(name: str) -> Trainer:
        return Trainer(model(rung, dropout=dropout), columns, valid, how, seed=5, checkpoint=tmp_path / name)

    whole = trainer("whole")
    whole.run()
    fatal = whole.windows // 2
    for _ in range(3):  # killed three times, always in the middle of an epoch
        left = [fatal]

        def die(left=left) -> bool:
            left[0] -= 1
            if left[0] < 0:
                raise Killed  # before this window's checkpoint
            return False

        with pytest.raises(Killed):
            trainer("killed").run(stop=die)
        torch.rand(7)  # another process has other random numbers
    resumed = trainer("killed")
    assert resumed.state.epoch * resumed.windows + resumed.state.position == 3 * fatal
    resumed.run()
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(resumed.curve, whole.curve, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_asked_to_stop_writes_a_checkpoint_at_that_window(tmp_path):
    columns = stream(sentences(30), 3)
    path = tmp_path / "c.safetensors"
    first = Trainer(model("elman"), columns, columns, HOW, checkpoint=path)
    with pytest.raises(Stopped):
        first.run(stop=lambda: first.state.position == 2)
    again = Trainer(model("elman"), columns, columns, HOW, checkpoint=path)
    assert again.state.position == 2 and again.seconds > 0
    assert not list(tmp_path.glob(".*")), "nothing temporary is left"


def test_padding_in_several_windows_is_gone_on_from(tmp_path):
    """A tiny text in many columns: the last ones are padding alone, and the belief says where gaps were."""
    columns = stream([torch.tensor([2, 3, 4, 5, EOS])], 4)
    assert int((columns[:, -1] >= 0).sum()) == 0
    how = replace(HOW, window=1, batch=4, save_every=0.0)
    for rung in ("hmm", "hmm/addition-raw", "elman", "lstm"):
        path = tmp_path / rung.replace("/", "-")
        whole = Trainer(model(rung), columns, columns, how)
        whole.run()
        first = Trainer(model(rung), columns, columns, how, checkpoint=path)
        with pytest.raises(Stopped):
            first.run(stop=lambda first=first: first.state.position == 1)
        again = Trainer(model(rung), columns, columns, how, checkpoint=path)
        again.run()
        pairs = zip(again.model.parameters(), whole.model.parameters(), strict=True)
        assert all(torch.equal(a, b) and a.isfinite().all() for a, b in pairs)


def test_the_end_of_a_column_is_no_gap(monkeypatch):
    def average(*arguments):
        raise AssertionError("a table averaged over all symbols")

    words = torch.tensor([[2, 3, 4], [3, 2, 1], [4, 5, -1]])
    made = model("hmm/addition")
    expected = sum(made.log_prob(column[column >= 0]).item() for column in words.T)
    monkeypatch.setattr(type(made.transition), "average", average)
    assert score_stream(made, words, length=2).log_prob == pytest.approx(expected)
    Trainer(made, words, words, replace(HOW, epochs=1)).run()


def test_a_checkpoint_cut_short_or_of_other_settings(tmp_path):
    columns = stream(sentences(30), 3)
    path = tmp_path / "c.safetensors"
    Trainer(model("elman"), columns, columns, HOW, checkpoint=path).run()
    for other in (
        lambda: Trainer(model("elman"), columns, columns, replace(HOW, learning_rate=0.1), checkpoint=path),
        lambda: Trainer(model("elman"), columns, columns, HOW, seed=1, checkpoint=path),
        lambda: Trainer(model("elman"), columns, columns, HOW, checkpoint=path, stamp="another text"),
        lambda: Trainer(model("lstm"), columns, columns, HOW, checkpoint=path),
    ):
        with pytest.raises(ss.StatespanError, match="of other settings or another text; delete it"):
            other()
    Trainer(model("elman"), columns, columns, replace(HOW, save_every=7.0), checkpoint=path)
    whole = path.read_bytes()
    for keep in (0, 5, 200, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(ss.StatespanError, match="cut short or broken") as caught:
            Trainer(model("elman"), columns, columns, HOW, checkpoint=path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    columns = stream(sentences(30), 3)
    path = tmp_path / "c.safetensors"
    trainer = Trainer(model("elman"), columns, columns, HOW, checkpoint=path)
    trainer.step()
    trainer.save()
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    trainer.step()
    with pytest.raises(ss.StatespanError, match="No space left on device") as caught:
        trainer.save()
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path):
    columns = stream(sentences(30), 3)
    path = tmp_path / "c.safetensors"
    made = model("elman")
    trainer = Trainer(made, columns, columns, replace(HOW, evaluations=1), checkpoint=path, name="my elman")
    trainer.step()
    trainer.save()
    before = path.read_bytes()
    with torch.no_grad():
        made.emission.table.bias[0] = math.inf
    with pytest.raises(ss.StatespanError) as caught:
        trainer.run()
    for part in ("rung my elman", "became inf", "epoch 1, window 2 of", str(path), "learning_rate (0.05)"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value) and path.read_bytes() == before


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
    """The step itself overflows, after a loss and a gradient that were finite, and a checkpoint is due."""
    columns = stream(sentences(30), 3)
    path = tmp_path / "c.safetensors"
    made = model("elman")
    trainer = Trainer(made, columns, columns, replace(HOW, save_every=0.0), checkpoint=path)
    trainer.step()
    trainer.save()
    before = path.read_bytes()
    with torch.no_grad():
        made.transition.move.bias[0] = math.nan
    with pytest.raises(ss.StatespanError, match="parameter"):
        trainer.save()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("optimizer", "adm"), ("schedule", "cosine"), ("learning_rate", 0.0), ("precision", "low")),
        *(("decay", 1.0), ("batch", 0), ("window", 0), ("epochs", 0), ("clip", -1.0), ("weight_decay", -1.0)),
        *(("learning_rate", math.nan), ("patience", -1), ("evaluations", 0), ("save_every", -1.0)),
    ],
)
def test_settings_that_cannot_be(name, value):
    with pytest.raises(ss.StatespanError, match=name):
        Training(**{name: value})


# -------------------------------------------------------------------------------------------------------- EM


def em(path=None, iterations: int = 6, seed: int = 0) -> EMTrainer:
    text = sentences(60)
    counts = torch.bincount(torch.cat(text), minlength=V).float() + 1
    valid = stream(sentences(10, seed=4), 2)
    made = model("hmm").double()
    return EMTrainer(made, text, valid, iterations, 1.0, (counts / counts.sum()).double(), seed, path)


def test_em_rises_and_its_curve_is_the_models_own(monkeypatch):
    monkeypatch.setattr(expectation, "PSEUDO_COUNTS", 0.0)
    trainer = em()
    trainer.prior = 0.0
    trainer.run()
    train = [p["train_perplexity"] for p in trainer.curve]
    assert all(a > b for a, b in pairwise(train)), "without a prior EM climbs the likelihood"
    again = em(iterations=1)
    start = -sum(by_hand(again.model, "hmm", s).item() for s in again.sentences) / again.tokens
    assert train[0] == pytest.approx(math.exp(start), rel=1e-6)
    best = min(p["valid_perplexity"] for p in trainer.curve)
    assert score_stream(trainer.model, trainer.valid).perplexity == pytest.approx(best, rel=1e-9)


def test_em_resumes_to_the_same_bits(tmp_path):
    whole = em()
    whole.run()
    path = tmp_path / "em.safetensors"
    first = em(path)
    with pytest.raises(Stopped):
        first.run(stop=lambda: first.state.iteration == 2)
    again = em(path)
    assert again.state.iteration == 2
    again.run()
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True))
    assert [p["valid_perplexity"] for p in again.curve] == [p["valid_perplexity"] for p in whole.curve]
    done = em(path)
    done.run()  # nothing is left to do
    assert all(torch.equal(a, b) for a, b in zip(done.model.parameters(), whole.model.parameters(), strict=True))
    with pytest.raises(ss.StatespanError, match="other settings"):
        em(path, iterations=7)


def test_em_that_fails_names_the_rung(monkeypatch):
    trainer = em()
    monkeypatch.setattr("statespan.fit.EM.fit_batches", lambda *_: math.nan)
    with pytest.raises(ss.StatespanError, match=r"rung model: .* nan in EM's iteration 1"):
        trainer.run()


def test_no_module_of_torch_is_left_in_training_mode():
    columns = stream(sentences(12), 2)
    made = model("lstm", dropout=(0.5, 0.5, 0.5))
    Trainer(made, columns, columns, replace(HOW, epochs=1)).run()
    assert not any(m.training for m in made.modules() if isinstance(m, nn.Dropout))
