"""The ladder's report: it is whole, it is safe, and it survives a run that stopped half way."""

import copy
import itertools
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from statespan.ladder import charts, records, report, steps, terminal

EXAMPLE = Path(__file__).with_name("results_example.json")
VOID = {"meta", "link", "br", "wbr", "img", "hr", "input"}


@pytest.fixture(scope="module")
def example():
    return json.loads(EXAMPLE.read_text(encoding="utf-8"))


@pytest.fixture
def results(example):
    return copy.deepcopy(example)


class Page(HTMLParser):
    """Checks that tags nest, and gathers what a reader would meet."""

    def __init__(self, page):
        super().__init__()
        self.open, self.attributes, self.ids, self.links, self.words = [], [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value[1:] for name, value in attrs if name == "href" and value.startswith("#")]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:], self.getpos())
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def check(page):
    """A page that nests, has no scripts, fetches nothing and whose inner links all lead somewhere."""
    found = Page(page)
    assert "<script" not in page.lower()
    assert not [a for a in found.attributes if a[1].startswith("on")]
    assert not [a for a in found.attributes if a[1] == "src" or a[0] in {"img", "iframe", "object", "embed", "base"}]
    fetched = [a for a in found.attributes if a[0] in {"link", "use"} and not a[2].startswith(("#", "data:,"))]
    assert not [a for a in fetched if a[1] in {"href", "xlink:href"}]
    assert not re.search(r"@import|url\(|https?://", page)
    assert len(found.ids) == len(set(found.ids))
    assert set(found.links) <= set(found.ids)
    assert not re.search(r"\b(nan|inf|None)\b", found.text)
    return found


def test_example_page(example):
    page = report.render(example)
    found = check(page)
    assert len(page.encode()) < 2_000_000
    for rung in example["rungs"]:
        assert rung["name"] in page
        assert rung["title"] in page
    for heading in (
        "What each step bought",
        "Parts of speech",
        "Words of the hidden states",
        "How it was run",
    ):
        assert heading in found.text
    assert "not finished" in found.text
    assert example["command"] in found.text
    assert "carried" in found.text and "independent" in found.text.lower()
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page and "@media print" in page


def test_summary_says_what_the_numbers_say(example):
    text = check(report.render(example)).text
    assert "The best is LSTM , with a test perplexity of 50.9" in text
    assert "HMM stands at 121.4 , 2.39 times as much" in text
    assert "(47 %, from 107.1 to 71.3)" in text
    assert "1 of the 23 trained rungs beats it" in text
    assert "HMM, both softmaxes late did not finish" in text


def test_walk_shares_add_up_and_join_over_a_missing_rung(results):
    taken = steps.walk(records.read(results))
    assert [s.after.name for s in taken][-2:] == ["elman", "lstm"]
    product = math.prod(s.ratio for s in taken)
    assert product == pytest.approx(50.9 / 121.4)
    by_name = {r["name"]: r for r in results["rungs"]}
    by_name["elman/multiplicative"]["test_perplexity"] = None
    joined = steps.walk(records.read(results))
    assert len(joined) == len(taken) - 1
    step = next(s for s in joined if s.after.name == "elman")
    assert step.before.name == "elman/multiplicative-one-matrix"
    assert ", and " in step.words


def test_side_steps_find_their_neighbour(results):
    beside = {s.after.name: s for s in steps.side_steps(records.read(results))}
    assert beside["hmm/addition-raw"].before.name == "hmm/addition"
    assert beside["hmm/em"].words == "trained by EM instead of SGD"
    assert beside["hmm/wide"].words == "256 wide instead of 80"
    assert "kneser-ney-5" not in beside
    results["rungs"].append(results["rungs"][0] | {"name": "mine", "from": "gru", "step": "my own change"})
    mine = next(s for s in steps.side_steps(records.read(results)) if s.after.name == "mine")
    assert (mine.before.name, mine.words) == ("gru", "my own change")


def test_every_text_is_escaped(results):
    hostile = "<script>alert('&\"')</script><b onclick=x>\x00\x1b\ud800"

    def poison(value):
        if isinstance(value, dict):
            return {k: poison(v) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v) for v in value]
        return value + hostile if isinstance(value, str) else value

    bad = poison(results)
    for rung, clean in zip(bad["rungs"], results["rungs"], strict=True):
        rung["name"] = clean["name"]  # so that the walk is still found
    page = report.render(bad)
    check(page)
    assert "<b onclick" not in page and "\x00" not in page and "\ud800" not in page
    assert "&lt;script&gt;" in page
    page.encode("utf-8")
    shown = printed(terminal.table(bad))
    assert "\x1b" not in shown


def strip(value):
    """The same with every number gone."""
    if isinstance(value, dict):
        return {k: strip(v) for k, v in value.items()}
    if isinstance(value, list):
        return [strip(v) for v in value]
    return None if isinstance(value, int | float) and not isinstance(value, bool) else value


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -1.0, "x"])
def test_unfinished_rung(results, bad):
    for key, value in results["rungs"][0].items():
        if isinstance(value, float | int) and not isinstance(value, bool):
            results["rungs"][0][key] = bad
    results["rungs"][0]["note"] = "stopped by hand"
    found = check(report.render(results))
    assert "stopped by hand" in found.text
    assert printed(terminal.table(results)).count("not finished") == 2


def test_nothing_finished(results):
    found = check(report.render(strip(results)))
    assert "No rung has finished yet." in found.text
    assert "No rung has finished" in found.text
    assert "not finished" in printed(terminal.table(strip(results)))


@pytest.mark.parametrize("results", [{}, {"rungs": []}, {"rungs": [{"name": "hmm"}]}, {"rungs": [{"name": ""}]}])
def test_almost_nothing(results):
    check(report.render(results))
    printed(terminal.table(results))


@pytest.mark.parametrize("keep", [{"hmm"}, {"hmm", "lstm"}, {"kneser-ney-2"}, {"elman", "elman/softmax"}])
def test_a_few_rungs(results, keep):
    results["rungs"] = [r for r in results["rungs"] if r["name"] in keep]
    check(report.render(results))
    printed(terminal.table(results))


def test_lstm_that_loses_and_rung_that_diverged(results):
    by_name = {r["name"]: r for r in results["rungs"]}
    by_name["lstm"]["test_perplexity"] = 130.0
    by_name["gru"]["test_perplexity"] = 4e8
    found = check(report.render(results))
    assert "did not get clearly below the HMM" in found.text
    assert "off the scale" in found.text


def test_sections_come_and_go_with_their_data(results):
    for rung in results["rungs"]:
        rung.update(tags=None, state_words=None, state_usage=None, samples=[], curve=[])
    found = check(report.render(results))
    for heading in (
        "Parts of speech",
        "Words of the hidden states",
        "Text from each rung",
        "Learning curves",
    ):
        assert heading not in found.text


def test_tags_say_what_was_seen(results):
    text = check(report.render(results)).text
    for seen in ("saw the words before", "saw the word itself too", "saw the whole sentence"):
        assert seen in text
    for rung in results["rungs"]:
        if rung["tags"]:
            rung["tags"] = {"next_word": rung["tags"]["next_word"]}
    text = check(report.render(results)).text
    assert "Parts of speech" in text and "saw the whole sentence" not in text


def test_paper_figures_only_where_asked(results):
    assert "284.6" not in report.render(results)
    results["paper"] = True
    found = check(report.render(results))
    assert "284.6" in found.text and "10 million parameters" in found.text


def test_marks_for_em_and_own_width(example):
    rungs = {r.name: r for r in records.read(example)}
    assert "EM" in charts.chips(rungs["hmm/em"]) and "own width" not in charts.chips(rungs["hmm/em"])
    assert "own width" in charts.chips(rungs["hmm/wide"])
    assert charts.chips(rungs["kneser-ney-5"]) == ""


def test_what_the_state_is(example):
    state = {r.name: r.state for r in records.read(example)}
    assert state["hmm/gated"] == "belief"
    assert state["hmm/late-transition"] == state["hmm/late-emission"] == state["elman/softmax"] == "distribution"
    assert state["hmm/sigmoid"] == state["elman"] == state["elman/multiplicative"] == "positive"
    assert state["lstm"] == state["elman/normalise-before-emit"] == "real"
    assert state["bigram"] == state["kneser-ney-2"] == "none"


def printed(table, width=100):
    console = Console(width=width, no_color=True, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_table_fits_and_keeps_ladder_order(example):
    shown = printed(terminal.table(example))
    assert max(map(len, shown.splitlines())) <= 100
    assert "…" not in shown
    lines = [line.split()[0] for line in shown.splitlines() if line.strip()]
    names = [r["name"] for r in example["rungs"]]
    assert [name for name in lines if name in names] == names


def test_table_takes_names_literally():
    shown = printed(terminal.table({"rungs": [{"name": "[bold]x[/nope]", "test_perplexity": 3.0}]}))
    assert "[bold]x[/nope]" in shown


def test_load(tmp_path, example):
    (tmp_path / "results.json").write_text(json.dumps(example), encoding="utf-8")
    assert report.load(tmp_path) == example
    assert report.load(str(tmp_path / "results.json")) == example


@pytest.mark.parametrize(
    "content",
    [None, b"", b'{"rungs": [{"name": "hmm"', b"[]", b'{"rungs": 3}', b'{"rungs": [{}]}', b"\xff\xfe{"],
)
def test_load_says_in_one_line_what_is_wrong(tmp_path, content):
    if content is not None:
        (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ValueError) as caught:
        report.load(tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "results.json") in message and "statespan ladder run" in message
    assert "\n" not in message


@pytest.mark.parametrize("low, high", [(1.0, 1.0), (1, 2), (40, 150), (50, 53), (1, 1e9)])
@pytest.mark.parametrize("log", [True, False])
def test_axis(low, high, log):
    axis = charts.Axis.around([low, None, high], log=log)
    assert 0 <= axis.at(low) <= axis.at(high) <= 100
    ticks = axis.ticks()
    assert ticks and ticks == sorted(set(ticks))
    assert all(axis.low <= t <= axis.high for t in ticks)


def test_spread_keeps_order_and_gap():
    placed = charts.spread([99.0, 10.0, 98.0, 11.0], 15, 100)
    assert placed[1] < placed[3] < placed[2] < placed[0] <= 100
    ordered = sorted(placed)
    assert min(b - a for a, b in itertools.pairwise(ordered)) >= 15


@pytest.mark.parametrize(
    "seconds, words, clock",
    [
        (None, "–", "–"),
        (3.14, "3.1 s", "0:03"),
        (41, "41 s", "0:41"),
        (59.7, "1 min 00 s", "1:00"),
        (412, "6 min 52 s", "6:52"),
        (3725, "1 h 02 min", "1:02:05"),
    ],
)
def test_durations(seconds, words, clock):
    assert records.show_duration(seconds) == words
    assert records.show_clock(seconds) == clock


def test_nothing_heavy_is_imported():
    code = (
        "import importlib.util, sys, pathlib, types\n"
        f"root = pathlib.Path({str(Path(report.__file__).parent)!r})\n"
        "package = types.ModuleType('ladder'); package.__path__ = [str(root)]\n"
        "sys.modules['ladder'] = package\n"
        "import ladder.report\n"
        "print([m for m in ('torch', 'numpy', 'matplotlib', 'rich', 'statespan') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
