"""One line of the answer, and what this machine itself is judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from tortie.base.addr import Net, host_net, within
from tortie.calc.doctor.seen import Cluster, Interface, Machine, PolicyRule, Seen, Way
from tortie.calc.mtu import IPIP, VXLAN

Level = Literal["bad", "warn", "ok", "skipped"]
LEVELS: tuple[Level, ...] = ("bad", "warn", "ok", "skipped")
"""The worst first."""

FLOW_TABLES = "flow tables"
"""The name of a kernel's feature."""
NEEDED = {"VXLAN": "vxlan", "IPIP": "ipip"}
"""A pool's tunnel and the kernel's feature for it."""
OVERHEAD = {("VXLAN", 4): VXLAN[4].overhead, ("VXLAN", 6): VXLAN[6].overhead, ("IPIP", 4): IPIP.overhead}
"""Bytes that a tunnel adds to a packet, by the IP version of the nodes."""
TUNNEL_KINDS = {"vxlan": "VXLAN", "ipip": "IPIP"}
POD_PREFIX = "cali"
CROWDED = 0.9
"""Share of the connection table above which it is a matter of time until connections are refused."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` is what was looked at, in a word; `todo` is empty where nothing is to be done."""

    level: Level
    check: str
    what: str
    where: str = ""
    todo: str = ""


def judge(seen: Seen) -> tuple[Finding, ...]:
    """The worst first, else in the order of the checks."""
    found = [finding for check in CHECKS for finding in check(seen)]
    found += [Finding("skipped", "not looked at", text) for text in seen.skipped]
    return tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level)))


# --- the kernel ---------------------------------------------------------------------------------------------------


def _features(seen: Seen) -> Iterator[Finding]:
    has = seen.machine.features
    if not has:
        return
    asked = seen.cluster.tunnels if seen.cluster is not None else frozenset[str]()
    needed = {"nft", *(NEEDED[tunnel] for tunnel in asked if tunnel in NEEDED)}
    for name in sorted(needed - {name for name, there in has.items() if there}):
        todo = "apt-get install nftables, and a kernel with nf_tables" if name == "nft" else f"modprobe {name}"
        yield Finding("bad", "kernel", f"this kernel lacks {name}, which is needed here", todo=todo)
    if seen.cluster is not None and seen.cluster.flow_tables and not has.get(FLOW_TABLES, True):
        text = f"this kernel lacks {FLOW_TABLES}: connections take the way by the rules, which is slower"
        yield Finding("warn", "kernel", text, "nft_flow_offload", "modprobe nft_flow_offload, or a kernel that has it")
        needed.add(FLOW_TABLES)
    there = ", ".join(name for name, one in has.items() if one)
    lacks = ", ".join(name for name, one in has.items() if not one and name not in needed)
    yield Finding("ok", "kernel", f"has {there}" + (f"; lacks {lacks}, which nothing here needs" if lacks else ""))


def _forwarding(seen: Seen) -> Iterator[Finding]:
    machine, versions = seen.machine, _versions(seen)
    off = [version for version in versions if machine.forwarding.get(version) is False]
    for version in off:
        name = "net.ipv4.ip_forward" if version == 4 else "net.ipv6.conf.all.forwarding"
        text = f"IPv{version} is not forwarded: pods reach nobody outside their node"
        yield Finding("bad", "forwarding", text, name, f"sysctl -w {name}=1")
    for one in machine.interfaces:
        if not one.forwarding and 4 not in off and _carries(one, seen.cluster):
            name = f"net.ipv4.conf.{one.name}.forwarding"
            text = f"what comes in by {one.name} is not forwarded"
            yield Finding("bad", "forwarding", text, name, f"sysctl -w {name}=1")
    if machine.forwarding and not off:
        yield Finding("ok", "forwarding", " and ".join(f"IPv{version}" for version in versions if version))


def _carries(one: Interface, cluster: Cluster | None) -> bool:
    """Whether pods' packets go through a link: the node's own, a tunnel, a pod's."""
    if one.kind in TUNNEL_KINDS or one.name.startswith(POD_PREFIX):
        return True
    return cluster is not None and any(ip in cluster.addresses for ip in one.addresses)


def _versions(seen: Seen) -> tuple[int, ...]:
    """The IP versions that the node has addresses of; without an agent both that are there."""
    if seen.cluster is None:
        return tuple(seen.machine.forwarding)
    return tuple(sorted({ip.version for ip in seen.cluster.addresses})) or (4,)


def _filter(seen: Seen) -> Iterator[Finding]:
    if seen.machine.loose_filter:
        text = "is 2 (loose), which takes the strict filter away from pods' interfaces; nftables still checks sources"
        where = "net.ipv4.conf.all.rp_filter"
        yield Finding("warn", "rp_filter", text, where, f"sysctl -w {where}=1, or 0")


def _conntrack(seen: Seen) -> Iterator[Finding]:
    if seen.machine.conntrack is None:
        return
    count, room = seen.machine.conntrack
    text = f"{count} of {room} connections are tracked"
    if room and count >= room * CROWDED:
        yield Finding("bad", "conntrack", text, todo="sysctl -w net.netfilter.nf_conntrack_max: twice as many")
    else:
        yield Finding("ok", "conntrack", text)


# --- addresses and links ------------------------------------------------------------------------------------------


def _addresses(seen: Seen) -> Iterator[Finding]:
    if seen.cluster is None:
        return
    machine, cluster = seen.machine, seen.cluster
    by_ip = {ip: one for one in machine.interfaces for ip in one.addresses}
    good = []
    for ip in cluster.addresses:
        one = by_ip.get(ip)
        if one is None:
            text = f"this node's address {ip} is on no interface: neither BGP nor tunnels work"
            yield Finding("bad", "address", text, todo="ip address add, or correct the Node's spec.bgp")
        elif not one.up or not one.carrier:
            text = f"has this node's address {ip}, and is down"
            yield Finding("bad", "address", text, one.name, f"ip link set {one.name} up; is there a carrier?")
        else:
            good.append(f"{ip} on {one.name}")
    if good:
        yield Finding("ok", "address", ", ".join(good))


def _duplicates(seen: Seen) -> Iterator[Finding]:
    todo = "one of the two must have another address"
    for ip, macs in seen.machine.duplicates.items():
        yield Finding("bad", "duplicate", f"{ip} is also the address of {' and '.join(macs)} on the link", todo=todo)
    for one in seen.machine.interfaces:
        for ip in one.broken:
            yield Finding("bad", "duplicate", f"{ip} is somebody else's, the kernel found", one.name, todo)
    for ip, nodes in (seen.cluster.twins if seen.cluster is not None else {}).items():
        text = f"{ip} is also the address of {' and '.join(nodes)} in the datastore"
        yield Finding("bad", "duplicate", text, todo="correct spec.bgp of the Node that is wrong")


def _mtu(seen: Seen) -> Iterator[Finding]:
    below = _uplink(seen)
    if below is None:
        return
    tunnels = [one for one in seen.machine.interfaces if one.kind in TUNNEL_KINDS and one.up]
    wrong = False
    for one in tunnels:
        room = below.mtu - _overhead(one)
        if one.mtu > room:
            wrong = True
            text = f"{one.name} has {one.mtu}, and {below.name} below it leaves {room} of its {below.mtu}"
            yield Finding("bad", "MTU", text, one.name, f"ip link set {one.name} mtu {room}; FelixConfiguration's MTU")
    pods = pod_mtu(seen.machine)
    if not tunnels and pods > below.mtu:
        wrong = True
        text = f"pods have {pods}, and {below.name} has {below.mtu}"
        yield Finding("bad", "MTU", text, below.name, f"have pods made with {below.mtu}: the CNI configuration's mtu")
    if not wrong:
        words = [f"{below.name} {below.mtu}", *(f"{one.name} {one.mtu}" for one in tunnels)]
        yield Finding("ok", "MTU", ", ".join([*words, *([f"pods {pods}"] if pods else [])]))


def _overhead(tunnel: Interface) -> int:
    """Bytes that a tunnel adds. Its settings name the address that it is made from."""
    return OVERHEAD[TUNNEL_KINDS[tunnel.kind], 6 if "local6" in tunnel.info else 4]


def _uplink(seen: Seen) -> Interface | None:
    """The link that has the node's address."""
    own = seen.cluster.addresses if seen.cluster is not None else ()
    return next((one for one in seen.machine.interfaces if any(ip in own for ip in one.addresses)), None)


def pod_mtu(machine: Machine) -> int:
    """The largest MTU of pods' links; 0 without pods."""
    return max((one.mtu for one in machine.interfaces if one.name.startswith(POD_PREFIX)), default=0)


# --- others on this machine ---------------------------------------------------------------------------------------


def _firewalls(seen: Seen) -> Iterator[Finding]:
    for chain in seen.machine.chains:
        if chain.all_of_it:
            text = "drops whatever is forwarded, pods' packets too"
        elif chain.drops and chain.accepts:
            text = "drops what is forwarded and not accepted there"
        elif chain.drops:
            text = "drops whatever is forwarded: it accepts nothing"
        else:
            continue
        level: Level = "warn" if chain.accepts and not chain.all_of_it else "bad"
        yield Finding(level, "firewall", text, chain.where, "accept pods' networks there, or take the chain away")


def _strangers(seen: Seen) -> Iterator[Finding]:
    cluster = seen.cluster
    if cluster is None:
        return
    vni, port = cluster.vxlan
    for one in seen.machine.interfaces:
        if one.kind == "vxlan" and not one.name.endswith(".calico") and one.info.get("port") == port:
            same = one.info.get("id") == vni
            text = f"is a VXLAN tunnel on our port {port}" + (f" with our VNI {vni}" if same else "")
            todo = f"ip link delete {one.name}, or another vxlanPort in FelixConfiguration"
            yield Finding("bad" if same else "warn", "tunnel", text, one.name, todo)
    alien = [net for net in seen.machine.routes if not any(within(net, pool) for pool in cluster.pools)]
    if alien:
        more = f" and {len(alien) - 3} more" if len(alien) > 3 else ""
        text = f"routes of protocol 80, which is ours, to {', '.join(map(str, alien[:3]))}{more}"
        yield Finding("warn", "routes", text, todo="who makes them? Give them another protocol number")


def _rules(seen: Seen) -> Iterator[Finding]:
    """What is tried behind a rule by which all look into main only concerns what main knows no way for."""
    if seen.machine.rules is None:
        return
    covered: set[str] = set()
    taking: list[PolicyRule] = []
    for rule in seen.machine.rules:
        if rule.all_to_main:
            covered.add(rule.command)
        elif rule.past and rule.command not in covered and not rule.marked and _concerns_us(rule, seen):
            taking.append(rule)
    for rule in taking:
        text = f"{rule.text}: may take pods' or nodes' packets past the main table, where their routes are"
        first = f"{rule.command} add priority {max(rule.priority - 1, 0)} lookup main suppress_prefixlength 0"
        todo = f"{first}: then main's routes, but for its default, come first"
        yield Finding("warn", "ip rule", text, rule.command, todo)
    if not taking:
        yield Finding("ok", "ip rule", "none takes pods' or nodes' packets past the main table")


def _concerns_us(rule: PolicyRule, seen: Seen) -> bool:
    """Whether it may be asked for packets between pods and nodes. What goes to anybody else is for its owner to say."""
    links = {one.name: one for one in seen.machine.interfaces}
    for name in filter(None, (rule.iif, rule.oif)):
        if name != "lo" and not (name in links and _carries(links[name], seen.cluster)):
            return False
    if rule.dst is not None:
        return _touches(rule.dst, seen.cluster)
    return rule.src is None or _touches(rule.src, seen.cluster)


def _touches(net: Net, cluster: Cluster | None) -> bool:
    """Whether pods or this node have addresses there; without an agent that is not known."""
    if cluster is None:
        return True
    return any(within(net, one) or within(one, net) for one in (*cluster.pools, *map(host_net, cluster.addresses)))


def _marks(seen: Seen) -> Iterator[Finding]:
    rules, markings = seen.machine.rules, seen.machine.markings
    if rules is None or markings is None:
        return
    for rule in rules:
        if rule.bits:
            text = f"{rule.text}: asks for bits {rule.bits:#010x} of the mark, which policy changes"
            yield Finding("warn", "marks", text, rule.command, "a mask without these bits: fwmark 0x1/0xffff")
    for one in markings:
        text = f"sets bits {one.bits:#010x} of the mark, by which policy knows what it has decided"
        yield Finding("warn", "marks", text, one.where, "other bits there, of 0x0000ffff")
    if not markings and not any(rule.bits for rule in rules):
        yield Finding("ok", "marks", "nobody else uses the bits of policy")


def _managed(seen: Seen) -> Iterator[Finding]:
    if seen.machine.unmanaged is False:
        text = "takes pods' interfaces for its own"
        todo = "[keyfile] unmanaged-devices=interface-name:cali*;interface-name:tunl*;interface-name:vxlan.calico"
        yield Finding("warn", "NetworkManager", text, "/etc/NetworkManager/conf.d", todo)


# --- the agent, BIRD, the clock -----------------------------------------------------------------------------------


def _agent(seen: Seen) -> Iterator[Finding]:
    cluster = seen.cluster
    if cluster is None:
        return
    if not cluster.in_sync:
        text = f"the agent has not read all of {cluster.datastore} yet"
        yield Finding("bad", "datastore", text, todo="is it there, and may it be read? The agent's log tells more")
    else:
        yield Finding("ok", "datastore", f"in sync with {cluster.datastore}")
    for failure in cluster.failures:
        yield Finding("bad", "dataplane", failure, todo="the agent tries again; its log tells more")


def _bird(seen: Seen) -> Iterator[Finding]:
    wanted = seen.cluster is None or seen.cluster.bgp
    if not wanted:
        return
    if not seen.machine.bird:
        yield Finding("bad", "BIRD", "is not installed", todo="apt-get install bird2")
    elif seen.cluster is not None and seen.cluster.bird_trouble:
        yield Finding(
            "bad", "BIRD", seen.cluster.bird_trouble, todo="tortie node status; bird.log in the run directory"
        )
    else:
        yield Finding("ok", "BIRD", seen.machine.bird)


def _clock(seen: Seen) -> Iterator[Finding]:
    if seen.machine.clock_ok is False:
        text = "is not kept by anybody: logs and what is timed by the datastore drift apart"
        yield Finding("warn", "clock", text, todo="chrony, or systemd-timesyncd")


# --- the way to the others ----------------------------------------------------------------------------------------


def _ways(seen: Seen) -> Iterator[Finding]:
    plain = {way.node for way in seen.ways if not way.tunnel and way.answers}
    need = _need(seen)
    for way in seen.ways:
        wrong = [*_unreached(way, way.node in plain), *_session(way), *_narrow(way, need)]
        yield from wrong
        if not any(one.level == "bad" for one in wrong):
            yield Finding("ok", "way", _well(way), _title(way))


def _title(way: Way) -> str:
    return f"{way.node} {way.ip}"


def _well(way: Way) -> str:
    words = ["answers" + (f" through {way.tunnel}" if way.tunnel else "")] if way.answers else []
    if way.bgp is not None:
        words.append("BGP established" if way.bgp.why == "established" else f"TCP {way.port} open")
    words += [f"packets up to {way.largest} bytes"] if way.largest else []
    return ", ".join(words) or "not reached"


def _unreached(way: Way, outside_works: bool) -> Iterator[Finding]:
    if way.answers:
        return
    if way.error:
        yield Finding("bad", "way", f"nothing can be sent there: {way.error}", _title(way), f"ip route get {way.ip}")
    elif way.tunnel:
        what = "UDP of the VXLAN port" if way.tunnel == "VXLAN" else "IP protocol 4 (IPIP)"
        text = f"does not answer through {way.tunnel}"
        if outside_works:
            todo = f"the node itself answers: is {what} let through between the nodes?"
        else:
            todo = "nor does the node itself"
        yield Finding("bad", "way", text, _title(way), todo)
    elif way.bgp is not None and way.bgp.why == "established":  # nobody has tried TCP now
        text = "does not answer ping, while its BGP session still stands"
        todo = "is ICMP filtered? BGP notices a way that is cut within its hold time: look again then"
        yield Finding("warn", "way", text, _title(way), todo)
    elif way.bgp is not None and way.bgp.result in ("open", "closed", "refused"):
        yield Finding("warn", "way", "does not answer ping, though TCP passes", _title(way), "is ICMP filtered?")
    else:
        text = "does not answer" + (f": {way.bgp.why}" if way.bgp is not None and way.bgp.why else "")
        yield Finding("bad", "way", text, _title(way), f"is {way.node} up? tracepath {way.ip}")


def _session(way: Way) -> Iterator[Finding]:
    if way.bgp is None or way.bgp.result in ("open", "closed"):
        return
    if way.bgp.result == "refused":
        text, todo = f"refuses TCP {way.port}: BIRD does not listen there", "tortie node status on that node"
    elif way.answers:
        text, todo = (
            f"does not answer TCP {way.port}",
            "a firewall between the nodes, or a password: tortie node status",
        )
    else:
        return
    yield Finding("bad", "BGP", text, _title(way), todo)


def _need(seen: Seen) -> int:
    """Bytes that a packet between nodes may have: the largest of pods, with what a tunnel adds."""
    tunnels = [one for one in seen.machine.interfaces if one.kind in TUNNEL_KINDS and one.up]
    wrapped = [one.mtu + _overhead(one) for one in tunnels]
    return max([*wrapped, *([] if tunnels else [pod_mtu(seen.machine)])], default=0)


def _narrow(way: Way, need: int) -> Iterator[Finding]:
    if way.largest is None or way.tunnel or not way.answers or way.largest >= way.link_mtu:
        return
    text = f"packets of more than {way.largest} bytes get lost on the way; the link carries {way.link_mtu}"
    if need > way.largest:
        todo = f"pods send up to {need} with their tunnel: lower their MTU, or mend the way"
        yield Finding("bad", "MTU", text, _title(way), todo)
    else:
        yield Finding("warn", "MTU", text, _title(way), f"keep pods' MTU, and what a tunnel adds, below {way.largest}")


# --- networks of stand-alone plugins ------------------------------------------------------------------------------


def _pod_networks(seen: Seen) -> Iterator[Finding]:
    """A packet of ipvlan l3 that finds no route is not refused: the link is asked for the pod itself, and nobody there
    has its address."""
    if seen.cluster is None:
        return
    there, unrouted = seen.cluster.pod_networks, seen.cluster.unrouted
    for what, why in sorted(unrouted.items()):
        yield Finding("bad", "pod networks", why, what)
    shared = [(net, pool) for net in there for pool in seen.cluster.pools if net.overlaps(pool)]
    for net, pool in shared:
        text = f"{net}, pods of {there[net]}, overlaps the IP pool {pool}: both give out these addresses"
        yield Finding(
            "warn", "pod networks", text, str(net), "give that network another subnet, or the pool another CIDR"
        )
    lost = [(ip, dev, net) for ip, dev in seen.machine.unanswered for net in there if ip in net]
    for ip, dev, net in lost:
        text = f"{dev} was asked for {ip}, a pod's address of {there[net]}: when a packet was sent there was no route"
        yield Finding("warn", "pod networks", text, str(net), f"ip route show {net}; ip neigh flush {ip} dev {dev}")
    if there and not (unrouted or shared or lost):
        yield Finding("ok", "pod networks", f"{len(there)} of other nodes have their route")


CHECKS: tuple[Callable[[Seen], Iterator[Finding]], ...] = (
    _features,
    _forwarding,
    _filter,
    _conntrack,
    _addresses,
    _duplicates,
    _mtu,
    _firewalls,
    _strangers,
    _managed,
    _agent,
    _bird,
    _clock,
    _ways,
    _rules,
    _marks,
    _pod_networks,
)
