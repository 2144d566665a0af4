"""The door: every form that data may come in, and every way that they may be wrong."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

import statespan as ss
from statespan.sequences import Event, Layout, Sequences, read

SYMBOLS, PAIR, ONE = Event(0, 4), Event(1, None, 2), Event(1, None, 1)
NAN = math.nan


class Frame:
    """What pandas and polars have in common."""

    def __init__(self, values):
        self.values = np.array(values)

    @property
    def ndim(self):
        return self.values.ndim

    def __len__(self):
        return len(self.values)

    def to_numpy(self):
        return self.values


@pytest.mark.parametrize(
    "y",
    [
        [0, 1, 3],
        (0, 1, 3),
        np.array([0, 1, 3]),
        np.array([0, 1, 3], dtype=np.uint8),
        np.array([0.0, 1.0, 3.0], dtype=np.float32),
        torch.tensor([0, 1, 3]),
        torch.tensor([0.0, 1.0, 3.0]),
        torch.tensor([0, 1, 3], dtype=torch.int32),
        [torch.tensor(0), torch.tensor(1), torch.tensor(3)],
        [np.int64(0), np.int64(1), np.int64(3)],
        Frame([0, 1, 3]),
    ],
)
def test_one_sequence_of_symbols(y):
    data, layout = read(y, SYMBOLS)
    assert data.y.tolist() == [[0], [1], [3]]
    assert data.y.dtype == torch.long
    assert data.observed is None
    assert data.lengths is None
    assert layout == Layout(True, False, [3])
    assert data.shape == (3, 1)


@pytest.mark.parametrize(
    "y",
    [[0, None, 3], [0, NAN, 3], [0, -1, 3], np.array([0, NAN, 3]), np.array([0, None, 3]), torch.tensor([0, -1, 3])],
)
def test_a_missing_symbol(y):
    data, _ = read(y, SYMBOLS)
    assert data.observed.tolist() == [[True], [False], [True]]
    assert data.y[[0, 2], 0].tolist() == [0, 3]


@pytest.mark.parametrize(
    "y",
    [
        [[0, 1, 3], [2]],
        ([0, 1, 3], (2,)),
        [np.array([0, 1, 3]), torch.tensor([2])],
        [Frame([0, 1, 3]), [2]],
    ],
)
def test_a_list_of_sequences(y):
    data, layout = read(y, SYMBOLS)
    assert data.shape == (3, 2)
    assert data.lengths.tolist() == [3, 1]
    assert data.observed is None
    assert data.within.tolist() == [[True, True], [True, False], [True, False]]
    assert layout == Layout(False, True, [3, 1])


@pytest.mark.parametrize("wrap", [np.array, torch.tensor, Frame])
def test_a_padded_batch(wrap):
    y = wrap([[0, 1, 3], [2, 99, -7]])
    data, layout = read(y, SYMBOLS, lengths=[3, 1])
    assert data.y[:, 0].tolist() == [0, 1, 3]
    assert data.lengths.tolist() == [3, 1]
    assert layout == Layout(False, False, [3, 1])
    whole, _ = read(wrap([[0, 1], [2, 3]]), SYMBOLS, lengths=torch.tensor([2, 2]))
    assert whole.lengths is None


@pytest.mark.parametrize(
    "y",
    [
        [[0.5, 1], [2, 3]],
        np.array([[0.5, 1], [2, 3]]),
        torch.tensor([[0.5, 1], [2, 3]]),
        [np.array([0.5, 1]), torch.tensor([2.0, 3])],
        Frame([[0.5, 1], [2, 3]]),
        ([0.5, 1], (2, 3)),
    ],
)
def test_one_sequence_of_vectors(y):
    data, layout = read(y, PAIR)
    assert data.y.tolist() == [[[0.5, 1.0]], [[2.0, 3.0]]]
    assert data.y.dtype == torch.float64
    assert layout.single


def test_missing_rows_and_coordinates():
    for gone in (None, [NAN, NAN], [None, None], np.array([NAN, NAN])):
        data, _ = read([[0.5, 1], gone, [2, 3]], PAIR)
        assert data.observed.tolist() == [[True], [False], [True]]
        assert data.y[1].tolist() == [[0.0, 0.0]]
    data, _ = read([[0.5, None], [2, 3]], PAIR)
    assert data.observed.tolist() == [[[True, False]], [[True, True]]]
    ragged, _ = read([[[0.5, 1], None], [[1, 1]]], PAIR)
    assert ragged.observed.tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize(
    "y", [[0.5, 1, 2], np.array([0.5, 1, 2]), [[0.5], [1], [2]], torch.tensor([[0.5], [1], [2]]), Frame([0.5, 1, 2])]
)
def test_one_number_a_step(y):
    data, layout = read(y, ONE)
    assert data.y.tolist() == [[[0.5]], [[1.0]], [[2.0]]]
    assert layout.single


def test_lists_of_sequences_of_one_number_a_step():
    for y in ([[0.5, 1, 2], [3.0, 4.0]], [np.array([0.5, 1, 2]), np.array([[3.0], [4.0]])]):
        data, layout = read(y, ONE)
        assert data.shape == (3, 2)
        assert layout.lengths == [3, 2]
    data, layout = read(np.zeros((4, 3, 1)), ONE)
    assert data.shape == (3, 4)
    assert not layout.single


def test_a_list_of_vectors_sequences_whose_length_is_the_width():
    """Two sequences of two vectors of two numbers are a list, not a vector."""
    data, layout = read([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], PAIR)
    assert layout.lengths == [2, 2]
    assert data.y[0].tolist() == [[1, 2], [5, 6]]


def test_inputs_and_states_have_the_same_forms():
    data, _ = read([0, 1, 2], SYMBOLS, inputs=[[0.1], [0.2], [0.3]], states=[0, None, 1])
    assert data.u.shape == (3, 1, 1)
    assert data.states.tolist() == [[0], [-1], [1]]
    assert read([0, 1, 2], SYMBOLS, inputs=[0.1, 0.2, 0.3])[0].u.tolist() == data.u.tolist()
    ragged, _ = read([[0, 1, 2], [3]], SYMBOLS, inputs=[np.ones((3, 2)), [[5.0, 6.0]]], states=[[0, -1, 1], [2]])
    assert ragged.u.shape == (3, 2, 2)
    assert ragged.states.tolist() == [[0, 2], [-1, -1], [1, -1]]
    padded, _ = read(np.zeros((2, 3), int), SYMBOLS, [3, 2], inputs=np.ones((2, 3, 2)), states=np.zeros((2, 3)))
    assert padded.u.shape == (3, 2, 2)
    assert padded.states.tolist() == [[0, 0], [0, 0], [0, -1]]
    made = torch.ones(3, 2, requires_grad=True)
    assert read([0, 1, 2], SYMBOLS, inputs=made)[0].u.requires_grad


@pytest.mark.parametrize(
    ("y", "event", "options", "words"),
    [
        ([], SYMBOLS, {}, "y is an empty list"),
        ([[]], SYMBOLS, {}, "y: sequence 0 is empty"),
        ([[0], []], SYMBOLS, {}, "y: sequence 1 is empty"),
        ([[0.1], []], ONE, {}, "y: sequence 1 is empty"),
        (np.zeros((0, 3), int), SYMBOLS, {}, "y holds no sequence"),
        (np.zeros(0, int), SYMBOLS, {}, "y is empty"),
        (3, SYMBOLS, {}, "y has 0 dimensions; this model's observations are symbols: give 1 for one"),
        (np.zeros((2, 2, 2), int), SYMBOLS, {}, "y has 3 dimensions; this model's observations are symbols"),
        (np.zeros(3), PAIR, {}, "y has 1 dimensions; this model's observations are vectors: give 2"),
        ([0, 4], SYMBOLS, {}, r"sequence 0, step 1: symbol 4 lies outside 0\.\.3"),
        ([[0], [1, 2, 9]], SYMBOLS, {}, r"sequence 1, step 2: symbol 9 lies outside 0\.\.3"),
        ([0, -2], SYMBOLS, {}, "sequence 0, step 1: -2 is below -1"),
        ([0, 1.5], SYMBOLS, {}, "sequence 0, step 1: 1.5 is no whole number"),
        (["a", "b"], SYMBOLS, {}, "does not hold numbers .*; encode words with a Vocabulary"),
        ([[0, 1], ["a"]], SYMBOLS, {}, "y: sequence 1 does not hold numbers"),
        ([[1, 2], [3, 4]], Event(1, None, 3), {}, "y: row 0 holds 2 numbers where the model observes 3"),
        (np.zeros((4, 3)), PAIR, {}, "y has 3 columns where the model observes 2"),
        ([np.zeros((4, 3))], PAIR, {}, "y: sequence 0 has 3 columns where the model observes 2"),
        (np.array([[1.0, math.inf]]), PAIR, {}, "sequence 0, step 0, column 1: an infinite value"),
        (np.array([[1.0, 1e200]]), PAIR, {}, "sequence 0, step 0, column 1: 1e.200 is too large"),
        (np.zeros((2, 3), int), SYMBOLS, {"lengths": [3]}, "lengths has 1 entries for 2 sequences"),
        (np.zeros((2, 3), int), SYMBOLS, {"lengths": [3, 4]}, r"lengths\[1\] is 4; it must lie between 1 and 3"),
        (np.zeros((2, 3), int), SYMBOLS, {"lengths": [0, 3]}, r"lengths\[0\] is 0"),
        ([[0], [1]], SYMBOLS, {"lengths": [1, 1]}, "a list of sequences has its own"),
        ([0, 1], SYMBOLS, {"lengths": [2]}, "y is one sequence"),
        ([0, 1], SYMBOLS, {"states": [0]}, r"states has lengths \[1\] where y has \[2\]"),
        ([[0, 1], [1]], SYMBOLS, {"states": [[0, 1], [1, 1]]}, r"states has lengths \[2, 2\] where y has \[2, 1\]"),
        ([0, 1], SYMBOLS, {"states": [[0], [1]]}, "states: sequence 0 has 2 dimensions"),
        ([0, 1], SYMBOLS, {"states": [0, 0.5]}, "states: sequence 0, step 1: 0.5 is no whole number"),
        ([0, 1], SYMBOLS, {"inputs": [0.1, NAN]}, "inputs: sequence 0, step 1 is not finite"),
        ([0, 1], SYMBOLS, {"inputs": np.zeros((2, 3, 4))}, r"inputs: sequence 0 is \(2, 3, 4\)"),
        ([[0, 1], [1]], SYMBOLS, {"inputs": [np.zeros((2, 2)), np.zeros((1, 3))]}, r"inputs: sequence 1 is \(1, 3\)"),
        (np.zeros((2, 3), int), SYMBOLS, {"inputs": np.zeros(3)}, r"inputs has lengths \[\] where y has \[3, 3\]"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(y, event: Event, options: dict, words: str):
    with pytest.raises(ss.StatespanError, match=words) as error:
        read(y, event, **options)
    assert "\n" not in str(error.value)


def test_nullable_columns_of_pandas_are_read_and_words_are_told_by_their_column():
    frame = pd.DataFrame({"a": pd.array([1, None, 3], "Int64"), "b": [0.5, 1.5, 2.5]})
    data, _ = read(frame, Event(1, None, 2))
    assert data.observed is not None and data.observed[:, 0].tolist() == [[True, True], [False, True], [True, True]]
    with pytest.raises(ss.StatespanError, match=r"column b holds datetime.*leave it out, make times the index"):
        read(frame.assign(b=pd.date_range("2024", periods=3)), Event(1, None, 2))


def test_sequences_know_their_shape():
    with pytest.raises(ss.StatespanError, match="needs y, observed, states or u"):
        _ = Sequences().shape
    blank = Sequences(u=ss.Shared(torch.ones(2)), observed=torch.zeros(3, 2, dtype=torch.bool))
    assert blank.shape == (3, 2)
    assert Sequences(u=(torch.ones(3, 2, 1),)).shape == (3, 2)
    assert bool(blank.within.all())
    data, _ = read([[0, 1, 2], [3]], SYMBOLS)
    assert data.present.tolist() == data.within.tolist()
    window = read(np.arange(4)[None], SYMBOLS)[0].window(1, 3)
    assert window.y[:, 0].tolist() == [1, 2]


def test_sequences_go_straight_to_the_verbs():
    model = ss.hmm(states=2, emission=ss.Categorical(4), seed=0)
    data, _ = read([[0, 1, 2], [3]], SYMBOLS)
    assert_close(model.log_prob(data), model.log_prob([[0, 1, 2], [3]]))
    assert model.filter(data).probs.shape == (2, 3, 2)


def test_answers_come_back_where_the_model_is():
    model = ss.hmm(states=2, emission=ss.Gaussian(2), seed=0, dtype=torch.float32)
    y = np.random.default_rng(0).normal(size=(3, 4, 2))
    assert model.filter(y).probs.dtype == torch.float32
    assert model.log_prob(y).dtype == torch.float64


def test_memory_that_must_not_be_written_is_read():
    y = np.array([[0.0, 1.0], [np.nan, 2.0]])
    y.flags.writeable = False
    assert read(y, Event(1, None, 2))[0].y.shape == (2, 1, 2)
