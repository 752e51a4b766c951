"""The executables `calico` and `calico-ipam` in Python, for machines without a C compiler.

The same program as stub.c, which says what it does; a test holds the two together, to the byte. It is run as
`python -I -S main.py` or installed under the plugins' names. A pod waits while it starts, so it imports nothing of this
package and little else: `time` is built into the interpreter, `socket` is the only costly one.
"""

import os
import socket
import sys
import time

VERSION = "unknown"  # the installer writes the version here
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

INVALID_ENVIRONMENT, IO_FAILURE, TRY_AGAIN_LATER = 4, 5, 11  # CNI specification, error codes

HEADERS = {
    b"CNI_COMMAND": b"Cni-Command",
    b"CNI_CONTAINERID": b"Cni-Containerid",
    b"CNI_NETNS": b"Cni-Netns",
    b"CNI_IFNAME": b"Cni-Ifname",
    b"CNI_ARGS": b"Cni-Args",
    b"CNI_PATH": b"Cni-Path",
    b"CNI_NETNS_OVERRIDE": b"Cni-Netns-Override",
}
NAME_BYTES = frozenset(b"-._0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
SUN_PATH_BYTES = 107  # linux/un.h, less the final NUL


class CallFailed(Exception):
    """Ends the program with an error object on stdout: code, msg, details."""


class Exchange:
    """One request and its answer on the agent's socket, all within `seconds`."""

    def __init__(self, agent: bytes, seconds: bytes) -> None:
        self.agent = agent
        self.seconds = seconds
        self.deadline = time.monotonic() + int(seconds)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def unserved(self, why: bytes) -> CallFailed:
        msg = b"the agent did not serve this call on " + self.agent + b"; the runtime will retry"
        return CallFailed(TRY_AGAIN_LATER, msg, why)

    def late(self) -> CallFailed:
        return self.unserved(b"no answer within the seconds allowed: " + self.seconds)

    def allow_what_is_left(self, option: int) -> None:
        """The next call on the socket waits no longer than is left.

        A struct timeval, because Python's own time-outs do not wait in connect while the agent's queue is full.
        """
        left = int((self.deadline - time.monotonic()) * 1000)
        if left <= 0:
            raise self.late()
        width = 8 if sys.maxsize > 2**32 else 4
        parts = (left // 1000, left % 1000 * 1000)
        self.socket.setsockopt(socket.SOL_SOCKET, option, b"".join(n.to_bytes(width, sys.byteorder) for n in parts))

    def connect(self) -> None:
        self.allow_what_is_left(socket.SO_SNDTIMEO)
        try:
            self.socket.connect(self.agent)
        except BlockingIOError:
            raise self.late() from None
        except OSError as error:
            raise self.unserved(b"connect: " + os.fsencode(os.strerror(error.errno or 0))) from None

    def send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self.allow_what_is_left(socket.SO_SNDTIMEO)
            try:
                rest = rest[self.socket.send(rest) :]
            except BlockingIOError:
                raise self.late() from None
            except OSError:
                return  # the agent stopped reading: it may have said why

    def receive(self) -> tuple[int, bytes]:
        """Status and body."""
        data = bytearray()
        while True:
            answer = self.answer(data)
            if answer:
                return answer
            self.allow_what_is_left(socket.SO_RCVTIMEO)
            try:
                chunk = self.socket.recv(65536)
            except BlockingIOError:
                raise self.late() from None
            except OSError:
                chunk = b""
            if not chunk:
                raise self.unserved(b"the connection closed before the whole answer came")
            data += chunk

    def answer(self, data: bytearray) -> tuple[int, bytes] | None:
        """Status and body once all of it is there."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = bytes(data[:end])
        name = b"\r\ncontent-length:"
        at = head.lower().find(name)
        length = head[at + len(name) :].split(b"\r")[0].lstrip(b" \t") if at >= 0 else b""
        is_http = head.startswith(b"HTTP/1.") and head[8:9] == b" " and len(head) >= 12 and head[9:12].isdigit()
        if not (is_http and length.isdigit()):
            raise self.unserved(b"the answer is not HTTP/1 with a Content-Length")
        body = end + 4
        if len(data) < body + int(length):
            return None
        return int(head[9:12]), bytes(data[body : body + int(length)])


def setting(name: bytes, otherwise: bytes = b"") -> bytes:
    return os.environb.get(name, b"") or otherwise


def holds_control(value: bytes) -> bool:
    return any(c < 0x20 or c == 0x7F for c in value)


def request_head(plugin: bytes) -> bytes:
    """A header line cannot carry control characters, and HTTP strips blanks around a value: neither goes through."""
    lines = [b"POST /cni/" + plugin + b" HTTP/1.0"]
    for name, header in HEADERS.items():
        value = setting(name)
        if holds_control(value):
            raise CallFailed(INVALID_ENVIRONMENT, name + b" holds a control character", b"")
        if value != value.strip(b" "):
            raise CallFailed(INVALID_ENVIRONMENT, name + b" begins or ends with a blank", b"")
        if value:
            lines.append(header + b": " + value)
    return b"\r\n".join(lines) + b"\r\n"


def read_stdin() -> bytes:
    data = bytearray()
    try:
        while chunk := os.read(0, 65536):
            data += chunk
    except OSError as error:
        why = os.fsencode(os.strerror(error.errno or 0))
        raise CallFailed(IO_FAILURE, b"cannot read the network configuration from stdin", why) from None
    return bytes(data)


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def json_string(text: bytes) -> bytes:
    escaped = {c: b"\\u%04x" % c for c in (*range(0x20), 0x7F)} | {c: b"\\" + bytes([c]) for c in b'"\\'}
    return b'"' + b"".join(escaped.get(c) or bytes([c]) for c in text) + b'"'


def relay(plugin: bytes) -> int:
    """Carry the call to the agent and the answer to stdout; the exit code."""
    agent = setting(b"TORTIE_AGENT_SOCKET", b"/run/tortie/agent.sock")
    seconds = setting(b"TORTIE_CNI_TIMEOUT", b"90")
    if len(agent) > SUN_PATH_BYTES:
        raise CallFailed(INVALID_ENVIRONMENT, b"TORTIE_AGENT_SOCKET is longer than 107 bytes", agent)
    if not (seconds.isdigit() and len(seconds) <= 5 and int(seconds)):
        msg = b"TORTIE_CNI_TIMEOUT must be a number of seconds from 1 to 99999"
        raise CallFailed(INVALID_ENVIRONMENT, msg, seconds)
    if not plugin or not NAME_BYTES.issuperset(plugin):
        msg = b"the plugin's file name may hold letters, digits, - _ and . only"
        raise CallFailed(INVALID_ENVIRONMENT, msg, plugin)
    head = request_head(plugin)
    conf = read_stdin()
    exchange = Exchange(agent, seconds)
    exchange.connect()
    exchange.send(head + b"Content-Length: %d\r\n\r\n" % len(conf) + conf)
    status, body = exchange.receive()
    if status != 200 and not body.startswith(b"{"):
        raise exchange.unserved(b"HTTP status %d without a CNI error" % status)
    write_all(1, body)
    return 0 if status == 200 else 1


def main(argv: list[str]) -> int:
    plugin = os.path.basename(os.fsencode(argv[0]))
    command = setting(b"CNI_COMMAND")
    if argv[1:] == ["-v"]:
        write_all(1, VERSION.encode() + b"\n")
        return 0
    if not command:
        write_all(2, b"CNI " + plugin + f" plugin version {VERSION}\n".encode())
        write_all(2, f"CNI protocol versions supported: {', '.join(VERSIONS)}\n".encode())
        return 0
    if command == b"VERSION":
        listed = ",".join(f'"{version}"' for version in VERSIONS)
        write_all(1, f'{{"cniVersion":"{VERSIONS[-1]}","supportedVersions":[{listed}]}}\n'.encode())
        return 0
    try:
        return relay(plugin)
    except CallFailed as failure:
        code, msg, details = failure.args
        text = b'{\n    "code": %d,\n    "msg": %s' % (code, json_string(msg))
        if details:
            text += b',\n    "details": ' + json_string(details)
        write_all(1, text + b"\n}")
        return 1
    except BrokenPipeError:
        return 1  # nobody reads stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv))
