"""Who is behind which MAC address: the neighbour table (ARP, NDP), proxied addresses, bridges' forwarding entries."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tortie.base.errors import ConfigError, KernelError, NotFound
from tortie.kernel.netlink import Netlink, Request
from tortie.kernel.netlink.codec import NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE
from tortie.kernel.netlink.tables import (
    AF_BRIDGE,
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    NEIGHBOUR,
    NEIGHBOUR_STATE_NUMBERS,
    NEIGHBOUR_STATES,
    NTF_EXT_LEARNED,
    NTF_MASTER,
    NTF_PROXY,
    NTF_ROUTER,
    NTF_SELF,
    RTM_DELNEIGH,
    RTM_GETNEIGH,
    RTM_NEWNEIGH,
)

TYPE_CHECKING = False  # as in netlink.codec
if TYPE_CHECKING:
    from typing import Any

_REQUESTS = {
    "replace": (RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE),
    "append": (RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_APPEND),
    "delete": (RTM_DELNEIGH, 0),
}


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An address on the link with index `dev`. `proxy`: we answer for it; then it has no MAC and no state.

    `protocol` marks whose entry it is, as with routes; 0 is nobody's.
    """

    dev: int
    ip: str
    mac: str = ""
    state: str = "permanent"
    proxy: bool = False
    router: bool = False
    protocol: int = 0

    def __str__(self) -> str:
        words = ["proxy"] if self.proxy else []
        words += [self.ip, *([f"lladdr {self.mac}"] if self.mac else []), f"dev if{self.dev}"]
        if not self.proxy:
            words.append(f"nud {self.state}")
        words += ["router"] * self.router + ([f"protocol {self.protocol}"] if self.protocol else [])
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Forwarding:
    """A forwarding entry of a bridge's port, or of a VXLAN tunnel: packets to `mac` go out of `dev`, there to `dst`.

    `master`: the entry is in the bridge that `dev` is a port of; else in the device itself (`self`), as a tunnel's are.
    """

    dev: int
    mac: str
    dst: str = ""
    state: str = "permanent"
    master: bool = False
    vlan: int = 0
    extern_learn: bool = False

    def __str__(self) -> str:
        words = [self.mac, f"dev if{self.dev}"]
        words += [f"dst {self.dst}"] if self.dst else []
        words += [f"vlan {self.vlan}"] if self.vlan else []
        words += ["master" if self.master else "self", self.state] + ["extern_learn"] * self.extern_learn
        return " ".join(words)


# --- the wire -----------------------------------------------------------------------------------------------------


def decode(payload: bytes) -> Neighbour | Forwarding:
    """What the body of an RTM_NEWNEIGH or RTM_DELNEIGH message tells of."""
    values = NEIGHBOUR.unpack(payload)
    flags = values["ndm_flags"]
    if values["ndm_family"] == AF_BRIDGE:
        return Forwarding(
            dev=values["ndm_ifindex"],
            mac=values.get("lladdr", ""),
            dst=values.get("dst", ""),
            state=_state(values["ndm_state"]),
            master=bool(values.get("master")) and not flags & NTF_SELF,
            vlan=values.get("vlan", 0),
            extern_learn=bool(flags & NTF_EXT_LEARNED),
        )
    return Neighbour(
        dev=values["ndm_ifindex"],
        ip=values.get("dst", ""),
        mac=values.get("lladdr", ""),
        state=_state(values["ndm_state"]),
        proxy=bool(flags & NTF_PROXY),
        router=bool(flags & NTF_ROUTER),
        protocol=values.get("protocol", 0),
    )


def _state(number: int) -> str:
    return NEIGHBOUR_STATES.get(number, str(number))


def _state_number(state: str) -> int:
    number = NEIGHBOUR_STATE_NUMBERS.get(state)
    if number is None and not state.isdecimal():
        raise ValueError(f"{state!r} is no state of a neighbour")
    return int(state) if number is None else number


def encode(entry: Neighbour | Forwarding) -> bytes:
    """The body of a message about the entry."""
    values: dict[str, Any] = {
        "ndm_ifindex": entry.dev,
        "ndm_state": _state_number(entry.state),
        "lladdr": entry.mac or None,
    }
    if isinstance(entry, Forwarding):
        # As `bridge fdb` has it: "permanent" is NUD_PERMANENT, "static" NUD_NOARP; NTF_SELF is the device's own table.
        values |= {
            "ndm_family": AF_BRIDGE,
            "ndm_flags": (NTF_MASTER if entry.master else NTF_SELF) | NTF_EXT_LEARNED * entry.extern_learn,
            "dst": entry.dst or None,
            "vlan": entry.vlan or None,
        }
    else:
        values |= {
            "ndm_family": AF_INET6 if ":" in entry.ip else AF_INET,
            "ndm_flags": NTF_PROXY * entry.proxy | NTF_ROUTER * entry.router,
            "dst": entry.ip,
            "protocol": entry.protocol or None,
        }
    return NEIGHBOUR.pack(values)


# --- asking -------------------------------------------------------------------------------------------------------


def list_neighbours(
    nl: Netlink, family: int = AF_UNSPEC, dev: int | None = None, *, proxy: bool = False
) -> list[Neighbour]:
    """The neighbours of both families or one, on all links or one; or, instead of them, the proxied addresses."""
    flags = NTF_PROXY if proxy else 0
    values = {"ndm_family": family, "ndm_flags": flags, "ifindex": dev}
    found = _dump(nl, values, f"ip neighbour show{' proxy' * proxy}", dev)
    return [entry for entry in found if isinstance(entry, Neighbour) and entry.proxy == proxy]


def list_forwarding(nl: Netlink, dev: int | None = None) -> list[Forwarding]:
    """The forwarding entries of all bridges and tunnels, or of one port or tunnel."""
    found = _dump(nl, {"ndm_family": AF_BRIDGE, "ndm_ifindex": dev or 0}, "bridge fdb show", dev)
    return [entry for entry in found if isinstance(entry, Forwarding)]


def _dump(nl: Netlink, values: Mapping[str, Any], doing: str, dev: int | None) -> list[Neighbour | Forwarding]:
    try:
        messages = nl.dump(RTM_GETNEIGH, NEIGHBOUR.pack(values), doing)
    except KernelError as why:
        if why.errno == errno.ENODEV:
            return []
        raise
    found = [decode(message.payload) for message in messages if message.type == RTM_NEWNEIGH]
    return [entry for entry in found if dev is None or entry.dev == dev]


# --- changing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    verb: str
    entry: Neighbour | Forwarding

    def __str__(self) -> str:
        what = "bridge fdb" if isinstance(self.entry, Forwarding) else "ip neighbour"
        return f"{what} {self.verb} {self.entry}"


def _request(verb: str, entry: Neighbour | Forwarding) -> Request:
    type_, flags = _REQUESTS[verb]
    step = _Step(verb, entry)
    try:
        return Request(type_, flags, encode(entry), step)
    except ValueError as why:
        raise ConfigError(str(why), str(step)) from None


def _one(nl: Netlink, verb: str, entry: Neighbour | Forwarding) -> None:
    request = _request(verb, entry)
    try:
        nl.request(request.type, request.flags, request.payload, request.doing)
    except KernelError as why:
        if why.errno in (errno.ENOENT, errno.ENODEV):
            raise NotFound(str(why)) from None
        raise


def replace(nl: Netlink, entry: Neighbour | Forwarding) -> None:
    """Sets the entry for its address, whatever was there. Raises NotFound without the link."""
    _one(nl, "replace", entry)


def append(nl: Netlink, entry: Forwarding) -> None:
    """Adds a destination to a tunnel's entry for a MAC: 00:00:00:00:00:00 floods to all of its destinations."""
    _one(nl, "append", entry)


def delete(nl: Netlink, entry: Neighbour | Forwarding) -> None:
    """Deletes the entry for its address; of a tunnel's flooding entry, the one destination.

    Raises NotFound, though not for a destination that is missing among others: the kernel takes that for done.
    """
    _one(nl, "delete", entry)


def apply_many(nl: Netlink, steps: Iterable[tuple[str, Neighbour | Forwarding]]) -> list[tuple[int, KernelError]]:
    """Does many (verb, entry) in order, verbs "replace", "append", "delete"; (index, error) of those that failed."""
    return nl.batch([_request(verb, entry) for verb, entry in steps])
