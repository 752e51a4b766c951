"""What the kernel has of the rules and routes that somebody asks about, beside what this node should have.

    the newest state ─► rendered ─┐
    what was applied last ────────┼─► part of it that the interfaces meet ─► compared with the kernel's table
    nft list table ───────────────┘

The kernel lists rules in other words than they were written in; so what should be there is put into a network
namespace of its own, and listed as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from tortie.agent.view import Progress, View
from tortie.base.addr import parse_ip
from tortie.base.errors import ConfigError, KernelError, NotFound, Unavailable
from tortie.dataplane.stages.nft import Nft
from tortie.kernel import links, nft
from tortie.kernel.netlink import Netlink
from tortie.kernel.routes import Route, lookup
from tortie.render.match import fit
from tortie.render.part import named, part
from tortie.render.ruleset import TABLE, Ruleset, transaction

MOMENT = 1.0
"""Seconds that a question waits for what the agent has read to be in the kernel."""
Listed = list[dict[str, Any]]
"""A table as nft's JSON has it; none of it when it cannot be read."""


def listed(netns: str | None = None) -> Listed:
    """Our table in the kernel. It is listed once for all questions: where there are many policies that takes long."""
    try:
        return nft.list_json(["list", "table", *TABLE.split()], netns)
    except (NotFound, KernelError):
        return []


def compare(want: Ruleset, interfaces: Sequence[str], found_there: Listed) -> list[str]:
    """In which chains and sets the kernel's table is another than it should be, for packets of these interfaces."""
    wanted = part(want, interfaces)
    if not found_there:
        return [f"table {TABLE} is not there, or cannot be read"]
    have = nft.comparable([item for item in found_there if _is_of(item, wanted)])
    found: list[str] = []
    for title, things in nft.contents_of(transaction(wanted, None), TABLE).items():
        kind, _, name = title.partition(" ")
        if kind == "table":
            continue
        if title not in have:
            missing = "its rules are gone" if kind == "rule" else "it is gone"
            found.append(f"{'chain' if kind == 'rule' else kind} {name}: {missing}")
        elif kind == "map" and "verdict" in want.sets[name].spec:
            lost = [entry for entry in _elements(things) if entry not in _elements(have[title])]
            found += [f"map {name}: the entry of {entry[0]} is gone or leads elsewhere" for entry in lost]
        elif have[title] != things:
            found.append(f"{'the rules of chain' if kind == 'rule' else kind} {name}: not as they should be")
    empty = [name for name, chain in wanted.chains.items() if not chain.rules and f"rule {name}" in have]
    return found + [f"chain {name}: there are rules that should not be there" for name in empty]


def _is_of(item: Mapping[str, Any], wanted: Ruleset) -> bool:
    """Whether something that is listed is of these chains and sets. Walking through all of a large table takes long."""
    if "rule" in item:
        return item["rule"]["chain"] in wanted.chains
    return any(thing.get("name") in (wanted.chains if kind == "chain" else wanted.sets) for kind, thing in item.items())


def _elements(things: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [entry for thing in things for entry in thing.get("elem", [])]


def rules_of(
    want: Ruleset, names: Sequence[str], found_there: Listed, netns: str | None = None
) -> dict[str, dict[str, Any]]:
    """By name: the rules as they are written and as the kernel has them, with what they have counted."""
    counted = nft.counted(item["rule"] for item in found_there if "rule" in item)
    chains = {name: named(want, name) for name in names}
    lines = {chain: _lines(chain, netns) for chain in {chain for written in chains.values() for chain in written}}
    answer: dict[str, dict[str, Any]] = {}
    for name, written in chains.items():
        comment = f'comment "{fit(name)}"'
        packets, octets = counted.get(fit(name), (0, 0))
        answer[name] = {
            "chains": sorted(written),
            "written": [rule for rules in written.values() for rule in rules],
            "kernel": [line for chain in written for line in lines[chain] if line.endswith(comment)],
            "packets": packets,
            "bytes": octets,
        }
    return answer


def _lines(chain: str, netns: str | None) -> list[str]:
    try:
        return [line.strip() for line in nft.listing(["list", "chain", *TABLE.split(), chain], netns).splitlines()]
    except (NotFound, KernelError):
        return []


class Evidence:
    """Answers for one agent. `rules` and `path` ask the kernel: call them in a thread."""

    def __init__(self, node: str, datastore: str, view: View, progress: Progress, stage: Nft) -> None:
        self._node = node
        self._datastore = datastore
        self._view = view
        self._progress = progress
        self._stage = stage

    async def settled(self, patience: float = MOMENT) -> dict[str, Any]:
        """Where this node is once what it has read is in the kernel, or `patience` seconds have passed."""
        if (latest := self._view.latest) is not None:
            with contextlib.suppress(Unavailable):
                await self._progress.wait(latest.generation, patience)
        return self.standing()

    def standing(self) -> dict[str, Any]:
        """Where this node is, on the event loop: what it has read, and what of that is in the kernel."""
        latest = self._view.latest
        return {
            "node": self._node,
            "datastore": self._datastore,
            "inSync": self._view.in_sync.is_set(),
            "enforced": latest is not None and self._progress.generation >= latest.generation,
            "failures": list(self._progress.failures),
            "revisions": self._view.revisions(),
            "interfaces": sorted(latest.endpoints) if latest is not None else [],
        }

    def rules(self, names: Sequence[str], interfaces: Sequence[str]) -> dict[str, Any]:
        """The rules of these names, the chains that the interfaces' packets meet, and what differs in the kernel."""
        want = self._stage.ruleset
        if want is None:
            why = "the agent does not know what the kernel has: it is just writing, or could not write"
            return {"rules": {}, "chains": {}, "differences": [why]}
        own = part(want, interfaces)
        chains = {name: list(chain.rules) for name, chain in own.chains.items() if not chain.hook}
        there = listed()
        return {
            "rules": rules_of(want, names, there),
            "chains": chains,
            "differences": compare(want, interfaces, there),
        }


def path(source: str, destination: str, interface: str, netns: str | None = None) -> dict[str, Any]:
    """The route that the kernel would take: `route` in the words of ip(8), or `error`. Raises ConfigError, NotFound."""
    with Netlink(netns) as nl:
        dev = links.link_index(nl, interface) if interface else 0
        try:
            route = lookup(nl, parse_ip(source) if source else None, parse_ip(destination), dev)
        except KernelError as error:
            return {"error": error.detail or str(error).rpartition(": ")[2]}
        name, mtu = _link(nl, route)
    via = str(route.via) if route.via is not None else ""
    words = route.words({route.dev: name} if route.dev else {})
    return {"route": words, "to": str(route.dst), "via": via, "dev": name, "type": route.type, "mtu": route.mtu or mtu}


def _link(nl: Netlink, route: Route) -> tuple[str, int]:
    """Name and MTU of the link that a route leads out of; of several ways that of the first."""
    dev = route.dev or next((hop.dev for hop in route.nexthops if hop.dev), 0)
    if not dev:
        return "", 0
    link = links.get_link(nl, dev)
    return link.name, link.mtu


def answerable(question: Mapping[str, str]) -> tuple[str, str, str]:
    """Source, destination and interface of a question about a path. Raises ConfigError."""
    if not question.get("destination"):
        raise ConfigError("which destination? /path?source=ADDRESS&destination=ADDRESS&interface=NAME")
    return question.get("source", ""), question["destination"], question.get("interface", "")
