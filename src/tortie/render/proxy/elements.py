"""One service as elements of the maps of `inet tortie-services`, and what it shares with other services.

    Frontend 10.96.0.1:443/tcp, backends 10.244.1.5:6443 and 10.244.2.7:6443
        services4    10.96.0.1 . 6 . 443      : goto to4-2            who asks here: a chain for all that look like it
        backends4    10.96.0.1 . 6 . 443 . 0  : 10.244.1.5 . 6443     that chain throws the dice, and looks up here
        backends4    10.96.0.1 . 6 . 443 . 1  : 10.244.2.7 . 6443

A NodePort is the same without an address, in maps whose names begin with `port-`. Protocols are numbers: nft asks the
machine for names, and a small container knows none.

A backend keeps its place when others go: the last one moves to a place that has become free. So one that goes changes
three elements, however many there are, and those that stay keep their counters.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tortie.base.addr import Net, collapse
from tortie.calc.proxy.state import Backend, Entrance, Frontend, Served

Element = tuple[str, str]
"""A map or set, and what is in it, as nft writes it: `key` or `key : value`."""

DROP = "drop"
REFUSE = "refuse"
"""The chain that rejects."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What entrances have in common that share a chain.

    `local` None: everybody gets one of all backends; else who is outside gets one of so many. `affinity` in seconds.
    """

    version: int
    at_port: bool
    backends: int
    local: int | None = None
    affinity: int = 0

    @property
    def chain(self) -> str:
        sticky = f"-s{self.affinity}" if self.affinity else ""
        if self.local is None:
            return f"{'port' if self.at_port else 'to'}{self.version}-{self.backends}{sticky}"
        return f"{'port-' if self.at_port else ''}local{self.version}-{self.backends}-{self.local}{sticky}"

    @property
    def to_all(self) -> Shape:
        """That of the same entrance for pods and the node itself."""
        return replace(self, local=None)

    def map(self, kind: str) -> str:
        return map_name(kind, self.version, at_port=self.at_port)


@dataclass(frozen=True, slots=True)
class Sources:
    """The networks of one IP version from which alone somebody may ask: a chain for all entrances that say so."""

    version: int
    nets: tuple[Net, ...]

    @property
    def chain(self) -> str:
        return f"from{self.version}-{hashlib.sha256(' '.join(map(str, self.nets)).encode()).hexdigest()[:12]}"


Shared = Shape | Sources


def map_name(kind: str, version: int, *, at_port: bool) -> str:
    """Of `services`, `unserved`, `clients`, `backends`, `locals`, `ids`, `local-ids`, `sticky`, `local-sticky`."""
    if kind == "services":
        return f"{'nodeports' if at_port else 'services'}{version}"
    return f"{'port-' if at_port else ''}{kind}{version}"


def key(frontend: Frontend) -> str:
    """How a frontend is looked up."""
    ports = f"{frontend.protocol} . {frontend.port}"
    return ports if frontend.ip is None else f"{frontend.ip} . {ports}"


def shape(entrance: Entrance) -> Shape | None:
    """None where nobody gets anything."""
    if not entrance.backends:
        return None
    frontend, local = entrance.frontend, entrance.local
    return Shape(
        frontend.version,
        frontend.ip is None,
        len(entrance.backends),
        None if local is None else len(local),
        entrance.affinity,
    )


def shared(served: Served) -> Iterator[Shared]:
    """What a service needs that others may need, too. The same may come more than once."""
    for entrance in served.entrances:
        found = shape(entrance)
        if found is not None:
            yield found
            if found.local is not None:
                yield found.to_all
        if (sources := _sources(entrance)) is not None:
            yield sources


def _sources(entrance: Entrance) -> Sources | None:
    if entrance.sources is None or entrance.frontend.ip is None:
        return None
    version = entrance.frontend.version
    return Sources(version, tuple(collapse(net for net in entrance.sources if net.version == version)))


def elements(served: Served) -> Iterator[Element]:
    """All of one service but its ClusterIPs, which are counted."""
    for entrance in served.entrances:
        yield from _entrance(entrance)


def _entrance(entrance: Entrance) -> Iterator[Element]:
    frontend, found = entrance.frontend, shape(entrance)
    version, at_port, where = frontend.version, frontend.ip is None, key(frontend)
    if found is not None:
        yield found.map("services"), f"{where} : goto {found.chain}"
        yield from _answers(found, frontend, entrance.backends, "")
        if entrance.local is not None:
            yield from _answers(found, frontend, entrance.local, "local")
    if found is None or found.local == 0:
        verdict = DROP if entrance.unserved == "drop" else f"goto {REFUSE}"
        yield map_name("unserved", version, at_port=at_port), f"{where} : {verdict}"
    if (sources := _sources(entrance)) is not None:
        yield f"restricted{version}", f"{where} : goto {sources.chain}"


def _answers(found: Shape, frontend: Frontend, backends: Sequence[Backend], scope: str) -> Iterator[Element]:
    """By number; with affinity the number leads to an identity that stays, and that to the backend."""
    where = key(frontend)
    if not found.affinity:
        name = found.map("locals" if scope else "backends")
        yield from ((name, f"{where} . {n} : {one.ip} . {one.port}") for n, one in enumerate(backends))
        return
    ids, sticky = (found.map(f"{scope}-{kind}" if scope else kind) for kind in ("ids", "sticky"))
    for n, (one, identity) in enumerate(zip(backends, identities(backends), strict=True)):
        yield ids, f"{_id_key(frontend, n)} : {identity}"
        yield sticky, f"{where} . {identity} : {one.ip} . {one.port}"


def _id_key(frontend: Frontend, number: int) -> str:
    """An IPv6 address comes last: see `chains`."""
    if frontend.version == 4 or frontend.ip is None:
        return f"{key(frontend)} . {number}"
    return f"{frontend.protocol} . {frontend.port} . {number} . {frontend.ip}"


def identities(backends: Sequence[Backend]) -> list[str]:
    """A number of 32 bits for each, as nft writes a priority; the same for a backend whoever else there is.

    Should two of one entrance have the same, the second by its name gets another. Both halves are from 1 to fffe: nft
    has words for others.
    """
    found: dict[Backend, int] = {}
    taken: set[int] = set()
    for one in sorted(backends, key=str):
        number = zlib.crc32(str(one).encode())
        while number in taken or not _plain(number):
            number = number + 0x10001 & 0xFFFFFFFF
        taken.add(number)
        found[one] = number
    return [f"{found[one] >> 16:x}:{found[one] & 0xFFFF:x}" for one in backends]


def _plain(number: int) -> bool:
    return 0 < number >> 16 < 0xFFFF and 0 < number & 0xFFFF < 0xFFFF


def arranged(new: Served, old: Served | None) -> Served:
    """The service with its backends in the order in which they are in the maps, `old` being there now."""
    if old is None:
        return new
    before = {entrance.frontend: entrance for entrance in old.entrances}
    entrances = []
    for entrance in new.entrances:
        was = before.get(entrance.frontend)
        if was is not None:
            local = entrance.local
            if local is not None and was.local is not None:
                local = places(local, was.local)
            entrance = replace(entrance, backends=places(entrance.backends, was.backends), local=local)
        entrances.append(entrance)
    return replace(new, entrances=tuple(entrances))


def places(new: tuple[Backend, ...], old: tuple[Backend, ...]) -> tuple[Backend, ...]:
    """Who stays keeps its place, who comes takes a free one; what is left free is filled from the end."""
    if new == old:
        return old
    stays = {_address(one): one for one in new}
    row: list[Backend | None] = [stays.pop(_address(one), None) for one in old]
    come = list(stays.values())
    for index, one in enumerate(row):
        if one is None and come:
            row[index] = come.pop(0)
    row += come
    for index in range(len(row)):
        while row and row[-1] is None:
            row.pop()
        if index < len(row) and row[index] is None:
            row[index] = row.pop()
    return tuple(one for one in row if one is not None)


def _address(one: Backend) -> tuple[object, int]:
    """Whoever says on which node it is: the element is the same."""
    return one.ip, one.port
