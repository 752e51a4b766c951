"""A Kubernetes API server for a test: the double, or a real one where there is one.

    async with kube_server() as server:
        server.url, server.kubeconfig(path)
        server.faults                          of the double; a real one has none, and the test says so in a skip

KUBEBUILDER_ASSETS names a directory with `kube-apiserver` and `etcd`, as controller-runtime's envtest has it: then
those run, on loopback, with certificates of their own and RBAC. Written after the documented flags of Kubernetes 1.29
to 1.32. There was no kube-apiserver to run it with; the store's contract was kept by the API server for custom
resources alone (apiextensions-apiserver 0.34 on etcd 3.4), with namespaces from the double.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from kube_api import KubeApi
from kube_api.certificates import Authority

ASSETS = "KUBEBUILDER_ASSETS"
PATIENCE = 60.0
"""Seconds that a real server may take to become ready."""


class RealKubeApi:
    """kube-apiserver and its etcd. What only the double can do skips the test."""

    def __init__(self, assets: Path) -> None:
        self.assets = assets
        self.admin_token = secrets.token_hex(16)
        self.authority: Authority | None = None
        self._programs: list[subprocess.Popen[bytes]] = []
        self._cleanup = contextlib.ExitStack()
        self._etcd = ""
        self.port = 0

    async def __aenter__(self) -> RealKubeApi:
        try:
            await self._ready(self._launch())
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for program in reversed(self._programs):
            program.terminate()
            try:
                await asyncio.to_thread(program.wait, 20)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
        self._programs.clear()
        self._cleanup.close()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        pytest.skip(f"a real API server has no `{name}`; the double has")

    def kubeconfig(self, path: Path | str, *, token: str = "", certificate: tuple[Path, Path] | None = None) -> Path:
        """Of the administrator, or for a token or client certificate."""
        assert self.authority is not None
        user: dict[str, Any] = {"token": token or self.admin_token}
        if certificate is not None:
            user = {"client-certificate": str(certificate[0]), "client-key": str(certificate[1])}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "real",
            "clusters": [
                {"name": "real", "cluster": {"server": self.url, "certificate-authority": str(self.authority.ca)}}
            ],
            "users": [{"name": "user", "user": user}],
            "contexts": [{"name": "real", "context": {"cluster": "real", "user": "user", "namespace": "default"}}],
        }
        found = Path(path)
        found.touch(mode=0o600)
        found.write_text(yaml.safe_dump(document))
        return found

    def compact(self) -> None:
        """Compact etcd's history up to now: to a revision of our own, for of the one that is compacted to etcd tells a
        watch no deletion."""
        etcdctl = self.assets / "etcdctl"
        program = str(etcdctl) if etcdctl.exists() else shutil.which("etcdctl")
        if program is None:
            pytest.skip("compaction needs etcdctl")
        environment = {**os.environ, "ETCDCTL_API": "3"}
        common = [program, "--endpoints", self._etcd]
        subprocess.run([*common, "put", "compaction", "now"], env=environment, capture_output=True, check=True)
        status = subprocess.run(
            [*common, "get", "/", "-w", "fields"], env=environment, capture_output=True, text=True, check=True
        ).stdout
        revision = next(line.rpartition(":")[2].strip() for line in status.splitlines() if '"Revision"' in line)
        subprocess.run([*common, "compact", revision], env=environment, capture_output=True, check=True)

    def _launch(self) -> Path:
        """Start both programs; returns the log of the server."""
        directory = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="kube-server-")))
        self.authority = Authority(directory)
        account_key = directory / "service-account.key"
        subprocess.run(["openssl", "genrsa", "-out", str(account_key), "2048"], capture_output=True, check=True)
        tokens = directory / "tokens.csv"
        tokens.touch(mode=0o600)
        tokens.write_text(f'{self.admin_token},kubernetes-admin,admin,"system:masters"\n')
        client, peer = _free_port(), _free_port()
        self._etcd = f"http://127.0.0.1:{client}"
        self._run(
            directory,
            "etcd",
            f"--data-dir={directory / 'etcd'}",
            f"--listen-client-urls={self._etcd}",
            f"--advertise-client-urls={self._etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
        )
        self.port = _free_port()
        certificate, key = self.authority.server
        self._run(
            directory,
            "kube-apiserver",
            f"--etcd-servers={self._etcd}",
            "--watch-cache=false",  # what etcd has forgotten, it would still know
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--cert-dir={directory}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--client-ca-file={self.authority.ca}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={account_key}",
            f"--service-account-signing-key-file={account_key}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--allow-privileged=true",
            "--disable-admission-plugins=ServiceAccount",
        )
        return directory / "kube-apiserver.log"

    def _run(self, directory: Path, name: str, *arguments: str) -> None:
        with (directory / f"{name}.log").open("wb") as log:
            self._programs.append(
                subprocess.Popen([str(self.assets / name), *arguments], stdout=log, stderr=log, cwd=directory)
            )

    async def _ready(self, log: Path) -> None:
        assert self.authority is not None
        context = ssl.create_default_context(cafile=self.authority.ca)
        deadline = time.monotonic() + PATIENCE
        headers = {"Authorization": f"Bearer {self.admin_token}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(f"{self.url}/readyz", ssl=context) as answer:
                        if answer.status == 200:
                            return
                ended = [program for program in self._programs if program.poll() is not None]
                if ended or time.monotonic() > deadline:
                    raise RuntimeError(f"the API server is not ready: {_end(log)}")
                await asyncio.sleep(0.2)


def _end(log: Path) -> str:
    return log.read_text()[-2000:]


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def real_assets() -> Path | None:
    """Where a real server's programs are, if the environment says so."""
    named = os.environ.get(ASSETS, "")
    found = Path(named) if named else None
    whole = found is not None and all((found / name).exists() for name in ("kube-apiserver", "etcd"))
    return found if whole else None


@contextlib.asynccontextmanager
async def kube_server(**options: Any) -> AsyncIterator[Any]:
    """A KubeApi with these options, or a RealKubeApi, whose options are fixed: TLS and RBAC."""
    assets = real_assets()
    server: Any = RealKubeApi(assets) if assets is not None else KubeApi(**options)
    async with server:
        yield server


@contextlib.contextmanager
def kube_program(kubeconfig: Path, *arguments: str, before: tuple[str, ...] = ()) -> Iterator[str]:
    """The double as a program of its own, for tests that have no loop or a namespace; gives its URL.

    `before`: what runs it, such as ("ip", "netns", "exec", NAME). Its faults are at POST <url>/-/<verb>.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [*before, sys.executable, "-m", "kube_api", "--kubeconfig", str(kubeconfig), *arguments]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    try:
        assert program.stdout is not None
        url = program.stdout.readline().strip()
        if not url:
            raise RuntimeError(f"the double ended with {program.wait(10)}")
        yield url
    finally:
        program.terminate()
        try:
            program.wait(10)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
        if program.stdout is not None:
            program.stdout.close()
