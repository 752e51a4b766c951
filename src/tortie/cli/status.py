"""`tortie status`: a node on one page, from its agent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tortie.agent.client import ask, tell
from tortie.base.errors import ConfigError, TortieError
from tortie.cli.choice import check_choice
from tortie.cli.node import sockets

MANY = 10
"""Kinds that are listed on the page; of more, those that are well are left to `-o json`."""


def status(
    node: Annotated[str, typer.Option("--node", metavar="NAME", help="A node of the lab; all of them if none.")] = "",
    lab: Annotated[str, typer.Option("--lab", metavar="NAME", help="A lab's nodes instead of this machine.")] = "",
    output: Annotated[str, typer.Option("-o", "--output", help="table or json.")] = "table",
    accept: Annotated[
        bool, typer.Option("--accept", help="Believe the datastore as it is now, though it is another than before.")
    ] = False,
) -> None:
    """How a node is: agent, datastore, dataplane, pods, BGP. Exit status 1 when something is not well."""
    check_choice(output, ("table", "json"), "--output")
    places = sockets(lab, node)
    if accept:
        for name, socket in places.items():
            accepted = tell(socket, "/datastore/accept")["accepted"]
            what = "is believed as it is, and everything is read again" if accepted else "is believed already"
            print(f"{name}: the datastore {what}")
        return
    answers = [_answer(name, socket) for name, socket in places.items()]
    if output == "json":
        typer.echo(json.dumps(answers, indent=2))
    else:
        print("\n".join(page(answer) for answer in answers), end="")
    if any(answer["wrong"] for answer in answers):
        raise typer.Exit(1)


def shutdown(
    node: Annotated[str, typer.Option("--node", metavar="NAME", help="A node of the lab.")] = "",
    lab: Annotated[str, typer.Option("--lab", metavar="NAME", help="A lab's node instead of this machine.")] = "",
) -> None:
    """Before the agent is stopped for good: Kubernetes is told that the node's network goes, so that no pod is sent
    here. What runs keeps its network."""
    places = sockets(lab, node)
    if len(places) > 1:
        raise ConfigError(f"several nodes are up, name one: {', '.join(places)}", "--node")
    (socket,) = places.values()
    tell(socket, "/shutdown")


def _answer(name: str, socket: Path) -> Mapping[str, Any]:
    try:
        answer: Mapping[str, Any] = ask(socket, "/status")
        return answer
    except TortieError as error:
        return {"node": name, "wrong": {"Agent": str(error)}}


def page(answer: Mapping[str, Any]) -> str:
    """As people read it; the last lines are what is not well."""
    lines = [f"{answer['node']}  {'not well' if answer['wrong'] else 'well'}"]
    if "agent" in answer:
        lines += [f"  {name:<10} {text}" for name, text in _parts(answer)]
        lines += [f"  {'':<10} {text}" for text in _kinds(answer["datastore"]["kinds"])]
    lines += [f"✘ {name}: {why or 'not ready'}" for name, why in sorted(answer["wrong"].items())]
    return "\n".join(lines) + "\n"


def _parts(answer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    agent, dataplane, cni, bgp = (answer[name] for name in ("agent", "dataplane", "cni", "bgp"))
    yield "agent", f"tortie {agent['version']}, runs for {span(agent['seconds'])}"
    enforced = dataplane["enforced"]
    behind = "" if enforced >= dataplane["generation"] else f", {dataplane['generation']} is on its way"
    failures = f", {len(dataplane['failures'])} failures" if dataplane["failures"] else ""
    yield "dataplane", f"state {enforced} is in the kernel{behind}, {dataplane['endpoints']} endpoints{failures}"
    if answer.get("flowTable", {}).get("asked"):  # there is none in the answer of an agent of before
        yield "flows", _flows(answer["flowTable"])
    queued = [f"{cni[what]} pods {how}" for what, how in (("pending", "to tell of"), ("leaving", "went")) if cni[what]]
    serves = "serves pods" if cni["serves"] else "serves no pods yet"
    yield "cni", ", ".join([serves, f"{cni['pods']} pods known", f"{cni['ready']} addresses ready", *queued])
    peers = f", {bgp['established']} of {bgp['peers']} sessions up" if bgp["peers"] else ""
    yield "bgp", f"{bgp['state']}{peers}"
    yield "datastore", _datastore(answer["datastore"])


def _flows(table: Mapping[str, Any]) -> str:
    """Whether established connections go past the rules, and whose do not."""
    if table["why"]:
        return f"every packet by the rules: {table['why']}"
    out = [f"{pod}: {why}" for pod, why in table["out"].items()]
    others = [f"and {len(out) - MANY} more: -o json"] if len(out) > MANY else []
    but = f", but for {'; '.join([*out[:MANY], *others])}" if out else ""
    links = len(table["links"])
    return f"established TCP goes past the rules at {links} link{'s' * (links != 1)}{but}"


def _datastore(store: Mapping[str, Any]) -> str:
    connected = "connected" if store["connected"] else "away"
    believed = "" if store["believed"] else ", not believed"
    source = {"datastore": "known", "snapshot": "known from a snapshot", "none": "nothing known yet"}[store["source"]]
    age = f" as of {span(store['age'])} ago" if store["age"] >= 1 else ""
    return f"{store['datastore']}, {connected}{believed}; {source}{age}"


def _kinds(kinds: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Those of which something is not well, and how the others are in one line."""
    well = {name: one for name, one in kinds.items() if one["listed"] and not one["why"]}
    heard = [one["heard"] for one in well.values() if one["heard"] is not None]
    objects = sum(one["objects"] for one in well.values())
    if well:
        oldest = f", heard of {span(min(heard))} ago, the quietest {span(max(heard))}" if heard else ""
        yield f"{len(well)} of {len(kinds)} kinds followed, {objects} objects{oldest}"
    broken = [name for name in kinds if name not in well]
    for name in broken[:MANY]:
        yield f"{name}: {kinds[name]['why'] or 'not followed now'}"
    if len(broken) > MANY:
        yield f"and {len(broken) - MANY} more: -o json"


def span(seconds: float) -> str:
    """How long something takes, for people.

    >>> span(7), span(125), span(90000)
    ('7 s', '2 min', '25 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
