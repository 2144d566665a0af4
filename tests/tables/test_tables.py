"""Files of columns as a newcomer has them: what is read, what is refused in one line, and where each step came from."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from statespan.errors import StatespanError
from statespan.sequences import Event
from statespan.tables import Columns, read, read_words
from statespan.tables.write import write

CITIES = """date,temp,sky,city
2024-05-02,1.5,sun,Ulm
2024-05-01,,rain,Ulm
2024-05-04,3,,Ulm
2024-05-01,7,sun,Rom
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(content: str | bytes, name: str = "a.csv") -> str:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    return make


def test_sequences_times_words_and_gaps(file):
    data = read(file(CITIES), sequence="city", time="date", every="D")
    assert data.columns == Columns(("temp", "sky"), {"sky": ("rain", "sun")}, "city", "date", "D")
    assert (data.ends, data.labels, data.keys) == ([4, 1], ["Ulm", "Rom"], ["city", "date"])
    expected = [[np.nan, 0], [1.5, 1], [np.nan, np.nan], [3, np.nan], [7, 1]]
    np.testing.assert_array_equal(data.values, expected)
    assert data.places.tolist() == [3, 2, -1, 4, 5], "the lines they came from"
    assert data.notes == ("1 step(s) absent from date are put in as missing",)
    assert data.frame["date"].dt.day.tolist() == [1, 2, 3, 4, 1]
    assert data.which("Rom") == data.which("1") == 1 and data.which(None) == 0
    assert Columns.from_json(json.loads(json.dumps(data.columns.to_json()))) == data.columns


def test_rows_of_a_sequence_need_not_stand_together(file):
    data = read(file("who,x\nb,1\na,2\nb,3\n"), sequence="who")
    assert (data.labels, data.values[:, 0].tolist(), data.places.tolist()) == (["b", "a"], [1, 3, 2], [2, 4, 3])
    assert [x.tolist() for x in data.y(Event(1, None, 1))] == [[[1], [3]], [[2]]]


def test_what_is_guessed_is_said(file):
    data = read(file(",a\n0,1.5\n1,?\n2,-\n"))
    assert data.notes[0].startswith("the first column has no name")
    assert data.notes[1] == "column a: '?' is read as missing, and 1 more like it"
    hours = "".join(f"{day:02}/01/2024 {hour}:00,1\n" for day in (1, 2, 3) for hour in range(24))
    assert read(file("t,x\n" + hours), time="t").calendar == ("h", True), "01/02 is no first of February here"


def test_symbols_keep_their_numbers_for_the_next_file(file):
    known = read(file("s\n10\n9\n\n10\n"), symbols=["s"]).columns
    assert known.words == {"s": ("9", "10")}, "in the order of numbers, not of letters"
    again = read(file("s\n10\n10\n"), known=known)
    assert [x.tolist() for x in again.y(Event(0, 2))] == [[1, 1]]
    with pytest.raises(StatespanError, match=r"a.csv, line 3, column s: the model does not know '8'; it knows 9, 10"):
        read(file("s\n10\n8\n"), known=known)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("x\n1\n\n3\n\n\n", [[1], [np.nan], [3]]),  # an empty line of one column is a gap, but not at the end
        ("a,b\n1,2\n\n3,4\n", [[1, 2], [3, 4]]),
        ("a;b\n1;2\n", [[1, 2]]),
        ("a\tb\n1\t\n", [[1, np.nan]]),
        ("\ufeffa,b\r\n1,NaN\r\n", [[1, np.nan]]),
        ("1,2\n3,4\n", [[1, 2], [3, 4]]),  # no header
        ("a, b\n 1e3 , -2.5\n", [[1000, -2.5]]),
        ("a,b\n1\n", [[1, np.nan]]),
        ('a,b\n"1",2\n', [[1, 2]]),
        ("a;b\n1,5;2\n1;-,5e1\n", [[1.5, 2], [1, -5]]),
        ("a\n17,100.0\n900\n", [[17100], [900]]),
        ("a b\n1 2\n3 4e1\n", [[1, 2], [3, 40]]),
        ("a;b;\n1;2;\n", [[1, 2]]),
        (",a\n0,1\n1,2\n", [[1], [2]]),  # an index, as pandas writes it
        ("a\n1\n?\n-\n3\n", [[1], [np.nan], [np.nan], [3]]),
    ],
)
def test_csv_as_it_comes(file, text, values):
    np.testing.assert_array_equal(read(file(text)).values, values)


@pytest.mark.parametrize(
    ("text", "options", "line"),
    [
        ("", {}, "a.csv: the file is empty"),
        ("a,b\n", {}, "a.csv: the file holds no rows"),
        ("a\n1\nx\n3", {}, "a.csv, line 3, column a: 'x' is no finite number; mend it, or leave it empty"),
        ("\n\na\n1\nx\n3", {}, "a.csv, line 5, column a: 'x'"),
        ("a;b\n1,234;2\n1;2\n", {}, "line 2, column a: '1,234' is no finite number; write 1234 or 1.234"),
        ("a,b\n1,inf\n", {}, "line 2, column b: 'inf' is no finite number"),
        ("a,b\n1,2,3\n", {}, "more cells than the header"),
        ("a,b\n1,2\n1,2,3\n", {}, "line 3"),
        ("a,a\n1,2\n", {}, "the column 'a' is there twice"),
        ("a,b\n1,2\n", {"columns": ["A"]}, "there is no column A; did you mean a?"),
        ("a,b\n1,2\n", {"columns": ["2"]}, "there is no column 2; it has a, b"),
        ("a,b\n1,\n2,\n", {"columns": ["b"]}, "nothing is observed in b"),
        (
            "d,b\nMon,1\nTue,2\nWed,3\n",
            {},
            "line 2, column d: 'Mon' is no number, and no word is there twice; say --time",
        ),
        ("d,b\n2020-01-01,1\n2020-13-01,2\n", {"time": "d"}, "line 3, column d: '2020-13-01' is no date"),
        ("d,b\n2020-01-01,1\n,2\n", {"time": "d"}, "line 3, column d: no time is given"),
        ("d,b\n2020-01-01,1\n2020-01-01,2\n", {"time": "d"}, "line 3, column d: 2020-01-01 is there twice"),
        (
            "y,b\n1,1\n4,2\n3,3\n",
            {"time": "y", "every": "2"},
            "line 3, column y: 4 lies between two steps of --every 2",
        ),
        ("y,b\n1,1\n", {"time": "y", "every": "D"}, "--every D: give a number"),
        ("y,b\n2020-01-01,1\n", {"time": "y", "every": "often"}, "--every often: give a frequency"),
        ("y,b\n1,1\n", {"every": "D"}, "--every D: there are no times"),
        ("s,b\n1,1\n,2\n", {"sequence": "s"}, "line 3, column s: no sequence is named"),
        ("s,b\n1,1\n", {"sequence": "s", "columns": ["s"]}, "--columns: s is no observation"),
        (b"a,b\n\xff,1\n", {}, "line 2: not UTF-8"),
        (b"\0\0\0\0", {}, "not a text"),
    ],
)
def test_what_cannot_be_read_is_one_line(file, text, options, line):
    with pytest.raises(StatespanError) as error:
        read(file(text), **options)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_none(file, tmp_path):
    for name, line in (("nope.csv", "no such file"), (".", "this is a directory")):
        with pytest.raises(StatespanError, match=line):
            read(name)
    for name, line in (("a.parquet", "not a Parquet"), ("a.npy", "not a file of numbers"), ("a.npz", "not a file of")):
        with pytest.raises(StatespanError, match=line):
            read(file("garbage", name))


def test_arrays_and_parquet(tmp_path):
    array = np.random.default_rng(0).standard_normal((3, 4, 2))
    for shape in ((12,), (6, 2), (3, 4, 2)):
        np.save(tmp_path / "x.npy", array.reshape(-1)[: np.prod(shape)].reshape(shape))
        data = read(tmp_path / "x.npy")
        assert data.ends == ([4] * 3 if len(shape) == 3 else [shape[0]])
        np.testing.assert_array_equal(data.values.ravel(), array.ravel()[: np.prod(shape)])
    np.savez(tmp_path / "x.npz", a=array[0, :, 0], b=array[0, :, 1])
    assert read(tmp_path / "x.npz").columns.names == ("a", "b")
    np.savez(tmp_path / "x.npz", a=array[0], b=array[0, :, 1])
    with pytest.raises(StatespanError, match=r"give one array, or columns"):
        read(tmp_path / "x.npz")
    frame = pd.DataFrame(
        {"t": pd.date_range("2024-01-31", periods=4, freq="ME"), "x": [1, None, 3, 4], "s": list("abab")}
    )
    frame.to_parquet(tmp_path / "x.parquet")
    data = read(tmp_path / "x.parquet", time="t")
    assert data.columns.words == {"s": ("a", "b")} and data.calendar.every == "ME"
    assert data.calendar.after(data.times[0][-1], 2).strftime("%m-%d").tolist() == ["05-31", "06-30"]


@pytest.mark.parametrize(
    ("times", "every", "after"),
    [
        (["2024-05-01", "2024-05-02", "2024-05-03"], "D", "2024-05-04"),
        (["25/12/2020", "26/12/2020", "27/12/2020"], "D", "2020-12-28"),
        (["2024-01-01", "2024-02-01", "2024-03-01"], "MS", "2024-04-01"),
        (["2024-05-01 10:00", "2024-05-01 10:15", "2024-05-01 10:30"], "15min", "2024-05-01 10:45"),
        (["2024-05-01", "2024-05-02"], "D", "2024-05-03"),
        ([f"2024-05-{d:02}" for d in (2, 3, 6, 7, 9, 10)], "B", "2024-05-13"),  # a holiday among working days
        ([1871, 1872, 1873], 1, 1874),
        ([0.0, 0.5, 1.0], 0.5, 1.5),
    ],
)
def test_times_go_on(file, times, every, after):
    rows = "".join(f"{t},{i}\n" for i, t in enumerate(times))
    data = read(file("t,x\n" + rows), time="t")
    assert data.calendar.every == every
    following = data.calendar.after(data.times[0][-1], 1)[0]
    assert following == (after if isinstance(after, (int, float)) else pd.Timestamp(after))


def test_steps_that_differ_are_told(file):
    data = read(file("t,x\n1,5\n4,6\n2,7\n"), time="t")
    assert data.values[:, 0].tolist() == [5, 7, 6]
    assert data.notes[0] == "the rows are put in the order of t" and "--every 1" in data.notes[1]
    assert not read(file("t,x\n1,5\n2,6\n3,7\n"), time="t").notes


def test_errors_of_the_library_tell_the_line(file):
    data = read(file("who,x\nb,1\na,2\nb,3\n"), sequence="who")
    assert data.located("sequence 0, step 1: a negative count; mend it") == "a.csv, line 4: a negative count; mend it"
    assert data.located("no such thing") == "a.csv: no such thing"


def test_other_columns_than_the_models(file):
    known = Columns(("a", "b"), {})
    assert read(file("b,c,a\n1,2,3\n"), known=known).values.tolist() == [[3, 1]]
    with pytest.raises(StatespanError, match="--columns names 1 where the model observes 2"):
        read(file("b,c,a\n1,2,3\n"), ["a"], known=known)
    assert read(file("u,v\n1,2\n"), ["v", "u"], known=known).values.tolist() == [[2, 1]]
    with pytest.raises(StatespanError, match=r"observes 1 column, and 2 are given \(u, v\)"):
        read(file("u,v\n1,2\n")).y(Event(1, None, 1))
    with pytest.raises(StatespanError, match=r"line 3: 7 is no symbol; the model knows 0 to 2"):
        read(file("u\n1\n7\n")).y(Event(0, 3))


def test_a_text_is_sentences(file):
    data, vocabulary = read_words(file("so it goes\nso it was\n", "t.txt"))
    assert vocabulary.words == ("<unk>", "<eos>", "it", "so") and data.ends == [4, 4]
    assert data.notes == ("2 of 6 words are read as <unk>",)
    again, _ = read_words(file("it rains\n", "u.txt"), vocabulary)
    assert again.frame["word"].tolist() == ["it", "<unk>", "<eos>"]
    letters, _ = read_words("t.txt", level="characters", at_least=1)
    assert "".join(letters.frame["character"][:10]) == "so_it_goes"


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "npz", "json"])
def test_answers_come_back(tmp_path, ending):
    frame = pd.DataFrame(
        {"date": pd.date_range("2024-01-01", periods=3), "p": [0.1, 1 / 3, None], "s": ["a", "b", "c"]}
    )
    path = tmp_path / f"x.{ending}"
    write(frame, path)
    if ending == "npz":
        with np.load(path) as file:
            assert file["s"].tolist() == ["a", "b", "c"] and file["date"].dtype.kind == "M"
            np.testing.assert_array_equal(file["p"], frame["p"])
        return
    readers = {"csv": pd.read_csv, "tsv": lambda p: pd.read_csv(p, sep="\t"), "parquet": pd.read_parquet}
    found = readers.get(ending, pd.read_json)(path)
    np.testing.assert_allclose(found["p"], frame["p"], rtol=1e-14)
    assert re.match("2024-01-01", str(found["date"].iloc[0])) and found["s"].tolist() == ["a", "b", "c"]


def test_an_ending_that_is_not_known():
    with pytest.raises(StatespanError, match=r"x.xls: an answer is written as .csv"):
        write(pd.DataFrame(), "x.xls")
