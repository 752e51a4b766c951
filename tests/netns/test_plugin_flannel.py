"""The plugin `flannel` on the real kernel (situations 97 to 103 of the specification): what its delegate is told, what
is kept of an attachment, and who takes it away."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from attachments import Ground, addresses, reaches, routes
from cni_plugins import GO, Caller, put
from namespaces import Ns

pytestmark = pytest.mark.root

ENV = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
DUAL = f"{ENV}FLANNEL_IPV6_NETWORK=fd00:10:244::/48\nFLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\n"
MANIFEST = {"hairpinMode": True, "isDefaultGateway": True}
"""`delegate` as kube-flannel has it."""
MASQUERADE = ("inet", "cni_plugins_masquerade")
RECORDER = """#!/bin/sh
# A delegate that notes what it is asked, and does what the file `says` says.
cat > "$RECORDS/$CNI_COMMAND"
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME" >> "$RECORDS/calls"
. "$RECORDS/says"
"""
RESULT = {"cniVersion": "1.1.0", "ips": [{"address": "10.244.1.2/24", "gateway": "10.244.1.1"}], "mine": 7}


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = put(tmp_path_factory.mktemp("bin"))
    (made / "recorder").write_text(RECORDER)
    (made / "recorder").chmod(0o755)
    return made


class Node(Ground):
    """With a subnet.env, and a directory for what is kept."""

    @property
    def env(self) -> Path:
        return self.data.parent / "subnet.env"

    @property
    def state(self) -> Path:
        return self.data.parent / "state"

    @property
    def records(self) -> Path:
        return self.data.parent / "records"

    def kept(self, name: str = "a-eth0") -> Any:
        return json.loads((self.state / name).read_text())

    @property
    def files(self) -> set[str]:
        return {each.name for each in self.state.iterdir()} if self.state.exists() else set()

    def told(self, command: str = "ADD") -> Any:
        """What the recorder was told last."""
        return json.loads((self.records / command).read_text())

    def asked(self) -> list[str]:
        """The recorder's calls since the last time."""
        found = (self.records / "calls").read_text().splitlines()
        (self.records / "calls").write_text("")
        return found

    def says(self, script: str) -> None:
        (self.records / "says").write_text(script)


@pytest.fixture
def node(plugins: Path, make_ns: Callable[..., Ns], tmp_path: Path) -> Node:
    host = make_ns("host")
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "calls").touch()
    call = Caller(plugins, host.name, {"RECORDS": str(tmp_path / "records")})
    found = Node(call, host, tmp_path / "ipam", {}, make_ns)
    found.env.write_text(ENV)
    found.says(f"[ $CNI_COMMAND != ADD ] || echo '{json.dumps(RESULT)}'")
    found.conf.update(
        {
            "cniVersion": "1.1.0",
            "name": "cbr0",
            "type": "flannel",
            "subnetFile": str(found.env),
            "dataDir": str(found.state),
            "delegate": MANIFEST,
            "ipam": {"dataDir": str(found.data)},
        }
    )
    return found


def recorded(**delegate: Any) -> dict[str, Any]:
    return {"delegate": {"type": "recorder", **delegate}}


# --- pods -----------------------------------------------------------------------------------------------------------


def test_97_pod_of_a_kube_flannel_node(node: Node) -> None:
    result = node.add(cniVersion="0.3.1")
    pod, host = node.pod("a"), node.host
    assert result["cniVersion"] == "0.3.1"
    assert [each["address"] for each in result["ips"]] == ["10.244.1.2/24"]
    assert addresses(pod, "eth0") == ["10.244.1.2/24"]
    assert pod.json("link", "show", "dev", "eth0")[0]["mtu"] == 1450
    assert routes(pod) == [
        "10.244.0.0/16 via 10.244.1.1 dev eth0",
        "10.244.1.0/24 dev eth0 scope link src 10.244.1.2",
        "default via 10.244.1.1 dev eth0",
    ]
    assert addresses(host, "cni0") == ["10.244.1.1/24"]
    assert node.nft(*MASQUERADE) == []
    assert node.kept() == {
        **MANIFEST,
        "cniVersion": "0.3.1",
        "ipMasq": False,
        "ipam": {
            "dataDir": str(node.data),
            "ranges": [[{"subnet": "10.244.1.0/24"}]],
            "routes": [{"dst": "10.244.0.0/16"}],
            "type": "host-local",
        },
        "isGateway": True,
        "mtu": 1450,
        "name": "cbr0",
        "type": "bridge",
    }
    assert (node.state.stat().st_mode & 0o777, (node.state / "a-eth0").stat().st_mode & 0o777) == (0o700, 0o600)
    node.done("DEL", cniVersion="0.3.1", prevResult=result)
    assert (node.files, node.held) == (set(), set())
    assert node.links() == {"cni0"}


def test_both_families_and_two_pods(node: Node) -> None:
    node.env.write_text(DUAL)
    result = node.add()
    node.add("b")
    assert [each["address"] for each in result["ips"]] == ["10.244.1.2/24", "fd00:10:244:1::2/64"]
    assert "default via fd00:10:244:1::1 dev eth0" in routes(node.pod("a"), "-6")
    assert "fd00:10:244::/48 via fd00:10:244:1::1 dev eth0" in routes(node.pod("a"), "-6")
    for ip in ("10.244.1.3", "fd00:10:244:1::3"):
        assert reaches(node.pod("a"), ip)
    node.done("CHECK", prevResult=result)
    for name in "ab":
        node.done("DEL", name)
    assert (node.files, node.held) == (set(), set())


def test_102_masquerading_is_the_plugins_when_it_is_not_flannelds(node: Node) -> None:
    node.env.write_text(ENV.replace("true", "false"))
    node.add()
    assert node.kept()["ipMasq"] is True
    rules = [each["expr"][0]["match"]["right"] for each in node.nft(*MASQUERADE) if each["chain"] == "masq_checks"]
    assert rules == ["10.244.1.2"]
    node.done("DEL")
    assert not [each for each in node.nft(*MASQUERADE) if each["chain"] == "masq_checks"]


def test_103_another_delegate(node: Node) -> None:
    """As ipvlan, which this kernel may not have; a child of a link with an address of the node's subnet."""
    node.host.ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
    node.host.ip("link", "set", "up0", "up")
    node.add(delegate={"type": "macvlan", "master": "up0", "mode": "bridge"})
    assert addresses(node.pod("a"), "eth0") == ["10.244.1.2/24"]
    (link,) = node.pod("a").json("-d", "link", "show", "dev", "eth0")
    assert (link["linkinfo"]["info_kind"], link["mtu"]) == ("macvlan", 1450)
    assert "isGateway" not in node.kept()
    node.done("DEL")
    assert node.held == set()


def test_with_the_reference_plugins(node: Node, plugins: Path) -> None:
    """Bridge and host-local are those that the CNI path has first."""
    if not (GO / "bridge").exists():
        pytest.skip("needs Debian's containernetworking-plugins")
    path = {"CNI_PATH": f"{GO}:{plugins}"}
    conf = {**node.conf, "cniVersion": "1.0.0"}
    how: dict[str, str] = {"netns": node.pod("a").path, "container": "a", **path}
    result = node.call.add(conf, **how)
    assert addresses(node.pod("a"), "eth0") == ["10.244.1.2/24"]
    assert node.call("DEL", {**conf, "prevResult": result}, **how).code == 0
    assert (node.files, node.held) == (set(), set())


# --- what the delegate is told --------------------------------------------------------------------------------------


def test_all_of_it_in_the_order_of_its_keys(node: Node) -> None:
    node.env.write_text(DUAL.replace("10.244.0.0/16", "10.244.0.0/16,10.245.1.1/16,10.244.0.0/16"))
    assert node.add(**recorded(z={"b": 1, "a": [{"d": "<", "c": 2}]}), runtimeConfig={"mac": "x"}) == RESULT
    ipam = (
        f'{{"dataDir":"{node.data}","ranges":[[{{"subnet":"10.244.1.0/24"}}],[{{"subnet":"fd00:10:244:1::/64"}}]],'
        '"routes":[{"dst":"10.244.0.0/16"},{"dst":"10.245.0.0/16"},{"dst":"fd00:10:244::/48"}],"type":"host-local"}'
    )
    text = (
        f'{{"cniVersion":"1.1.0","ipMasq":false,"ipam":{ipam},"mtu":1450,"name":"cbr0","runtimeConfig":{{"mac":"x"}},'
        '"type":"recorder","z":{"a":[{"c":2,"d":"\\u003c"}],"b":1}}'
    )
    assert (node.records / "ADD").read_text() == (node.state / "a-eth0").read_text() == text


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"delegate": {"mtu": 9000, "ipMasq": True}}, {"mtu": 9000, "ipMasq": True}),
        ({"delegate": {"MTU": 9000}}, {"MTU": 9000, "mtu": None}),
        ({"delegate": {"isGateway": False}}, {"isGateway": False}),
        ({"ipam": {"type": "other", "range": 1}}, {"type": "other", "range": 1}),
        ({"ipam": {"routes": [{"dst": "10.9.0.0/16", "gw": "10.244.1.9"}], "Ranges": 7}}, {
            "Ranges": None,
            "ranges": [[{"subnet": "10.244.1.0/24"}]],
            "routes": [{"dst": "10.9.0.0/16", "gw": "10.244.1.9"}, {"dst": "10.244.0.0/16"}],
        }),
    ],
)  # fmt: skip
def test_what_is_given_counts(node: Node, given: dict[str, Any], told: dict[str, Any]) -> None:
    delegate = {"type": "recorder", **given.get("delegate", {})}
    node.add(delegate=delegate, ipam=given.get("ipam", {}))
    found = node.told()["ipam"] if "ipam" in given else node.told()
    assert {key: found.get(key) for key in told} == told


def test_bridges_are_gateways_and_others_are_not_asked(node: Node) -> None:
    node.add(delegate={})
    assert (node.kept()["type"], node.kept()["isGateway"]) == ("bridge", True)
    node.done("DEL", delegate={})
    node.add(delegate={"isGateway": False})
    assert node.kept()["isGateway"] is False
    node.done("DEL")


def test_keys_in_any_case(node: Node) -> None:
    conf = {key.upper(): value for key, value in node.conf.items()}
    how: dict[str, str] = {"netns": node.pod("a").path, "container": "a", "type": "flannel"}
    node.call.add(conf, **how)
    assert node.files == {"a-eth0"}
    assert node.call("DEL", conf, **how).code == 0
    assert node.files == set()


# --- what is refused ------------------------------------------------------------------------------------------------


def wrapped(why: str) -> tuple[int, str]:
    return 999, f"failed to load flannel 'subnet.env' file: {why}. Check the flannel pod log for this node."


def test_98_no_subnet_env(node: Node) -> None:
    node.env.unlink()
    assert node("ADD").error == wrapped(f"open {node.env}: no such file or directory")
    assert node.files == set()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "",
            "FILE is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, "
            "FLANNEL_IPMASQ",
        ),
        (ENV.replace("FLANNEL_MTU", "MTU"), "FILE is missing FLANNEL_MTU"),
        (ENV.replace("1450", "much"), 'strconv.ParseUint: parsing "much": invalid syntax'),
        (ENV.replace("10.244.1.1/24", "10.244.1.1"), "invalid CIDR address: 10.244.1.1"),
    ],
)
def test_99_subnet_env_that_is_not_whole(node: Node, text: str, why: str) -> None:
    node.env.write_text(text)
    assert node("ADD").error == wrapped(why.replace("FILE", str(node.env)))
    assert (node.files, node.held, node.links()) == (set(), set(), set())


@pytest.mark.parametrize(
    ("delegate", "why"),
    [
        ({"ipam": {}}, "'delegate' dictionary must not have 'ipam' field, it'll be set by flannel"),
        ({"name": "x"}, "'delegate' dictionary must not have 'name' field, it'll be set by flannel"),
        ({"type": 7}, "'delegate' dictionary, if present, must have (string) 'type' field"),
        ({"type": "flannel"}, "'delegate' dictionary: its type cannot be flannel itself"),
    ],
)
def test_100_delegates_that_cannot_be(node: Node, delegate: dict[str, Any], why: str) -> None:
    assert node("ADD", delegate=delegate).error == (999, why)
    assert node.files == set()


def test_delegate_that_fails_is_kept_for_del(node: Node) -> None:
    node.says("""echo '{"code": 11, "msg": "not now", "details": "later"}'; exit 1""")
    assert node("ADD", **recorded()).doc == {"code": 11, "msg": "not now", "details": "later"}
    assert node.files == {"a-eth0"}
    assert node("DEL", **recorded()).error == (11, "not now")
    assert node.files == {"a-eth0"}
    node.says("")
    node.done("DEL", **recorded())
    assert (node.files, node.asked()) == (set(), ["ADD a eth0", "DEL a eth0", "DEL a eth0"])
    missing = f'failed to delegate add: failed to find plugin "nope" in path [{node.call.directory}]'
    assert node("ADD", delegate={"type": "nope"}).error == (999, missing)


def test_state_that_cannot_be_kept_stops_it(node: Node) -> None:
    node.state.write_text("no directory")
    assert node("ADD").error == (999, f"failed to write {node.state}/a-eth0: file exists")
    assert (node.held, node.links()) == (set(), set())
    node.done("DEL")


def test_full_disk_stops_it_and_not_its_del(node: Node) -> None:
    node.state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k,nr_inodes=20", "tmpfs", str(node.state)], check=True)
    try:
        node.add("b", **recorded())
        (node.state / "other").write_bytes(bytes(4096))
        node.asked()
        said = node("ADD", **recorded())
        assert said.error == (999, f"failed to write {node.state}/a-eth0: no space left on device")
        assert (node.files, node.asked()) == ({"b-eth0", "other"}, [])
        node.done("DEL", "b", **recorded())
        assert (node.files, node.asked()) == ({"other"}, ["DEL b eth0"])
    finally:
        subprocess.run(["umount", str(node.state)], check=True)


# --- DEL --------------------------------------------------------------------------------------------------------------


def test_101_del_without_state_and_twice(node: Node) -> None:
    node.done("DEL")
    node.add()
    node.done("DEL")
    node.done("DEL")


def test_del_needs_no_subnet_env_nor_the_configuration_of_before(node: Node) -> None:
    node.add(**recorded(mark=1))
    kept = node.kept()
    node.env.unlink()
    node.done("DEL", delegate={"type": "nope"}, prevResult={"cniVersion": "1.1.0"})
    assert node.told("DEL") == kept
    assert node.files == set()


def test_two_networks_of_a_container_do_not_meet(node: Node) -> None:
    how: dict[str, str] = {"netns": node.pod("a").path, "container": "a"}
    for network, ifname in (("cbr0", "eth0"), ("red", "net1")):
        node.call.add({**node.conf, "name": network, **recorded(mark=network)}, ifname=ifname, **how)
    assert node.files == {"a-eth0", "a-net1"}
    for network, ifname in (("cbr0", "eth0"), ("red", "net1")):
        assert node.call("DEL", {**node.conf, "name": network}, ifname=ifname, **how).code == 0
        assert (node.told("DEL")["name"], node.told("DEL")["mark"]) == (network, network)
    assert node.files == set()


def test_attachment_of_flannels_own_plugin(node: Node) -> None:
    """It keeps a file for each container, which may be of another of its networks."""
    node.add(**recorded())
    (node.state / "a-eth0").rename(node.state / "a")
    node.done("CHECK", prevResult=RESULT)
    node.asked()
    node.done("DEL", name="red")
    assert (node.files, node.asked()) == ({"a"}, [])
    node.done("DEL")
    assert (node.files, node.asked()) == (set(), ["DEL a eth0"])


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"type": 7}'])
def test_state_that_cannot_be_read(node: Node, text: str) -> None:
    node.state.mkdir()
    (node.state / "a-eth0").write_text(text)
    said = node("DEL")
    assert (said.code, said.stdout) == (0, "")
    assert "not the configuration of a plugin" in said.stderr
    assert node.files == {"a-eth0"}


# --- CHECK, STATUS, GC ------------------------------------------------------------------------------------------------


def test_check_is_the_delegates(node: Node) -> None:
    result = node.add()
    node.env.unlink()
    node.done("CHECK", prevResult=result)
    node.pod("a").ip("link", "set", "eth0", "mtu", "1280")
    node.pod("a").ip("addr", "del", "10.244.1.2/24", "dev", "eth0")
    said = node("CHECK", prevResult=result)
    assert said.code == 1
    assert "10.244.1.2" in said.error[1]
    (node.state / "a-eth0").unlink()
    why = f"nothing is known of this attachment: there is no {node.state}/a-eth0"
    assert node("CHECK", prevResult=result).error == (999, why)


def test_check_is_about_todays_version_and_result(node: Node) -> None:
    node.add(cniVersion="1.0.0", **recorded(mark=1))
    node.done("CHECK", prevResult=RESULT)
    assert node.told("CHECK") == {**node.kept(), "cniVersion": "1.1.0", "prevResult": RESULT}


def test_status(node: Node) -> None:
    node.done("STATUS")
    node.done("STATUS", **recorded())
    assert node.told("STATUS")["ipam"]["ranges"] == [[{"subnet": "10.244.1.0/24"}]]
    node.says("""echo '{"code": 51, "msg": "half"}'; exit 1""")
    assert node("STATUS", **recorded()).error == (51, "half")
    node.env.unlink()
    said = node("STATUS")
    assert said.error == (50, wrapped(f"open {node.env}: no such file or directory")[1])


def valid(*attachments: tuple[str, str]) -> dict[str, Any]:
    return {"cni.dev/valid-attachments": [{"containerID": c, "ifname": i} for c, i in attachments]}


def test_gc_takes_away_what_is_stale(node: Node) -> None:
    node.add()
    node.add("b")
    how: dict[str, str] = {"netns": node.pod("b").path, "container": "b", "ifname": "net1"}
    other = {**node.conf, "name": "red", "delegate": {"bridge": "red0"}, "ipam": {"dataDir": str(node.data / "red")}}
    node.call.add(other, **how)
    (node.state / "b-eth0").rename(node.state / "b")
    node.env.unlink()
    node.done("GC", **valid(("b", "eth0")))
    assert (node.files, node.held) == ({"b", "b-net1"}, {"10.244.1.3"})
    assert reaches(node.host, "10.244.1.3")
    node.done("GC", **valid())
    assert (node.files, node.held) == ({"b-net1"}, set())
    assert addresses(node.pod("b"), "net1") == ["10.244.1.2/24"]
    assert node.call("DEL", other, **how).code == 0


def test_gc_reaches_every_delegate_that_there_was(node: Node) -> None:
    node.add(**recorded(mark=1))
    node.add("b", **recorded(mark=1))
    node.add("c", **recorded(mark=2))
    node.asked()
    node.done("GC", **recorded(mark=3), **valid(("a", "eth0")), cniVersion="1.1.0")
    assert [each.partition(" ")[0] for each in node.asked()] == ["GC"] * 3
    assert node.files == {"a-eth0"}
    assert node.told("GC")["cni.dev/valid-attachments"] == [{"containerID": "a", "ifname": "eth0"}]
    assert node.told("GC")["mark"] == 2
    node.says("""[ $CNI_COMMAND != GC ] || { echo '{"code": 11, "msg": "not now"}'; exit 1; }""")
    assert node("GC", **recorded(mark=3), **valid()).error == (11, "not now")
    assert node.files == {"a-eth0"}


def test_gc_without_attachments_to_leave_is_refused(node: Node) -> None:
    assert node("GC").error[0] == 7


def test_adds_at_the_same_time_leave_whole_files(node: Node) -> None:
    names = [f"c{number}" for number in range(12)]
    for name in names:
        node.pod(name)
    with ThreadPoolExecutor(6) as pool:
        assert {said.code for said in pool.map(lambda name: node("ADD", name, **recorded()), names)} == {0}
    assert node.files == {f"{name}-eth0" for name in names}
    assert {json.dumps(node.kept(name)) for name in node.files} == {json.dumps(node.told())}
