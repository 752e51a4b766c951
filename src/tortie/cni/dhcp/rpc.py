"""What the plugin and the daemon say to one another: over a Unix socket one line of JSON each way, then the end.

    {"method": "DHCP.Allocate", "env": {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": ...}, "config": {...}}
    {"result": {"cniVersion": "1.1.0", "ips": [...], "routes": [...]}}    or {"error": {"code": 999, "msg": "..."}}

Methods: `DHCP.Allocate` (ADD; who hangs up before the answer no longer wants the lease), `DHCP.Check` (CHECK),
`DHCP.Release` (DEL), `DHCP.Collect` (GC) and `DHCP.Ping` (STATUS). Go's pair speaks net/rpc instead: neither half of
the one works with a half of the other, and both halves of ours say so.
"""

from __future__ import annotations

import os

from tortie.cni.spec import CniError, Code, compact_json, read_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SOCKET = "/run/cni/dhcp.sock"
SAID = ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH", "CNI_NETNS_OVERRIDE")
LONGEST = 1 << 20


class NoDaemon(CniError):
    """Nobody listens there."""


def request(method: str, env: Mapping[str, str], config: bytes) -> bytes:
    """The line that a plugin sends: its environment as far as it is CNI's, and its configuration."""
    said = {key: env[key] for key in SAID if key in env}
    return compact_json({"method": method, "env": said, "config": read_json(config)}).encode() + b"\n"


def result_line(result: Mapping[str, Any]) -> bytes:
    return compact_json({"result": result}).encode() + b"\n"


def error_line(error: CniError) -> bytes:
    said = {"code": int(error.code), "msg": error.msg, "details": error.details}
    return compact_json({"error": said}).encode() + b"\n"


def ask(path: str, method: str, env: Mapping[str, str], config: bytes) -> Any:
    """The daemon's result. Raises NoDaemon, CniError in Go's words before the daemon's own."""
    import _socket  # without the 8 ms of `socket`

    line = request(method, env, config)
    with_daemon = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        try:
            with_daemon.connect(path)
        except OSError as error:
            said = os.strerror(error.errno or 0).lower() if error.errno else str(error)
            text = f"error dialing DHCP daemon: dial unix {path}: connect: {said}"
            raise NoDaemon(Code.INTERNAL, text) from None
        try:
            with_daemon.sendall(line)
            answer = _all(with_daemon)
        except OSError as error:
            raise _calling(method, os.strerror(error.errno or 0).lower()) from None
    finally:
        with_daemon.close()
    return _read(method, answer)


def _all(source: Any) -> bytes:
    pieces = []
    while piece := source.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def _read(method: str, answer: bytes) -> Any:
    if not answer:
        raise _calling(method, "the daemon hung up without an answer")
    try:
        said = read_json(answer)
        error = said.get("error")
        if error is None:
            return said["result"]
        code, msg, details = error["code"], error["msg"], error.get("details", "")
    except (ValueError, KeyError, AttributeError, TypeError):
        why = "what listens there is not the DHCP daemon of these plugins"
        raise _calling(method, f"{why} (that of the Go plugins?)" if answer.startswith(b"HTTP/") else why) from None
    raise _calling(method, msg, code, details)


def _calling(method: str, why: str, code: int = Code.INTERNAL, details: str = "") -> CniError:
    return CniError(code, f"error calling {method}: {why}", details)
