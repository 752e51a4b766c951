"""What goes from one network namespace to another: bytes a second; round trips and connections a second of CPU.

Round trips and connections are made by one thread that has both ends, and the kernel forwards its packets in its time:
counted by the CPU that it takes, they tell what a packet costs whatever else the machine does.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import time
from pathlib import Path

from tortie.kernel import netns

PORT = 5201  # iperf3's
PAYLOAD = b"x" * 64
PATIENCE = 120.0 if "STOCKVM" in os.environ else 10.0  # an emulated processor takes its time
ROUTE_SECONDS = 20.0
_NO_LINGER = struct.pack("ii", 1, 0)  # struct linger (sys/socket.h): closing resets, no port waits in TIME_WAIT


class NoTraffic(Exception):
    """Nothing comes through: there is nothing to measure."""


def tcp_throughput(source: str, target: str, ip: str, seconds: float) -> float:
    """Gbit/s that one TCP stream of iperf3 moves from one namespace (a path) to an address in another."""
    with netns.entered(target):
        server = subprocess.Popen(
            ["iperf3", "--server", "--one-off", "--port", str(PORT)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        _await_listening(target)
        argv = ["iperf3", "--client", ip, "--port", str(PORT), "--time", f"{seconds:g}", "--omit", "0.5", "--json"]
        with netns.entered(source):
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=seconds + PATIENCE)
    finally:
        server.kill()
        server.wait()
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise NoTraffic(f"iperf3 to {ip}: {answer['error']}")
    return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9


def _await_listening(path: str) -> None:
    """Looks instead of knocking: iperf3 would take a connection that says nothing for its one client."""
    deadline = time.monotonic() + PATIENCE
    with netns.entered(path):
        while not any(f":{PORT:04X} " in line for line in _listening()):
            if time.monotonic() > deadline:
                raise NoTraffic(f"iperf3 does not listen after {PATIENCE:g} s")
            time.sleep(0.01)


def _listening() -> list[str]:
    """The calling thread's namespace's sockets in state TCP_LISTEN, which is 0A there: proc_net(5)."""
    files = (Path(f"/proc/thread-self/net/{name}").read_text() for name in ("tcp", "tcp6"))
    return [line for text in files for line in text.splitlines() if " 0A " in line]


def udp_round_trips(source: str, target: str, ip: str, seconds: float, patience: float = PATIENCE) -> float:
    """64 byte packets there and back, a second of CPU."""
    here, there = (_socket(path, socket.SOCK_DGRAM, patience) for path in (source, target))
    with here, there:
        there.bind((ip, PORT))
        here.connect((ip, PORT))
        here.send(PAYLOAD)  # neighbours get to know each other
        _, back = there.recvfrom(len(PAYLOAD))
        there.connect(back)
        there.send(PAYLOAD)
        here.recv(len(PAYLOAD))
        count, began = 0, time.thread_time()
        while (took := time.thread_time() - began) < seconds:
            for _ in range(50):
                here.send(PAYLOAD)
                there.recv(len(PAYLOAD))
                there.send(PAYLOAD)
                here.recv(len(PAYLOAD))
            count += 50
    return count / took


def await_path(source: str, target: str, ip: str) -> None:
    """Returns when packets go there and back: BGP may take a moment. Raises NoTraffic."""
    deadline = time.monotonic() + ROUTE_SECONDS
    while True:
        try:
            udp_round_trips(source, target, ip, 0.01, patience=0.2)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise NoTraffic(f"no way to {ip} after {ROUTE_SECONDS:g} s") from error


def tcp_connections(source: str, target: str, ip: str, seconds: float) -> float:
    """TCP connections opened, accepted and reset per second of CPU: each first packet asks all of the policy."""
    listener = _socket(target, socket.SOCK_STREAM)
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ip, PORT))
        listener.listen()
        count, began = 0, time.thread_time()
        while (took := time.thread_time() - began) < seconds:
            with _socket(source, socket.SOCK_STREAM) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                client.connect((ip, PORT))
                listener.accept()[0].close()
            count += 1
    return count / took


def _socket(path: str, kind: socket.SocketKind, patience: float = PATIENCE) -> socket.socket:
    with netns.entered(path):
        made = socket.socket(socket.AF_INET, kind)
    made.settimeout(patience)
    return made
