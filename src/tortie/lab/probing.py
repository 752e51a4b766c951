"""One readiness probe of a container, made from inside of the pod's own network namespace: TCP, HTTP or a program.

A probe is passed or says in a few words why not; it raises nothing. Who would ask from the node, as Kubernetes' kubelet
does, would get the same answers: of its own node's pods policy keeps nobody out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from tortie.base.errors import TortieError
from tortie.kernel import netns

PASSED = ""
_TOLD = 120
"""Characters of what a program says that are told on."""


@dataclass(frozen=True, slots=True)
class Inside:
    """Where a container is. `pid` is that of its program, 0 where the lab answers in its place."""

    netns_path: str
    ip: str
    pid: int = 0
    cwd: str = ""
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Connect:
    """A TCP connection comes about."""

    port: int
    host: str = ""

    async def __call__(self, inside: Inside) -> str:
        host = self.host or inside.ip
        sock = _socket(inside.netns_path, socket.AF_INET6 if ":" in host else socket.AF_INET)
        with sock:
            try:
                await asyncio.get_running_loop().sock_connect(sock, (host, self.port))
            except OSError as error:
                return f"TCP to port {self.port}: {os.strerror(error.errno) if error.errno else error}"
        return PASSED


@dataclass(frozen=True, slots=True)
class Get:
    """A page is there: the status is from 200 to 399. Redirects are not followed, certificates are not looked at."""

    port: int
    path: str = "/"
    host: str = ""
    scheme: str = "http"
    headers: tuple[tuple[str, str], ...] = ()

    async def __call__(self, inside: Inside) -> str:
        import aiohttp  # most labs have no such probe, and their kubelet starts sooner without

        host = self.host or inside.ip
        url = f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{self.port}/{self.path.removeprefix('/')}"
        connector = aiohttp.TCPConnector(
            ssl=False, force_close=True, socket_factory=lambda where: _socket(inside.netns_path, where[0])
        )
        try:
            async with (
                aiohttp.ClientSession(connector=connector, auto_decompress=False) as session,
                session.get(url, headers=self.headers, allow_redirects=False) as answer,
            ):
                good = 200 <= answer.status < 400
                return PASSED if good else f"GET {url}: status {answer.status}"
        except (OSError, ValueError, aiohttp.ClientError) as error:
            return f"GET {url}: {error}"


@dataclass(frozen=True, slots=True)
class Run:
    """A program ends with 0. It sees what the container's own program sees."""

    argv: tuple[str, ...]

    async def __call__(self, inside: Inside) -> str:
        # The program's own namespaces: its network, its host name, and what is mounted for it.
        own = ["--target", str(inside.pid), "--net", "--uts", "--mount", f"--wdns={inside.cwd or '/'}"]
        where = own if inside.pid else [f"--net={inside.netns_path}"]
        try:
            child = await asyncio.create_subprocess_exec(
                "nsenter", *where, "--", *self.argv,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                cwd="/", env=os.environ | dict(inside.env), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return f"{self.argv[0]}: {error.strerror}"
        try:
            said = (await child.communicate())[0]
        except asyncio.CancelledError:  # it was too slow: it goes, with what it has started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
            raise
        if child.returncode == 0:
            return PASSED
        line = said.decode(errors="replace").strip().rpartition("\n")[2][:_TOLD]
        return f"{self.argv[0]}: exit status {child.returncode}{line and ': '}{line}"


Check = Connect | Get | Run


async def passes(check: Check, inside: Inside, seconds: float) -> str:
    """PASSED, or why not; one that takes longer than `seconds` fails."""
    try:
        async with asyncio.timeout(seconds):
            return await check(inside)
    except TimeoutError:
        return f"no answer in {seconds:g} s"
    except (TortieError, OSError) as error:  # the namespace is gone, or no descriptor is left
        return str(error)


def _socket(path: str, family: int) -> socket.socket:
    """One that stays in the namespace in which it was made."""
    with netns.entered(path):
        sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock
