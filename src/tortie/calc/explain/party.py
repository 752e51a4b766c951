"""One end of a connection, and under which other addresses it is reached."""

from __future__ import annotations

from dataclasses import dataclass

from tortie.base.addr import IP
from tortie.calc.explain.services import Door


@dataclass(frozen=True, slots=True)
class Translation:
    """An address under which a party is reached, and what becomes of it. `port` is translated to `to_port`; 0 stays.

    `anywhere`: on whatever node the packet meets first, as services are; `at`: on this node, as NodePorts are; else on
    the pod's own node. `refused`: it ends there. `door` is what it goes through, of a service.
    """

    address: IP
    to: IP
    reason: str
    port: int = 0
    to_port: int = 0
    anywhere: bool = False
    at: str = ""
    refused: bool = False
    door: Door | None = None


@dataclass(frozen=True, slots=True)
class Party:
    """One end of a connection: a pod with its endpoint, a node, or just an address.

    `ports` are (name, protocol number, port) that a pod declares. With `translations` it is asked for under another
    address than it has. `sets` are the network sets that have the address.
    """

    name: str
    ips: tuple[IP, ...]
    node: str = ""
    interface: str = ""
    ports: tuple[tuple[str, int, int], ...] = ()
    translations: tuple[Translation, ...] = ()
    sets: tuple[str, ...] = ()
    service: str = ""

    @property
    def is_pod(self) -> bool:
        return bool(self.interface)

    def ip(self, version: int) -> IP | None:
        return next((ip for ip in self.ips if ip.version == version), None)

    def translation(self, version: int) -> Translation | None:
        return next((one for one in self.translations if one.to.version == version), None)
