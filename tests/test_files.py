"""Model files: what comes back, and what happens to a file that is not whole."""

import json
import os
import pickle
import struct

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

import statespan as ss
from statespan.files import describe, load_with_extra, make, save
from statespan.part import PARTS


def header(path) -> dict:
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    return json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["statespan"])


def rewrite(path, change) -> None:
    """Change the header's JSON."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    outer = json.loads(raw[8 : 8 + size])
    inner = json.loads(outer["__metadata__"]["statespan"])
    change(inner)
    outer["__metadata__"]["statespan"] = json.dumps(inner)
    text = json.dumps(outer).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "m.safetensors"
    ss.hmm(states=2, emission=ss.Categorical(3), seed=0).save(path)
    return path


def test_sizes_are_remembered_however_the_model_was_made(tmp_path):
    path = tmp_path / "m.safetensors"
    made = [
        ss.hmm(states=3, emission=ss.Categorical(4)),
        ss.hmm(states=3, emission=ss.Categorical(4, bias=True)),
        ss.hmm(emission=ss.Categorical(probs=[[0.5, 0.5], [0.1, 0.9]])),
        ss.hmm(states=3, emission=ss.Gaussian(dim=2, covariance="tied", floor=0.1)),
        ss.hmm(emission=ss.Gaussian(mean=[[0.0], [1.0]], covariance=[[[1.0]], [[2.0]]])),
        ss.linear_gaussian(dynamics=[[0.5]], observation=[[1.0], [2.0]], observation_noise=[[1.0, 0], [0, 1]]),
        ss.ladder("elman", vocabulary=7, parameters=300),
    ]
    for model in made:
        model.save(path)
        again = ss.load(path)
        assert type(again) is type(model)
        assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
        assert describe(again) == describe(model)
    assert ss.load(path).emission.event.symbols == 7


def test_a_part_put_in_later_is_the_part_that_is_saved(tmp_path):
    model = ss.hmm(states=2, emission=ss.Categorical(3))
    model.emission = ss.Gaussian(dim=1, states=2).double()
    model.save(tmp_path / "m.safetensors")
    assert_close(ss.load(tmp_path / "m.safetensors").log_prob([0.5]), model.log_prob([0.5]))


def test_ties_by_the_recipe_and_ties_by_hand(tmp_path):
    path = tmp_path / "m.safetensors"
    tied = ss.ladder("elman", vocabulary=5, width=3)
    tied.save(path)
    assert len(load_file(path)) == len(list(tied.named_parameters())) + 1  # and the buffer of the start
    again = ss.load(path)
    assert again.transition.feature.table.weight is again.emission.table.weight
    by_hand = ss.ladder("elman", vocabulary=5, width=3, tied=False)
    by_hand.transition.feature.table.weight = by_hand.emission.table.weight
    by_hand.save(path)
    assert header(path)["ties"]
    again = ss.load(path)
    assert again.transition.feature.table.weight is again.emission.table.weight
    assert torch.equal(again.log_prob([0, 1, 2]), by_hand.log_prob([0, 1, 2]))


def test_what_is_in_a_file(saved):
    inside = header(saved)
    assert inside["format"] == 1
    assert inside["version"] == ss.__version__
    assert inside["model"]["part"] == "statespan.StateSpace"
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(saved.read_bytes())
    assert os.stat(saved).st_mode & 0o777 == 0o644


def test_extra_values_travel_along(tmp_path):
    model = ss.hmm(states=2, emission=ss.Categorical(3))
    save(model, tmp_path / "m.safetensors", {"vocabulary": ["a", "b"], "n": 3})
    assert load_with_extra(tmp_path / "m.safetensors")[1] == {"vocabulary": ["a", "b"], "n": 3}


def test_a_file_that_is_not_there_or_no_model(tmp_path, saved):
    with pytest.raises(ss.StatespanError, match=r"no\.safetensors: no such file"):
        ss.load(tmp_path / "no.safetensors")
    with pytest.raises(ss.StatespanError, match="no such file"):
        ss.load(tmp_path)
    whole = saved.read_bytes()
    for content in (b"", b"hello", whole[:4], whole[:100], whole[:-5], b"\0" * 100):
        saved.write_bytes(content)
        with pytest.raises(ss.StatespanError, match=r"m\.safetensors: not a whole statespan model file") as error:
            ss.load(saved)
        assert "\n" not in str(error.value)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, saved)
    with pytest.raises(ss.StatespanError, match="not a whole statespan model file"):
        ss.load(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h.update(format=99), "newer than this; upgrade statespan"),
        (lambda h: h["model"].update(part="elsewhere.Thing"), "needs the part elsewhere.Thing; import the module"),
        (lambda h: h.pop("model"), "not a whole statespan model file"),
        (lambda h: h.pop("format"), "not a whole statespan model file"),
        (lambda h: h["model"]["arguments"][1].update(arguments=[5]), "number of states differs: Start 2, Dense 5"),
        (lambda h: h["model"]["arguments"][1].update(arguments=["x"]), "m.safetensors: .*Dense"),
        (
            lambda h: h["model"]["arguments"][2]["options"]["table"].update(arguments=[4, 2]),
            r"table\.weight has shape \(3, 2\), not \(4, 2\)",
        ),
        (lambda h: h["model"]["arguments"].pop(), "m.safetensors: .*StateSpace"),
        (lambda h: h["model"]["arguments"][2]["options"].update(table=None, bias=True), "lacks .*bias"),
    ],
)
def test_a_header_that_does_not_fit(saved, change, words):
    rewrite(saved, change)
    with pytest.raises(ss.StatespanError, match=words) as error:
        ss.load(saved)
    assert "\n" not in str(error.value)


def test_what_cannot_be_saved_is_named(tmp_path):
    class Odd(nn.Module):
        pass

    model = ss.hmm(states=2, emission=ss.Categorical(3))
    model.transition = Odd()
    with pytest.raises(ss.StatespanError, match=r"cannot save model\.1: Odd is no statespan Part"):
        model.save(tmp_path / "m.safetensors")

    class Holds(ss.Part):
        def __init__(self, value):
            super().__init__()

    try:
        model.transition = Holds(object())
        with pytest.raises(ss.StatespanError, match="made from a object"):
            model.save(tmp_path / "m.safetensors")
    finally:
        for name in [n for n in PARTS if "Holds" in n]:
            del PARTS[name]
    assert not list(tmp_path.iterdir())


def test_a_part_of_ones_own_is_saved_and_loaded(tmp_path):
    class Sticky(ss.Dense):
        """A move that stays where it is."""

        def __init__(self, states: int, stay: float = 2.0):
            super().__init__(states)
            with torch.no_grad():
                self.logits.add_(stay * torch.eye(states))

    try:
        model = ss.hmm(emission=ss.Categorical(3, states=2), transition=Sticky(2, stay=3.0))
        model.save(tmp_path / "m.safetensors")
        again = ss.load(tmp_path / "m.safetensors")
        assert type(again.transition) is Sticky
        assert torch.equal(again.log_prob([0, 1]), model.log_prob([0, 1]))
    finally:
        for name in [n for n in PARTS if "Sticky" in n]:
            del PARTS[name]


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch, saved):
    before = saved.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ss.StatespanError, match=r"cannot write .*m\.safetensors: No space left on device"):
        ss.hmm(states=3, emission=ss.Categorical(3)).save(saved)
    assert saved.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_folders_are_made_and_a_file_in_the_way_is_said(tmp_path, saved):
    model = ss.hmm(states=2, emission=ss.Categorical(3))
    model.save(tmp_path / "a" / "b" / "m.safetensors")
    assert (tmp_path / "a" / "b" / "m.safetensors").is_file()
    with pytest.raises(ss.StatespanError, match="cannot write"):
        model.save(saved / "m.safetensors")


def test_a_description_makes_the_model_again():
    for name in ("hmm/gated", "lstm", "elman/multiplicative-one-matrix"):
        model = ss.ladder(name, vocabulary=5, width=3)
        again = make(json.loads(json.dumps(describe(model))))
        assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
