"""What pods leave behind, seen from outside: the kernel through `ip -j` and `nft -j`, the datastore through SQLite.

Nothing here uses what it judges. What blocks, affinities and handles promise is written down once more, from the data
model that Calico documents.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

# --- the datastore ------------------------------------------------------------------------------------------------

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Allocation:
    """An address that a block says is held."""

    ip: str
    handle: str
    attrs: dict[str, str]


@dataclass(frozen=True)
class Stored:
    """A datastore at one moment, as JSON."""

    blocks: list[Document] = field(default_factory=list)
    affinities: list[Document] = field(default_factory=list)
    handles: list[Document] = field(default_factory=list)
    endpoints: list[Document] = field(default_factory=list)
    pods: list[Document] = field(default_factory=list)
    nodes: list[Document] = field(default_factory=list)

    def uid(self, pod: str) -> str:
        return next((str(each["metadata"]["uid"]) for each in self.pods if each["metadata"]["name"] == pod), "")

    @property
    def allocations(self) -> list[Allocation]:
        return [each for block in self.blocks for each in _held(block)]


KINDS = {
    "ipamblocks.projectcalico.org": "blocks",
    "blockaffinities.projectcalico.org": "affinities",
    "ipamhandles.projectcalico.org": "handles",
    "workloadendpoints.projectcalico.org": "endpoints",
    "pods": "pods",
    "nodes.projectcalico.org": "nodes",
}


def stored(datastore: Path) -> Stored:
    found: dict[str, list[Document]] = {name: [] for name in KINDS.values()}
    with closing(sqlite3.connect(datastore, timeout=10)) as connection:
        for kind, body in connection.execute("SELECT kind, body FROM objects ORDER BY kind, namespace, name"):
            if kind in KINDS:
                found[KINDS[kind]].append(json.loads(body))
    return Stored(**found)


def _held(block: Document) -> Iterator[Allocation]:
    spec = block["spec"]
    net = ip_network(spec["cidr"])
    for ordinal, index in enumerate(spec.get("allocations", ())):
        if index is not None:
            attribute = spec["attributes"][index]
            if not attribute.get("releasedAt"):
                handle = attribute.get("handle_id") or ""
                yield Allocation(str(net[ordinal]), handle, attribute.get("secondary") or {})


# --- whether it is sound ------------------------------------------------------------------------------------------


def unsound(at: Stored, *, resting: bool = True) -> list[str]:
    """What of the data model does not hold. `resting`: nobody is in the middle of anything, nor died there, so that
    handles count what blocks have and no claim is half made."""
    return [*_blocks(at), *_affinities(at, resting), *_handles(at, resting)]


def _name(cidr: str) -> str:
    return cidr.replace(".", "-").replace(":", "-").replace("/", "-")


def _blocks(at: Stored) -> Iterator[str]:
    seen: list[Any] = []
    for block in at.blocks:
        spec, name = block["spec"], block["metadata"]["name"]
        net = ip_network(spec["cidr"])
        slots, free = spec.get("allocations", []), spec.get("unallocated", [])
        attributes = spec.get("attributes", [])
        taken = [ordinal for ordinal, index in enumerate(slots) if index is not None]
        if name != _name(spec["cidr"]):
            yield f"block {spec['cidr']} is named {name}"
        if any(net.version == other.version and net.overlaps(other) for other in seen):
            yield f"block {net} overlaps another"
        seen.append(net)
        if len(slots) != net.num_addresses:
            yield f"block {net} has {len(slots)} slots"
        if sorted([*taken, *free]) != list(range(net.num_addresses)):
            yield f"block {net}: taken {taken} and free {sorted(free)} are not all its addresses once"
        if {slots[ordinal] for ordinal in taken} != set(range(len(attributes))):
            yield f"block {net}: not every attribute is referenced, or one that is not there is"
        numbers = {int(ordinal): number for ordinal, number in spec.get("sequenceNumberForAllocation", {}).items()}
        if set(taken) - set(numbers):
            yield f"block {net}: no sequence number for {sorted(set(taken) - set(numbers))}"
        if any(number > spec.get("sequenceNumber", 0) for number in numbers.values()):
            yield f"block {net}: an assignment has a number that the block has not reached"
        if spec.get("deleted"):
            yield f"block {net} is marked deleted"


def _affinities(at: Stored, resting: bool) -> Iterator[str]:
    owners = {block["spec"]["cidr"]: block["spec"].get("affinity") for block in at.blocks}
    claimed: dict[str, list[str]] = {}
    for affinity in at.affinities:
        spec, metadata = affinity["spec"], affinity["metadata"]
        node, cidr, state = spec["node"], spec["cidr"], spec.get("state") or "confirmed"
        whose = f"{spec.get('type') or 'host'}:{node}"
        claimed.setdefault(cidr, []).append(whose)
        if metadata["name"] != f"{node}-{_name(cidr)}":
            yield f"affinity of {node} to {cidr} is named {metadata['name']}"
        labels = metadata.get("labels", {})
        digest = base64.b32encode(hashlib.sha3_256(node.encode()).digest()).decode().rstrip("=")
        wanted = {"hostname-hash": digest, "affinity-type": "host", "ip-version": str(ip_network(cidr).version)}
        if any(labels.get(f"projectcalico.org/{key}") != value for key, value in wanted.items()):
            yield f"affinity of {node} to {cidr} has the labels {labels}"
        if state == "confirmed" and owners.get(cidr) != whose:
            yield f"{node} has confirmed {cidr}, which is {owners.get(cidr) or 'nobody'}'s"
        if resting and state != "confirmed":
            yield f"affinity of {node} to {cidr} is {state}"
        if spec.get("deleted") not in (None, False, "false"):
            yield f"affinity of {node} to {cidr} is marked deleted"
    for cidr, owner in owners.items():
        if owner and owner not in claimed.get(cidr, ()) and (resting or _in_use(at, cidr)):
            yield f"block {cidr} is {owner}'s, which has no affinity to it"


def claimed(at: Stored) -> Callable[[str], str]:
    """Tells of an address whose block it is in: the node's that has confirmed its claim, "borrowed" in a block that is
    nobody's, and "nobody" where the owner of the block has no confirmed claim, so that others do not route there."""
    blocks = {ip_network(block["spec"]["cidr"]): block["spec"].get("affinity") for block in at.blocks}
    confirmed = {
        (ip_network(each["spec"]["cidr"]), f"{each['spec'].get('type') or 'host'}:{each['spec']['node']}")
        for each in at.affinities
        if each["spec"].get("state") in (None, "", "confirmed")
    }

    def whose(ip: str) -> str:
        for net, owner in blocks.items():
            if ip_address(ip) in net:
                return "borrowed" if not owner else owner if (net, owner) in confirmed else "nobody"
        return "nobody"

    return whose


def _in_use(at: Stored, cidr: str) -> bool:
    return any(ip_network(each.ip).subnet_of(ip_network(cidr)) for each in at.allocations if _same(each.ip, cidr))


def _same(ip: str, cidr: str) -> bool:
    return (":" in ip) == (":" in cidr)


def _handles(at: Stored, resting: bool) -> Iterator[str]:
    real: Counter[tuple[str, str]] = Counter()
    for block in at.blocks:
        for each in _held(block):
            if each.handle:
                real[each.handle.lower(), block["spec"]["cidr"]] += 1
    counted: Counter[tuple[str, str]] = Counter()
    for handle in at.handles:
        spec, name = handle["spec"], handle["metadata"]["name"]
        if name != spec["handleID"].lower():
            yield f"handle {spec['handleID']} is named {name}"
        if resting and not spec.get("block"):
            yield f"handle {name} is empty"
        for cidr, count in spec.get("block", {}).items():
            counted[name, cidr] = count
    for key in real.keys() | counted.keys():
        if real[key] > counted[key] or (resting and real[key] != counted[key]):
            yield f"handle {key[0]} counts {counted[key]} addresses in {key[1]}, where it holds {real[key]}"


# --- the kernel ---------------------------------------------------------------------------------------------------


def ip(*words: str) -> list[Document]:
    done = subprocess.run(["ip", "-j", *words], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise AssertionError(f"ip {' '.join(words)}: {done.stderr}")
    return [item for item in json.loads(done.stdout or "[]") if item]


def links(ns: str) -> set[str]:
    """The names of a namespace's links, without loopback."""
    return {link["ifname"] for link in ip("-n", ns, "link", "show")} - {"lo"}


def addresses(ns: str) -> set[str]:
    """Those of a pod's interfaces that are no link-local ones."""
    found = {
        address["local"]
        for link in ip("-n", ns, "addr", "show")
        if link["ifname"] != "lo"
        for address in link.get("addr_info", ())
        if "local" in address
    }
    return {each for each in found if not each.startswith(("fe80:", "169.254."))}


def host_routes(ns: str, *, v6: bool) -> dict[str, str]:
    """Single addresses with a route, and where it leads."""
    every = [*ip("-n", ns, "-4", "route", "show")]
    if v6:
        every += ip("-n", ns, "-6", "route", "show")
    return {
        route["dst"]: route.get("dev", route.get("type", ""))
        for route in every
        if "/" not in route["dst"] and route["dst"] != "default" and route.get("protocol") != "kernel"
    }


def policy(ns: str) -> str:
    """Our table as nft lists it, without handles and counters."""
    command = ["nsenter", f"--net=/run/netns/{ns}", "nft", "-j", "list", "table", "inet", "tortie"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout
