"""Flannel's stages alone against the kernel: they reach what is wanted and then rest, mend what somebody breaks, take
over what an earlier flanneld left, and leave alone what is others'. What is there is read back with ip and bridge."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from flannel_nodes import paths, reached, stages_of, subnet6_of, subnet_of
from namespaces import Ns
from overlay_kernel import device, forwarding, neighbours
from tortie.base.errors import ConfigError, Exists, NotSupported
from tortie.dataplane.converge import Stage, converge
from tortie.flannel.state import Device, FarEnd, FlannelState, Ipip, Path, Tun, Vxlan
from tortie.kernel import events

pytestmark = pytest.mark.root

OWN, OWN6 = ip_address("192.0.2.1"), ip_address("2001:db8::1")
MAC, MAC6, PEER, PEER6 = (f"02:00:00:00:00:0{n}" for n in range(1, 5))
NETWORKS = (ip_network("10.5.0.0/16"), ip_network("fd00:5::/48"))


@pytest.fixture
def ground(make_ns: Callable[..., Ns]) -> Ns:
    """A node's namespace whose eth0 leads to nobody in particular."""
    ns, other = make_ns("node"), make_ns("far")
    ns.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", other.name)
    other.ip("link", "set", "eth0", "up")
    ns.ip("link", "set", "eth0", "up")
    ns.ip("address", "add", "192.0.2.1/24", "dev", "eth0")
    ns.ip("address", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
    ns.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1", "net.ipv6.conf.eth0.keep_addr_on_down=1")
    return ns


def parent(ns: Ns) -> int:
    return int(next(link["ifindex"] for link in ns.json("link", "show") if link["ifname"] == "eth0"))


def vxlan_state(ns: Ns, **changes: object) -> FlannelState:
    """Node 2 behind both tunnels, node 3 without one; the own subnet ends in a blackhole."""
    one = Device("flannel.1", Vxlan(1, OWN, parent(ns)), 1450, MAC, (ip_interface("10.5.1.0/32"),))
    six = Device("flannel-v6.1", Vxlan(1, OWN6, parent(ns)), 1430, MAC6, (ip_interface("fd00:5:0:1::/128"),))
    at, at6 = subnet_of(2).network_address, subnet6_of(2).network_address
    state = FlannelState(
        NETWORKS,
        (one, six),
        (
            FarEnd("flannel.1", at, PEER, ip_address("192.0.2.2")),
            FarEnd("flannel-v6.1", at6, PEER6, ip_address("2001:db8::2")),
        ),
        (
            Path(subnet_of(2), "flannel.1", at, onlink=True),
            Path(subnet6_of(2), "flannel-v6.1", at6, onlink=True),
            Path(subnet_of(3), "eth0", ip_address("192.0.2.3")),
            Path(subnet6_of(3), "eth0", ip_address("2001:db8::3")),
        ),
        blackholes=(subnet_of(1), subnet6_of(1)),
    )
    return replace(state, **changes)  # type: ignore[arg-type]


THERE = {
    "paths": {
        "10.5.1.0/24": ("blackhole",),
        "10.5.2.0/24": ("10.5.2.0", "flannel.1", "onlink"),
        "10.5.3.0/24": ("192.0.2.3", "eth0"),
        "fd00:5:0:1::/64": ("blackhole", "lo"),
        "fd00:5:0:2::/64": ("fd00:5:0:2::", "flannel-v6.1", "onlink"),
        "fd00:5:0:3::/64": ("2001:db8::3", "eth0"),
    },
    "flannel.1": {
        "mac": MAC, "mtu": 1450, "up": True, "addresses": ["10.5.1.0/32"],
        "id": 1, "port": 8472, "local": "192.0.2.1", "link": "eth0", "learning": False,
    },
    "flannel-v6.1": {
        "mac": MAC6, "mtu": 1430, "up": True, "addresses": ["fd00:5:0:1::/128"],
        "id": 1, "port": 8472, "local6": "2001:db8::1", "link": "eth0", "learning": False,
    },
    "neighbours": {("10.5.2.0", PEER)},
    "neighbours6": {("fd00:5:0:2::", PEER6)},
    "forwarding": {(PEER, "192.0.2.2")},
    "forwarding6": {(PEER6, "2001:db8::2")},
    "settings": ["0", "0", "2"],
}  # fmt: skip


def there(ns: Ns) -> dict[str, object]:
    """All that the state is made of."""
    settings = ("ipv6/conf/flannel.1/accept_ra", "ipv6/conf/flannel-v6.1/accept_ra", "ipv4/conf/flannel.1/rp_filter")
    return {
        "paths": paths(ns),
        "flannel.1": device(ns, "flannel.1"),
        "flannel-v6.1": device(ns, "flannel-v6.1"),
        "neighbours": neighbours(ns, "flannel.1"),
        "neighbours6": neighbours(ns, "flannel-v6.1"),
        "forwarding": forwarding(ns, "flannel.1"),
        "forwarding6": forwarding(ns, "flannel-v6.1"),
        "settings": ns.run("cat", *(f"/proc/sys/net/{one}" for one in settings)).split(),
    }


def test_what_is_wanted_is_there(ground: Ns) -> None:
    reached(stages_of(ground.path), vxlan_state(ground))
    assert there(ground) == THERE
    assert {one["protocol"] for one in ground.json("route", "show", "root", "10.5.0.0/16")} == {"70"}
    links = {link["ifname"]: link.get("ifalias") for link in ground.json("link", "show")}
    assert links["flannel.1"] == links["flannel-v6.1"] == "tortie flannel 10.5.0.0/16"
    assert links["eth0"] is None


def test_another_daemon_of_the_same_node_changes_nothing(ground: Ns) -> None:
    reached(stages_of(ground.path), vxlan_state(ground))
    with events.Monitor(ground.path, tuple(events.Group)) as monitor:
        reached(stages_of(ground.path), vxlan_state(ground))
        assert monitor.read() == []


ANEW = "ip link del flannel.1; ip link add flannel.1 type vxlan"
DAMAGES = (
    "ip link del flannel.1",
    "ip link set flannel.1 down",
    "ip link set flannel-v6.1 mtu 1290",
    "ip link set flannel.1 address 02:00:00:00:00:0a",
    "ip link set flannel.1 alias nobody",
    f"{ANEW} id 1 dstport 8472 local 192.0.2.1 dev eth0",
    f"{ANEW} id 7 dstport 8472 local 192.0.2.1 dev eth0 nolearning",
    f"{ANEW} id 1 dstport 9 local 192.0.2.1 dev eth0 nolearning",
    f"{ANEW} id 1 dstport 8472 local 192.0.2.1 dev eth0 nolearning gbp",
    f"{ANEW} id 1 dstport 8472 local 192.0.2.1 nolearning",
    "ip address del 10.5.1.0/32 dev flannel.1",
    "ip address add 10.5.9.9/32 dev flannel.1",
    "sysctl -qw net.ipv6.conf.flannel/1.accept_ra=1 net.ipv4.conf.flannel/1.rp_filter=1",
    "ip neigh del 10.5.2.0 dev flannel.1",
    "ip neigh replace 10.5.2.0 lladdr 02:00:00:00:00:0a dev flannel.1 nud permanent",
    "ip neigh add 10.5.9.0 lladdr 02:00:00:00:00:0a dev flannel.1 nud permanent",
    f"bridge fdb del {PEER} dev flannel.1",
    f"bridge fdb replace {PEER6} dev flannel-v6.1 dst 2001:db8::99 self permanent",
    "bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.66 self permanent",
    "ip route del 10.5.2.0/24",
    "ip route del 10.5.3.0/24",
    "ip route replace 10.5.2.0/24 via 192.0.2.9 dev eth0",
    "ip route replace 10.5.3.0/24 via 192.0.2.9 dev eth0 proto static",
    "ip route replace 10.5.3.0/24 via 192.0.2.9 dev eth0 proto 70",
    "ip route prepend 10.5.3.0/24 via 192.0.2.9 dev eth0",
    "ip route append 10.5.3.0/24 via 192.0.2.9 dev eth0",
    "ip route add 10.5.77.0/24 via 192.0.2.9 dev eth0 proto 70",
    "ip route add 172.16.0.0/12 via 10.5.2.0 dev flannel.1 onlink",
    "ip -6 route del fd00:5:0:2::/64",
    "ip -6 route replace fd00:5:0:2::/64 via 2001:db8::9 dev eth0",
    "ip -6 route replace fd00:5:0:3::/64 via 2001:db8::9 dev eth0",
    "ip -6 route add fd00:5:0:3::/64 via 2001:db8::9 dev eth0 metric 1",
    "ip -6 route append fd00:5:0:3::/64 via 2001:db8::9 dev eth0",
    "ip route del blackhole 10.5.1.0/24",
    "ip link set eth0 down; ip link set eth0 up",
    "ip address del 192.0.2.1/24 dev eth0; ip address add 192.0.2.1/24 dev eth0",
)


@pytest.mark.parametrize("told", [True, False], ids=["told by the kernel", "looked at again"])
def test_whatever_is_broken_is_mended(ground: Ns, told: bool) -> None:
    stages, state = stages_of(ground.path), vxlan_state(ground)
    reached(stages, state)
    for damage in DAMAGES:
        ground.run("sh", "-c", f"set -e; {damage}")
        if not told:
            for stage in stages:
                stage.forget()
        reached(stages, state)
        assert there(ground) == THERE, damage


def test_what_is_others_stays(ground: Ns) -> None:
    others = (
        "ip route add 10.5.77.0/24 via 192.0.2.9 dev eth0",
        "ip route add 10.5.3.0/24 via 192.0.2.9 dev eth0 metric 100",
        "ip route add 10.6.3.0/24 via 192.0.2.9 dev eth0 proto 70",
        "ip route add blackhole 10.5.66.0/24",
        "ip -6 route add fd00:5:0:3::/64 via 2001:db8::9 dev eth0 metric 2000 proto bird",
        "ip -6 route add fd00:5::/32 via 2001:db8::9 dev eth0",
        "ip link add flannel.7 type vxlan id 7 dstport 8472 local 192.0.2.1 dev eth0 nolearning",
        "ip link set flannel.7 up alias 'tortie flannel 10.6.0.0/16'",
        "ip route add 10.6.4.0/24 via 10.6.4.0 dev flannel.7 onlink proto 70",
        "bridge fdb add 02:00:00:00:00:0b dev flannel.7 dst 192.0.2.9 self permanent",
        "ip neigh add 10.6.4.0 lladdr 02:00:00:00:00:0b dev flannel.7 nud permanent",
        "ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:0c dev eth0 nud permanent",
    )
    ground.run("sh", "-c", "set -e; " + "; ".join(others))
    stages = stages_of(ground.path)
    show = (
        "ip route; ip -6 route; ip neigh show nud permanent; bridge fdb show dev flannel.7; ip -o link show flannel.7"
    )
    before = set(ground.run("sh", "-c", show).splitlines())
    reached(stages, vxlan_state(ground))
    ground.ip("address", "add", "172.31.0.1/32", "dev", "flannel.1")  # outside of the network: a person's
    reached(stages, vxlan_state(ground))
    assert "172.31.0.1/32" in device(ground, "flannel.1")["addresses"]
    reached(stages, FlannelState(NETWORKS))
    assert set(ground.run("sh", "-c", show).splitlines()) == before
    assert device(ground, "flannel.1") == {}


def test_what_an_earlier_flanneld_left_is_taken_over_as_it_is(ground: Ns) -> None:
    """The device stays the same one, with its neighbours and all; routes only change their mark."""
    left = (
        "ip link add flannel.1 address 02:00:00:00:00:01 mtu 1400 "
        "type vxlan id 1 dstport 8472 local 192.0.2.1 dev eth0 nolearning",
        "ip address add 10.5.1.0/32 dev flannel.1",
        "ip address add 10.5.8.0/32 dev flannel.1",
        "ip link set flannel.1 up",
        f"ip neigh add 10.5.2.0 lladdr {PEER} dev flannel.1 nud permanent",
        f"bridge fdb add {PEER} dev flannel.1 dst 192.0.2.2 self permanent",
        "ip neigh add 10.5.9.0 lladdr 02:00:00:00:00:0a dev flannel.1 nud permanent",
        "bridge fdb add 02:00:00:00:00:0a dev flannel.1 dst 192.0.2.9 self permanent",
        "ip route add 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink",
        "ip route add 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink",
        "ip route add 10.5.3.0/24 via 192.0.2.3 dev eth0",
        "ip route add blackhole 10.5.1.0/24",
    )
    ground.run("sh", "-c", "set -e; " + "; ".join(left))
    index = next(link["ifindex"] for link in ground.json("link", "show") if link["ifname"] == "flannel.1")
    with events.Monitor(ground.path, tuple(events.Group)) as monitor:
        reached(stages_of(ground.path), vxlan_state(ground))
        heard = monitor.read()
    assert there(ground) == THERE
    assert index == next(link["ifindex"] for link in ground.json("link", "show") if link["ifname"] == "flannel.1")
    kept = {"10.5.2.0/24", "10.5.3.0/24"}
    gone = {str(one.route.dst) for one in heard if isinstance(one, events.RouteEvent) and one.gone}
    assert not gone & kept
    entries = [one.neighbour for one in heard if isinstance(one, events.NeighbourEvent) and one.gone]
    assert not [entry for entry in entries if entry.dev == index and PEER in str(entry)]


def test_what_a_device_learns_is_its_own(ground: Ns) -> None:
    state = vxlan_state(ground)
    one = replace(state.devices[0], kind=Vxlan(1, OWN, parent(ground), learning=True, gbp=True))
    state = replace(state, devices=(one, state.devices[1]))
    reached(stages_of(ground.path), state)
    (link,) = (one for one in ground.json("link", "show") if one["ifname"] == "flannel.1")
    assert link["linkinfo"]["info_data"]["learning"]
    assert link["linkinfo"]["info_data"]["gbp"]
    ground.run("bridge", "fdb", "add", "02:00:00:00:00:0b", "dev", "flannel.1", "dst", "192.0.2.7", "self", "dynamic")
    with events.Monitor(ground.path, tuple(events.Group)) as monitor:
        reached(stages_of(ground.path), state)
        assert monitor.read() == []
    assert ("02:00:00:00:00:0b", "192.0.2.7") in forwarding(ground, "flannel.1")


READ_ONLY = """
import sys
from tortie.dataplane.converge import converge
from tortie.flannel.stages.devices import Devices
from tortie.flannel.state import *
from ipaddress import *
one = Device("flannel.1", Vxlan(1, ip_address("192.0.2.1"), int(sys.argv[1])), 1450, "02:00:00:00:00:01")
stage, state = Devices(), FlannelState((ip_network("10.5.0.0/16"),), (one,))
print(converge((stage,), state), str(stage.plan(state)))
"""


def test_settings_that_cannot_be_changed_keep_nothing_from_working(ground: Ns) -> None:
    """As in a container that is not privileged."""
    script = 'mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys; exec "$0" -c "$@"'
    words = ("unshare", "--mount", "sh", "-ec", script, sys.executable, READ_ONLY, str(parent(ground)))
    assert ground.run(*words) == "[] \n"
    assert device(ground, "flannel.1")["up"]
    reached(stages_of(ground.path), vxlan_state(ground))
    assert there(ground) == THERE


def test_a_flanneld_s_device_that_does_not_fit_is_made_anew(ground: Ns) -> None:
    ground.run(
        "sh",
        "-c",
        "ip link add flannel.1 type vxlan id 2 dstport 4789 local 192.0.2.1 dev eth0; ip link set flannel.1 up",
    )
    reached(stages_of(ground.path), vxlan_state(ground))
    assert there(ground) == THERE


def test_what_is_not_wanted_any_more_goes_after_its_successor(ground: Ns) -> None:
    """From one VNI to another, then to host-gw."""
    stages, state = stages_of(ground.path), vxlan_state(ground)
    reached(stages, state)
    one = replace(state.devices[0], name="flannel.9", kind=Vxlan(9, OWN, parent(ground)))
    moved = FlannelState(
        NETWORKS,
        (one,),
        (FarEnd("flannel.9", subnet_of(2).network_address, PEER, ip_address("192.0.2.2")),),
        (Path(subnet_of(2), "flannel.9", subnet_of(2).network_address, onlink=True),),
    )
    with events.Monitor(ground.path, (events.Group.LINK, events.Group.IPV4_ROUTE)) as monitor:
        reached(stages_of(ground.path), moved)
        heard = monitor.read()
    assert paths(ground) == {"10.5.2.0/24": ("10.5.2.0", "flannel.9", "onlink")}
    assert device(ground, "flannel.1") == device(ground, "flannel-v6.1") == {}
    order = [
        "gone" if isinstance(one, events.LinkEvent) and one.gone else "route"
        for one in heard
        if (isinstance(one, events.LinkEvent) and one.gone and one.name == "flannel.1")
        or (isinstance(one, events.RouteEvent) and not one.gone and one.route.dst == subnet_of(2))
    ]
    assert order == ["route", "gone"]
    reached(stages, FlannelState(NETWORKS, paths=(Path(subnet_of(2), "eth0", ip_address("192.0.2.2")),)))
    assert paths(ground) == {"10.5.2.0/24": ("192.0.2.2", "eth0")}
    assert device(ground, "flannel.9") == {}


def test_a_bridge_s_own_route_is_not_hidden_by_the_blackhole(ground: Ns) -> None:
    stages, state = stages_of(ground.path), FlannelState(NETWORKS, blackholes=(subnet_of(1), subnet6_of(1)))
    reached(stages, state)
    ground.ip("link", "add", "cni0", "type", "bridge")
    ground.ip("link", "set", "cni0", "up")
    ground.ip("address", "add", "10.5.1.1/24", "dev", "cni0")
    ground.ip("address", "add", "fd00:5:0:1::1/64", "dev", "cni0", "nodad")
    for _ in range(2):
        for target in ("10.5.1.7", "fd00:5:0:1::7"):
            (route,) = ground.json("route", "get", target)
            assert route["dev"] == "cni0"
        for stage in stages:
            stage.forget()
        reached(stages, state)


def test_a_tun_device_is_furnished_when_its_proxy_has_made_it(ground: Ns) -> None:
    tun = Device("flannel0", Tun(), 1472, addresses=(ip_interface("10.5.1.0/32"),))
    state = FlannelState(NETWORKS, (tun,), paths=(Path(NETWORKS[0], "flannel0"),))
    stages = stages_of(ground.path)
    reached(stages, state)
    assert paths(ground) == {}
    ground.ip("tuntap", "add", "flannel0", "mode", "tun")
    reached(stages, state)
    assert paths(ground) == {"10.5.0.0/16": ("flannel0",)}
    (found,) = (one for one in ground.json("address", "show") if one["ifname"] == "flannel0")
    assert found["mtu"] == 1472
    assert [one["local"] for one in found["addr_info"] if one["family"] == "inet"] == ["10.5.1.0"]
    reached(stages, FlannelState(NETWORKS))
    assert device(ground, "flannel0") == {}


# --- what is a matter for a person --------------------------------------------------------------------------------


def failure(ns: Ns, state: FlannelState, stages: Sequence[Stage[FlannelState]] | None = None) -> tuple[type, str]:
    """The one of the devices."""
    stages = stages_of(ns.path) if stages is None else stages
    failures = [one for one in converge(stages, state) if one.stage == "devices"]
    assert len(failures) == 1
    return type(failures[0].error), str(failures[0].error)


def test_a_link_of_another_kind_is_not_touched(ground: Ns) -> None:
    ground.ip("link", "add", "flannel.1", "type", "bridge")
    kind, text = failure(ground, vxlan_state(ground))
    assert kind is ConfigError
    assert text == (
        "flannel.1 is a link of type bridge, where one of type vxlan is to be: "
        "remove it (ip link delete flannel.1), or give it another name"
    )
    assert device(ground, "flannel-v6.1")["up"]  # what can be made is made
    ground.ip("link", "delete", "flannel.1")
    reached(stages_of(ground.path), vxlan_state(ground))
    assert there(ground) == THERE


def test_a_tunnel_that_has_our_packets_is_named(ground: Ns) -> None:
    ground.run("sh", "-c", "ip link add vx7 type vxlan id 1 dstport 8472 local 192.0.2.1 dev eth0")
    stages = stages_of(ground.path)
    kind, text = failure(ground, vxlan_state(ground), stages)
    assert kind is Exists
    assert text.startswith("flannel.1: vx7 has its packets (type vxlan id 1 local 192.0.2.1 dstport 8472")
    assert text.endswith("remove it, or choose another VNI or port")
    assert device(ground, "flannel-v6.1")["up"]
    ground.ip("link", "delete", "vx7")
    reached(stages, vxlan_state(ground))
    assert there(ground) == THERE


@pytest.mark.skipif(os.path.exists("/sys/module/ipip"), reason="this kernel has IPIP")
def test_a_kind_that_the_kernel_does_not_have_is_named(ground: Ns) -> None:
    state = FlannelState(NETWORKS, (Device("flannel.ipip", Ipip(OWN), 1480),))  # type: ignore[arg-type]
    assert failure(ground, state) == (
        NotSupported,
        "flannel.ipip: this kernel has no ipip: modprobe ipip, or choose another backend",
    )
