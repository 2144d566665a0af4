"""The command line."""

import json
import shlex
import sys
import time
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from statespan.errors import StatespanError
from statespan.version import __version__

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
ladder_app = typer.Typer(no_args_is_help=True, help="The ladder between the HMM and the LSTM.")
app.add_typer(ladder_app, name="ladder")


def main() -> None:
    """Run the command line: exit code 0, 2 with one line on bad input, 130 on Ctrl-C."""
    try:
        code = app(standalone_mode=False)
    except StatespanError as error:
        print(f"statespan: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("statespan: stopped; what was done is kept", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except typer.Abort:
        print("statespan: stopped; what was done is kept", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        print(f"statespan: {error.format_message()}; see statespan --help", file=sys.stderr)  # type: ignore[attr-defined]
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"statespan {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Sequence models with a hidden state, from the HMM to the LSTM."""


@ladder_app.command("run")
def ladder_run(
    recipe: Annotated[
        str, typer.Argument(help="A recipe file, or the name of one that ships: kjv, ptb-small.")
    ] = "kjv",
    out: Annotated[Path | None, typer.Option(help="Where models, results and the report go.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    text: Annotated[
        Path | None, typer.Option(help="Your own text, a sentence a line, instead of the recipe's.")
    ] = None,
    tagged: Annotated[Path | None, typer.Option(help="Your own tagged text: CoNLL-U, or word/TAG.")] = None,
    only: Annotated[str, typer.Option(help="Some rows alone, such as elman,lstm.")] = "",
    epochs: Annotated[int, typer.Option(help="Passes over the text, instead of the recipe's.")] = 0,
    open_report: Annotated[bool, typer.Option("--open", help="Open the report when done.")] = False,
) -> None:
    """Train every rung of a recipe on one text and write the report."""
    from statespan.ladder import recipe as recipes
    from statespan.ladder import report
    from statespan.ladder import run as runs

    began = time.time()
    path = _recipe(recipe)
    plan = recipes.read(path)
    if text is not None and tagged is not None:
        raise StatespanError("give --text or --tagged, not both")
    own = text or tagged
    if own is not None:
        form = "" if text is not None else "conllu" if own.suffix in (".conllu", ".conll") else "tagged"
        mine = recipes.Text(train=str(own.resolve()), form=form, vocabulary=plan.text.vocabulary)
        plan = replace(plan, text=mine, title=own.stem, paper=False)
    if only:
        plan = recipes.only(plan, [name.strip() for name in only.split(",") if name.strip()])
    if epochs:
        rows = tuple(replace(e, how=replace(e.how, epochs=epochs)) for e in plan.entries)
        plan = replace(plan, entries=rows)
    out = out or Path("out") / (own.stem if own is not None else path.stem)
    console = _console()
    material = runs.read_text(plan.text, path.parent)
    _say_text(console, material)
    if not resume:
        for entry in plan.entries:
            for name in ("record.json", "checkpoint.safetensors"):
                (runs.folder_of(out, entry) / name).unlink(missing_ok=True)
    records = {e.name: r for e in plan.entries if (r := runs.finished(out, e, plan)) is not None}
    todo = [e for e in plan.entries if e.name not in records]
    runs.store(material, out / "text.safetensors")
    counts = runs.references(plan, material)
    failures: list[str] = []
    try:
        if todo:
            expected = runs.estimate(plan, todo, material)
            _say_time(console, expected.total, len(todo), plan.workers, len(records))
            failures = _follow(
                console, runs.execute(plan, todo, out / "text.safetensors", out, expected.rows), todo, expected, records
            )
    finally:
        command = shlex.join(["statespan", *sys.argv[1:]])
        ordered = [records.get(e.name) or _unfinished(runs, e, material, plan, failures) for e in plan.entries]
        results = runs.summary(plan, material, [*ordered, *counts], command, began, time.time() - began)
        _write(runs, report, out, results)
    console.print(report.table(results))
    console.print(
        f"report: {out / 'report.html'}   models: {out}/*/model.safetensors   {_minutes(time.time() - began)}"
    )
    if open_report:
        webbrowser.open((out / "report.html").resolve().as_uri())
    if failures:
        raise StatespanError(failures[0].splitlines()[0])


@ladder_app.command("report")
def ladder_report(directory: Annotated[Path, typer.Argument(help="The folder of a run.")]) -> None:
    """Write the report of a run again, and print its table."""
    from statespan.ladder import report

    try:
        results = report.load(directory)
    except ValueError as error:
        raise StatespanError(str(error)) from error
    target = directory / "report.html" if directory.is_dir() else directory.with_name("report.html")
    report.write(results, target)
    console = _console()
    console.print(report.table(results))
    console.print(f"report: {target}")


@ladder_app.command("list")
def ladder_list() -> None:
    """The rungs by name, with their four choices."""
    from statespan.ladder.rungs import CONDITIONS, FEEDS, LADDER, MOVES, SCORES

    for name, rung in LADDER.items():
        choices = "/".join(choice.name for choice in rung[:4])
        print(f"{name:34s} {choices:40s} {rung.method:10s} {rung.equations}")
    for what, table in (("condition", CONDITIONS), ("move", MOVES), ("feed", FEEDS), ("score", SCORES)):
        print(f"{what}: {', '.join(table)}")
    print("any legal condition/move/feed/score is a rung too")


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(help="A model.safetensors of a ladder run.")],
    prompt: Annotated[str, typer.Option(help="Words to go on from.")] = "",
    length: Annotated[int, typer.Option(help="Words at most.")] = 40,
    temperature: Annotated[float, typer.Option(help="Below 1 sharper, above 1 flatter.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes it repeatable.")] = None,
) -> None:
    """Text from a trained model, going on from a prompt."""
    from statespan.ladder.run import generate as continue_text

    print(continue_text(str(model), prompt, length, temperature, seed))


@app.command()
def bench(
    only: Annotated[str, typer.Option(help="Some benchmarks alone, by name: train, rungs, estep, import.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repeats.")] = False,
) -> None:
    """Print speed ratios against peers, measured in this run."""
    from statespan import benchmarks

    benchmarks.main([name for name in only.split(",") if name], quick)


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else 120)


def _recipe(name: str) -> Path:
    """A path, or the recipe of that name that ships with the package."""
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        return path
    here = Path(__file__).parent
    for folder in (here / "recipes", here.parent.parent / "recipes"):
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    raise StatespanError(f"{name}: no such recipe; give a .toml file, or kjv, ptb-small or ptb-10m")


def _say_text(console: Any, material: Any) -> None:
    counts = [sum(len(s) for s in part) for part in (material.train, material.valid, material.test)]
    console.print(
        f"[bold]{material.name}[/bold]: {counts[0]:,} / {counts[1]:,} / {counts[2]:,} tokens to learn, choose, test; "
        f"{len(material.vocabulary):,} symbols" + (f"; {len(material.tags)} tags" if material.tags else "")
    )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _say_time(console: Any, seconds: float, rows: int, workers: int, kept: int) -> None:
    done = f" ({kept} already done)" if kept else ""
    console.print(
        f"{rows} rungs{done}, {workers} at a time, one thread each: about {_minutes(seconds)} on this machine"
    )


def _follow(console: Any, events: Any, todo: list[Any], expected: Any, records: dict[str, Any]) -> list[str]:
    """Show progress, collect records; returns what failed."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    failures: list[str] = []
    live = console.is_terminal
    bars = Progress(
        TextColumn("{task.description:34s}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:3.0f} %  {task.fields[note]:34s}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not live,
    )
    share = {e.name: expected.rows.get(e.name, 1.0) for e in todo}
    done: dict[str, float] = {}
    with bars:
        whole = bars.add_task("all", total=sum(share.values()), note="")
        tasks: dict[str, Any] = {}
        for event in events:
            name = event.name
            if event.kind == "start":
                tasks[name] = bars.add_task(name, total=1.0, note="")
            elif event.kind == "progress":
                p = event.value
                done[name] = share[name] * min(p.tokens / max(p.total, 1), 1.0)
                valid = f"dev {p.valid:.1f}" if p.valid == p.valid else f"train {p.train:.0f}"
                note = f"{p.rate:,.0f} tokens/s  {valid}"
                bars.update(tasks[name], completed=p.tokens / max(p.total, 1), note=note)
            else:
                done[name] = share[name]
                bars.remove_task(tasks[name])
                if event.kind == "done":
                    records[name] = event.value
                    console.print(_line(event.value))
                else:
                    failures.append(event.value)
                    console.print(f"{name:36s} failed: {event.value.splitlines()[0]}", markup=False)
            bars.update(whole, completed=sum(done.values()))
    return failures


def _line(record: dict[str, Any]) -> str:
    return (
        f"{record['name']:36s} test perplexity {record['test_perplexity']:8.2f}   "
        f"{record['parameters']:>10,} parameters   {record['tokens_per_second']:>8,.0f} tokens/s   "
        f"{_minutes(record['seconds'])}"
    )


def _unfinished(runs: Any, entry: Any, material: Any, plan: Any, failures: list[str]) -> dict[str, Any]:
    """The record of a row that did not finish: what it was to be, and why not."""
    from statespan.ladder.rungs import find

    record = runs.describe(entry, find(entry.rung), runs.build(entry, material, plan.seed))
    why = next((f.splitlines()[0] for f in failures if entry.name in f), "stopped before it was done")
    blank = dict.fromkeys(
        (
            *("valid_perplexity", "test_perplexity", "valid_perplexity_independent", "test_perplexity_independent"),
            *("tokens_per_second", "seconds", "state_words", "state_usage", "tags"),
        )
    )
    return record | blank | {"curve": [], "samples": [], "note": why}


def _write(runs: Any, report: Any, out: Path, results: dict[str, Any]) -> None:
    from statespan.files import write_bytes

    write_bytes(out / "results.json", json.dumps(results, indent=1).encode())
    report.write(results, out / "report.html")


if __name__ == "__main__":
    main()
