"""`tortie bgp routes`: where a route comes from, and whom each node tells it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tortie.agent.client import ask
from tortie.base.addr import Net, parse_net
from tortie.base.errors import TortieError
from tortie.cli.choice import check_choice
from tortie.cli.node import sockets

if TYPE_CHECKING:
    from rich.text import Text

HEADINGS = ("PREFIX", "FROM", "VIA", "AS PATH", "COMMUNITIES", "BEST", "TOLD TO")


def routes(
    prefix: Annotated[str, typer.Argument(metavar="[PREFIX]", help="A network, a pool, or an address; or all.")] = "",
    node: Annotated[str, typer.Option("--node", metavar="NAME", help="A node of the lab; all of them if none.")] = "",
    lab: Annotated[str, typer.Option("--lab", metavar="NAME", help="A lab's nodes instead of this machine.")] = "",
    output: Annotated[str, typer.Option("-o", "--output", help="table or json.")] = "table",
) -> None:
    """Where each node has its routes from, which it uses and why, and which peers it tells. Exit status 1 when a node
    does not answer."""
    check_choice(output, ("table", "json"), "--output")
    if prefix:
        parse_net(prefix)
    answers = [_answer(name, path, prefix) for name, path in sockets(lab, node).items()]
    if output == "json":
        typer.echo(json.dumps(answers, indent=2, ensure_ascii=False))
    else:
        _show(answers, prefix)
    if any("error" in answer for answer in answers):
        raise typer.Exit(1)


def _answer(node: str, path: Path, prefix: str) -> Mapping[str, Any]:
    from urllib.parse import quote

    try:
        answer: Mapping[str, Any] = ask(path, f"/routes?prefix={quote(prefix)}")
        return answer
    except TortieError as error:
        return {"node": node, "routes": [], "rejected": [], "error": str(error)}


def _show(answers: Sequence[Mapping[str, Any]], prefix: str) -> None:
    from rich.console import Console
    from rich.text import Text

    from tortie.cli.output import aligned

    console = Console(highlight=False)
    for i, answer in enumerate(answers):
        console.print(Text(f"{chr(10) if i else ''}{answer['node']}", "bold"))
        if "error" in answer:
            console.print(Text(f"  {answer['error']}", "red"), soft_wrap=True)
        elif not answer["routes"]:
            console.print(f"  no route{f' to {prefix}' if prefix else 's'}")
        elif prefix:
            for line in _in_full(answer["routes"]):
                console.print(line, soft_wrap=True)
        else:
            print(aligned([HEADINGS, *map(_row, sorted(answer["routes"], key=_order))]), end="")
        for one in answer["rejected"]:
            told = f"  {one['prefix']}  told by {one['peer']}"
            console.print(Text.assemble(told, ("  rejected", "red"), f": {one['why']}"), soft_wrap=True)


def _order(route: Mapping[str, Any]) -> tuple[int, Net, bool]:
    """By network, the one that is used first."""
    net = parse_net(route["prefix"])
    return net.version, net, not route["best"]


def _row(route: Mapping[str, Any]) -> tuple[str, ...]:
    told = [one for one in route["told"] if one["told"]]
    everybody = f"{len(told)} of {len(route['told'])}" if route["told"] else "-"
    path, marks = " ".join(map(str, route["asPath"])), " ".join(route["communities"])
    best = "yes" if route["best"] else "no"
    return route["prefix"], route["protocol"], _way(route), path or "-", marks or "-", best, everybody


def _in_full(found: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
    """Each route with what its being best or not, and its being told or not, comes from."""
    from rich.text import Text

    for route in found:
        style = "green" if route["best"] else "yellow"
        line = f"  {route['prefix']}  {_way(route)}  from {route['protocol']} since {route['since'].partition('.')[0]}"
        yield Text.assemble(line, ("  best" if route["best"] else f"  not used: {route['why']}", style))
        said = [f"local preference {route['localPref']}"] if route["localPref"] is not None else []
        said += [f"AS path {' '.join(map(str, route['asPath']))}"] if route["asPath"] else []
        said += [f"communities {' '.join(route['communities'])}"] if route["communities"] else []
        if said:
            yield Text(f"      {', '.join(said)}", "dim")
        for one in route["told"]:
            mark = ("told     ", "green") if one["told"] else ("not told ", "red")
            extra = f" with {' '.join(one['communities'])}" if one["communities"] else ""
            wrong = "  (BIRD does otherwise than its configuration should have it)" if one["differs"] else ""
            yield Text.assemble("      ", mark, f"{one['peer']}{extra}: {one['why']}{wrong}")


def _way(route: Mapping[str, Any]) -> str:
    hops = (" dev ".join(filter(None, (hop["via"], hop["dev"]))) for hop in route["via"])
    return ", ".join(hops) or str(route["kind"])
