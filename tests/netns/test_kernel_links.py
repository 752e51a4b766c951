"""Links in fresh namespaces, read back with `ip -j` and with pyroute2."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest
from pyroute2 import NetNS

from tortie.base.errors import Exists, KernelError, NotFound
from tortie.kernel import links
from tortie.kernel.netlink import Netlink
from tortie.kernel.netns import open_ns

pytestmark = pytest.mark.root


@pytest.fixture
def nl(ns) -> Iterator[Netlink]:
    with Netlink(ns.path) as nl:
        yield nl


@pytest.fixture
def other(make_ns):
    return make_ns("other")


@pytest.fixture
def other_fd(other) -> Iterator[int]:
    fd = open_ns(other.path)
    yield fd
    os.close(fd)


def link_of(ns, name: str) -> dict:
    return ns.json("link", "show", "dev", name)[0]


def test_veth_across_namespaces(ns, other, other_fd, nl) -> None:
    macs = ("02:00:00:00:00:0a", "02:00:00:00:00:0b")
    links.create_veth(nl, "cali1", "eth0", peer_netns=other_fd, mtu=1400, num_queues=2, mac=macs[0], peer_mac=macs[1])
    host, pod = link_of(ns, "cali1"), link_of(other, "eth0")
    assert (host["address"], pod["address"]) == macs
    assert (host["mtu"], pod["mtu"]) == (1400, 1400)
    assert (host["num_tx_queues"], pod["num_tx_queues"]) == (2, 2)
    assert host["linkinfo"]["info_kind"] == "veth"
    link = links.get_link(nl, "cali1")
    assert link.parent == host["link_index"] == pod["ifindex"]
    assert link.peer_netns == host["link_netnsid"]


def test_netkit_across_namespaces(ns, other, other_fd, nl) -> None:
    macs = ("02:00:00:00:00:0a", "02:00:00:00:00:0b")
    try:
        links.create_netkit(nl, "cali1", "eth0", peer_netns=other_fd, mtu=1400, mac=macs[0], peer_mac=macs[1])
    except KernelError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip("this kernel has no netkit (Linux 6.7, CONFIG_NETKIT)")
    host, pod = link_of(ns, "cali1"), link_of(other, "eth0")
    assert (host["address"], pod["address"], host["mtu"], pod["mtu"]) == (*macs, 1400, 1400)
    assert host["linkinfo"]["info_kind"] == pod["linkinfo"]["info_kind"] == "netkit"
    links.set_up(nl, "cali1")
    links.delete_link(nl, "cali1")
    assert {link["ifname"] for link in other.json("link", "show")} == {"lo"}


def test_veth_in_one_namespace(ns, nl) -> None:
    links.create_veth(nl, "a", "b")
    a, b = links.get_link(nl, "a"), links.get_link(nl, "b")
    assert (a.parent, b.parent, a.peer_netns) == (b.index, a.index, None)
    assert link_of(ns, "a")["num_rx_queues"] == 1


def test_carrier_and_operstate_follow_the_peer(ns, nl) -> None:
    links.create_veth(nl, "a", "b")
    links.set_up(nl, "a")
    assert (links.get_link(nl, "a").up, links.get_link(nl, "a").carrier) == (True, False)
    links.set_up(nl, "b")
    a = links.get_link(nl, "a")
    assert (a.up, a.carrier, a.operstate) == (True, True, link_of(ns, "a")["operstate"])
    assert a.operstate == "UP"
    links.set_down(nl, "b")
    assert not links.get_link(nl, "a").carrier
    assert "UP" not in link_of(ns, "b")["flags"]


def test_bridge_and_its_ports(ns, nl) -> None:
    links.create_bridge(nl, "cni0", 1300, mac="02:00:00:00:00:01")
    links.create_veth(nl, "a", "b")
    bridge = link_of(ns, "cni0")
    assert (bridge["mtu"], bridge["address"]) == (1300, "02:00:00:00:00:01")
    links.set_master(nl, "a", "cni0")
    assert link_of(ns, "a")["master"] == "cni0"
    assert links.get_link(nl, "a").master == links.link_index(nl, "cni0")
    links.set_bridge_port(nl, "a", hairpin=True, learning=False)
    port = link_of(ns, "a")["linkinfo"]["info_slave_data"]
    assert (port["hairpin"], port["learning"], port["isolated"]) == (True, False, False)
    assert links.get_link(nl, "a").port["hairpin"] == 1
    links.set_master(nl, "a", None)
    assert "master" not in link_of(ns, "a")
    assert not links.get_link(nl, "a").port


def test_bridge_that_filters_vlans(ns, nl) -> None:
    try:
        links.create_bridge(nl, "br0", vlan_filtering=True)
    except KernelError as why:
        if why.errno == errno.EOPNOTSUPP:
            pytest.skip("this kernel lacks CONFIG_BRIDGE_VLAN_FILTERING")
        raise
    assert link_of(ns, "br0")["linkinfo"]["info_data"]["vlan_filtering"] == 1


@pytest.mark.parametrize("local", ["192.0.2.1", "2001:db8::1"])
def test_vxlan(ns, nl, local: str) -> None:
    links.create_veth(nl, "eth0", "peer")
    parent = links.link_index(nl, "eth0")
    links.create_vxlan(nl, "vxlan.calico", 4096, local, parent=parent, mtu=1410, mac="66:00:00:00:00:01")
    shown = link_of(ns, "vxlan.calico")
    data = shown["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["link"], data["learning"]) == (4096, 4789, "eth0", False)
    assert data["local6" if ":" in local else "local"] == local
    assert (shown["mtu"], shown["address"]) == (1410, "66:00:00:00:00:01")
    link = links.get_link(nl, "vxlan.calico")
    assert (link.kind, link.info["id"], link.info["port"], link.parent) == ("vxlan", 4096, 4789, parent)
    assert link.info["local6" if ":" in local else "local"] == local


def test_link_of_another_kind_with_data(ns, nl) -> None:
    links.create_veth(nl, "eth0", "peer")
    index = links.link_index(nl, "eth0")
    links.create_link(nl, "mv0", "macvlan", {"mode": 4}, parent=index, mtu=1200)  # MACVLAN_MODE_BRIDGE
    shown = link_of(ns, "mv0")
    assert (shown["link"], shown["mtu"], shown["linkinfo"]["info_data"]["mode"]) == ("eth0", 1200, "bridge")
    assert links.get_link(nl, "mv0").info["mode"] == 4


def test_link_made_in_another_namespace(ns, other, other_fd, nl) -> None:
    links.create_veth(nl, "eth0", "peer")
    links.create_link(nl, "mv0", "macvlan", {"mode": 4}, parent=links.link_index(nl, "eth0"), netns=other_fd)
    assert link_of(other, "mv0")["linkinfo"]["info_kind"] == "macvlan"
    with pytest.raises(NotFound):
        links.get_link(nl, "mv0")


def test_changing_a_link(ns, nl) -> None:
    links.create_veth(nl, "a", "b")
    index = links.link_index(nl, "a")
    links.set_mac(nl, "a", "02:00:00:00:00:99")
    links.set_mtu(nl, index, 1234)
    links.set_alias(nl, "a", "pod red/naïve")
    links.set_promisc(nl, "a", True)
    links.rename(nl, "a", "renamed")
    shown = link_of(ns, "renamed")
    assert (shown["address"], shown["mtu"], shown["ifindex"]) == ("02:00:00:00:00:99", 1234, index)
    assert shown["ifalias"] == "pod red/naïve"
    assert "PROMISC" in shown["flags"]
    link = links.get_link(nl, index)
    assert (link.name, link.alias, link.promisc) == ("renamed", "pod red/naïve", True)
    links.set_alias(nl, index, "")
    links.set_promisc(nl, index, False)
    assert "ifalias" not in link_of(ns, "renamed")
    assert "PROMISC" not in link_of(ns, "renamed")["flags"]


@pytest.mark.parametrize("new_name", [None, "eth0"])
def test_moving_a_link(ns, other, other_fd, nl, new_name: str | None) -> None:
    links.create_veth(nl, "tmp1", "b")
    links.move(nl, "tmp1", other_fd, new_name)
    assert link_of(other, new_name or "tmp1")["linkinfo"]["info_kind"] == "veth"
    with pytest.raises(NotFound):
        links.get_link(nl, "tmp1")


def test_moving_onto_a_taken_name(ns, other, other_fd, nl) -> None:
    other.ip("link", "add", "eth0", "type", "bridge")
    links.create_veth(nl, "eth0", "b")
    with pytest.raises(Exists):
        links.move(nl, "eth0", other_fd)
    assert link_of(ns, "eth0")["linkinfo"]["info_kind"] == "veth"


def test_deleting(ns, nl) -> None:
    links.create_veth(nl, "a", "b")
    links.delete_link(nl, "a")
    assert [link["ifname"] for link in ns.json("link")] == ["lo"]
    with pytest.raises(NotFound, match=r"^ip link delete a: "):
        links.delete_link(nl, "a")


def test_what_is_not_there(nl) -> None:
    for ask in (links.get_link, links.link_index, links.set_up, links.set_down, links.delete_link):
        with pytest.raises(NotFound):
            ask(nl, "nosuch")
    with pytest.raises(NotFound):
        links.get_link(nl, 4711)
    with pytest.raises(NotFound):
        links.set_master(nl, "lo", "nosuch")
    with pytest.raises(NotFound):
        links.rename(nl, "nosuch", "x")


def test_what_is_there_already(nl) -> None:
    links.create_veth(nl, "a", "b")
    with pytest.raises(Exists):
        links.create_veth(nl, "a", "c")
    with pytest.raises(Exists):
        links.create_veth(nl, "c", "b")
    with pytest.raises(Exists):
        links.create_bridge(nl, "a")
    with pytest.raises(Exists):
        links.rename(nl, "a", "b")
    assert [link.name for link in links.list_links(nl)] == ["lo", "b", "a"]


def test_the_kernels_own_words(nl) -> None:
    links.create_veth(nl, "a", "b")
    with pytest.raises(KernelError, match=r"^ip link set a mtu 7: mtu less than device minimum$") as caught:
        links.set_mtu(nl, "a", 7)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(KernelError, match=r"^ip link add x type nosuch: Unknown device type$"):
        links.create_link(nl, "x", "nosuch")
    with pytest.raises(KernelError, match=r"ip link add mv0 link if4711 type macvlan"):
        links.create_link(nl, "mv0", "macvlan", parent=4711)
    with pytest.raises(KernelError, match="longer than a link's name can be, 15 bytes"):
        links.create_bridge(nl, "sixteen-letters.")
    with pytest.raises(KernelError, match="ip link set a address zz"):
        links.set_mac(nl, "a", "zz")


def test_socket_still_works_after_errors(nl) -> None:
    for _ in range(50):
        with pytest.raises(NotFound):
            links.get_link(nl, "nosuch")
    assert links.get_link(nl, "lo").index == 1


def test_listing_agrees_with_ip_and_pyroute2(ns, nl) -> None:
    links.create_bridge(nl, "br0")
    for number in range(20):
        links.create_veth(nl, f"a{number}", f"b{number}", mtu=1300 + number)
        links.set_master(nl, f"a{number}", "br0")
        links.set_up(nl, f"b{number}")
    ours = links.list_links(nl)
    shown = {link["ifname"]: link for link in ns.json("link")}
    assert [link.index for link in ours] == sorted(link["ifindex"] for link in shown.values())
    names = {link.index: link.name for link in ours}
    for link in ours:
        there = shown[link.name]
        assert (link.index, link.mtu, link.mac) == (there["ifindex"], there["mtu"], there["address"])
        assert (link.operstate, link.up) == (there["operstate"], "UP" in there["flags"])
        assert names.get(link.master) == there.get("master")
        assert link.kind == there.get("linkinfo", {}).get("info_kind", "")
    with NetNS(ns.name) as oracle:
        theirs = {
            (link["index"], link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_MTU"), link.get_attr("IFLA_MASTER") or 0)
            for link in oracle.get_links()
        }
    assert {(link.index, link.name, link.mtu, link.master) for link in ours} == theirs


def test_listing_only_some(nl) -> None:
    links.create_bridge(nl, "br0")
    links.create_veth(nl, "a", "b")
    links.set_master(nl, "a", "br0")
    assert [link.name for link in links.list_links(nl, kind="bridge")] == ["br0"]
    assert [link.name for link in links.list_links(nl, master=links.link_index(nl, "br0"))] == ["a"]
    assert links.list_links(nl, kind="nosuch") == []


def test_names_alone(ns, nl) -> None:
    links.create_bridge(nl, "br0")
    links.create_veth(nl, "a", "b")
    wanted = {link["ifindex"]: link["ifname"] for link in ns.json("link", "show")}
    assert links.names(ns.path) == wanted
    assert set(wanted.values()) == {"lo", "br0", "a", "b"}
    assert all(links.link_index(nl, name) == index for index, name in wanted.items())


def test_many_links_go_in_one_step_with_their_peers(ns) -> None:
    with Netlink(ns.path) as nl:
        for number in range(20):
            links.create_veth(nl, f"a{number}", f"b{number}")
        links.create_veth(nl, "stays", "its-peer")
        links.delete_links(nl, [*(f"a{number}" for number in range(20)), "missing"])
        links.delete_links(nl, ["missing"])
        links.delete_links(nl, [])
        with pytest.raises(KernelError) as refused:
            links.delete_links(nl, ["stays", "lo"])
    assert refused.value.errno == errno.EOPNOTSUPP
    assert {link["ifname"] for link in ns.json("link", "show")} == {"lo", "stays", "its-peer"}
