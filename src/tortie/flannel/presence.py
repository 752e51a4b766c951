"""Whether another node publishes the address that this one is about to publish.

    claim ──► <prefix>/tortie/nodes/10.0.2.15 ──► nobody's, or this machine's: ours
                 {"host", "machine", "boot", "instance"}  another machine's: refused, naming it
    beat ──► its etcd lease lives on ──► somebody else's by now? a problem that is told

An entry under `subnets/` belongs to whoever has its public address, so that two nodes with one address share a subnet,
and pods of both get the same addresses. It happens: every virtual machine behind VirtualBox's NAT is 10.0.2.15. A node
that is alive is known by a key of ours, which flannel does not look at, and which goes a minute after its daemon.
"""

from __future__ import annotations

import json
import logging
import socket
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from tortie.base.errors import ConfigError, Unavailable
from tortie.store.etcd.keyspace import Entry, Keyspace, Span

log = logging.getLogger(__name__)

TTL = 60
"""Seconds that the key outlives its daemon: so long another machine has to wait for a dead one's address."""
BEAT = 20.0
"""Seconds between two signs of life."""
ATTEMPTS = 10
VIRTUALBOX = IPv4Address("10.0.2.15")


@dataclass(frozen=True, slots=True)
class Machine:
    """What tells machines apart: `machine` is its id in /etc, `boot` that of its running kernel."""

    host: str
    machine: str
    boot: str = ""

    @classmethod
    def here(cls) -> Machine:
        return cls(socket.gethostname(), _line("/etc/machine-id"), _line("/proc/sys/kernel/random/boot_id"))

    def is_same(self, other: Machine) -> bool:
        """A running kernel has an id of its own; after a restart it is name and id that stay. The id alone would not
        do: machines that were copied often have one in common."""
        if self.boot and self.boot == other.boot:
            return True
        return bool(self.machine) and (self.host, self.machine) == (other.host, other.machine)


class Presence:
    """This daemon's claim to an address. `problem` is what the last beat found, "" for nothing."""

    def __init__(self, keys: Keyspace, prefix: str, machine: Machine) -> None:
        self._keys = keys
        self._claims = f"{prefix}/tortie/nodes/"
        self._machine = machine
        self._value = json.dumps(asdict(machine) | {"instance": uuid.uuid4().hex})
        self._address: IPv4Address | None = None
        self._lease = 0
        self.problem = ""

    @property
    def span(self) -> Span:
        """Where all claims are."""
        return Span.prefix(self._claims)

    def hosts(self, entries: Iterable[Entry]) -> Mapping[str, str]:
        """Who claims which address, of what was read."""
        claims = (entry for entry in entries if entry.key.startswith(self._claims))
        found = ((entry.key.removeprefix(self._claims), _machine(entry)) for entry in claims)
        return {address: machine.host for address, machine in found if machine is not None}

    @property
    def _key(self) -> str:
        return f"{self._claims}{self._address}"

    async def claim(self, address: IPv4Address) -> None:
        """Raises ConfigError naming the other machine that has it; Unavailable."""
        if address != self._address:
            await self.leave()
        self._address = address
        lease = await self._keys.grant(TTL)
        for _ in range(ATTEMPTS):
            found = await self._keys.get(self._key)
            if found is not None and (other := _machine(found)) is not None and not self._machine.is_same(other):
                await self._keys.revoke(lease)
                raise ConfigError(_refusal(address, other), f"public IP {address}")
            if await self._keys.swap(self._key, self._value, lease, found.revision if found else 0):
                self._lease, self.problem = lease, ""
                return
        await self._keys.revoke(lease)
        raise Unavailable(f"{self._keys.where}: {self._key} is written by others all the time")

    async def beat(self) -> None:
        """Says that we live, and looks whether somebody else says so of himself. Raises Unavailable."""
        if self._address is None:
            return
        try:
            alive = await self._keys.keep_alive(self._lease)
            found = await self._keys.get(self._key) if alive else None
            if found is None:  # etcd was away for longer than a minute, or has lost everything
                await self.claim(self._address)
            elif found.value != self._value:
                other = _machine(found)
                who = other.host if other else "somebody"
                self.problem = (
                    f"public IP {self._address}: another daemon, on {who}, publishes it too, and has the same lease:"
                    " each node needs an address of its own"
                )
            else:
                self.problem = ""
        except ConfigError as error:
            self.problem = str(error)

    async def leave(self) -> None:
        """The address is free for others at once. Raises Unavailable."""
        lease, self._lease, self._address = self._lease, 0, None
        if lease:
            await self._keys.revoke(lease)


def _refusal(address: IPv4Address, other: Machine) -> str:
    nat = (
        " (10.0.2.15 is what VirtualBox's NAT gives every machine: take the interface of the network between them)"
        if address == VIRTUALBOX
        else ""
    )
    return (
        f"another node publishes it, {other.host}, and both would get one subnet: give this one another by --iface or"
        f" --public-ip{nat}; if {other.host} is gone, its claim ends within {TTL} s"
    )


def _machine(entry: Entry) -> Machine | None:
    """Whose claim it is; None for what nobody can read."""
    with suppress(ValueError, TypeError, AttributeError):
        found: dict[str, Any] = json.loads(entry.value)
        return Machine(*(str(found.get(name, "")) for name in ("host", "machine", "boot")))
    return None


def _line(file: str) -> str:
    with suppress(OSError):
        return Path(file).read_text().strip()
    return ""
