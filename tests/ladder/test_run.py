"""A run of the ladder: its text, its rows, their findings against brute force, its workers, its results."""

import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import signal
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor

import statespan as ss
from statespan.ladder import findings, generate, material, records, row, run, workers
from statespan.ladder.estimate import estimate
from statespan.ladder.material import Material
from statespan.ladder.recipe import Entry, Recipe, Text
from statespan.ladder.rungs import find
from statespan.language import tagging
from statespan.language.classes import word_classes
from statespan.language.scoring import score_stream
from statespan.language.training import Training
from statespan.language.vocabulary import Vocabulary, stream

EXAMPLE = json.loads((Path(__file__).parent / "results_example.json").read_text())["rungs"]
HOW = Training(learning_rate=0.05, batch=4, window=5, epochs=1, evaluations=2)
PAIRS = [("the", "D"), ("a", "D"), ("dog", "N"), ("cat", "N"), ("runs", "V"), ("sees", "V"), ("runs", "N")]


def tagged_text(count: int, seed: int = 0) -> list[str]:
    """Sentences of word/TAG, of 1 to 4 words; `runs` is a verb or a noun."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 5, (count,), generator=generator).tolist()
    picks = [torch.randint(0, len(PAIRS), (n,), generator=generator).tolist() for n in lengths]
    return [" ".join("/".join(PAIRS[i]) for i in pick) for pick in picks]


@pytest.fixture(scope="module")
def tagged(tmp_path_factory) -> Material:
    folder = tmp_path_factory.mktemp("text")
    for part, count, seed in (("train", 60, 0), ("valid", 12, 1), ("test", 24, 2)):
        (folder / f"{part}.tagged").write_text("\n".join(tagged_text(count, seed)))
    return material.read(Text(train="train.tagged", valid="valid.tagged", test="test.tagged", name="toy"), folder)


def entry(rung: str, **options) -> Entry:
    return Entry(**{"name": rung, "rung": rung, "width": 4, "how": HOW, "spread": 0.5} | options)


def built(rung: str, text: Material):
    """A model of the toy text whose distributions are far from uniform."""
    made = row.build(entry(rung), text, 1).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
    return made


# --------------------------------------------------------------------------------------------------- text


def test_a_text_and_its_tags_stand_side_by_side(tagged):
    assert tagged.name == "toy" and tagged.tags == ("D", "N", "V")
    assert len(tagged.vocabulary) == 2 + len({word for word, _ in PAIRS})
    for words, tags in ((tagged.train, tagged.train_tags), (tagged.test, tagged.test_tags)):
        for sentence, gold in zip(words, tags, strict=True):
            assert len(sentence) == len(gold)
            assert sentence[-1] == tagged.vocabulary.eos and gold[-1] == -1
            for word, tag in zip(tagged.vocabulary.decode(sentence[:-1]), gold[:-1].tolist(), strict=True):
                assert (word, tagged.tags[tag]) in PAIRS


def test_a_text_is_the_same_for_the_workers(tagged, tmp_path):
    material.store(tagged, tmp_path / "t")
    again = material.fetch(tmp_path / "t")
    assert again.digest == tagged.digest and again.vocabulary == tagged.vocabulary and again.tags == tagged.tags
    for part in (*material.PARTS, *material.TAGS):
        assert all(torch.equal(a, b) for a, b in zip(getattr(again, part), getattr(tagged, part), strict=True))
    assert tagged._replace(test=tagged.test[1:]).digest != tagged.digest


def test_classes_of_words_are_found_once(tagged, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(material, "word_classes", lambda *given: asked.append(given) or word_classes(*given))
    own, symbols = tagged._replace(folder=tmp_path), len(tagged.vocabulary)
    plain = word_classes(torch.cat(tagged.train), symbols, 3)
    for text, times in ((own, 1), (own, 1), (own._replace(valid=own.test, test=own.valid), 2)):
        found = text.classes(3)
        assert torch.equal(found.owner, plain.owner) and torch.equal(found.pairs, plain.pairs)
        assert len(asked) == times, "a text that differs has its own"


def test_one_file_is_split_and_characters_leave_tags_behind(tmp_path):
    (tmp_path / "one.tagged").write_text("\n".join(tagged_text(40)))
    whole = material.read(Text(train="one.tagged"), tmp_path)
    assert [len(p) for p in (whole.train, whole.valid, whole.test)] == [36, 2, 2]
    assert sum(map(len, whole.train)) == whole.tokens
    letters = material.read(Text(train="one.tagged", level="characters"), tmp_path)
    assert letters.level == "characters" and not letters.tags and letters.train_tags is None
    assert set("dogcat_") <= set(letters.vocabulary.words)
    assert len(material.read(Text(train="one.tagged", share=0.5), tmp_path).train) == 18
    small = material.read(Text(train="one.tagged", vocabulary=5), tmp_path)
    assert len(small.vocabulary) == 5 and any(small.vocabulary.unk in s for s in small.test)
    with pytest.raises(ss.StatespanError, match=r"nope.txt: there is no such file; .* --data"):
        material.read(Text(train="nope.txt"), tmp_path)


def test_a_tag_of_the_test_text_alone_is_never_right(tmp_path):
    (tmp_path / "a.tagged").write_text("x/A y/B\n" * 4)
    (tmp_path / "b.tagged").write_text("x/A y/Z\n" * 2)
    (tmp_path / "map").write_text("A C\nB C\nZ E\n")
    text = Text(train="a.tagged", valid="a.tagged", test="b.tagged")
    assert material.read(text, tmp_path).tags == ("A", "B", "Z")
    coarse = material.read(dataclasses.replace(text, universal="map"), tmp_path)
    assert coarse.tags == ("C", "E")
    assert findings.tags(row.build(entry("hmm"), coarse, 0), find("hmm"), coarse)["next_word"] == 0.5


def test_frequencies_are_of_the_training_text(tagged):
    counts = torch.bincount(torch.cat(tagged.train), minlength=len(tagged.vocabulary))
    torch.testing.assert_close(tagged.frequencies(), (counts + 1) / (counts + 1).sum())


# --------------------------------------------------------------------------------------------------- tags


def next_words(made, prefix: list[int]) -> Tensor:
    """p(w | prefix) for every w, from whole-sequence log-probabilities."""
    with torch.no_grad():
        return made.log_prob([[*prefix, w] for w in range(made.emission.table.symbols)]).double().softmax(0)


@pytest.mark.parametrize("rung", ["hmm", "hmm/addition-raw", "hmm/sigmoid", "elman", "lstm", "bigram"])
def test_the_next_words_tag_by_brute_force(rung, tagged, monkeypatch):
    monkeypatch.setattr(findings, "CHUNK", 7 * findings.COLUMNS * len(tagged.vocabulary))  # chunks of 7 rows
    made = built(rung, tagged)
    counts = torch.zeros(len(tagged.vocabulary), 3, dtype=torch.float64)
    for word, tag in zip(torch.cat(tagged.train).tolist(), torch.cat(tagged.train_tags).tolist(), strict=True):
        if tag >= 0:
            counts[word, tag] += 1
    counts[tagged.vocabulary.unk] = counts.sum(0)  # never seen: as all words
    table = counts / counts.sum(1, keepdim=True).clamp_min(1)
    table[tagged.vocabulary.eos] = 0.0  # no mass
    columns, gold = stream(tagged.test, 10), stream(tagged.test_tags, 10)
    right = counted = 0
    for column, tags in zip(columns.T, gold.T, strict=True):
        for t, tag in enumerate(tags.tolist()):
            if tag < 0:
                continue
            right += int((next_words(made, column[:t].tolist()) @ table).argmax()) == tag
            counted += 1
    found = findings.tags(made, find(rung), tagged)
    assert counted == sum(len(s) - 1 for s in tagged.test)
    assert found["next_word"] == pytest.approx(right / counted, abs=1e-12)


def by_hand(made, columns: Tensor) -> tuple[Tensor, Tensor]:
    """An HMM's beliefs before and after each word, (T, B, K) each, by the textbook's recursion."""
    move, emit = made.transition.logits.softmax(-1).double(), made.emission.table.log_probs().exp().double()
    before = torch.zeros(*columns.shape, len(move), dtype=torch.float64)
    after = before.clone()
    for b in range(columns.shape[1]):
        state = made.initial.logits.softmax(-1).double()
        for t, word in enumerate(columns[:, b].tolist()):
            state = state if t == 0 else state @ move
            before[t, b] = state
            state = state * emit[word] if word >= 0 else state
            state = state / state.sum()
            after[t, b] = state
    return before.detach(), after.detach()


def best_path(made, words: list[int]) -> list[int]:
    """The likeliest of all K^T paths."""
    first, move = (x.logits.log_softmax(-1).tolist() for x in (made.initial, made.transition))
    emit = made.emission.table.log_probs().tolist()

    def score(path: tuple[int, ...]) -> float:
        moves = sum(move[a][b] for a, b in itertools.pairwise(path))
        return first[path[0]] + moves + sum(emit[w][k] for w, k in zip(words, path, strict=True))

    return list(max(itertools.product(range(len(first)), repeat=len(words)), key=score))


def test_the_states_tags_by_brute_force(tagged, monkeypatch):
    monkeypatch.setattr(findings, "CHUNK", 3 * findings.LEARN_COLUMNS * 4)
    made = built("hmm", tagged)
    found = findings.tags(made, find("hmm"), tagged)
    learn, learnt = stream(tagged.train, 32), stream(tagged.train_tags, 32)
    words, gold = stream(tagged.test, 10), stream(tagged.test_tags, 10)
    pairs = zip(("states_prefix", "states_filtered"), by_hand(made, learn), by_hand(made, words), strict=True)
    for name, known, asked in pairs:
        counts = torch.zeros(4, 3, dtype=torch.float64)
        for probs, tag in zip(known.flatten(0, 1), learnt.flatten().tolist(), strict=True):
            if tag >= 0:
                counts[:, tag] += probs
        table = counts / counts.sum(1, keepdim=True)
        guessed = (asked.flatten(0, 1) @ table).argmax(1)
        there = gold.flatten() >= 0
        accuracy = float((guessed == gold.flatten())[there].double().mean())
        assert found[name] == pytest.approx(accuracy, abs=1e-12)


def test_the_best_paths_tags_by_enumeration(tagged):
    made = built("hmm", tagged)
    found = findings.tags(made, find("hmm"), tagged)
    counts = torch.zeros(4, 3)
    for words, tags in zip(tagged.train, tagged.train_tags, strict=True):
        for state, tag in zip(best_path(made, words.tolist()), tags.tolist(), strict=True):
            if tag >= 0:
                counts[state, tag] += 1
    name = torch.where(counts.sum(1) > 0, counts.argmax(1), counts.sum(0).argmax())
    paths = [best_path(made, words.tolist()) for words in tagged.test]
    pairs = [
        (state, tag)
        for path, tags in zip(paths, tagged.test_tags, strict=True)
        for state, tag in zip(path, tags.tolist(), strict=True)
        if tag >= 0
    ]
    assert found["states_viterbi"] == pytest.approx(sum(name[s] == t for s, t in pairs) / len(pairs))
    most = sum(max(sum(p == (s, t) for p in pairs) for t in range(3)) for s in range(4))
    assert found["many_to_one"] == pytest.approx(most / len(pairs))
    states, tags = torch.tensor(pairs).T
    assert found["v_measure"] == pytest.approx(tagging.v_measure(states, tags).v)


NONE, PREFIX, WORD = (False, False, False), (True, False, False), (False, True, False)


@pytest.mark.parametrize(
    ("rung", "has"),
    [
        *(("hmm", (True, True, True)), ("hmm/gated", (True, True, True)), ("hmm/late-emission", (True, True, False))),
        *(("hmm/late-transition", (True, True, False)), ("hmm/sigmoid", WORD), ("hmm/sigmoid+late-emission", WORD)),
        *(("elman/softmax", PREFIX), ("elman/softmax+hmm-emission", PREFIX), ("elman", NONE), ("lstm", NONE)),
    ],
)
def test_states_have_tags_where_they_are_distributions(rung, has, tagged):
    """(before the word, once it is seen, whole sentence): a word does not change the state of an Elman rung."""
    found = findings.tags(built(rung, tagged), find(rung), tagged)
    assert found["next_word"] is not None
    assert tuple(found[f"states_{name}"] is not None for name in ("prefix", "filtered", "viterbi")) == has
    assert (found["many_to_one"] is not None, found["v_measure"] is not None) == (has[2], has[2])


def test_a_model_that_knows_the_grammar_knows_the_tags(tmp_path):
    """D N V D N V ...: two states' worth of past decide the next tag, whatever the word."""
    generator = torch.Generator().manual_seed(0)
    words = [["the", "a"], ["dog", "cat", "cow"], ["runs", "sees"]]
    lines = []
    for _ in range(60):
        picks = torch.randint(0, 6, (6,), generator=generator).tolist()
        lines.append(" ".join(f"{words[t % 3][p % len(words[t % 3])]}/{'DNV'[t % 3]}" for t, p in enumerate(picks)))
    (tmp_path / "g.tagged").write_text("\n".join(lines))
    text = material.read(Text(train="g.tagged"), tmp_path)
    made = row.build(entry("hmm", width=7), text, 0)
    with torch.no_grad():  # states 0..5 for the six places, 6 for the end
        made.initial.logits.copy_(torch.eye(7)[0] * 40)
        made.transition.logits.copy_(torch.roll(torch.eye(7), 1, 1) * 40)
        made.emission.table.weight.fill_(-40)
        for k in range(6):
            made.emission.table.weight[text.vocabulary.encode(words[k % 3]), k] = 0.0
        made.emission.table.weight[text.vocabulary.eos, 6] = 0.0
        made.emission.table.bias.zero_()
    found = findings.tags(made, find("hmm"), text)
    # The columns of the stream start in the middle of sentences, where this HMM begins with a determiner.
    assert found["states_viterbi"] == found["many_to_one"] == 1.0
    assert found["v_measure"] == pytest.approx(2 * 1 * (1 / math.log(6) * math.log(3)) / (1 + math.log(3, 6)))


# --------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("rung", ["hmm", "hmm/late-transition", "elman", "lstm", "hmm/sigmoid"])
def test_a_row_is_trained_scored_and_saved(rung, tagged, tmp_path):
    record = row.train(entry(rung), tagged, 0, tmp_path)
    missing = set(EXAMPLE[0]) - set(record)
    assert not missing and json.loads(json.dumps(record)) == record
    model, extra = ss.files.load_with_extra(tmp_path / row.MODEL)
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    assert record["width"] == model.emission.table.width == 4
    assert record["test_perplexity"] == pytest.approx(score_stream(model, stream(tagged.test, 10)).perplexity)
    assert Vocabulary.from_json(extra["vocabulary"]) == tagged.vocabulary and extra["rung"] == rung
    assert record["curve"][-1]["epoch"] == 1.0 and len(record["curve"]) == 2
    assert len(record["samples"]) == 3 and "<eos>" not in " ".join(record["samples"])
    states = find(rung).simplex and "mixture" in find(rung).score.name
    assert (record["state_words"] is not None) == states
    if states:
        assert record["state_usage"] == sorted(record["state_usage"], reverse=True)
        assert sum(record["state_usage"]) == pytest.approx(1.0)
        column = model.emission.table.log_probs()
        tops = {tuple(tagged.vocabulary.decode(column[:, k].topk(len(column)).indices)) for k in range(4)}
        assert {tuple(words) for words in record["state_words"]} == tops


def test_em_then_gradients_is_one_curve(tagged, tmp_path):
    seen = []
    both = entry("hmm", name="both", trainer="EM, then SGD", iterations=3, parameters=500, dropout=(0.0, 0.3, 0.0))
    record = row.train(both, tagged, 0, tmp_path, report=seen.append)
    assert [p["epoch"] for p in record["curve"]] == pytest.approx([1, 2, 3, 3 + 5 / 11, 4])
    seconds = [p["seconds"] for p in record["curve"]]
    assert seconds == sorted(seconds) and record["seconds"] >= seconds[-1]
    assert (record["epochs"], record["own_width"], record["optimizer"]) == (4, True, "adam")
    assert {p.total for p in seen} == {4 * tagged.tokens} and seen[-1].tokens == 4 * tagged.tokens
    tokens = [p.tokens for p in seen]
    assert tokens == sorted(tokens)
    alone = row.train(entry("hmm", name="em", trainer="EM", iterations=3), tagged, 0, tmp_path / "em")
    assert (alone["epochs"], alone["learning_rate"], alone["optimizer"]) == (3, None, None)
    before = [p["valid_perplexity"] for p in record["curve"][:3]]
    assert [p["valid_perplexity"] for p in alone["curve"]] == before, "EM leaves no state out"


def test_a_line_starts_where_lines_have_ended(tagged):
    made = built("hmm/addition", tagged)
    words = stream(tagged.train, findings.LEARN_COLUMNS)
    states = [
        made.filter([*words[: t + 1, b].tolist(), None]).probs[-1].double()  # of a gap, nothing but the move
        for b in range(words.shape[1])
        for t in range(len(words) - 1)
        if words[t, b] == tagged.vocabulary.eos
    ]
    row.start_after_ends(made, tagged)
    torch.testing.assert_close(
        made.initial.logits.softmax(-1).double(), torch.stack(states).mean(0), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", sorted(ss.LADDER))
def test_what_a_row_is_to_be_is_known_without_building_it(name, tagged):
    described = row.describe(entry(name, width=0, parameters=900), len(tagged.vocabulary))
    made = row.build(entry(name, width=0, parameters=900), tagged, 0)
    assert described["parameters"] == sum(p.numel() for p in made.parameters()) <= 900
    assert described["width"] == made.emission.table.width
    assert described["group"] == ("hmm" if name[:3] == "hmm" else "elman" if name[:5] == "elman" else "reference")
    (read,) = records.read({"rungs": [described]})
    guessed = {key: value for key, value in described.items() if key != "state"}
    assert read.state == records.read({"rungs": [guessed]})[0].state
    blank = row.unfinished(entry(name), len(tagged.vocabulary), "why not")
    assert set(EXAMPLE[0]) <= set(blank) and blank["note"] == "why not" and blank["test_perplexity"] is None


def test_the_bias_starts_at_the_frequencies(tagged):
    made = row.build(entry("elman", spread=1e-9), tagged, 0)
    probs = next_words(made, [])
    torch.testing.assert_close(probs.float(), tagged.frequencies(), atol=1e-6, rtol=1e-4)


def test_a_budget_that_no_width_meets_is_refused_before_anything_is_written(tagged, tmp_path):
    plan = recipe([entry("hmm", width=0, parameters=5)])
    with pytest.raises(ss.StatespanError, match="no width fits 5 parameters"):
        run.Run(plan, tagged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------- many rows


def recipe(rows: list[Entry], **options) -> Recipe:
    return Recipe("toy run", Text(train="x"), tuple(rows), **options)


def children() -> list[int]:
    """This process's children that still run."""
    return [p.pid for p in multiprocessing.active_children() if p.pid is not None]


def test_rows_in_workers_each_with_its_own_end(tagged, tmp_path):
    """One killed, one good, one whose loss explodes, one whose folder is a file, one that Ctrl-C would meet."""
    slow = dataclasses.replace(HOW, epochs=100_000)
    rows = [
        entry("lstm", name="killed", how=slow),
        entry("elman"),
        entry("lstm", name="explodes", how=dataclasses.replace(HOW, optimizer="sgd", learning_rate=1e300, clip=0.0)),
        entry("hmm", name="no place"),
        entry("gru", name="stopped", how=slow),
    ]
    names = [row.name for row in rows]
    plan = recipe(rows, seed=3, workers=1)  # of two, either might hold the row whose worker is to be killed
    done = run.Run(plan, tagged, tmp_path)
    (tmp_path / "no-place").write_text("in the way")
    expected = done.estimate()
    assert list(expected.rows) == names and expected.total > expected.rows["killed"]
    events: list[workers.Event] = []
    victim = 0
    with closing(done.train({name: -float(i) for i, name in enumerate(names)})) as happening:
        for event in happening:
            events.append(event)
            if isinstance(event, workers.Moved) and event.name == "killed" and not victim:
                (victim,) = children()
                os.kill(victim, signal.SIGKILL)
            if isinstance(event, workers.Moved) and event.name == "stopped" and len(done.failures) == 3:
                break
    assert not children(), "no worker is left"
    assert [e.name for e in events if isinstance(e, workers.Started)] == names, "the longest first"
    assert {e.name for e in events if isinstance(e, workers.Failed)} == {"killed", "explodes", "no place"}
    assert list(done.records) == ["elman"]
    assert all("\n" not in why for why in done.failures.values())
    assert "its process ended before it was done" in done.failures["killed"] and "memory" in done.failures["killed"]
    assert "rung explodes: the" in done.failures["explodes"] and "window" in done.failures["explodes"]
    assert "cannot write" in done.failures["no place"]
    assert (tmp_path / "stopped" / "checkpoint.safetensors").is_file()
    # The report tells it.
    page = done.write(done.results("statespan ladder run")).read_text()
    read = {r.name: r for r in records.read(records.load(tmp_path))}
    assert {name: read[name].finished for name in names} == {name: name == "elman" for name in names}
    assert "--resume" in read["stopped"].note and "window" in read["explodes"].note
    assert sum(r.counts for r in read.values()) == 2
    assert "not finished" in page and ("became inf" in page or "became nan" in page)
    assert not (tmp_path / run.TEXT).exists()
    # The same row in this process: the same numbers, whatever stands beside it.
    again = row.train(rows[1], tagged, 3, tmp_path / "again")
    assert again["test_perplexity"] == done.records["elman"]["test_perplexity"]
    # Resumed: what is done stays, the rest is tried again; with other settings or a cut record nothing stays.
    resumed = run.Run(plan, tagged, tmp_path, resume=True)
    assert resumed.records == {"elman": done.records["elman"]}
    assert [e.name for e in resumed.todo] == [name for name in names if name != "elman"]
    other = recipe([entry("elman", spread=0.4)], seed=3)
    assert run.Run(other, tagged, tmp_path, resume=True).todo == list(other.entries)
    (tmp_path / "elman" / workers.RECORD).write_text("[1, 2")
    assert not run.Run(plan, tagged, tmp_path, resume=True).records


def test_counts_are_measured_in_both_ways(tagged):
    bigram, trigram = run.references(recipe([entry("hmm")]), tagged)
    assert bigram["test_perplexity"] == bigram["test_perplexity_independent"]
    assert trigram["test_perplexity"] != trigram["test_perplexity_independent"]
    assert set(EXAMPLE[0]) <= set(bigram)
    assert [r["name"] for r in run.references(recipe([entry("hmm")], references=(3,)), tagged)] == [trigram["name"]]


def test_results_hold_no_number_that_json_lacks():
    assert run._plain({"a": [math.nan, 1.0, (math.inf,)], "b": "x", "c": None}) == {
        "a": [None, 1.0, [None]],
        "b": "x",
        "c": None,
    }


def test_an_estimate_weighs_rows(tagged):
    long = dataclasses.replace(HOW, epochs=300)
    rows = [entry("hmm", how=long), entry("hmm", name="short"), entry("hmm", name="em", trainer="EM", iterations=9)]
    found = estimate(recipe(rows), rows, tagged)
    assert found.rows["hmm"] > 20 * (found.rows["short"] - 1.2)
    assert found.total >= max(found.rows.values()) and found.rows["em"] > 0


# ----------------------------------------------------------------------------------------------- generate


def test_text_goes_on_from_a_prompt(tagged, tmp_path):
    for rung in ("hmm", "lstm", "hmm/addition-raw"):
        path = str(tmp_path / rung / row.MODEL)
        row.train(entry(rung), tagged, 0, tmp_path / rung)
        for prompt in ("", "the dog", "The zebra, dog"):
            said = generate.generate(path, prompt, 12, 1.0, 3)
            assert said == generate.generate(path, prompt, 12, 1.0, 3)
            first, *rest = said.split("\n")
            if "zebra" in prompt:
                assert first.startswith("the <unk> <unk> dog") and rest == ["(not in the vocabulary: zebra, ,)"]
            else:
                assert first.startswith(prompt) and not rest
            assert len(first.split()) <= 12 + len(prompt.replace(",", " ,").split())
            assert set(first.split()) <= {*tagged.vocabulary.words, ","} - {"<eos>"}
    with pytest.raises(ss.StatespanError, match=r"temperature = 0.0 must be positive"):
        generate.generate(path, "", 3, 0.0, None)
    with pytest.raises(ss.StatespanError, match=r"length = 0 must be at least 1"):
        generate.generate(path, "", 0, 1.0, None)


def test_generated_words_are_drawn_from_the_models_own_distribution(tagged, tmp_path, monkeypatch):
    made, vocabulary = built("hmm", tagged), tagged.vocabulary
    path = str(tmp_path / "m.safetensors")
    ss.files.save(made, path, {"vocabulary": vocabulary.to_json()})
    drawn_from = []

    def draw(probs: Tensor, count: int) -> Tensor:
        drawn_from.append(probs)
        return torch.tensor([vocabulary.encode(["dog"])[0] if len(drawn_from) == 1 else vocabulary.eos])

    monkeypatch.setattr(torch, "multinomial", draw)
    assert generate.generate(path, "the", 9, 0.5, 0) == "the dog"
    begun = [vocabulary.eos, *vocabulary.encode(["the"]).tolist()]
    for given, probs in zip((begun, [*begun, *vocabulary.encode(["dog"]).tolist()]), drawn_from, strict=True):
        want = next_words(made, given) ** 2  # temperature one half
        want[vocabulary.unk] = 0.0
        torch.testing.assert_close(probs.double(), want / want.sum(), atol=1e-5, rtol=1e-3)


def test_characters_are_joined_without_spaces(tmp_path):
    (tmp_path / "c.txt").write_text("ab ba ab\nba ab\n" * 6)
    text = material.read(Text(train="c.txt", level="characters"), tmp_path)
    row.train(entry("elman"), text, 0, tmp_path)
    said = generate.generate(str(tmp_path / row.MODEL), "ab b", 5, 1.0, 0)
    assert said.startswith("ab b") and len(said) <= 9 and set(said) <= set("ab ")


def test_a_model_without_words_or_cut_short(tmp_path):
    path = tmp_path / "plain.safetensors"
    ss.hmm(states=2, emission=ss.Categorical(3)).save(path)
    with pytest.raises(ss.StatespanError, match="has no vocabulary; give the model"):
        generate.generate(str(path), "", 3, 1.0, None)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ss.StatespanError, match="not a whole"):
        generate.generate(str(path), "", 3, 1.0, None)
