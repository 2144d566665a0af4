"""The command line: `data`, `series` and `checking` hold the commands on files of data, `ladder` the ladder's."""

import sys
from typing import Annotated

import typer

from statespan.cli import checking, data, ladder, series
from statespan.cli.screen import Stopped
from statespan.errors import StatespanError
from statespan.version import __version__

BAD_INPUT = 2
INTERRUPTED = 130

AGAIN = {"ladder run": "--resume", "ladder sweep": "--resume", "ladder search": "the same command"}
"""What goes on after Ctrl-C, by command."""

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[2]
"""click's ClickException, the base of every usage error, wherever this version of typer keeps it."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
data.add(app)
series.add(app)
checking.add(app)
ladder.add(app)


def main() -> None:
    """Run the command line: exit code 0, 2 with one line on bad input, 130 on Ctrl-C with what was done kept."""
    try:
        code = app(standalone_mode=False)
    except StatespanError as error:
        sys.exit(_complain(str(error), BAD_INPUT))
    except USAGE_ERROR as error:
        sys.exit(_complain(f"{error.format_message().rstrip('.')}; see statespan --help", BAD_INPUT))  # type: ignore[attr-defined]
    except Stopped as stopped:
        sys.exit(_complain(f"stopped; {stopped}", INTERRUPTED))
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED  # which newer versions of typer return
    if code == INTERRUPTED:
        again = AGAIN.get(" ".join(sys.argv[1:3]))
        _complain(
            f"stopped; what was done is kept, and {again} goes on from there" if again else "stopped", INTERRUPTED
        )
    sys.exit(code if isinstance(code, int) else 0)


def _complain(what: str, code: int) -> int:
    """One line on standard error."""
    print(f"statespan: {' '.join(what.split())}", file=sys.stderr)
    return code


def _version(wanted: bool) -> None:
    if wanted:
        print(f"statespan {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Sequence models with a hidden state, from the HMM to the LSTM.

    Begin with your own data, a column a variable and a row a step:

    statespan fit weather.csv --time date --columns temp,wind --states 3

    statespan smooth model.safetensors weather.csv --plot states.png

    statespan forecast model.safetensors weather.csv --steps 14

    statespan check model.safetensors weather.csv

    Or with language models: statespan ladder run
    """
    if context.invoked_subcommand is None:
        print(context.get_help())
