"""Commands on files of data: fit a model, and ask it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from statespan.cli import pictures, screen
from statespan.errors import StatespanError
from statespan.tables import Data, read, read_ahead, read_inputs, read_words
from statespan.tables.write import write, writer

TEXTS = (".txt", ".text", ".conllu", ".conll", ".tagged", ".pos")
"""Endings of files that are read as sentences of words."""

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="A model.safetensors that fit, or save, wrote.")]
DataFile = Annotated[Path, typer.Argument(metavar="DATA", help="CSV, .parquet, .npy, .npz; .txt or .conllu.")]
Columns = Annotated[str, typer.Option(help="What is observed, by name or number from 0, as in a,b; all by default.")]
Inputs = Annotated[
    str, typer.Option(help="Columns of numbers that act on the model: on an hmm's moves, or on a regression's mean.")
]
Future = Annotated[Path | None, typer.Option(help="Of a model with inputs: a file with those of the steps to come.")]
Sequence = Annotated[str | None, typer.Option(help="The column that tells sequences apart.")]
Time = Annotated[str | None, typer.Option(help="The column of times: dates, or numbers.")]
Every = Annotated[str | None, typer.Option(help="The step of time (D, h, W, MS, 1): absent steps become missing.")]
Missing = Annotated[str, typer.Option(help="Numbers or words that stand for a missing cell, as in -999,unknown.")]
Out = Annotated[Path | None, typer.Option(help="Write the answer: .csv, .tsv, .parquet, .npz or .json.")]
Plot = Annotated[Path | None, typer.Option(help="Draw the answer: .png, .pdf or .svg.")]
Show = Annotated[str | None, typer.Option(help="Which sequence to draw, by name or number; the first by default.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Emission = Annotated[
    str | None,
    typer.Option(
        help="What a state emits: gaussian, poisson, student-t, ... (a name that is none lists all); or by column: "
        "temp+wind:gaussian,sky:categorical. By default gaussian for numbers, categorical for words."
    ),
]
Symbols = Annotated[str, typer.Option(help="Columns of numbers that stand for symbols.")]
Covariance = Annotated[str | None, typer.Option(help="Of a gaussian: full, diagonal, spherical or tied.")]
Components = Annotated[int | None, typer.Option(help="Of a gaussian-mixture: how many in each state; 2 by default.")]
By = Annotated[
    str | None,
    typer.Option(help="em, vi (variational Bayes), online (em by batches), lbfgs or sgd; em where it can be."),
]
Iterations = Annotated[int, typer.Option(help="Iterations at most; of online and sgd, passes over the data.")]
LearningRate = Annotated[float | None, typer.Option(help="Of sgd; 0.05 by default.")]
Batch = Annotated[int | None, typer.Option(help="Sequences a step of online (32 by default) or sgd (all by default).")]
Restarts = Annotated[int | None, typer.Option(help="Starts, the best is kept; 4, of linear-gaussian 1.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Makes the answer repeatable.")]


def add(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (fit, score, filter, smooth, decode, forecast, impute, sample, compare):
        app.command()(without_gradients(command))


def without_gradients(command: Callable[..., None]) -> Callable[..., None]:
    """The command with no graph kept of what it computes; fitting asks for one itself."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        import torch

        with torch.no_grad():
            command(*arguments, **options)

    return run


class Question(NamedTuple):
    """A model, data for it, and where the answer goes."""

    model: Any
    data: Data
    y: list[Any]
    out: Path | None
    plot: Path | None
    sequence: int
    as_json: bool

    @property
    def inputs(self) -> list[Any] | None:
        """What acts on the model, a table a sequence."""
        return self.data.u()

    @property
    def shown(self) -> slice:
        """The rows of the sequence that is drawn."""
        return self.data.steps(self.sequence)

    def picture(self) -> dict[str, Any]:
        """What every picture is told of the sequence that is drawn."""
        return pictures.captions(self.data, self.sequence)

    def observed(self) -> Any:
        """The observations of the sequence that is drawn, (T, C), NaN missing."""
        return self.data.values[self.shown]

    def answer(self, frame: Any, draw: Any) -> None:
        """Write, or print, the frame, and draw the picture."""
        deliver(frame, self.out, self.as_json)
        if self.plot is not None:
            screen.save_plot(draw(), self.plot)


def deliver(frame: Any, out: Path | None, as_json: bool) -> None:
    """Write a frame to a file, or print it."""
    if out is None:
        screen.show(frame, as_json)
    else:
        write(frame, out)


def ask(
    model: Path,
    data: Path,
    columns: str,
    inputs: str,
    sequence: str | None,
    time: str | None,
    every: str | None,
    out: Path | None,
    plot: Path | None,
    show: str | None,
    as_json: bool,
    missing: str = "",
) -> Question:
    """Read a model and the data it is asked about; every name is checked before any work is done."""
    _check(out, plot)
    found, names = open_model(model)
    given = read_for(data, names, columns, inputs, sequence, time, every, missing)
    screen.note(given.notes)
    return Question(found, given, given.y(found.emission.event), out, plot, given.which(show), as_json)


def _check(out: Path | None, plot: Path | None) -> None:
    if out is not None:
        writer(out)
        screen.check_file(out)
    screen.check_plot(plot)


def open_model(path: Path) -> tuple[Any, dict[str, Any]]:
    """A model, and what is kept beside it: what its columns are called, the words it knows."""
    from statespan.files import load_with_extra

    model, extra = load_with_extra(path)
    return model.eval(), extra


def read_for(
    path: Path,
    extra: dict[str, Any],
    columns: str,
    inputs: str,
    sequence: str | None,
    time: str | None,
    every: str | None,
    missing: str = "",
) -> Data:
    """Data read the way the model's own were."""
    from statespan.tables import Columns as Names

    if "vocabulary" in extra:
        from statespan.language.vocabulary import Vocabulary

        if path.suffix.lower() not in TEXTS:
            raise StatespanError(f"{path}: this model is of words; give a text ({', '.join(TEXTS)})")
        return read_words(path, Vocabulary.from_json(extra["vocabulary"]), extra.get("level", "words"))[0]
    known = Names.from_json(extra["columns"]) if "columns" in extra else None
    return read(path, split(columns), (), sequence, time, every, known, _acting(inputs, known), split(missing))


def _acting(inputs: str, known: Any) -> list[str]:
    """The columns of inputs, as many as the model has where that is known."""
    acting = split(inputs)
    if known and acting and len(acting) != len(known.inputs):
        if not known.inputs:
            raise StatespanError(f"--inputs {inputs}: the model has no inputs; leave it out")
        raise StatespanError(
            f"--inputs {inputs}: the model has {len(known.inputs)} ({', '.join(known.inputs)}); name as many"
        )
    return acting


def split(names: str) -> list[str]:
    """`a,b` as a list."""
    return [name.strip() for name in names.split(",") if name.strip()]


@contextmanager
def located(data: Data) -> Iterator[None]:
    """Errors of the library told by the place in the file."""
    try:
        yield
    except StatespanError as error:
        raise StatespanError(data.located(str(error))) from error


# --------------------------------------------------------------------------------------------------- fit


def fit(
    data: DataFile,
    model: Annotated[
        str,
        typer.Option(
            help="hmm, linear-gaussian, or what makes a structural series, as in 'level + slope + seasonal(12)' "
            "or 'arima(0, 1, 1)': level, slope, seasonal, cycle, regression (on --inputs), autoregressive, arima."
        ),
    ] = "hmm",
    states: Annotated[int | None, typer.Option(help="How many hidden states an hmm has; 2 by default.")] = None,
    state: Annotated[
        int | None, typer.Option(help="How many numbers the state of a linear-gaussian model is; 1 by default.")
    ] = None,
    emission: Emission = None,
    columns: Columns = "",
    inputs: Inputs = "",
    symbols: Symbols = "",
    sequence: Sequence = None,
    time: Time = None,
    every: Every = None,
    missing: Missing = "",
    covariance: Covariance = None,
    components: Components = None,
    by: By = None,
    iterations: Iterations = 100,
    learning_rate: LearningRate = None,
    batch: Batch = None,
    restarts: Restarts = None,
    seed: Seed = 0,
    characters: Annotated[bool, typer.Option("--characters", help="Of a text: letters, not words.")] = False,
    at_least: Annotated[int, typer.Option(help="Of a text: rarer words are read as <unk>.")] = 2,
    out: Annotated[Path, typer.Option(help="Where the model is written.")] = Path("model.safetensors"),
    plot: Plot = None,
) -> None:
    """Fit a model to data, and write it.

    statespan fit weather.csv --time date --columns temp,wind --states 3

    statespan fit sales.csv --time month --model "level + slope + seasonal(12)" --plot parts.png
    """
    from statespan.cli import fitting, summary
    from statespan.cli.models import Wanted, kind

    _check(None, plot)
    screen.check_file(out)
    asked = kind(model, emission is not None)
    given, extra = _to_fit(
        data, columns, inputs, symbols, emission, sequence, time, every, missing, characters, at_least
    )
    screen.note(given.notes)
    wanted = Wanted(states, state, emission, covariance, components, seed)
    starts = asked.starts if restarts is None else restarts
    plan = fitting.Plan(by, iterations, learning_rate, batch, starts, seed)
    with located(given):
        done = fitting.fit(lambda number: asked.make(given, wanted._replace(seed=number)), given, plan)
    fitting.save(done.model, out, extra)
    if done.stopped is not None:
        raise screen.Stopped(f"{done.stopped} are kept in {out}")
    screen.note(done.notes)
    with located(given):
        summary.show(done.model, given, asked.describe)
    screen.console().print(f"\nmodel: {out}", markup=False, soft_wrap=True)
    if plot is not None:
        screen.save_plot(asked.draw(done.model, given), plot)


def _to_fit(
    path: Path,
    columns: str,
    inputs: str,
    symbols: str,
    emission: str | None,
    sequence: str | None,
    time: str | None,
    every: str | None,
    missing: str,
    characters: bool,
    at_least: int,
) -> tuple[Data, dict[str, Any]]:
    """Data to fit, and what is to be kept with the model."""
    from statespan.cli.models import named_columns, of_symbols
    from statespan.language.corpora import utf8
    from statespan.tables.files import spaced

    if path.suffix.lower() in TEXTS:
        options = {"columns": columns, "inputs": inputs, "symbols": symbols, "sequence": sequence, "time": time}
        for option, value in (options | {"every": every, "emission": emission, "missing": missing}).items():
            if value:
                raise StatespanError(
                    f"--{option} {value}: {path} is read as a text, which has no columns; leave it out"
                )
        if spaced(utf8(path)):
            raise StatespanError(f"{path}: columns of numbers, in a name that is read as sentences; end it in .csv")
        level = "characters" if characters else "words"
        data, vocabulary = read_words(path, None, level, at_least)
        return data, {"vocabulary": vocabulary.to_json(), "level": level}
    if characters:
        raise StatespanError(f"--characters: {path} is no text ({', '.join(TEXTS)}); leave it out")
    asked, coded, acting = split(columns), split(symbols), split(inputs)
    groups = named_columns(emission)
    if groups:
        listed = [column for group, _ in groups for column in group]
        left = [column for column in asked if column not in listed]
        if left:
            raise StatespanError(f"--emission {emission}: column {left[0]} has none; say {left[0]}:name too")
        asked = listed  # in the order of the emissions
        coded += [column for group, name in groups if of_symbols(name) for column in group]
    elif emission is not None and of_symbols(emission):
        asked = asked or _only(path, sequence, time, acting)
        coded += asked
    data = read(path, asked, coded, sequence, time, every, inputs=acting, missing=split(missing))
    for name, column in zip(data.columns.names, data.values.T, strict=True):
        if not (column == column).any():
            raise StatespanError(f"{path}: column {name} is empty, and says nothing; leave it out with --columns")
    if not groups:
        data = data.ordered(key=lambda name: name in data.columns.words)
    return data, {"columns": data.columns.to_json()}


def _only(path: Path, sequence: str | None, time: str | None, inputs: list[str]) -> list[str]:
    """The columns that are observed where none is named."""
    from statespan.tables import read_table

    table = read_table(path)
    keys = {table.name(key) for key in (sequence, time, *inputs) if key is not None} | {table.sequence}
    return table.observed(keys)


# ---------------------------------------------------------------------------------------------- questions


def score(
    model: ModelFile,
    data: DataFile,
    each_step: Annotated[bool, typer.Option("--each-step", help="The surprise of each step, in nats.")] = False,
    columns: Columns = "",
    inputs: Inputs = "",
    sequence: Sequence = None,
    time: Time = None,
    every: Every = None,
    missing: Missing = "",
    out: Out = None,
    plot: Plot = None,
    show: Show = None,
    as_json: Json = False,
) -> None:
    """How probable each sequence is, or how surprising each step.

    statespan score model.safetensors weather.csv --each-step --plot surprise.png
    """
    from statespan.cli import frames
    from statespan.plots import plot_surprise

    asked = ask(model, data, columns, inputs, sequence, time, every, out, plot, show, as_json, missing)
    with located(asked.data):
        posterior = asked.model.filter(asked.y, inputs=asked.inputs)
    frame = frames.surprises if each_step else frames.scores
    asked.answer(
        frame(asked.data, posterior),
        lambda: plot_surprise(posterior.surprise[asked.sequence], times=asked.picture()["times"]),
    )


def filter(
    model: ModelFile,
    data: DataFile,
    columns: Columns = "",
    inputs: Inputs = "",
    sequence: Sequence = None,
    time: Time = None,
    every: Every = None,
    missing: Missing = "",
    out: Out = None,
    plot: Plot = None,
    show: Show = None,
    as_json: Json = False,
) -> None:
    """The state at each step, given the steps up to it.

    statespan filter model.safetensors weather.csv --out states.csv
    """
    asked = ask(model, data, columns, inputs, sequence, time, every, out, plot, show, as_json, missing)
    with located(asked.data):
        _believe(asked, asked.model.filter(asked.y, inputs=asked.inputs))


def smooth(
    model: ModelFile,
    data: DataFile,
    columns: Columns = "",
    inputs: Inputs = "",
    sequence: Sequence = None,
    time: Time = None,
    every: Every = None,
    missing: Missing = "",
    out: Out = None,
    plot: Plot = None,
    show: Show = None,
    as_json: Json = False,
) -> None:
    """The state at each step in hindsight, given all steps.

    statespan smooth model.safetensors weather.csv --plot states.png
    """
    asked = ask(model, data, columns, inputs, sequence, time, every, out, plot, show, as_json, missing)
    with located(asked.data):
        _believe(asked, asked.model.smooth(asked.y, inputs=asked.inputs))


def _believe(asked: Question, posterior: Any) -> None:
    from statespan.cli import frames
    from statespan.plots import plot_posterior

    frame = frames.beliefs(asked.data, posterior)
    asked.answer(frame, lambda: plot_posterior(posterior, asked.sequence, y=asked.observed(), **asked.picture()))


def decode(
    model: ModelFile,
    data: DataFile,
    paths: Annotated[int | None, typer.Option(help="The k likeliest paths, with their log-probabilities.")] = None,
    columns: Columns = "",
    inputs: Inputs = "",
    sequence: Sequence = None,
    time: Time = None,
    every: Every = None,
    missing: Missing = "",
    out: Out = None,
    plot: Plot = None,
    show: Show = None,
    as_json: Json = False,
) -> None:
    """The likeliest path of states.

    statespan decode model.safetensors weather.csv --out path.csv
    """
    from statespan.cli import frames
    from statespan.plots import plot_paths

    if paths is not None and paths < 1:
        raise StatespanError(f"--paths {paths}: ask for at least one")
    asked = ask(model, data, columns, inputs, sequence, time, every, out, plot, show, as_json, missing)
    try:
        with located(asked.data):
            found = asked.model.decode(asked.y, k=paths, inputs=asked.inputs)
    except TypeError as error:
        raise StatespanError(f"{model}: {error}") from error
    decoded, log_prob = (found, None) if paths is None else found
    frame = frames.paths(asked.data, decoded, log_prob)
    asked.answer(
        frame,
        lambda: plot_paths(
            decoded[asked.sequence],
            None if log_prob is None else log_prob[asked.sequence],
            y=asked.observed(),
            **asked.picture(),
        ),
    )


def forecast(
    model: ModelFile,
    data: DataFile,
    steps: Annotated[int, typer.Option(help="How many steps ahead.")] = 10,
    quantiles: Annotated[str, typer.Option(help="Which quantiles.")] = "0.05,0.25,0.5,0.75,0.95",
    samples: Annotated[int, typer.Option(min=1, help="Futures drawn, for the quantiles.")] = 2000,
    seed: Seed = 0,
    columns: Columns = "",
    inputs: Inputs = "",
    future: Future = None,
    sequence: Sequence = None,
    time: Time = None,
    every: Every = None,
    missing: Missing = "",
    out: Out = None,
    plot: Plot = None,
    show: Show = None,
    as_json: Json = False,
) -> None:
    """What comes next: means and quantiles, or probabilities.

    statespan forecast model.safetensors weather.csv --steps 14 --plot fan.png
    """
    from statespan.cli import frames
    from statespan.plots import plot_forecast

    levels = frames.quantile_list(quantiles)
    asked = ask(model, data, columns, inputs, sequence, time, every, out, plot, show, as_json, missing)
    _check_future(future, asked.data.columns.inputs, "forecast")
    coming = None if future is None else read_ahead(future, asked.data, steps)
    with located(asked.data):
        lost = asked.model.log_prob(asked.y, inputs=asked.inputs).isneginf()
        if bool(lost.any()):
            name = asked.data.labels[int(lost.nonzero()[0])]
            raise StatespanError(f"sequence {name}: the model gives it probability zero, and nothing follows; mend it")
        found = asked.model.forecast(
            asked.y, steps=steps, samples=samples, seed=seed, inputs=asked.inputs, future=coming
        )
    frame = frames.forecasts(asked.data, found, steps, levels)
    ahead = frame[asked.data.keys[-1]].iloc[asked.sequence * steps :][:steps]

    def draw() -> Any:
        return plot_forecast(found, asked.sequence, y=asked.observed(), ahead=ahead, **asked.picture())

    asked.answer(frame, draw)


def _check_future(path: Path | None, names: Any, verb: str) -> None:
    """That the inputs to come are given where there are any."""
    if names and path is None:
        raise StatespanError(
            f"{verb}: the model has inputs ({', '.join(names)}); give those of the steps to come with --future FILE"
        )
    if path is not None and not names:
        raise StatespanError(f"--future {path}: the model has no inputs; leave it out")


def impute(
    model: ModelFile,
    data: DataFile,
    columns: Columns = "",
    inputs: Inputs = "",
    sequence: Sequence = None,
    time: Time = None,
    every: Every = None,
    missing: Missing = "",
    out: Out = None,
    plot: Plot = None,
    show: Show = None,
    as_json: Json = False,
) -> None:
    """The data with what is missing filled in.

    Numbers by their posterior mean, symbols by the likeliest.

    statespan impute model.safetensors weather.csv --out whole.csv
    """
    from statespan.cli import frames
    from statespan.plots import plot_imputed

    asked = ask(model, data, columns, inputs, sequence, time, every, out, plot, show, as_json, missing)
    with located(asked.data):
        filled = asked.model.impute(asked.y, inputs=asked.inputs)
    asked.answer(
        frames.imputed(asked.data, filled),
        lambda: plot_imputed(asked.observed(), filled[asked.sequence], **asked.picture()),
    )


def sample(
    model: ModelFile,
    data: Annotated[
        Path | None, typer.Argument(metavar="[DATA]", help="Draw paths of states given these data; else new sequences.")
    ] = None,
    n: Annotated[int, typer.Option("-n", help="How many sequences, or paths.")] = 1,
    length: Annotated[int, typer.Option(help="Steps of a new sequence.")] = 100,
    seed: Seed = 0,
    columns: Columns = "",
    inputs: Inputs = "",
    future: Future = None,
    sequence: Sequence = None,
    time: Time = None,
    every: Every = None,
    missing: Missing = "",
    out: Out = None,
    plot: Plot = None,
    show: Show = None,
    as_json: Json = False,
) -> None:
    """New sequences; with DATA, paths of states given these.

    statespan sample model.safetensors -n 10 --length 365 --out years.csv

    statespan sample model.safetensors weather.csv -n 5 --plot paths.png
    """
    from statespan.cli import frames
    from statespan.plots import plot_paths
    from statespan.tables import Columns as Names

    if data is not None:
        asked = ask(model, data, columns, inputs, sequence, time, every, out, plot, show, as_json, missing)
        with located(asked.data):
            drawn = asked.model.sample_posterior(asked.y, n=n, seed=seed, inputs=asked.inputs)
        one = drawn[asked.sequence].transpose(0, 1)
        frame = frames.drawn_paths(asked.data, drawn)
        asked.answer(frame, lambda: plot_paths(one, None, y=asked.observed(), **asked.picture(), name="path drawn"))
        return
    _check(out, plot)
    found, extra = open_model(model)
    known = Names.from_json(extra["columns"]) if "columns" in extra else None
    acting = _acting(inputs, known) or (known.inputs if known else ())
    _check_future(future, acting, "sample")
    given = None if future is None else read_inputs(future, acting, length)
    states, y = found.sample(n=n, length=length, seed=seed, inputs=given)
    names, words = _spoken(extra, 1 if y.dim() == 2 else y.shape[2])
    deliver(frames.sampled(None, states, y, names, words), out, as_json)
    if plot is not None:
        screen.save_plot(plot_paths(states[0], None, y=y[0].double(), columns=names, words=words, name="state"), plot)


def _spoken(extra: dict[str, Any], width: int) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What the columns and symbols of a model are called."""
    if "vocabulary" in extra:
        from statespan.language.vocabulary import Vocabulary

        return ("word",), {"word": Vocabulary.from_json(extra["vocabulary"]).words}
    if "columns" in extra:
        return tuple(extra["columns"]["names"]), extra["columns"]["words"]
    return tuple(f"y_{c}" for c in range(width)), {}


def compare(
    files: Annotated[list[Path], typer.Argument(metavar="[MODEL]... DATA", help="Model files, and then the data.")],
    states: Annotated[str, typer.Option(help="Fit an hmm for each of these numbers of states: 2-6, or 2,4,8.")] = "",
    folds: Annotated[int, typer.Option(help="With --states: cross-validate, this often; 0 does without.")] = 0,
    emission: Emission = None,
    columns: Columns = "",
    inputs: Inputs = "",
    symbols: Symbols = "",
    sequence: Sequence = None,
    time: Time = None,
    every: Every = None,
    missing: Missing = "",
    covariance: Covariance = None,
    components: Components = None,
    by: By = None,
    iterations: Iterations = 100,
    learning_rate: LearningRate = None,
    batch: Batch = None,
    restarts: Restarts = None,
    seed: Seed = 0,
    out: Out = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Models, or numbers of states, on the same data (AIC, BIC).

    statespan compare two.safetensors three.safetensors weather.csv

    statespan compare weather.csv --states 2-6 --folds 5
    """
    from statespan.cli import fitting, summary
    from statespan.cli.models import KINDS, Wanted
    from statespan.plots import plot_criteria
    from statespan.tables.files import pandas

    _check(out, plot)
    *models, data = files
    counts = _counts(states)
    if folds < 0:
        raise StatespanError(f"--folds {folds}: give 2 or more, or 0 to do without")
    if not models and not counts:
        raise StatespanError("compare: give model files before the data, or numbers of states as --states 2-6")
    rows: list[dict[str, Any]] = []
    seen: set[tuple[str, ...]] = set()
    for path in models:
        model, extra = open_model(path)
        given = read_for(data, extra, columns, inputs, sequence, time, every, missing)
        screen.note(() if rows else given.notes)
        seen.add(given.columns.names)
        with located(given):
            rows.append({"model": str(path)} | summary.criteria(model, given))
    if counts:
        given, _ = _to_fit(data, columns, inputs, symbols, emission, sequence, time, every, missing, False, 2)
        screen.note(given.notes)
        seen.add(given.columns.names)
        hmm = KINDS["hmm"]
        starts = hmm.starts if restarts is None else restarts
        plan = fitting.Plan(by, iterations, learning_rate, batch, starts, seed)
        for count in counts:
            wanted = Wanted(count, None, emission, covariance, components, seed)

            def maker(number: int, wanted: Wanted = wanted) -> Any:
                return hmm.make(given, wanted._replace(seed=number))

            with located(given):
                done = fitting.fit(maker, given, plan, f"{count} states")
                row: dict[str, Any] = {} if not models else {"model": ""}
                row |= {"states": count} | summary.criteria(done.model, given)
                if folds and done.stopped is None:
                    row["cv"] = fitting.cross_validate(done.model, given, plan, folds)
            if done.stopped is not None:
                deliver(pandas().DataFrame(rows), out, as_json)
                raise screen.Stopped("what was compared is shown")
            rows.append(row)
    frame = pandas().DataFrame(rows)
    if "states" in frame:
        frame["states"] = frame["states"].astype("Int64")  # a model without is no 3.0 for the others
    deliver(frame, out, as_json)
    if len(seen) > 1:
        screen.note(["the models observe different columns, and their likelihoods do not compare"])
    if plot is not None:
        screen.save_plot(plot_criteria(rows), plot)


def _counts(text: str) -> list[int]:
    """`2-6` or `2,4,8` as numbers."""
    found: list[int] = []
    for each in split(text):
        low, dash, high = each.partition("-")
        if not low.isdigit() or (dash and not high.isdigit()) or not 1 <= int(low) <= int(high or low):
            raise StatespanError(f"--states {text}: give numbers, as in 2-6 or 2,4,8")
        found += range(int(low), int(high or low) + 1)
    return list(dict.fromkeys(found))
