"""`tortie explain`: what happens to a connection and which rule decides, with that rule's counter from the kernel."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tortie.agent.client import ask
from tortie.base.errors import ConfigError, NotFound, TortieError
from tortie.cli.datastore import Datastore, Lab, asked
from tortie.cli.node import sockets

if TYPE_CHECKING:
    from rich.text import Text

    from tortie.calc.explain import Explainer, Explanation, Party, Step

Counters = dict[str, dict[str, Any]]
"""By node, then by rule: {"packets": ..., "bytes": ...}."""


def explain(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="NAMESPACE/POD, an address, or a lab's outside.")],
    destination: Annotated[str, typer.Argument(metavar="DESTINATION", help="The same.")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Destination port.")] = 80,
    protocol: Annotated[str, typer.Option("--protocol", help="tcp, udp, icmp, sctp.")] = "tcp",
    four: Annotated[bool, typer.Option("-4", help="IPv4 only.")] = False,
    six: Annotated[bool, typer.Option("-6", help="IPv6 only.")] = False,
    output: Annotated[str, typer.Option("-o", "--output", help="text or json.")] = "text",
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Say whether a connection is allowed, and which tier, policy and rule decide. Exit status 0 either way."""
    if output not in ("text", "json"):
        raise ConfigError(f'"{output}" is not one of text, json', "--output")
    explainer = asked(datastore, lab, load)
    ends = _end(explainer, source), _end(explainer, destination)
    wanted = [version for version, only in ((4, four), (6, six)) if only] or (4, 6)
    versions = [version for version in explainer.versions(*ends) if version in wanted]
    if not versions:
        raise ConfigError(f"{ends[0].name} and {ends[1].name} have no addresses of the same IP version")
    found = [explainer.explain(*ends, protocol, port, version) for version in versions]
    counters = _counters(lab, (step.node for one in found for step in one.steps if step.rule))
    if output == "json":
        typer.echo(json.dumps([as_json(one, counters) for one in found], indent=2))
    else:
        _show(found, counters)


async def load(store: Any) -> Explainer:
    """The whole cluster as it is in a datastore now."""
    from tortie.calc.cluster import INPUTS, Cluster
    from tortie.calc.explain import Explainer

    cluster = Cluster(None)
    for kind in INPUTS:
        for item in (await store.list(kind)).items:
            cluster.put(item)
    return Explainer(cluster)


def _end(explainer: Explainer, text: str) -> Party:
    """A party, `outside` being that of a lab unless a pod is called so. Raises NotFound, ConfigError."""
    from tortie.calc.explain import Party
    from tortie.lab.topology import OUTSIDE, topology

    try:
        return explainer.party(text)
    except NotFound:
        if text != OUTSIDE:
            raise
    host = topology().outside
    return Party(OUTSIDE, (host.ipv4.ip, host.ipv6.ip))


def _counters(lab: str, nodes: Iterable[str]) -> Counters:
    """What the kernels count. A node whose agent cannot be asked has none: the verdict stands without."""
    wanted = set(nodes)
    try:
        known = sockets(lab)
    except TortieError:
        return {}
    found: Counters = {}
    for node, path in known.items():
        name = node if path.parent.name == node else ""
        if name in wanted or not name:
            try:
                found[name or _name_of(path)] = ask(path, "/counters")
            except TortieError:
                continue
    return found


def _name_of(path: Path) -> str:
    return str(ask(path, "/node")["node"])


def as_json(one: Explanation, counters: Counters) -> dict[str, Any]:
    """The machine's form: who, the verdict, then every step up to the one that decides."""
    steps = [
        {
            "node": step.node,
            "hook": step.hook,
            "verdict": "allow" if step.allowed else "deny",
            "reason": step.reason,
            "tier": step.tier,
            "policy": step.policy,
            "rule": step.rule,
            "counter": _counter(step, counters),
        }
        for step in one.steps
    ]
    return {
        "source": _party(one.source, one.version),
        "destination": _party(one.destination, one.version),
        "ipVersion": one.version,
        "protocol": one.protocol,
        "port": one.port,
        "verdict": "allow" if one.allowed else "deny",
        "steps": steps,
    }


def _counter(step: Step, counters: Counters) -> dict[str, Any] | None:
    """The counter of the rule that decides. The kernel has long names cut."""
    from tortie.render.match import fit

    return counters.get(step.node, {}).get(fit(step.rule)) if step.rule else None


def _party(party: Party, version: int) -> dict[str, str]:
    return {"name": party.name, "ip": str(party.ip(version)), "node": party.node}


def _show(explanations: list[Explanation], counters: Counters) -> None:
    """Explanations that say the same for both families are shown once."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    width = console.width if sys.stdout.isatty() or "COLUMNS" in os.environ else sys.maxsize
    same = len(explanations) == 2 and _words(explanations[0]) == _words(explanations[1])
    for one in explanations[:1] if same else explanations:
        versions = "IPv4 and IPv6" if same else f"IPv{one.version}"
        port = "" if one.protocol.startswith("icmp") else f" {one.port}"
        verdict = ("allowed", "bold green") if one.allowed else ("denied", "bold red")
        title = Text.assemble(
            (one.source.name, "bold"),
            " → ",
            (one.destination.name, "bold"),
            f"  {one.protocol}{port}, {versions}: ",
            verdict,
        )
        console.print(title, soft_wrap=True)
        places = [_place(step) for step in one.steps]
        for place, step in zip(places, one.steps, strict=True):
            for line in _lines(step, place.ljust(max(map(len, places))), counters, width):
                console.print(line, soft_wrap=True)


def _words(one: Explanation) -> list[tuple[str, bool, str, str]]:
    return [(step.hook, step.allowed, step.reason, step.rule) for step in one.steps]


def _place(step: Step) -> str:
    return f"{step.hook} on {step.node}" if step.node else step.hook


def _lines(step: Step, place: str, counters: Counters, width: int) -> Iterator[Text]:
    """What a step decides and why, then the rule's name and counter, all below one another beside the place."""
    from rich.text import Text

    indent = " " * (len(place) + 6)  # the mark, and two blanks on each side of mark and place
    room = max(width - len(indent), 30)
    first, *rest = textwrap.wrap(step.reason, room, break_on_hyphens=False)
    mark = ("✔", "green") if step.allowed else ("✘", "red")
    yield Text.assemble("  ", mark, f" {place}  {first}")
    yield from (Text(indent + line) for line in rest)
    if step.rule:
        counter = _counter(step, counters)
        counted = f": {counter['packets']} packets, {counter['bytes']} bytes" if counter else ""
        told = textwrap.wrap(f"rule {step.rule}{counted}", room, break_on_hyphens=False)
        yield from (Text(indent + line, "dim") for line in told)
