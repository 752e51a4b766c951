"""The udp backend: packets and bytes from pod to pod, against a proxy that is simply written, and against VXLAN.

pod ─ veth ─ node1 ─ TUN ─ proxy ═ veth ═ bridge ═ veth ═ proxy ─ TUN ─ node2 ─ veth ─ pod

The peer is asyncio with one packet at a time (naive_udp.py) on the same devices and routes. Packets are small ones of
UDP, each sent by itself, as many as one thread can send: what arrives is counted, and what both proxies took of the
CPU for it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fcntl import ioctl
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from bench import fabric, wire
from bench.encap import ENCAPSULATIONS, by_hand
from bench.fabric import NODES
from bench.figures import Figure, Report, against, median
from bench.plugin import scratch
from bench.progress import Advance, alone
from tortie.flannel.udp import build, proxy, tun
from tortie.flannel.udp.proxy import Way
from tortie.kernel import netns

NAME = "flannel_udp"
TITLE = "Flannel's udp backend: our proxy, against one packet at a time in asyncio, and against VXLAN"
OURS, NAIVE, VXLAN = "ours", "asyncio, a packet at a time", "VXLAN by hand"
TIMES = 5.0
"""How many packets more than the naive one it is to carry."""
ROUNDS, SECONDS = 7, 1.5
PAYLOAD, PORT = 64, 7000
PROXY_PORT = 8285
MTU = 1472
NETS = (IPv4Network("10.91.1.0/24"), IPv4Network("10.91.2.0/24"))
SOURCE = Path(__file__).with_name("packet_rate.c")
STEPS = 2 * ROUNDS


@dataclass(frozen=True, slots=True)
class Side:
    """A pod on each of two nodes (namespaces' paths), the second one's address, and the proxies."""

    client: str
    server: str
    ip: str
    pids: tuple[int, ...] = ()

    def cpu(self) -> float:
        """Seconds that the proxies took so far: /proc/PID/task/*/schedstat, nanoseconds first."""
        tasks = (task for pid in self.pids for task in Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


Starter = Callable[[int], contextlib.AbstractContextManager[tuple[str, int]]]
"""Starts the proxy of a node, 0 or 1, in whose namespace it is called: the device, and the process."""


@contextlib.contextmanager
def side(prefix: str, start: Starter) -> Iterator[Side]:
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(fabric.nodes(prefix))
        client, _, server = stack.enter_context(fabric.pods(prefix, hosts))
        pids = []
        for node, host in enumerate(hosts):
            with netns.entered(host):
                device, pid = stack.enter_context(start(node))
            pids.append(pid)
            ip = f"ip -n {Path(host).name}"
            _run(f"{ip} address add {NETS[node].network_address}/32 dev {device}")
            _run(f"{ip} link set {device} mtu {MTU} up")
            _run(f"{ip} route replace {NETS[1 - node]} dev {device}")
        for pod in (client, server):
            _run(f"ip -n {Path(pod.netns).name} link set eth0 mtu {MTU}")
        yield Side(client.netns, server.netns, server.ip, tuple(pids))


def ours(program: Path, without: str = "") -> Starter:
    @contextlib.contextmanager
    def start(node: int) -> Iterator[tuple[str, int]]:
        made = proxy.start(program, "bench", IPv4Address(NODES[node]), PROXY_PORT, without)
        try:
            way = Way(NETS[1 - node], IPv4Address(NODES[1 - node]), PROXY_PORT)
            made.put_table(NETS[node].network_address, [way])
            yield made.device, made.pid
        finally:
            made.close()

    return start


@contextlib.contextmanager
def naive(node: int) -> Iterator[tuple[str, int]]:
    name = "flannel0"
    device = os.open(tun.DEVICE, os.O_RDWR | os.O_NONBLOCK)
    ioctl(device, tun.TUNSETIFF, tun.IFREQ.pack(name.encode(), tun.IFF_TUN | tun.IFF_NO_PI))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for option in (proxy.SO_RCVBUFFORCE, proxy.SO_SNDBUFFORCE):
            udp.setsockopt(socket.SOL_SOCKET, option, proxy.BUFFER)
        udp.bind((NODES[node], PROXY_PORT))
        fds = (device, udp.fileno())
        words = [sys.executable, "-m", "bench.naive_udp", *map(str, fds), f"{NETS[1 - node]}={NODES[1 - node]}"]
        process = subprocess.Popen(words, pass_fds=fds, cwd=Path(__file__).parents[1])
    os.close(device)
    try:
        yield name, process.pid
    finally:
        process.kill()
        process.wait()


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True, timeout=30)


# --- measuring ----------------------------------------------------------------------------------------------------


def packet_rate(program: Path, one: Side, seconds: float, per_second: int = 0) -> tuple[float, float]:
    """Packets a second that arrive, and microseconds of the proxies' CPU for each of them. Raises NoTraffic."""
    receive = [program, "receive", one.ip, str(PORT), f"{seconds:g}"]
    send = [program, "send", one.ip, str(PORT), f"{seconds + 0.5:g}", str(PAYLOAD), str(per_second)]
    with netns.entered(one.server):
        receiver = subprocess.Popen(receive, stdout=subprocess.PIPE, text=True)
    try:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        before = one.cpu()
        with netns.entered(one.client):
            subprocess.run(send, check=True, stdout=subprocess.DEVNULL, timeout=seconds + wire.PATIENCE)
        found = float(receiver.communicate(timeout=wire.PATIENCE)[0])
        took = one.cpu() - before
    finally:
        receiver.kill()
        receiver.wait()
    if not found:
        raise wire.NoTraffic(f"no packet arrives at {one.ip}")
    return found, took / (found * (seconds + 0.5)) * 1e6


def measure(advance: Advance) -> Report:
    """Raises NoTraffic, NotSupported."""
    report = Report(NAME, TITLE)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(scratch("udp")))
        program, prefix = build.build(directory), f"tb-{directory.name[-8:]}"
        rate = directory / "packet_rate"
        subprocess.run(["cc", "-O2", "-o", rate, SOURCE], check=True)
        vxlan = stack.enter_context(by_hand(ENCAPSULATIONS[1], f"{prefix}v"))
        sides = {
            OURS: stack.enter_context(side(f"{prefix}o", ours(program))),
            NAIVE: stack.enter_context(side(f"{prefix}n", naive)),
            VXLAN: Side(vxlan.client, vxlan.server, vxlan.ip),
        }
        for one in sides.values():
            wire.await_path(one.client, one.server, one.ip)
        packets: dict[str, list[float]] = {name: [] for name in sides}
        cpu: dict[str, list[float]] = {name: [] for name in sides}
        streams: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(ROUNDS):
            for name in list(sides) if number % 2 else list(sides)[::-1]:
                arrived, took = packet_rate(rate, sides[name], SECONDS)
                packets[name].append(arrived)
                cpu[name].append(took)
            advance(f"{NAME}: packets")
            for name in list(sides) if number % 2 else list(sides)[::-1]:
                one = sides[name]
                streams[name].append(wire.tcp_throughput(one.client, one.server, one.ip, SECONDS))
            advance(f"{NAME}: TCP")
    report.samples |= {f"packets, {name}, /s": values for name, values in packets.items()}
    report.samples |= {f"CPU of a packet, {name}, us": cpu[name] for name in (OURS, NAIVE)}
    report.samples |= {f"TCP, 1 stream, {name}, Gbit/s": values for name, values in streams.items()}
    report.figures += figures(packets, cpu, streams)
    return report


def figures(
    packets: dict[str, list[float]], cpu: dict[str, list[float]], streams: dict[str, list[float]]
) -> Iterator[Figure]:
    many, took, fast = ({name: median(values) for name, values in of.items()} for of in (packets, cpu, streams))
    words = f"UDP packets of {PAYLOAD} bytes"
    yield against(words, many[OURS], "/s", NAIVE, many[NAIVE], at_least=TIMES)
    yield against(f"{words}, CPU of both proxies", took[OURS], "us", NAIVE, took[NAIVE], at_most=1 / TIMES)
    yield against(f"{words}, VXLAN", many[OURS], "/s", VXLAN, many[VXLAN])
    yield against("TCP, 1 stream", fast[OURS], "Gbit/s", NAIVE, fast[NAIVE])
    yield against("TCP, 1 stream, VXLAN", fast[OURS], "Gbit/s", VXLAN, fast[VXLAN])


if __name__ == "__main__":
    sys.exit(alone(NAME))
