"""What clients of an API server meet in tests: certificates, and servers on loopback that do as the test says."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from tortie.model.apiconfig import ApiConfig
from tortie.store.kube.access import access
from tortie.store.kube.client import Client

TOKEN = "sekrit-of-the-test"
PODS = "/api/v1/pods"
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=20)


@dataclass(frozen=True)
class Leaf:
    """Files in PEM."""

    certificate: Path
    key: Path


class Authority:
    """A CA that signs what it is told to."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.certificate = folder / f"{name}.crt"
        self.key = folder / f"{name}.key"
        new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        openssl(*new, "-subj", f"/O=test/CN={name}", "-keyout", str(self.key), "-out", str(self.certificate))

    def sign(self, name: str, subject: str, alternative: str = "") -> Leaf:
        """`alternative`: `IP:127.0.0.1,DNS:api.example` for a server."""
        made = Leaf(self.folder / f"{self.name}-{name}.crt", self.folder / f"{self.name}-{name}.key")
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={alternative}\n" if alternative else "basicConstraints=CA:FALSE\n")
        new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", subject]
        openssl(*new, "-keyout", str(made.key), "-out", str(request))
        by = ["-CA", str(self.certificate), "-CAkey", str(self.key), "-CAcreateserial", "-days", "2"]
        openssl("x509", "-req", "-in", str(request), *by, "-extfile", str(extensions), "-out", str(made.certificate))
        return made

    def serving(self, leaf: Leaf) -> ssl.SSLContext:
        """A server's context, which asks for certificates of this CA and needs none."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.certificate))
        context.load_cert_chain(leaf.certificate, leaf.key)
        context.verify_mode = ssl.CERT_OPTIONAL
        return context


@contextlib.asynccontextmanager
async def serving(answer: Answer, context: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[str]:
    """A server that answers every request so; its URL."""

    async def respond(request: web.Request) -> web.StreamResponse:
        return await answer(request)

    app = web.Application(client_max_size=1 << 24)
    app.router.add_route("*", "/{path:.*}", respond)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
        yield f"http{'s' if context else ''}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def speaking(speak: Speak) -> AsyncIterator[str]:
    """A server that does with every connection so; its URL."""
    tasks: set[asyncio.Task[Any]] = set()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await speak(reader, writer)
        writer.close()

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def jwt(claims: object) -> str:
    """A token that says so; nobody has signed it."""
    return ".".join(
        base64.urlsafe_b64encode(one).decode().rstrip("=") for one in (b"{}", json.dumps(claims).encode(), b"s")
    )


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# --- the client and what answers it ---------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def client(server: str, token: str = TOKEN, **options: Any) -> AsyncIterator[Client]:
    more = {name: options.pop(name) for name in ("k8s_client_qps", "k8s_client_burst") if name in options}
    made = Client(access(ApiConfig(k8s_api_endpoint=server, k8s_api_token=token, **more), {}), **options)
    try:
        yield made
    finally:
        await made.close()


def refused(code: int, reason: str = "", message: str = "no", headers: dict[str, str] | None = None) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}
    return web.json_response({**body, "details": {"name": "a"}}, status=code, headers=headers)


class Script:
    """Answers in this order; the last one for ever. Counts."""

    def __init__(self, *answers: Callable[[], web.StreamResponse]) -> None:
        self.answers = answers
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.times: list[float] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.times.append(time.monotonic())
        self.bodies.append(await request.read())
        return self.answers[min(len(self.requests), len(self.answers)) - 1]()


def ok() -> web.Response:
    return web.json_response({"kind": "PodList", "items": []})
