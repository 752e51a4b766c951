"""The plugin `bandwidth` on the real kernel, with traffic (situations 88 to 91 of the specification)."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chain_ground import Ground, ip4, make_ground

from cni_plugins import GO, Caller, put
from namespaces import Ns
from tortie.kernel import netns

pytestmark = pytest.mark.root

BOTH = {"ingressRate": 8_000_000, "ingressBurst": 1_000_000, "egressRate": 16_000_000, "egressBurst": 1_000_000}
IFB = "bwp85373d34c684"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("bin"))


@pytest.fixture
def ground(make_ns: Callable[..., Ns], directory: Path) -> Ground:
    return make_ground(make_ns, directory)


def conf(prev: dict[str, Any] | None = None, version: str = "1.0.0", **more: Any) -> dict[str, Any]:
    found = {"cniVersion": version, "name": "net1", "type": "bandwidth", **more}
    return found | ({"prevResult": prev} if prev else {})


def qdiscs(host: Ns, dev: str) -> list[dict[str, Any]]:
    return json.loads(host.run("tc", "-j", "qdisc", "show", "dev", dev))


def bucket(host: Ns, dev: str) -> dict[str, Any]:
    [found] = [each for each in qdiscs(host, dev) if each["kind"] == "tbf"]
    return found


def links(host: Ns) -> set[str]:
    return {link["ifname"] for link in host.json("link", "show")}


# --- what may be said ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (BOTH, "must be called as chained plugin"),
        ({}, "must be called as chained plugin"),
        ({"ingressRate": 8}, "if rate is set, burst must also be set"),
        ({"egressBurst": 8}, "if burst is set, rate must also be set"),
        ({"egressBurst": 8 * (2**32 - 1), "egressRate": 8}, "burst cannot be more than 4GB"),
        (
            {"egressRate": 7, "egressBurst": 8},
            "rate 7 and burst 8 are in bits, and must be a byte (8) at least",
        ),
        ({"runtimeConfig": {"bandwidth": {"ingressRate": 8}}}, "if rate is set, burst must also be set"),
        (
            {"ingressRate": -1, "ingressBurst": 8},
            "failed to load netconf: json: cannot unmarshal number -1 into field ingressRate: below 0",
        ),
    ],
)
def test_refused(directory: Path, more: dict[str, Any], words: str) -> None:
    """Situation 89."""
    assert Caller(directory)("ADD", conf(**more), netns="nobody-is-here").error == (999, words)


def test_versions(directory: Path) -> None:
    said = Caller(directory)("VERSION", b"", type="bandwidth")
    assert said.doc["supportedVersions"] == ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    old = Caller(directory)("ADD", conf(version="0.2.0"), netns="nobody-is-here")
    assert old.error == (1, "incompatible CNI versions")


def test_check_without_result(directory: Path) -> None:
    said = Caller(directory)("CHECK", conf(**BOTH), netns="nobody-is-here")
    assert said.error == (999, "must be called as a chained plugin")


# --- what is made -------------------------------------------------------------------------------------------------


def test_to_the_container(ground: Ground) -> None:
    """Situation 88."""
    result = ground.result()
    config = conf(result, ingressRate=8_000_000, ingressBurst=1_000_000)
    where = {"netns": ground.pods["a"].path}
    assert ground.call.add(config, **where) == result
    there = bucket(ground.host, "vetha")
    assert there["handle"] == "1:"
    assert there["root"] is True
    # tc says the limit, 150,000 bytes, as the time that what exceeds the burst takes
    assert there["options"] == {"rate": 1_000_000, "burst": 125_000, "lat": 25_000}
    assert ground.call("CHECK", config, **where).code == 0
    assert ground.call("ADD", config, **where).error == (999, "create qdisc: file exists")
    assert bucket(ground.host, "vetha") == there


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_life(ground: Ground, version: str) -> None:
    """Situation 90."""
    config = conf(ground.result(version=version), version, runtimeConfig={"bandwidth": BOTH})
    where = {"netns": ground.pods["a"].path}
    answer = ground.call.add(config, **where)
    [ifb] = ground.host.json("link", "show", "dev", IFB)
    assert answer["interfaces"][3:] == [{"name": IFB, "mac": ifb["address"]}]
    assert ifb["linkinfo"]["info_kind"] == "ifb"
    assert (ifb["mtu"], ifb.get("txqlen", 0), "UP" in ifb["flags"]) == (1500, 0, True)
    assert bucket(ground.host, IFB)["options"]["rate"] == 2_000_000
    assert bucket(ground.host, "vetha")["options"]["rate"] == 1_000_000
    assert {"ingress", "tbf"} <= {each["kind"] for each in qdiscs(ground.host, "vetha")}
    shown = json.loads(ground.on_host("tc", "-j", "filter", "show", "dev", "vetha", "ingress"))
    [action] = [one for each in shown for one in each.get("options", {}).get("actions", [])]
    assert (action["kind"], action["mirred_action"], action["to_dev"]) == ("mirred", "redirect", IFB)
    assert shown[0]["protocol"] == "all"
    assert shown[0]["pref"] == 1
    assert ground.call("CHECK", config, **where).code == (0 if version >= "0.4" else 1)
    for _ in range(2):
        assert ground.call("DEL", config, **where).code == 0
        assert IFB not in links(ground.host)
    assert ground.call("DEL", conf(version=version), netns="gone").code == 0


def test_two_interfaces_of_one_container_in_one_network(ground: Ground) -> None:
    """The name of the ifb says the network and the container only: the second has one of its own."""
    where = {name: {"netns": ground.pods[name].path, "container": "ctr1"} for name in ("a", "b")}
    ground.pods["b"].ip("link", "set", "eth0", "name", "eth1")
    second = ground.result("b")
    for each in second["interfaces"]:
        each["name"] = "eth1" if each.get("sandbox") else each["name"]
    configs = {"a": conf(ground.result(), **BOTH), "b": conf(second, **BOTH)}
    ground.call.add(configs["a"], **where["a"])
    other = ground.call.add(configs["b"], ifname="eth1", **where["b"])["interfaces"][-1]["name"]
    assert other != IFB
    assert ground.call("CHECK", configs["b"], ifname="eth1", **where["b"]).code == 0
    assert ground.call("DEL", configs["b"], ifname="eth1", **where["b"]).code == 0
    assert {IFB, other} & links(ground.host) == {IFB}
    assert ground.call("DEL", configs["b"], ifname="eth1", **where["b"]).code == 0
    assert ground.call("CHECK", configs["a"], **where["a"]).code == 0
    assert ground.call("DEL", configs["a"], **where["a"]).code == 0
    assert IFB not in links(ground.host)


def test_own_values_before_the_runtimes(ground: Ground) -> None:
    config = conf(ground.result(), ingressRate=80_000, ingressBurst=80_000, runtimeConfig={"bandwidth": BOTH})
    answer = ground.call.add(config, netns=ground.pods["a"].path)
    assert len(answer["interfaces"]) == 3
    assert IFB not in links(ground.host)
    assert bucket(ground.host, "vetha")["options"]["rate"] == 10_000


def test_no_limit(ground: Ground) -> None:
    result = ground.result()
    config = conf(result, runtimeConfig={"bandwidth": dict.fromkeys(BOTH, 0)})
    for command in ("ADD", "CHECK", "DEL"):
        said = ground.call(command, config, netns=ground.pods["a"].path)
        assert said.code == 0
        if command == "ADD":
            assert said.doc == result
    assert all(each["kind"] != "tbf" for each in qdiscs(ground.host, "vetha"))


@pytest.mark.skipif(not GO.joinpath("bandwidth").exists(), reason="no Go plugins (containernetworking-plugins)")
@pytest.mark.parametrize("limit", [(8_000_000, 1_000_000), (1_234_567, 7_654_321), (10**10, 10**9), (64_000, 16_000)])
def test_the_go_plugin_makes_the_same(ground: Ground, limit: tuple[int, int]) -> None:
    rate, burst = limit
    numbers = {"ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst}
    callers = {"a": ground.call, "b": Caller(GO, ground.host.name)}
    for pod, call in callers.items():
        config = conf(ground.result(pod), **numbers)
        call.add(config, netns=ground.pods[pod].path, container=f"ctr-{pod}")
        # each says that the other's work is right
        other = callers["b" if pod == "a" else "a"]
        assert other("CHECK", config, netns=ground.pods[pod].path, container=f"ctr-{pod}").code == 0
    ours, theirs = bucket(ground.host, "vetha"), bucket(ground.host, "vethb")
    assert ours["options"] == theirs["options"]
    for pod in callers:  # and takes it away
        other = callers["b" if pod == "a" else "a"]
        config = conf(ground.result(pod), **numbers)
        assert other("DEL", config, netns=ground.pods[pod].path, container=f"ctr-{pod}").code == 0
    assert not any(name.startswith("bwp") for name in links(ground.host))


# --- what cannot be -----------------------------------------------------------------------------------------------


def test_no_pair(ground: Ground, make_ns: Callable[..., Ns]) -> None:
    """Situation 91."""
    pod = make_ns("mac")
    ground.host.ip("link", "add", "mv0", "link", "eth0", "type", "macvlan", "mode", "bridge")
    ground.host.ip("link", "set", "mv0", "netns", pod.name, "name", "eth0")
    result = {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": pod.path}]}
    said = ground.call("ADD", conf(result, **BOTH), netns=pod.path)
    assert said.error == (999, "container interface eth0 has no veth peer: it is a macvlan")


@pytest.mark.parametrize(
    ("interfaces", "words"),
    [
        ([], "no interfaces provided"),
        ([{"name": "cni0"}], "no veth peer of container interface found in host ns"),
        ([{"name": "vetha", "sandbox": "/x"}], "no veth peer of container interface found in host ns"),
    ],
)
def test_result_without_the_pair(ground: Ground, interfaces: list[dict[str, str]], words: str) -> None:
    result = ground.result() | {"interfaces": interfaces, "ips": []}
    assert ground.call("ADD", conf(result, **BOTH), netns=ground.pods["a"].path).error == (999, words)


def test_peer_is_elsewhere(ground: Ground, make_ns: Callable[..., Ns]) -> None:
    pod, elsewhere = make_ns("x"), make_ns("y")
    pod.ip("link", "add", "eth0", "index", "77", "type", "veth", "peer", "name", "far", "index", "99")
    pod.ip("link", "set", "far", "netns", elsewhere.name)
    result = ground.result() | {"interfaces": [{"name": "far"}], "ips": []}
    said = ground.call("ADD", conf(result, **BOTH), netns=pod.path)
    assert said.error == (999, "veth peer with index 99 is not in host ns")


def test_failure_leaves_nothing(ground: Ground) -> None:
    """Somebody else has the ingress hook: the ifb cannot be led to."""
    ground.on_host("tc", "qdisc", "add", "dev", "vetha", "ingress")
    said = ground.call("ADD", conf(ground.result(), **BOTH), netns=ground.pods["a"].path)
    assert said.error[0] == 999
    assert "ingress" in said.error[1]
    assert IFB not in links(ground.host)
    assert all(each["kind"] != "tbf" for each in qdiscs(ground.host, "vetha"))
    assert [each["kind"] for each in qdiscs(ground.host, "vetha")].count("ingress") == 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("tc qdisc change dev vetha root handle 1: tbf rate 9mbit burst 125000 limit 150000", "Rate doesn't match"),
        ("tc qdisc change dev vetha root handle 1: tbf rate 8mbit burst 125000 limit 250000", "Limit doesn't match"),
        ("tc qdisc change dev vetha root handle 1: tbf rate 8mbit burst 120000 limit 150000", "Buffer doesn't match"),
        ("tc qdisc del dev vetha root", "no tbf is the root of vetha"),
        ("tc qdisc del dev vetha ingress", f"what arrives by vetha is not redirected to {IFB}"),
        (f"ip link del {IFB}", f"get ifb device: Link not found: {IFB}"),
    ],
)
def test_check_sees(ground: Ground, command: str, words: str) -> None:
    config, where = conf(ground.result(), **BOTH), {"netns": ground.pods["a"].path}
    ground.call.add(config, **where)
    ground.on_host(*command.split())
    assert ground.call("CHECK", config, **where).error == (999, words)


def test_garbage_collection(ground: Ground) -> None:
    for container, network, pod in (("ctr1", "net1", "a"), ("ctr2", "net1", "b")):
        config = conf(ground.result(pod), **BOTH) | {"name": network}
        ground.call.add(config, netns=ground.pods[pod].path, container=container)
    ground.host.ip("link", "add", "bwpforeign", "type", "ifb")
    ground.host.ip("link", "add", "bwpother", "type", "ifb")
    ground.host.ip("link", "set", "bwpother", "alias", "ctr9 eth0 net2")
    valid = {"cni.dev/valid-attachments": [{"containerID": "ctr2", "ifname": "eth0"}]}
    before = links(ground.host)
    assert ground.call("GC", conf(version="1.1.0", **valid)).code == 0
    assert before - links(ground.host) == {IFB}


def test_status(ground: Ground) -> None:
    said = ground.call("STATUS", conf(version="1.1.0"))
    assert (said.code, said.stdout) == (0, "")


# --- traffic ------------------------------------------------------------------------------------------------------


def sent(source: Ns, target: Ns, ip: str, seconds: float) -> float:
    """Megabits per second that arrive of as many as can be sent."""
    with netns.entered(target.path):
        server = socket.create_server((ip, 0))
    with netns.entered(source.path):
        client = socket.socket()
    client.settimeout(10)
    client.connect(server.getsockname())
    peer, _ = server.accept()
    stop = time.monotonic() + seconds + 0.5

    def send() -> None:
        block = bytes(16384)
        try:
            while time.monotonic() < stop:
                client.sendall(block)
        except OSError:
            pass

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    peer.settimeout(0.2)
    count, started = 0, None
    begin = time.monotonic()
    while time.monotonic() < begin + 0.5 + seconds:
        try:
            data = peer.recv(1 << 16)
        except TimeoutError:
            continue
        if time.monotonic() > begin + 0.5:  # behind the burst
            started = started or time.monotonic()
            count += len(data)
    for one in (client, peer, server):
        one.close()
    thread.join(5)
    assert started is not None
    return 8 * count / 1e6 / (time.monotonic() - started)


def test_traffic(ground: Ground) -> None:
    """A container is limited in both directions, its neighbour is not."""
    numbers = {"ingressRate": 20_000_000, "ingressBurst": 400_000, "egressRate": 8_000_000, "egressBurst": 400_000}
    ground.call.add(conf(ground.result(), **numbers), netns=ground.pods["a"].path)
    to = sent(ground.outside, ground.pods["a"], ip4("a"), 2.0)
    away = sent(ground.pods["a"], ground.outside, "192.0.2.2", 2.0)
    free = sent(ground.outside, ground.pods["b"], ip4("b"), 0.5)
    assert 10 < to < 25, to
    assert 4 < away < 10, away
    assert free > 50, free
