"""What the kernel shows of a machine, and the interface that is chosen by it."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from namespaces import Ns
from tortie.base.errors import ConfigError
from tortie.flannel.config import Family, NetworkConfig
from tortie.flannel.interface import choose, look
from tortie.flannel.options import parse
from tortie.flannel.state import External
from tortie.kernel.netns import entered

pytestmark = pytest.mark.root

N4, N6 = ip_network("10.244.0.0/16"), ip_network("fd00:10::/48")
V4, V6 = Family(N4, 24, N4[0], N4[-1]), Family(N6, 64, N6[0], N6[-1])
ONLY4, BOTH = NetworkConfig(V4, None, ""), NetworkConfig(V4, V6, "")


@pytest.fixture
def machine(ns: Ns) -> Ns:
    """eth0 and eth1 with both IP versions, and a bridge of pods."""
    for number, mtu in ((0, 1500), (1, 9000)):
        ns.ip("link", "add", f"eth{number}", "mtu", str(mtu), "type", "veth", "peer", "name", f"wire{number}")
        ns.ip("link", "set", f"wire{number}", "up")
        ns.ip("link", "set", f"eth{number}", "up")
        ns.ip("address", "add", f"192.0.{number}.7/24", "dev", f"eth{number}")
        ns.ip("address", "add", f"192.0.{number}.77/24", "dev", f"eth{number}")
        ns.ip("address", "add", f"2001:db8:{number}::7/64", "dev", f"eth{number}", "nodad")
    ns.ip("link", "add", "cni0", "type", "bridge")
    ns.ip("address", "add", "10.244.1.1/24", "dev", "cni0")
    ns.ip("link", "set", "cni0", "up")
    return ns


def index(ns: Ns, name: str) -> int:
    found: int = ns.json("link", "show", name)[0]["ifindex"]
    return found


def chosen(ns: Ns, *words: str, config: NetworkConfig = ONLY4) -> External:
    options = parse(words, {})
    return choose(options, config, look(options.iface_can_reach, ns.path))


def test_what_is_seen(machine: Ns) -> None:
    machine.ip("route", "add", "default", "via", "192.0.1.1")
    sight = look(None, machine.path)
    assert {link.name: (link.index, link.mtu) for link in sight.links if link.name.startswith("eth")} == {
        name: (index(machine, name), mtu) for name, mtu in (("eth0", 1500), ("eth1", 9000))
    }
    listed = {(link["ifindex"], one["local"]) for link in machine.json("address") for one in link["addr_info"]}
    assert {(one.index, one.ip.partition("/")[0]) for one in sight.addresses} == listed
    assert sight.defaults == {4: (index(machine, "eth1"),), 6: ()}
    with entered(machine.path):
        assert look() == sight


def test_by_name_by_address_and_by_expression(machine: Ns) -> None:
    eth1 = External("eth1", index(machine, "eth1"), 9000, ip_address("192.0.1.7"))
    assert chosen(machine, "-iface=eth1") == eth1
    assert chosen(machine, "-iface=wlan0", "-iface=192.0.1.7") == eth1
    assert chosen(machine, "-iface-regex=^192\\.0\\.1\\.") == eth1
    assert chosen(machine, "-iface=192.0.1.77").ipv4 == ip_address("192.0.1.77")
    with pytest.raises(ConfigError, match="nor an address of theirs"):
        chosen(machine, "-iface-regex=^10\\.244")
    machine.run("sysctl", "-qw", "net.ipv4.conf.eth1.promote_secondaries=1")
    machine.ip("address", "delete", "192.0.1.7/24", "dev", "eth1")
    assert chosen(machine, "-iface=eth1").ipv4 == ip_address("192.0.1.77")  # was a second one, is the first now


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        (["default via 192.0.1.1 metric 100", "default via 192.0.0.1 metric 200"], "eth1"),
        (["default via 192.0.1.1 metric 200", "default via 192.0.0.1 metric 100"], "eth0"),
        (["default via 192.0.1.1"], "eth1"),
        (["default nexthop via 192.0.1.1 nexthop via 192.0.0.1"], "eth1"),
        (["default via 192.0.0.1 table 99", "default via 192.0.1.1"], "eth1"),
        (["blackhole default metric 5", "default via 192.0.1.1 metric 9"], "eth1"),
    ],
    ids=", ".join,
)
def test_by_the_default_route(machine: Ns, routes: list[str], expected: str) -> None:
    for route in routes:
        machine.ip("route", "add", *route.split())
    assert chosen(machine).name == expected


def test_both_versions_by_their_default_routes(machine: Ns) -> None:
    machine.ip("route", "add", "default", "via", "192.0.1.1")
    with pytest.raises(ConfigError, match="there is no IPv6 default route"):
        chosen(machine, config=BOTH)
    machine.ip("-6", "route", "add", "default", "via", "2001:db8:0::1", "metric", "100")
    with pytest.raises(ConfigError, match=r"v6 default route interface eth0 must be the same with v4 default .* eth1"):
        chosen(machine, config=BOTH)
    machine.ip("-6", "route", "add", "default", "via", "2001:db8:1::1", "metric", "50")
    found = chosen(machine, config=BOTH)
    assert (found.name, found.ipv4, found.ipv6) == ("eth1", ip_address("192.0.1.7"), ip_address("2001:db8:1::7"))


def test_what_packets_to_an_address_leave_by(machine: Ns) -> None:
    machine.ip("route", "add", "198.51.100.0/24", "via", "192.0.1.1", "src", "192.0.1.77")
    found = chosen(machine, "-iface-can-reach=198.51.100.9")
    assert (found.name, found.ipv4) == ("eth1", ip_address("192.0.1.77"))
    assert chosen(machine, "-iface-can-reach=192.0.0.9").name == "eth0"
    found = chosen(machine, "-iface-can-reach=2001:db8:1::9", config=BOTH)
    assert (found.name, found.ipv6) == ("eth1", ip_address("2001:db8:1::7"))
    with pytest.raises(ConfigError, match=r"-iface-can-reach 203\.0\.113\.1: ip route get .*: Network is unreach"):
        chosen(machine, "-iface-can-reach=203.0.113.1")


def test_an_address_that_ends_or_is_temporary_comes_last(machine: Ns) -> None:
    machine.ip("address", "flush", "dev", "eth1")
    machine.ip("address", "add", "fe80::9/64", "dev", "eth1", "nodad")
    machine.ip("address", "add", "192.0.1.7/24", "dev", "eth1")
    machine.ip("address", "add", "2001:db8:1::a/64", "dev", "eth1", "nodad", "valid_lft", "900", "preferred_lft", "0")
    assert chosen(machine, "-iface=eth1", config=BOTH).ipv6 == ip_address("fe80::9")
    machine.ip("address", "add", "2001:db8:1::b/64", "dev", "eth1", "nodad", "valid_lft", "900", "preferred_lft", "900")
    assert chosen(machine, "-iface=eth1", config=BOTH).ipv6 == ip_address("2001:db8:1::b")
    machine.ip("address", "add", "2001:db8:1::c/64", "dev", "eth1", "nodad")
    assert chosen(machine, "-iface=eth1", config=BOTH).ipv6 == ip_address("2001:db8:1::c")
