"""The BIRD daemon of this node: check a configuration, swap it in, start, stop, ask.

The file on disk is never newer than what the daemon runs: a text is tested by `bird -p`, staged beside the file, loaded
by the daemon *from there*, and only then renamed. A staged file that is found later therefore means that an earlier
swap was cut short, and that what the daemon runs is not known: the next swap configures again whatever it is given.

BIRD outlives the program that started it, and its routes outlive BIRD (`persist`, `-R`), so a restart of either loses
no packet. Everything here blocks, bounded; only `query` is for an event loop.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import select
import shutil
import signal
import socket as sockets
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from tortie.base.errors import ConfigError, NotSupported, TortieError, Unavailable
from tortie.bgp.birdc import Code, Codec, Reply, encode

READ_TIMEOUT = 2.0  # seconds for each read of the control socket, as Calico's readers have it
START_TIMEOUT = 10.0
STOP_TIMEOUT = 10.0  # BIRD says goodbye to its peers first
CHECK_TIMEOUT = 30.0
LOG_MOST = 1 << 20
"""Bytes that the log may have; BIRD goes on for ever where a peer has something wrong."""
LOG_TAIL = 1 << 16
"""Bytes of its end that are looked at, and kept when it has more than it may: about a thousand lines."""
_CHUNK = 65536
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"  # where packages put bird, and where a login shell does not look
_MAX_SOCKET_PATH = 107  # sockaddr_un.sun_path less its terminator (linux/un.h)
_BLOCK = re.compile(r"(protocol|filter|function|template) ")
_LOADED = (Code.RECONFIGURED, Code.RECONFIGURATION_IN_PROGRESS, Code.RECONFIGURATION_QUEUED)


class Bird:
    """One BIRD daemon, known by its control socket. `netns` is a name under /run/netns or a path; None for ours.

    Beside `config` lie `<config>.next` while a text is being tried and `<config>.lock`; beside `socket` lies the pid
    file. BIRD's log, its standard error, is appended to `log`; whoever looks after the daemon has it trimmed.
    """

    def __init__(
        self, config: Path, socket: Path, netns: str | None = None, *, log: Path, read_timeout: float = READ_TIMEOUT
    ) -> None:
        config, socket = config.absolute(), socket.absolute()  # the daemon need not share our working directory
        if len(os.fsencode(socket)) > _MAX_SOCKET_PATH:
            raise ConfigError(f"a control socket's path has at most {_MAX_SOCKET_PATH} bytes", str(socket))
        self.config = config
        self.socket = socket
        self.netns = netns
        self.log = log
        self.read_timeout = read_timeout
        self.pid_file = socket.with_name(socket.name + ".pid")
        self._staged = config.with_name(config.name + ".next")
        self._lock = config.with_name(config.name + ".lock")
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def netns_path(self) -> str | None:
        """Of the namespace that the daemon runs in; None for ours."""
        return None if self.netns is None else str(Path("/run/netns") / self.netns)

    # ------------------------------------------------------------------------------------------ configuration

    def check(self, text: str) -> None:
        """Raises ConfigError with BIRD's message for a text that BIRD would refuse, NotSupported without BIRD."""
        try:
            done = subprocess.run(
                [_executable(), "-p", "-c", "/dev/stdin"],
                input=text,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=CHECK_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(f"bird -p took more than {CHECK_TIMEOUT:.0f} s") from None
        if done.returncode != 0:
            raise self._refusal(done.stderr or done.stdout, text)

    def swap(self, text: str) -> bool:
        """Makes `text` the configuration, of the file and of the running daemon; whether anything changed.

        Raises ConfigError for a text that BIRD refuses: file and daemon keep the old one. Raises Unavailable when the
        daemon runs but does not answer: calling again finishes the work.
        """
        with self._exclusive():
            if self.has(text):
                return False
            self.check(text)
            _write(self._staged, text)
            try:
                self._load()
            except ConfigError:
                self._staged.unlink()
                raise
            self._staged.replace(self.config)
            return True

    def has(self, text: str) -> bool:
        """Whether `text` is the configuration, and no change of it was begun and not finished."""
        return not self._staged.exists() and self._current() == text

    def reload(self) -> None:
        """Has the daemon load its file once more: sessions that could not start try again, the others do not notice.

        Raises Unavailable when the daemon does not answer, ConfigError when it refuses what somebody has made of it.
        """
        with self._exclusive():
            self._configure("configure")

    def deaf(self) -> bool:
        """Whether a session is down for its address was not there to listen on as it started. BIRD leaves it so."""
        return "No listening socket" in str(self.ask("show protocols"))

    def _current(self) -> str | None:
        try:
            return self.config.read_text()
        except FileNotFoundError:
            return None

    def _refusal(self, message: str, text: str) -> ConfigError:
        """BIRD's `bird: FILE:LINE:COLUMN what` as an error that shows the line, which the reader has no file of."""
        last = (message.strip().splitlines() or ["refused without a word"])[-1].removeprefix("bird: ")
        match = re.match(r"\S*?:(\d+):(\d+) (.*)", last)
        if match is None:
            return ConfigError(last, str(self.config))
        number, column, what = match.groups()
        lines = text.splitlines()
        line = lines[int(number) - 1].strip() if 0 < int(number) <= len(lines) else ""
        shown = f" in `{line}`" if line and "password" not in line else ""
        block = next((one for one in reversed(lines[: int(number)]) if _BLOCK.match(one)), "")
        shown += f" of {block.rstrip(' {')}" if block and block.strip() != line else ""
        return ConfigError(f"{what}{shown}", str(self.config), f"line {number} column {column}")

    def _load(self) -> None:
        """Has the daemon, if it runs, take over the staged file."""
        if self._listening():
            self._configure(f'configure "{self._staged}"')

    def _configure(self, command: str) -> None:
        reply = self.ask(command)
        if reply.code == Code.BAD_CONFIGURATION:
            raise ConfigError(reply.text, str(self.config))
        if reply.code not in _LOADED:
            raise Unavailable(f"bird does not take a configuration now: {reply.text}")

    # ------------------------------------------------------------------------------------------------ process

    def running(self) -> bool:
        """Whether a daemon answers on the socket, whoever started it."""
        self._reap()
        try:
            return self.ask("show status").ok
        except Unavailable:
            return False

    def start(self, recover: bool = True) -> bool:
        """Starts the daemon unless one answers already; whether it did. Returns when it answers.

        With `recover` the FIB is held until peers have sent their routes again (`bird -R`). Raises Unavailable with the
        last line of its log when it does not come up, and when there is one that does not answer: two of them would
        fight over the kernel's routes.
        """
        with self._exclusive():
            if self.running():
                return False
            if process := self._process():
                process.close()
                raise Unavailable(f"bird runs but does not answer on {self.socket}; not starting another")
            for path in (self.socket, self.log):
                path.parent.mkdir(parents=True, exist_ok=True)
            self.trim_log()
            command = [*self._enter(), _executable(), "-f", *(["-R"] if recover else [])]
            command += ["-c", str(self.config), "-s", str(self.socket), "-P", str(self.pid_file)]
            with open(self.log, "ab", opener=_private) as log:
                self._child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            self._await_answer(self._child)
            return True

    def stop(self) -> bool:
        """Ends the daemon, killing it when it does not go by itself; whether there was one. Its routes stay."""
        with self._exclusive():
            process = self._process()
            asked = self._ask_down()
            if process is None:
                if asked:
                    self._await_silence()
                self._reap()
                return asked
            with closing(process):
                if not asked:
                    process.send(signal.SIGTERM)
                if not process.gone(STOP_TIMEOUT if asked else self.read_timeout):
                    process.send(signal.SIGKILL)
                    process.gone(STOP_TIMEOUT)
            self._reap()
            for path in (self.socket, self.pid_file):
                path.unlink(missing_ok=True)
            return True

    def _enter(self) -> list[str]:
        if self.netns is None:
            return []
        return ["nsenter", f"--net={self.netns_path}", "--"]

    def _await_answer(self, child: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if child.poll() is not None:
                raise Unavailable(f"bird did not start: {self._last_log_line()}")
            if self._listening() and self.running():
                return
            time.sleep(0.01)
        raise Unavailable(f"bird does not answer on {self.socket} {START_TIMEOUT:.0f} s after its start")

    def _await_silence(self) -> None:
        deadline = time.monotonic() + STOP_TIMEOUT
        while self._listening():
            if time.monotonic() > deadline:
                raise Unavailable(f"bird on {self.socket} does not end, and {self.pid_file} does not name it")
            time.sleep(0.01)

    def _last_log_line(self) -> str:
        lines = self.log_tail().strip().splitlines()
        return lines[-1] if lines else f"see {self.log}"

    def _ask_down(self) -> bool:
        try:
            return self.ask("down").code == Code.SHUTDOWN
        except Unavailable:
            return False

    def _process(self) -> _Process | None:
        """The process of our pid file, if it still is the daemon of this socket."""
        try:
            pid = int(self.pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return _Process.find(pid, str(self.socket))

    def _reap(self) -> None:
        """Lets the kernel forget a daemon of ours that has ended."""
        if self._child is not None and self._child.poll() is not None:
            self._child = None

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One swap, start or stop at a time, across processes. Raises Unavailable where files cannot be used: a disk is
        full, say."""
        try:
            self.config.parent.mkdir(parents=True, exist_ok=True)
            with self._lock.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except TortieError:  # one of the kernel's is an OSError, too
            raise
        except OSError as err:
            raise Unavailable(f"{err.filename or self.config}: {err.strerror}") from None

    # ---------------------------------------------------------------------------------------------------- log

    def log_is_large(self) -> bool:
        """Whether it has more than LOG_MOST bytes."""
        try:
            return self.log.stat().st_size > LOG_MOST
        except OSError:
            return False

    def log_tail(self) -> str:
        """The last LOG_TAIL bytes of the log; "" without one."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def trim_log(self) -> None:
        """Keeps the end of a log that is too large. The daemon goes on in the same file: it appends to whatever there
        is. A line that it writes at this very moment may get lost. Raises Unavailable for a file that is not ours."""
        if not self.log_is_large():
            return
        kept = self.log_tail().partition("\n")[2]
        try:
            with open(self.log, "a", encoding="utf-8", opener=_private) as file:
                file.truncate(0)
                file.write(kept)
        except OSError as err:
            raise Unavailable(f"{self.log}: {err.strerror}") from None

    # --------------------------------------------------------------------------------------------- conversation

    def ask(self, command: str) -> Reply:
        """BIRD's answer to one command. Raises Unavailable when it does not run or does not answer in time."""
        codec = Codec()
        try:
            with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as connection:
                connection.settimeout(self.read_timeout)
                connection.connect(str(self.socket))
                _receive(connection, codec)
                connection.sendall(encode(command))
                return _receive(connection, codec)
        except OSError as err:
            raise self._silence(err) from None

    async def query(self, command: str) -> Reply:
        """`ask` for an event loop."""
        codec = Codec()
        try:
            async with asyncio.timeout(self.read_timeout):
                reader, writer = await asyncio.open_unix_connection(self.socket)
            try:
                await _receive_async(reader, codec, self.read_timeout)
                writer.write(encode(command))
                await writer.drain()
                return await _receive_async(reader, codec, self.read_timeout)
            finally:
                writer.close()
        except OSError as err:
            raise self._silence(err) from None

    def _silence(self, err: OSError) -> Unavailable:
        why = f"no answer in {self.read_timeout:g} s" if isinstance(err, TimeoutError) else err.strerror or str(err)
        return Unavailable(f"bird on {self.socket}: {why}")

    def _listening(self) -> bool:
        """Whether something accepts on the socket, be it too busy to answer."""
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as connection:
            connection.settimeout(self.read_timeout)
            return connection.connect_ex(str(self.socket)) == 0


class _Process:
    """A process held by a file descriptor, so that its number cannot come to mean another one."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd

    @classmethod
    def find(cls, pid: int, argument: str) -> _Process | None:
        """The process `pid`, if `argument` is a word of its command line; asked after the descriptor is held."""
        try:
            process = cls(os.pidfd_open(pid))
        except OSError:
            return None
        with suppress(OSError):
            if argument.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return process
        process.close()
        return None

    def gone(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds for its end."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        os.close(self._pidfd)


def _receive(connection: sockets.socket, codec: Codec) -> Reply:
    while True:
        data = connection.recv(_CHUNK)
        if not data:
            raise ConnectionResetError("it hung up")
        if replies := codec.feed(data):
            return replies[0]


async def _receive_async(reader: asyncio.StreamReader, codec: Codec, timeout: float) -> Reply:
    while True:
        async with asyncio.timeout(timeout):
            data = await reader.read(_CHUNK)
        if not data:
            raise ConnectionResetError("it hung up")
        if replies := codec.feed(data):
            return replies[0]


def _executable() -> str:
    found = shutil.which("bird", path=os.pathsep.join((os.environ.get("PATH", ""), _SBIN)))
    if found is None:
        raise NotSupported("bird not found: apt-get install bird2")
    return found


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _write(path: Path, text: str) -> None:
    """A file that only root reads, for it may hold passwords, safely on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def available() -> None:
    """Raises NotSupported when there is no BIRD on this machine."""
    _executable()
