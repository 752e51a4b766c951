"""`tortie`: puts the commands together, and turns errors into one line and an exit status.

exit status   0 done   1 it did not work   2 what was asked for is wrong   130 interrupted

Modules of commands are imported at every start, so they import what is heavy inside the commands.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Annotated, Any

import typer

from tortie import __version__
from tortie.base.errors import ConfigError, TortieError
from tortie.cli import (
    agent,
    bgp,
    cluster_diags,
    cni,
    controllers,
    datastore,
    dialect,
    diff,
    dns,
    doctor,
    explain,
    fanout,
    flannel,
    flanneld,
    get,
    ipam,
    lab,
    label,
    lint,
    manifest,
    migrate,
    migrate_from,
    node,
    node_addresses,
    node_check,
    node_diags,
    node_health,
    node_run,
    patch,
    policy,
    proxy,
    resources,
    services,
    simulate,
    status,
    streams,
    uninstall,
    version,
    watch,
)
from tortie.cli.start import INTERRUPTED

COMMANDS: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("apply", resources.apply),
    ("create", resources.create),
    ("replace", resources.replace),
    ("patch", patch.patch),
    ("label", label.label),
    ("get", get.get),
    ("delete", resources.delete),
    ("validate", resources.validate),
    ("explain", explain.explain),
    ("simulate", simulate.simulate),
    ("diff", diff.diff),
    ("lint", lint.lint),
    ("doctor", doctor.doctor),
    ("status", status.status),
    ("agent", agent.agent),
    ("controllers", controllers.controllers),
    ("fanout", fanout.fanout),
    ("proxy", proxy.proxy),
    ("dns", dns.dns),
    ("manifest", manifest.manifest),
    ("uninstall", uninstall.uninstall),
    ("migrate", migrate_from.migrate),
    ("version", version.version),
)
"""`tortie NAME`: one function each, in the order of the help."""

GROUPS: tuple[tuple[str, typer.Typer], ...] = (
    ("lab", lab.app),
    ("node", node.app),
    ("bgp", bgp.app),
    ("watch", watch.app),
    ("ipam", ipam.app),
    ("policy", policy.app),
    ("cni", cni.app),
    ("datastore", migrate.app),
    ("cluster", cluster_diags.app),
    ("flannel", flannel.app),
    ("services", services.app),
)
"""`tortie NAME COMMAND`: one typer app each, as ("lab", lab.app)."""

OF_A_NODE: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("addresses", node_addresses.addresses),
    ("mtu", node_addresses.mtu),
    ("health", node_health.health),
    ("shutdown", status.shutdown),
    ("diags", node_diags.diags),
    ("checksystem", node_check.checksystem),
)
"""`tortie node NAME`: those that have a file of their own."""

FLANNELD = "flanneld"
"""A link of this name to `tortie` is `tortie flanneld`."""
CLOSED_PIPE = 1  # as typer ends when the pipe closes while a command prints
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Why nothing more can be written, to a file that Python does not name: standard output, mostly."""

# typer brings its own click from 0.20 on and click is a package of its own before; this is ClickException in both.
USAGE_ERROR: type[BaseException] = typer.BadParameter.__mro__[2]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tortie {__version__}")
        raise typer.Exit


def _tortie(
    print_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    allow_version_mismatch: Annotated[
        bool,
        typer.Option("--allow-version-mismatch", help="Work on a cluster of another version than this command's."),
    ] = False,
    context: Annotated[
        str, typer.Option("--context", metavar="NAME", help="The cluster of this context of the kubeconfig.")
    ] = "",
    log_level: Annotated[
        str,
        typer.Option(
            "--log-level",
            "-l",
            metavar="LEVEL",
            help="What is logged to standard error: panic, fatal, error, warn, info or debug; also $TORTIE_LOG_LEVEL.",
        ),
    ] = "",
) -> None:
    """Container networking, Calico's kind: resources in, routes and policy out."""
    datastore.begin(allow_version_mismatch, context)
    _log(log_level, os.environ.get("TORTIE_LOG_LEVEL", ""))


LOG_LEVELS = {
    "panic": "CRITICAL", "fatal": "CRITICAL", "error": "ERROR", "warn": "WARNING", "warning": "WARNING",
    "info": "INFO", "debug": "DEBUG", "trace": "DEBUG",
}  # fmt: skip
"""calicoctl's words, and those of agents, and Python's."""


def _log(asked: str, of_environment: str) -> None:
    """Nothing without a level. One of the environment that is none of these is a daemon's own affair. Raises
    ConfigError."""
    if asked and asked.lower() not in LOG_LEVELS:
        raise ConfigError(f'"{asked}" is not one of {", ".join(LOG_LEVELS)}', "--log-level")
    level = asked or of_environment
    if level.lower() not in LOG_LEVELS:
        return
    import logging

    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=LOG_LEVELS[level.lower()], format=form, stream=sys.stderr, force=True)


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
    for name, command in OF_A_NODE:
        node.app.command(name)(command)
    anything = {"allow_extra_args": True, "ignore_unknown_options": True}
    node.app.command("run", context_settings=anything)(node_run.run)
    app.command("flanneld", context_settings=flanneld.PASSED_ON)(flanneld.flanneld)
    for name, group in GROUPS:
        app.add_typer(group, name=name)
    return datastore.with_config(typer.main.get_command(app))  # type: ignore[no-any-return]


def main(arguments: Sequence[str] | None = None, program: str = "") -> int:
    """Run one command; the exit status. `program` is the name by which it is called, if that is not this process's."""
    if arguments is None:
        streams.begin()
    try:
        return _run(arguments, program)
    except BrokenPipeError:
        streams.drop_unwritten()
        return CLOSED_PIPE
    except OSError as error:
        told = of_a_file(error)
        if told is None:
            raise
        streams.drop_unwritten()
        return _refused([told])


def _run(arguments: Sequence[str] | None, program: str) -> int:
    """Raises OSError, for a bug or for a file that cannot be used."""
    if arguments is None and os.path.basename(sys.argv[0]) == FLANNELD:
        from tortie.flannel.__main__ import main as flanneld

        return flanneld(sys.argv[1:])
    dialect.begin(program or (dialect.TORTIE if arguments is not None else dialect.of_name(sys.argv[0])))
    try:
        given = None if arguments is None else list(arguments)
        status = command_line()(args=given, prog_name=dialect.program, standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except USAGE_ERROR as error:
        return _usage(error)
    except TortieError as error:
        return _refused([error])
    except ExceptionGroup as group:
        expected, bugs = group.split(TortieError)
        if expected is None or bugs is not None:
            raise
        return _refused(_leaves(expected))


def of_a_file(error: OSError) -> TortieError | None:
    """What a file that the command needs, or a full disk, has against it; None for what no caller can change."""
    if error.filename is not None:
        hint = ": try again as root" if isinstance(error, PermissionError) and os.geteuid() != 0 else ""
        return TortieError(f"{error.filename}: {error.strerror}{hint}")
    return TortieError(f"cannot write: {error.strerror}") if error.errno in NO_ROOM else None


def _refused(errors: Iterable[BaseException]) -> int:
    """One line for each; 2 if it is the input, all of it, that is wrong, but calicoctl has only 1."""
    status = _wrong_input()
    for error in errors:
        typer.echo(f"{_who()}{_one_line(str(error))}", err=True)
        status = status if isinstance(error, ConfigError) else 1
    return status


def _wrong_input() -> int:
    return 1 if dialect.is_calicoctl() else 2


def _who() -> str:
    """What is before an error."""
    return "" if dialect.is_calicoctl() else "tortie: "


def _usage(error: Any) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.ctx.get_help())
        return 0
    path = context.command_path if context is not None else dialect.program
    message = _one_line(error.format_message()).replace(": Value error, ", ": ")  # Python's word for it
    typer.echo(f"{_who()}{message} ({path} --help tells more)", err=True)
    return _wrong_input()


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
