"""`tortie lint`: what in a set of policies is probably not meant."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tortie.base.errors import ConfigError
from tortie.cli.choice import check_choice
from tortie.cli.datastore import Datastore, Lab, asked
from tortie.cli.diff import LIVE, status_two, stored
from tortie.cli.simulate import Files

if TYPE_CHECKING:
    from rich.text import Text

    from tortie.calc.lint import Finding
    from tortie.calc.simulate import Simulation

_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}


def lint(
    filename: Files,
    against: Annotated[
        str, typer.Option("--against", metavar="live", help="Pods and other policies are those of the cluster.")
    ] = "",
    level: Annotated[str, typer.Option("--level", help="From error, warning or info on the status is 1.")] = "warning",
    output: Annotated[str, typer.Option("-o", "--output", help="text or json.")] = "text",
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Find what in policies is probably not meant. Exit 0: nothing, 1: something, 2: the manifests are wrong."""
    from tortie.calc.lint import SEVERITIES, lint
    from tortie.calc.simulate import Simulation

    check_choice(output, ("text", "json"), "--output")
    check_choice(level, SEVERITIES, "--level")
    if against not in ("", LIVE):
        raise ConfigError(f'"{against}" is not {LIVE}', "--against")
    with status_two():
        simulation = Simulation.read(filename, asked(datastore, lab, stored) if against else ())
    found = lint(simulation)
    if output == "json":
        typer.echo(json.dumps([as_json(one) for one in found], indent=2, ensure_ascii=False))
    else:
        _show(found, simulation)
    if any(SEVERITIES.index(one.severity) <= SEVERITIES.index(level) for one in found):
        raise typer.Exit(1)


def as_json(finding: Finding) -> dict[str, Any]:
    file, _, document = finding.source.partition(": ")
    return {
        "code": finding.code,
        "severity": finding.severity,
        "file": file,
        "document": document,
        "object": finding.title,
        "path": finding.path,
        "message": finding.message,
        "hint": finding.hint,
    }


def _show(found: Sequence[Finding], simulation: Simulation) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for line in _lines(found):
        console.print(line, soft_wrap=True)
    if not simulation.endpoints:
        console.print("there are no pods: whether selectors match was not looked at", style="dim")


def _lines(found: Sequence[Finding]) -> Iterator[Text]:
    from rich.text import Text

    for one in found:
        yield Text.assemble((one.code, _STYLES[one.severity]), f" {one.severity}  ", (one.where, "bold"))
        yield Text(f"      {one.message}")
        if one.hint:
            yield Text(f"      {one.hint}", "dim")
    counted = Counter(str(one.severity) for one in found)
    words = [f"{counted[name]} {name}{'' if counted[name] == 1 or name == 'info' else 's'}" for name in _STYLES]
    yield Text(", ".join(words) if found else "nothing found", "bold")
