"""What a pod may send and receive, on real packets: bandwidth, packets a second, connections, and the DSCP outside."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import pytest
from agent_node import RED, Node, Sandbox, Site, nothing_left, pod, site_in, soon
from conftest import Ns
from town import PODS, Town, built_town, endpoint, hang_up, made, until

from tortie.calc.qos import QOS, controls
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import converge
from tortie.dataplane.stages.qos import PREF, Qos, ifb_name
from tortie.model.document import parse
from tortie.model.ipam import IPPool
from tortie.model.k8s import Namespace, Pod, ServiceAccount
from tortie.model.meta import Resource, changed
from tortie.model.node import Node as CalicoNode
from tortie.model.workload import WorkloadEndpoint

pytestmark = pytest.mark.root

LIMITED, PEER, PORT = "p0", "p1", 6000
MEGABIT = 1_000_000
SECONDS = 2.0
DIRECTIONS = ("ingress", "egress")


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    yield from built_town()


@pytest.fixture
def stage(town: Town) -> Iterator[Qos]:
    """It leaves nothing behind when nobody is limited any more."""
    stage = Qos(town.node.netns)
    yield stage
    limit(town, stage)
    assert left(town) == set()


def left(town: Town) -> set[str]:
    """What of traffic control there is on the node, and what of limits in its table."""
    found = {qdisc["kind"] for qdisc in tc(town, "qdisc", "show")} - {"noqueue"}
    found |= {name for name in names(town) if name.startswith("bw")}
    words = ("limit rate over", "ct count", "dscp", "rates-")
    return found | {word for word in words if word in town.table()}


def names(town: Town) -> set[str]:
    return {link["ifname"] for link in answer(town, "ip", "-j", "link", "show")}


def tc(town: Town, *words: str) -> list[dict[str, Any]]:
    return answer(town, "tc", "-j", *words)


def answer(town: Town, *command: str) -> list[dict[str, Any]]:
    run = ["nsenter", f"--net={town.node.netns}", *command]
    done = subprocess.run(run, capture_output=True, text=True, timeout=30, check=True)
    listed: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    return listed


def limit(town: Town, stage: Qos, annotations: Mapping[str, str] | None = None, more: str = "") -> None:
    """The first pod has these annotations (without their prefix), all others none; the kernel follows."""
    state = asked_for(town, annotations or {}, more)
    assert converge([stage], state) == []
    assert not stage.plan(state)


def asked_for(town: Town, annotations: Mapping[str, str], more: str = "") -> DesiredState:
    """The state, of which all but the bandwidth is in the kernel already."""
    given, wrong = controls({QOS + name: value for name, value in annotations.items()})
    assert not wrong
    resources: list[Resource] = [
        made(Namespace, "red"),
        made(ServiceAccount, "default", "red"),
        made(IPPool, "four", spec={"cidr": "10.244.0.0/16", "ipipMode": "Never"}),
        made(IPPool, "six", spec={"cidr": "fd00:244::/64", "ipipMode": "Never"}),
        made(CalicoNode, "n2", spec={"bgp": {"ipv4Address": "198.51.100.77/24", "ipv6Address": "2001:db8:51::77/64"}}),
        *parse("{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default},"
               " spec: {defaultEndpointToHostAction: Accept}}"),
        *(parse(more) if more else []),
    ]  # fmt: skip
    for name in PODS:
        one = endpoint(town.parties[name], "red", labels={"app": name})
        assert isinstance(one, WorkloadEndpoint)
        if name == LIMITED:
            one = msgspec.structs.replace(one, spec=msgspec.structs.replace(one.spec, qos_controls=given))
        resources.append(one)
    return town.apply(resources)


def ends(direction: str, version: int) -> tuple[str, str]:
    """Sender and receiver so that the first pod is limited in this direction; the other is another pod, or outside."""
    other = PEER if version == 4 else "X"
    return (LIMITED, other) if direction == "egress" else (other, LIMITED)


# --- bandwidth ----------------------------------------------------------------------------------------------------


def throughput(town: Town, sender: str, receiver: str, version: int, seconds: float = SECONDS) -> float:
    """Bits a second that arrive over TCP, once what a bucket holds is through."""
    listener = town.parties[receiver].open(version, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("", PORT))
    listener.listen()
    listener.settimeout(5)
    with listener, town.parties[sender].open(version, socket.SOCK_STREAM) as source:
        source.settimeout(5)
        source.connect((str(town.parties[receiver].ips[version]), PORT))
        sink, _ = listener.accept()
        hang_up(source)
        with sink, flood(source):
            sink.settimeout(5)
            received_until(sink, time.monotonic() + 0.5)
            began = time.monotonic()
            octets = received_until(sink, began + seconds)
            return 8 * octets / (time.monotonic() - began)


@contextlib.contextmanager
def flood(source: socket.socket) -> Iterator[None]:
    stop = threading.Event()
    source.settimeout(0.2)

    def send() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError, OSError):
                source.send(b"x" * 65536)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def received_until(sink: socket.socket, deadline: float) -> int:
    octets = 0
    while time.monotonic() < deadline:
        octets += len(sink.recv(1 << 16))
    return octets


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_ten_megabits_are_ten_megabits(town: Town, stage: Qos, direction: str, version: int) -> None:
    limit(town, stage, {f"{direction}Bandwidth": "10M", f"{direction}Burst": "800k"})
    sender, receiver = ends(direction, version)
    measured = [throughput(town, sender, receiver, version)]
    while measured[-1] < 8 * MEGABIT and len(measured) < 4:  # a busy machine does not send as much as it may
        measured.append(throughput(town, sender, receiver, version))
    assert 8 * MEGABIT < max(measured) < 12 * MEGABIT
    assert throughput(town, receiver, sender, version, 0.5) > 100 * MEGABIT  # the other way is free
    limit(town, stage)
    assert throughput(town, sender, receiver, version, 0.5) > 100 * MEGABIT


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_burst_goes_through_at_its_peak_rate(town: Town, stage: Qos, direction: str) -> None:
    """40 Mbit at 40 Mbit/s while the bucket of 20 Mbit lasts, then 10."""
    asked = {"Bandwidth": "10M", "Peakrate": "40M", "Burst": "60M"}
    limit(town, stage, {direction + name: value for name, value in asked.items()})
    measured = throughput(town, *ends(direction, 4), 4, 1.0)
    assert 20 * MEGABIT < measured < 46 * MEGABIT  # without the bucket 10; a busy machine may not reach 40


def test_a_bucket_smaller_than_a_packet_still_lets_packets_through(town: Town, stage: Qos) -> None:
    limit(town, stage, {"ingressBandwidth": "4M", "ingressBurst": "1k", "egressBandwidth": "4M", "egressBurst": "1k"})
    for direction in DIRECTIONS:  # else nothing would pass; how much does, on a busy machine, is its own affair
        assert 0.5 * MEGABIT < throughput(town, *ends(direction, 4), 4) < 5 * MEGABIT


# --- packets a second ---------------------------------------------------------------------------------------------


def datagrams(town: Town, sender: str, receiver: str, version: int, count: int, seconds: float) -> int:
    """How many of `count`, sent evenly over the time, arrive; the sender answers, so that they are established."""
    target = town.parties[receiver].open(version, socket.SOCK_DGRAM)
    target.bind(("", PORT))
    arrived = 0
    with target, town.parties[sender].open(version, socket.SOCK_DGRAM) as source:
        address = str(town.parties[receiver].ips[version]), PORT
        began = time.monotonic()
        for number in range(count):
            while time.monotonic() < began + seconds * number / count:
                time.sleep(0.0002)
            source.sendto(b"x", address)
            with contextlib.suppress(BlockingIOError):
                while True:
                    _, peer = target.recvfrom(100)
                    arrived += 1
                    if arrived == 1:
                        target.sendto(b"y", peer)
        time.sleep(0.1)
        with contextlib.suppress(BlockingIOError):
            while target.recv(100):
                arrived += 1
    return arrived


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_so_many_packets_a_second_and_no_more(town: Town, stage: Qos, direction: str, version: int) -> None:
    """Established ones too: they are not exempt as they are from policy."""
    limit(town, stage, {f"{direction}PacketRate": "100", f"{direction}PacketBurst": "20"})
    sender, receiver = ends(direction, version)
    assert 100 <= datagrams(town, sender, receiver, version, 600, 1.0) <= 150
    assert datagrams(town, receiver, sender, version, 300, 0.5) == 300
    name = f"qos|{town.parties[LIMITED].interface}|{direction}|packet-rate"
    assert town.counters()[name] > 400


def test_what_a_pod_sends_to_its_own_host_counts_but_for_the_search_of_neighbours(town: Town, stage: Qos) -> None:
    limit(town, stage, {"egressPacketRate": "50"})
    assert 50 <= datagrams(town, LIMITED, "node", 6, 300, 1.0) <= 75
    assert "icmpv6 type { mld-listener-query" in town.table()


# --- connections --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def listening(town: Town, receiver: str, version: int) -> Iterator[None]:
    listener = town.parties[receiver].open(version, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("", PORT))
    listener.listen(64)
    with listener:
        yield


def connect(town: Town, sender: str, receiver: str, version: int) -> socket.socket | None:
    """A connection, or None when it is refused; anything else is no answer."""
    one = town.parties[sender].open(version, socket.SOCK_STREAM)
    one.settimeout(5)
    hang_up(one)
    try:
        one.connect((str(town.parties[receiver].ips[version]), PORT))
    except ConnectionRefusedError:
        one.close()
        return None
    return one


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_p105_so_many_connections_and_the_next_is_refused(town: Town, stage: Qos, direction: str, version: int) -> None:
    limit(town, stage, {f"{direction}MaxConnections": "3"})
    sender, receiver = ends(direction, version)
    with listening(town, receiver, version), contextlib.ExitStack() as stack:
        opened = [connect(town, sender, receiver, version) for _ in range(3)]
        assert None not in opened
        kept = [stack.enter_context(one) for one in opened if one is not None]
        assert connect(town, sender, receiver, version) is None
        assert datagrams_pass(town, sender, receiver, version)  # only connections of TCP are counted
        # A change of policy writes the endpoint's chain anew, and the count stands.
        policy = (
            "{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: open, namespace: red},"
            " spec: {selector: app == 'p0', types: [Ingress, Egress], ingress: [{action: Allow}],"
            " egress: [{action: Allow}]}}"
        )
        limit(town, stage, {f"{direction}MaxConnections": "3"}, more=policy)
        assert connect(town, sender, receiver, version) is None
        assert town.counters()[f"qos|{town.parties[LIMITED].interface}|{direction}|connections"] >= 2
        kept[0].close()
        again = until_connected(town, sender, receiver, version)
        stack.enter_context(again)
        assert connect(town, sender, receiver, version) is None
    with listening(town, sender, version):  # the other direction is free
        back = [connect(town, receiver, sender, version) for _ in range(6)]
        assert None not in back
        for one in back:
            assert one is not None
            one.close()


def until_connected(town: Town, sender: str, receiver: str, version: int) -> socket.socket:
    """The kernel notices an end within moments."""
    found: list[socket.socket] = []

    def connected() -> bool:
        one = connect(town, sender, receiver, version)
        found.extend([one] if one is not None else [])
        return bool(found)

    assert until(connected, 15)
    return found[0]


def datagrams_pass(town: Town, sender: str, receiver: str, version: int) -> bool:
    return datagrams(town, sender, receiver, version, 5, 0.01) == 5


# --- DSCP ---------------------------------------------------------------------------------------------------------


def seen_dscp(town: Town, sender: str, receiver: str, version: int, reply: bool = False) -> int:
    """The code point with which a datagram arrives, or with `reply` the answer to it."""
    level, option = (socket.IPPROTO_IP, socket.IP_RECVTOS) if version == 4 else (socket.IPPROTO_IPV6, 66)
    with contextlib.ExitStack() as stack:
        target, source = (
            stack.enter_context(town.parties[name].open(version, socket.SOCK_DGRAM)) for name in (receiver, sender)
        )
        target.bind((str(town.parties[receiver].ips[version]), PORT))
        source.bind((str(town.parties[sender].ips[version]), 0))
        looking = source if reply else target
        for one in (target, source):
            one.settimeout(5)
        looking.setsockopt(level, option, 1)  # IPV6_RECVTCLASS (linux/in6.h) is 66
        source.sendto(b"x", (str(town.parties[receiver].ips[version]), PORT))
        if reply:
            _, peer = target.recvfrom(100)
            target.sendto(b"y", peer)
        _, ancillary, *_ = looking.recvmsg(100, 100)
        ((_, _, data),) = ancillary
        octet = data[0] if len(data) == 1 else struct.unpack("=i", data)[0]
        return int(octet) >> 2


@pytest.mark.parametrize("version", [4, 6])
def test_packets_that_leave_the_cluster_carry_the_pods_dscp(town: Town, stage: Qos, version: int) -> None:
    limit(town, stage, {"dscp": "AF41"})
    assert seen_dscp(town, LIMITED, "X", version) == 34
    assert seen_dscp(town, "X", LIMITED, version, reply=True) == 34
    assert seen_dscp(town, LIMITED, PEER, version) == 0  # to a pool
    assert seen_dscp(town, LIMITED, "Y", version) == 0  # to a node
    assert seen_dscp(town, PEER, "X", version) == 0
    limit(town, stage, {"dscp": "63"})
    assert seen_dscp(town, LIMITED, "X", version) == 63
    limit(town, stage, {"dscp": "CS0"})
    assert seen_dscp(town, LIMITED, "X", version) == 0


# --- what is ours in the kernel -----------------------------------------------------------------------------------

BOTH = {"ingressBandwidth": "10M", "egressBandwidth": "20M", "ingressBurst": "1M", "egressBurst": "1M"}


def shaped(town: Town) -> dict[str, int]:
    """Bytes a second, by link."""
    return {one["dev"]: one["options"]["rate"] for one in tc(town, "qdisc", "show") if one["kind"] == "tbf"}


def redirected(town: Town, name: str) -> list[str]:
    """To where what comes in by a link is sent."""
    listed = tc(town, "filter", "show", "dev", name, "ingress")
    return [action["to_dev"] for one in listed for action in one.get("options", {}).get("actions", ())]


def test_what_tc_says(town: Town, stage: Qos) -> None:
    limit(town, stage, BOTH)
    name = town.parties[LIMITED].interface
    ifb = ifb_name(name)
    assert shaped(town) == {name: 1_250_000, ifb: 2_500_000}
    assert redirected(town, name) == [ifb]
    assert {link["ifname"]: link["mtu"] for link in answer(town, "ip", "-j", "link", "show", "type", "ifb")} == {
        ifb: 1500
    }


DAMAGES = {
    "the ifb is gone": "ip link del {ifb}",
    "the ifb is down": "ip link set {ifb} down",
    "the ifb has another MTU": "ip link set {ifb} mtu 9000",
    "a bucket is gone": "tc qdisc del dev {name} root",
    "a bucket is another": "tc qdisc replace dev {ifb} root handle ca11: tbf rate 1mbit burst 10k limit 10k",
    "the hook is gone": "tc qdisc del dev {name} ingress",
    "an ifb of nobody": "ip link add bwcali000000000 type ifb",
    "a bucket of nobody": "tc qdisc add dev {other} root handle ca11: tbf rate 1mbit burst 10k limit 10k",
    "a filter of an older life": "tc qdisc add dev {other} ingress;"
    " tc filter add dev {other} ingress pref 1 u32 match u32 0 0 action mirred egress redirect dev {ifb}",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda text: text.replace(" ", "-"))
def test_whatever_somebody_does_to_it_a_new_agent_repairs(town: Town, stage: Qos, damage: str) -> None:
    limit(town, stage, BOTH)
    name, other = town.parties[LIMITED].interface, town.parties[PEER].interface
    script = DAMAGES[damage].format(name=name, ifb=ifb_name(name), other=other)
    subprocess.run(["nsenter", f"--net={town.node.netns}", "sh", "-ec", script], check=True, timeout=30)
    state = town.cluster.state()
    again = Qos(town.node.netns)  # a restart remembers nothing
    assert again.plan(state)
    assert converge([again], state) == []
    assert not again.plan(state)
    test_what_tc_says(town, stage)
    assert redirected(town, other) == []
    limit(town, stage)
    assert left(town) == set()


def test_what_others_do_to_a_pods_interface_stays(town: Town, stage: Qos) -> None:
    """A tbf of the bandwidth plugin, say, and a filter that is there for something else."""
    other = town.parties[PEER].interface
    script = (
        f"tc qdisc add dev {other} root handle 1: tbf rate 5mbit burst 10k limit 10k; tc qdisc add dev {other} ingress;"
        f" tc filter add dev {other} ingress pref 7 u32 match u32 0 0 action mirred egress mirror dev lo"
    )
    run = ["nsenter", f"--net={town.node.netns}", "sh", "-ec"]
    subprocess.run([*run, script], check=True, timeout=30)
    try:
        limit(town, stage, BOTH)
        limit(town, stage)
        assert shaped(town) == {other: 625_000}
        assert redirected(town, other) == ["lo"]
    finally:
        subprocess.run(
            [*run, f"tc qdisc del dev {other} root; tc qdisc del dev {other} ingress"], check=True, timeout=30
        )


def test_the_transcript_is_what_a_person_would_type(town: Town, stage: Qos) -> None:
    """Typed line by line into a shell it leads to the same."""
    limit(town, stage)
    name = town.parties[LIMITED].interface
    limit(town, stage, BOTH)
    state = town.cluster.state()
    limit(town, stage)
    text = str(Qos(town.node.netns).plan(state))
    script = text.replace("tc filter replace", f"tc qdisc add dev {name} ingress && tc filter add")
    subprocess.run(["nsenter", f"--net={town.node.netns}", "sh", "-ec", script], check=True, timeout=30)
    assert not Qos(town.node.netns).plan(state), text
    stage.forget()


def test_one_step_that_fails_keeps_no_other_from_the_kernel(town: Town, stage: Qos) -> None:
    """Somebody has taken our preference for another protocol: the kernel refuses the filter, and only that."""
    limit(town, stage)
    name = town.parties[LIMITED].interface
    where = f"dev {name} ingress pref {PREF}"
    script = (
        f"ip link add bwcali000000000 type ifb; tc qdisc add dev {name} ingress;"
        f" tc filter add {where} protocol ip u32 match u32 0 0 action mirred egress mirror dev lo"
    )
    run = ["nsenter", f"--net={town.node.netns}", "sh", "-ec"]
    subprocess.run([*run, script], check=True, timeout=30)
    try:
        stage.forget()
        (failure,) = converge([stage], asked_for(town, BOTH))
        assert str(failure).startswith(f"qos: tc filter replace {where} u32 ")
        assert shaped(town) == {name: 1_250_000, ifb_name(name): 2_500_000}
        assert "bwcali000000000" not in names(town)
    finally:
        subprocess.run([*run, f"tc filter del {where} protocol ip"], check=True, timeout=30)
    limit(town, stage, BOTH)
    assert redirected(town, name) == [ifb_name(name)]


# --- through the agent --------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("site")) as site:
        site.set_up()
        yield site


def asked(name: str, **annotations: str) -> Pod:
    return changed(pod(name), annotations={QOS + key: value for key, value in annotations.items()})


def kernel(node: Node) -> tuple[dict[str, int], set[str]]:
    """Buckets of the node, and its ifbs."""
    qdiscs = json.loads(node.ns.run("tc", "-j", "qdisc", "show"))
    ifbs = {link["ifname"] for link in node.ns.json("link", "show", "type", "ifb")}
    return {one["dev"]: one["options"]["rate"] for one in qdiscs if one["kind"] == "tbf"}, ifbs


async def test_limits_come_with_the_pod_follow_its_annotations_and_go_with_it(
    site: Site, make_ns: Callable[..., Ns]
) -> None:
    node = site.node("node1", "--no-bgp").start()
    async with site.store() as store:
        stored = await store.create(asked("a", ingressBandwidth="8M", egressBandwidth="16M", ingressBurst="lots"))
        one = Sandbox(node, "a", make_ns("a"))
        await one.add()
        name = one.host_ifname
        both = {name: 1_000_000, ifb_name(name): 2_000_000}
        assert kernel(node) == (both, {ifb_name(name)})  # when ADD answers
        said = [line for line in node.messages() if "ingressBurst" in line]
        assert said == ['Pod red/a: annotation qos.projectcalico.org/ingressBurst: "lots" is not a quantity such as'
                        " 10M or 1Gi; off"]  # fmt: skip

        annotations = {QOS + "egressBandwidth": "24M", QOS + "dscp": "EF"}
        stored = await store.update(changed(stored, annotations=annotations))
        await soon(lambda: kernel(node), lambda seen: seen[0] == {ifb_name(name): 3_000_000}, "the new limit")
        assert "dscp4-46" in node.ns.run("nft", "list", "map", "inet", "tortie", "dscp4")

        node.kill()
        node.ns.ip("link", "add", "bwcali123456789", "type", "ifb")  # of a pod that went while nobody looked
        node.ns.ip("link", "del", ifb_name(name))
        node.start()
        await soon(lambda: kernel(node), lambda seen: seen == ({ifb_name(name): 3_000_000}, {ifb_name(name)}), "repair")

        await store.update(changed(stored, annotations={}))
        await soon(lambda: kernel(node), lambda seen: seen == ({}, set()), "no limit")
        await store.update(changed(await store.get(Pod, "a", RED), annotations=annotations))
        await soon(lambda: kernel(node), lambda seen: bool(seen[1]), "a limit again")
        await one.delete()
        await soon(lambda: kernel(node), lambda seen: seen == ({}, set()), "nothing after DEL")
        await nothing_left(node, store)
