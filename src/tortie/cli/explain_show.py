"""Explanations for people, and for programs."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tortie.cli.explain_kernel import Kernel

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from tortie.calc.explain import Explanation, Party, Past, Route, Step
    from tortie.calc.explain.services import Door
    from tortie.cli.explain_probe import Probed

DIFFERS = "the kernel differs from this prediction:"


def as_json(one: Explanation, kernel: Kernel, probed: Probed | None = None) -> dict[str, Any]:
    """The machine's form: who, the verdict, then every step up to the one that decides, routes, what differs."""
    document: dict[str, Any] = {
        "source": _party(one.source, one.version),
        "destination": _party(one.destination, one.version),
        "ipVersion": one.version,
        "protocol": one.protocol,
        "port": one.port,
        "sourcePort": one.source_port,
        "verdict": "allow" if one.allowed else "deny",
        "steps": [_step(step, kernel) for step in one.steps],
        "routes": [_route(route, kernel) for route in one.routes],
        "flowTables": [_past(past, kernel) for past in one.past],
        "differences": [*kernel.differences, *(probed.differences if probed else ())],
    }
    if one.icmp is not None:
        document["icmp"] = {"type": one.icmp[0], "code": one.icmp[1]}
    if kernel.silent:
        document["notCompared"] = dict(kernel.silent)
    if probed is not None:
        document["probe"] = {"result": probed.result, "agrees": not probed.differences}
    return document


def _step(step: Step, kernel: Kernel) -> dict[str, Any]:
    door = {"service": _door(step.node, step.door, kernel)} if step.door is not None else {}
    return {
        "node": step.node,
        "hook": step.hook,
        "verdict": "allow" if step.allowed else "deny",
        "reason": step.reason,
        "tier": step.tier,
        "policy": step.policy,
        "rule": step.rule,
        "counter": kernel.counter(step.node, step.rule),
        "kernelRules": kernel.texts(step.node, step.rule),
        "notes": [
            {"text": note.text, "rule": note.rule, "counter": kernel.counter(step.node, note.rule)}
            for note in step.notes
        ],
        **door,
    }


def _door(node: str, door: Door, kernel: Kernel) -> dict[str, Any]:
    """A service on the way: where it was asked for, who answers, and how many connections the node has led there."""
    namespace, name = door.key
    entrance = door.entrance
    return {
        "namespace": namespace,
        "name": name,
        "kind": entrance.kind,
        "frontend": str(entrance.frontend).lower(),
        "backend": str(door.backend) if door.backend is not None else None,
        "node": door.backend.node if door.backend is not None else "",
        "local": door.local,
        "of": len((entrance.local or ()) if door.local else entrance.backends),
        "affinity": entrance.affinity,
        "sources": None if entrance.sources is None else [str(net) for net in entrance.sources],
        "connections": kernel.led(node, door),
        "notServed": kernel.unserved(node, door),
    }


def _route(route: Route, kernel: Kernel) -> dict[str, Any]:
    asked = {"node": route.node, "destination": str(route.destination), "expected": route.words}
    return {**asked, "block": str(route.block or ""), "blockOf": route.owner, "kernel": kernel.routes.get(route)}


def _past(past: Past, kernel: Kernel) -> dict[str, Any]:
    without = kernel.without.get(past.node, "")
    return {"node": past.node, "past": past.past and not without, "reason": _by(past, kernel)}


def _by(past: Past, kernel: Kernel) -> str:
    without = kernel.without.get(past.node, "") if past.past else ""
    return f"every packet by the rules: {without}" if without else past.reason


def _party(party: Party, version: int) -> dict[str, Any]:
    told: dict[str, Any] = {"name": party.name, "ip": str(party.ip(version)), "node": party.node}
    lead = party.translation(version)
    if lead is not None:
        told["askedFor"] = str(lead.address)
    if party.service:
        told["service"] = party.service
    if party.sets:
        told["networkSets"] = list(party.sets)
    return told


def show(explanations: Sequence[Explanation], kernel: Kernel, probes: Sequence[Probed], *, rules: bool = False) -> None:
    """Explanations that say the same for both families are shown once. `rules`: with the kernel's rules in full."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    width = console.width if sys.stdout.isatty() or "COLUMNS" in os.environ else sys.maxsize
    for group in _alike(explanations):
        _show_one(console, group, kernel, width, rules)
    for probed in probes:
        console.print(Text(f"probe over IPv{probed.version}: {probed.result}", "dim"), soft_wrap=True)
    for node, why in kernel.silent.items():
        console.print(Text(f"not compared with the kernel of {node}: {why}", "yellow"), soft_wrap=True)
    differences = [*kernel.differences, *(text for probed in probes for text in probed.differences)]
    if differences:
        console.print(Text(DIFFERS, "bold red"), soft_wrap=True)
        for text in differences:
            for i, line in enumerate(textwrap.wrap(text, max(width - 4, 30), break_on_hyphens=False)):
                console.print(Text(f"{'    ' if i else '  '}{line}", "red"), soft_wrap=True)


def _alike(explanations: Sequence[Explanation]) -> list[list[Explanation]]:
    groups: dict[tuple[Any, ...], list[Explanation]] = {}
    for one in explanations:
        words = [(step.hook, step.allowed, step.reason, step.rule, step.notes) for step in one.steps]
        groups.setdefault((one.source.name, one.destination.name, one.port, tuple(words)), []).append(one)
    return list(groups.values())


def _show_one(console: Console, group: list[Explanation], kernel: Kernel, width: int, rules: bool) -> None:
    from rich.text import Text

    one = group[0]
    versions = " and ".join(f"IPv{each.version}" for each in group)
    verdict = ("allowed", "bold green") if one.allowed else ("denied", "bold red")
    ends = ((one.source.name, "bold"), " → ", (_called(one), "bold"))
    console.print(Text.assemble(*ends, f"  {_what(one)}, {versions}: ", verdict), soft_wrap=True)
    places = [_place(step) for step in one.steps]
    roads = [f"route on {route.node}" for route in one.routes if not route.out]
    room = max(map(len, (*places, *roads, *(f"flows on {past.node}" for past in one.past))))
    told: dict[str, list[Route]] = {}
    for route in (route for each in group for route in each.routes if not route.out):
        told.setdefault(route.node, []).append(route)
    for i, (place, step) in enumerate(zip(places, one.steps, strict=True)):
        for line in _lines(step, place.ljust(room), kernel, width, rules):
            console.print(line, soft_wrap=True)
        last = i + 1 == len(one.steps)
        if step.node in told and (last or one.steps[i + 1].node != step.node):
            for line in _roads(told.pop(step.node), room, kernel):
                console.print(line, soft_wrap=True)
    for past in one.past:
        for line in _flows(past, room, kernel, width):
            console.print(line, soft_wrap=True)


def _called(one: Explanation) -> str:
    """The destination, with the other name under which it was asked for."""
    to = one.destination
    lead = to.translation(one.version)
    if to.service:
        return f"svc/{to.service} ({to.name})"
    if lead is not None:
        return f"{lead.address} ({to.name})"
    return f"{to.name} ({', '.join(to.sets)})" if to.sets else to.name


def _what(one: Explanation) -> str:
    from tortie.calc.explain.explainer import ECHO, SOURCE_PORT, has_ports

    if one.icmp is not None:
        echo = one.icmp == (ECHO[one.version], 0)
        return one.protocol if echo else f"{one.protocol} type {one.icmp[0]} code {one.icmp[1]}"
    if not has_ports(one.protocol):
        return one.protocol if one.protocol.isalpha() else f"protocol {one.protocol}"
    source = "" if one.source_port == SOURCE_PORT else f" from port {one.source_port}"
    return f"{one.protocol} {one.port}{source}"


def _place(step: Step) -> str:
    return f"{step.hook} on {step.node}" if step.node else step.hook


def _lines(step: Step, place: str, kernel: Kernel, width: int, rules: bool) -> Iterator[Text]:
    """What a step decides and why, then the rule's name and counter, all below one another beside the place."""
    from rich.text import Text

    indent, room = _beside(place, width)
    first, *rest = textwrap.wrap(step.reason, room, break_on_hyphens=False)
    mark = ("✔", "green") if step.allowed else ("✘", "red")
    yield Text.assemble("  ", mark, f" {place}  {first}")
    yield from (Text(indent + line) for line in rest)
    for text in (*_rule(step.node, step.rule, kernel), *_led(step, kernel)):
        yield from (Text(indent + line, "dim") for line in textwrap.wrap(text, room, break_on_hyphens=False))
    for text in kernel.texts(step.node, step.rule) if rules else ():
        yield Text(f"{indent}  {text}", "dim")
    for note in step.notes:
        counted = kernel.counter(step.node, note.rule)
        text = f"{note.text}{_counted(counted)}"
        for i, line in enumerate(textwrap.wrap(text, room - 2, break_on_hyphens=False)):
            yield Text(f"{indent}{'  ' if i else '· '}{line}", "yellow")


def _roads(routes: Sequence[Route], room: int, kernel: Kernel) -> Iterator[Text]:
    """What they should lead to, and the kernel's own routes; of two IP versions below one another."""
    from rich.text import Text

    place = f"route on {routes[0].node}".ljust(room)
    for i, route in enumerate(routes):
        told = kernel.routes.get(route, {})
        mtu = f" mtu {told['mtu']}" if told.get("mtu") else ""
        known = f"{told['route']}{mtu}" if "route" in told else str(route.block or route.destination)
        beside = Text(" " * (len(place) + 6)) if i else Text.assemble("  ", ("→", "blue"), f" {place}  ")
        yield Text.assemble(beside, f"{route.words}: {known}")


def _flows(past: Past, room: int, kernel: Kernel, width: int) -> Iterator[Text]:
    """By which way a node forwards what follows."""
    from rich.text import Text

    place = f"flows on {past.node}".ljust(room)
    indent, left = _beside(place, width)
    first, *rest = textwrap.wrap(_by(past, kernel), left, break_on_hyphens=False)
    yield Text.assemble("  ", ("→", "blue"), f" {place}  {first}")
    yield from (Text(indent + line) for line in rest)


def _beside(place: str, width: int) -> tuple[str, int]:
    indent = " " * (len(place) + 6)  # the mark, and two blanks on each side of mark and place
    return indent, max(width - len(indent), 30)


def _rule(node: str, rule: str, kernel: Kernel) -> Iterator[str]:
    if rule:
        yield f"rule {rule}{_counted(kernel.counter(node, rule))}"


def _led(step: Step, kernel: Kernel) -> Iterator[str]:
    """What the node's kernel has of a service."""
    off, led = kernel.unserved(step.node, step.door), kernel.led(step.node, step.door)
    if off:
        yield f"Tortie serves no services on {step.node}: {off}"
    elif led is not None and step.door is not None and step.allowed:
        yield f"{step.door.entrance.frontend} to {step.door.backend}: {led} connection{'s' * (led != 1)}"


def _counted(counter: dict[str, Any] | None) -> str:
    return f": {counter['packets']} packets, {counter['bytes']} bytes" if counter else ""
