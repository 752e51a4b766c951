"""`tortie node`: what a node's agent says of itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tortie.base.errors import ConfigError, TortieError
from tortie.cli.agents import DEFAULT_SOCKET, ask
from tortie.cli.datastore import LABS, labs_up

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
    """BGP peers and routes, as BIRD has them."""
    if output not in ("table", "json"):
        raise ConfigError(f'"{output}" is not one of table, json', "--output")
    answers = {name: _answer(path) for name, path in sockets(lab, node).items()}
    if output == "json":
        typer.echo(json.dumps(list(answers.values()), indent=2))
    else:
        for answer in answers.values():
            _show(answer)
    if any(answer["bird"]["state"] == "not ready" for answer in answers.values()):
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
    found = {path.name: path / "agent.sock" for path in sorted((labs / lab / "nodes").iterdir(), key=_natural)}
    if node and node not in found:
        raise ConfigError(f'lab "{lab}" has no node "{node}": it has {", ".join(found)}')
    return {node: found[node]} if node else found


def _natural(path: Path) -> tuple[int, str]:
    return len(path.name), path.name


def _answer(path: Path) -> Mapping[str, Any]:
    try:
        answer: Mapping[str, Any] = ask(path, "/node")
        return answer
    except TortieError as error:
        return {
            "node": path.parent.name,
            "bird": {"state": "not ready", "reason": str(error)},
            "peers": [],
            "routes": [],
        }


def _show(answer: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    bird = answer["bird"]
    about = f"BIRD {bird['version']}, router id {bird['routerID']}" if "version" in bird else bird.get("reason", "")
    console.print(f"\n[bold]{answer['node']}[/]  {bird['state']}  {about}", highlight=False)
    peers = Table("PEER ADDRESS", "PEER TYPE", "AS", "STATE", "SINCE", "INFO", box=None, pad_edge=False)
    for peer in answer["peers"]:
        good = peer["state"] == "Established"
        info = f"imported {peer['imported']}, exported {peer['exported']}" if good else peer["error"]
        kind = TYPES.get(peer["name"].partition("_")[0], "")
        state = f"[green]{peer['state']}[/]" if good else f"[red]{peer['state']}[/]"
        peers.add_row(peer["ip"], kind, str(peer["as"]), state, peer["since"], info)
    console.print(peers if answer["peers"] else "no BGP peers")
    routes = Table("DESTINATION", "TYPE", "VIA", "LEARNED FROM", box=None, pad_edge=False)
    for route in answer["routes"]:
        if route["best"]:
            hops = ", ".join(" dev ".join(filter(None, (hop["via"], hop["dev"]))) for hop in route["via"])
            routes.add_row(route["prefix"], route["kind"], hops, route["protocol"])
    console.print()
    console.print(routes)
