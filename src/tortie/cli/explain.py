"""`tortie explain`: what happens to a connection and which rule decides, with that rule's counter from the kernel."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tortie.base.errors import ConfigError, TortieError
from tortie.cli.agents import ask
from tortie.cli.datastore import Datastore, Lab, asked
from tortie.cli.node import sockets

if TYPE_CHECKING:
    from tortie.calc.explain import Explainer, Explanation, Party, Step

Counters = dict[str, dict[str, Any]]
"""By node, then by rule: {"packets": ..., "bytes": ...}."""


def explain(
    source: Annotated[str, typer.Argument(help="NAMESPACE/POD or an address.")],
    destination: Annotated[str, typer.Argument(help="NAMESPACE/POD or an address.")],
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
    ends = explainer.party(source), explainer.party(destination)
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
    """The machine's form: the verdict, the deciding step first in `decided`, then every step."""
    steps = [
        {
            "node": step.node,
            "hook": step.hook,
            "verdict": "allow" if step.allowed else "deny",
            "reason": step.reason,
            "tier": step.tier,
            "policy": step.policy,
            "rule": step.rule,
            "counter": counters.get(step.node, {}).get(step.rule) if step.rule else None,
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


def _party(party: Party, version: int) -> dict[str, str]:
    return {"name": party.name, "ip": str(party.ip(version)), "node": party.node}


def _show(explanations: list[Explanation], counters: Counters) -> None:
    """Explanations that say the same for both families are shown once."""
    from rich.console import Console

    console = Console()
    same = len(explanations) == 2 and _words(explanations[0]) == _words(explanations[1])
    for one in explanations[:1] if same else explanations:
        versions = "IPv4 and IPv6" if same else f"IPv{one.version}"
        port = "" if one.protocol.startswith("icmp") else f" {one.port}"
        mark = "[bold green]allowed[/]" if one.allowed else "[bold red]denied[/]"
        title = (
            f"[bold]{one.source.name}[/] → [bold]{one.destination.name}[/]  {one.protocol}{port}, {versions}: {mark}"
        )
        console.print(title, highlight=False)
        for step in one.steps:
            console.print(_line(step, counters), highlight=False)


def _words(one: Explanation) -> list[tuple[str, bool, str, str]]:
    return [(step.hook, step.allowed, step.policy, step.rule) for step in one.steps]


def _line(step: Step, counters: Counters) -> str:
    from rich.markup import escape

    mark = "[green]✔[/]" if step.allowed else "[red]✘[/]"
    where = f"{step.hook} on {step.node}" if step.node else step.hook
    text = f"  {mark} {where:<22} {escape(step.reason)}"
    counter = counters.get(step.node, {}).get(step.rule)
    if counter is not None:
        text += (
            f"\n    {'':<22} [dim]rule {escape(step.rule)}: {counter['packets']} packets, {counter['bytes']} bytes[/]"
        )
    elif step.rule:
        text += f"\n    {'':<22} [dim]rule {escape(step.rule)}[/]"
    return text
