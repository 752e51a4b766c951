"""What a daemon wants of its kernel, and what it tells of itself."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

from tortie.base.errors import KernelError
from tortie.dataplane.converge import Failure
from tortie.flannel import backends, rules
from tortie.flannel.backend import Setting
from tortie.flannel.config import NetworkConfig, parse
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.options import Options
from tortie.flannel.state import External, Place, Site
from tortie.flannel.status import Picture, document
from tortie.flannel.wanted import addresses, fitting, wanted
from tortie.flannel.watching import Concerns, concerns
from tortie.kernel.addresses import Address
from tortie.kernel.events import AddressEvent, LinkEvent, Overrun, RouteEvent
from tortie.kernel.routes import Route

OWN = Lease(IPv4Network("10.5.1.0/24"), None, Attrs(IPv4Address("192.0.2.1"), None, "host-gw"), node="one")
OTHER = Lease(IPv4Network("10.5.2.0/24"), None, Attrs(IPv4Address("192.0.2.2"), None, "host-gw"), node="two")
STRANGER = Lease(IPv4Network("10.5.3.0/24"), None, Attrs(IPv4Address("192.0.2.3"), None, "vxlan"), node="three")


def config(**more: object) -> NetworkConfig:
    return parse(json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}} | more), "net-conf.json")


def place(config: NetworkConfig) -> Place:
    external = External("eth0", 2, 1500, IPv4Address("192.0.2.1"))
    return Place(Site(config, external, IPv4Address("192.0.2.1")), OWN)


def test_leases_of_another_type_have_no_way_and_are_told() -> None:
    network = config()
    backend = backends.load(network, Setting())
    assert fitting(backend, [OTHER, STRANGER]) == (OTHER,)
    state = wanted(
        place(network), backend, [OTHER, STRANGER], {IPv4Address("192.0.2.2"): True}, Options(), rules.TABLES
    )
    assert [str(path.dst) for path in state.paths] == ["10.5.2.0/24"]
    assert state.problems == ("no way to three: its backend is vxlan, and that of this node host-gw",)
    assert addresses([OTHER]) == [IPv4Address("192.0.2.2")]


def test_backends_that_publish_no_type_are_named_as_they_are_configured() -> None:
    network = config(Backend={"Type": "udp"})
    nameless = replace(OTHER, attrs=replace(OTHER.attrs, backend_type=""))
    state = wanted(place(network), backends.load(network, Setting()), [OTHER, nameless], {}, Options(), rules.TABLES)
    assert state.problems == ("no way to two: its backend is host-gw, and that of this node udp",)
    network = config()
    state = wanted(place(network), backends.load(network, Setting()), [nameless], {}, Options(), rules.TABLES)
    assert state.problems == (
        "no way to two: its backend is one that publishes no type, as udp and alloc, and that of this node host-gw",
    )


def test_flags_decide_on_rules_and_blackholes() -> None:
    network = config()
    backend = backends.load(network, Setting())

    def rules_of(options: Options) -> str:
        state = wanted(place(network), backend, [], {}, options, rules.TABLES)
        assert state.rules is not None
        assert state.blackholes == ((IPv4Network("10.5.1.0/24"),) if options.ip_blackhole_route else ())
        return state.rules["ip flannel-ipv4"]

    assert "masquerade" not in rules_of(Options())
    assert "fully-random" in rules_of(Options(ip_masq=True))
    assert "fully-random" not in rules_of(Options(ip_masq=True, ip_masq_fully_random_disable=True))
    assert rules_of(Options(iptables_forward_rules=False, ip_blackhole_route=True)) == ""


def test_a_version_that_a_backend_does_not_carry_is_told() -> None:
    network = config(EnableIPv6=True, IPv6Network="fc00::/48", Backend={"Type": "udp"})
    backend = backends.load(network, Setting())
    both = replace(OWN, subnet6=IPv6Network("fc00:0:0:1::/64"), attrs=replace(OWN.attrs, backend_type=""))
    state = wanted(replace(place(network), lease=both), backend, [], {}, Options(), rules.TABLES)
    assert state.problems == ("udp does not carry IPv6: pods of different nodes do not reach each other in fc00::/48",)


def test_names_of_tables() -> None:
    """Daemons of several networks never share one."""
    files = [("/run/flannel/subnet.env", "/coreos.com/network"), ("/run/flannel/red.env", "/coreos.com/network")]
    files.append(("/run/red/subnet.env", "/red/network"))
    found = [rules.names(Path(file), prefix)[4] for file, prefix in files]
    assert found == ["ip flannel-ipv4", "ip flannel-ipv4-red", "ip flannel-ipv4-red-network"]


def test_status_says_all_that_is_wrong() -> None:
    network = config()
    backend = backends.load(network, Setting())
    state = wanted(place(network), backend, [OTHER], {IPv4Address("192.0.2.2"): True}, Options(), rules.TABLES)
    picture = Picture(
        since=0.0,
        config=network,
        place=place(network),
        pod_mtu=1500,
        leases={"two": OTHER},
        state=replace(state, problems=("a problem",)),
        failures=(Failure("routes", KernelError(1, "ip route add")),),
        undone=("not carried out",),
        findings=("found",),
        waiting="an answer",
        in_sync=True,
        ready=True,
    )
    found = document(picture, "etcd", "http://192.0.2.9:2379", ["the manager's"], {"packets": 7})
    assert found["problems"] == ["waiting: an answer", "the manager's", "a problem", "not carried out"]
    assert found["failures"] == ["routes: ip route add: Operation not permitted"]
    assert found["findings"] == ["found"]
    assert found["neighbours"][0]["path"] == "via 192.0.2.2 dev eth0"
    assert found["node"]["interface"] == "eth0"
    assert json.dumps(found)


def test_before_there_is_a_lease() -> None:
    found = document(Picture(since=0.0, waiting="no such key"), "etcd", "http://192.0.2.9:2379", [], None)
    assert (found["node"], found["backend"], found["neighbours"]) == (None, None, [])


def test_what_concerns_us() -> None:
    def route(dst: str, protocol: int = 4) -> Concerns:
        return concerns(RouteEvent(Route(IPv4Network(dst), dev=2, protocol=protocol)), "eth0", {2, 3})

    def address(index: int, scope: str) -> Concerns:
        return concerns(AddressEvent(Address(index, "fe80::1/64", scope)), "eth0", {2, 3})

    assert concerns(LinkEvent(7, "veth12345", True), "eth0", {2, 3}) is Concerns.NOTHING
    assert concerns(LinkEvent(3, "flannel.1", True, gone=True), "eth0", {2, 3}) is Concerns.STATE
    assert concerns(LinkEvent(2, "eth0", True), "eth0", {2, 3}) == Concerns.SELF | Concerns.STATE
    assert concerns(Overrun(), "eth0", set()) == Concerns.SELF | Concerns.STATE
    assert address(7, "link") is Concerns.NOTHING  # every pod's link has one
    assert address(7, "global") == address(2, "link") == Concerns.SELF | Concerns.STATE
    assert route("10.5.2.7/32") is Concerns.NOTHING
    assert route("10.5.2.0/24") is Concerns.STATE
    assert route("10.5.2.0/24", protocol=2) is Concerns.NOTHING
    assert route("0.0.0.0/0") == Concerns.SELF | Concerns.STATE
