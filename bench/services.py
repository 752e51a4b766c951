"""Services at the sizes where kube-proxy is known to be slow: cold start, one endpoint changed, the first packet.

netns: tortie proxy ─ store.db with N services of 2 endpoints each;   client ─ lo ─► VIP of the last one ─► two servers

What is measured is what a client sees: a cold start lasts from the start of the program until the last service answers,
a change from the write to the datastore until a new connection gets the other backend. The peer of a cold start is the
kernel's part of it alone: `nft -f` of the very same table. That of a first packet is a connection to a backend without
any service in between. If KUBE_PROXY names a kube-proxy, it runs in a namespace of its own against an API server's
double, and so does ours then, a second time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from msgspec.structs import replace

from bench.figures import Figure, Report, against, median, percentile
from bench.large import fill, made
from bench.node import TORTIE, NotReady, memory_of, namespace, program_environment
from bench.plugin import scratch
from bench.progress import Advance, alone
from tortie.kernel import netns
from tortie.kernel.addresses import add_address
from tortie.kernel.netlink import Netlink
from tortie.model.meta import Metadata, Resource
from tortie.model.service import SERVICE_NAME, Endpoint, EndpointPort, EndpointSlice, Service, ServicePort, ServiceSpec
from tortie.store import open_store

NAME = "services"
TITLE = "Services: cold start, one change, first packet"
SIZES = (10, 1_000, 10_000, 30_000)
CHANGES, CONNECTIONS = 200, 3_000
COLD_TARGET, CHANGE_TARGET = 5.0, 30.0
"""Seconds and milliseconds, at 10,000 services."""
FLAT = 1.25
"""How many times the median first packet of ten services that of thirty thousand may take."""
PATIENCE = 180.0
BOUND = 10_000
BESIDE = (1_000, 10_000)
"""Sizes at which kube-proxy is run, too: one of thirty thousand takes minutes in iptables."""
KUBE_PROXY = "KUBE_PROXY"
STEPS = 2 * len(SIZES) + (4 * len(BESIDE) if os.environ.get(KUBE_PROXY) else 0)
TABLE = "inet tortie-services"
NS = "default"
VIPS, FAKES = IPv4Address("10.96.0.0"), IPv4Address("10.128.0.0")
A, B, PORT = "10.65.0.1", "10.65.0.2", 8080
NODE = "192.0.2.1"
NODES = 100
PROBE = "192.0.2.2"
"""Who asks whether there is an answer yet. What is sent before that is tracked without translation for two minutes, and
would meet a later connection from the same port."""


# --- what there is ------------------------------------------------------------------------------------------------


def vip(number: int) -> str:
    return str(VIPS + 256 + number)


def service(number: int) -> Service:
    ports = (ServicePort(port=80, target_port=PORT),)
    spec = ServiceSpec(cluster_ip=vip(number), cluster_ips=(vip(number),), ports=ports, ip_families=("IPv4",))
    return Service(metadata=Metadata(name=f"s{number}", namespace=NS), spec=spec)


def slice_of(number: int, *ips: str) -> EndpointSlice:
    metadata = Metadata(name=f"s{number}-1", namespace=NS, labels={SERVICE_NAME: f"s{number}"})
    endpoints = tuple(Endpoint(addresses=(ip,), node_name=f"n{number % NODES}") for ip in ips)
    return EndpointSlice(metadata=metadata, address_type="IPv4", endpoints=endpoints, ports=(EndpointPort(port=PORT),))


def world(size: int) -> Iterator[Resource]:
    """The last service is that of the two servers; the others lead to nobody."""
    for number in range(size):
        yield service(number)
        last = number == size - 1
        yield slice_of(number, *((A, B) if last else (str(FAKES + 2 * number), str(FAKES + 2 * number + 1))))


@contextlib.contextmanager
def place(name: str) -> Iterator[str]:
    """A namespace where two servers answer with their address."""
    with namespace(name) as path:
        with Netlink(path) as nl:
            for ip in (NODE, PROBE, A, B):
                add_address(nl, 1, f"{ip}/32")
        subprocess.run(["ip", "-n", name, "route", "add", "10.96.0.0/12", "dev", "lo", "src", NODE], check=True)
        with netns.entered(path):
            listeners = [socket.create_server((ip, PORT), backlog=512) for ip in (A, B)]
        for listener in listeners:
            threading.Thread(target=_serve, args=(listener,), daemon=True).start()
        try:
            yield path
        finally:
            for listener in listeners:
                listener.shutdown(socket.SHUT_RDWR)
                listener.close()


def _serve(listener: socket.socket) -> None:
    ip = listener.getsockname()[0].encode()
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            connection.sendall(ip)
            connection.close()


def answer(ip: str, port: int) -> str:
    """Who answers, "" if nobody does."""
    with contextlib.suppress(OSError), socket.create_connection((ip, port), 0.05, (PROBE, 0)) as connection:
        return connection.recv(32).decode()
    return ""


# --- measuring ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def proxy(path: str, datastore: str, directory: Path, words: tuple[str, ...] = ()) -> Iterator[int]:
    """Ours, from its start on; its process."""
    own = (
        "--datastore",
        datastore,
        "--node",
        f"n{NODES - 1}",
        "--run-dir",
        str(directory),
        "--lib-dir",
        str(directory),
    )
    command = [str(TORTIE), "proxy", *own, "--cluster-cidr", "10.65.0.0/16", "--services", "on", *words]
    with _program(path, command, directory / "proxy.log") as pid:
        yield pid


@contextlib.contextmanager
def _program(path: str, command: list[str], log: Path) -> Iterator[int]:
    with netns.entered(path), log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=program_environment())
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def until(true: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > deadline:
            raise NotReady(f"not after {PATIENCE:g} s: {log.read_text(errors='replace')[-1000:]}")
        time.sleep(0.002)


async def changes(store_path: str, size: int, asked: Callable[[], str]) -> list[float]:
    """Milliseconds from each write until a new connection gets the backend that is the only one now."""
    store = open_store(store_path)
    took: list[float] = []
    try:
        number = size - 1
        there = await store.get(EndpointSlice, f"s{number}-1", NS)
        for turn in range(CHANGES):
            want = (A, B)[turn % 2]
            began = time.perf_counter()
            there = await store.update(replace(there, endpoints=slice_of(number, want).endpoints))
            deadline = time.monotonic() + PATIENCE
            while asked() != want:
                if time.monotonic() > deadline:
                    raise NotReady(f"a change of one endpoint is not in the kernel after {PATIENCE:g} s")
            if turn > 1:  # two backends become one at first
                took.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(0.02)
    finally:
        await store.close()
    return took


def first_packets(path: str, size: int) -> tuple[list[float], list[float]]:
    """Microseconds of connecting to the last service, and to a backend of it, in turn."""
    found: tuple[list[float], list[float]] = ([], [])
    with netns.entered(path):
        for _ in range(CONNECTIONS):
            for samples, where in zip(found, ((vip(size - 1), 80), (A, PORT)), strict=True):
                one = socket.socket()
                began = time.perf_counter_ns()
                one.connect(where)
                samples.append((time.perf_counter_ns() - began) / 1000)
                one.close()
    return found


def by_hand(path: str, prefix: str) -> float:
    """Seconds that `nft -f` takes for the same table, in a namespace of its own."""
    with netns.entered(path):
        listed = subprocess.run(["nft", "list", "table", *TABLE.split()], capture_output=True, check=True)
    with namespace(f"{prefix}h") as other, netns.entered(other):
        began = time.perf_counter()
        subprocess.run(["nft", "-f", "-"], input=listed.stdout, check=True)
        return time.perf_counter() - began


async def _written(datastore: Path, size: int) -> None:
    store = await made(datastore)
    await store.close()
    await asyncio.to_thread(fill, datastore, world(size))


Program = contextlib.AbstractContextManager[int]
"""One that runs while the block does; its process."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one side took: seconds, milliseconds, microseconds, MB. `hand`: `nft -f` of its table, 0: not asked."""

    cold: float
    changes: list[float]
    through: list[float]
    direct: list[float]
    memory: float
    hand: float = 0.0


def run(path: str, datastore: str, size: int, program: Program, log: Path, prefix: str = "") -> Found:
    """Measures a program that is started here. With `prefix` its table is put in once more, by hand."""

    def asked() -> str:
        with netns.entered(path):
            return answer(vip(size - 1), 80)

    began = time.perf_counter()
    with program as pid:
        until(lambda: asked() in (A, B), log)
        cold = time.perf_counter() - began
        hand = by_hand(path, prefix) if prefix else 0.0
        through, direct = first_packets(path, size)
        with netns.entered(path):
            took = asyncio.run(changes(datastore, size, asked))
        return Found(cold, took, through, direct, memory_of(pid).now, hand)


def measured(size: int, report: Report, advance: Advance) -> float:
    """All of one size; the median first packet."""
    words = f"{size:,} services"
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(scratch(NAME)))
        prefix = f"tb-{os.getpid()}s{size}"
        path = stack.enter_context(place(prefix))
        datastore = directory / "store.db"
        asyncio.run(_written(datastore, size))
        advance(f"{NAME}: {words} written")
        program = proxy(path, str(datastore), directory)
        found = run(path, str(datastore), size, program, directory / "proxy.log", prefix)
        advance(f"{NAME}: {words}")
    report.samples |= {
        f"{words}: a change, ms": found.changes,
        f"{words}: connecting through the service, us": found.through,
        f"{words}: connecting to the backend, us": found.direct,
    }
    bound = size == BOUND
    p99 = percentile(found.changes, 99)
    direct = "straight to the backend"
    report.figures += [
        _figure(f"{words}: cold start", found.cold, "s", "nft -f of the same table", found.hand, COLD_TARGET * bound),
        Figure(f"{words}: one change, p50", median(found.changes), "ms"),
        _figure(f"{words}: one change, p99", p99, "ms", "", None, CHANGE_TARGET * bound),
        against(f"{words}: first packet, p50", median(found.through), "us", direct, median(found.direct)),
        against(
            f"{words}: first packet, p99", percentile(found.through, 99), "us", direct, percentile(found.direct, 99)
        ),
        Figure(f"{words}: memory", found.memory, "MB"),
    ]
    return median(found.through)


def beside(size: int, mode: str, report: Report, advance: Advance) -> None:
    """Ours and kube-proxy on API servers with the same objects, one after the other."""
    from bench import services_peer as peer

    found: list[Found] = []
    for side in ("ours", mode):
        with contextlib.ExitStack() as stack:
            directory = Path(stack.enter_context(scratch(NAME)))
            path = stack.enter_context(place(f"tb-{os.getpid()}k{size}"))
            kubeconfig, log = directory / "kubeconfig", directory / "proxy.log"
            node = f"n{NODES - 1}"
            datastore = stack.enter_context(peer.cluster(path, world(size), node, kubeconfig))
            command = peer.command(mode, node, kubeconfig)
            program = proxy(path, datastore, directory) if side == "ours" else _program(path, command, log)
            found.append(run(path, datastore, size, program, log))
        advance(f"{NAME}: {size:,} services, {side}")
    own, other = found
    who = f"kube-proxy, {mode}"
    words = f"{size:,} services on an API server, {mode}"
    report.samples |= {f"{words}: a change, ms": own.changes, f"{words}: a change of kube-proxy, ms": other.changes}
    report.figures += [
        against(f"{words}: cold start", own.cold, "s", who, other.cold),
        against(f"{words}: one change, p50", median(own.changes), "ms", who, median(other.changes)),
        against(f"{words}: one change, p99", percentile(own.changes, 99), "ms", who, percentile(other.changes, 99)),
        against(f"{words}: first packet, p50", median(own.through), "us", who, median(other.through)),
        against(f"{words}: first packet, p99", percentile(own.through, 99), "us", who, percentile(other.through, 99)),
        against(f"{words}: memory", own.memory, "MB", who, other.memory),
    ]


def _figure(name: str, value: float, unit: str, peer: str, peer_value: float | None, bound: float) -> Figure:
    """`bound` 0: nothing is demanded."""
    target = f"<= {bound:g} {unit}" if bound else ""
    return Figure(name, value, unit, peer, peer_value, target, value <= bound if bound else None)


def measure(advance: Advance) -> Report:
    """Raises NotReady."""
    report = Report(NAME, TITLE)
    packets = {size: measured(size, report, advance) for size in SIZES}
    few, many = min(SIZES), max(SIZES)
    name = f"first packet at {many:,} services, against {few:,}"
    report.figures.append(against(name, packets[many], "us", f"{few:,} services", packets[few], at_most=FLAT))
    if os.environ.get(KUBE_PROXY):
        for mode in ("nftables", "iptables"):
            for size in BESIDE:
                beside(size, mode, report, advance)
    else:
        report.missing["beside kube-proxy"] = f"{KUBE_PROXY} names none"
    return report


if __name__ == "__main__":
    sys.exit(alone(NAME))
