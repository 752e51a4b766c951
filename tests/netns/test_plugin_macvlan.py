"""The plugin `macvlan` on the real kernel (situations 56 to 60, 133 and 134 of the specification)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_nodes import LAN, MASQUERADE, NODES, Machine, Pod, Wire, case, greeted, nat, published, serving
from namespaces import Ns
from tortie.cni.spec import SUPPORTED_VERSIONS

pytestmark = pytest.mark.root

IPAM = {
    "type": "host-local",
    "subnet": "10.211.55.0/24",
    "rangeStart": "10.211.55.140",
    "rangeEnd": "10.211.55.142",
    "routes": [{"dst": "0.0.0.0/0"}],
}


def conf(**more: Any) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": "net1", "type": "macvlan", "master": "eth0", "ipam": IPAM, **more}


@pytest.fixture
def wire(make_ns: Callable[..., Ns], tmp_path: Path) -> Wire:
    return Wire(make_ns, tmp_path, ("node1",))


@pytest.fixture
def node(wire: Wire) -> Machine:
    return wire.nodes["node1"]


def links(ns: Ns) -> list[str]:
    return sorted(each["ifname"] for each in ns.json("link", "show"))


def held(tmp_path: Path) -> list[str]:
    """The addresses that host-local has given away on node1."""
    return sorted(path.name for path in tmp_path.glob("node1/state/networks/*/10.*"))


# --- the classic case -----------------------------------------------------------------------------------------------


def test_the_case_as_it_is(make_ns: Callable[..., Ns], tmp_path: Path) -> None:
    wire = Wire(make_ns, tmp_path)
    pods = {name: wire.attached(name, case("macvlan", name)) for name in NODES}
    assert [pod.ip for pod in pods.values()] == [f"{LAN}.{number}" for number in (129, 140, 119)]
    for name, pod in pods.items():
        assert pod.result["cniVersion"] == "0.1.0"
        assert pod.eth0["address"] != wire.nodes[name].mac
        routes = {(each["dst"], each.get("gateway")) for each in pod.ns.json("route", "show")}
        assert routes == {("default", f"{LAN}.1"), (f"{LAN}.0/24", None)}
    master, node1 = pods["master"], pods["node1"]
    assert master.reaches(node1.ip)
    assert node1.reaches(pods["node2"].ip)
    assert master.reaches(f"{LAN}.1")
    assert master.reaches(wire.nodes["node1"].address)
    assert not master.reaches(wire.nodes["master"].address)
    for name, pod in pods.items():
        wire.nodes[name].delete(pod)
        assert links(pod.ns) == ["lo"]
    assert not list(tmp_path.glob("*/state/networks/*/10.*"))


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_life(wire: Wire, node: Machine, tmp_path: Path, version: str) -> None:
    pod = wire.attached("node1", conf(cniVersion=version, dns={"nameservers": ["192.0.2.53"]}))
    result = pod.result
    mac = pod.eth0["address"]
    assert result["cniVersion"] == version
    assert result["dns"] == {"nameservers": ["192.0.2.53"]}
    if version >= "0.3":
        assert result["interfaces"] == [{"name": "eth0", "mac": mac, "sandbox": pod.ns.path}]
        (ip,) = result["ips"]
        assert ip.pop("version", "4") == "4"
        assert ip == {"interface": 0, "address": f"{pod.ip}/24", "gateway": f"{LAN}.1"}
    for family, key in (("ipv4", "arp_notify"), ("ipv6", "ndisc_notify")):
        assert pod.ns.run("cat", f"/proc/sys/net/{family}/conf/eth0/{key}").strip() == "1"
    told = {**pod.conf, "prevResult": result}
    if version >= "0.4":
        assert node.say("CHECK", pod, told).code == 0
    assert held(tmp_path) == [pod.ip]
    node.delete(pod, told=version >= "0.4")
    node.delete(pod)
    assert (links(pod.ns), held(tmp_path)) == (["lo"], [])
    if version >= "0.4":
        assert node.say("CHECK", pod, told).code == 1


# --- what can be said -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["bridge", "private", "vepa"])
def test_modes(wire: Wire, mode: str) -> None:
    one, two = (wire.attached("node1", conf(mode=mode)) for _ in range(2))
    assert one.eth0["linkinfo"]["info_kind"] == "macvlan"
    assert one.eth0["linkinfo"]["info_data"]["mode"] == mode
    assert one.reaches(two.ip) == (mode == "bridge")
    assert one.reaches(f"{LAN}.1")


def test_passthru_takes_the_master_for_itself(wire: Wire, node: Machine) -> None:
    pod = wire.attached("node1", conf(mode="passthru"))
    assert (pod.eth0["linkinfo"]["info_data"]["mode"], pod.eth0["address"]) == ("passthru", node.mac)
    other = wire.pod(conf(mode="passthru"))
    assert node.say("ADD", other).error == (999, "failed to create macvlan: invalid argument")


def test_settings_of_the_link(wire: Wire, node: Machine) -> None:
    wanted = conf(mtu=1400, bcqueuelen=2000, mac="02:00:00:00:00:01")
    pod = wire.attached("node1", wanted)
    assert (pod.eth0["mtu"], pod.eth0["address"]) == (1400, "02:00:00:00:00:01")
    assert pod.eth0["linkinfo"]["info_data"]["bcqueuelen"] == 2000
    node.delete(pod)


@pytest.mark.parametrize(
    ("more", "args", "mac"),
    [
        ({"mac": "02-00-00-00-00-0A"}, "", "02:00:00:00:00:0a"),
        ({"mac": "0200.0000.000a"}, "IgnoreUnknown=1;MAC=02:00:00:00:00:02", "02:00:00:00:00:02"),
        ({"runtimeConfig": {"mac": "c2:11:22:33:44:55"}}, "IgnoreUnknown=1;MAC=02:00:00:00:00:02", "c2:11:22:33:44:55"),
    ],
)
def test_whose_word_about_the_mac_counts(wire: Wire, node: Machine, more: Any, args: str, mac: str) -> None:
    pod = wire.pod(conf(**more))
    result = node.say("ADD", pod, CNI_ARGS=args).doc
    assert result["interfaces"][0]["mac"] == pod.eth0["address"] == mac


def test_without_addresses(wire: Wire, node: Machine) -> None:
    pod = wire.attached("node1", conf(ipam={}))
    assert pod.result["interfaces"][0]["name"] == "eth0"
    assert not pod.result.keys() & {"ips", "routes"}
    assert "UP" in pod.eth0["flags"]
    assert node.say("CHECK", pod, {**pod.conf, "prevResult": pod.result}).code == 0
    node.delete(pod)
    old = wire.pod({key: value for key, value in conf(cniVersion="0.2.0").items() if key != "ipam"})
    assert node.say("ADD", old).error == (999, "cannot convert: no valid IP addresses")
    assert links(old.ns) == ["lo"]


def test_master_of_the_default_route(wire: Wire, node: Machine, tmp_path: Path) -> None:
    pod = wire.attached("node1", conf(master=""))
    node.ns.ip("route", "delete", "default")
    other = wire.pod(conf(master=""))
    assert node.say("ADD", other).error == (999, "no default route interface found")
    node.delete(pod)
    assert (links(pod.ns), held(tmp_path)) == (["lo"], [])


def test_master_in_the_pod(wire: Wire, node: Machine) -> None:
    pod = wire.pod(conf(linkInContainer=True, master="up0"))
    pod.ns.ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
    node.add(pod)
    assert pod.eth0["link"] == "up0"
    assert node.say("CHECK", pod, {**pod.conf, "prevResult": pod.result}).code == 0
    node.delete(pod)
    assert links(pod.ns) == ["lo", "up0", "up1"]


def test_device_routes(wire: Wire) -> None:
    pod = wire.attached("node1", conf(clusterRoutes=["10.96.0.0/12", "10.211.55.0/24"]))
    routes = {each["dst"]: each for each in pod.ns.json("route", "show")}
    assert routes["10.96.0.0/12"].items() >= {"dev": "eth0", "scope": "link"}.items()
    assert {"dst": "10.96.0.0/12", "scope": 253} in pod.result["routes"]


# --- what is refused, and leaves nothing ----------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"mtu": 1600}, "", "invalid MTU 1600, must be [0, master MTU(1500)]"),
    ({"mtu": -1}, "", "invalid MTU -1, must be [0, master MTU(1500)]"),
    ({"mac": "zz"}, "", "invalid args zz for MAC addr: address zz: invalid MAC address"),
    ({"mac": "01:00:5e:00:00:01"}, "", "failed to create macvlan: cannot assign requested address"),
    ({"mode": "l2"}, "", 'unknown macvlan mode: "l2"'),
    ({"master": "nope"}, "", "Link not found"),
    ({"master": "lo", "mtu": 0}, "", "failed to create macvlan: invalid argument"),
    ({"ipam": {"type": "nope"}}, "", 'failed to find plugin "nope" in path'),
    ({"ipam": {**IPAM, "routes": [{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}]}}, "", "failed to add route '10.9.0.0/16"),
    ({}, "MAC=02:00:00:00:00:02", 'ARGS: unknown args ["MAC=02:00:00:00:00:02"]'),
    ({"hostAccess": "sibling", "mode": "vepa"}, "", 'hostAccess "sibling" cannot be: mode vepa keeps it apart'),
    ({"hostAccess": "yes"}, "", 'hostAccess: "yes" is neither "none" nor "sibling"'),
    ({"defaultRoute": "yes"}, "", 'defaultRoute: "yes" is neither "auto" nor "none"'),
    ({"clusterRoutes": ["10.0.0.0"]}, "", "clusterRoutes: '10.0.0.0' is not a CIDR"),
    ({"hostAccess": "sibling", "hostAddress": "x"}, "", "hostAddress: invalid IP address: x"),
]


def test_refusals(wire: Wire, node: Machine, tmp_path: Path) -> None:
    pod = wire.pod(conf())
    for more, args, text in REFUSED:
        said = node.say("ADD", pod, conf(**more), CNI_ARGS=args)
        assert said.error[1].startswith(text), (more, said)
        assert said.error[0] == (7 if {"hostAccess", "defaultRoute", "clusterRoutes"} & more.keys() else 999)
        assert links(pod.ns) == ["lo"], more
        assert held(tmp_path) == [], more
        assert node.siblings() == [], more


def test_interface_that_exists(wire: Wire, node: Machine, tmp_path: Path) -> None:
    pod = wire.pod(conf())
    pod.ns.ip("link", "add", "eth0", "type", "bridge")
    assert node.say("ADD", pod).error == (999, 'failed to rename macvlan to "eth0": file exists')
    assert (links(pod.ns), held(tmp_path)) == (["eth0", "lo"], [])


def test_address_that_cannot_be_given(wire: Wire, node: Machine, tmp_path: Path) -> None:
    """The range is used up: the link goes, and the addresses of others stay."""
    pods = [wire.attached("node1", conf()) for _ in range(3)]
    last = wire.pod(conf())
    assert node.say("ADD", last).code == 1
    assert links(last.ns) == ["lo"]
    assert held(tmp_path) == sorted(pod.ip for pod in pods)


def test_master_that_is_a_port(wire: Wire, node: Machine) -> None:
    node.ns.ip("link", "add", "br9", "type", "bridge")
    node.ns.ip("link", "set", "eth0", "master", "br9")
    said = node.say("ADD", wire.pod(conf()))
    assert said.error == (999, "failed to create macvlan: device or resource busy")
    assert "bridge's port" in said.doc["details"]


def test_check_sees_what_is_wrong(wire: Wire, node: Machine) -> None:
    pod = wire.attached("node1", conf())
    told = {**pod.conf, "prevResult": pod.result}
    for more, text in (
        ({"mode": "vepa"}, "Container macvlan mode bridge does not match expected value: vepa"),
        ({"master": "lo"}, 'Interface eth0 is not on top of master "lo"'),
        ({"prevResult": None}, "required prevResult missing"),
    ):
        assert node.say("CHECK", pod, {**told, **more}).error == (999, text)
    pod.ns.ip("route", "delete", "default")
    assert "Expected Route" in node.say("CHECK", pod, told).error[1]
    pod.ns.ip("address", "flush", "dev", "eth0")
    assert node.say("CHECK", pod, told).error[1].startswith(f"Failed to match addr {pod.ip}/24")
    pod.ns.ip("link", "set", "eth0", "address", "02:00:00:00:00:09")
    assert "doesn't match container Mac" in node.say("CHECK", pod, told).error[1]


def test_status_and_gc(wire: Wire, node: Machine, tmp_path: Path) -> None:
    pod = wire.attached("node1", conf())
    assert node.call("STATUS", conf()).code == 0
    assert node.call("STATUS", conf(master="nope")).error == (50, 'master "nope" is not there')
    valid = [{"containerID": pod.id, "ifname": "eth0"}]
    assert node.call("GC", {**conf(), "cni.dev/valid-attachments": valid}).code == 0
    assert held(tmp_path) == [pod.ip]
    assert node.call("GC", {**conf(), "cni.dev/valid-attachments": []}).code == 0
    assert held(tmp_path) == []
    told = {**pod.conf, "prevResult": pod.result}
    assert "Failed to find address" in node.say("CHECK", pod, told).error[1]  # all else of the pod is as it was


# --- the node and its own pods --------------------------------------------------------------------------------------

SIBLING = {"hostAccess": "sibling"}


def routed(node: Machine) -> set[str]:
    """What the node sends out of its sibling."""
    return {each["dst"] for each in node.ns.json("route", "show") if each.get("dev", "").startswith("cniv")}


def test_node_and_pod_by_a_sibling(wire: Wire, node: Machine) -> None:
    plain = wire.attached("node1", conf())
    assert not node.reaches(plain.ip)
    assert not plain.reaches(node.address)
    one, two = (wire.attached("node1", conf(**SIBLING)) for _ in range(2))
    (name,) = node.siblings()
    assert routed(node) == {one.ip, two.ip}
    for pod in (one, two):
        assert node.reaches(pod.ip)
        assert pod.reaches(node.address)
        assert node.say("CHECK", pod, {**pod.conf, "prevResult": pod.result}).code == 0
    assert one.reaches(two.ip)
    assert one.reaches(f"{LAN}.1")
    # What the node says on the wire is said with the master's MAC address, so that nobody learns another.
    heard = {each["dst"]: each.get("lladdr") for each in wire.gateway.json("neigh", "show")}
    assert heard.get(node.address) in (None, node.mac)
    (link,) = (each for each in node.ns.json("link", "show") if each["ifname"] == name)
    assert link["linkinfo"]["info_data"]["mode"] == "bridge"
    node.ns.ip("link", "set", "eth0", "down")
    node.ns.ip("link", "set", "eth0", "up")
    assert node.reaches(two.ip)
    assert two.reaches(node.address)
    node.delete(one, told=True)
    assert (routed(node), node.siblings()) == ({two.ip}, [name])
    node.delete(two, told=True)
    assert (routed(node), node.siblings()) == (set(), [])


def test_sibling_of_pods_that_went_without_a_word(wire: Wire, node: Machine) -> None:
    one, two, three = (wire.attached("node1", conf(**SIBLING)) for _ in range(3))
    one.ns.run("ip", "link", "delete", "eth0")
    assert routed(node) == {one.ip, two.ip, three.ip}
    assert node.say("DEL", two).code == 0  # nobody says which address: it is looked for
    assert routed(node) == {three.ip}
    three.ns.run("ip", "link", "delete", "eth0")
    assert node.call("GC", {**conf(**SIBLING), "cni.dev/valid-attachments": []}).code == 0
    assert node.siblings() == []


def test_sibling_goes_when_add_fails(wire: Wire, node: Machine) -> None:
    """A pod is refused for its sibling's sake: what was made of it goes."""
    pod = wire.pod(conf(**SIBLING, hostAddress="224.0.0.1"))
    assert node.say("ADD", pod).code == 1
    assert (links(pod.ns), node.siblings()) == (["lo"], [])


def test_sibling_with_an_address(wire: Wire, node: Machine) -> None:
    pod = wire.attached("node1", conf(**SIBLING, hostAddress=f"{LAN}.250"))
    (route,) = (each for each in node.ns.json("route", "show") if each["dst"] == pod.ip)
    assert route["prefsrc"] == f"{LAN}.250"
    assert node.reaches(pod.ip)
    assert pod.reaches(f"{LAN}.250")
    assert pod.reaches(node.address)


def test_siblings_of_two_machines_with_the_same_numbers(make_ns: Callable[..., Ns], tmp_path: Path) -> None:
    """Their masters have one index, in two namespaces: the pods of one are not taken for the other's."""
    wire = Wire(make_ns, tmp_path, ("node1", "node2"))
    here, there = wire.nodes.values()
    shared = conf(**SIBLING)
    mine, theirs = wire.attached("node1", shared), wire.attached("node2", shared)
    assert mine.ip == theirs.ip
    mine.ns.run("ip", "link", "delete", "eth0")
    assert here.call("GC", {**shared, "cni.dev/valid-attachments": []}).code == 0
    assert (here.siblings(), len(there.siblings())) == ([], 1)


def test_ipv6(wire: Wire, node: Machine) -> None:
    node.ns.ip("address", "add", "fd55::8/64", "dev", "eth0", "nodad")
    ipam = {"type": "host-local", "ranges": [[{"subnet": "fd55::/64"}]], "routes": [{"dst": "::/0"}]}
    pod: Pod = wire.attached("node1", conf(**SIBLING, ipam=ipam))
    assert ":" in pod.ip
    assert node.reaches(pod.ip)
    assert pod.reaches("fd55::8")
    node.delete(pod, told=True)
    assert node.siblings() == []


def test_published_port(wire: Wire, node: Machine) -> None:
    """From outside by the node: with a sibling, and only if the request seems to come from the node."""
    node.ns.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    pod = wire.attached("node1", conf(**SIBLING))
    with serving(pod.ns):
        assert greeted(wire.gateway, pod.ip)
        nat(node, published(pod))
        assert not greeted(wire.gateway, node.address)
        nat(node, f"{published(pod)}\n{MASQUERADE}")
        assert greeted(wire.gateway, node.address)
