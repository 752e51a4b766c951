"""A host with a bridge, containers on it and a neighbour outside, made with `ip`: the ground for chained plugins.

pod "a" 10.1.2.2, fd00:1::2 ── eth0/vetha ─┐
pod "b" 10.1.2.3, fd00:1::3 ── eth0/vethb ─┴─ cni0 10.1.2.1 [host] eth0 192.0.2.1, fd00:2::1 ─── .2 outside
"""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cni_plugins import Caller
from namespaces import Ns
from tortie.kernel import netns, sysctl

HOST4, OUTSIDE4, HOST6, OUTSIDE6 = "192.0.2.1", "192.0.2.2", "fd00:2::1", "fd00:2::2"
PODS = ("a", "b")


@dataclass(frozen=True)
class Ground:
    host: Ns
    outside: Ns
    pods: Mapping[str, Ns]
    call: Caller
    """Our plugins, on the host."""

    def result(self, pod: str = "a", version: str = "1.0.0", v6: bool = True) -> dict[str, Any]:
        """What `bridge` would have answered for a container."""
        of_family = {"version": "4"} if version < "1" else {}
        ips = [{**of_family, "interface": 2, "address": f"{ip4(pod)}/24", "gateway": "10.1.2.1"}]
        if v6:
            of_family = {"version": "6"} if version < "1" else {}
            ips.append({**of_family, "interface": 2, "address": f"{ip6(pod)}/64", "gateway": "fd00:1::1"})
        inside = {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": self.pods[pod].path}
        return {
            "cniVersion": version,
            "interfaces": [{"name": "cni0"}, {"name": f"veth{pod}"}, inside],
            "ips": ips,
            "routes": [{"dst": "0.0.0.0/0"}],
        }

    def on_host(self, *command: str, stdin: str | None = None) -> str:
        return self.host.run(*command, stdin=stdin)


def ip4(pod: str) -> str:
    return f"10.1.2.{2 + PODS.index(pod)}"


def ip6(pod: str) -> str:
    return f"fd00:1::{2 + PODS.index(pod)}"


def make_ground(make_ns: Callable[..., Ns], directory: Path) -> Ground:
    host, outside = make_ns("host"), make_ns("out")
    pods = {name: make_ns(f"pod{name}") for name in PODS}
    for ns in (host, outside, *pods.values()):
        for which in ("all", "default"):
            sysctl.write(f"net/ipv6/conf/{which}/accept_dad", 0, netns=ns.path)
    for path in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
        sysctl.write(path, 1, netns=host.path)
    batch(
        host,
        "link add cni0 type bridge",
        "addr add 10.1.2.1/24 dev cni0",
        "addr add fd00:1::1/64 dev cni0 nodad",
        "link set cni0 up",
        f"link add eth0 type veth peer name eth0 netns {outside.name}",
        *_ends((f"{HOST4}/24", f"{HOST6}/64"), ()),
    )
    batch(outside, *_ends((f"{OUTSIDE4}/24", f"{OUTSIDE6}/64"), (HOST4, HOST6)))
    for name, ns in pods.items():
        batch(
            host,
            f"link add veth{name} type veth peer name eth0 netns {ns.name}",
            f"link set veth{name} master cni0",
            f"link set veth{name} type bridge_slave hairpin on",
            f"link set veth{name} up",
        )
        batch(ns, *_ends((f"{ip4(name)}/24", f"{ip6(name)}/64"), ("10.1.2.1", "fd00:1::1")))
    return Ground(host, outside, pods, Caller(directory, host.name))


def batch(ns: Ns, *lines: str) -> None:
    """Commands of `ip`, in one process."""
    words = ["ip", "-n", ns.name, "-batch", "-"]
    done = subprocess.run(words, input="\n".join(lines), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def _ends(addresses: tuple[str, ...], gateways: tuple[str, ...]) -> Iterator[str]:
    for address in addresses:
        yield f"addr add {address} dev eth0{' nodad' if ':' in address else ''}"
    yield "link set eth0 up"
    yield from (f"route add default via {gateway}" for gateway in gateways)


# --- who answers ------------------------------------------------------------------------------------------------


def _family(ip: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


@contextmanager
def serving(ns: Ns, ip: str, port: int, name: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[None]:
    """Somebody in the namespace who says its name and whom it sees: `a 192.0.2.2`."""
    with netns.entered(ns.path):
        sock = socket.socket(_family(ip), kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((ip, port))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    thread = threading.Thread(target=_serve, args=(sock, name, kind), daemon=True)
    thread.start()
    try:
        yield
    finally:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()
        thread.join(5)


def _serve(sock: socket.socket, name: str, kind: socket.SocketKind) -> None:
    with suppress(OSError):
        while True:
            if kind == socket.SOCK_STREAM:
                peer, address = sock.accept()
                with peer, suppress(OSError):
                    peer.sendall(f"{name} {address[0]}".encode())
            else:
                data, address = sock.recvfrom(100)
                if not data:
                    return  # shut down
                sock.sendto(f"{name} {address[0]}".encode(), address)


def ask(ns: Ns, ip: str, port: int, seconds: float = 2.0) -> str:
    """What a server answers to somebody in the namespace; "" when nobody does."""
    with netns.entered(ns.path):
        sock = socket.socket(_family(ip), socket.SOCK_STREAM)
    with sock:
        sock.settimeout(seconds)
        try:
            sock.connect((ip, port))
            return sock.recv(100).decode()
        except OSError:
            return ""


def refused(ns: Ns, ip: str, port: int) -> bool:
    """Whether nobody answers, in a shorter time than `ask` waits for somebody."""
    return ask(ns, ip, port, 0.4) == ""


class Udp:
    """One socket in a namespace that asks again and again: all of it is one flow."""

    def __init__(self, ns: Ns, ip: str = "0.0.0.0") -> None:
        with netns.entered(ns.path):
            self.sock = socket.socket(_family(ip), socket.SOCK_DGRAM)
        self.sock.bind((ip, 0))

    def __enter__(self) -> Udp:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def ask(self, ip: str, port: int, seconds: float = 1.0) -> str:
        self.sock.settimeout(seconds)
        try:
            self.sock.sendto(b"?", (ip, port))
            return self.sock.recv(100).decode()
        except OSError:
            return ""


# --- what is there ------------------------------------------------------------------------------------------------


def nft_rules(host: Ns, family: str, table: str) -> dict[str, list[str]]:
    """The rules of a table in nft's words, by chain; {} when there is no such table."""
    words = ["ip", "netns", "exec", host.name, "nft", "list", "table", family, table]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    found: dict[str, list[str]] = {}
    chain = ""
    for line in done.stdout.splitlines():
        text = line.strip()
        if text.startswith("chain "):
            chain = text.split()[1]
            found[chain] = []
        elif chain and text not in ("", "}") and not text.startswith("type "):
            found[chain].append(text)
    return found
