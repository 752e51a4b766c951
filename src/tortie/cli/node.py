"""`tortie node`: what a node's agent says of itself."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tortie.agent.client import DEFAULT_SOCKET, ask
from tortie.base.addr import Net, parse_net
from tortie.base.errors import ConfigError, TortieError
from tortie.bgp.birdc import ESTABLISHED
from tortie.cli import dialect
from tortie.cli.choice import check_choice
from tortie.cli.datastore import LABS, labs_up

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

app = typer.Typer(no_args_is_help=True, help="A node's state, from its agent.")

DIAGNOSIS_SECONDS = 30.0
ASKED_AT_ONCE = 16
"""Agents; one that looks around for a session that is down takes seconds."""
HERE = "this node"
"""What a machine outside a lab is called that nobody has named."""
TYPES = {"Mesh": "node-to-node mesh", "Global": "global", "Node": "node specific"}


@app.callback()
def _node() -> None:
    """A node's state, from its agent."""


@app.command()
def status(
    node: Annotated[str, typer.Option("--node", metavar="NAME", help="A node of the lab; all of them if none.")] = "",
    lab: Annotated[str, typer.Option("--lab", metavar="NAME", help="A lab's nodes instead of this machine.")] = "",
    output: Annotated[str, typer.Option("-o", "--output", help="table, json or calicoctl.")] = "",
) -> None:
    """BGP peers and routes, as BIRD has them, and why a session is down; the ways to pod networks. Exit status 1 when
    something is not as it should be: agent or BIRD, a session, an object that is not carried out."""
    from concurrent.futures import ThreadPoolExecutor

    output = output or ("calicoctl" if dialect.is_calicoctl() else "table")
    check_choice(output, ("table", "json", "calicoctl"), "--output")
    where = sockets(lab, node)
    if output == "calicoctl":
        _show_as_calicoctl(where)
        return
    with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
        answers = list(threads.map(_answer, where, where.values()))
    if output == "json":
        typer.echo(json.dumps(answers, indent=2))
    else:
        for i, answer in enumerate(answers):
            print("\n" if i else "", end="")
            _show(answer)
    if not all(map(healthy, answers)):
        raise typer.Exit(1)


def _show_as_calicoctl(where: Mapping[str, Path]) -> None:
    """Of one node, or one after the other. Raises typer.Exit when an agent does not answer."""
    from tortie.cli.node_status_text import NOT_RUNNING, lines

    silent = False
    for name, socket in where.items():
        if len(where) > 1:
            print(f"Node {name}:")
        try:
            print("\n".join(lines(ask(socket, "/node"))))
        except TortieError as error:
            print(NOT_RUNNING)
            print(f"tortie: {error}", file=sys.stderr)
            silent = True
    if silent:
        raise typer.Exit(1)


def healthy(answer: Mapping[str, Any]) -> bool:
    """Whether a node has all that it should."""
    wrong = answer["diagnosis"] or answer.get("failures") or answer.get("problems")
    return answer["bird"]["state"] != "not ready" and not wrong


def sockets(lab: str = "", node: str = "", labs: Path = LABS) -> dict[str, Path]:
    """The agents' sockets by node: of a lab's nodes if one is named or up, else of this machine. Raises ConfigError."""
    lab = lab or os.environ.get("TORTIE_LAB", "")
    up = labs_up(labs)
    if not lab and not DEFAULT_SOCKET.exists() and up:
        lab = "default" if "default" in up else up[0] if len(up) == 1 else ""
        if not lab:
            raise ConfigError(f"several labs are up, name one with --lab: {', '.join(up)}")
    if not lab:
        return {node or HERE: DEFAULT_SOCKET}
    if lab not in up:
        raise ConfigError(f'no lab "{lab}" is up')
    found = {path.name: path / "agent.sock" for path in sorted((labs / lab / "nodes").glob("*"), key=_natural)}
    if node and node not in found:
        raise ConfigError(f'lab "{lab}" has no node "{node}": it has {", ".join(found)}')
    return {node: found[node]} if node else found


def _natural(path: Path) -> tuple[int, str]:
    return len(path.name), path.name


def _answer(node: str, path: Path) -> Mapping[str, Any]:
    """What an agent says, with the reasons of sessions that are down, for which it looks around only then."""
    try:
        answer: dict[str, Any] = ask(path, "/node")
        whole = answer.get("wanted", 0) == len(answer["peers"])
        if whole and all(peer["state"] == ESTABLISHED for peer in answer["peers"]):
            return answer | {"diagnosis": []}
        return answer | {"diagnosis": ask(path, "/diagnosis", DIAGNOSIS_SECONDS)["sessions"]}
    except TortieError as error:
        bird = {"state": "not ready", "reason": str(error)}
        return {"node": node, "bird": bird, "peers": [], "routes": [], "diagnosis": []}


def _show(answer: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    state, about = _about(answer["bird"])
    style = {"ready": "green", "not ready": "red"}.get(state, "yellow")
    console.print(Text.assemble((answer["node"], "bold"), "  ", (state, style), f"  {about}"), soft_wrap=True)
    if state not in ("none", "not ready"):
        peers = [_peer(peer) for peer in answer["peers"]]
        if peers:
            _table(console, ("PEER ADDRESS", "PEER TYPE", "AS", "STATE", "SINCE", "ROUTES"), peers)
        else:
            console.print("no BGP peers")
    if rows := [_pod_route(one) for one in answer.get("podRoutes", ())]:
        console.print()
        _table(console, ("POD NETWORK", "NODE", "SUBNET", "VIA"), rows)
    for line in _wrong(answer):
        console.print(line, soft_wrap=True)
    if state in ("none", "not ready"):
        return
    console.print()
    best = sorted((route for route in answer["routes"] if route["best"]), key=_by_prefix)
    _table(console, ("DESTINATION", "TYPE", "VIA", "LEARNED FROM"), [_route(route) for route in best])


def _wrong(answer: Mapping[str, Any]) -> Iterator[Text]:
    """What is not as it should be, and below each what to do."""
    from rich.text import Text

    again = "the agent tries again; a configuration that is refused leaves the one before it running"
    found = [(why, "", again) for why in answer.get("failures", ())]
    found += [(f"{title} is not carried out: {why}", "", "") for title, why in answer.get("problems", {}).items()]
    found += [(one["text"], one["ip"], one["todo"]) for one in answer["diagnosis"]]
    if found:
        yield Text("")
    for what, where, todo in found:
        yield Text.assemble(("✘ ", "red"), (f"{where}  " if where else "", "bold"), what)
        if todo:
            yield Text(f"  {todo}", "dim")


def _about(bird: Mapping[str, Any]) -> tuple[str, str]:
    """BIRD's state in a word, and what else there is to say of it."""
    if "version" in bird:
        waits = bird.get("waitingFor", 0)
        more = f", holds its routes until {waits} sessions are back" if bird["state"] == "recovering" and waits else ""
        return bird["state"], f"BIRD {bird['version']}, router id {bird['routerID']}{more}"
    return bird["state"], bird.get("reason", "the agent runs without BGP")


def _peer(peer: Mapping[str, Any]) -> tuple[str, ...]:
    """A row; the last cell says how many routes came in and went out, or what is wrong."""
    good = peer["state"] == ESTABLISHED
    routes = f"{peer['imported']} in, {peer['exported']} out" if good else peer["error"]
    kind = TYPES.get(peer["name"].partition("_")[0], "")
    return peer["ip"], kind, str(peer["as"]), peer["state"], peer["since"].partition(".")[0], routes


def _route(route: Mapping[str, Any]) -> tuple[str, ...]:
    hops = (" dev ".join(filter(None, (hop["via"], hop["dev"]))) for hop in route["via"])
    return route["prefix"], route["kind"], ", ".join(hops) or "-", route["protocol"]


def _pod_route(one: Mapping[str, Any]) -> tuple[str, ...]:
    return one["network"], one["node"], one["dst"], one["via"] or "no route of the agent's"


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
        table.add_row(*(Text(cell, "green" if cell == ESTABLISHED else "") for cell in row))
    console.print(table)
