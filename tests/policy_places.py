"""The small world in which policies are generated: one node with five pods and something outside.

    X, Y 198.51.100.9, .77, 2001:db8:51::9, ::77
       │ eth0
       │ eth0 198.51.100.1, 2001:db8:51::1
    node ─── cali00000000p0 ─── p0  10.244.1.10, fd00:244::10
      ├───── cali00000000p1 ─── p1  10.244.1.11, fd00:244::11
      └ ...                     p4

Here are values only; `netns/town.py` builds it of namespaces.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tortie.base.addr import IP, parse_ip
from tortie.model.document import convert
from tortie.model.meta import Resource

SEED = int(os.environ.get("TORTIE_SEED") or random.randrange(2**32))
"""Printed by what fails; TORTIE_SEED repeats a run."""

PODS = ("p0", "p1", "p2", "p3", "p4")
NODE, UPLINK = "node", "eth0"
PORTS = (53, 80, 81, 8080, 9090)
"""Where every party listens, on TCP, UDP, UDPLite and SCTP."""

HOST_ACTION = "pod to its own host: defaultEndpointToHostAction"
"""The rule that drops what pods send to their own node, unless it is to be let in."""
NOT_OBEYED = "doNotTrack on HostEndpoint"
"""A problem that a datastore may have: nobody obeys that, and it is said so."""

ICMP, IPIP, TCP, UDP, GRE, ICMP6, SCTP, UDPLITE = 1, 4, 6, 17, 47, 58, 132, 136
VXLAN_PORT = 4789
ICMP_REQUESTS = {4: (8, 13), 6: (128, 139)}
"""Types that connection tracking takes for the start of something: echo, timestamp; echo, node information."""


@dataclass
class Place:
    """Where packets come from and go to; `ips` are by IP version."""

    name: str
    ips: dict[int, IP]

    @property
    def interface(self) -> str:
        return f"cali00000000{self.name}"


def _place(name: str, v4: str, v6: str) -> Place:
    return Place(name, {4: parse_ip(v4), 6: parse_ip(v6)})


PLACES = {
    place.name: place
    for place in (
        _place(NODE, "198.51.100.1", "2001:db8:51::1"),
        _place("X", "198.51.100.9", "2001:db8:51::9"),
        _place("Y", "198.51.100.77", "2001:db8:51::77"),
        *(_place(pod, f"10.244.1.{10 + i}", f"fd00:244::{10 + i}") for i, pod in enumerate(PODS)),
    )
}


APPS, NAMESPACES, ACCOUNTS = ("web", "db", "client"), ("red", "blue"), ("default", "robot")


class Chance(random.Random):
    """Random choices that read well."""

    def maybe(self, probability: float) -> bool:
        return self.random() < probability

    def some(self, choices: Iterable[Any], most: int) -> list[Any]:
        every = list(choices)
        return self.sample(every, self.randint(1, min(most, len(every))))

    def labels(self) -> dict[str, str]:
        found = {"app": self.choice(APPS)} if self.maybe(0.9) else {}
        return found | ({"zone": self.choice(("z1", "z2"))} if self.maybe(0.5) else {})


def made(kind: type[Resource], name: str, namespace: str = "", labels: Any = None, **body: Any) -> Resource:
    metadata = {"name": name, "labels": labels or {}, **({"namespace": namespace} if namespace else {})}
    return convert(kind, {"metadata": metadata, **body})
