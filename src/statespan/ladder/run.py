"""The main job: train every rung of a recipe on one text, score it, and keep what the report needs."""

import datetime
import json
import math
import multiprocessing
import os
import platform
import queue
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from statespan.errors import StatespanError
from statespan.files import load_with_extra, save, write_bytes
from statespan.fit import EM
from statespan.ladder.recipe import Entry, Recipe, Text
from statespan.ladder.rungs import LADDER, Rung, find, ladder
from statespan.language import corpora, tagging
from statespan.language.ngrams import KneserNey
from statespan.language.training import Progress, Trainer, observe, score_sentences, score_stream
from statespan.language.vocabulary import Vocabulary, encode_corpus, stream
from statespan.method import run
from statespan.methods import Forward, method_for
from statespan.version import __version__

VALID_COLUMNS = 10
"""Columns of the validation and test streams; each starts cold once."""


# ------------------------------------------------------------------------------------------------- text


class Material(NamedTuple):
    """A text ready to train on: encoded sentences of each part, the vocabulary, and gold tags if there are any."""

    name: str
    vocabulary: Vocabulary
    train: list[Tensor]
    valid: list[Tensor]
    test: list[Tensor]
    tags: tuple[str, ...] = ()
    train_tags: list[Tensor] | None = None
    test_tags: list[Tensor] | None = None


def read_text(text: Text, beside: Path) -> Material:
    """Read and encode a recipe's text.

    Args:
        text: the recipe's table.
        beside: the folder that relative paths start from.

    Raises:
        StatespanError: a file that cannot be read, or a text too small to split.
    """
    if text.source == "king-james":
        corpus = corpora.king_james()
    elif text.source == "files":
        corpus = _files(text, beside)
    else:
        raise StatespanError(f"[text] source = {text.source!r} must be 'king-james' or 'files'")
    if text.level not in ("words", "characters"):
        raise StatespanError(f"[text] level = {text.level!r} must be 'words' or 'characters'")
    if not 0 < text.share <= 1:
        raise StatespanError(f"[text] share = {text.share} must lie above 0 and at most 1")
    parts = [corpus.train[: max(1, round(len(corpus.train) * text.share))], corpus.valid, corpus.test]
    if text.level == "characters":
        parts = [corpora.characters(part) for part in parts]
    vocabulary = Vocabulary.build(parts[0], size=text.vocabulary or None)
    train, valid, test = (encode_corpus(part, vocabulary) for part in parts)
    name = text.name or corpus.name
    if not corpus.tagged or text.level == "characters":
        return Material(name, vocabulary, train, valid, test)
    mapping = tagging.universal(beside / text.universal) if text.universal else None
    tags = tagging.tagset(parts[0], mapping)
    known = tagging.tagset([*parts[0], *parts[2]], mapping)
    tags = tags + tuple(t for t in known if t not in tags)
    gold = [tagging.encode_tags(part, tags, mapping) for part in (parts[0], parts[2])]
    return Material(name, vocabulary, train, valid, test, tags, *gold)


def _files(text: Text, beside: Path) -> corpora.Corpus:
    """The text of three files, or of one that is split."""
    if not text.train:
        raise StatespanError("[text] names no train file; give train = ..., or --text FILE")
    where = lambda name: beside / Path(name).expanduser()  # noqa: E731
    name = text.name or Path(text.train).stem
    if bool(text.valid) != bool(text.test):
        raise StatespanError("[text] gives one of valid and test; give both, or train alone to have it split")
    readers = {
        "": corpora.read,
        "text": corpora.read_text,
        "tagged": corpora.read_tagged,
        "conllu": corpora.read_conllu,
    }
    if text.form not in readers:
        raise StatespanError(f"[text] form = {text.form!r} must be 'text', 'tagged' or 'conllu', or left out")
    reader = readers[text.form]
    if text.valid:
        return corpora.Corpus(name, *(reader(where(path)) for path in (text.train, text.valid, text.test)))
    return corpora.split(reader(where(text.train)), name)


def store(material: Material, path: Path) -> None:
    """Write encoded text for the workers."""
    tensors = {}
    for part in ("train", "valid", "test", "train_tags", "test_tags"):
        sentences = getattr(material, part)
        if sentences is not None:
            tensors[part] = torch.cat(sentences)
            tensors[f"{part}.lengths"] = torch.tensor([len(s) for s in sentences])
    header = {"name": material.name, "vocabulary": material.vocabulary.to_json(), "tags": json.dumps(material.tags)}
    write_bytes(path, to_bytes({k: v.contiguous() for k, v in tensors.items()}, header))


def fetch(path: Path) -> Material:
    """Read what `store` wrote."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        meta = file.metadata()
    tensors = load_file(str(path))
    parts = {
        part: list(tensors[part].split(tensors[f"{part}.lengths"].tolist())) if part in tensors else None
        for part in ("train", "valid", "test", "train_tags", "test_tags")
    }
    tags = tuple(json.loads(meta["tags"]))
    return Material(name=meta["name"], vocabulary=Vocabulary.from_json(meta["vocabulary"]), tags=tags, **parts)


# ------------------------------------------------------------------------------------------------ one rung


def build(entry: Entry, material: Material, seed: int) -> Any:
    """The model of a row, its output bias started at the log frequencies of the symbols."""
    size: dict[str, int] = {"width": entry.width} if entry.width else {"parameters": entry.parameters}
    model = ladder(
        entry.rung,
        vocabulary=len(material.vocabulary),
        start=material.vocabulary.eos,
        tied=entry.tied,
        dropout=entry.dropout,
        spread=entry.spread,
        seed=seed,
        **size,
    )
    with torch.no_grad():
        model.emission.table.bias.copy_(frequencies(material).log())
    return model


def frequencies(material: Material) -> Tensor:
    """How often each symbol stands in the training text, one added to each count; sums to one."""
    counts = torch.bincount(torch.cat(material.train), minlength=len(material.vocabulary)).float() + 1
    return counts / counts.sum()


def describe(entry: Entry, rung: Rung, model: Any) -> dict[str, Any]:
    """What the report says of a row before any training."""
    group = "hmm" if entry.rung.startswith("hmm") else "elman" if entry.rung.startswith("elman") else "reference"
    return {
        "name": entry.name,
        "rung": entry.rung,
        "group": group,
        "title": entry.name,
        "equations": rung.equations,
        "condition": rung.condition.words,
        "move": rung.move.words,
        "feed": rung.feed.words,
        "score": rung.score.words,
        "method": rung.method,
        "exact": rung.exact,
        "trainer": entry.trainer,
        "own_width": bool(entry.width and entry.parameters),
        "width": model.emission.table.width,
        "parameters": sum(p.numel() for p in model.parameters()),
        "learning_rate": entry.how.learning_rate if entry.trainer != "EM" else None,
        "optimizer": entry.how.optimizer if entry.trainer != "EM" else None,
        "epochs": entry.how.epochs if entry.trainer != "EM" else entry.iterations,
        "paper_perplexity": rung.paper if entry.name in LADDER else None,
        "note": "",
    }


def train(
    entry: Entry,
    material: Material,
    seed: int,
    folder: Path,
    report: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Train and score one row, save its model in `folder`, and return its record."""
    began = time.perf_counter()
    rung, model = find(entry.rung), build(entry, material, seed)
    record = describe(entry, rung, model)
    valid, test = (stream(part, VALID_COLUMNS) for part in (material.valid, material.test))
    curve: list[dict[str, float | None]] = []
    rate = 0.0
    if entry.trainer.startswith("EM"):
        rate = _by_em(entry, model, material, valid, curve, report)
    if entry.trainer.endswith("SGD"):
        offset = curve[-1]["seconds"] if curve else 0.0
        done = curve[-1]["epoch"] if curve else 0.0
        columns = stream(material.train, entry.how.batch)
        trainer = Trainer(model, columns, valid, entry.how, seed, folder / "checkpoint.safetensors", entry.name)
        trainer.run(report)
        rate = trainer.state.tokens / max(trainer.state.seconds, 1e-9)
        for point in trainer.curve:
            curve.append(point | {"seconds": point["seconds"] + offset, "epoch": point["epoch"] + done})
    model.eval()
    for name, part, columns in (("valid", material.valid, valid), ("test", material.test, test)):
        record[f"{name}_perplexity"] = score_stream(model, columns).perplexity
        record[f"{name}_perplexity_independent"] = score_sentences(model, part).perplexity
    record |= {"curve": curve, "tokens_per_second": rate, "samples": samples(model, material.vocabulary, seed)}
    record |= state_words(model, rung, material, valid)
    record["tags"] = tags(model, rung, material) if material.tags else None
    record["seconds"] = time.perf_counter() - began
    extra = {"vocabulary": material.vocabulary.to_json(), "rung": entry.rung, "text": material.name}
    save(model, folder / "model.safetensors", extra)
    return record


def _by_em(
    entry: Entry,
    model: Any,
    material: Material,
    valid: Tensor,
    curve: list[dict[str, float | None]],
    report: Callable[[Progress], None],
) -> float:
    """Expectation maximisation on sentences one by one; returns symbols a second."""
    from statespan.language.training import batches

    tokens = sum(len(s) for s in material.train)
    total, began = tokens * entry.iterations, time.perf_counter()
    unigram = frequencies(material)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # a start with each state on its own random half of the symbols
        half = torch.rand(len(unigram), model.emission.table.width, generator=generator) < 0.5
        probs = unigram[:, None] * (0.05 + half)
        model.emission.set_probs((probs / probs.sum(0)).T)
    groups = batches(material.train, 2**15)

    def seen(iteration: int, likelihood: float) -> None:
        seconds = time.perf_counter() - began
        point: dict[str, float | None] = {"epoch": float(iteration), "seconds": seconds}
        point["train_perplexity"] = math.exp(-likelihood / tokens)
        last = iteration == entry.iterations
        point["valid_perplexity"] = score_stream(model, valid).perplexity if last or iteration % 3 == 0 else None
        if point["valid_perplexity"] is not None:
            curve.append(point)
        report(Progress(iteration * tokens, total, iteration * tokens / seconds, point["train_perplexity"], math.nan))

    em = EM(
        iterations=entry.iterations,
        tolerance=0.0,
        prior=(0.1, 0.1, entry.prior * unigram[:, None]),
        callback=seen,
    )
    em.fit_batches(model, groups)
    return total / (time.perf_counter() - began)


@torch.no_grad()
def samples(model: Any, vocabulary: Vocabulary, seed: int, count: int = 3, length: int = 24) -> list[str]:
    """A few sentences drawn from the model, as text."""
    _, words = model.sample(count, length, seed=seed)
    texts = []
    for row in words.tolist():
        if vocabulary.eos in row[4:]:
            row = row[: 4 + row[4:].index(vocabulary.eos)]
        texts.append(" ".join(w for w in vocabulary.decode(row) if w not in ("<eos>",)))
    return texts


@torch.no_grad()
def state_words(
    model: Any, rung: Rung, material: Material, valid: Tensor, states: int = 24, words: int = 10
) -> dict[str, Any]:
    """The likeliest words of the most used states, where the state emits words by itself."""
    if not (rung.simplex and hasattr(model.emission, "table") and rung.score.name == "mixture"):
        return {"state_words": None, "state_usage": None}
    method = method_for(model)
    usage = torch.zeros(model.emission.table.width, dtype=torch.float64)
    window = observe(valid[:400])
    filtered = run(model, method, window, None, ("filtered",)).filtered.state.probs
    usage = filtered.double().sum((0, 1)) / filtered.sum()
    order = usage.argsort(descending=True)[:states]
    log = model.emission.table.log_probs()[:, order]
    best = log.topk(min(words, len(log)), 0).indices.T
    return {
        "state_words": [material.vocabulary.decode(row) for row in best],
        "state_usage": usage[order].tolist(),
    }


@torch.no_grad()
def tags(model: Any, rung: Rung, material: Material) -> dict[str, float | None]:
    """Tags of the next-word distribution for every rung, and of states where the state is a distribution."""
    method, vocabulary = method_for(model), len(material.vocabulary)
    assert material.train_tags is not None and material.test_tags is not None
    count = len(material.tags)
    table = tagging.tag_given_word(torch.cat(material.train), torch.cat(material.train_tags), vocabulary, count)
    words, gold = stream(material.test, VALID_COLUMNS), stream(material.test_tags, VALID_COLUMNS)
    next_word = tagging.Tally(0, 0)
    for chunk, beliefs in _beliefs(model, method, words, ("predicted",)):
        predicted = method.emit(model, method.constants(model), beliefs.predicted, None)
        flat = predicted.logits.flatten(0, 1)
        next_word = next_word.plus(tagging.next_word_tag_accuracy(flat, table, gold[chunk].flatten()))
    result: dict[str, float | None] = {"next_word": next_word.accuracy}
    result |= dict.fromkeys(("states_prefix", "states_filtered", "states_viterbi", "many_to_one", "v_measure"))
    if not rung.simplex:
        return result
    learn, learnt = stream(material.train, 32), stream(material.train_tags, 32)
    width = model.emission.table.width
    for name, which in (("states_prefix", "predicted"), ("states_filtered", "filtered")):
        if which == "predicted" and rung.move.yields != 3:
            continue
        sums = torch.zeros(width, count, dtype=torch.float64)
        for chunk, beliefs in _beliefs(model, method, learn, (which,)):
            probs = _probs(getattr(beliefs, which)).flatten(0, 1).double()
            tag = learnt[chunk].flatten()
            sums += probs[tag >= 0].T @ torch.nn.functional.one_hot(tag[tag >= 0], count).double()
        p_tag = (sums + 1e-9) / (sums + 1e-9).sum(-1, keepdim=True)
        tally = tagging.Tally(0, 0)
        for chunk, beliefs in _beliefs(model, method, words, (which,)):
            probs = _probs(getattr(beliefs, which)).flatten(0, 1).double()
            tally = tally.plus(tagging.through_counts(probs, p_tag, gold[chunk].flatten()))
        result[name] = tally.accuracy
    if isinstance(method, Forward):
        paths = model.decode(list(material.test))
        known = model.decode(list(material.train[:2000]))
        p_tag = tagging.tag_given_state(torch.cat(known), torch.cat(material.train_tags[:2000]), width, count)
        states, gold_flat = torch.cat(paths), torch.cat(material.test_tags)
        result["states_viterbi"] = tagging.through_counts(states, p_tag, gold_flat).accuracy
        result["many_to_one"] = tagging.many_to_one(states, gold_flat, width, count)
        result["v_measure"] = tagging.v_measure(states, gold_flat).v
    return result


def _probs(belief: Any) -> Tensor:
    """The probabilities in a belief about a distribution."""
    return belief.state[0]


def _beliefs(model: Any, method: Any, words: Tensor, keep: tuple[str, ...]) -> Iterator[tuple[slice, Any]]:
    """Run a stream with its belief carried, window by window: the window's rows and what was kept."""
    constants, belief = method.constants(model), None
    for start in range(0, len(words), 64):
        window = words[start : start + 64]
        trace = run(model, method, observe(window), belief, (*keep, "last"), constants)
        belief = trace.last
        yield slice(start, start + 64), trace


# ------------------------------------------------------------------------------------------- all of them


def folder_of(out: Path, entry: Entry) -> Path:
    """Where a row's model, checkpoint and record lie."""
    return out / entry.name.replace("/", "-").replace(" ", "-").replace(",", "")


def stamp(entry: Entry, recipe: Recipe) -> str:
    """What a finished row depends on; a row with another stamp is trained again."""
    return json.dumps([asdict(entry), asdict(recipe.text), recipe.seed], sort_keys=True)


def finished(out: Path, entry: Entry, recipe: Recipe) -> dict[str, Any] | None:
    """The record of a row that is done, if it was done with these settings."""
    path = folder_of(out, entry) / "record.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept["record"] if kept.get("stamp") == stamp(entry, recipe) else None


def _work(todo: Any, said: Any, source: str, out: str, recipe: Recipe) -> None:
    """A worker process: takes rows until there are none, says how it goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    material = fetch(Path(source))
    while True:
        try:
            entry = todo.get_nowait()
        except queue.Empty:
            break
        folder = folder_of(Path(out), entry)
        said.put(("start", entry.name, None))
        try:
            record = train(entry, material, recipe.seed, folder, lambda p, n=entry.name: said.put(("progress", n, p)))
            content = json.dumps({"stamp": stamp(entry, recipe), "record": record})
            write_bytes(folder / "record.json", content.encode())
            (folder / "checkpoint.safetensors").unlink(missing_ok=True)
            said.put(("done", entry.name, record))
        except StatespanError as error:
            said.put(("failed", entry.name, str(error)))
        except Exception as error:
            said.put(("failed", entry.name, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
    said.put(("end", "", None))


class Estimate(NamedTuple):
    """Seconds each row should take on one thread, and all of them on the workers."""

    rows: dict[str, float]
    total: float


def estimate(recipe: Recipe, entries: list[Entry], material: Material) -> Estimate:
    """Time one window of each row, and say how long the run will take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tokens = sum(len(s) for s in material.train)
    rows: dict[str, float] = {}
    kept: dict[tuple, float] = {}
    for entry in entries:
        how = replace(entry.how, epochs=1)
        size = (entry.rung, entry.width, entry.parameters, how.batch, how.window)
        if size not in kept:
            model = build(entry, material, recipe.seed)
            words = stream(material.train, how.batch)[: 2 * how.window]
            trainer = Trainer(model, words, words[:1], how, name=entry.name)
            trainer._step()
            began = time.perf_counter()
            if len(trainer.starts) > 1:
                trainer._step()
            kept[size] = (time.perf_counter() - began) / max(int((words[how.window :] >= 0).sum()), 1)
        passes = {"SGD": how.epochs and entry.how.epochs, "EM": 0.6 * entry.iterations}
        count = sum(v for k, v in passes.items() if k in entry.trainer)
        rows[entry.name] = kept[size] * tokens * count + 2.0
    torch.set_num_threads(threads)
    workers = max(1, min(recipe.workers, len(entries)))
    longest = max(rows.values(), default=0.0)
    return Estimate(rows, max(sum(rows.values()) / workers, longest) + 5.0)


class Event(NamedTuple):
    """What a run says while it goes: kind is start, progress, done or failed."""

    kind: str
    name: str
    value: Any


def execute(recipe: Recipe, entries: list[Entry], source: Path, out: Path, order: dict[str, float]) -> Iterator[Event]:
    """Train rows in worker processes, the longest first; yields events until all are done.

    Args:
        recipe: the recipe.
        entries: the rows to train.
        source: what `store` wrote.
        out: the run's folder.
        order: seconds each row should take.
    """
    context = multiprocessing.get_context("spawn")
    todo, said = context.Queue(), context.Queue()
    for entry in sorted(entries, key=lambda e: -order.get(e.name, 0.0)):
        todo.put(entry)
    count = max(1, min(recipe.workers, len(entries)))
    arguments = (todo, said, str(source), str(out), recipe)
    workers = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(count)]
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    for worker in workers:
        worker.start()
    ended = 0
    try:
        while ended < count:
            try:
                event = Event(*said.get(timeout=1.0))
            except queue.Empty:
                if not any(worker.is_alive() for worker in workers):
                    break
                continue
            if event.kind == "end":
                ended += 1
            else:
                yield event
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(5)


def references(recipe: Recipe, material: Material) -> list[dict[str, Any]]:
    """Interpolated Kneser-Ney counts, the n-gram yardstick."""
    records = []
    for order in recipe.references:
        began = time.perf_counter()
        name = {2: "Kneser-Ney bigram", 3: "Kneser-Ney trigram"}.get(order, f"Kneser-Ney {order}-gram")
        # PTB's own <unk> was put there by its makers; ours stands for the rare words, and every symbol is trained.
        counts = KneserNey(order).fit(material.train, len(material.vocabulary))
        record: dict[str, Any] = {
            "name": name, "rung": name, "group": "reference", "title": name, "equations": "", "condition": "none",
            "move": "no state", "feed": f"last {order - 1} words", "score": "discounted counts", "method": "counts",
            "exact": True, "trainer": "counts", "own_width": True, "width": None, "parameters": None,
            "learning_rate": None, "optimizer": None, "epochs": 1, "curve": [], "samples": [], "state_words": None,
            "tags": None, "paper_perplexity": None, "note": "",
        }  # fmt: skip
        for part in ("valid", "test"):
            sentences = getattr(material, part)
            record[f"{part}_perplexity"] = counts.perplexity(sentences, independent=order == 2)
            record[f"{part}_perplexity_independent"] = counts.perplexity(sentences, independent=True)
        seconds = time.perf_counter() - began
        record |= {"seconds": seconds, "tokens_per_second": sum(len(s) for s in material.train) / seconds}
        records.append(record)
    return records


def summary(
    recipe: Recipe, material: Material, records: list[dict[str, Any]], command: str, began: float, seconds: float
) -> dict[str, Any]:
    """All that the report needs, as `results.json` holds it."""
    words = torch.cat(material.test)
    unknown = float((words == material.vocabulary.unk).float().mean())
    return {
        "title": recipe.title,
        "corpus": {
            "name": material.name,
            "train_tokens": sum(len(s) for s in material.train),
            "valid_tokens": sum(len(s) for s in material.valid),
            "test_tokens": len(words),
            "vocabulary": len(material.vocabulary),
            "unknown_rate": unknown,
            "tags": len(material.tags) or None,
        },
        "budget": max((e.parameters for e in recipe.entries), default=0) or None,
        "command": command,
        "started": datetime.datetime.fromtimestamp(began).isoformat(timespec="seconds"),
        "seconds": seconds,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, torch {torch.__version__}",
        "version": __version__,
        "seed": recipe.seed,
        "paper": recipe.paper,
        "rungs": records,
    }


def generate(path: str, prompt: str, length: int, temperature: float, seed: int | None) -> str:
    """Text that continues a prompt.

    Args:
        path: a model of text that a run saved.
        prompt: words the model knows, separated by spaces; unknown ones are read as `<unk>`.
        length: symbols to add at most; the end of a sentence stops it.
        temperature: below 1 sharper, above 1 flatter.
        seed: makes the text repeatable.

    Raises:
        StatespanError: the model was not saved with a vocabulary.
    """
    from statespan.part import seeded
    from statespan.sequences import Sequences

    model, extra = load_with_extra(path)
    if "vocabulary" not in extra:
        raise StatespanError(f"{path}: this model was saved without a vocabulary; generate needs one of a ladder run")
    if temperature <= 0 or length < 1:
        raise StatespanError("generate: temperature must be positive and length at least 1")
    vocabulary = Vocabulary.from_json(extra["vocabulary"])
    model.eval()
    method = method_for(model)
    words = prompt.lower().split()
    ids = [vocabulary.eos, *vocabulary.encode(words).tolist()]
    unknown = [w for w in words if w not in vocabulary]
    out: list[int] = []
    with torch.no_grad(), seeded(seed):
        constants = method.constants(model)
        data = Sequences(y=torch.tensor(ids)[:, None])
        belief = run(model, method, data, None, ("last",), constants).last
        blank = Sequences(observed=torch.zeros(1, 1, dtype=torch.bool))
        for _ in range(length):
            predicted = run(model, method, blank, belief, ("predicted",), constants).predicted
            logits = method.emit(model, constants, predicted, None).logits[0, 0] / temperature
            logits[vocabulary.unk] = -torch.inf
            word = torch.multinomial(logits.softmax(-1), 1)
            if int(word) == vocabulary.eos:
                break
            out.append(int(word))
            belief = run(model, method, Sequences(y=word[None]), belief, ("last",), constants).last
    text = " ".join([*(w if w in vocabulary else "<unk>" for w in words), *vocabulary.decode(out)])
    return text + (f"\n(not in the vocabulary: {', '.join(unknown)})" if unknown else "")
