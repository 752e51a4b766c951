"""`tortie`: puts the commands together, and turns errors into one line and an exit status.

exit status   0 done   1 it did not work   2 what was asked for is wrong   130 interrupted

Modules of commands are imported at every start, so they import what is heavy inside the commands.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Annotated, Any

import typer

from tortie import __version__
from tortie.base.errors import ConfigError, TortieError
from tortie.cli import agent, cni, controllers, explain, ipam, lab, migrate, node, resources

COMMANDS: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("apply", resources.apply),
    ("create", resources.create),
    ("replace", resources.replace),
    ("get", resources.get),
    ("delete", resources.delete),
    ("validate", resources.validate),
    ("explain", explain.explain),
    ("agent", agent.agent),
    ("controllers", controllers.controllers),
)
"""`tortie NAME`: one function each, in the order of the help."""

GROUPS: tuple[tuple[str, typer.Typer], ...] = (
    ("lab", lab.app),
    ("node", node.app),
    ("ipam", ipam.app),
    ("cni", cni.app),
    ("datastore", migrate.app),
)
"""`tortie NAME COMMAND`: one typer app each, as ("lab", lab.app)."""

INTERRUPTED = 128 + 2  # as a shell reports SIGINT
CLOSED_PIPE = 1  # as typer ends when the pipe closes while a command prints

# typer brings its own click from 0.20 on and click is a package of its own before; this is ClickException in both.
USAGE_ERROR: type[BaseException] = typer.BadParameter.__mro__[2]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tortie {__version__}")
        raise typer.Exit


def _tortie(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Container networking, Calico's kind: resources in, routes and policy out."""


@cache
def command_line() -> Callable[..., Any]:
    """The whole command line. It is worth keeping: typer takes 2 ms to read each command's signature."""
    app = typer.Typer(
        name="tortie",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # its help is prettier, but importing it takes longer than all the rest of a start
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_tortie)
    for name, command in COMMANDS:
        app.command(name)(command)
    for name, group in GROUPS:
        app.add_typer(group, name=name)
    return typer.main.get_command(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    try:
        given = None if arguments is None else list(arguments)
        status = command_line()(args=given, prog_name="tortie", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has gone: nothing more to flush to it
        return CLOSED_PIPE
    except USAGE_ERROR as error:
        return _usage(error)
    except TortieError as error:
        return _refused([error])
    except ExceptionGroup as group:
        expected, bugs = group.split(TortieError)
        if expected is None or bugs is not None:
            raise
        return _refused(_leaves(expected))


def _refused(errors: Iterable[BaseException]) -> int:
    """One line for each; 2 if it is the input, all of it, that is wrong."""
    status = 2
    for error in errors:
        typer.echo(f"tortie: {_one_line(str(error))}", err=True)
        status = status if isinstance(error, ConfigError) else 1
    return status


def _usage(error: Any) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        return 0  # the help is printed already
    path = context.command_path if context is not None else "tortie"
    typer.echo(f"tortie: {_one_line(error.format_message())} ({path} --help tells more)", err=True)
    return 2


def _leaves(group: BaseExceptionGroup[Any]) -> Iterable[BaseException]:
    for one in group.exceptions:
        if isinstance(one, BaseExceptionGroup):
            yield from _leaves(one)
        else:
            yield one


def _one_line(text: str) -> str:
    return " ".join(text.split("\n")).strip()


if __name__ == "__main__":
    sys.exit(main())
