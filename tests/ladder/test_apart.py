"""An embedding of another width than the state, and dropout that is the same over a window."""

from pathlib import Path

import pytest
import torch

import statespan as ss
from statespan.ladder import recipe, rungs
from statespan.parts.symbols import WindowDropout

V = 9


def test_the_published_lstm_has_ten_million_parameters():
    (entry,) = recipe.read(Path(__file__).parents[2] / "recipes" / "ptb-lstm.toml").entries
    found = rungs.count(rungs.find("lstm"), 10_000, entry.width, entry.tied, entry.embedding)
    gates = 4 * 1194 * (268 + 1194 + 2)
    assert found == gates + 10_000 * 268 + 10_000 + 1194 * 268 and abs(found - 10_000_000) < 20_000


@pytest.mark.parametrize("rung", ["lstm", "gru", "elman"])
def test_a_narrow_embedding_by_hand(rung):
    model = ss.ladder(rung, vocabulary=V, width=6, embedding=3, seed=0, spread=1.0).eval()
    words = torch.tensor([4, 2, 7, 7])
    table, move = model.emission.table, model.transition.move
    state = (torch.zeros(1, 6),) * (2 if rung == "lstm" else 1)
    total, before = 0.0, 0
    for word in words.tolist():
        fed = table.weight[before][None]
        if rung == "elman":
            state = (torch.sigmoid(state[0] @ move.weight + fed @ move.input.weight.T + move.bias),)
        else:
            state = move.cell(fed, state if rung == "lstm" else state[0])
            state = state if rung == "lstm" else (state,)
        logits = (state[0] @ model.emission.project.weight.T) @ table.weight.T + table.bias
        total += float(logits.log_softmax(-1)[0, word].detach())
        before = word
    assert float(model.log_prob(words).detach()) == pytest.approx(total, abs=1e-4)
    untied = ss.ladder(rung, vocabulary=V, width=6, embedding=3, tied=False, seed=0)
    assert untied.log_prob(words).isfinite()


@pytest.mark.parametrize(
    ("rung", "what"),
    [("hmm", "score mixture"), ("jordan", "move jordan"), ("elman/multiplicative-one-matrix", "condition product")],
)
def test_where_the_two_must_be_equal_it_is_said(rung, what):
    with pytest.raises(ss.StatespanError, match=f"{what} needs an embedding as wide as the state"):
        ss.ladder(rung, vocabulary=V, width=6, embedding=3)
    assert ss.ladder(rung, vocabulary=V, width=6, embedding=6).log_prob([1, 2]).isfinite()


def test_a_mask_is_the_same_over_a_window_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = WindowDropout(0.4)
    ones = drop(torch.ones(5, 300, 40))
    assert (ones == ones[:1]).all() and float((ones[0] == 0).float().mean()) == pytest.approx(0.4, abs=0.02)
    assert float(ones.mean()) == pytest.approx(1.0, abs=0.03)
    assert not torch.equal(drop(torch.ones(5, 300, 40)), ones)
    assert torch.equal(drop.eval()(torch.ones(2, 3, 4)), torch.ones(2, 3, 4))


@pytest.mark.parametrize("variational", [False, True])
def test_the_states_mask_is_kept_over_a_window(variational):
    model = ss.ladder("elman", vocabulary=V, width=40, dropout=(0.0, 0.5, 0.0), variational=variational, seed=0).train()
    torch.manual_seed(1)
    constants = model.transition.constants()
    kept = [model.transition._dropped(torch.ones(2, 40), constants.masks) for _ in range(3)]
    assert (torch.equal(kept[0], kept[1]) and torch.equal(kept[1], kept[2])) == variational
    again = model.transition._dropped(torch.ones(2, 40), model.transition.constants().masks)
    assert not torch.equal(again, kept[0])
    plain = ss.ladder("elman", vocabulary=V, width=40, seed=0)
    assert model.eval().log_prob([1, 2, 3]) == plain.log_prob([1, 2, 3])


def test_a_file_keeps_it(tmp_path):
    model = ss.ladder(
        "lstm", vocabulary=V, width=6, embedding=3, dropout=(0.1, 0.2, 0.3), variational=True, seed=0
    ).eval()
    model.save(tmp_path / "m.safetensors")
    loaded = ss.load(tmp_path / "m.safetensors").eval()
    assert loaded.log_prob([1, 2, 3]) == model.log_prob([1, 2, 3])
    assert loaded.transition.variational and isinstance(loaded.transition.feature.drop, WindowDropout)
