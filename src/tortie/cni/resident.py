"""A process that has all plugins imported and forks a child for each call, so that no pod waits for Python to start.

    launch.c   connects ◄──── "G": a child is there and takes the call; until then nothing was sent
               two lengths, words, variables (NUL-terminated) and five descriptors ────► the child becomes that process:
                  stdin, stderr, directory, namespaces, environment; serves the call as `plugin.main` would
               exit code and length, stdout ◄────

Children are forked before they are needed and each serves one call. While none is free nobody answers, and launch.c
starts a Python of its own. The answer comes from the child, so calls outlive a server that is ended or killed; whoever
kills a child makes launch.c say CNI error 11. A child whose caller goes away is interrupted like a failed call: what it
has made is taken back. Limits, control group and capabilities of a call are the server's, not its caller's.

Run as `python -I -S resident.py SOCKET`, which is what `tortie cni serve` does.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import select
import signal
import socket
import stat
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tortie.cni.plugin import Answer

SOCKET = "/run/tortie/plugins.sock"
SPARE = 4
"""Children that wait for a call."""
LOW = SPARE // 2
"""As few, and more are forked at once. Otherwise a little later, when the call that took one is likely to be over."""
LATER = 30
"""Milliseconds."""
AT_ONCE = max(32, 8 * (os.cpu_count() or 1))
"""Children there may be. More calls than that are processes of their own."""
REQUEST_SECONDS = 10
"""Within which all of a request must have come, once the caller was told to send it."""
LAST_SECONDS = 60.0
"""How long a server that was told to end waits for the calls that are being served."""

FDS = 5  # stdin, stderr, directory, network and mount namespace
_HEAD = struct.Struct("=II")
_CREDENTIALS = struct.Struct("=iii")  # struct ucred (linux/socket.h): pid, uid, gid
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000  # linux/sched.h

# What plugins import in the middle of a call. A caller's mount namespace may not have these files.
RARE = (
    *("_sha512" if sys.version_info < (3, 12) else "_sha2", "ctypes", "json", "re", "subprocess", "traceback"),
    *("tortie.base.flow", "tortie.cni.nftables", "tortie.kernel.conntrack", "tortie.kernel.libnftables"),
    "tortie.kernel.nft",
)


class CallerGone(BaseException):
    """The process that a call was taken from has ended: what was done is to be taken back."""


# --- the server ---------------------------------------------------------------------------------------------------


def serve(path: str) -> None:
    """Serves until SIGTERM or SIGINT. Raises Exists when somebody does so already, KernelError for a bad path."""
    listener = listen(path)
    try:
        prepare()
        sys.stderr.write(f"serving plugins on {path}\n")
        Server(listener).run()
    finally:
        _unlink(path, listener)


def listen(path: str) -> socket.socket:
    """A socket for root only. What a server that was killed left at the path is replaced."""
    from tortie.base.errors import Exists, KernelError

    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o755, exist_ok=True)
        if _answers(path):
            raise Exists(f"a server listens on {path} already")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(1024)
    except OSError as error:
        raise KernelError(error.errno or errno.EIO, f"listen on {path}") from None
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.settimeout(1)
        try:
            other.connect(path)
        except FileNotFoundError:
            return False
        except ConnectionRefusedError:
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise OSError(errno.EEXIST, "there is something else") from None
            os.unlink(path)
            return False
        except TimeoutError:
            return True  # its queue is full
    return True


def _unlink(path: str, listener: socket.socket) -> None:
    """Unless somebody else's socket is there by now."""
    listener.close()
    if not os.path.exists(path) or _answers(path):
        return
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def prepare() -> None:
    """Imports all that a call may need, and keeps the children from writing to the memory they share."""
    from tortie.cni import plugins
    from tortie.kernel import netns

    for name in plugins.NAMES:
        plugins.load(name)
    for name in RARE:
        __import__(name)
    with netns.entered(netns.OWN):
        pass  # loads what it takes
    gc.disable()
    gc.freeze()


class Server:
    """Keeps `SPARE` children waiting; knows which of its children serve a call."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._idle: set[int] = set()
        self._busy: set[int] = set()
        self._alive, self._life = os.pipe()  # closed when this process is no more
        self._heard, self._taken = os.pipe()  # a child's number as it takes a call
        self._woken, self._wake = os.pipe()  # a byte for each signal
        for fd in (self._heard, self._woken, self._wake):
            os.set_blocking(fd, False)

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._wake)
        poll = select.poll()
        poll.register(self._heard, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        self._refill()
        while True:
            if len(self._idle) <= LOW or not poll.poll(LATER if len(self._idle) < SPARE else None):
                self._refill()
            if {signal.SIGTERM, signal.SIGINT} & set(_read(self._woken)):
                break
            taken = _read(self._heard)
            for (pid,) in struct.iter_unpack("=i", taken):
                if pid in self._idle:  # else it has ended already
                    self._idle.remove(pid)
                    self._busy.add(pid)
            self._reap()
        self._end()

    def _refill(self) -> None:
        while len(self._idle) < SPARE and len(self._idle) + len(self._busy) < AT_ONCE:
            is_needed = len(self._idle) < LOW
            pid = os.fork()
            if pid == 0:
                self._become_child(is_needed)
            self._idle.add(pid)

    def _reap(self) -> None:
        while self._idle or self._busy:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if pid in self._idle and status:
                time.sleep(0.05)  # it may be that none can live: not as many of them a second as there can be
            self._idle.discard(pid)
            self._busy.discard(pid)

    def _end(self) -> None:
        """The idle children see that `_life` is closed; the others have some time to end their calls."""
        self._listener.close()
        os.close(self._life)
        deadline = time.monotonic() + LAST_SECONDS
        while time.monotonic() < deadline:
            self._reap()
            if not self._idle and not self._busy:
                return
            time.sleep(0.01)

    def _become_child(self, is_needed: bool) -> None:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            for fd in (self._life, self._heard, self._woken, self._wake):
                os.close(fd)
            if not is_needed:
                rehearse()
            wait_and_serve(self._listener, self._alive, self._taken)
            code = 0
        except CallerGone:
            pass
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except BlockingIOError:
        return b""


# --- a child ------------------------------------------------------------------------------------------------------


def wait_and_serve(listener: socket.socket, alive: int, taken: int) -> None:
    """Serves one call; none, when the server ends first."""
    connection = _accept(listener, alive)
    if connection is None:
        return
    os.write(taken, struct.pack("=i", os.getpid()))
    listener.close()
    os.close(alive)
    os.close(taken)
    _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid != 0:
        return
    try:
        connection.settimeout(REQUEST_SECONDS)
        connection.sendall(b"G")
        words, variables, fds = receive(connection)
    except OSError:
        return  # it did not want to be served any more
    connection.settimeout(None)
    os.set_inheritable(connection.fileno(), False)
    become(words, variables, fds)
    said = _hear(connection)
    sys.stderr.write(said.stderr)
    stdout = said.stdout.encode()
    try:
        connection.sendall(_HEAD.pack(said.code, len(stdout)) + stdout)
    except BrokenPipeError:
        pass


def rehearse() -> None:
    """Serves a call that is refused: much of the memory that is shared with the server is copied meanwhile."""
    from tortie.cni import plugins
    from tortie.cni.plugin import answer

    nobody = {"CNI_CONTAINERID": "c", "CNI_NETNS": "/proc/self/ns/net", "CNI_IFNAME": "eth0", "CNI_PATH": "/"}
    conf = b'{"cniVersion": "1.1.0", "name": "n", "type": "bridge"}'
    answer(plugins.load("bridge"), {"CNI_COMMAND": "ADD", **nobody}, conf)  # refused: it is our own namespace


def _accept(listener: socket.socket, alive: int) -> socket.socket | None:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(alive, select.POLLIN)
    while True:
        ready = [fd for fd, _ in poll.poll()]
        if alive in ready:
            return None
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            continue  # another child was quicker
        return connection


def receive(connection: socket.socket) -> tuple[list[str], dict[str, str], list[int]]:
    """The words and variables that a process was started with, and its descriptors. Raises OSError."""
    data, fds, _, _ = socket.recv_fds(connection, 1 << 16, FDS, socket.MSG_CMSG_CLOEXEC)
    while len(data) < _HEAD.size or len(data) < _HEAD.size + sum(_HEAD.unpack_from(data)):
        more = connection.recv(1 << 16)
        if not more:
            raise ConnectionError("the request is not whole")
        data += more
    if len(fds) != FDS:
        raise ConnectionError(f"{len(fds)} descriptors instead of {FDS}")
    length, _ = _HEAD.unpack_from(data)
    at = _HEAD.size + length
    words = [os.fsdecode(one) for one in data[_HEAD.size : at].split(b"\0")[:-1]]
    pairs = (os.fsdecode(one).partition("=") for one in data[at:].split(b"\0")[:-1])
    return words, {name: value for name, equals, value in pairs if name and equals}, fds


def become(words: list[str], variables: dict[str, str], fds: list[int]) -> None:
    """This process is, as far as a plugin can see, the one that sent these."""
    from tortie.cni import plugins
    from tortie.kernel import netns

    stdin, stderr, directory, network, mounts = fds
    os.dup2(stdin, 0)
    os.dup2(stderr, 2)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    if not os.path.samestat(os.fstat(mounts), os.stat("/proc/self/ns/mnt")):
        netns.set_ns(mounts, _CLONE_NEWNS)
    if not os.path.samestat(os.fstat(network), os.stat("/proc/self/ns/net")):
        netns.set_ns(network, _CLONE_NEWNET)
    os.fchdir(directory)
    for fd in fds:
        os.close(fd)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv[:] = words
    plugins.program = os.path.realpath(words[0])


def _hear(connection: socket.socket) -> Answer:
    """Serves the call, unless its caller goes away: then it ends in a `CallerGone`."""
    import tortie
    from tortie.cni import plugins
    from tortie.cni.plugin import hear

    name = os.path.basename(sys.argv[0])
    signal.signal(signal.SIGIO, _caller_gone)
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(connection, fcntl.F_GETFL)
    fcntl.fcntl(connection, fcntl.F_SETFL, flags | os.O_ASYNC)
    try:
        if _is_closed(connection):
            raise CallerGone
        return hear(plugins.load(name), tortie.__version__)
    finally:
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        fcntl.fcntl(connection, fcntl.F_SETFL, flags)


def _caller_gone(*_: object) -> None:
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # once: what is taken back is not interrupted
    raise CallerGone


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


if __name__ == "__main__":
    sys.path.append(os.path.realpath(__file__).rsplit("/tortie/cni/", 1)[0])
    from tortie.base.errors import TortieError

    try:
        serve(sys.argv[1] if len(sys.argv) > 1 else SOCKET)
    except TortieError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
