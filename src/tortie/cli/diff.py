"""`tortie diff`: which connections a change of manifests opens or closes, for people before it is made and for CI."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from tortie.base.errors import ConfigError, TortieError
from tortie.cli.choice import check_choice
from tortie.cli.datastore import Datastore, Lab, asked

if TYPE_CHECKING:
    from rich.text import Text

    from tortie.calc.simulate import Simulation
    from tortie.calc.simulate.diff import Difference
    from tortie.model.meta import Resource
    from tortie.model.store import Store

LIVE = "live"
FAIL_ON = ("opens", "closes", "any")

Paths = list[str] | None


def diff(
    filename: Annotated[
        Paths,
        typer.Option("-f", "--filename", metavar="PATH|-", help="First before, then after; only after: --against."),
    ] = None,
    before: Annotated[
        Paths, typer.Option("--before", metavar="PATH", help="Manifests before; can be repeated.")
    ] = None,
    after: Annotated[Paths, typer.Option("--after", metavar="PATH", help="Manifests after. Repeatable.")] = None,
    against: Annotated[
        str, typer.Option("--against", metavar="live", help="Before is the cluster, after has the manifests applied.")
    ] = "",
    fail_on: Annotated[str, typer.Option("--fail-on", help="opens, closes or any: what ends with status 1.")] = "any",
    output: Annotated[str, typer.Option("-o", "--output", help="text or json.")] = "text",
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Say which connections a change opens or closes. Exit 0: none, 1: some, 2: the manifests are wrong."""
    from tortie.calc.simulate.diff import difference, to_document

    check_choice(output, ("text", "json"), "--output")
    check_choice(fail_on, FAIL_ON, "--fail-on")
    old, new = _sets(filename or [], before or [], after or [], against)
    first, second = simulations(old, new, datastore, lab)
    found = difference(first, second)
    if output == "json":
        typer.echo(json.dumps(to_document(found), indent=2, ensure_ascii=False))
    else:
        _show(found, first, second)
    if (found.opens and fail_on != "closes") or (found.closes and fail_on != "opens"):
        raise typer.Exit(1)


def _sets(files: list[str], before: list[str], after: list[str], against: str) -> tuple[list[str], list[str]]:
    """The paths of before and after; no paths before: the live cluster. Raises ConfigError."""
    if [*files, *before, *after].count("-") > 1:
        raise ConfigError("standard input can be read once: give a file for before, or for after", "-")
    if against not in ("", LIVE):
        raise ConfigError(f'"{against}" is not {LIVE}: name other manifests with --before', "--against")
    if against and before:
        raise ConfigError("--before and --against both say what was before: give one of them")
    if files and after:
        raise ConfigError("-f and --after both name manifests: give -f BEFORE -f AFTER, or --before and --after")
    if against:
        if not (files or after):
            raise ConfigError("nothing to compare with the cluster: give -f PATH")
        return [], files or after
    if files and len(files) == 2 and not before:
        return files[:1], files[1:]
    if before and after:
        return before, after
    raise ConfigError("two sets of manifests are compared: give -f BEFORE -f AFTER, or --before and --after")


def simulations(before: Sequence[str], after: Sequence[str], datastore: str, lab: str) -> tuple[Simulation, Simulation]:
    """Without paths of before it is the cluster as it is; then `after` is the same with the manifests applied."""
    from tortie.calc.simulate import Simulation

    with status_two():
        there = asked(datastore, lab, stored) if not before else []
        first = Simulation.read(before) if before else Simulation.of_stored(there)
        return first, Simulation.read(after, there, like=first)


@contextmanager
def status_two() -> Iterator[None]:
    """Every error is a ConfigError: an exit status of 1 would say that something was found."""
    try:
        yield
    except ConfigError:
        raise
    except TortieError as error:
        raise ConfigError(str(error)) from None


async def stored(store: Store) -> list[Resource]:
    """Everything in a datastore that has to do with who may talk to whom."""
    from tortie.calc.cluster import INPUTS
    from tortie.model.k8s import K8sNode, Pod
    from tortie.model.service import EndpointSlice, Service

    kinds: dict[type[Resource], None] = dict.fromkeys((*INPUTS, Pod, K8sNode, Service, EndpointSlice))
    return [one for kind in kinds for one in (await store.list(kind)).items]


def _show(found: Difference, before: Simulation, after: Simulation) -> None:
    from rich.console import Console

    from tortie.cli.simulate import notes

    console = Console(highlight=False)
    for line in _lines(found):
        console.print(line, soft_wrap=True)
    for said in dict.fromkeys((*notes(before), *notes(after))):
        console.print(said, style="dim", soft_wrap=True)


def _lines(found: Difference) -> Iterator[Text]:
    """Two lines of reasons below each change; at the end how much was compared."""
    from rich.text import Text

    for change in found.changes:
        verb = ("opens ", "bold green") if change.opens else ("closes", "bold red")
        sources, destinations = found.who(change.sources, change), found.who(change.destinations, change)
        yield Text.assemble(verb, f"  {sources} → {destinations}  ", (change.said, "bold"))
        yield Text(f"          was: {change.was.reason}", "dim")
        yield Text(f"          now: {change.now.reason}", "dim")
    for names, word in ((found.added, "added"), (found.removed, "removed")):
        if names:
            shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
            yield Text(f"{word}: {shown}")
    count = len(found.changes)
    changes = _counted(count, "change") if count else "no change of connectivity"
    scope = f"{_counted(len(found.pods), 'pod')} and {_counted(len(found.addresses), 'address')} outside"
    yield Text(f"{changes} among {scope}, all protocols and ports", "bold")


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}{'es' if word.endswith('s') else 's'}"
