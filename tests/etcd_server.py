"""Real etcd members on loopback for tests: started on free ports, in a directory that is given, and stopped again.

    with running(tmp_path) as etcd:             # one member; running(tmp_path, members=3, ...) for more
        etcd.url, etcd.urls, etcd.ctl("put", "k", "v"), etcd.members[0].kill(), ...

Without files being synced to disk: what a test kills is a process, not a machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ETCD, ETCDCTL = shutil.which("etcd"), shutil.which("etcdctl")
DEADLINE = 20.0
"""Seconds until a member must answer."""

needs_etcd = pytest.mark.skipif(ETCD is None or ETCDCTL is None, reason="etcd or etcdctl is not installed")


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@dataclass(eq=False)
class Member:
    """One process; `arguments` start it again on the same data."""

    name: str
    port: int
    url: str
    arguments: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            environment = {key: value for key, value in os.environ.items() if not key.startswith("ETCD")}
            self.process = subprocess.Popen(self.arguments, stdout=log, stderr=log, env=environment)

    def kill(self) -> None:
        """At once, without a goodbye."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """It keeps its connections and answers nothing, until `resume`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.process = None


@dataclass(eq=False)
class Etcd:
    """Members, and etcdctl's way to them: `flags` are what it needs for TLS and passwords."""

    members: list[Member]
    flags: list[str] = field(default_factory=list)
    within: Sequence[str] = ()

    @property
    def url(self) -> str:
        return self.members[0].url

    @property
    def urls(self) -> str:
        """As ETCD_ENDPOINTS has them."""
        return ",".join(member.url for member in self.members)

    def ctl(self, *arguments: str, endpoints: str = "", given: bytes = b"", flags: Sequence[str] | None = None) -> str:
        """What etcdctl prints; raises CalledProcessError, with what it said, when it fails."""
        where = endpoints or ",".join(member.url for member in self.members if member.process is not None)
        flags = self.flags if flags is None else flags
        command = [*self.within, str(ETCDCTL), f"--endpoints={where}", "--dial-timeout=3s", *flags, *arguments]
        environment = os.environ | {"ETCDCTL_API": "3"}
        done = subprocess.run(command, input=given, capture_output=True, timeout=60, env=environment, check=False)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout.decode()

    def leader(self) -> Member:
        """Waits for one that all running members agree upon."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            found = [member for member in self.members if member.process is not None and self._leads(member)]
            if len(found) == 1:
                return found[0]
            time.sleep(0.1)
        raise AssertionError("no leader was elected")

    def _leads(self, member: Member) -> bool:
        try:
            line = self.ctl("endpoint", "status", endpoints=member.url)
        except subprocess.CalledProcessError:
            return False
        return line.split(", ")[4] == "true"

    def compact(self) -> int:
        """Forgets all history up to now; the revision."""
        revision = int(self.ctl("endpoint", "status", "-w", "fields").split('"Revision" : ')[1].split()[0])
        self.ctl("compact", str(revision), "--physical")
        return revision

    def ready(self) -> None:
        """Waits until every running member answers."""
        deadline = time.monotonic() + DEADLINE
        waiting = [member for member in self.members if member.process is not None]
        while waiting and time.monotonic() < deadline:
            waiting = [member for member in waiting if not self._healthy(member)]
        if waiting:
            raise AssertionError(f"{waiting[0].name} does not answer: {waiting[0].log.read_text()[-2000:]}")

    def _healthy(self, member: Member) -> bool:
        try:
            self.ctl("get", "health", endpoints=member.url)
        except subprocess.CalledProcessError:
            assert member.process is not None
            assert member.process.poll() is None, f"{member.name} ended: {member.log.read_text()[-2000:]}"
            time.sleep(0.05)
            return False
        return True


@contextmanager
def running(
    directory: Path,
    members: int = 1,
    options: Sequence[str] = (),
    tls: Any = None,
    sync: bool = False,
    host: str = "127.0.0.1",
    within: Sequence[str] = (),
) -> Iterator[Etcd]:
    """An etcd of so many members. `tls` (see `Certificates`) serves TLS and asks clients for certificates; `sync` makes
    it write to disk as it does in production. `within` is the command that leads into a network namespace, whose
    address `host` clients ask."""
    directory.mkdir(parents=True, exist_ok=True)
    ports = free_ports(2 * members)
    scheme = "https" if tls else "http"
    peers = ",".join(f"m{n}=http://127.0.0.1:{ports[2 * n + 1]}" for n in range(members))
    found = []
    for number in range(members):
        client, peer = f"{host}:{ports[2 * number]}", f"127.0.0.1:{ports[2 * number + 1]}"
        arguments = [
            *within, str(ETCD), f"--name=m{number}", f"--data-dir={directory}/m{number}",
            f"--listen-client-urls={scheme}://{client}", f"--advertise-client-urls={scheme}://{client}",
            f"--listen-peer-urls=http://{peer}", f"--initial-advertise-peer-urls=http://{peer}",
            f"--initial-cluster={peers}", "--initial-cluster-state=new", f"--initial-cluster-token={directory.name}",
            "--heartbeat-interval=50", "--election-timeout=500", "--logger=zap", "--log-level=warn", "--bcrypt-cost=4",
            *([] if sync else ["--unsafe-no-fsync"] if _knows_no_fsync() else []), *options,
            *(tls.server() if tls else []),
        ]  # fmt: skip
        url = f"{scheme}://{client}"
        found.append(Member(f"m{number}", ports[2 * number], url, arguments, directory / f"m{number}.log"))
    etcd = Etcd(found, tls.flags() if tls else [], within)
    try:
        for member in found:
            member.start()
        etcd.ready()
        yield etcd
    finally:
        for member in found:
            member.stop()


def _knows_no_fsync() -> bool:
    said = subprocess.run([str(ETCD), "--help"], capture_output=True, text=True, timeout=20, check=False)
    return "unsafe-no-fsync" in said.stdout + said.stderr


@dataclass(frozen=True)
class Certificates:
    """An authority, a server at 127.0.0.1 and a client, made by openssl."""

    directory: Path

    @property
    def ca(self) -> Path:
        return self.directory / "ca.pem"

    def certificate(self, name: str) -> Path:
        return self.directory / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.directory / f"{name}.key"

    def make(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        self._openssl(*new, "-x509", "-days", "2", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem")
        (self.directory / "san").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        for name, subject in (("server", "/CN=127.0.0.1"), ("client", "/CN=tortie"), ("elsewhere", "/CN=elsewhere")):
            self._openssl(*new, "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.csr")
            names = ["-extfile", "san"] if name == "server" else []
            self._openssl(
                "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", "2", "-out", f"{name}.pem", *names,
            )  # fmt: skip

    def server(self) -> list[str]:
        return [
            f"--cert-file={self.certificate('server')}", f"--key-file={self.key('server')}",
            f"--trusted-ca-file={self.ca}", "--client-cert-auth",
        ]  # fmt: skip

    def flags(self) -> list[str]:
        return [f"--cacert={self.ca}", f"--cert={self.certificate('client')}", f"--key={self.key('client')}"]

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True, timeout=30)
