"""The addresses of this node that workloads speak BGP to, on the interfaces of the workloads that do.

Ours: every address of full length (/32, and /128 but for link-local ones) on a pod's interface (`cali*`).
Order: any. An interface that is not there yet gets its addresses when it appears.
Source: Calico's Felix: BGPConfiguration's localWorkloadPeeringIPV4 and -IPV6.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress

from tortie.base.addr import IP, parse_ip
from tortie.base.errors import Exists, NotFound
from tortie.base.plan import Plan, Verb, diff
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Work
from tortie.kernel import links
from tortie.kernel.addresses import Address, add_address, delete_address, list_addresses
from tortie.kernel.netlink import Netlink
from tortie.model.workload import INTERFACE_PREFIX

Place = tuple[str, IP]
"""An interface and an address on it."""


def plan(want: Iterable[Place], have: Iterable[Place]) -> Plan[Place, Place]:
    """The steps from what is to what should be."""
    words = {Verb.ADD: "add", Verb.CHANGE: "replace", Verb.DELETE: "del"}
    return diff(
        {place: place for place in sorted(want, key=str)},
        {place: place for place in have},
        lambda verb, place, _: f"ip address {words[verb]} {_text(place[1])} dev {place[0]}",
    )


class PeeringAddresses:
    name = "peering addresses"
    guard = False

    def __init__(self, netns: str | None = None) -> None:
        self._netns = netns
        self._nothing = False
        """The last look found nothing of ours: there is nothing to look for while nobody needs it."""

    def select(self, state: DesiredState, there: Collection[str]) -> set[Place]:
        """What is to be on the interfaces that are there."""
        routing = state.routing
        if routing is None:
            return set()
        return {(name, ip) for name in routing.workload_interfaces if name in there for ip in routing.workload_ips}

    def plan(self, state: DesiredState) -> Plan[Place, Place]:
        asked = state.routing is not None and bool(state.routing.workload_interfaces)
        if self._nothing and not asked:
            return Plan()
        names = _pods(self._netns)
        with Netlink(self._netns) as nl:
            addresses = list_addresses(nl)
        have = {(names[one.index], _ip(one)) for one in addresses if one.index in names and _is_ours(one)}
        found = plan(self.select(state, set(names.values())), have)
        self._nothing = not found and not asked
        return found

    def make(self, work: Work) -> None:
        assert isinstance(work, Plan)
        indexes = {name: index for index, name in _pods(self._netns).items()}
        with Netlink(self._netns) as nl:
            for op in work:
                name, ip = op.key
                if op.makes and name in indexes:
                    with suppress(Exists, NotFound):  # an interface that has gone meanwhile needs none
                        scope = "link" if ip.version == 4 else "global"
                        add_address(nl, indexes[name], _text(ip), scope=scope, nodad=ip.version == 6)

    def unmake(self, work: Work) -> None:
        assert isinstance(work, Plan)
        indexes = {name: index for index, name in _pods(self._netns).items()}
        with Netlink(self._netns) as nl:
            for op in work:
                name, ip = op.key
                if not op.makes and name in indexes:
                    with suppress(NotFound):
                        delete_address(nl, indexes[name], _text(ip))

    def forget(self) -> None:
        self._nothing = False


def _pods(netns: str | None) -> dict[int, str]:
    """The pods' interfaces, by index."""
    return {index: name for index, name in links.names(netns).items() if name.startswith(INTERFACE_PREFIX)}


def _text(ip: IP) -> str:
    return f"{ip}/{ip.max_prefixlen}"


def _ip(address: Address) -> IP:
    return parse_ip(address.ip.partition("/")[0])


def _is_ours(address: Address) -> bool:
    ip = _ip(address)
    return address.ip == _text(ip) and not (ip.version == 6 and ip.is_link_local)
