"""Agents that die where a test wants it: the real program in a forked process that counts what it does to the world.

    test ──fork──► the agent, in its node's namespace, on the SQLite file
      │              every call of the datastore, netlink request, nft transaction and change of a file is a gate;
      │              at the gate that was chosen the process ends by os._exit, so that nothing is undone
      └──────────► memory that both share: which gate is fatal, how many were passed, where it died

Only this process is forked, warm: a life costs some 50 ms. It must hold no SQLite connection while it forks.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import gc
import http.client
import inspect
import io
import json
import logging
import mmap
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tortie.agent import main as program
from tortie.agent.config import AgentConfig
from tortie.cni.spec import Code
from tortie.kernel import libnftables, netns, nft, sysctl
from tortie.kernel.netlink import Netlink
from tortie.store.sqlite import SqliteStore

FATE = 97
"""The exit status of an agent that died at its gate."""
NEVER = 0
PR_SET_PDEATHSIG = 1  # linux/prctl.h
GET = 2
"""The low bits of an rtnetlink message's type: what it does, RTM_NEW, RTM_DEL, RTM_GET or RTM_SET (rtnetlink.h)."""
PATIENCE = 30.0
"""Seconds until what should come about has not."""
QUIET = 0.08
"""Seconds without passing a gate after which an agent has nothing left to do: it gathers for 0.02 what it writes."""


# --- gates, in the agent's process --------------------------------------------------------------------------------


class Gates:
    """The agent's side of the shared memory."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._one_at_a_time = threading.Lock()
        self._inside = threading.local()
        self.reads = True

    @property
    def passed(self) -> int:
        return int(struct.unpack_from("q", self.memory, 8)[0])

    @property
    def place(self) -> str:
        """Where the process died."""
        return bytes(self.memory[16:]).partition(b"\0")[0].decode(errors="replace")

    def choose(self, fatal: int) -> None:
        """The gate with this number from here on is fatal. The count is the agent's alone: it may be at a gate now."""
        struct.pack_into("q", self.memory, 0, self.passed + fatal if fatal else NEVER)

    def open(self) -> None:
        """None is fatal any more."""
        struct.pack_into("q", self.memory, 0, NEVER)

    def __call__(self, label: str, half: Callable[[], object] | None = None) -> None:
        """A gate. `half` leaves the next operation half done, when this is the end."""
        with self._one_at_a_time:
            number = self.passed + 1
            struct.pack_into("q", self.memory, 8, number)
            if number == struct.unpack_from("q", self.memory, 0)[0]:
                if half is not None:
                    half()
                place = label.encode()[: len(self.memory) - 17]
                self.memory[16 : 16 + len(place)] = place
                os._exit(FATE)

    @contextmanager
    def around(self, label: str, half: Callable[[], object] | None = None) -> Iterator[None]:
        """Gates before and after; none for what is done inside."""
        if getattr(self._inside, "it", False):
            yield
            return
        self._inside.it = True
        try:
            self(f"before {label}")
            if half is not None:
                self(f"half of {label}", half)
            yield
        finally:
            self._inside.it = False
        self(f"after {label}")

    # --- where they stand ---

    def stand(self) -> None:
        """Put gates before and after everything that touches the world outside of this process."""
        for name, method in vars(SqliteStore).items():
            if inspect.iscoroutinefunction(method) and not name.startswith("_") and name != "close":
                setattr(SqliteStore, name, self._of_store(name, method))
        for name in ("request", "dump", "batch"):
            setattr(Netlink, name, self._of_netlink(name, getattr(Netlink, name)))
        run = libnftables.Context.run
        libnftables.Context.run = self._wrapped(run, lambda context, script: f"nft {script[:60]!r}")  # type: ignore
        nft.subprocess.run = self._wrapped(subprocess.run, lambda command, **_: f"run {command[:3]}")  # type: ignore
        sysctl.write = self._wrapped(sysctl.write, lambda path, value, **_: f"sysctl {path}={value}")
        for name in ("rename", "replace", "unlink", "remove", "mkdir", "rmdir", "link", "truncate", "ftruncate"):
            setattr(os, name, self._wrapped(getattr(os, name), lambda *words, name=name, **_: f"{name} {words}"))
        for name in ("fsync", "fdatasync"):
            setattr(os, name, self._wrapped(getattr(os, name), lambda file, name=name: f"{name} {_file_of(file)}"))
        for name in ("write", "pwrite"):
            setattr(os, name, self._torn(getattr(os, name), name))
        sys.addaudithook(self._heard)

    def _of_store(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Tasks take turns on one thread, so that here "inside" would be another's."""
        reading = name in ("get", "list")

        @functools.wraps(method)
        async def gated(store: SqliteStore, what: Any, *more: Any, **named: Any) -> Any:
            label = f"{name} {_title(what)} {' '.join(map(str, more))}".strip()
            if not (reading and not self.reads):
                self(f"before {label}")
            answer = await method(store, what, *more, **named)
            if not reading:
                self(f"after {label}")
            return answer

        return gated

    def _wrapped(self, function: Callable[..., Any], label: Callable[..., str]) -> Callable[..., Any]:
        @functools.wraps(function)
        def gated(*words: Any, **named: Any) -> Any:
            with self.around(label(*words, **named)):
                return function(*words, **named)

        return gated

    def _torn(self, function: Callable[..., int], name: str) -> Callable[..., int]:
        """A write into a file may be cut short; one into a pipe or socket is not."""

        @functools.wraps(function)
        def gated(file: int, data: bytes, *more: int) -> int:
            regular = stat.S_ISREG(os.fstat(file).st_mode) and len(data) > 1
            half = (lambda: function(file, data[: len(data) // 2], *more)) if regular else None
            with self.around(f"{name} {_file_of(file)}", half):
                return function(file, data, *more)

        return gated

    def _of_netlink(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def gated(netlink: Netlink, what: Any, *more: Any, **named: Any) -> Any:
            reading = name == "dump" or (name == "request" and what & 3 == GET)
            if reading and not self.reads:
                return method(netlink, what, *more, **named)
            label = "; ".join(str(one.doing) for one in what[:3]) if name == "batch" else str(more[-1])
            with self.around(f"netlink {label}"):
                return method(netlink, what, *more, **named)

        return gated

    def _heard(self, event: str, words: tuple[Any, ...]) -> None:
        """Files that Python's own `open` makes or empties: at the gate they are there, and empty."""
        if event != "open" or getattr(self._inside, "it", False):
            return
        path, _, flags = words
        if not isinstance(path, (str, os.PathLike)) or not flags & (os.O_TRUNC | os.O_CREAT):
            return
        if str(path).startswith(("/proc/", "/dev/")):
            return
        self._inside.it = True
        try:
            self(f"before open {path}")
            self(f"open {path}, empty", lambda: os.open(path, flags, 0o600))
        finally:
            self._inside.it = False


def _title(what: Any) -> str:
    return what.KIND.kind if isinstance(what, type) else str(getattr(what, "title", what))


def _file_of(file: int | io.IOBase) -> str:
    number = file if isinstance(file, int) else file.fileno()
    return os.readlink(f"/proc/self/fd/{number}")


# --- a life -------------------------------------------------------------------------------------------------------


class Died(Exception):
    """The agent reached its gate."""


@dataclass(frozen=True, slots=True)
class Answer:
    """To a CNI call: status 200 and the plugin's output, or a CNI error."""

    status: int
    text: str

    @property
    def good(self) -> bool:
        return self.status == 200

    @property
    def json(self) -> Any:
        return json.loads(self.text) if self.text else {}

    @property
    def ips(self) -> list[str]:
        return [each["address"].partition("/")[0] for each in self.json["ips"]]

    @property
    def exhausted(self) -> bool:
        """Whether there was no address to be had."""
        return not self.good and "requested IPv" in self.text

    @property
    def later(self) -> bool:
        """Whether the agent could not serve the call yet."""
        return not self.good and self.json.get("code") == Code.TRY_AGAIN_LATER and not self.exhausted


@dataclass(frozen=True)
class Container:
    """A container as its runtime knows it. `conf` is the plugin's configuration; without a pod it is a plain one."""

    id: str
    netns: str
    pod: str = ""
    namespace: str = ""
    ifname: str = "eth0"
    conf: Mapping[str, Any] = field(default_factory=dict)
    uid: str = ""
    """The pod's; some runtimes tell it."""

    def environment(self, verb: str) -> dict[str, str]:
        args = "IgnoreUnknown=1"
        if self.pod:
            args += f";K8S_POD_NAMESPACE={self.namespace};K8S_POD_NAME={self.pod};K8S_POD_INFRA_CONTAINER_ID={self.id}"
        if self.uid:
            args += f";K8S_POD_UID={self.uid}"
        return {
            "Cni-Command": verb,
            "Cni-Containerid": self.id,
            "Cni-Netns": self.netns,
            "Cni-Ifname": self.ifname,
            "Cni-Args": args,
            "Cni-Path": "/opt/cni/bin",
        }


class Life:
    """One process of an agent. `fatal`: the gate at which it dies, counted from its birth. 0: none."""

    def __init__(self, config: AgentConfig, where: str, log: Path, fatal: int = NEVER, *, reads: bool = True) -> None:
        self.config = config
        self.log = log
        self.gates = Gates()
        self.gates.reads = reads
        self.gates.choose(fatal)
        self._ended: int | None = None
        self._waiting = threading.Lock()
        _settle_memory()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(where)

    def _live(self, where: str) -> NoReturn:
        """In the new process, which never returns into the test."""
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            logging.root.handlers[:] = []
            logging.disable(logging.NOTSET)
            self.gates.stand()
            with netns.entered(where):
                program.main(self.config)
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc(file=sys.stderr)
            sys.stderr.flush()
        finally:
            os._exit(98)

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def arm(self, fatal: int) -> None:
        """Count gates from now on."""
        self.gates.choose(fatal)

    def ended(self) -> bool:
        with self._waiting:
            if self._ended is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self._ended = os.waitstatus_to_exitcode(status)
            return self._ended is not None

    @property
    def ended_well(self) -> bool:
        return self._ended == 0

    def died(self) -> bool:
        """Whether it died at its gate. Fails when it ended in any other way."""
        if not self.ended():
            return False
        assert self._ended == FATE, f"the agent ended with {self._ended}: {self.text()[-3000:]}"
        return True

    def kill(self) -> None:
        """By SIGKILL, if it still lives."""
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            self._ended = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    # --- asking it ---

    def _request(self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """Raises Died when it is gone before it has answered."""
        connection = http.client.HTTPConnection("agent")
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(40)
        try:
            connection.sock.connect(str(self.config.socket))
            if self._peer(connection.sock) != self.pid:  # of one before: what it started meanwhile had the socket, too
                raise ConnectionRefusedError(errno.ECONNREFUSED, "the socket of an earlier agent")
            connection.request(method, target, body, dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, answer.read().decode())
        except (ConnectionError, FileNotFoundError, http.client.HTTPException) as error:
            if isinstance(error, (FileNotFoundError, ConnectionRefusedError)) and not self.ended():
                raise
            until(self.ended, "an agent that does not answer has ended", 2 * PATIENCE)  # a thread may be in the kernel
            assert self.died()
            raise Died(self.gates.place) from None
        finally:
            connection.close()

    @staticmethod
    def _peer(connected: socket.socket) -> int:
        """Which process began to listen there: unix(7)."""
        pid: int = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid

    def ready(self) -> Life:
        """Returns when the agent says that it is ready. Raises Died."""

        def asked() -> bool:
            if self.died():
                raise Died(self.gates.place)
            try:
                return self._request("GET", "/readiness").good
            except (FileNotFoundError, ConnectionRefusedError):
                return False

        until(asked, "the agent is ready")
        return self

    def call(self, verb: str, container: Container, **more: Any) -> Answer:
        """One CNI call. Raises Died."""
        body = json.dumps({**container.conf, **more}).encode()
        return self._request("POST", "/cni/calico", body, container.environment(verb))

    def surely(self, verb: str, container: Container, **more: Any) -> Answer:
        """As a runtime makes it: again while the agent says that it should be. Fails unless it succeeds."""
        deadline = time.monotonic() + PATIENCE
        while (answer := self.call(verb, container, **more)).later and time.monotonic() < deadline:
            time.sleep(0.01)
        assert answer.good, f"{verb} {container.pod or container.id}: {answer.text}"
        return answer

    def rest(self, quiet: float = QUIET) -> None:
        """Until it has passed no gate for so many seconds, in which it had nothing to do. Raises Died."""
        seen, since = -1, time.monotonic()
        while time.monotonic() - since < quiet and not self.died():
            if self.gates.passed != seen or self._busy():
                seen, since = self.gates.passed, time.monotonic()
            time.sleep(0.002)
        if self.died():
            raise Died(self.gates.place)

    def _busy(self) -> bool:
        """Whether one of its threads runs, or waits for a processor or a disk: states R and D, proc(5)."""
        with suppress(FileNotFoundError, ProcessLookupError):
            for file in Path(f"/proc/{self.pid}/task").glob("*/stat"):
                if file.read_text().rpartition(") ")[2][0] in "RD":
                    return True
        return False

    def survive(self) -> None:
        """Whatever it has begun is done, and from now on no gate is fatal. Raises Died."""
        self.rest()
        self.gates.open()
        self.rest(0.002)


@functools.lru_cache(maxsize=1)
def _settle_memory() -> None:
    """What is there now is shared by all that are forked, for as long as no collector writes to it."""
    gc.collect()
    gc.freeze()


def until(look: Callable[[], Any], what: str, seconds: float = PATIENCE) -> None:
    """Until `look` says something true."""
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, f"{what}: not after {seconds:g} s"
        time.sleep(0.001)
