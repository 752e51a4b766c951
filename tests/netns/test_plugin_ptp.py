"""The plugin `ptp` on the real kernel (situations 72 and 73 of the specification), and its traffic."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attachments import Ground, addresses, outside, reaches, routes
from cni_plugins import GO, Caller, put
from namespaces import Ns

pytestmark = pytest.mark.root

FOUR, SIX = "10.1.2.0/24", "fd00:1:2::/64"
MASQUERADE = ("inet", "cni_plugins_masquerade")
DEFAULTS = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("bin"))


@pytest.fixture
def ground(plugins: Path, make_ns: Callable[..., Ns], tmp_path: Path) -> Ground:
    host = make_ns("host")
    found = Ground(Caller(plugins, host.name), host, tmp_path / "ipam", {}, make_ns)
    ipam = found.ipam(FOUR, SIX, routes=DEFAULTS)
    found.conf.update({"cniVersion": "1.0.0", "name": "net1", "type": "ptp", "ipam": ipam})
    return found


def masqueraded(ground: Ground) -> list[str]:
    """The addresses that have a rule."""
    rules = [each for each in ground.nft(*MASQUERADE) if each["chain"] == "masq_checks"]
    return [each["expr"][0]["match"]["right"] for each in rules]


def nothing_left(ground: Ground) -> None:
    assert ground.links() == set()
    assert {each["ifname"] for each in ground.pod("a").json("link", "show")} <= {"lo"}
    assert (ground.held, masqueraded(ground)) == (set(), [])


# --- what an attachment is ------------------------------------------------------------------------------------------


def test_life(ground: Ground) -> None:
    pod, host = ground.pod("a"), ground.host
    result = ground.add()
    (port,), (inside,) = host.json("link", "show", "type", "veth"), pod.json("link", "show", "dev", "eth0")
    name = port["ifname"]
    assert result["interfaces"] == [
        {"name": name, "mac": port["address"]},
        {"name": "eth0", "mac": inside["address"], "sandbox": pod.path},
    ]
    assert result["ips"] == [
        {"interface": 1, "address": "10.1.2.2/24", "gateway": "10.1.2.1"},
        {"interface": 1, "address": "fd00:1:2::2/64", "gateway": "fd00:1:2::1"},
    ]
    assert result["routes"] == DEFAULTS
    assert routes(pod) == [
        "10.1.2.0/24 via 10.1.2.1 dev eth0 src 10.1.2.2",
        "10.1.2.1 dev eth0 scope link src 10.1.2.2",
        "default via 10.1.2.1 dev eth0",
    ]
    assert routes(pod, "-6") == [
        "default via fd00:1:2::1 dev eth0",
        "fd00:1:2::/64 via fd00:1:2::1 dev eth0 src fd00:1:2::2",
        "fd00:1:2::1 dev eth0 src fd00:1:2::2",
    ]
    assert addresses(host, name) == ["10.1.2.1/32", "fd00:1:2::1/128"]
    assert routes(host) == [f"10.1.2.2 dev {name} scope link"]
    assert f"fd00:1:2::2 dev {name}" in routes(host, "-6")
    for family in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
        assert host.run("sysctl", "-n", f"net.{family}").strip() == "1"
    ground.done("CHECK", prevResult=result)
    ground.done("DEL", prevResult=result)
    ground.done("DEL", prevResult=result)
    nothing_left(ground)


@pytest.mark.parametrize("version", ["", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_versions(ground: Ground, version: str) -> None:
    result = ground.add(cniVersion=version)
    assert result["cniVersion"] == (version or "0.1.0")
    assert ("interfaces" in result) == (version >= "0.3")
    assert ground("CHECK", cniVersion=version, prevResult=result).code == (0 if version >= "0.4" else 1)
    ground.done("DEL", cniVersion=version)


def test_settings(ground: Ground) -> None:
    dns = {"nameservers": ["10.1.2.53"], "domain": "a.example"}
    result = ground.add(mtu=1400, dns=dns)
    assert result["dns"] == dns
    assert ground.pod("a").json("link", "show", "dev", "eth0")[0]["mtu"] == 1400
    assert ground.host.json("link", "show", "type", "veth")[0]["mtu"] == 1400
    assert ground.pod("a").run("sysctl", "-n", "net.ipv4.conf.eth0.arp_notify").strip() == "1"


def test_several_addresses_of_a_family(ground: Ground) -> None:
    """Two of one subnet have one gateway. One that is alone in its subnet reaches everything by it all the same."""
    given = [
        {"address": "10.1.2.5/24", "gateway": "10.1.2.1"},
        {"address": "10.1.2.6/24", "gateway": "10.1.2.1"},
        {"address": "10.7.7.7/32", "gateway": "169.254.1.1"},
    ]
    ground.add(ipam={"type": "static", "addresses": given, "routes": [{"dst": "0.0.0.0/0"}]})
    pod = ground.pod("a")
    assert routes(pod) == [
        "10.1.2.0/24 via 10.1.2.1 dev eth0 src 10.1.2.5",
        "10.1.2.1 dev eth0 scope link src 10.1.2.5",
        "169.254.1.1 dev eth0 scope link src 10.7.7.7",
        "default via 10.1.2.1 dev eth0",
    ]
    (name,) = ground.links()
    assert addresses(ground.host, name) == ["10.1.2.1/32", "169.254.1.1/32"]
    for own in ("10.1.2.5", "10.1.2.6", "10.7.7.7"):
        assert reaches(ground.host, own)


# --- what is refused, and leaves nothing ----------------------------------------------------------------------------

STATIC = {"type": "static", "addresses": [{"address": "10.1.2.5/24"}]}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "back end": ({"ipMasq": True, "ipMasqBackend": "foo"}, 'unknown ipmasq backend "foo"'),
    "no address plugin": ({"ipam": {}}, "no plugin name provided"),
    "no gateway": (
        {"ipam": STATIC},
        "IPAM plugin returned no gateway for 10.1.2.5/24, by which ptp reaches everything",
    ),
    "mtu": ({"mtu": 20}, "failed to make veth pair: ip link add eth0 type veth"),
    "mtu that is no number": ({"mtu": "1400"}, "failed to load netconf: json: cannot unmarshal string into field mtu"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(ground: Ground, name: str) -> None:
    members, text = REFUSED[name]
    code, msg = ground("ADD", **members).error
    assert (code, msg[: len(text)]) == (999, text)
    nothing_left(ground)


def test_interface_that_is_there(ground: Ground) -> None:
    ground.pod("a").ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
    code, msg = ground("ADD").error
    assert (code, msg.startswith('container veth name ("eth0") peer provided ("veth')) == (999, True)
    ground.pod("a").ip("link", "delete", "eth0")
    nothing_left(ground)


def test_everything_is_taken_back(ground: Ground) -> None:
    """A route of the address plugin that the kernel does not take, the last of three; then no room for the rules."""
    ipam = ground.ipam(FOUR, routes=[*DEFAULTS[:1], {"dst": "10.9.9.9/8"}])
    code, msg = ground("ADD", ipam=ipam).error
    assert (code, msg) == (999, "failed to add route '10.9.9.9/8 via 10.1.2.1 dev eth0': invalid argument")
    nothing_left(ground)
    table = " ".join(MASQUERADE)
    ground.host.run(
        "nft", f"add table {table}; add chain {table} postrouting {{ type filter hook output priority 0; }}"
    )
    assert ground("ADD", ipMasq=True).error[0] == 999
    nothing_left(ground)


# --- DEL, GC, CHECK, STATUS -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["gone", "not said"])
def test_del_without_the_namespace(ground: Ground, how: str) -> None:
    ground.add(ipMasq=True)
    assert masqueraded(ground) == ["10.1.2.2", "fd00:1:2::2"]
    pod = ground.pod("a")
    if how == "gone":
        subprocess.run(["ip", "netns", "delete", pod.name], check=True)
    conf = {**ground.conf, "ipMasq": True}
    said = ground.call("DEL", conf, netns=pod.path if how == "gone" else "", container="a")
    assert (said.code, said.stdout, said.stderr) == (0, "", "")
    assert (ground.held, masqueraded(ground)) == (set(), [])
    if how == "not said":
        assert ground.links() == set()


def test_gc(ground: Ground) -> None:
    members = {"cniVersion": "1.1.0", "ipMasq": True}
    for name in ("a", "b"):
        ground.add(name, **members)
    ground.add("z", **members, name="net2")
    listed = [{"containerID": "a", "ifname": "eth0"}]
    said = ground.call("GC", {**ground.conf, **members, "cni.dev/valid-attachments": listed})
    assert (said.code, said.stdout) == (0, "")
    assert ground.held == {"10.1.2.2", "fd00:1:2::2"}
    assert len(masqueraded(ground)) == 4
    aliases = {each["ifalias"] for each in ground.host.json("link", "show", "type", "veth")}
    assert aliases == {"cni net1 a eth0", "cni net2 z eth0"}
    said = ground.call("GC", {**ground.conf, **members, "cni.dev/valid-attachments": None})
    assert (said.code, ground.held) == (0, set())


def test_status(ground: Ground) -> None:
    ground.done("STATUS", cniVersion="1.1.0", ipMasq=True)
    ground.add("b", ipam=ground.ipam("10.1.2.0/30"))
    assert ground("STATUS", cniVersion="1.1.0", ipam=ground.ipam("10.1.2.0/30")).error[0] == 50
    assert ground("STATUS", cniVersion="1.1.0", ipMasq=True, ipMasqBackend="foo").code == 1


FAULTS: dict[str, tuple[str, str]] = {
    "address": ("ip -n {pod} addr del {ip} dev eth0", "Failed to match addr {ip} on interface eth0"),
    "route": ("ip -n {pod} route del default", "Expected Route {{Dst:0.0.0.0/0 GW:<nil>}} not found in routing table"),
    "interface": ("ip -n {pod} link del eth0", "Interface name eth0 not found"),
    "mac": (
        "ip -n {pod} link set eth0 address c2:00:00:00:00:01",
        "Interface eth0 Mac {mac} doesn't match container Mac: c2:00:00:00:00:01",
    ),
    "gateway": (
        "ip -n {host} addr del 10.1.2.1/32 dev {port}",
        "ptp: {port} does not have the address of the gateway 10.1.2.1",
    ),
    "route of the host": ("ip -n {host} route flush dev {port}", "ptp: the host has no route to {bare} by {port}"),
    "masquerade": (
        "ip netns exec {host} nft flush chain inet cni_plugins_masquerade masq_checks",
        "{ip} is not masqueraded: table inet cni_plugins_masquerade has no rule for it",
    ),
}


def test_check(ground: Ground) -> None:
    ground.add()
    assert ground("CHECK").error == (999, "ptp: Required prevResult missing")
    ground.done("DEL")
    for fault, (command, text) in FAULTS.items():
        result = ground.add(ipMasq=True)
        ground.done("CHECK", prevResult=result, ipMasq=True)
        port, inside = result["interfaces"]
        words = {"host": ground.host.name, "pod": ground.pod("a").name, "port": port["name"], "mac": inside["mac"]}
        words["ip"] = result["ips"][0]["address"]
        words["bare"] = words["ip"].partition("/")[0]
        subprocess.run(command.format(**words).split(), check=True)
        said = ground("CHECK", prevResult=result, ipMasq=True)
        assert said.error == (999, text.format(**words)), fault
        ground.done("DEL", ipMasq=True)
        nothing_left(ground)


# --- traffic --------------------------------------------------------------------------------------------------------


def test_pods_talk(ground: Ground) -> None:
    """Through the host, which is one hop; and outside with its address."""
    outside(ground)
    for name in ("a", "b"):
        ground.add(name, ipMasq=True)
    a = ground.pod("a")
    for ip in ("10.1.2.1", "10.1.2.3", "fd00:1:2::1", "fd00:1:2::3", "192.0.2.9", "2001:db8::9"):
        assert reaches(a, ip), ip
    assert not reaches(a, "10.1.2.3", "-t1")
    assert reaches(ground.host, "fd00:1:2::2")


# --- and Go's -------------------------------------------------------------------------------------------------------


def shape(ground: Ground, result: dict[str, Any]) -> dict[str, Any]:
    """What an attachment is, without what is chance."""
    pod, host = ground.pod("a"), ground.host
    (port,) = host.json("link", "show", "type", "veth")
    result.get("dns") or result.pop("dns", None)  # Go's of old write an empty one in every version
    found = {
        "result": result,
        "addresses": [addresses(host, port["ifname"]), addresses(pod, "eth0")],
        # Go's of old made the host's route one of global scope; since 1.2 it is of scope link.
        "routes": [routes(pod), routes(pod, "-6"), str(routes(host)).replace(" scope link", ""), routes(host, "-6")],
        "mtu": port["mtu"],
    }
    text = json.dumps(found)
    for number, each in enumerate(result["interfaces"]):
        text = text.replace(each["mac"], f"mac{number}").replace(each["name"], f"name{number}")
    shaped: dict[str, Any] = json.loads(text.replace(pod.path, "netns"))
    return shaped


@pytest.mark.parametrize("members", [{}, {"mtu": 1400, "cniVersion": "0.4.0"}])
def test_same_as_go(ground: Ground, make_ns: Callable[..., Ns], tmp_path: Path, members: dict[str, Any]) -> None:
    if not (GO / "ptp").exists():
        pytest.skip("the Go plugins are not installed: apt-get install containernetworking-plugins")
    host = make_ns("gohost")
    go = Ground(Caller(GO, host.name), host, tmp_path / "go", dict(ground.conf), make_ns)
    found = []
    for each in (ground, go):
        ipam = each.ipam(FOUR, SIX, routes=[*DEFAULTS, {"dst": "10.9.0.0/16", "gw": "10.1.2.1"}])
        found.append(shape(each, each.add(ipam=ipam, **members)))
    assert found[0] == found[1]
