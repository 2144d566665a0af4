"""Text that continues a prompt."""

import re
from typing import Any

import torch

from statespan.errors import StatespanError
from statespan.files import load_with_extra
from statespan.ladder.findings import spell
from statespan.language.vocabulary import UNK, Vocabulary
from statespan.method import run
from statespan.methods import method_for
from statespan.part import seeded
from statespan.sequences import Sequences

_TOKEN = re.compile(r"\w+(?:['-]\w+)*'?|[^\w\s]")


def generate(path: str, prompt: str, length: int, temperature: float, seed: int | None) -> str:
    """Text that continues a prompt.

    Args:
        path: a model of text that a run saved.
        prompt: text to go on from; "" begins a sentence. Words the model does not know are read as `<unk>`.
        length: symbols to add at most; the end of a sentence stops it.
        temperature: below 1 sharper, above 1 flatter.
        seed: makes the text repeatable.

    Returns:
        The prompt as the model read it, and what follows; in a second line the words it does not know.

    Raises:
        StatespanError: the model was not saved with a vocabulary, or a number that cannot be.
    """
    if not temperature > 0:
        raise StatespanError(f"temperature = {temperature} must be positive")
    if length < 1:
        raise StatespanError(f"length = {length} must be at least 1")
    model, extra = load_with_extra(path)
    if "vocabulary" not in extra:
        raise StatespanError(f"{path}: this model has no vocabulary; give the model.safetensors of a ladder run")
    vocabulary, level = Vocabulary.from_json(extra["vocabulary"]), extra.get("level", "words")
    pieces = tokens(prompt, vocabulary, level)
    unknown = [piece for piece in pieces if piece not in vocabulary]
    begun = vocabulary.encode(pieces)
    text = spell(begun.tolist() + _follow(model, begun, length, temperature, seed), vocabulary, level)
    return text + (f"\n(not in the vocabulary: {', '.join(unknown)})" if unknown else "")


def tokens(prompt: str, vocabulary: Vocabulary, level: str) -> list[str]:
    """A prompt cut as the vocabulary has it: as it stands, else in lower case, else with its punctuation apart.

    Args:
        prompt: text.
        vocabulary: the words that are known.
        level: "words" or "characters".
    """
    if level == "characters":
        return ["_" if letter == " " else letter for letter in prompt]
    found: list[str] = []
    for word in prompt.split():
        whole = next((form for form in (word, word.lower()) if form in vocabulary or form == UNK), None)
        if whole is not None:
            found.append(whole)
            continue
        for piece in _TOKEN.findall(word):
            found.append(piece if piece in vocabulary else piece.lower())
    return found


@torch.no_grad()
def _follow(model: Any, prompt: torch.Tensor, length: int, temperature: float, seed: int | None) -> list[int]:
    """Symbols drawn after a sentence's first ones, until it ends; `<unk>` is never drawn."""
    model.eval()
    method = method_for(model)
    drawn: list[int] = []
    with seeded(seed):
        constants = method.constants(model)
        # A new sentence begins where another ends.
        begun = torch.cat([torch.tensor([Vocabulary.eos]), prompt])
        belief = run(model, method, Sequences(y=begun[:, None]), None, ("last",), constants).last
        blank = Sequences(observed=torch.zeros(1, 1, dtype=torch.bool))
        while len(drawn) < length:
            predicted = run(model, method, blank, belief, ("predicted",), constants).predicted
            logits = method.emit(model, constants, predicted, None).logits[0, 0] / temperature
            if bool(logits.isnan().any()):
                raise StatespanError("--prompt: the model gives these words probability zero; begin with others")
            logits[Vocabulary.unk] = -torch.inf
            symbol = torch.multinomial(logits.softmax(-1), 1)
            if int(symbol) == Vocabulary.eos:
                break
            drawn.append(int(symbol))
            belief = run(model, method, Sequences(y=symbol[None]), belief, ("last",), constants).last
    return drawn
