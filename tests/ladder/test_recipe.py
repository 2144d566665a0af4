"""Recipes: what ships is read, what is wrong is refused by name, and the changes the command line makes."""

from pathlib import Path

import pytest

from statespan import LADDER, StatespanError
from statespan.ladder.recipe import Entry, Recipe, Text, on_device, on_own_text, only, passes, read, stamp, suited
from statespan.ladder.rungs import count, find
from statespan.language.training import Training

SHIPPED = Path(__file__).parents[2] / "recipes"

MINIMAL = """
[text]
train = "a.txt"
[model]
parameters = 1000
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(text)
    return path


def refused(tmp_path: Path, text: str) -> str:
    """The one line that a recipe is refused with, without the file's name."""
    path = written(tmp_path, text)
    with pytest.raises(StatespanError) as caught:
        read(path)
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", ["kjv", "ptb-small", "ptb-200", "ptb-10m", "ptb-10m-released"])
def test_what_ships_has_every_rung(name):
    plan = read(SHIPPED / f"{name}.toml")
    assert {entry.rung for entry in plan.entries} == set(LADDER)
    assert plan.paper == name.startswith("ptb")


def test_the_papers_setting():
    """Buys, Bisk and Choi, section 5.1 and footnote 4."""
    plan = read(SHIPPED / "ptb-10m.toml")
    for entry in plan.entries:
        how = entry.how
        assert (how.optimizer, how.learning_rate, how.schedule, how.decay) == ("sgd", 20.0, "plateau", 4.0)
        assert (how.batch, how.window, how.epochs, how.evaluations, how.clip) == (20, 35, 40, 1, 0.25)
        assert entry.parameters == 10_000_000 and entry.tied and not entry.width
        assert entry.uniform == 0.1 and entry.first == "columns"


def test_small_ptb_has_hidden_200():
    plan = read(SHIPPED / "ptb-small.toml")
    assert {e.width for e in plan.entries if "tensor" not in e.rung} == {200}


def test_the_hmms_of_many_states_keep_within_the_budget():
    plan = read(SHIPPED / "ptb-hmm.toml")
    for entry in plan.entries:
        rung = find(entry.rung)
        assert rung.exact and count(rung, 10_000, entry.width, entry.tied, entry.embedding) <= 10_000_000
    assert max(entry.width for entry in plan.entries) == 2**14


def test_tables_override_each_other(tmp_path):
    text = """
    [run]
    title = "mine"
    seed = 4
    workers = 1
    references = [2]
    rungs = ["lstm", "hmm", "wide"]
    [text]
    train = "a.txt"
    share = 1
    [model]
    parameters = 1000
    dropout = [0, 0.5, 0]
    [training]
    epochs = 3
    learning_rate = 1
    [rungs.hmm]
    epochs = 7
    [rungs.wide]
    rung = "hmm"
    trainer = "EM"
    width = 12
    """
    plan = read(written(tmp_path, text))
    lstm, hmm, wide = plan.entries
    assert (plan.title, plan.seed, plan.workers, plan.references) == ("mine", 4, 1, (2,))
    assert lstm == Entry("lstm", "lstm", parameters=1000, dropout=(0.0, 0.5, 0.0), how=plan.training)
    assert plan.training == Training(epochs=3, learning_rate=1.0) and type(plan.training.learning_rate) is float
    assert hmm.how == Training(epochs=7, learning_rate=1.0)
    assert (wide.rung, wide.trainer, wide.width, wide.own_width) == ("hmm", "EM", 12, True)
    assert wide.by_em and not wide.by_gradient and hmm.by_gradient and not hmm.by_em


def test_a_title_is_the_files_name_unless_given(tmp_path):
    plan = read(written(tmp_path, MINIMAL))
    assert plan.title == "r" and [e.name for e in plan.entries] == list(LADDER)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[run", "not a TOML file"),
        ("[rum]", "unknown key 'rum'; did you mean 'run'?"),
        ("run = 3", "run = 3 must be a table, [run]"),
        ("[run]\nsed = 1", "[run] unknown key 'sed'; did you mean 'seed'?"),
        ("[run]\nseed = 1.5", "[run] seed = 1.5 must be a whole number"),
        ("[run]\nseed = true", "[run] seed = True must be a whole number"),
        ("[run]\npaper = 1", "[run] paper = 1 must be true or false"),
        ("[run]\ntitle = 1", '[run] title = 1 must be text in "quotes"'),
        ("[run]\nrungs = 'hmm'", "[run] rungs = 'hmm' must be a list"),
        ("[run]\nreferences = [2, 'x']", "[run] each of references = 'x' must be a whole number"),
        (MINIMAL + "[run]\nreferences = [4]", "[run] references = [4] must be 2 or 3, or both"),
        (MINIMAL + "[run]\nworkers = 0", "[run] workers = 0 must be at least 1"),
        (MINIMAL + "[run]\nrungs = ['hmm', 'hmm']", "[run] rungs lists a row twice: hmm, hmm"),
        (MINIMAL + "[run]\nrungs = ['lstn']", "[rungs.\"lstn\"] unknown rung 'lstn'; did you mean 'lstm'?"),
        (MINIMAL + "[run]\nrungs = ['hmm']\n[rungs.elman]", '[rungs."elman"] is not among the rungs that [run] lists'),
        ("[text]\nsource = 'bible'", "[text] source = 'bible' must be one of files, king-james"),
        ("[text]\nlevel = 'bytes'", "[text] level = 'bytes' must be one of words, characters"),
        ("[text]\ntrain = 'a'\nform = 'xml'", "[text] form = 'xml' must be one of text, tagged, conllu, or left out"),
        ("[text]\ntrain = 'a'\nshare = 0", "[text] share = 0.0 must lie above 0 and be at most 1"),
        ("[text]\ntrain = 'a'\nshare = nan", "[text] share = nan must be a number"),
        ("[text]\ntrain = 'a'\nvocabulary = 2", "[text] vocabulary = 2 must be 0 or at least 3"),
        ("[text]\ntrain = 'a'\nvalid = 'b'", "[text] valid and test go together"),
        ("[text]", "[text] train is missing; name a file, or give --text FILE"),
        ("[text]\ntrain = 'a'", '[rungs."hmm"] neither width nor parameters is given; set one in [model]'),
        (MINIMAL + "width = 'x'", "[model] width = 'x' must be a whole number"),
        (MINIMAL + "widht = 3", "[model] unknown key 'widht'; did you mean 'width'?"),
        (MINIMAL + "rung = 'hmm'", "[model] unknown key 'rung'"),
        (MINIMAL + "dropout = 0.5", "[model] dropout = 0.5 must be a list of 3"),
        (MINIMAL + "dropout = [0.5]", "[model] dropout = [0.5] must be a list of 3"),
        (MINIMAL + "dropout = [0.5, 1.0, 0]", '[rungs."hmm"] dropout = [0.5, 1.0, 0.0] must lie in 0 to 1, without 1'),
        (MINIMAL + "width = -1", '[rungs."hmm"] width = -1 must be 0 or more'),
        (MINIMAL + "spread = 0", '[rungs."hmm"] spread = 0.0 must be positive'),
        (MINIMAL + "[training]\noptimiser = 'sgd'", "[training] unknown key 'optimiser'; did you mean 'optimizer'?"),
        (MINIMAL + "[training]\noptimizer = 'adagrad'", "[training] optimizer = 'adagrad' must be one of sgd"),
        (MINIMAL + "[rungs]\nhmm = 3", 'rungs."hmm" = 3 must be a table, [rungs."hmm"]'),
        (MINIMAL + "[rungs.hmm]\nepoch = 3", "[rungs.\"hmm\"] unknown key 'epoch'; did you mean 'epochs'?"),
        (MINIMAL + "[rungs.hmm]\nepochs = 0", '[rungs."hmm"] epochs = 0 must be at least 1'),
        (MINIMAL + "[rungs.hmm]\niterations = 0", '[rungs."hmm"] iterations = 0 must be at least 1'),
        (
            MINIMAL + "[rungs.hmm]\ntrainer = 'em'",
            "[rungs.\"hmm\"] trainer = 'em' must be one of SGD; EM; EM, then SGD",
        ),
        (MINIMAL + "[rungs.elman]\ntrainer = 'EM'", "[rungs.\"elman\"] trainer = 'EM' needs an exact rung"),
        (
            MINIMAL + "[rungs.x]\nrung = 'keep/gru/raw/mixture'",
            "[rungs.\"x\"] rung 'keep/gru/raw/mixture': score mixture needs",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, line):
    assert refused(tmp_path, text).startswith(line)


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(StatespanError, match=r"nope.toml: there is no such recipe"):
        read(tmp_path / "nope.toml")
    with pytest.raises(StatespanError, match="cannot be read: Is a directory"):
        read(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(StatespanError, match="not a TOML file"):
        read(tmp_path / "latin.toml")


# ------------------------------------------------------------------------------------------------- changes


def plan(**options) -> Recipe:
    how = Training(epochs=2, batch=32, window=35, evaluations=4)
    rows = (
        Entry("hmm", "hmm", parameters=9, how=Training(epochs=9)),
        Entry("lstm", "lstm", parameters=9, how=how),
        Entry("hmm by EM, then SGD", "hmm", "EM, then SGD", parameters=9, how=how),
    )
    return Recipe("t", Text(train="a"), rows, {"parameters": 9}, how, **options)


def test_only_takes_rows_in_the_order_given():
    assert [e.name for e in only(plan(), "lstm,hmm").entries] == ["lstm", "hmm"]
    assert [e.name for e in only(plan(), " hmm , hmm,").entries] == ["hmm"]


def test_only_knows_a_name_with_a_comma():
    names = [e.name for e in only(plan(), "hmm by EM, then SGD,lstm").entries]
    assert names == ["hmm by EM, then SGD", "lstm"]
    assert [e.name for e in only(plan(), "lstm,hmm by EM,then SGD").entries] == ["lstm", "hmm by EM, then SGD"]


def test_only_adds_a_rung_without_a_row_at_the_recipes_own_defaults():
    (added,) = only(plan(), "keep/lstm/raw/softmax").entries
    assert (added.rung, added.parameters, added.how) == ("keep/lstm/raw/softmax", 9, plan().training)
    assert only(plan(), "gru").entries[0].how == plan().training


@pytest.mark.parametrize(("names", "line"), [("lstn", "did you mean 'lstm'?"), (" , ", "names no row"), ("", "no row")])
def test_only_refuses_what_it_does_not_know(names, line):
    with pytest.raises(StatespanError) as caught:
        only(plan(), names)
    assert line in str(caught.value)


def test_passes_are_of_every_trainer():
    assert {(e.iterations, e.how.epochs) for e in passes(plan(), 3).entries} == {(3, 3)}
    with pytest.raises(StatespanError, match="0 must be at least 1"):
        passes(plan(), 0)


def test_a_users_own_text_takes_the_place_of_the_recipes(tmp_path):
    before = plan(paper=True)
    after = on_own_text(before, tmp_path / "mine.conllu", "conllu")
    assert after.text == Text(train=str(tmp_path / "mine.conllu"), form="conllu")
    assert (after.title, after.paper, after.entries) == ("mine", False, before.entries)


def test_a_small_text_gets_narrow_batches_and_many_passes_and_a_large_one_nothing():
    assert suited(plan(), 10_000_000) == plan()
    for tokens in (3, 40, 500, 6_000, 50_000):
        for entry, before in zip(suited(plan(), tokens).entries, plan().entries, strict=True):
            how = entry.how
            steps = how.epochs * -(-tokens // (how.batch * how.window))
            assert 1 <= how.batch <= before.how.batch and before.how.epochs <= how.epochs <= 40
            assert steps >= 400 or how.epochs == 40


def test_a_stamp_tells_settings_seed_and_text_apart():
    first, second = plan().entries[:2]
    same = {stamp(first, plan(), "text"), stamp(plan().entries[0], plan(), "text")}
    others = {stamp(second, plan(), "text"), stamp(first, plan(seed=1), "text"), stamp(first, plan(), "other")}
    assert len(same) == 1 and len(others) == 3 and not same & others


@pytest.mark.parametrize("device", ["cuda:99", "meta", "abacus"])
def test_a_device_that_is_not_there_is_one_line(device):
    plan = read(SHIPPED / "kjv.toml")
    with pytest.raises(StatespanError, match=rf"^--device {device}: cannot be used here \([^\n]*\); give cpu"):
        on_device(plan, device)
    assert on_device(plan, "cpu") == plan
