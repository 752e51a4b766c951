"""What is behind the services that active rules name, kept up to date slice by slice.

A service's members are those of all its EndpointSlices: every address with every port, whether it is ready or not. What
is no address of its slice's IP version is left out, and is a problem while a rule names the service. Two slices may
bring the same member while a controller moves it from one to the other, so members are counted. Of services that no
rule names only what counts of their slices is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tortie.base.addr import IP, host_net
from tortie.model.meta import title
from tortie.model.misfit import shown
from tortie.model.policy import PROTOCOLS
from tortie.model.service import EndpointSlice, endpoint_ip
from tortie.policy.rules import Member, ServiceSet, SetRef

ServiceKey = tuple[str, str]
"""Namespace and name of a service."""
SHOWN = 3
"""Addresses that a problem names."""


@dataclass(frozen=True, slots=True)
class Behind:
    """What counts of a slice: its service, its IP version, the addresses as they are written, protocol numbers and
    ports."""

    service: ServiceKey
    version: int
    addresses: tuple[str, ...]
    ports: tuple[tuple[int, int], ...]

    def members(self, *, ports: bool) -> Iterator[Member]:
        """What it brings into a set of its service. A port without a number is none that a packet could go to."""
        if ports:
            yield from ((ip, protocol, port) for protocol, port in self.ports for ip in self._ips())
        else:
            yield from map(host_net, self._ips())

    @property
    def refused(self) -> str:
        """Which of the addresses are left out, and why; "" if all count."""
        bad = [text for text in self.addresses if endpoint_ip(text, self.version) is None]
        if not bad:
            return ""
        what = ", ".join(map(shown, bad[:SHOWN])) + (f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else "")
        return f"{what}: must be IPv{self.version} by the slice's addressType"

    def _ips(self) -> Iterator[IP]:
        return (ip for text in self.addresses if (ip := endpoint_ip(text, self.version)) is not None)


def behind(one: EndpointSlice) -> Behind | None:
    """None for a slice that is of no service, or of names instead of addresses."""
    version = one.version
    if not one.service or version is None:
        return None
    addresses = dict.fromkeys(address for endpoint in one.endpoints for address in endpoint.addresses)
    ports = dict.fromkeys((PROTOCOLS[port.protocol], port.port) for port in one.ports if port.port is not None)
    return Behind((one.namespace, one.service), version, tuple(addresses), tuple(ports))


class Services:
    """All needed sets of services. Feed it slices in any order; ask `members`."""

    def __init__(self) -> None:
        self._slices: dict[tuple[str, str], Behind] = {}
        self._of: dict[ServiceKey, set[tuple[str, str]]] = {}
        self._wanted: dict[ServiceKey, list[ServiceSet]] = {}
        self._counts: dict[ServiceSet, dict[Member, int]] = {}
        self._frozen: dict[SetRef, frozenset[Member]] = {}
        self._changed: set[ServiceSet] = set()
        self._refused: dict[tuple[str, str], str] = {}
        """Why addresses of a slice are left out, of slices whose services rules name."""

    def set_slice(self, namespace: str, name: str, new: EndpointSlice | None) -> None:
        """A slice is like this, or (None) gone. It may come to be of another service."""
        key = namespace, name
        old, now = self._slices.pop(key, None), behind(new) if new is not None else None
        if now is not None:
            self._slices[key] = now
        if old == now:
            return
        self._refused.pop(key, None)
        if now is not None:
            self._of.setdefault(now.service, set()).add(key)
            self._count(now, +1)
            if now.service in self._wanted:
                self._look(key, now)
        if old is not None:
            self._count(old, -1)
            if now is None or now.service != old.service:
                self._leave(key, old.service)

    def need(self, refs: Iterable[ServiceSet]) -> None:
        """Keep exactly these sets from now on."""
        wanted = set(refs)
        for ref in self._counts.keys() - wanted:
            del self._counts[ref]
            self._frozen.pop(ref, None)
            self._changed.discard(ref)
        new = wanted - self._counts.keys()
        self._wanted = {}
        for ref in wanted:
            self._wanted.setdefault((ref.namespace, ref.name), []).append(ref)
        gone = [key for key in self._refused if self._slices[key].service not in self._wanted]
        for key in gone:
            del self._refused[key]
        for ref in new:
            self._counts[ref] = {}
            self._changed.add(ref)
            for key in self._of.get((ref.namespace, ref.name), ()):
                self._count_in(ref, self._slices[key], +1)
                self._look(key, self._slices[key])

    def members(self) -> dict[SetRef, frozenset[Member]]:
        """Every needed set; a set that did not change is the very same object as last time."""
        for ref in self._changed:
            self._frozen[ref] = frozenset(self._counts[ref])
        self._changed.clear()
        return dict(self._frozen)

    def problems(self) -> dict[str, str]:
        """What is left out of the sets and why, by what it is of."""
        return {
            f"an address of {title(EndpointSlice.KIND, name, namespace)}": why
            for (namespace, name), why in self._refused.items()
        }

    def _look(self, key: tuple[str, str], one: Behind) -> None:
        if why := one.refused:
            self._refused[key] = why

    def _leave(self, key: tuple[str, str], service: ServiceKey) -> None:
        self._of[service].remove(key)
        if not self._of[service]:
            del self._of[service]

    def _count(self, one: Behind, change: int) -> None:
        for ref in self._wanted.get(one.service, ()):
            self._count_in(ref, one, change)

    def _count_in(self, ref: ServiceSet, one: Behind, change: int) -> None:
        counts = self._counts[ref]
        for member in one.members(ports=ref.ports):
            now = counts.get(member, 0) + change
            if now:
                counts[member] = now
            else:
                del counts[member]
            if now == 0 or (now == 1 and change > 0):
                self._changed.add(ref)
