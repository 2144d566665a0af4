"""What a trained rung shows beside its perplexity: text drawn from it, the words of its states, parts of speech."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from statespan.ladder.material import Material
from statespan.ladder.rungs import Kind, Rung
from statespan.language import tagging
from statespan.language.scoring import alike, observe, walk, width_of
from statespan.language.vocabulary import Vocabulary, stream
from statespan.method import Trace, run
from statespan.methods import method_for

SAMPLES = 3
SAMPLE_LENGTH = 30
SHORTEST_SAMPLE = 5
"""A sample ends with the first sentence that ends after so many symbols."""

MOST_STATES = 24
MOST_WORDS = 10
USAGE_ROWS = 400
"""Rows of the validation stream that tell how much a state is used."""

COLUMNS = 10
"""Columns of the validation and test streams; each starts cold once."""

LEARN_COLUMNS = 32
LEARN_TOKENS = 200_000
"""Training symbols from which p(tag | state) is learnt, at most."""

PATH_TOKENS = 50_000
"""The same for best paths, which cost K comparisons a symbol and state."""

CHUNK = 2**22
"""Numbers in the largest tensor of a chunk: 16 MB in float32."""


# ------------------------------------------------------------------------------------------ text and states


@torch.no_grad()
def samples(model: Any, material: Material, seed: int) -> list[str]:
    """A few sentences drawn from the model, from its start, as text."""
    _, words = model.sample(SAMPLES, SAMPLE_LENGTH, seed=seed)
    return [spell(_sentence(row), material.vocabulary, material.level) for row in words.tolist()]


def _sentence(row: list[int]) -> list[int]:
    """The symbols up to the first end of a sentence that is not at the very start."""
    if Vocabulary.eos in row[SHORTEST_SAMPLE:]:
        row = row[: row.index(Vocabulary.eos, SHORTEST_SAMPLE)]
    return [symbol for symbol in row if symbol != Vocabulary.eos]


def spell(symbols: list[int], vocabulary: Vocabulary, level: str) -> str:
    """Symbols as text: words with spaces between, or characters, where `_` stands for a space."""
    pieces = vocabulary.decode(symbols)
    return "".join(" " if piece == "_" else piece for piece in pieces) if level == "characters" else " ".join(pieces)


@torch.no_grad()
def state_words(model: Any, rung: Rung, material: Material, valid: Tensor) -> dict[str, Any]:
    """The likeliest words of the most used states, where states emit words by themselves: most used first.

    Args:
        model: the rung's model.
        rung: its choices.
        material: the text.
        valid: (T, B) validation stream, which tells what is used.
    """
    if not rung.simplex or rung.score.needs < Kind.POSITIVE:  # only a mixture has words of each state
        return {"state_words": None, "state_usage": None}
    filtered = run(model, method_for(model), observe(valid[:USAGE_ROWS]), None, ("filtered",)).filtered
    usage = _probs(filtered).double().sum((0, 1))
    usage = usage / usage.sum()
    order = usage.argsort(descending=True)[:MOST_STATES]
    emitted = model.emission.constants().probs.value[order]
    best = emitted.topk(min(MOST_WORDS, emitted.shape[1]), -1).indices
    return {
        "state_words": [material.vocabulary.decode(row) for row in best],
        "state_usage": usage[order].tolist(),
    }


# ----------------------------------------------------------------------------------------------------- tags


@torch.no_grad()
def tags(model: Any, rung: Rung, material: Material) -> dict[str, float | None]:
    """How well a model that saw no tag knows them.

    Args:
        model: the rung's model.
        rung: its choices.
        material: a tagged text.

    Returns:
        Accuracies on the test text, None where the rung has no such thing. `next_word`: of p(t) = sum over w of
        p(w) p(t | w), the next word unseen. Through p(t | state), learnt on training text, where the state is a
        distribution: `states_prefix`, before the word is seen; `states_filtered`, once it is, where it changes the
        state; `states_viterbi`, on the best path of the whole sentence, for exact rungs, with `many_to_one` and
        `v_measure` of the same path (both read off the test text itself).
    """
    found: dict[str, float | None] = {"next_word": _next_word(model, material)}
    found |= dict.fromkeys(("states_prefix", "states_filtered", "states_viterbi", "many_to_one", "v_measure"))
    kinds = {"states_prefix": "predicted"} if rung.move.yields == Kind.DISTRIBUTION else {}
    if rung.condition.yields == Kind.DISTRIBUTION:  # otherwise the word does not change the state
        kinds["states_filtered"] = "filtered"
    if kinds:
        found |= _by_belief(model, material, kinds)
    if rung.exact:
        found |= _by_path(model, material)
    return found


def _next_word(model: Any, material: Material) -> float:
    """Accuracy of the tag of the next-word distribution."""
    assert material.train_tags is not None and material.test_tags is not None
    vocabulary = len(material.vocabulary)
    words, gold = stream(material.test, COLUMNS), stream(material.test_tags, COLUMNS)
    seen, tagged = torch.cat(material.train), torch.cat(material.train_tags)
    table = tagging.tag_given_word(seen, tagged, vocabulary, len(material.tags))
    method = method_for(model)
    constants, tally = method.constants(model), tagging.Tally(0, 0)
    for rows, trace in _walk(model, words, ("predicted",), vocabulary):
        log_probs: Any = method.emit(model, constants, trace.predicted, None)
        tally = tally.plus(tagging.next_word_tag_accuracy(log_probs.logits.flatten(0, 1), table, gold[rows].flatten()))
    return tally.accuracy


def _by_belief(model: Any, material: Material, kinds: dict[str, str]) -> dict[str, float]:
    """Accuracies of the tag of the state, by which belief of a `Trace` tells the state."""
    assert material.train_tags is not None and material.test_tags is not None
    width, count, keep = width_of(model), len(material.tags), tuple(kinds.values())
    some = first(material.train, LEARN_TOKENS)
    words, gold = stream(material.train[:some], LEARN_COLUMNS), stream(material.train_tags[:some], LEARN_COLUMNS)
    counts = {name: torch.zeros(width, count, dtype=torch.float64, device=words.device) for name in kinds}
    for rows, trace in _walk(model, words, keep, width):
        known = gold[rows].flatten() >= 0
        each = torch.nn.functional.one_hot(gold[rows].flatten()[known], count).double()
        for name, kept in kinds.items():
            counts[name] += _probs(getattr(trace, kept)).flatten(0, 1)[known].double().T @ each
    tables = {name: tagging.conditional(table) for name, table in counts.items()}
    tallies = dict.fromkeys(kinds, tagging.Tally(0, 0))
    words, gold = stream(material.test, COLUMNS), stream(material.test_tags, COLUMNS)
    for rows, trace in _walk(model, words, keep, width):
        for name, kept in kinds.items():
            probs = _probs(getattr(trace, kept)).flatten(0, 1).double()
            tallies[name] = tallies[name].plus(tagging.through_counts(probs, tables[name], gold[rows].flatten()))
    return {name: tally.accuracy for name, tally in tallies.items()}


def _by_path(model: Any, material: Material) -> dict[str, float]:
    """Accuracies on the best path of each whole sentence."""
    assert material.train_tags is not None and material.test_tags is not None
    width, count = width_of(model), len(material.tags)
    some = first(material.train, PATH_TOKENS)
    learnt, gold = _paths(model, material.train[:some], width), torch.cat(material.train_tags[:some])
    table = tagging.tag_given_state(learnt, gold, width, count)
    states, gold = _paths(model, material.test, width), torch.cat(material.test_tags)
    return {
        "states_viterbi": tagging.through_counts(states, table, gold).accuracy,
        "many_to_one": tagging.many_to_one(states, gold, width, count),
        "v_measure": tagging.v_measure(states, gold).v,
    }


def _paths(model: Any, sentences: list[Tensor], width: int) -> Tensor:
    """The best path of every sentence on its own, joined."""
    found: list[Tensor] = [torch.empty(0)] * len(sentences)
    for group in alike(sentences, CHUNK // width):
        for i, path in zip(group, model.decode([sentences[i] for i in group]), strict=True):
            found[i] = path
    return torch.cat(found)


def _walk(model: Any, words: Tensor, keep: tuple[str, ...], wide: int) -> Iterator[tuple[slice, Trace]]:
    """Run a stream, its belief carried, in chunks of at most `CHUNK` numbers `wide`: a chunk's rows, what was kept."""
    return walk(model, words, keep, max(1, CHUNK // (words.shape[1] * wide)))


def first(sentences: list[Tensor], tokens: int) -> int:
    """How many sentences from the first on hold at most so many symbols, at least one."""
    ends = torch.tensor([len(s) for s in sentences]).cumsum(0)
    return max(1, int((ends <= tokens).sum()))


def _probs(belief: Any) -> Tensor:
    """The probabilities in a belief about a distribution."""
    return belief.state.probs
