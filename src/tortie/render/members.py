"""The members of an address set as elements of nft, one set for IPv4 and one for IPv6.

    members (calc)  ── what came, what went ──►  elements (text)      one more member of 10,000 is one more text

The kernel does not take an element that lies inside another. A member inside a broader one is left out therefore, and
is there again when the broader one goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from tortie.base.addr import HOST_NETS, Net
from tortie.base.kinset import KinSet
from tortie.policy.rules import Member, SelectorSet, ServiceSet, SetRef
from tortie.render.match import set_name
from tortie.render.ruleset import Set

ADDRESS = {4: "ipv4_addr", 6: "ipv6_addr"}


class MemberSets:
    """The two kernel sets of one set of members. What does not change is the very same object as before."""

    def __init__(self, ref: SetRef) -> None:
        of_addresses = isinstance(ref, SelectorSet) or (isinstance(ref, ServiceSet) and not ref.ports)
        self._kind = "" if of_addresses else " . inet_proto . inet_service"
        self._names = {version: set_name(ref, version) for version in ADDRESS}
        self._members: AbstractSet[Member] = frozenset()
        self._broad = {version: _Networks(()) for version in ADDRESS}
        self._elements: dict[int, KinSet[str]] = {version: KinSet() for version in ADDRESS}
        self.sets = {name: Set(self._spec(version), self._elements[version]) for version, name in self._names.items()}

    def update(self, members: AbstractSet[Member]) -> None:
        """These are the members now."""
        if members is self._members:
            return
        come, gone = members - self._members, self._members - members
        self._members = members
        for version, name in self._names.items():
            mine, others = _of(version, come), _of(version, gone)
            if any(map(is_broad, (*mine, *others))):
                mine = _of(version, members)
                self._broad[version] = _Networks(filter(is_broad, mine))
                self._elements[version] = KinSet(self._texts(version, mine))
            else:
                old = self._elements[version]
                self._elements[version] = old.changed(self._texts(version, mine), map(element, others))
            new = Set(self._spec(version), self._elements[version])
            if new != self.sets[name]:
                self.sets = {**self.sets, name: new}

    def _spec(self, version: int) -> str:
        """Single addresses are hashed; among real networks the kernel has to search."""
        interval = " flags interval;" if self._broad[version] else ""
        return f"type {ADDRESS[version]}{self._kind};{interval}"

    def _texts(self, version: int, members: Iterable[Member]) -> Iterable[str]:
        broad = self._broad[version]
        return (element(one) for one in members if isinstance(one, tuple) or not broad.hold(one))


def is_broad(member: Member) -> bool:
    """Whether it is a network of more than one address."""
    return not isinstance(member, tuple) and member.prefixlen < member.max_prefixlen


def element(member: Member) -> str:
    """As nft writes it. A /32 or /128 is its address."""
    if isinstance(member, HOST_NETS):
        return member.address
    if isinstance(member, tuple):
        ip, protocol, port = member
        return f"{ip} . {protocol} . {port}"
    return str(member) if is_broad(member) else str(member.network_address)


def _of(version: int, members: Iterable[Member]) -> list[Member]:
    return [one for one in members if (one[0] if isinstance(one, tuple) else one).version == version]


class _Networks:
    """Networks of one family, asked whether one of them holds another network: a look per prefix length."""

    def __init__(self, nets: Iterable[Member]) -> None:
        self._by_length: dict[int, set[int]] = {}
        for net in nets:
            assert not isinstance(net, tuple)
            prefix = int(net.network_address) >> (net.max_prefixlen - net.prefixlen)
            self._by_length.setdefault(net.prefixlen, set()).add(prefix)

    def __bool__(self) -> bool:
        return bool(self._by_length)

    def hold(self, net: Net) -> bool:
        """Whether `net` lies inside a broader one of these."""
        number, bits = int(net.network_address), net.max_prefixlen
        return any(
            length < net.prefixlen and number >> (bits - length) in prefixes
            for length, prefixes in self._by_length.items()
        )
