"""The plugin `bridge` on the real kernel (situations 61 to 64 and 67 to 71 of the specification), and its traffic."""

from __future__ import annotations

import concurrent.futures
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attachments import Ground, addresses, outside, reaches, routes
from cni_plugins import GO, Caller, put
from namespaces import Ns
from tortie.cni.plugin import Undo
from tortie.cni.plugins import bridge
from tortie.cni.spec import read_call
from tortie.kernel import links
from tortie.kernel.netlink import Netlink
from tortie.kernel.netns import entered

pytestmark = pytest.mark.root

FOUR, SIX = "10.1.2.0/24", "fd00:1:2::/64"
MASQUERADE = ("inet", "cni_plugins_masquerade")
NET1, ETH0_CTR1 = "8e48f37d5de60467", "7883a6f9ce71eedb"
"""The hashes of `net1` and of `eth0:ctr1`, as the Go plugins have them."""
VETH = "veth________"


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("bin"))


@pytest.fixture
def ground(plugins: Path, make_ns: Callable[..., Ns], tmp_path: Path) -> Ground:
    host = make_ns("host")
    found = Ground(Caller(plugins, host.name), host, tmp_path / "ipam", {}, make_ns)
    found.conf.update(
        {"cniVersion": "1.0.0", "name": "net1", "type": "bridge", "isDefaultGateway": True, "ipam": found.ipam(FOUR)}
    )
    return found


def nothing_left(ground: Ground) -> None:
    """No link on the host or in the pod, no address reserved, no rule."""
    assert ground.links() == set()
    assert {each["ifname"] for each in ground.pod("a").json("link", "show")} <= {"lo"}
    assert ground.held == set()
    assert ground.nft(*MASQUERADE) == [] or {each["chain"] for each in ground.nft(*MASQUERADE)} == {"postrouting"}
    assert ground.nft("bridge", "nat") == []


# --- what an attachment is ------------------------------------------------------------------------------------------


def test_default_gateway(ground: Ground) -> None:
    pod = ground.pod("a")
    result = ground.add()
    assert addresses(ground.host, "cni0") == ["10.1.2.1/24"]
    assert addresses(pod, "eth0") == ["10.1.2.2/24"]
    assert routes(pod) == ["10.1.2.0/24 dev eth0 scope link src 10.1.2.2", "default via 10.1.2.1 dev eth0"]
    assert ground.host.run("sysctl", "-n", "net.ipv4.ip_forward").strip() == "1"
    (bridge,), (inside,) = ground.host.json("link", "show", "dev", "cni0"), pod.json("link", "show", "dev", "eth0")
    (port,) = ground.host.json("link", "show", "type", "veth")
    assert result["interfaces"] == [
        {"name": "cni0", "mac": bridge["address"]},
        {"name": port["ifname"], "mac": port["address"]},
        {"name": "eth0", "mac": inside["address"], "sandbox": pod.path},
    ]
    assert len(port["ifname"]) == len(VETH)
    assert (port["master"], port["operstate"], port["ifalias"]) == ("cni0", "UP", "cni net1 a eth0")
    assert result["ips"] == [{"interface": 2, "address": "10.1.2.2/24", "gateway": "10.1.2.1"}]
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.1.2.1"}]
    ground.done("CHECK", prevResult=result)
    ground.done("DEL", prevResult=result)
    ground.done("DEL", prevResult=result)
    assert ground.links() == {"cni0"}, "the bridge stays"
    assert ground.held == set()
    assert pod.json("link", "show", "type", "veth") == []


@pytest.mark.parametrize("version", ["", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_versions(ground: Ground, version: str) -> None:
    result = ground.add(cniVersion=version, ipam=ground.ipam(FOUR, SIX))
    assert result["cniVersion"] == (version or "0.1.0")
    if version >= "0.3":
        assert [each["address"] for each in result["ips"]] == ["10.1.2.2/24", "fd00:1:2::2/64"]
        assert len(result["interfaces"]) == 3
    else:
        assert result["ip4"]["ip"] == "10.1.2.2/24"
        assert result["ip6"]["routes"] == [{"dst": "::/0", "gw": "fd00:1:2::1"}]
    assert ground("CHECK", cniVersion=version, prevResult=result).code == (0 if version >= "0.4" else 1)
    ground.done("DEL", cniVersion=version)


def test_both_families(ground: Ground) -> None:
    ground.add(ipam=ground.ipam(FOUR, SIX))
    assert addresses(ground.host, "cni0") == ["10.1.2.1/24", "fd00:1:2::1/64"]
    assert "default via fd00:1:2::1 dev eth0" in routes(ground.pod("a"), "-6")
    assert ground.host.run("sysctl", "-n", "net.ipv6.conf.all.forwarding").strip() == "1"
    assert reaches(ground.pod("a"), "10.1.2.1")
    assert reaches(ground.pod("a"), "fd00:1:2::1")


def test_default_route_of_the_address_plugin(ground: Ground) -> None:
    """One without a gateway is the same as the bridge's, and taken once; one with a gateway stays the only one."""
    result = ground.add(ipam=ground.ipam(FOUR, routes=[{"dst": "0.0.0.0/0"}]))
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.1.2.1"}]
    result = ground.add("b", ipam=ground.ipam(FOUR, routes=[{"dst": "0.0.0.0/0", "gw": "10.1.2.77"}]))
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.1.2.77"}]
    assert "default via 10.1.2.77 dev eth0" in routes(ground.pod("b"))


def test_gateway_without_default_route(ground: Ground) -> None:
    dns = {"nameservers": ["10.1.2.53"], "search": ["a.example"]}
    wanted = [{"dst": "10.9.0.0/16"}]
    result = ground.add(isDefaultGateway=False, isGateway=True, dns=dns, ipam=ground.ipam(FOUR, routes=wanted))
    assert result["dns"] == dns
    assert routes(ground.pod("a")) == [
        "10.1.2.0/24 dev eth0 scope link src 10.1.2.2",
        "10.9.0.0/16 via 10.1.2.1 dev eth0",
    ]


def test_no_gateway(ground: Ground) -> None:
    ground.add(isDefaultGateway=False)
    assert addresses(ground.host, "cni0") == []
    assert routes(ground.pod("a")) == ["10.1.2.0/24 dev eth0 scope link src 10.1.2.2"]


def test_pods_of_two_subnets_on_a_bridge(ground: Ground) -> None:
    """Of IPv4 there is one gateway on a bridge, unless it is forced; of IPv6 there may be several."""
    ground.add(ipam=ground.ipam(FOUR, SIX))
    said = ground("ADD", "b", ipam=ground.ipam("10.2.2.0/24"))
    assert said.error == (
        999,
        'failed to set bridge addr: "cni0" already has an IP address different from 10.2.2.1/24',
    )
    said = ground("ADD", "b", ipam=ground.ipam("fd00:1:2::/56"))
    assert said.error[1].endswith("already has an IP address different from fd00:1:2::1/56")
    assert ground.held == {"10.1.2.2", "fd00:1:2::2"}
    assert len(ground.links("veth")) == 1
    ground.add("b", ipam=ground.ipam("fd00:7::/64"))
    assert addresses(ground.host, "cni0") == ["10.1.2.1/24", "fd00:7::1/64", "fd00:1:2::1/64"]
    ground.add("c", ipam=ground.ipam("10.2.2.0/24"), forceAddress=True)
    assert addresses(ground.host, "cni0")[0] == "10.2.2.1/24"


def test_settings(ground: Ground) -> None:
    args = {"cni": {"mac": "c2:11:22:33:44:02"}}
    result = ground.add(bridge="br7", mtu=1400, promiscMode=True, args=args, enabledad=True)
    pod = ground.pod("a")
    (bridge,), (inside,) = ground.host.json("link", "show", "dev", "br7"), pod.json("link", "show", "dev", "eth0")
    assert (bridge["mtu"], inside["mtu"], inside["address"]) == (1400, 1400, "c2:11:22:33:44:02")
    assert result["interfaces"][2]["mac"] == "c2:11:22:33:44:02"
    assert "PROMISC" in bridge["flags"]
    assert ground.host.run("sysctl", "-n", "net.ipv6.conf.br7.accept_ra").strip() == "0"
    for name, value in (("ipv6.conf.eth0.accept_dad", "1"), ("ipv4.conf.eth0.arp_notify", "1")):
        assert pod.run("sysctl", "-n", f"net.{name}").strip() == value
    ground.done("CHECK", prevResult=result, bridge="br7", promiscMode=True)


@pytest.mark.parametrize(
    ("args", "members", "mac"),
    [
        ("IgnoreUnknown=1;MAC=c2:11:22:33:44:01", {}, "c2:11:22:33:44:01"),
        ("IgnoreUnknown=1;MAC=c2:11:22:33:44:01", {"args": {"cni": {"mac": "C2-11-22-33-44-02"}}}, "c2:11:22:33:44:02"),
        (
            "",
            {"args": {"cni": {"mac": "c2:11:22:33:44:02"}}, "runtimeConfig": {"mac": "c2:11:22:33:44:03"}},
            "c2:11:22:33:44:03",
        ),
    ],
)
def test_mac_that_is_asked_for(ground: Ground, args: str, members: dict[str, Any], mac: str) -> None:
    conf = {**ground.conf, **members}
    ground.call.add(conf, netns=ground.pod("a").path, CNI_ARGS=args)
    assert ground.pod("a").json("link", "show", "dev", "eth0")[0]["address"] == mac


def test_no_addresses(ground: Ground) -> None:
    """A network of frames only. Its bridge's MAC address changes with its ports, which is no fault of a pod."""
    l2 = {"ipam": {}, "isDefaultGateway": False}
    result = ground.add(**l2)
    assert "ips" not in result
    assert "UP" in ground.pod("a").json("link", "show", "dev", "eth0")[0]["flags"]
    for name in ("b", "c", "d"):
        ground.add(name, **l2)
        ground.done("CHECK", prevResult=result, **l2)
    ground.done("DEL", **l2)


def test_interface_that_stays_down(ground: Ground) -> None:
    down = {"ipam": {}, "isDefaultGateway": False, "disableContainerInterface": True}
    result = ground.add(**down)
    assert "UP" not in ground.pod("a").json("link", "show", "dev", "eth0")[0]["flags"]
    ground.done("CHECK", prevResult=result, **down)


# --- what is refused, and leaves nothing ----------------------------------------------------------------------------

TRUNK = "vlanTrunk"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "hairpin and promisc": (
        {"hairpinMode": True, "promiscMode": True},
        "cannot set hairpin mode and promiscuous mode at the same time",
    ),
    "vlan": ({"vlan": 5000}, "invalid VLAN ID 5000 (must be between 0 and 4094)"),
    "negative vlan": ({"vlan": -1}, "invalid VLAN ID -1 (must be between 0 and 4094)"),
    "down with addresses": (
        {"disableContainerInterface": True},
        "cannot use IPAM when DisableContainerInterface flag is set",
    ),
    "back end": ({"ipMasq": True, "ipMasqBackend": "foo"}, 'unknown ipmasq backend "foo"'),
    "trunk from 0": ({TRUNK: [{"minID": 0, "maxID": 5}]}, "incorrect trunk minID parameter"),
    "trunk to 4095": ({TRUNK: [{"minID": 1, "maxID": 4095}]}, "incorrect trunk maxID parameter"),
    "trunk backwards": ({TRUNK: [{"minID": 5, "maxID": 4}]}, "minID is greater than maxID in trunk parameter"),
    "trunk id": ({TRUNK: [{"id": 4095}]}, "incorrect trunk id parameter"),
    "trunk without end": (
        {TRUNK: [{"minID": 5}]},
        "minID and maxID should be configured simultaneously, maxID is missing",
    ),
    "trunk without begin": (
        {TRUNK: [{"maxID": 5}]},
        "minID and maxID should be configured simultaneously, minID is missing",
    ),
    "no bridge": ({"bridge": "lo"}, 'failed to create bridge "lo": "lo" already exists but is not a bridge'),
    "mac": ({"runtimeConfig": {"mac": "zz"}}, "failed to make veth pair: address zz: invalid MAC address"),
    "type": ({"isGateway": "yes"}, "failed to load netconf: json: cannot unmarshal string into field isGateway"),
    "no such address plugin": ({"ipam": {"type": "nope"}}, 'failed to find plugin "nope" in path ['),
    "mtu of the bridge": ({"mtu": 20}, 'failed to create bridge "cni0": ip link add cni0 type bridge'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(ground: Ground, name: str) -> None:
    members, text = REFUSED[name]
    code, msg = ground("ADD", **members).error
    assert (code, msg[: len(text)]) == (999, text)
    nothing_left(ground)


def test_pair_that_cannot_be_made(ground: Ground) -> None:
    """The bridge is there already; an MTU that only the pair does not take."""
    ground.host.ip("link", "add", "cni0", "type", "bridge")
    code, msg = ground("ADD", mtu=20).error
    assert (code, msg.startswith("failed to make veth pair: ")) == (999, True)
    ground.host.ip("link", "delete", "cni0")
    nothing_left(ground)


def test_interface_that_is_there(ground: Ground) -> None:
    ground.pod("a").ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
    code, msg = ground("ADD").error
    assert code == 999
    assert msg.startswith('container veth name ("eth0") peer provided ("veth')
    assert msg.endswith('") already exists')
    ground.pod("a").ip("link", "delete", "eth0")
    nothing_left(ground)


def test_addresses_are_used_up(ground: Ground) -> None:
    ipam = ground.ipam("10.1.2.0/30")
    ground.add("b", ipam=ipam)
    code, msg = ground("ADD", ipam=ipam).error
    assert (code, "no IP addresses available in range set" in msg) == (999, True)
    ground.done("DEL", "b", ipam=ipam)
    ground.host.ip("link", "delete", "cni0")
    nothing_left(ground)


@pytest.mark.parametrize("members", [{"ipMasq": True}, {"macspoofchk": True}, {"ipMasq": True, "macspoofchk": True}])
def test_everything_is_taken_back(ground: Ground, members: dict[str, Any]) -> None:
    """The last step fails: a route of the address plugin that the kernel does not take; and one step later, by a table
    in which ours does not fit."""
    ipam = ground.ipam(FOUR, routes=[{"dst": "10.9.9.9/8", "gw": "10.1.2.1"}])
    code, msg = ground("ADD", ipam=ipam, **members).error
    assert (code, msg) == (999, "failed to add route '10.9.9.9/8 via 10.1.2.1 dev eth0': invalid argument")
    nothing_left(ground)
    if "ipMasq" in members:
        table = " ".join(MASQUERADE)
        chain = f"add table {table}; add chain {table} postrouting {{ type filter hook postrouting priority 0; }}"
        ground.host.run("nft", chain)
        assert ground("ADD", **members).error[1].startswith("nft add chain inet cni_plugins_masquerade postrouting ")
        nothing_left(ground)


def test_kernel_without_vlans(ground: Ground) -> None:
    """VLANs themselves: tests/vm/inside/test_plugin_bridge_vlan.py."""
    ground.host.run("ip", "link", "add", "br9", "type", "bridge", "vlan_filtering", "1", check=False)
    if "br9" in ground.links():
        pytest.skip("this kernel's bridges have VLANs")
    text = "this kernel's bridges have no VLANs (CONFIG_BRIDGE_VLAN_FILTERING)"
    assert ground("ADD", vlan=100).error == (999, f'failed to create bridge "cni0": {text}')
    nothing_left(ground)


def test_old_version_without_addresses(ground: Ground) -> None:
    said = ground("ADD", cniVersion="0.2.0", ipam={}, isDefaultGateway=False)
    assert said.error == (999, "cannot convert: no valid IP addresses")
    nothing_left(ground)


def test_bridge_of_others_is_not_taken_back(ground: Ground) -> None:
    ground.host.ip("link", "add", "cni0", "type", "bridge")
    assert ground("ADD", ipam={"type": "nope"}).code == 1
    assert ground.links() == {"cni0"}


def test_pod_that_is_gone(ground: Ground) -> None:
    said = ground.call("ADD", ground.conf, netns="nobody-is-here")
    why = 'failed to Statfs "/run/netns/nobody-is-here": no such file or directory'
    assert said.error == (999, f'failed to open netns "/run/netns/nobody-is-here": {why}')
    nothing_left(ground)


def test_many_at_once(ground: Ground) -> None:
    """All of them find no bridge."""
    names = [f"p{number}" for number in range(6)]
    for name in names:
        ground.pod(name)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda name: ground("ADD", name, ipMasq=True, macspoofchk=True), names))
    assert [each.code for each in found] == [0] * 6, found
    assert addresses(ground.host, "cni0") == ["10.1.2.1/24"]
    assert len([each for each in ground.nft(*MASQUERADE) if each["chain"] == "masq_checks"]) == 6
    assert len([each for each in ground.nft(*MASQUERADE) if each["chain"] == "postrouting"]) == 3
    assert len(ground.held) == 6
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda name: ground("DEL", name, ipMasq=True, macspoofchk=True), names))
    assert [each.code for each in found] == [0] * 6, found
    ground.host.ip("link", "delete", "cni0")
    nothing_left(ground)


def test_bridge_that_goes_meanwhile(ns: Ns) -> None:
    """Another pod's ADD takes back the bridge that it had made, between our finding it and joining it."""
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "a", "CNI_NETNS": "/n", "CNI_IFNAME": "eth0", "CNI_PATH": "/p"}
    want = bridge.settings(read_call(env, b'{"cniVersion": "1.0.0", "name": "net1", "type": "bridge"}'))
    ns.ip("link", "add", "port", "type", "veth", "peer", "name", "other")
    with entered(ns.path), Netlink() as host, Undo() as undo:
        found = bridge.ensure_bridge(host, want, undo)
        ns.ip("link", "delete", "cni0")
        joined = bridge.join(host, want, links.get_link(host, "port"), found, undo)
        assert joined.index != found.index
    assert ns.json("link", "show", "dev", "port")[0]["master"] == "cni0"


# --- DEL, GC, CHECK, STATUS -----------------------------------------------------------------------------------------


def masqueraded(ground: Ground) -> list[tuple[str, str, str]]:
    """(own address, subnet that is left alone, comment) of the rules."""
    found = []
    for rule in ground.nft(*MASQUERADE):
        if rule["chain"] == "masq_checks":
            own, subnet, verdict = rule["expr"]
            prefix = subnet["match"]["right"]["prefix"]
            assert (verdict, subnet["match"]["op"]) == ({"masquerade": None}, "!=")
            found.append((own["match"]["right"], f"{prefix['addr']}/{prefix['len']}", rule["comment"]))
    return found


def test_masquerade(ground: Ground) -> None:
    conf = {**ground.conf, "ipMasq": True, "ipMasqBackend": "nftables", "ipam": ground.ipam(FOUR, SIX)}
    comment = f"{NET1}-{ETH0_CTR1}, net: net1, if: eth0, id: ctr1"
    ground.call.add(conf, netns=ground.pod("a").path)
    wanted = [("10.1.2.2", FOUR, comment), ("fd00:1:2::2", SIX, comment)]
    assert masqueraded(ground) == wanted
    frame = [each["expr"] for each in ground.nft(*MASQUERADE) if each["chain"] == "postrouting"]
    assert [each[-1] for each in frame] == [{"return": None}, {"return": None}, {"goto": {"target": "masq_checks"}}]
    ground.add("b", ipMasq=True, ipMasqBackend="iptables")
    assert [each[0] for each in masqueraded(ground)] == ["10.1.2.2", "fd00:1:2::2", "10.1.2.3"]
    assert len([each for each in ground.nft(*MASQUERADE) if each["chain"] == "postrouting"]) == 3
    assert ground.call("DEL", conf, netns=ground.pod("a").path).code == 0
    assert [each[0] for each in masqueraded(ground)] == ["10.1.2.3"]


@pytest.mark.parametrize("how", ["gone", "not said", "unnamed"])
def test_del_without_the_namespace(ground: Ground, how: str) -> None:
    """Gone: with all in it. Not said: it is there. Unnamed: it lives on, by a process in it."""
    conf = {**ground.conf, "ipMasq": True, "macspoofchk": True}
    pod = ground.pod("a")
    ground.add(ipMasq=True, macspoofchk=True)
    sleeper = None
    if how == "unnamed":
        sleeper = subprocess.Popen(["ip", "netns", "exec", pod.name, "sleep", "60"])
        while len(pod.run("ip", "netns", "pids", pod.name).split()) < 1:
            pass
    try:
        if how != "not said":
            subprocess.run(["ip", "netns", "delete", pod.name], check=True)
        said = ground.call("DEL", conf, netns="" if how == "not said" else pod.path, container="a")
        assert (said.code, said.stdout, said.stderr) == (0, "", "")
    finally:
        if sleeper is not None:
            sleeper.kill()
            sleeper.wait()
    assert ground.held == set()
    assert masqueraded(ground) == []
    assert ground.chains("bridge", "nat") == {"PREROUTING"}
    if how != "gone":
        assert ground.links() == {"cni0"}


def test_del_goes_through_all_steps(ground: Ground, tmp_path: Path) -> None:
    """One that fails is told, and the others are done. A configuration that is wrong otherwise is good enough."""
    ground.add(ipMasq=True)
    file = tmp_path / "no-namespace"
    file.touch()
    conf = {**ground.conf, "ipMasq": True, "vlan": 5000}
    code, msg = ground.call("DEL", conf, netns=str(file), container="a").error
    assert (code, msg.startswith(f'unknown FS magic on "{file}": ')) == (999, True)
    assert (ground.held, masqueraded(ground)) == (set(), [])


def test_gc(ground: Ground) -> None:
    """What is of this network and not listed goes; another network's on the same bridge stays."""
    members = {"cniVersion": "1.1.0", "ipMasq": True, "macspoofchk": True}
    for name in ("a", "b", "c"):
        ground.add(name, **members)
    other = {**members, "name": "net2", "ipam": ground.ipam(FOUR, rangeStart="10.1.2.100")}
    other["ipam"]["ranges"] = [[{"subnet": FOUR, "rangeStart": "10.1.2.100"}]]
    ground.add("z", **other)
    subprocess.run(["ip", "netns", "delete", ground.pod("c").name], check=True)
    stays = {each["ifname"] for each in ground.host.json("link", "show") if each.get("ifalias", "")[4:] in STAYING}
    listed = [{"containerID": "a", "ifname": "eth0"}]
    conf = {**ground.conf, **members, "cni.dev/valid-attachments": listed, "cni.dev/attachments": listed}
    said = ground.call("GC", conf)
    assert (said.code, said.stdout) == (0, "")
    assert ground.held == {"10.1.2.2"}
    assert [each[0] for each in masqueraded(ground)] == ["10.1.2.2", "10.1.2.100"]
    assert ground.links("veth") == stays
    checked = {each["comment"] for each in ground.nft("bridge", "nat") if each["chain"] == "PREROUTING"}
    assert checked == {"macspoofchk-a-eth0", "macspoofchk-z-eth0"}
    ground.add("b", **members)
    del conf["cni.dev/valid-attachments"], conf["cni.dev/attachments"]
    assert ground.call("GC", conf).error[0] == 7
    assert len(ground.held) == 2


STAYING = ("net1 a eth0", "net2 z eth0")


def test_status(ground: Ground) -> None:
    ok = {"cniVersion": "1.1.0", "ipMasq": True}
    ground.done("STATUS", **ok)
    ground.add("b", cniVersion="1.1.0", ipam=ground.ipam("10.1.2.0/30"))
    said = ground("STATUS", cniVersion="1.1.0", ipam=ground.ipam("10.1.2.0/30"))
    assert said.error[0] == 50
    said = ground("STATUS", cniVersion="1.1.0", bridge="lo")
    assert said.error == (50, '"lo" already exists but is not a bridge')
    assert ground("STATUS", cniVersion="1.1.0", vlan=5000).code == 1


FAULTS: dict[str, tuple[str, str]] = {
    "address": ("ip -n {pod} addr del {ip} dev eth0", "Failed to match addr {ip} on interface eth0"),
    "route": (
        "ip -n {pod} route del default",
        "Expected Route {{Dst:0.0.0.0/0 GW:10.1.2.1}} not found in routing table",
    ),
    "interface": ("ip -n {pod} link del eth0", "Interface name eth0 not found"),
    "down": ("ip -n {pod} link set eth0 down", "Interface eth0 is down"),
    "mac": (
        "ip -n {pod} link set eth0 address c2:00:00:00:00:01",
        "Interface eth0 Mac {mac} doesn't match container Mac: c2:00:00:00:00:01",
    ),
    "port": ("ip -n {host} link set {port} nomaster", "Interface {port} is not a port of bridge cni0"),
    "bridge": ("ip -n {host} link del cni0", "Interface name cni0 not found"),
    "mac of the bridge": (
        "ip -n {host} link set cni0 address c2:00:00:00:00:02",
        "Bridge interface cni0 Mac doesn't match: {bridge_mac}",
    ),
    "promisc": (
        "ip -n {host} link set cni0 promisc on",
        "Bridge interface cni0 configured Promisc Mode false doesn't match current state: true",
    ),
    "gateway": (
        "ip -n {host} addr del 10.1.2.1/24 dev cni0",
        "Bridge interface cni0 does not have the address of the gateway 10.1.2.1",
    ),
    "hairpin": ("ip -n {host} link set {port} type bridge_slave hairpin off", "Interface {port} is not hairpin"),
    "isolation": ("ip -n {host} link set {port} type bridge_slave isolated off", "Interface {port} is not isolated"),
    "masquerade": (
        "ip netns exec {host} nft delete table inet cni_plugins_masquerade",
        "{ip} is not masqueraded: table inet cni_plugins_masquerade has no rule for it",
    ),
    "spoof": (
        "ip netns exec {host} nft flush chain bridge nat PREROUTING",
        "Interface {port} is not kept from other MAC addresses than {mac}",
    ),
}


def test_check(ground: Ground) -> None:
    members = {"ipMasq": True, "macspoofchk": True, "hairpinMode": True, "portIsolation": True}
    for fault, (command, text) in FAULTS.items():
        result = ground.add(**members)
        ground.done("CHECK", prevResult=result, **members)
        bridge, port, inside = result["interfaces"]
        words = {"host": ground.host.name, "pod": ground.pod("a").name, "port": port["name"]}
        words["ip"] = result["ips"][0]["address"]
        subprocess.run(command.format(**words).split(), check=True)
        said = ground("CHECK", prevResult=result, **members)
        wanted = text.format(**words, mac=inside["mac"], bridge_mac=bridge["mac"])
        assert said.error == (999, wanted), fault
        ground.done("DEL", **members)
        subprocess.run(["ip", "-n", ground.host.name, "link", "del", "cni0"], check=False, stderr=subprocess.DEVNULL)
        for name in ground.held:
            raise AssertionError(f"{name} is held after {fault}")


def test_check_of_a_held_address(ground: Ground) -> None:
    result = ground.add()
    assert ground("CHECK").error == (999, "Required prevResult missing")
    elsewhere = json.loads(json.dumps(result).replace(ground.pod("a").path, "/run/netns/other"))
    text = f"Sandbox in prevResult /run/netns/other doesn't match configured netns: {ground.pod('a').path}"
    assert ground("CHECK", prevResult=elsewhere).error == (999, text)
    (ground.data / "net1" / "10.1.2.2").unlink()
    assert ground("CHECK", prevResult=result).error[1].startswith("host-local: Failed to find address added by")


# --- traffic --------------------------------------------------------------------------------------------------------


def test_pods_talk(ground: Ground) -> None:
    far = outside(ground)
    for name in ("a", "b"):
        ground.add(name, ipMasq=True, ipam=ground.ipam(FOUR, SIX))
    a = ground.pod("a")
    assert reaches(a, "10.1.2.3")
    assert reaches(a, "fd00:1:2::3")
    assert reaches(a, "192.0.2.9"), "the far side knows no way back but to the host"
    assert reaches(a, "2001:db8::9")
    far.ip("route", "add", "10.1.2.0/24", "via", "192.0.2.1")
    assert reaches(far, "10.1.2.2"), "nobody's address is changed on the way in"
    ground.add("c", ipam=ground.ipam(FOUR, SIX))
    assert reaches(ground.pod("c"), "192.0.2.9"), "by that route"
    far.ip("route", "del", "10.1.2.0/24")
    assert not reaches(ground.pod("c"), "192.0.2.9"), "without ipMasq"


def test_isolation(ground: Ground) -> None:
    for name, isolated in (("a", True), ("b", True), ("c", False)):
        ground.add(name, portIsolation=isolated)
    a = ground.pod("a")
    assert reaches(a, "10.1.2.1")
    assert reaches(a, "10.1.2.4"), "one that is not isolated"
    assert not reaches(a, "10.1.2.3")


def test_mac_check(ground: Ground) -> None:
    """A pod that takes another MAC address is not heard, and is again when it takes back its own."""
    ground.add("a", macspoofchk=True)
    ground.add("b")
    a = ground.pod("a")
    own = a.json("link", "show", "dev", "eth0")[0]["address"]
    assert reaches(a, "10.1.2.3")
    a.ip("link", "set", "eth0", "address", "c2:00:00:00:00:01")
    assert not reaches(a, "10.1.2.3")
    assert not reaches(a, "10.1.2.1")
    a.ip("link", "set", "eth0", "address", own)
    assert reaches(a, "10.1.2.3")
    ground.done("DEL", macspoofchk=True)
    assert ground.chains("bridge", "nat") == {"PREROUTING"}
    assert ground.nft("bridge", "nat") == []


REFLECTED = """
import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
s.bind(("eth0", 0x88B5))
s.settimeout(0.5)
s.send(b"\\xff" * 6 + s.getsockname()[4] + b"\\x88\\xb5" + b"are you me?".ljust(50))
try:
    print(s.recvfrom(100)[1][2])
except TimeoutError:
    print("nothing")
"""
"""Sends to everybody and says what kind of packet comes back: 1 is PACKET_BROADCAST (linux/if_packet.h)."""


@pytest.mark.parametrize(("hairpin", "comes"), [(True, "1"), (False, "nothing")])
def test_hairpin(ground: Ground, hairpin: bool, comes: str) -> None:
    ground.add(hairpinMode=hairpin)
    assert ground.pod("a").run("python3", "-c", REFLECTED).strip() == comes


# --- and Go's -------------------------------------------------------------------------------------------------------


def shape(ground: Ground, result: dict[str, Any]) -> dict[str, Any]:
    """What an attachment is, without what is chance."""
    pod = ground.pod("a")
    result.get("dns") or result.pop("dns", None)  # Go's of old write an empty one in every version
    text = json.dumps(result)
    for number, each in enumerate(result["interfaces"]):
        text = text.replace(each["mac"], f"mac{number}").replace(each["name"], f"name{number}")
    (port,) = ground.host.json("link", "show", "type", "veth")
    return {
        "result": json.loads(text.replace(pod.path, "netns")),
        "addresses": [addresses(ground.host, "cni0"), addresses(pod, "eth0")],
        "routes": [routes(pod), routes(pod, "-6")],
        "forwarding": ground.host.run("sysctl", "-n", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"),
        "port": [port["linkinfo"]["info_slave_data"][key] for key in ("hairpin", "state", "learning")],
        "mtu": [port["mtu"], pod.json("link", "show", "dev", "eth0")[0]["mtu"]],
        "dad": pod.run("sysctl", "-n", "net.ipv6.conf.eth0.accept_dad", "net.ipv4.conf.eth0.arp_notify"),
    }


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"isDefaultGateway": False},
        {"hairpinMode": True, "mtu": 1400, "dns": {"nameservers": ["10.1.2.53"]}},
        {"cniVersion": "0.3.1", "isDefaultGateway": False, "isGateway": True},
    ],
)
def test_same_as_go(ground: Ground, make_ns: Callable[..., Ns], tmp_path: Path, members: dict[str, Any]) -> None:
    if not (GO / "bridge").exists():
        pytest.skip("the Go plugins are not installed: apt-get install containernetworking-plugins")
    host = make_ns("gohost")
    go = Ground(Caller(GO, host.name), host, tmp_path / "go", dict(ground.conf), make_ns)
    found = []
    for each in (ground, go):
        ipam = each.ipam(FOUR, SIX, routes=[{"dst": "10.9.0.0/16"}, {"dst": "fd09::/16", "gw": "fd00:1:2::9"}])
        found.append(shape(each, each.add(ipam=ipam, **members)))
    assert found[0] == found[1]
