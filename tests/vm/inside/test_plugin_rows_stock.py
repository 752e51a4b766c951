"""Situations 15, 53, 79 and 103 of the plugins, where they take a kernel with ipvlan, vlan, dummy and vrf."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import Caller, put
from namespaces import Ns

pytestmark = pytest.mark.root

STATIC = {"type": "static", "addresses": [{"address": "10.9.0.5/24", "gateway": "10.9.0.1"}]}
MASTER = "02:00:00:00:00:01"


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("bin"))


@pytest.fixture
def host(make_ns: Callable[..., Ns]) -> Ns:
    made = make_ns("host")
    made.ip("link", "add", "eth0", "address", MASTER, "type", "veth", "peer", "name", "wire0")
    for name in ("eth0", "wire0"):
        made.ip("link", "set", name, "up")
    return made


@pytest.fixture
def call(plugins: Path, host: Ns) -> Caller:
    return Caller(plugins, host.name)


def conf(type: str, **more: Any) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "net1", "type": type, **more}


def shouted(doc: Any) -> Any:
    """With the names of all fields in capitals."""
    if isinstance(doc, list):
        return [shouted(each) for each in doc]
    return {key.upper(): shouted(value) for key, value in doc.items()} if isinstance(doc, dict) else doc


def link(ns: Ns, name: str) -> dict[str, Any]:
    (found,) = ns.json("link", "show", name)
    return found


def test_15_keys_in_any_case(call: Caller, ns: Ns) -> None:
    for name, fields, seen in (
        ("ipvlan", {"master": "eth0", "mode": "l3", "mtu": 1400}, {"mode": "l3"}),
        ("vlan", {"master": "eth0", "vlanId": 7, "mtu": 1400}, {"id": 7}),
        ("dummy", {}, {}),
    ):
        wanted = shouted(conf(name, ipam=STATIC, **fields))
        result = call.add(wanted, netns=ns.name, type=name)
        assert result["ips"] == [{"interface": 0, "address": "10.9.0.5/24", "gateway": "10.9.0.1"}]
        eth0 = link(ns, "eth0")
        assert eth0["linkinfo"]["info_kind"] == name
        assert eth0["linkinfo"].get("info_data", {}).items() >= seen.items()
        assert eth0["mtu"] == fields.get("mtu", 1500)
        assert call("DEL", wanted, netns=ns.name, type=name).code == 0
    ns.ip("link", "add", "eth0", "type", "dummy")
    result = {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": ns.path}], "ips": []}
    wanted = shouted(conf("vrf", vrfname="blue", table=10, prevResult=result))
    call.add(wanted, netns=ns.name, type="vrf")
    assert link(ns, "eth0")["master"] == "blue"
    assert link(ns, "blue")["linkinfo"]["info_data"] == {"table": 10}


def test_53_another_mode_than_that_of_the_configuration(call: Caller, host: Ns, ns: Ns) -> None:
    wanted = conf("ipvlan", master="eth0", mode="l2", ipam=STATIC)
    result = call.add(wanted, netns=ns.name)
    assert result["interfaces"] == [{"name": "eth0", "mac": MASTER, "sandbox": ns.path}]
    said = call("CHECK", {**wanted, "prevResult": result, "mode": "l3"}, netns=ns.name)
    assert said.error == (999, "Container IPVlan mode l2 does not match expected value: l3")


def test_79_a_dummy_goes_and_comes_back(call: Caller, host: Ns, ns: Ns) -> None:
    host.ip("link", "add", "dummy0", "type", "dummy")
    before = link(host, "dummy0")
    wanted = conf("host-device", device="dummy0", ipam=STATIC)
    call.add(wanted, netns=ns.name)
    assert link(ns, "eth0")["linkinfo"]["info_kind"] == "dummy"
    assert "dummy0" not in {each["ifname"] for each in host.json("link", "show")}
    for _ in range(2):
        assert call("DEL", wanted, netns=ns.name).code == 0
    after = link(host, "dummy0")
    assert after["address"] == before["address"]
    assert ("UP" in after["flags"], "ifalias" in after) == (False, False)
    assert [each["ifname"] for each in ns.json("link", "show")] == ["lo"]


def test_103_flannel_with_ipvlan_l3(call: Caller, host: Ns, make_ns: Callable[..., Ns], tmp_path: Path) -> None:
    env = tmp_path / "subnet.env"
    env.write_text(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )
    delegate = {"type": "ipvlan", "master": "eth0", "mode": "l3", "ipMasq": False}
    files = {"subnetFile": str(env), "dataDir": str(tmp_path / "state"), "ipam": {"dataDir": str(tmp_path / "ipam")}}
    wanted = conf("flannel", delegate=delegate, **files)
    pods = {name: make_ns(name) for name in ("a", "b")}
    for number, (name, pod) in enumerate(pods.items(), 2):
        result = call.add(wanted, netns=pod.name, container=name)
        assert [each["address"] for each in result["ips"]] == [f"10.244.1.{number}/24"]
        eth0 = link(pod, "eth0")
        assert (eth0["linkinfo"]["info_kind"], eth0["linkinfo"]["info_data"]["mode"], eth0["mtu"]) == (
            "ipvlan",
            "l3",
            1450,
        )
    assert " 0% packet loss" in pods["a"].run("ping", "-n", "-c1", "-W2", "10.244.1.3")
    for name, pod in pods.items():
        assert call("DEL", wanted, netns=pod.name, container=name).code == 0
        assert "eth0" not in {each["ifname"] for each in pod.json("link", "show")}
    assert list((tmp_path / "state").iterdir()) == []
