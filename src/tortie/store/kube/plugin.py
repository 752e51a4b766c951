"""Exec plugins: a program of the operator's that prints a token or a certificate (client.authentication.k8s.io).

    kubeconfig's exec ──► environment + KUBERNETES_EXEC_INFO ──► program ──stdout──► ExecCredential ──► Identity

It runs without a shell and without a terminal to read from, in a session of its own, for so many seconds at most. It
runs when there is no answer of it, the answer has ended (`expirationTimestamp`), or the server refused it; whoever
asks meanwhile waits for the same run. Source: Kubernetes' reference of client.authentication.k8s.io/v1.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from tortie.base.errors import ConfigError, Unavailable
from tortie.store.kube.credentials import Identity, Pair, cleaned
from tortie.store.kube.kubeconfig import Exec

GROUP = "client.authentication.k8s.io"
VERSIONS = (f"{GROUP}/v1", f"{GROUP}/v1beta1")
MODES = ("Never", "IfAvailable", "Always")
PATIENCE = 30.0
"""Seconds that a plugin may take."""
PAUSE = 2.0
"""Seconds before a plugin that failed is run again; until then its failure stands."""
LARGEST = 1 << 20
"""Bytes that a plugin may print."""
LAST_WORDS = 200
"""Characters of what a plugin says on stderr that are told."""


@dataclass(frozen=True, slots=True)
class Command:
    """What is run. Arguments and environment may hold credentials."""

    program: str
    arguments: tuple[str, ...] = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)
    version: str
    hint: str


@dataclass(frozen=True, slots=True)
class _Answer:
    """`ends` in seconds since 1970; None: it stays good until it is refused."""

    identity: Identity
    ends: float | None


class _Status(msgspec.Struct, rename="camel"):
    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""
    expiration_timestamp: datetime | None = None


class _ExecCredential(msgspec.Struct, rename="camel"):
    kind: str = ""
    api_version: str = ""
    status: _Status | None = None


def command(config: Exec, cluster: Mapping[str, Any], environment: Mapping[str, str], where: str) -> Command:
    """What a kubeconfig's `exec` stands for; `cluster` is told if it wants to know. Raises ConfigError."""
    if config.api_version not in VERSIONS:
        raise ConfigError(f'"{config.api_version}" is none of {", ".join(VERSIONS)}', where, "exec.apiVersion")
    if not config.command:
        raise ConfigError("names no program", where, "exec.command")
    mode = config.interactive_mode or ("IfAvailable" if config.api_version == VERSIONS[1] else "")
    if mode not in MODES:
        problem = f'"{mode}" is' if mode else "must be given in v1, as"
        raise ConfigError(f"{problem} {'none' if mode else 'one'} of {', '.join(MODES)}", where, "exec.interactiveMode")
    if mode == "Always":
        raise ConfigError(f"{config.command} wants a terminal to ask at, it gets none", where, "exec.interactiveMode")
    program = shutil.which(config.command, path=environment.get("PATH", os.defpath))
    if program is None:
        hint = f": {' '.join(config.install_hint.split())}" if config.install_hint else ""
        raise ConfigError(f"{config.command} is not there, or not executable{hint}", where, "exec.command")
    spec: dict[str, Any] = {"interactive": False}
    if config.provide_cluster_info:
        spec["cluster"] = cluster
    info = {"kind": "ExecCredential", "apiVersion": config.api_version, "spec": spec}
    return Command(
        program,
        tuple(config.args or ()),
        {
            **environment,
            **{one.name: one.value for one in config.env or ()},
            "KUBERNETES_EXEC_INFO": msgspec.json.encode(info).decode(),
        },
        config.api_version,
        " ".join(config.install_hint.split()),
    )


def answer(printed: bytes, version: str) -> _Answer:
    """What a plugin printed. Raises Unavailable, which quotes nothing of it."""
    try:
        credential = msgspec.json.decode(printed, type=_ExecCredential)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Unavailable("what it prints is not an ExecCredential in JSON") from None
    if credential.kind != "ExecCredential" or credential.api_version != version:
        found = f"{credential.kind or 'nothing'} of {credential.api_version or 'no version'}"
        raise Unavailable(f"it prints {ascii(found)[1:-1]}, not ExecCredential of {version}")
    status = credential.status
    if status is None or not (status.token or status.client_certificate_data or status.client_key_data):
        raise Unavailable("it prints neither token nor certificate")
    if bool(status.client_certificate_data) != bool(status.client_key_data):
        raise Unavailable("it prints a certificate without its key, or a key without its certificate")
    certificate, key = status.client_certificate_data.encode(), status.client_key_data.encode()
    when = status.expiration_timestamp
    if when is not None and when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return _Answer(
        Identity(
            cleaned(status.token.encode(), "it prints what is no token") if status.token else "",
            Pair(certificate, key) if certificate else None,
        ),
        when.timestamp() if when is not None else None,
    )


class ExecPlugin:
    """Implements `credentials.Plugin`."""

    def __init__(self, what: Command, patience: float = PATIENCE) -> None:
        self._command = what
        self._patience = patience
        self._answer: _Answer | None = None
        self._failure: tuple[float, Unavailable] | None = None
        self._running: asyncio.Task[_Answer] | None = None

    def __repr__(self) -> str:
        return f"ExecPlugin({self._command.program})"

    async def identity(self) -> Identity:
        """Raises Unavailable, with the plugin's last words."""
        if self._answer is not None and (self._answer.ends is None or time.time() < self._answer.ends):
            return self._answer.identity
        if self._failure is not None and time.monotonic() < self._failure[0]:
            raise Unavailable(str(self._failure[1]))
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name=f"exec plugin {self._command.program}")
            self._running.add_done_callback(self._ran)
        return (await asyncio.shield(self._running)).identity

    def refused(self, identity: Identity) -> None:
        """Whoever asked with an older answer changes nothing."""
        given = self._answer.identity if self._answer is not None else Identity()
        if identity.token == given.token and (given.pair is None or identity.pair == given.pair):
            self._answer = None

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait((self._running,))

    def _ran(self, task: asyncio.Task[_Answer]) -> None:
        self._running = None
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Unavailable):
            self._failure = time.monotonic() + PAUSE, error
        elif error is None:
            self._answer, self._failure = task.result(), None

    async def _run(self) -> _Answer:
        what = self._command
        try:
            said = None if sys.stderr is not None and sys.stderr.isatty() else asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(
                what.program,
                *what.arguments,
                env=what.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=said,  # a person at a terminal reads it: "open this page to log in"
                start_new_session=True,  # it finds no terminal to ask at, and ends with all that it started
            )
        except (OSError, ValueError) as error:
            why = os.strerror(error.errno or 0) if isinstance(error, OSError) else "its environment cannot be given"
            raise Unavailable(f"{what.program}: {why}{self._hint()}") from None
        try:
            async with asyncio.timeout(self._patience):
                out, err = await asyncio.gather(_limited(process.stdout), _limited(process.stderr))
                status = await process.wait()
        except TimeoutError:
            await _end(process)
            raise Unavailable(f"{what.program} has printed no credentials in {self._patience:g} s") from None
        except BaseException:
            await _end(process)
            raise
        if status:
            lines = [line for line in err.decode(errors="replace").splitlines() if line.strip()]
            last = "".join(c if c.isprintable() else " " for c in lines[-1])[:LAST_WORDS] if lines else ""
            raise Unavailable(f"{what.program} ended with {status}{': ' if last else ''}{last}{self._hint()}")
        try:
            return answer(out, what.version)
        except Unavailable as error:
            raise Unavailable(f"{what.program}: {error}") from None

    def _hint(self) -> str:
        return f" ({self._command.hint})" if self._command.hint else ""


async def _limited(stream: asyncio.StreamReader | None) -> bytes:
    """All that is said, and no more than is sensible."""
    found = bytearray()
    while stream is not None and (chunk := await stream.read(1 << 16)):
        if len(found) < LARGEST:
            found += chunk
    return bytes(found)


async def _end(process: asyncio.subprocess.Process) -> None:
    """It and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), 1.0)
