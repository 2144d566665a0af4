"""What a trained row leaves in the results files: its perplexities, and how well it knows parts of speech."""

import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from statespan.ladder import ledger
from statespan.ladder.material import Material
from statespan.ladder.recipe import Recipe
from statespan.ladder.rungs import Kind, Rung
from statespan.language import corpora, protocols, tagging
from statespan.language.corpora import Sentence
from statespan.language.protocols import Gold
from statespan.language.vocabulary import Vocabulary


def device_name(device: str) -> str:
    """What a worker trains on, as the results have it.

    Args:
        device: as torch names it.
    """
    if torch.device(device).type == "cpu":
        return f"cpu, {platform.machine()}, 1 thread"
    return torch.cuda.get_device_name(device)


def askable(rung: Rung) -> tuple[str, ...]:
    """The protocols of tagging that a rung's state can answer.

    Example:
        >>> from statespan.ladder.rungs import find
        >>> askable(find("hmm")), askable(find("lstm"))
        (('prefix', 'prefix-state', 'filtered', 'viterbi'), ('prefix',))
    """
    has = {
        "prefix": True,
        "prefix-state": rung.move.yields == Kind.DISTRIBUTION,
        "filtered": rung.condition.yields == Kind.DISTRIBUTION,
        "viterbi": rung.exact,
    }
    return tuple(name for name in protocols.PROTOCOLS if has[name])


def tagging_rows(model: Any, rung: Rung, gold: Mapping[str, Gold], made: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of `tagging.csv`, one a protocol.

    Args:
        model: the trained rung.
        rung: its choices.
        gold: by "valid" and "test".
        made: its row of `ladder.csv`.
    """
    rows = []
    model.eval()
    for protocol in askable(rung):
        began, found = time.perf_counter(), {}
        for part, name in (("valid", "dev"), ("test", "test")):
            for ending, independent in (("", False), ("_independent", True)):
                fine, coarse = protocols.accuracy(model, gold[part], protocol, independent)
                found[f"{name}_accuracy{ending}"] = fine.accuracy
                found[f"{name}_accuracy_universal{ending}"] = coarse.accuracy
        seconds = {"minutes": (time.perf_counter() - began) / 60}
        kept = {name: made[name] for name in (*ledger.BEGIN, *ledger.END)}
        rows.append(kept | {"protocol": protocol} | found | seconds)
    return rows


def read_gold(recipe: Recipe, material: Material, folder: Path) -> dict[str, Gold] | None:
    """The gold tags that a recipe names, laid beside its text, or those that the text itself has; None without any.

    Args:
        recipe: the recipe.
        material: its text.
        folder: where relative paths start.

    Raises:
        StatespanError: a file that cannot be read, or that does not align.
    """
    named = recipe.tags
    if named is None:
        return _own_gold(material) if material.tags else None
    lexicon = corpora.read_tagged(folder / named.lexicon)
    mapping = tagging.universal(folder / named.universal) if named.universal else None
    found = {}
    for part in ("valid", "test"):
        words = [Sentence(tuple(material.vocabulary.decode(s[:-1]))) for s in getattr(material, part)]
        tagged = corpora.read_tagged(folder / getattr(named, part))
        found[part] = protocols.gold(words, tagged, lexicon, material.vocabulary, mapping)
    return found


def _own_gold(material: Material) -> dict[str, Gold]:
    """The tags of a tagged text; its training part is the lexicon, and a tag is its own class."""
    assert material.train_tags is not None and material.valid_tags is not None and material.test_tags is not None
    words, tags, count = torch.cat(material.train), torch.cat(material.train_tags), len(material.tags)
    table = tagging.tag_given_word(words, tags, len(material.vocabulary), count)
    table[Vocabulary.eos] = 0.0
    known = (material.tags, table, torch.eye(count, dtype=torch.float64))
    return {
        "valid": Gold(material.valid, material.valid_tags, *known),
        "test": Gold(material.test, material.test_tags, *known),
    }
