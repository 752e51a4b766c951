"""What agent, BIRD and flanneld have made in this machine's kernel, and the steps that take it away.

    observe ──► Found ──plan──► nothing new comes in, what pods have goes, policy goes last ──carry_out──► kernel

Ours: by the marks that the stages know their own by. The tables `inet tortie`, `inet tortie-services` and
`inet tortie-flows` and routes of protocol 87 are nobody else's. What Calico calls as we do (`cali*`, `bwcali*`,
`vxlan.calico`, routes of protocol 80) is ours only on a machine where our agent has been; so are BIRD's routes
(protocol 12), and only if our own BIRD has been there. A `tunl0` has our alias, or is another's. Of flannel's things
links have our alias, routes protocol 70, and rules comments of ours; the bridge of its pods is theirs by its address,
and goes only where our flanneld has been.
Order: flannel's tables, those of services and of flows, routes, the links of pods and tunnels, then that of policy:
while there is an interface there is its policy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

from tortie.base.errors import KernelError, NotFound
from tortie.base.plan import Op, Plan, Verb
from tortie.dataplane.stages.qos import IFB_PREFIX
from tortie.dataplane.stages.tunnels import ALIAS, NAMES
from tortie.kernel import links, nft
from tortie.kernel.addresses import delete_address, list_addresses
from tortie.kernel.links import Link
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import (
    AF_INET,
    AF_INET6,
    RT_TABLE_MAIN,
    RTPROT_AGENT,
    RTPROT_BIRD,
    RTPROT_FLANNEL,
    RTPROT_POD_NETWORKS,
)
from tortie.kernel.routes import Route, delete_route, list_routes
from tortie.model.workload import INTERFACE_PREFIX
from tortie.render.flow_tables import TABLE as FLOWS
from tortie.render.proxy.chains import TABLE as SERVICES
from tortie.render.ruleset import TABLE

FLANNEL_ALIAS = "tortie flannel "
"""How the alias of flanneld's links begins; the network follows."""
FLANNEL_TABLES = ("flannel-ipv4", "flannel-ipv6")
"""What its tables are called; a second network's have more at the end."""
FLANNEL_RULES = ("flanneld forward: ", "flanneld masq: ")
"""How comments of our rules begin there."""

Key = tuple[str, str]
"""What it is (`route`, `pod`, `link`, `tunnel`, `table`), and what it is called."""
Thing = Route | Link | str
Steps = Plan[Key, Thing]


@dataclass(frozen=True, slots=True)
class Found:
    """What there is of ours. `pods` are the host's ends of containers that still have their network."""

    routes: tuple[Route, ...] = ()
    pods: tuple[Link, ...] = ()
    shapers: tuple[Link, ...] = ()
    tunnels: tuple[Link, ...] = ()
    table: bool = False
    names: Mapping[int, str] | None = None
    bridges: tuple[Link, ...] = ()
    flannel_tables: tuple[str, ...] = ()
    services: bool = False
    flows: bool = False

    @property
    def flannel(self) -> bool:
        """Whether something is there that only our flanneld makes."""
        aliased = any(link.alias.startswith(FLANNEL_ALIAS) for link in self.tunnels)
        routed = any(route.protocol == RTPROT_FLANNEL for route in self.routes)
        return aliased or routed or bool(self.flannel_tables)

    def __bool__(self) -> bool:
        links = self.pods or self.shapers or self.tunnels or self.bridges
        return bool(self.routes or links or self.table or self.services or self.flows or self.flannel_tables)


def observe(
    *, been_here: bool, bird: bool, flannel: bool = False, gateways: Collection[str] = (), netns: str | None = None
) -> Found:
    """Looks. `been_here`: our agent has run on this machine; `bird`: so has our BIRD, `flannel`: our flanneld.
    `gateways`: addresses with prefix lengths, by which the bridge of flannel's pods is known. Raises KernelError."""
    tables = _tables(netns)
    table = TABLE in tables
    been_here = been_here or table
    with Netlink(netns) as nl:
        every = links.list_links(nl)
        addressed = {one.index for one in list_addresses(nl) if one.ip in gateways}
        routes = [route for family in (AF_INET, AF_INET6) for route in list_routes(nl, family, table=RT_TABLE_MAIN)]
    flannels = tuple(link for link in every if link.alias.startswith(FLANNEL_ALIAS))
    rules = tuple(sorted(one for one in tables if _is_of_our_flanneld(one, netns)))
    flannel = flannel or bool(flannels or rules) or any(route.protocol == RTPROT_FLANNEL for route in routes)
    bridges = tuple(link for link in every if flannel and link.kind == "bridge" and link.index in addressed)
    ports = {link.index for link in every if link.master in {bridge.index for bridge in bridges}}
    protocols = (
        {RTPROT_POD_NETWORKS, RTPROT_FLANNEL}
        | ({RTPROT_AGENT} if been_here else set())
        | ({RTPROT_BIRD} if bird else set())
    )
    return Found(
        tuple(route for route in routes if route.protocol in protocols),
        tuple(link for link in every if (been_here and is_pods(link)) or (link.index in ports and link.kind == "veth")),
        tuple(link for link in every if been_here and link.name.startswith(IFB_PREFIX) and link.kind == "ifb"),
        (*(link for link in every if is_tunnel_of_ours(link, been_here)), *flannels),
        table,
        {link.index: link.name for link in every},
        bridges,
        rules,
        SERVICES in tables,
        FLOWS in tables,
    )


def has_table(netns: str | None = None) -> bool:
    """Whether policy of ours is in the kernel. Raises KernelError, NotSupported."""
    return TABLE in _tables(netns)


def _tables(netns: str | None) -> frozenset[str]:
    """By family and name."""
    listed = (item["table"] for item in nft.list_json(["list", "tables"], netns) if "table" in item)
    return frozenset(f"{table['family']} {table['name']}" for table in listed)


def _is_of_our_flanneld(table: str, netns: str | None) -> bool:
    """Another flannel's tables have the same names."""
    if not table.partition(" ")[2].startswith(FLANNEL_TABLES):
        return False
    listed = nft.list_json(["list", "table", *table.split()], netns)
    return any(item["rule"].get("comment", "").startswith(FLANNEL_RULES) for item in listed if "rule" in item)


def is_pods(link: Link) -> bool:
    return link.name.startswith(INTERFACE_PREFIX) and link.kind in ("veth", "netkit")


def is_tunnel_of_ours(link: Link, been_here: bool) -> bool:
    if link.name not in NAMES:
        return False
    return link.alias == ALIAS if link.kind == "ipip" else been_here and link.kind == "vxlan"


def plan(found: Found) -> Steps:
    """The steps in their order."""
    names = found.names or {}
    steps = [_table(table) for table in found.flannel_tables]
    steps += [_table(SERVICES)] * found.services + [_table(FLOWS)] * found.flows
    steps += [_route(route, names) for route in sorted(found.routes, key=str)]
    steps += [_step("pod", link, f"ip link delete {link.name}") for link in found.pods]
    steps += [_step("link", link, f"ip link delete {link.name}") for link in found.shapers]
    steps += [_step("tunnel", link, _retiring(link)) for link in found.tunnels]
    steps += [_step("bridge", link, f"ip link delete {link.name}") for link in found.bridges]
    if found.table:
        steps.append(_table(TABLE))
    return Plan(tuple(steps))


def _route(route: Route, names: Mapping[int, str]) -> Op[Key, Thing]:
    words = route.words(names)
    family = "-6 " if route.dst.version == 6 else ""
    return Op(Verb.DELETE, ("route", words), None, route, f"ip {family}route del {words}")


def _table(name: str) -> Op[Key, Thing]:
    return Op(Verb.DELETE, ("table", name), None, name, f"nft delete table {name}")


def _step(kind: str, link: Link, text: str) -> Op[Key, Thing]:
    return Op(Verb.DELETE, (kind, link.name), None, link, text)


def _retiring(link: Link) -> str:
    """The kernel's own `tunl0` cannot be deleted: it is left as the kernel makes it."""
    if not _is_kernels_own(link):
        return f"ip link delete {link.name}"
    return f'ip address flush dev {link.name}; ip link set {link.name} alias "" down'


def carry_out(op: Op[Key, Thing], netns: str | None = None) -> None:
    """One step; what is gone already is right. Raises KernelError."""
    thing = op.have
    with Netlink(netns) as nl, suppress(NotFound):
        if isinstance(thing, Route):
            delete_route(nl, thing)
        elif isinstance(thing, Link) and _is_kernels_own(thing):
            _retire(nl, thing)
        elif isinstance(thing, Link):
            links.delete_link(nl, thing.name)
        else:
            nft.apply(f"delete table {thing}\n", netns)


def _is_kernels_own(link: Link) -> bool:
    return link.kind == "ipip" and link.alias == ALIAS


def _retire(nl: Netlink, link: Link) -> None:
    for address in list_addresses(nl, link.index):
        delete_address(nl, link.index, address.ip)
    links.set_alias(nl, link.name, "")
    links.set_down(nl, link.name)
    with suppress(KernelError):  # one that a person has added goes, the kernel's own does not
        links.delete_link(nl, link.name)
