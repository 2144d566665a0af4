"""The Python of the README and the documentation runs, block after block, and its links lead somewhere."""

import doctest
import re
from pathlib import Path

import matplotlib
import pytest
import torch

import statespan as ss
from statespan import method
from statespan.ladder.rungs import MOVES

matplotlib.use("Agg")
ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("**/*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")


@pytest.fixture
def undone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """In a folder of its own; what a page adds to the ladder and the kernels is taken out again."""
    monkeypatch.chdir(tmp_path)
    tables = [(table, dict(table)) for table in (ss.LADDER, MOVES, method._KERNELS)]
    yield
    for table, before in tables:
        table.clear()
        table.update(before)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_runs(page: Path, undone):
    text = page.read_text(encoding="utf-8")
    names: dict = {"__name__": page.stem}
    for found in BLOCK.finditer(text):
        line, code = text[: found.start()].count("\n") + 1, found[1]
        if ">>>" in code:
            test = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), line)
            complaints: list[str] = []
            doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=complaints.append, clear_globs=False)
            assert not complaints, "".join(complaints)
            names = test.globs
        else:
            exec(compile("\n" * line + code, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path):
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert [t for t in targets if not (page.parent / t).exists()] == []


def test_the_rungs_of_the_readme_are_those_of_the_ladder():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|", text, re.MULTILINE)
    rows = {name: tuple(choice.strip() for choice in choices) for name, *choices in rows if name in ss.LADDER}
    assert rows == {name: tuple(choice.words for choice in rung[:4]) for name, rung in ss.LADDER.items()}


def test_every_public_name_is_documented():
    def plain(name: str) -> bool:
        value = getattr(ss, name)
        return isinstance(value, (dict, str))  # LADDER, __version__

    missing = [name for name in ss.__all__ if not plain(name) and not (getattr(ss, name).__doc__ or "").strip()]
    assert missing == []
    assert torch.is_tensor(ss.hmm(states=2, emission=ss.Categorical(3)).log_prob([0, 1]))
