"""The udp backend on the real kernel: packets from pod to pod, and what is said about those that go nowhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannel_nodes import FlannelNode, answered, paths, pod_ip
from flannel_udp_pair import ALIAS, Pair, compiled, end, eventually, proxy_of, sock, two_nodes, udp_of
from namespaces import Ns
from tortie.flannel.backend import Setting
from tortie.flannel.udp import build, proxy
from tortie.flannel.udp.packet import GSO_TCPV4, NEEDS_CSUM, VNET, checksum
from tortie.flannel.udp.proxy import ABILITIES, SO_RCVBUFFORCE, Way
from tortie.kernel.netns import entered

IP_RECVERR, IP_RECVTTL = 11, 12  # linux/in.h

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Compiled once for all tests."""
    return compiled(tmp_path_factory.mktemp("run"))


@pytest.fixture
def pair(make_ns: Callable[..., Ns], setting: Setting) -> Iterator[Pair]:
    with two_nodes(make_ns, setting) as made:
        yield made


def transfer(source: Ns, target: Ns, ip: str, size: int = 3_000_000) -> None:
    """Over TCP, and what comes out is what went in."""
    data, got = os.urandom(size), bytearray()
    with sock(target, socket.SOCK_STREAM) as listener, sock(source, socket.SOCK_STREAM) as client:
        listener.bind((ip, 7000))
        listener.listen()

        def receive() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                while more := connection.recv(1 << 16):
                    got.extend(more)

        thread = threading.Thread(target=receive)
        thread.start()
        client.settimeout(10)
        client.connect((ip, 7000))
        client.sendall(data)
        client.close()
        thread.join(20)
    assert bytes(got) == data


# --- packets ------------------------------------------------------------------------------------------------------


def test_pods_reach_each_other(pair: Pair) -> None:
    one, two = pair.one, pair.two
    (device,) = one.ns.json("link", "show", "flannel0")
    assert (device["mtu"], device["ifalias"]) == (1472, "tortie flannel 10.5.0.0/16")
    assert device["linkinfo"] == {
        "info_kind": "tun",
        "info_data": {"type": "tun", "pi": False, "vnet_hdr": True, "multi_queue": False, "persist": True},
    }
    (addresses,) = one.ns.json("-4", "address", "show", "flannel0")
    assert [(each["local"], each["prefixlen"]) for each in addresses["addr_info"]] == [("10.5.1.0", 32)]
    assert paths(one.ns) == {"10.5.0.0/16": ("flannel0",)}
    assert one.reaches(two)
    assert two.reaches(one)
    assert answered(one.ns, pod_ip(2)), "and from the host"


def test_a_hop_costs_two_of_the_ttl(pair: Pair) -> None:
    """Two by proxies, two by the nodes' own forwarding."""
    with sock(pair.one.pod) as here, sock(pair.two.pod) as there:
        there.bind((pod_ip(2), 7000))
        there.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        here.sendto(b"x", (pod_ip(2), 7000))
        _, ancillary, _, _ = there.recvmsg(10, 100)
        assert [struct.unpack("i", data)[0] for _, kind, data in ancillary if kind == socket.IP_TTL] == [60]


@pytest.mark.parametrize("where", ["pod", "ns"])
def test_a_subnet_of_nobody_is_unreachable(pair: Pair, where: str) -> None:
    source: Ns = getattr(pair.one, where)
    with sock(source, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw, sock(source) as here:
        here.sendto(b"hello", ("10.5.77.5", 7000))
        said = raw.recv(500)
        assert (said[8], said[12:16], said[20:22]) == (8, bytes((10, 5, 1, 0)), b"\x03\x00")
        assert said[28 + 16 : 28 + 20] == bytes((10, 5, 77, 5))
        here.connect(("10.5.77.5", 7000))
        here.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        here.send(b"hello")
        raw.recv(500)
        with pytest.raises(OSError, match="unreachable"):
            here.send(b"again")
    assert proxy_of(pair.one).counters()["sent_unreachable"] >= 2
    assert "Destination Net Unreachable" in source.run("ping", "-c", "1", "-w", "2", "10.5.77.5", check=False)


def test_not_everybody_is_told_in_a_flood(pair: Pair) -> None:
    """A thousand in a second, by the clock."""
    with sock(pair.one.pod, socket.SOCK_RAW, socket.IPPROTO_ICMP, 0.5) as raw, sock(pair.one.pod) as here:
        raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        began = time.monotonic()
        while proxy_of(pair.one).counters()["sent_unreachable"] <= 4000:
            assert time.monotonic() < began + 10
            for _ in range(400):  # fewer than the device's queue takes
                here.sendto(b"hello", ("10.5.77.5", 7000))
        took, told = time.monotonic() - began, 0
        with contextlib.suppress(TimeoutError):
            while raw.recv(500):
                told += 1
    assert 500 < told <= 1000 * (took + 2)


@pytest.mark.parametrize(("ttl", "who"), [(2, "10.5.1.0"), (3, "10.5.2.0")])
def test_who_sends_with_too_small_a_ttl_is_told_by_whom(pair: Pair, ttl: int, who: str) -> None:
    said = pair.one.pod.run("ping", "-n", "-c", "1", "-w", "3", "-t", str(ttl), pod_ip(2), check=False)
    assert f"From {who} icmp_seq=1 Time to live exceeded" in said


def test_large_transfers_both_ways(pair: Pair) -> None:
    transfer(pair.one.pod, pair.two.pod, pod_ip(2))
    transfer(pair.two.pod, pair.one.pod, pod_ip(1))
    counted = udp_of(pair.one).counters()
    assert counted["sent_bytes"] > 3_000_000
    assert counted["received_bytes"] > 3_000_000
    assert {
        name: count for name, count in counted.items() if "refused" in name or "malformed" in name
    } == dict.fromkeys(("sent_refused", "received_refused", "sent_malformed", "received_malformed"), 0)


def started_anew(node: FlannelNode, setting: Setting, without: str = "") -> proxy.Proxy:
    """The node's proxy, which knows no table yet."""
    end(node)
    with entered(node.ns.path):
        made = proxy.start(setting.run_dir / build.NAME, ALIAS, IPv4Address("192.0.2.1"), 8285, without)
    udp_of(node)._proxy, udp_of(node)._told = made, None
    return made


def datagrams(source: Ns, target: Ns, ip: str) -> None:
    """Of many sizes, one after the other and many of one size in one call; what is too large goes in fragments."""
    sizes = [*([33] * 50), 0, 1, 2, 1000, 1443, 1444, 1445, 5000, 60_000]
    with sock(source) as here, sock(target) as there:
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        there.bind((ip, 7000))
        sent = [os.urandom(size) for size in sizes]
        for data in sent:
            here.sendto(data, (ip, 7000))
        segment = struct.pack("H", 100)
        many = os.urandom(2550)
        here.sendmsg([many], [(socket.SOL_UDP, 103, segment)], 0, (ip, 7000))  # UDP_SEGMENT of linux/udp.h
        sent += [many[at : at + 100] for at in range(0, 2550, 100)]
        assert [there.recv(65536) for _ in sent] == sent


@pytest.mark.parametrize("without", ["", *ABILITIES, ",".join(ABILITIES)])
def test_a_kernel_that_can_do_less(pair: Pair, setting: Setting, without: str) -> None:
    """Either side without it: packets are cut and put together elsewhere, and stay the same."""
    lesser = started_anew(pair.one, setting, without)
    assert pair.carry_out(pair.one) == []
    lacks = set(without.split(",")) | ({"uso"} if "tso" in without else set())
    assert lesser.abilities() <= frozenset(ABILITIES) - lacks
    for source, target, ip in ((pair.one, pair.two, pod_ip(2)), (pair.two, pair.one, pod_ip(1))):
        transfer(source.pod, target.pod, ip, 1_000_000)
        datagrams(source.pod, target.pod, ip)


def test_a_path_that_takes_no_full_packets(pair: Pair) -> None:
    """The kernel refuses bundles of datagrams that are to be fragments: they are sent one by one."""
    pair.one.ns.ip("route", "add", "192.0.2.2/32", "dev", "eth0", "mtu", "1300")
    transfer(pair.one.pod, pair.two.pod, pod_ip(2), 500_000)
    assert proxy_of(pair.one).counters()["sent_refused"] == 0


def largest(length: int) -> bytes:
    """A TCP segment of so many bytes that the kernel is to cut, with its struct virtio_net_hdr."""
    total, tcp = struct.pack("!H", length), struct.pack("!HHIIBBHHH", 7, 7, 1, 1, 0x50, 0x10, 100, 0, 0)
    head = b"\x45\0" + total + b"\0\0\0\0\x40\x06\0\0" + bytes((10, 5, 1, 2, 10, 5, 2, 2))
    head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
    return VNET.pack(NEEDS_CSUM, GSO_TCPV4, 40, 1400, 20, 16) + head + tcp + bytes(length - 40)


def test_the_largest_packets_at_once(pair: Pair) -> None:
    """As a pod may make them with a packet socket. They wait while the proxy is stopped, so that one read follows
    another; three of the first size leave the least room for the fourth."""
    lengths = [65526] * 3 + [65535] * 60
    pid = proxy_of(pair.one).pid
    with entered(pair.one.ns.path), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as raw:
        raw.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR of linux/if_packet.h
        raw.bind(("flannel0", 0x0800))
        os.kill(pid, signal.SIGSTOP)
        for length in lengths:
            raw.send(largest(length))
        os.kill(pid, signal.SIGCONT)
    pieces = sum(-(-(length - 40) // 1400) for length in lengths)
    eventually(lambda: proxy_of(pair.one).counters()["sent_packets"] >= pieces)
    assert proxy_of(pair.one).counters()["sent_malformed"] == 0
    assert pair.carry_out(pair.one) == []


# --- who is heard -------------------------------------------------------------------------------------------------


def test_who_is_no_node_is_not_heard_and_said(pair: Pair, make_ns: Callable[..., Ns]) -> None:
    pair.one.ns.ip("address", "add", "192.0.2.99/24", "dev", "eth0")
    with sock(pair.one.ns) as stranger, sock(pair.two.pod) as there:
        there.bind((pod_ip(2), 7000))
        stranger.bind(("192.0.2.99", 0))
        for _ in range(3):
            stranger.sendto(b"\x45" + bytes(40), ("192.0.2.2", 8285))
        eventually(lambda: proxy_of(pair.two).counters()["received_stranger"] == 3)
    assert pair.carry_out(pair.two) == ["packets from 192.0.2.99 were dropped: no node has this public address"]
    assert pair.carry_out(pair.two) == [], "said once"
    assert udp_of(pair.two).counters()["last_stranger"] == "192.0.2.99"


def test_garbage_on_the_port_is_counted(pair: Pair) -> None:
    with sock(pair.one.ns) as node:
        node.bind(("192.0.2.1", 0))
        for data in (b"", b"x", b"\x45" + bytes(18), b"\x4f" + bytes(30), b"\x60" + bytes(60), os.urandom(1400)):
            node.sendto(data, ("192.0.2.2", 8285))
    eventually(
        lambda: (
            sum(proxy_of(pair.two).counters()[f"received_{why}"] for why in ("malformed", "not_ipv4", "refused")) >= 5
        )
    )
    assert pair.one.reaches(pair.two)


# --- tables -------------------------------------------------------------------------------------------------------


def test_tables_change_under_traffic_and_lose_nothing(pair: Pair) -> None:
    """5,000 nodes come and go a few hundred times; the one that matters is in every table."""
    way = Way(IPv4Network("10.5.2.0/24"), IPv4Address("192.0.2.2"), 8285)
    many = [Way(IPv4Network((0x0A060000 + (n << 8), 24)), IPv4Address(0xC6336400 + n), 8285) for n in range(5000)]
    stop, changes = threading.Event(), []

    def change() -> None:
        while not stop.is_set():
            proxy_of(pair.one).put_table(IPv4Address("10.5.1.0"), [*many[: len(changes) * 37 % 5000], way])
            changes.append(1)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        transfer(pair.one.pod, pair.two.pod, pod_ip(2), 10_000_000)
        datagrams(pair.one.pod, pair.two.pod, pod_ip(2))
    finally:
        stop.set()
        thread.join()
    counted = proxy_of(pair.one).counters()
    assert len(changes) > 20
    assert (counted["sent_unreachable"], counted["received_stranger"]) == (0, 0)


def test_packets_wait_for_the_first_table(pair: Pair, setting: Setting) -> None:
    """While a daemon starts, and does not know its neighbours yet, nobody is told that they are unreachable."""
    fresh = started_anew(pair.one, setting)
    with sock(pair.one.pod) as here, sock(pair.two.pod) as there:
        there.bind((pod_ip(2), 7000))
        here.connect((pod_ip(2), 7000))
        here.send(b"early")
        there.settimeout(0.3)
        with pytest.raises(TimeoutError):
            there.recv(100)
        assert pair.carry_out(pair.one) == []
        assert there.recv(100) == b"early"
    assert fresh.counters()["sent_unreachable"] == 0


def test_a_node_that_goes_is_not_reached_any_more(pair: Pair) -> None:
    with entered(pair.one.ns.path):
        assert asyncio.run(pair.one.backend.carry_out(pair.one.place, [])) == []
    said = pair.one.pod.run("ping", "-c", "1", "-w", "2", pod_ip(2), check=False)
    assert "From 10.5.1.0 icmp_seq=1 Destination Net Unreachable" in said
    assert not pair.two.reaches(pair.one), "nor is it heard"
