"""The commands on files of data, as a newcomer types them."""

import csv
import json
import math
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import statespan as ss
from statespan.cli import fitting
from statespan.files import load_with_extra
from test_cli import call, refused, statespan  # noqa: F401

QUICK = ("--iterations", 8, "--restarts", 2)


@pytest.fixture
def weather(tmp_path) -> Path:
    """Two cities, seventy days: numbers with gaps, words with gaps, dates."""
    random = np.random.default_rng(0)
    rows = []
    for city, days in (("Ulm", 50), ("Rom", 20)):
        for day, date in enumerate(pd.date_range("2024-03-01", periods=days)):
            z = day // 10 % 2
            temp = "" if random.random() < 0.1 else f"{random.normal((2, 15)[z], 2):.2f}"
            sky = "" if random.random() < 0.1 else str(random.choice(["sun", "rain"], p=[(0.1, 0.9)[z], (0.9, 0.1)[z]]))
            rows.append((city, date.date(), temp, f"{random.gamma(2, 2):.2f}", sky))
    path = tmp_path / "weather.csv"
    pd.DataFrame(rows, columns=["city", "date", "temp", "wind", "sky"]).to_csv(path, index=False)
    return path


@pytest.fixture
def model(statespan, weather) -> str:  # noqa: F811
    """An HMM of temperature and wind."""
    code, _, err = statespan(
        "fit", weather, "--sequence", "city", "--time", "date", "--columns", "temp,wind", "--out", "m.st", *QUICK
    )
    assert (
        code,
        err.replace("note: not converged after 8 iterations; give more, or start from another seed\n", ""),
    ) == (0, "")
    return "m.st"


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(text)))


def arrays(path: Path, columns: tuple[str, ...]) -> list[np.ndarray]:
    """The file read without statespan."""
    found: dict[str, list[list[float]]] = {}
    for row in csv.DictReader(StringIO(path.read_text())):
        found.setdefault(row["city"], []).append([float(row[c] or "nan") for c in columns])
    return [np.array(each) for each in found.values()]


def test_fit_says_what_it_found(statespan, weather):  # noqa: F811
    code, out, _ = statespan("fit", weather, "--time", "date", "--sequence", "city", "--columns", "temp,wind", *QUICK)
    assert code == 0 and "2 sequences, 70 steps" in out and "model: model.safetensors" in out
    assert "state" in out and "share" in out and "±" in out
    fitted = ss.load("model.safetensors")
    log_prob = fitted.log_prob(arrays(weather, ("temp", "wind"))).sum().item()
    assert f"log-likelihood {log_prob:,.2f}" in out and "13 parameters" in out  # 1 + 2 + 2 (2 + 3)
    assert f"BIC {13 * math.log(70) - 2 * log_prob:,.1f}" in out


def test_the_same_seed_is_the_same_model(statespan, weather):  # noqa: F811
    for name in "ab":
        statespan("fit", weather, "--columns", "wind", "--out", f"{name}.st", "--seed", 3, *QUICK)
    assert Path("a.st").read_bytes() == Path("b.st").read_bytes()


def test_the_best_start_is_kept(weather):
    from statespan.tables import read

    data = read(weather, ["temp", "wind"])

    def make(seed: int) -> ss.StateSpace:
        return ss.hmm(states=3, emission=ss.Gaussian(dim=2), seed=seed)

    reached = []
    for restarts in (1, 3):
        fitted = fitting.fit(make, data, fitting.Plan("em", 10, None, None, restarts, 0))
        with torch.no_grad():
            reached.append(float(fitted.model.log_prob(data.y(fitted.model.emission.event)).sum()))
    assert reached[1] >= reached[0]


def test_every_answer_is_the_librarys_with_dates_beside_it(statespan, weather, model):  # noqa: F811
    fitted, y = ss.load(model), arrays(weather, ("temp", "wind"))
    with torch.no_grad():
        smoothed, filtered, path = fitted.smooth(y), fitted.filter(y), fitted.decode(y)
        filled, (best, log_prob) = fitted.impute(y), fitted.decode(y, k=2)
    _, out, err = statespan("smooth", model, weather)
    assert err == "" and [row["date"] for row in rows(out)][48:52] == [
        "2024-04-18",
        "2024-04-19",
        "2024-03-01",
        "2024-03-02",
    ]
    assert rows(out)[0].keys() == {"city", "date", "temp", "wind", "state_0", "state_1"}
    for verb, posterior in (("smooth", smoothed), ("filter", filtered)):
        table = pd.read_csv(StringIO(statespan(verb, model, weather)[1]))
        np.testing.assert_allclose(table[["state_0", "state_1"]], torch.cat(posterior.probs), atol=1e-12)
    table = pd.read_csv(StringIO(statespan("decode", model, weather)[1]))
    assert table["state"].tolist() == torch.cat(path).tolist()
    table = pd.read_csv(StringIO(statespan("decode", model, weather, "--paths", 2)[1]))
    assert table[table.path == 1]["state"].tolist() == torch.cat(best)[:, 1].tolist()
    np.testing.assert_allclose(table.groupby(["path", "city"], sort=False)["log_prob"].first(), log_prob.T.reshape(-1))
    table = pd.read_csv(StringIO(statespan("impute", model, weather)[1]), keep_default_na=False)
    np.testing.assert_allclose(table[["temp", "wind"]], torch.cat(filled), atol=1e-12)
    assert (table["filled"] == "temp").tolist() == np.isnan(np.concatenate(y)[:, 0]).tolist()
    table = pd.read_csv(StringIO(statespan("score", model, weather)[1]))
    np.testing.assert_allclose(table["log_prob"], smoothed.log_prob)
    table = pd.read_csv(StringIO(statespan("score", model, weather, "--each-step")[1]))
    np.testing.assert_allclose(-table.groupby("city", sort=False)["surprise"].sum(), smoothed.log_prob)


def test_a_forecast_goes_on_in_time(statespan, weather, model):  # noqa: F811
    _, out, _ = statespan("forecast", model, weather, "--steps", 3, "--quantiles", "0.1,0.9")
    table = pd.read_csv(StringIO(out))
    assert table.columns.tolist() == ["city", "date", "temp", "temp_q10", "temp_q90", "wind", "wind_q10", "wind_q90"]
    assert table["date"].tolist() == [f"2024-04-{d}" for d in (20, 21, 22)] + [f"2024-03-{d}" for d in (21, 22, 23)]
    with torch.no_grad():
        mean = ss.load(model).forecast(arrays(weather, ("temp", "wind")), steps=3).mean
    np.testing.assert_allclose(table[["temp", "wind"]], mean.reshape(-1, 2))
    assert (table["temp_q10"] < table["temp_q90"]).all()


def test_a_structural_series_by_its_components(statespan, tmp_path, refused):  # noqa: F811
    y = np.array([1120, 1160, 963, 1210, 1160, 1160, 813, 1230, 1370, 1140, 995, 935, 1110, 994, 1020.0])
    table = pd.DataFrame({"year": np.arange(1871, 1886), "level": y, "dam": (y < 1000) * 1.0})
    table.loc[[3, 9], "level"] = -999
    table.to_csv("n.csv", index=False)
    given = ("--time", "year", "--columns", "level", "--missing", "-999", "--out", "n.st")
    code, out, _ = statespan(
        "fit", "n.csv", "--inputs", "dam", "--model", "level(variance=900) + regression", *given, "--plot", "n.png"
    )
    assert code == 0 and "noise.variance" in out and "2 missing" in out and Path("n.png").stat().st_size > 10_000
    model, y = ss.load("n.st"), table["level"].where(table["level"] > 0).to_numpy()
    u = table[["dam"]].to_numpy()
    assert f"log-likelihood {model.log_prob(y, inputs=u).item():,.2f}" in out
    found = pd.read_csv(StringIO(statespan("decompose", "n.st", "n.csv")[1]))  # the model remembers what is missing
    assert found.columns.tolist()[2:] == ["model_level", "level_sd", "regression", "regression_sd", "noise"]
    np.testing.assert_allclose(found["model_level"] + found["regression"] + found["noise"], y)
    smoothed = model.smooth(y, inputs=u)
    np.testing.assert_allclose(found["model_level"], smoothed.mean[:, 0])
    for wrong, line in (
        ("levl", "did you mean level? choose one of hmm, linear-gaussian, level"),
        ("level*slope()", "or a sum of level, slope"),
        ("level + seasonal()", "seasonal: missing 1 required number: 'period'; as in seasonal(12)"),
        ("level + regression", "name their columns with --inputs"),
    ):
        assert line in refused("fit", "n.csv", "--columns", "level", "--missing", -999, "--model", wrong)
    assert "a series is one column of year, level, dam" in refused(
        "fit", "n.csv", "--missing", -999, "--model", "level"
    )


def test_what_may_stand_for_a_gap_is_asked_about_and_a_column_keeps_its_name(statespan):  # noqa: F811
    y = np.r_[np.random.default_rng(0).normal(size=30).round(3), [-999.0] * 3]
    pd.DataFrame({"state": y, "path": 1.0 + np.arange(33) % 2}).to_csv("a.csv", index=False)
    _, out, err = statespan("fit", "a.csv", "--columns", "state,path", "--out", "a.st", *QUICK)
    assert "column state: -999 stands 3 times, far from every other value" in err and "say --missing -999" in err
    _, out, err = statespan("fit", "a.csv", "--columns", "state", "--missing", "-999,x", "--out", "a.st", *QUICK)
    assert "-999" not in err and "3 missing" in out
    table = pd.read_csv(StringIO(statespan("decode", "a.st", "a.csv")[1]))
    assert table["state"].isna().sum() == 3
    path = ss.load("a.st").decode(np.where(y == -999, np.nan, y)).tolist()
    assert table["model_state"].tolist() == path
    table = pd.read_csv(StringIO(statespan("decode", "a.st", "a.csv", "--paths", 2)[1]))
    assert table.columns.tolist() == ["step", "state", "path", "model_state", "log_prob"]
    table = pd.read_csv(StringIO(statespan("sample", "a.st", "--length", 3)[1]))
    assert table.columns.tolist() == ["step", "model_state", "state"]


def test_words_are_spoken(statespan, weather, refused):  # noqa: F811
    code, out, _ = statespan(
        "fit", weather, "--sequence", "city", "--time", "date", "--columns", "sky", "--out", "s.st", *QUICK
    )
    assert code == 0 and "rain" in out and "5 parameters" in out  # 1 + 2 + 2
    assert isinstance(ss.load("s.st").emission, ss.Categorical)
    table = pd.read_csv(StringIO(statespan("forecast", "s.st", weather, "--steps", 2)[1]))
    assert table.columns.tolist() == ["city", "date", "sky", "p(rain)", "p(sun)"]
    np.testing.assert_allclose(table["p(rain)"] + table["p(sun)"], 1)
    table = pd.read_csv(StringIO(statespan("impute", "s.st", weather)[1]), keep_default_na=False)
    assert set(table["sky"]) == {"sun", "rain"} and set(table["filled"]) == {"", "sky"}
    table = pd.read_csv(StringIO(statespan("sample", "s.st", "-n", 2, "--length", 5)[1]))
    assert set(table["sky"]) <= {"sun", "rain"} and len(table) == 10
    weather.write_text(weather.read_text().replace("rain", "hail"))
    assert "the model does not know 'hail'; it knows rain, sun" in refused("score", "s.st", weather)


def test_numbers_as_symbols(statespan, tmp_path):  # noqa: F811
    np.save("coin.npy", np.random.default_rng(0).integers(0, 2, 60))
    for how in (("--emission", "categorical"), ("--symbols", "0"), ("--emission", "0:categorical")):
        assert statespan("fit", "coin.npy", *how, "--out", "c.st", *QUICK)[0] == 0
        assert ss.load("c.st").emission.symbols == 2
    assert statespan("decode", "c.st", "coin.npy", "--out", "path.npz")[0] == 0
    with np.load("path.npz") as file:
        assert file["state"].shape == (60,)


def test_a_model_saved_from_python(statespan, tmp_path, refused):  # noqa: F811
    ss.hmm(states=2, emission=ss.Categorical(3), seed=0).save("m.st")
    Path("a.csv").write_text("x\n0\n2\n\n1\n")
    table = pd.read_csv(StringIO(statespan("score", "m.st", "a.csv")[1]))
    np.testing.assert_allclose(table["log_prob"], ss.load("m.st").log_prob([0, 2, None, 1]).item())
    Path("a.csv").write_text("x\n0\n3\n")
    assert "a.csv, line 3: 3 is no symbol; the model knows 0 to 2" in refused("score", "m.st", "a.csv")
    ss.lstm(vocabulary=3, width=4, seed=0).save("n.st")
    Path("a.csv").write_text("x\n0\n2\n")
    assert statespan("smooth", "n.st", "a.csv")[0] == 0
    assert "n.st: " in refused("decode", "n.st", "a.csv")


def test_linear_gaussian(statespan, weather):  # noqa: F811
    code, out, _ = statespan(
        "fit", weather, "--model", "linear-gaussian", "--columns", "temp,wind", "--sequence", "city", "--time", "date",
        "--state", 1, "--iterations", 4, "--out", "l.st",
    )  # fmt: skip
    assert code == 0 and "temp per unit" in out
    with torch.no_grad():
        posterior = ss.load("l.st").smooth(arrays(weather, ("temp", "wind")))
    table = pd.read_csv(StringIO(statespan("smooth", "l.st", weather)[1]))
    np.testing.assert_allclose(table["mean_0"], torch.cat(posterior.mean)[:, 0], atol=1e-9)
    np.testing.assert_allclose(table["sd_0"] ** 2, torch.cat(posterior.covariance)[:, 0, 0], atol=1e-9)


def test_a_text(statespan, tmp_path, refused):  # noqa: F811
    Path("t.txt").write_text("the dog ran\nthe cat ran\na dog sat\n" * 5)
    code, out, _ = statespan("fit", "t.txt", "--states", 3, "--out", "t.st", *QUICK)
    assert code == 0 and "dog" in out
    Path("u.txt").write_text("the horse ran\n")
    table = pd.read_csv(StringIO(statespan("decode", "t.st", "u.txt")[1]))
    assert table["word"].tolist() == ["the", "<unk>", "ran", "<eos>"]
    assert statespan("generate", "t.st", "--seed", 1)[0] == 0
    Path("u.csv").write_text("a\n1\n")
    assert "u.csv: this model is of words; give a text" in refused("score", "t.st", "u.csv")


def test_counts_and_other_emissions_by_name(statespan, refused):  # noqa: F811
    Path("n.csv").write_text("quakes\n" + "\n".join(map(str, np.random.default_rng(0).poisson([3, 20] * 20))))
    for name in ("poisson", "negative-binomial"):
        code, out, _ = statespan("fit", "n.csv", "--emission", name, "--out", "n.st", *QUICK)
        assert code == 0 and "quakes" in out
    assert "choose one of bernoulli" in refused("fit", "n.csv", "--emission", "poison")
    Path("n.csv").write_text("quakes\n3\n-4\n5\n")
    assert "n.csv, line 3" in refused("fit", "n.csv", "--emission", "poisson")


@pytest.mark.parametrize("ending", ["csv", "parquet", "npz", "json"])
def test_answers_to_files(statespan, weather, model, ending):  # noqa: F811
    code, out, _ = statespan("smooth", model, weather, "--out", f"x.{ending}")
    assert (code, out) == (0, "") and Path(f"x.{ending}").stat().st_size > 100


def test_json_is_json(statespan, weather, model):  # noqa: F811
    found = json.loads(statespan("score", model, weather, "--json")[1])
    assert [row["city"] for row in found] == ["Ulm", "Rom"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("smooth", "m.st", "weather.csv"),
        ("filter", "m.st", "weather.csv", "--show", "Rom"),
        ("decode", "m.st", "weather.csv", "--paths", 3),
        ("forecast", "m.st", "weather.csv"),
        ("impute", "m.st", "weather.csv"),
        ("score", "m.st", "weather.csv"),
        ("sample", "m.st"),
        ("sample", "m.st", "weather.csv", "-n", 3),
        ("compare", "m.st", "m.st", "weather.csv"),
    ],
    ids=lambda arguments: " ".join(map(str, arguments)),
)
def test_a_picture_of_every_answer(statespan, weather, model, arguments):  # noqa: F811
    code, _, err = statespan(*arguments, "--plot", "x.png")
    assert (code, err) == (0, "")
    assert Path("x.png").read_bytes()[:4] == b"\x89PNG"


def test_a_picture_of_a_fit(statespan, weather):  # noqa: F811
    assert statespan("fit", weather, "--columns", "temp,wind", "--plot", "x.svg", *QUICK)[0] == 0
    assert "<svg" in Path("x.svg").read_text()


def test_drawn_paths_and_sequences(statespan, weather, model):  # noqa: F811
    table = pd.read_csv(StringIO(statespan("sample", model, weather, "-n", 2, "--seed", 5)[1]))
    drawn = ss.load(model).sample_posterior(arrays(weather, ("temp", "wind")), n=2, seed=5)
    assert table[table.draw == 1]["state"].tolist() == torch.cat(drawn, 1)[1].tolist()
    table = pd.read_csv(StringIO(statespan("sample", model, "--length", 7, "--seed", 5)[1]))
    _, y = ss.load(model).sample(n=1, length=7, seed=5)
    np.testing.assert_allclose(table[["temp", "wind"]], y[0].detach())


def test_compare(statespan, weather, model, refused):  # noqa: F811
    table = pd.read_csv(StringIO(statespan("compare", model, model, weather)[1]))
    log_prob = ss.load(model).log_prob(arrays(weather, ("temp", "wind"))).sum().item()
    np.testing.assert_allclose(table["log_prob"], log_prob)
    np.testing.assert_allclose(table["aic"], 26 - 2 * log_prob)
    code, out, _ = statespan("compare", weather, "--columns", "wind", "--states", "1-2", "--folds", 2, *QUICK)
    table = pd.read_csv(StringIO(out))
    assert code == 0 and table["states"].tolist() == [1, 2] and table["parameters"].tolist() == [2, 7]
    # One state is one normal distribution: of one half, scored on the other.
    wind = np.array([float(row["wind"]) for row in csv.DictReader(StringIO(weather.read_text()))])
    score = 0.0
    for shown, rest in (np.split(wind, 2), np.split(wind, 2)[::-1]):
        score += float(torch.distributions.Normal(shown.mean(), shown.std()).log_prob(torch.tensor(rest)).sum())
    np.testing.assert_allclose(table["cv"][0], score / len(wind), rtol=1e-6)
    assert "give model files before the data, or numbers of states" in refused("compare", weather)
    assert "--states 2-x: give numbers" in refused("compare", weather, "--states", "2-x")


def test_options_that_do_not_go_together_are_refused_before_any_work(refused, weather):  # noqa: F811
    fit = ("fit", weather, "--columns", "temp")
    assert "an hmm has --states 3" in refused(*fit, "--state", 3)
    assert "a linear-gaussian model has --state 3" in refused(*fit, "--model", "linear-gaussian", "--states", 3)
    assert "--states 1000000000: more than the data have steps" in refused(*fit, "--states", 10**9)
    assert "--learning-rate -1: give a number above 0" in refused(*fit, "--by", "SGD", "--learning-rate", -1)
    assert "did you mean gaussian?" in refused(*fit, "--emission", "gausian")
    assert "this is a directory" in refused(*fit, "--out", ".")


def test_mixed_columns(statespan, weather):  # noqa: F811
    keys = ("--sequence", "city", "--time", "date")
    for how in (
        ("--columns", "sky,temp,wind"),
        ("--emission", "temp+wind:gaussian,sky:categorical"),
        ("--emission", "sky:categorical,temp:gaussian,wind:gamma"),
    ):
        code, out, _ = statespan("fit", weather, *keys, *how, "--out", "x.st", "--plot", "x.png", *QUICK)
        assert code == 0 and "±" in out and "rain" in out
        names = load_with_extra("x.st")[1]["columns"]["names"]
        table = pd.read_csv(weather)
        table["sky"] = table["sky"].map({"rain": 0.0, "sun": 1.0})
        y = [table.loc[table.city == city, names].to_numpy() for city in ("Ulm", "Rom")]
        scored = pd.read_csv(StringIO(statespan("score", "x.st", weather)[1]))
        np.testing.assert_allclose(scored["log_prob"], ss.load("x.st").log_prob(y).detach())
        table = pd.read_csv(StringIO(statespan("forecast", "x.st", weather, "--steps", 2, "--plot", "x.png")[1]))
        np.testing.assert_allclose(table["p(rain)"] + table["p(sun)"], 1)
        for verb in ("impute", "smooth", "sample"):
            assert statespan(verb, "x.st", weather, "--plot", "x.png")[0] == 0
        table = pd.read_csv(StringIO(statespan("impute", "x.st", weather)[1]))
        assert set(table["sky"]) == {"rain", "sun"} and table["temp"].notna().all()


def test_inputs_act_on_the_moves_and_on_regressions(statespan, weather, refused):  # noqa: F811
    asked = ("--sequence", "city", "--time", "date", "--columns", "temp", "--inputs", "wind", "--iterations", 2)
    names = ["temp", "wind"]
    table = pd.read_csv(weather)
    each = [table.loc[table.city == city, names].to_numpy() for city in ("Ulm", "Rom")]
    y, u = ([x[:, c : c + 1] for x in each] for c in (0, 1))
    for more in ((), ("--emission", "linear-regression"), ("--model", "linear-gaussian")):
        code, out, _ = statespan("fit", weather, *asked, *more, "--restarts", 1, "--out", "x.st", "--plot", "x.png")
        assert code == 0 and "temp" in out
        model = ss.load("x.st")
        scored = pd.read_csv(StringIO(statespan("score", "x.st", weather)[1]))
        np.testing.assert_allclose(scored["log_prob"], model.log_prob(y, inputs=u).detach())
    ahead = pd.DataFrame({"city": ["Ulm"] * 3 + ["Rom"] * 3, "wind": np.arange(6.0)})
    ahead.to_csv("ahead.csv", index=False)
    _, out, _ = statespan("forecast", "x.st", weather, "--steps", 3, "--future", "ahead.csv")
    coming = np.arange(6.0).reshape(2, 3, 1)
    truth = model.forecast(y, 3, inputs=u, future=coming).mean
    np.testing.assert_allclose(pd.read_csv(StringIO(out))["temp"], truth.detach().numpy().ravel(), rtol=1e-6)
    assert len(rows(statespan("sample", "x.st", "--length", 4, "--future", "ahead.csv")[1])) == 4
    for verb in ("filter", "decode", "impute"):
        assert statespan(verb, "x.st", weather)[0] == 0
    assert "with --future FILE" in refused("forecast", "x.st", weather)
    assert "with --future FILE" in refused("sample", "x.st")
    assert "ahead.csv, city Ulm: 3 rows of inputs for 4" in refused(
        "forecast", "x.st", weather, "--steps", 4, "--future", "ahead.csv"
    )


@pytest.mark.parametrize("by", ["vi", "online", "lbfgs"])
def test_other_ways_to_fit(statespan, weather, by):  # noqa: F811
    asked = ("--sequence", "city", "--time", "date", "--columns", "temp", "--restarts", 1, "--iterations", 3)
    more = ("--emission", "gaussian-mixture", "--covariance", "diagonal") if by == "vi" else ()
    code, out, _ = statespan("fit", weather, *asked, *more, "--by", by, "--out", "x.st")
    assert code == 0 and "log-likelihood" in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("fit", "nope.csv"), "nope.csv: there is no such file"),
        (("fit", "weather.csv"), "weather.csv, line 2, column date: '2024-03-01' is a date; say --time date"),
        (("fit", "weather.csv", "--columns", "tmp"), "there is no column tmp; it has city, date, temp, wind, sky"),
        (
            ("fit", "weather.csv", "--columns", "temp", "--model", "nope"),
            "--model nope: did you mean slope? choose one of hmm, linear-gaussian, level",
        ),
        (
            ("fit", "weather.csv", "--columns", "temp", "--by", "magic"),
            "--by magic: choose one of em, vi, online, lbfgs, sgd",
        ),
        (("fit", "weather.csv", "--columns", "temp", "--covariance", "round"), "covariance='round' is none of"),
        (("fit", "weather.csv", "--columns", "temp", "--states", "0"), "states=0"),
        (("fit", "weather.csv", "--columns", "temp", "--restarts", "0"), "give at least 1"),
        (("fit", "weather.csv", "--columns", "sky", "--emission", "gaussian"), "column sky holds words"),
        (("fit", "weather.csv", "--columns", "sky,city", "--emission", "categorical"), "2 columns are given"),
        (("fit", "weather.csv", "--columns", "sky", "--covariance", "full"), "categorical has no covariance"),
        (("fit", "weather.csv", "--columns", "sky", "--model", "linear-gaussian"), "column sky holds words"),
        (("fit", "weather.csv", "--columns", "temp", "--plot", "x.doc"), "--plot x.doc: a picture is .png"),
        (("fit", "weather.csv", "--columns", "temp", "--by", "em", "--batch", "3"), "em takes all sequences at once"),
        (("fit", "weather.csv", "--columns", "temp", "--by", "online", "--batch", "0"), "--batch 0: give at least 1"),
        (
            ("fit", "weather.csv", "--columns", "temp", "--by", "vi", "--learning-rate", "1"),
            "vi has none; leave it out",
        ),
        (("fit", "weather.csv", "--columns", "temp", "--components", "2"), "gaussian has no components; leave it out"),
        (
            ("fit", "weather.csv", "--columns", "temp", "--emission", "gaussian-mixture", "--components", "0"),
            "components=0",
        ),
        (("fit", "weather.csv", "--columns", "temp", "--inputs", "rain"), "there is no column rain"),
        (("fit", "weather.csv", "--columns", "wind", "--inputs", "temp"), "an input cannot be missing; fill it first"),
        (("fit", "weather.csv", "--columns", "temp", "--inputs", "city"), "column city holds words, and an input is"),
        (("fit", "weather.csv", "--columns", "temp", "--emission", "linear-regression"), "with --inputs"),
        (("smooth", "m.st", "weather.csv", "--inputs", "wind"), "--inputs wind: the model has no inputs"),
        (("forecast", "m.st", "weather.csv", "--future", "weather.csv"), "the model has no inputs; leave it out"),
        (("sample", "m.st", "--future", "weather.csv"), "the model has no inputs; leave it out"),
        (("smooth", "nope.st", "weather.csv"), "nope.st: no such file"),
        (("smooth", "weather.csv", "weather.csv"), "weather.csv: not a whole statespan model file"),
        (("smooth", "m.st", "nope.csv"), "nope.csv: there is no such file"),
        (("smooth", "m.st", "weather.csv", "--out", "x.doc"), "x.doc: an answer is written as .csv"),
        (("smooth", "m.st", "weather.csv", "--show", "Bonn"), "there is no sequence Bonn; there are 2: Ulm, Rom"),
        (("decode", "m.st", "weather.csv", "--paths", "0"), "--paths 0: ask for at least one"),
        (("forecast", "m.st", "weather.csv", "--steps", "0"), "steps=0"),
        (("forecast", "m.st", "weather.csv", "--quantiles", "5"), "--quantiles 5: give probabilities"),
        (("smooth", "m.st", "weather.csv", "--columns", "temp"), "--columns names 1 where the model observes 2"),
    ],
)
def test_what_cannot_be_is_one_line(weather, request, refused, arguments, line):  # noqa: F811
    if "m.st" in arguments:
        request.getfixturevalue("model")
    assert line in refused(*arguments)


def test_one_row(statespan, refused):  # noqa: F811
    Path("one.csv").write_text("x,y\n1,2\n")
    code, _, err = statespan("fit", "one.csv", "--states", 1, "--out", "o.st", *QUICK)
    assert code in (0, 2) and err.count("\n") <= 2
    ss.hmm(states=2, emission=ss.Gaussian(dim=2), seed=0).save("o.st")
    for verb in ("smooth", "decode", "score", "impute", "forecast"):
        assert statespan(verb, "o.st", "one.csv", "--plot", "x.png")[0] == 0


def test_ctrl_c_keeps_the_best_so_far(statespan, weather, monkeypatch):  # noqa: F811
    seen = []

    def stop(restarts, iterations, what="fitting"):
        from contextlib import contextmanager

        @contextmanager
        def bar():
            def follow(iteration, likelihood):
                seen.append(likelihood)
                if len(seen) == 5:
                    raise KeyboardInterrupt

            yield follow

        return bar()

    monkeypatch.setattr(fitting.screen, "progress", stop)
    code, _, err = statespan("fit", weather, "--columns", "temp,wind", "--out", "k.st", "--iterations", 50)
    assert code == 130 and err == "statespan: stopped; 5 iterations are kept in k.st\n"
    y = arrays(weather, ("temp", "wind"))
    assert ss.load("k.st").log_prob([np.concatenate(y)]).sum().item() >= max(seen)


def test_on_a_screen_a_table(statespan, weather, model, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    code, out, _ = call(monkeypatch, capsys, "decode", model, weather)
    assert code == 0 and "70 rows; --out FILE keeps them all" in out and "..." in out


def test_check_says_what_does_not_fit(statespan, refused, weather, model):  # noqa: F811
    options = ("--sequence", "city", "--time", "date")
    code, out, err = statespan("check", model, weather, *options, "--plot", "check.png")
    found = rows(out)
    assert code == 0 and Path("check.png").stat().st_size > 10_000
    assert {row["test"] for row in found} >= {"surprise", "ljung-box", "jarque-bera", "cusum", "occupancy"}
    assert {row["of"] for row in found} == {"", "temp", "wind", "state 0", "state 1"}
    expected = ss.check(ss.load(model), arrays(weather, ("temp", "wind")), 50)
    assert float(found[0]["value"]) == pytest.approx(expected.surprise)
    wrong = sum(row["verdict"] == "does not fit" for row in found)
    assert err.startswith("note: tests that speak" if wrong else "note: no test of")
    code, out, _ = statespan("check", model, weather, *options, "--skip", 10, "--json")
    assert code == 0 and json.loads(out)[0]["test"] == "surprise"
    assert "the shortest sequence has 20" in refused("check", model, weather, *options, "--skip", 20)
    assert "--skip -1" in refused("check", model, weather, *options, "--skip", -1)
