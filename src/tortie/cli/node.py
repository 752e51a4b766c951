"""`tortie node`: what a node's agent says of itself."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tortie.agent.client import DEFAULT_SOCKET, ask
from tortie.base.addr import Net, parse_net
from tortie.base.errors import ConfigError, TortieError
from tortie.cli.datastore import LABS, labs_up

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="A node's state, from its agent.")

TYPES = {"Mesh": "node-to-node mesh", "Global": "global", "Node": "node specific"}


@app.callback()
def _node() -> None:
    """A node's state, from its agent."""


@app.command()
def status(
    node: Annotated[str, typer.Option("--node", metavar="NAME", help="A node of the lab; all of them if none.")] = "",
    lab: Annotated[str, typer.Option("--lab", metavar="NAME", help="A lab's nodes instead of this machine.")] = "",
    output: Annotated[str, typer.Option("-o", "--output", help="table or json.")] = "table",
) -> None:
    """BGP peers and routes, as BIRD has them. Exit status 1 when a node does not answer or its BIRD does not."""
    if output not in ("table", "json"):
        raise ConfigError(f'"{output}" is not one of table, json', "--output")
    answers = [_answer(name, path) for name, path in sockets(lab, node).items()]
    if output == "json":
        typer.echo(json.dumps(answers, indent=2))
    else:
        for i, answer in enumerate(answers):
            print("\n" if i else "", end="")
            _show(answer)
    if any(answer["bird"]["state"] == "not ready" for answer in answers):
        raise typer.Exit(1)


def sockets(lab: str = "", node: str = "", labs: Path = LABS) -> dict[str, Path]:
    """The agents' sockets by node: of a lab's nodes if one is named or up, else of this machine. Raises ConfigError."""
    lab = lab or os.environ.get("TORTIE_LAB", "")
    up = labs_up(labs)
    if not lab and not DEFAULT_SOCKET.exists() and up:
        lab = "default" if "default" in up else up[0] if len(up) == 1 else ""
        if not lab:
            raise ConfigError(f"several labs are up, name one with --lab: {', '.join(up)}")
    if not lab:
        return {node or "this node": DEFAULT_SOCKET}
    if lab not in up:
        raise ConfigError(f'no lab "{lab}" is up')
    found = {path.name: path / "agent.sock" for path in sorted((labs / lab / "nodes").glob("*"), key=_natural)}
    if node and node not in found:
        raise ConfigError(f'lab "{lab}" has no node "{node}": it has {", ".join(found)}')
    return {node: found[node]} if node else found


def _natural(path: Path) -> tuple[int, str]:
    return len(path.name), path.name


def _answer(node: str, path: Path) -> Mapping[str, Any]:
    try:
        answer: Mapping[str, Any] = ask(path, "/node")
        return answer
    except TortieError as error:
        return {"node": node, "bird": {"state": "not ready", "reason": str(error)}, "peers": [], "routes": []}


def _show(answer: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    state, about = _about(answer["bird"])
    style = {"ready": "green", "not ready": "red"}.get(state, "yellow")
    console.print(Text.assemble((answer["node"], "bold"), "  ", (state, style), f"  {about}"), soft_wrap=True)
    if state in ("none", "not ready"):
        return
    peers = [_peer(peer) for peer in answer["peers"]]
    if peers:
        _table(console, ("PEER ADDRESS", "PEER TYPE", "AS", "STATE", "SINCE", "ROUTES"), peers)
    else:
        console.print("no BGP peers")
    console.print()
    best = sorted((route for route in answer["routes"] if route["best"]), key=_by_prefix)
    _table(console, ("DESTINATION", "TYPE", "VIA", "LEARNED FROM"), [_route(route) for route in best])


def _about(bird: Mapping[str, Any]) -> tuple[str, str]:
    """BIRD's state in a word, and what else there is to say of it."""
    if "version" in bird:
        return bird["state"], f"BIRD {bird['version']}, router id {bird['routerID']}"
    return bird["state"], bird.get("reason", "the agent runs without BGP")


def _peer(peer: Mapping[str, Any]) -> tuple[str, ...]:
    """A row; the last cell says how many routes came in and went out, or what is wrong."""
    good = peer["state"] == "Established"
    routes = f"{peer['imported']} in, {peer['exported']} out" if good else peer["error"]
    kind = TYPES.get(peer["name"].partition("_")[0], "")
    return peer["ip"], kind, str(peer["as"]), peer["state"], peer["since"].partition(".")[0], routes


def _route(route: Mapping[str, Any]) -> tuple[str, ...]:
    hops = (" dev ".join(filter(None, (hop["via"], hop["dev"]))) for hop in route["via"])
    return route["prefix"], route["kind"], ", ".join(hops) or "-", route["protocol"]


def _by_prefix(route: Mapping[str, Any]) -> tuple[int, Net]:
    net = parse_net(route["prefix"])
    return net.version, net


def _table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Folded to fit a terminal, in full anywhere else."""
    from rich.table import Table
    from rich.text import Text

    from tortie.cli.output import aligned

    if not sys.stdout.isatty():
        print(aligned([headings, *rows]), end="")
        return
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, "green" if cell == "Established" else "") for cell in row))
    console.print(table)
