"""Callers of an agent's socket who say exactly what a test wants, byte by byte."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from agent_node import RED, Node

from tortie.agent.server import HEADERS

CONF: Mapping[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "k8s-pod-network",
    "type": "calico",
    "ipam": {"type": "calico-ipam"},
}
ADD = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c0ffee",
    "CNI_NETNS": "/run/netns/nobody-has-this",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": f"K8S_POD_NAMESPACE={RED};K8S_POD_NAME=web",
    "CNI_PATH": "/opt/cni/bin",
}


def connect(node: Node, seconds: float = 30) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.connect(str(node.run_dir / "agent.sock"))  # waits for a place in the queue, which it would not with a timeout
    made.settimeout(seconds)
    return made


def request(
    env: Mapping[str, str | bytes],
    body: bytes,
    plugin: str = "calico",
    method: str = "POST",
    more: Sequence[bytes] = (),
) -> bytes:
    """As the plugin sends it."""
    lines = [f"{method} /cni/{plugin} HTTP/1.0".encode()]
    for name, value in env.items():
        lines.append(HEADERS[name].encode() + b": " + (value if isinstance(value, bytes) else os.fsencode(value)))
    return b"\r\n".join([*lines, *more, b"Content-Length: %d" % len(body), b"", body])


def heard(sock: socket.socket) -> bytes:
    """What the agent says: one whole answer, or what comes until it closes."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while not is_whole(data) and (chunk := sock.recv(1 << 16)):
            data += chunk
    return data


def is_whole(data: bytes) -> bool:
    head, end, body = data.partition(b"\r\n\r\n")
    return bool(end) and len(body) >= length(head)


def length(head: bytes) -> int:
    return int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])


def answer(data: bytes) -> tuple[int, dict[str, Any]]:
    """Status and error of what came; (0, {}) if nothing did."""
    head, _, body = data.partition(b"\r\n\r\n")
    if not head:
        return 0, {}
    body = body[: length(head)]
    return int(head.split()[1]), json.loads(body) if body else {}


def say(node: Node, data: bytes) -> tuple[int, dict[str, Any]]:
    with connect(node) as sock:
        with contextlib.suppress(ConnectionError):  # refused before all of it was sent
            sock.sendall(data)
        return answer(heard(sock))


def configuration(**changes: Any) -> bytes:
    return json.dumps({**CONF, **changes}).encode()


CHUNKED = request(ADD, b"", more=[b"Host: a", b"Transfer-Encoding: chunked"])
CHUNKED = CHUNKED.replace(b"HTTP/1.0", b"HTTP/1.1").replace(b"Content-Length: 0\r\n", b"")
"""The head of a call that does not say how long its body is."""
