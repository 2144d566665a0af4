"""Commands of the ladder, of the texts it makes, and of speed."""

import shlex
import sys
import time
import webbrowser
from contextlib import closing
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from statespan.errors import StatespanError

ladder_app = typer.Typer(help="The ladder between the HMM and the LSTM: train it, look at it.")


def add(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(ladder_app, name="ladder")
    app.command()(generate)
    app.command()(bench)


@ladder_app.callback(invoke_without_command=True)
def ladder_root(context: typer.Context) -> None:
    """The ladder between the HMM and the LSTM: train it, look at it."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@ladder_app.command("run")
def ladder_run(
    recipe: Annotated[
        str, typer.Argument(help="A recipe file, or the name of one that ships: kjv, ptb-small, ptb-10m.")
    ] = "kjv",
    out: Annotated[
        Path | None, typer.Option(help="Folder for models and report; out/ and the recipe's name unless given.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    text: Annotated[
        Path | None, typer.Option(help="Your own text, a sentence a line, instead of the recipe's.")
    ] = None,
    tagged: Annotated[Path | None, typer.Option(help="Your own tagged text: CoNLL-U (.conllu), or word/TAG.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder that holds the files the recipe's [text] names.")] = None,
    only: Annotated[str | None, typer.Option(help="Some rows alone, such as elman,lstm.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the text, instead of the recipe's.")] = None,
    device: Annotated[str, typer.Option(help="Where to train, as torch names it: cpu, cuda, cuda:1.")] = "cpu",
    open_report: Annotated[bool, typer.Option("--open", help="Open the report in a browser when done.")] = False,
) -> None:
    """Train the rungs of a recipe on one text, and write the report."""
    from statespan.language import parallel

    with parallel.together():
        _run(recipe, out, resume, text, tagged, data, only, epochs, device, open_report)


def _run(
    recipe: str,
    out: Path | None,
    resume: bool,
    text: Path | None,
    tagged: Path | None,
    data: Path | None,
    only: str | None,
    epochs: int | None,
    device: str,
    open_report: bool,
) -> None:
    """What `ladder run` does, in one process or in each of several."""
    from dataclasses import replace

    from statespan.ladder import material as texts
    from statespan.ladder import recipe as recipes
    from statespan.ladder import terminal
    from statespan.ladder.run import Run
    from statespan.language import parallel

    path, own, plan = _plan(recipe, text, tagged, data, only, device)
    if parallel.processes() > 1:  # they share a row, so rows come one at a time
        plan = replace(plan, workers=1)
    screen = terminal.console()
    material = texts.read(plan.text, data or path.parent)
    terminal.say_text(screen, material)
    asked = plan
    if own is not None:
        plan = recipes.suited(plan, material.tokens)
    if epochs is not None:
        plan = recipes.passes(plan, epochs)
    elif plan != asked:
        terminal.say_small(screen, plan)
    run = Run(plan, material, out or Path("out") / (own or path).stem, resume)
    try:
        if run.todo:
            expected = run.estimate()
            terminal.say_time(screen, plan, expected, len(run.records))
            with closing(run.train(expected.rows)) as events:
                terminal.follow(screen, events, expected)
    finally:  # a run that was stopped has its report too
        results = run.results(shlex.join(["statespan", *sys.argv[1:]]))
        written = run.write(results)
    screen.print(terminal.table(results))
    screen.print(f"report: {written}", soft_wrap=True)
    screen.print(f"models: {run.out}/*/model.safetensors, for statespan generate and ss.load", soft_wrap=True)
    if open_report and parallel.place() == 0:
        webbrowser.open(written.resolve().as_uri())
    if run.failures:
        others = len(run.failures) - 1
        more = f" (and {others} more row{'s' if others > 1 else ''} not finished)" if others else ""
        raise StatespanError(next(iter(run.failures.values())) + more)


@ladder_app.command("sweep")
def ladder_sweep(
    recipe: Annotated[
        str, typer.Argument(help="A recipe with [sweep], or the name of one that ships: ptb-10m, ptb-200.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for trials; out/ and the recipe's name unless given.")
    ] = None,
    results: Annotated[
        Path, typer.Option(help="Folder of ladder.csv and tagging.csv, to which rows are added.")
    ] = Path("results"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a sweep that was stopped.")] = False,
    text: Annotated[
        Path | None, typer.Option(help="Your own text, a sentence a line, instead of the recipe's.")
    ] = None,
    tagged: Annotated[Path | None, typer.Option(help="Your own tagged text: CoNLL-U (.conllu), or word/TAG.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder that holds the files the recipe names.")] = None,
    only: Annotated[str | None, typer.Option(help="Some rows alone, such as elman,lstm.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random draw, instead of the recipe's.")] = None,
    workers: Annotated[int | None, typer.Option(help="Trials at a time, instead of the recipe's.")] = None,
    device: Annotated[str, typer.Option(help="Where to train, as torch names it: cpu, cuda, cuda:1.")] = "cpu",
) -> None:
    """Try a recipe's settings on each rung by successive halving, and keep the figures of what wins."""
    from dataclasses import replace

    from statespan.ladder import sweep

    path, own, plan = _plan(recipe, text, tagged, data, only, device)
    plan = replace(plan, seed=plan.seed if seed is None else seed, workers=workers or plan.workers)
    called = _called(path, own) + ("" if seed is None else f"-seed{seed}")
    screen, trials = _tried(plan, path, data, out or Path("out") / called, results)
    run = sweep.SweepRun(trials, resume)
    points = _counted(len(run.plan.points), "point")
    screen.print(f"{_counted(len(plan.entries), 'rung')}, {points} each; {_counted(run.epochs, 'epoch')} at most")
    _follow(screen, run)
    screen.print(f"results: {results}/*.csv; draw them with: statespan ladder report {results}", soft_wrap=True)
    if run.failures:
        raise StatespanError("; ".join(f"{name}: {why}" for name, why in run.failures.items()))


@ladder_app.command("search")
def ladder_search(
    recipe: Annotated[str, typer.Argument(help="A recipe with [search], or the name of one that ships: ptb-search.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for trials, of this search alone; out/ and the recipe's name.")
    ] = None,
    results: Annotated[
        Path, typer.Option(help="Folder of ladder.csv and tagging.csv, to which the best are added.")
    ] = Path("results"),
    storage: Annotated[
        str, typer.Option(help="Where the studies lie, such as postgresql://USER@HOST/DB; a SQLite file in --out.")
    ] = "",
    study: Annotated[str | None, typer.Option(help="Name of the study that is drawn from; the recipe's.")] = None,
    text: Annotated[
        Path | None, typer.Option(help="Your own text, a sentence a line, instead of the recipe's.")
    ] = None,
    tagged: Annotated[Path | None, typer.Option(help="Your own tagged text: CoNLL-U (.conllu), or word/TAG.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder that holds the files the recipe names.")] = None,
    only: Annotated[str | None, typer.Option(help="Some rows alone, such as elman,lstm.")] = None,
    trials: Annotated[int | None, typer.Option(help="Trials a row, by all searches together.")] = None,
    workers: Annotated[int | None, typer.Option(help="Trials at a time, instead of the recipe's.")] = None,
    device: Annotated[str, typer.Option(help="Where to train, as torch names it: cpu, cuda, cuda:1.")] = "cpu",
) -> None:
    """Search a recipe's space with Optuna, and keep the figures of the best.

    A study goes on where it stands. Searches with one --storage and an --out each, on one machine or on many, share it.
    """
    from dataclasses import replace

    from statespan.ladder import search

    path, own, plan = _plan(recipe, text, tagged, data, only, device)
    plan = replace(plan, workers=workers or plan.workers)
    if trials is not None and plan.search is not None:
        plan = replace(plan, search=replace(plan.search, trials=trials))
    called = _called(path, own)
    screen, tried = _tried(plan, path, data, out or Path("out") / called, results)
    run = search.SearchRun(tried, storage, study or called)
    screen.print(f"study {run.study} in {run.storage}", markup=False, soft_wrap=True)
    _follow(screen, run)
    for line in run.say():
        screen.print(line, markup=False, soft_wrap=True)


def _called(path: Path, own: Path | None) -> str:
    """What the folder of a recipe's trials is called."""
    return path.stem if own is None else f"{path.stem}-{own.stem}"


def _counted(number: int, what: str) -> str:
    """A number of things."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _tried(plan: Any, path: Path, data: Path | None, out: Path, results: Path) -> tuple[Any, Any]:
    """The screen, and a recipe on its text with gold tags, for trials."""
    from statespan.ladder import figures, terminal
    from statespan.ladder import material as texts
    from statespan.ladder.trials import Trials
    from statespan.language import parallel

    if parallel.started():
        raise StatespanError("trials share nothing, so torchrun is for ladder run; here, give --workers")
    folder = data or path.parent
    screen, material = terminal.console(), texts.read(plan.text, folder)
    terminal.say_text(screen, material)
    return screen, Trials(plan, path.stem, material, figures.read_gold(plan, material, folder), out, results)


def _follow(screen: Any, run: Any) -> None:
    """Print what happens to trials until it is over."""
    from statespan.ladder.trials import say

    began = time.monotonic()
    with closing(run.train()) as events:
        for event in events:
            if (line := say(event, time.monotonic() - began)) is not None:
                screen.print(line, markup=False, soft_wrap=True)


@ladder_app.command("report")
def ladder_report(
    directory: Annotated[
        Path, typer.Argument(help="The folder of a run, or the results.json in it; or the folder of a sweep's results.")
    ],
) -> None:
    """Write the report of a run again, and print its table; or draw the tables and figures of a sweep's results."""
    from statespan.files import write_bytes
    from statespan.ladder import ledger, report, tables, terminal

    if (directory / ledger.LADDER).is_file():
        written = tables.write(directory)
        print(written[0].read_text(encoding="utf-8"))
        print("written: " + ", ".join(map(str, written)))
        return
    try:
        results = report.load(directory)
    except ValueError as error:
        raise StatespanError(str(error)) from error
    target = (directory if directory.is_dir() else directory.parent) / "report.html"
    write_bytes(target, report.render(results).encode())
    screen = terminal.console()
    screen.print(terminal.table(results))
    screen.print(f"report: {target}", soft_wrap=True)


@ladder_app.command("list")
def ladder_list() -> None:
    """The rungs by name, with their four choices."""
    from statespan.ladder.rungs import CONDITIONS, FEEDS, LADDER, MOVES, SCORES

    print(f"{'rung':32s} {'condition/move/feed/score':40s} {'inference':10s} equations")
    for name, rung in LADDER.items():
        choices = "/".join(choice.name for choice in rung[:4])
        print(f"{name:32s} {choices:40s} {rung.method:10s} {rung.equations}".rstrip())
    print("\nAny legal condition/move/feed/score is a rung too, as in --only bayes/sigmoid/none/softmax. The choices:")
    for what, table in (("condition", CONDITIONS), ("move", MOVES), ("feed", FEEDS), ("score", SCORES)):
        print(f"{what + ':':10s} {', '.join(table)}")


def generate(
    model: Annotated[Path, typer.Argument(help="A model.safetensors of a ladder run.")],
    prompt: Annotated[str, typer.Option(help="Text to go on from; none begins a sentence.")] = "",
    length: Annotated[int, typer.Option(help="Words to add at most.")] = 40,
    temperature: Annotated[float, typer.Option(help="Below 1 sharper, above 1 flatter.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes the text repeatable.")] = None,
) -> None:
    """Text from a trained model, going on from a prompt."""
    from statespan.ladder.generate import generate as continued

    print(continued(str(model), prompt, length, temperature, seed))


def bench(
    only: Annotated[str, typer.Option(help="Some: train, rungs, estep, dynamax, viterbi, em, kalman, import.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repeats.")] = False,
) -> None:
    """Print speed ratios against peers, measured in this run."""
    from statespan import benchmarks

    benchmarks.main([name for name in only.split(",") if name], quick)


def _recipe(name: str) -> Path:
    """A path, or the recipe of that name that ships with the package."""
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        return path
    package = Path(__file__).parent.parent
    folders = (package / "recipes", package.parent.parent / "recipes")  # installed; in the repository
    shipped = {file.stem: file for folder in folders for file in sorted(folder.glob("*.toml"))}
    if name in shipped:
        return shipped[name]
    near = get_close_matches(name, shipped, 1, 0.3)
    hint = f"did you mean {near[0]}?" if near else f"give a .toml file, or one of {', '.join(shipped)}"
    raise StatespanError(f"{name}: there is no such recipe; {hint}")


def _plan(
    recipe: str, text: Path | None, tagged: Path | None, data: Path | None, only: str | None, device: str
) -> tuple[Path, Path | None, Any]:
    """The recipe's path, the user's own text if one is given, and the recipe for it."""
    from statespan.ladder import recipe as recipes
    from statespan.language import parallel

    path, own = _recipe(recipe), _own(text, tagged, data)
    plan = recipes.on_device(recipes.read(path), parallel.device(device))
    if own is not None:
        form = "text" if tagged is None else "conllu" if own.suffix in (".conllu", ".conll") else "tagged"
        plan = recipes.on_own_text(plan, own, form)
    return path, own, plan if only is None else recipes.only(plan, only)


def _own(text: Path | None, tagged: Path | None, data: Path | None) -> Path | None:
    """The user's own text, if one is given."""
    given = {name: path for name, path in (("--text", text), ("--tagged", tagged), ("--data", data)) if path}
    if len(given) > 1:
        raise StatespanError(f"{' and '.join(given)} are given; one of them says what is read, so leave out the others")
    if data is not None and not data.is_dir():
        raise StatespanError(f"--data {data}: there is no such folder; give the one that holds the recipe's files")
    return text or tagged
