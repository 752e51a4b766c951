"""How many connections each backend of a service was given on this node: counters in the maps of the services' table.

    backends4   10.96.0.1 . 6 . 443 . 0  counter packets 12 bytes 720  :  10.244.1.5 . 6443

A map is looked up for a connection's first packet only, so a packet is a connection. Counters begin when a backend
gets its place, and again when the whole table is filled anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tortie.base.addr import parse_ip
from tortie.base.errors import NotFound
from tortie.calc.proxy.state import Backend, Frontend
from tortie.kernel import nft
from tortie.model.policy import PROTOCOLS
from tortie.render.match import FAMILY
from tortie.render.proxy.chains import TABLE
from tortie.render.proxy.elements import map_name

_NUMBERS = {name.lower(): number for name, number in PROTOCOLS.items()}
_COUNTED = (("backends", False), ("sticky", False), ("locals", True), ("local-sticky", True))


@dataclass(frozen=True, slots=True)
class Hit:
    """`local`: by those from outside who get only backends of this node. The backend's node is not known here."""

    frontend: Frontend
    backend: Backend
    local: bool
    connections: int
    octets: int
    """Of the first packets."""


def hits(netns: str | None = None) -> list[Hit]:
    """Of every backend in the maps, also of those that had none. Empty where there is no table of ours.

    Raises KernelError for what cannot be read.
    """
    return list(_hits(netns))


def _hits(netns: str | None) -> Iterator[Hit]:
    for version in FAMILY:
        for at_port in (False, True):
            for kind, local in _COUNTED:
                name = map_name(kind, version, at_port=at_port)
                with suppress(NotFound):
                    for item in nft.list_json(["list", "map", *TABLE.split(), name], netns):
                        for pair in item.get("map", {}).get("elem", ()):
                            yield hit(pair, version, local=local)


def hit(pair: list[Any], version: int, *, local: bool) -> Hit:
    """One element, as nft's JSON has it: a key with a counter, and a value."""
    element, counter = pair[0]["elem"], pair[0]["elem"]["counter"]
    *address, protocol, port, _ = element["val"]["concat"]
    ip, to = pair[1]["concat"]
    frontend = Frontend(version, parse_ip(address[0]) if address else None, _number(protocol), int(port))
    return Hit(frontend, Backend(parse_ip(ip), int(to)), local, counter["packets"], counter["bytes"])


def _number(protocol: str | int) -> int:
    """nft names those that the machine's /etc/protocols names."""
    return _NUMBERS.get(str(protocol)) or int(protocol)
