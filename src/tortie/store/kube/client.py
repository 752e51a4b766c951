"""Requests to a Kubernetes API server over HTTP/1.1: implements `tortie.store.kube.api.Api`.

    request ──► bucket ──► identity ──► HTTP ──► 2xx: the body
                  ▲                       └────► Trouble ──401: another identity──┐
                  └──── a pause, while patience lasts and asking twice is safe ◄──┘

A network failure after the request was sent leaves open whether it was carried out: such a request is repeated only if
that does no harm (`refusals.repeatable`); else the caller is told that it may have been taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
from yarl import URL  # aiohttp's own

from tortie import __version__
from tortie.base.errors import ConfigError, Unavailable
from tortie.store.kube.access import Access
from tortie.store.kube.api import JSON
from tortie.store.kube.credentials import Identity
from tortie.store.kube.limits import Bucket, pause
from tortie.store.kube.refusals import Trouble, refusal, repeatable, unexpected
from tortie.store.kube.tls import disbelief, shown
from tortie.store.kube.wire import Lines, one_line, template, url, warnings

log = logging.getLogger(__name__)

T = TypeVar("T")
OnRequest = Callable[[str, str, int, float], None]
"""Told of every try: method (WATCH for the begin of one), path template, status (0: no answer), seconds."""

PATIENCE = 10.0
"""Seconds that a request is tried for, until its answer begins."""
ANSWER = 60.0
"""Seconds that an answer may take once it has begun; it may not be silent for longer than patience lasts."""
GRACE = 15.0
"""Seconds that a watch may be silent after the server should have ended it."""
SHORTEST_WATCH, LONGEST_WATCH = 300, 600
"""Seconds after which the server is to end a watch, when the caller does not say: by chance, so that they do not all
end together. client-go's."""
AT_ONCE = 64
"""Requests under way, watches not counted."""
IDLE = 15.0
"""Seconds that a connection is kept for the next request; servers and what is before them close after 60 and more."""
DEAD = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""The kernel finds out that a peer is gone within 30 s, also under a quiet watch."""
BUFFER = 1 << 18
"""Bytes of a watch that wait for the caller before the server is slowed down."""
MOST_SAID = 1000
"""Warnings of the server that are remembered, so that they are told once."""


@dataclass(frozen=True, slots=True)
class _Ask:
    method: str
    path: str
    query: Mapping[str, str] | None = None
    body: bytes = b""
    content_type: str = JSON
    watch: bool = False

    @property
    def title(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(slots=True)
class _Try:
    """One try of it. `sent`: from then on the server may have it."""

    identity: Identity = field(default_factory=Identity)
    context: ssl.SSLContext | None = None
    status: int = 0
    sent: bool = False


class Client:
    """Belongs to the event loop of its first request. `patience` and `grace` in seconds."""

    def __init__(
        self,
        access: Access,
        *,
        patience: float = PATIENCE,
        grace: float = GRACE,
        on_request: OnRequest | None = None,
    ) -> None:
        self.access = access
        self._patience = patience
        self._grace = grace
        self._on_request = on_request
        self._bucket = Bucket(access.qps, access.burst)
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._said: set[str] = set()
        self._answering: set[aiohttp.ClientResponse] = set()
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"Client({self.access.server}, {self.access.origin})"

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        content_type: str = JSON,
    ) -> bytes:
        return await self._patiently(_Ask(method, path, query, body, content_type), self._whole)

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[bytes]:
        seconds = query.get("timeoutSeconds") or str(random.randint(SHORTEST_WATCH, LONGEST_WATCH))
        ask = _Ask("GET", path, {**query, "watch": "true", "timeoutSeconds": seconds}, watch=True)
        try:
            response = await self._patiently(ask, self._begun)
        except Unavailable:
            if self._closed:
                return
            raise
        self._answering.add(response)
        try:
            lines = Lines()
            while chunk := await self._chunk(response, path, float(seconds) + self._grace):
                for line in lines.feed(chunk):
                    yield line
            if lines.rest and not self._closed:
                if not _is_json(lines.rest):
                    raise Unavailable(f"{self.access.server}: the watch of {path} was cut in the middle of an event")
                yield lines.rest
        finally:
            self._answering.discard(response)
            response.close()

    async def close(self) -> None:
        """Running watches end, requests under way are Unavailable."""
        self._closed = True
        for response in self._answering:  # closing the session alone would let them wait
            response.content.set_exception(aiohttp.ClientConnectionError("closed"))
        if self._session is not None:
            await self._session.close()
        await self.access.credentials.close()

    # --- answers ---

    async def _whole(self, response: aiohttp.ClientResponse) -> bytes:
        """The body, all of it."""
        self._answering.add(response)
        try:
            async with asyncio.timeout(ANSWER):
                return await response.read()
        finally:
            self._answering.discard(response)
            response.release()

    async def _begun(self, response: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
        return response

    async def _chunk(self, response: aiohttp.ClientResponse, path: str, silence: float) -> bytes:
        """What comes next of a watch; empty when it has ended, or we are closed. Raises Unavailable."""
        try:
            async with asyncio.timeout(silence):
                return await response.content.readany()
        except TimeoutError:
            problem = f"was silent for {silence:g} s"
        except (aiohttp.ClientError, OSError) as error:
            problem = f"broke: {_broken(error)}"
        if self._closed:
            return b""
        raise Unavailable(f"{self.access.server}: the watch of {path} {problem}")

    # --- tries ---

    async def _patiently(self, ask: _Ask, take: Callable[[aiohttp.ClientResponse], Awaitable[T]]) -> T:
        """Ask, and ask again where that may help and does no harm."""
        until = 0.0
        tries = 0
        renewed = False
        while True:
            one = await self._prepared()
            if self._closed:
                raise Unavailable(f"{self.access.server}: the connection is closed")
            until = until or _now() + self._patience
            found, trouble = await self._counted(ask, one, take, until)
            if trouble is None:
                return found  # type: ignore[return-value]
            if trouble.unknown and not renewed and await self._renewed(one.identity):
                renewed = True
                continue
            tries += 1
            safe = trouble.untaken or repeatable(ask.method, ask.path, ask.body)
            wait = pause(tries, random.random(), trouble.after)
            if not trouble.again or not safe or _now() + wait >= until:
                raise trouble.error if safe or not trouble.again else _perhaps(ask, trouble)
            log.debug("%s: %s; again in %.1f s", ask.title, trouble.error, wait)
            await asyncio.sleep(wait)

    async def _prepared(self) -> _Try:
        """As whom to ask, when it is our turn; neither counts for patience with the server. Raises Unavailable."""
        if (wait := self._bucket.take(_now())) > 0:
            await asyncio.sleep(wait)
        identity = await self.access.credentials.identity()
        try:
            context = self.access.tls.context(identity.pair) if self.access.tls is not None else None
        except ConfigError as error:
            raise Unavailable(f"{self.access.origin}: {error}") from None
        return _Try(identity, context)

    async def _renewed(self, refused: Identity) -> bool:
        """Whether there is somebody else to ask as."""
        credentials = self.access.credentials
        if not credentials.renewable:
            return False
        credentials.refused(refused)
        return await credentials.identity() != refused

    async def _counted(
        self, ask: _Ask, one: _Try, take: Callable[[aiohttp.ClientResponse], Awaitable[T]], until: float
    ) -> tuple[T | None, Trouble | None]:
        async with self._at_once if not ask.watch else contextlib.nullcontext():
            if self._closed:
                return None, Trouble(Unavailable(f"{self.access.server}: the connection is closed"), untaken=True)
            begin = _now()
            try:
                return await self._once(ask, one, take, max(until, begin + self._patience / 10))
            except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
                return None, await self._failure(ask, one, error)
            finally:
                if self._on_request is not None:
                    method = "WATCH" if ask.watch else ask.method
                    self._on_request(method, template(ask.path), one.status, _now() - begin)

    async def _once(
        self, ask: _Ask, one: _Try, take: Callable[[aiohttp.ClientResponse], Awaitable[T]], until: float
    ) -> tuple[T | None, Trouble | None]:
        async with asyncio.timeout_at(until):
            response = await self._sent(ask, one)
        one.status = response.status
        try:
            self._tell(response)
            server = self.access.server
            if not 200 <= response.status < 300:
                body = await self._whole(response)
                return None, refusal(server, ask.path, response.status, response.headers, body)
            if (trouble := unexpected(server, response.content_type)) is not None:
                response.close()
                return None, trouble
            return await take(response), None
        except BaseException:
            response.close()
            raise

    async def _sent(self, ask: _Ask, one: _Try) -> aiohttp.ClientResponse:
        access = self.access
        headers = [("Accept", JSON), ("Accept-Encoding", "gzip" if access.compressed else "identity")]
        headers += access.credentials.headers
        if one.identity.token:
            headers.append(("Authorization", f"Bearer {one.identity.token}"))
        if ask.body:
            headers.append(("Content-Type", ask.content_type))
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._patience / 2, sock_read=None if ask.watch else self._patience
        )
        return await self._open().request(
            ask.method,
            URL(url(access.server, ask.path, ask.query), encoded=True),
            data=ask.body or None,
            headers=headers,
            timeout=timeout,
            allow_redirects=False,
            ssl=one.context if one.context is not None else True,
            server_hostname=access.tls.name or None if access.tls is not None else None,
            proxy=access.proxy or None,
            read_bufsize=BUFFER,
            trace_request_ctx=one,
        )

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            trace = aiohttp.TraceConfig()
            trace.on_request_headers_sent.append(_mark_sent)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE, socket_factory=_socket),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": f"tortie/{__version__}"},
                trace_configs=[trace],
                middlewares=[_not_twice],
            )
        return self._session

    def _tell(self, response: aiohttp.ClientResponse) -> None:
        """The server's warnings, once each."""
        for text in warnings(response.headers.getall("Warning", [])):
            if text not in self._said and len(self._said) < MOST_SAID:
                self._said.add(text)
                log.warning("%s: %s", self.access.server, one_line(text))

    async def _failure(self, ask: _Ask, one: _Try, error: Exception) -> Trouble:
        """What an exception of a try stands for."""
        server, tls = self.access.server, self.access.tls
        if isinstance(error, aiohttp.ClientConnectorCertificateError) and tls is not None:
            tls.expire()
            wrong = error.certificate_error
            parts = urlsplit(server)
            host, port = parts.hostname or "", parts.port or 443
            seen = b"" if self.access.proxy else await shown(host, port, tls.name)
            code, reason = getattr(wrong, "verify_code", 0), getattr(wrong, "verify_message", "") or str(wrong)
            return Trouble(Unavailable(f"{server}: {disbelief(code, reason, tls.name or host, seen)}"), untaken=True)
        if isinstance(error, ValueError) and not isinstance(error, aiohttp.ClientError | OSError):
            return Trouble(Unavailable(f"{server}: {ask.title} cannot be asked: {one_line(str(error))}"), untaken=True)
        if isinstance(error, TimeoutError):
            what = "no answer" if one.sent else "no connection"
            return Trouble(Unavailable(f"{server}: {what} in {self._patience:g} s"), again=True, untaken=not one.sent)
        problem = Unavailable(f"{server}: {_broken(error)}{self._through()}")
        lasting = isinstance(error, aiohttp.ClientConnectorSSLError)
        return Trouble(problem, again=not lasting, untaken=not one.sent)

    def _through(self) -> str:
        if not self.access.proxy:
            return ""
        parts = urlsplit(self.access.proxy)
        return f" (through the proxy {parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)})"


def _now() -> float:
    return asyncio.get_running_loop().time()


class _Broke(aiohttp.ClientError):
    """A connection broke after it was made."""


async def _not_twice(request: aiohttp.ClientRequest, ask: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """aiohttp asks again by itself, also with a DELETE or PUT that says of no state, when a connection that it had kept
    breaks. Whether to ask again is decided here alone, so that it gets an error that it does not know."""
    try:
        return await ask(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise error if isinstance(error, TimeoutError) else _Broke(_broken(error)) from None


async def _mark_sent(session: aiohttp.ClientSession, context: SimpleNamespace, params: Any) -> None:
    context.trace_request_ctx.sent = True


def _socket(address: Any) -> socket.socket:
    """For a connection to it, with the kernel looking after whether the peer is still there."""
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in DEAD:
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def _perhaps(ask: _Ask, trouble: Trouble) -> Unavailable:
    return Unavailable(f"{trouble.error}; {ask.title} may have been taken: look before doing it again")


def _broken(error: Exception) -> str:
    """A network failure in a few words."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the name of the server is not known"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy answers {error.status} {one_line(error.message, 100)}"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        reason = getattr(error.os_error, "reason", "") or str(error.os_error)
        hint = ": the server speaks no TLS, is it http://?" if reason == "WRONG_VERSION_NUMBER" else ""
        return f"TLS fails: {one_line(reason, 100)}{hint}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return _words(error.os_error)
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer was cut"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"what answers does not speak HTTP: {one_line(error.message, 100)}"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed before an answer"
    return _words(error)


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno).lower()
    return one_line(str(error), 200) or type(error).__name__


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True
