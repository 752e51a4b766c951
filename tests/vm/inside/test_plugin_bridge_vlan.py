"""VLANs of the plugin `bridge` (situations 65 and 66 of the specification), which many development kernels lack."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attachments import Ground, addresses, reaches
from cni_plugins import Caller, put
from namespaces import Ns

pytestmark = pytest.mark.root

FOUR = "10.1.2.0/24"


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("bin"))


@pytest.fixture
def ground(plugins: Path, make_ns: Callable[..., Ns], tmp_path: Path) -> Ground:
    host = make_ns("host")
    found = Ground(Caller(plugins, host.name), host, tmp_path / "ipam", {}, make_ns)
    found.conf.update({"cniVersion": "1.0.0", "name": "net1", "type": "bridge", "ipam": found.ipam(FOUR)})
    return found


def vlans(ground: Ground, port: str) -> dict[int, set[str]]:
    """Of a port, with their flags, as `bridge -j vlan show` has them."""
    listed = json.loads(ground.host.run("bridge", "-j", "vlan", "show", "dev", port) or "[]")
    found: dict[int, set[str]] = {}
    for each in (vlan for item in listed for vlan in item["vlans"]):
        for vid in range(each["vlan"], each.get("vlanEnd", each["vlan"]) + 1):
            found[vid] = set(each.get("flags", ()))
    return found


OWN = {"PVID", "Egress Untagged"}


def test_gateway_in_a_vlan(ground: Ground) -> None:
    """Its address is on a leg of the bridge; a second pod uses the same leg; what fails takes a new leg back."""
    members: dict[str, Any] = {"vlan": 100, "isDefaultGateway": True}
    bad = ground.ipam(FOUR, routes=[{"dst": "10.9.9.9/8"}])
    assert ground("ADD", ipam=bad, **members).code == 1
    masq = ["add table inet cni_plugins_masquerade"]
    masq += ["add chain inet cni_plugins_masquerade postrouting { type filter hook output priority 0; }"]
    ground.host.run("nft", "; ".join(masq))
    assert ground("ADD", ipMasq=True, **members).code == 1
    assert (ground.links(), ground.held) == (set(), set())
    result = ground.add(**members)
    (bridge,) = ground.host.json("link", "show", "dev", "cni0")
    assert bridge["linkinfo"]["info_data"]["vlan_filtering"] == 1
    (leg,) = ground.host.json("link", "show", "dev", "cni0.100")
    assert [each["name"] for each in result["interfaces"]][0::3] == ["cni0", "cni0.100"]
    assert result["interfaces"][3] == {"name": "cni0.100", "mac": leg["address"]}
    assert vlans(ground, result["interfaces"][1]["name"]) == {100: OWN}
    assert addresses(ground.host, "cni0.100") == ["10.1.2.1/24"]
    assert addresses(ground.host, "cni0") == []
    ground.add("b", **members)
    assert len(ground.links("veth")) == 4
    assert reaches(ground.pod("a"), "10.1.2.1", "-W5")
    assert reaches(ground.pod("a"), "10.1.2.4", "-W5"), "10.1.2.2 was the failed ones'"
    ground.done("CHECK", prevResult=result, **members)
    ground.host.run("bridge", "vlan", "del", "vid", "100", "dev", result["interfaces"][1]["name"])
    text = f"Interface {result['interfaces'][1]['name']} does not carry VLAN 100 as its own"
    assert ground("CHECK", prevResult=result, **members).error == (999, text)
    ground.done("DEL", **members)
    ground.done("DEL", "b", **members)
    assert "cni0.100" in ground.links()


def test_pods_in_two_vlans(ground: Ground) -> None:
    for name, vlan in (("a", 100), ("b", 100), ("c", 200)):
        ground.add(name, vlan=vlan)
    assert reaches(ground.pod("a"), "10.1.2.3", "-W5")
    assert not reaches(ground.pod("a"), "10.1.2.4")


def test_trunk(ground: Ground) -> None:
    """Frames with tags of the pod's own, from and to a pod that has that VLAN untagged."""
    trunk = [{"minID": 200, "maxID": 202}, {"id": 300}]
    result = ground.add(vlanTrunk=trunk)
    tagged: dict[int, set[str]] = {200: set(), 201: set(), 202: set(), 300: set()}
    port = result["interfaces"][1]["name"]
    assert vlans(ground, port) == {1: OWN, **tagged}
    ground.done("CHECK", prevResult=result, vlanTrunk=trunk)
    second = ground.add("b", vlanTrunk=trunk, vlan=100)
    assert vlans(ground, second["interfaces"][1]["name"]) == {100: OWN, **tagged}
    third = ground.add("c", vlanTrunk=[{"id": 1}, {"id": 5}])
    assert vlans(ground, third["interfaces"][1]["name"]) == {1: OWN, 5: set()}
    kept = ground.add("d", vlan=200, preserveDefaultVlan=True)
    assert vlans(ground, kept["interfaces"][1]["name"]) == {1: {"Egress Untagged"}, 200: OWN}
    a = ground.pod("a")
    a.ip("link", "add", "link", "eth0", "name", "eth0.200", "type", "vlan", "id", "200")
    for ns, dev, ip in ((a, "eth0.200", "10.77.0.1/24"), (ground.pod("d"), "eth0", "10.77.0.2/24")):
        ns.ip("address", "add", ip, "dev", dev)
        ns.ip("link", "set", dev, "up")
    assert reaches(a, "10.77.0.2", "-W5")
    ground.host.run("bridge", "vlan", "del", "vid", "300", "dev", port)
    text = f"Interface {port} does not carry VLAN 300 with tags"
    assert ground("CHECK", prevResult=result, vlanTrunk=trunk).error == (999, text)


def test_bridge_that_is_there_and_does_not_filter(ground: Ground) -> None:
    """It is left as it is: it may have other ports. What that means is said."""
    ground.host.ip("link", "add", "cni0", "type", "bridge")
    said = ground("ADD", vlan=100)
    assert said.code == 0
    assert said.stderr == "VLANs of cni0 do not count: ip link set cni0 type bridge vlan_filtering 1\n"
    assert ground.host.json("link", "show", "dev", "cni0")[0]["linkinfo"]["info_data"]["vlan_filtering"] == 0
