"""Answers to load balancers that ask a node whether it has an endpoint of a service, and to who asks for the proxy.

    :HEALTHCHECKNODEPORT  any path   200 with endpoints here, 503 without: the load balancer sends its clients elsewhere
    :10256                /healthz   200 while rules are up to date and the node is not about to be deleted, else 503
                          /livez     the same, whatever becomes of the node

Each port is listened at with one socket for both IP versions, at all of the node's addresses. One that somebody else
has, which is kube-proxy until it ends, is said once in a while and tried again. Who asks has CALL_SECONDS in all, for
one question; more callers than MAX_CALLERS are turned away. Bodies, headers and codes are kube-proxy's.
Source: pkg/proxy/healthcheck of Kubernetes 1.32.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from aiohttp import web
from aiohttp.http import HttpProcessingError

from tortie.base.logs import Seldom
from tortie.calc.proxy.state import HealthCheck, ProxyState, ServiceKey

log = logging.getLogger(__name__)

HEALTHZ_PORT = 10256  # kube-proxy's healthzBindAddress
AGAIN = 5.0
CALL_SECONDS = 10.0
MAX_CALLERS = 256
"""At once, at all ports together."""
MAX_LINE = 8190
BACKLOG = 128
NOSNIFF = {"X-Content-Type-Options": "nosniff"}


class Pulse:
    """When rules were brought up to date. `healthy` says whether they are; nobody who cannot know says they are not.
    `eligible`: the node is not about to be deleted."""

    def __init__(
        self,
        healthy: Callable[[], bool] = lambda: True,
        eligible: Callable[[], bool] = lambda: True,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.healthy = healthy
        self.eligible = eligible
        self.clock = clock
        self.updated = clock()


def checks(state: ProxyState) -> dict[int, tuple[ServiceKey, HealthCheck]]:
    """The check of each port. Of two services with one port, which Kubernetes does not give out, the first by name."""
    wanted: dict[int, tuple[ServiceKey, HealthCheck]] = {}
    for key, served in state.services.items():
        check = served.check
        if check is not None and check.port and (check.port not in wanted or key < wanted[check.port][0]):
            wanted[check.port] = key, check
    return wanted


def check_answer(key: ServiceKey, local: int, healthy: bool) -> web.Response:
    """To a load balancer."""
    namespace, name = key
    body = {
        "service": {"namespace": namespace, "name": name},
        "localEndpoints": local,
        "serviceProxyHealthy": healthy,
    }
    headers = {**NOSNIFF, "X-Load-Balancing-Endpoint-Weight": str(local)}
    return _json(body, good=local > 0 and healthy, headers=headers)


def pulse_answer(path: str, pulse: Pulse) -> web.Response:
    """To who asks for the proxy. Like kube-proxy, one that is healthy was updated just now."""
    if path not in ("/healthz", "/livez"):
        return web.Response(status=404, text="404 page not found\n", headers=NOSNIFF)
    now, healthy, eligible = pulse.clock(), pulse.healthy(), pulse.eligible()
    good = healthy and (eligible or path == "/livez")
    updated = now if good else pulse.updated
    body: dict[str, object] = {"lastUpdated": _time(updated), "currentTime": _time(now)}
    if path == "/healthz":
        body["nodeEligible"] = eligible
    return _json(body, good=good, headers=NOSNIFF)


def _json(body: Mapping[str, object], *, good: bool, headers: Mapping[str, str]) -> web.Response:
    content = json.dumps(body, separators=(",", ":")).encode()
    headers = {**headers, "Content-Type": "application/json"}
    return web.Response(status=200 if good else 503, body=content, headers=headers)


def _time(moment: datetime) -> str:
    """As Go prints it, without its monotonic clock."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f +0000 UTC")


class HealthChecks:
    """For one event loop. `healthz_port` 0: kube-proxy's own port is not served. `again` and `call_seconds`: seconds
    until a port that was taken is tried again, and that a caller has."""

    def __init__(
        self,
        pulse: Pulse | None = None,
        *,
        healthz_port: int = HEALTHZ_PORT,
        again: float = AGAIN,
        call_seconds: float = CALL_SECONDS,
    ) -> None:
        self.pulse = pulse or Pulse()
        self._healthz_port = healthz_port
        self._again = again
        self._call_seconds = call_seconds
        self._wanted: dict[int, tuple[ServiceKey, HealthCheck]] = {}
        self._ours = False
        self._open: dict[int, tuple[web.Server, asyncio.Server]] = {}
        self._changed = asyncio.Event()
        self._callers: set[_Call] = set()
        self._complain = Seldom(log)
        self.failures: dict[int, str] = {}
        """Why a port is not listened at, in a line each."""

    def update(self, state: ProxyState | None) -> None:
        """From the event loop. What is listened at follows at once, what is answered is this already. None: services
        are somebody else's, and so are the ports."""
        before, self._wanted = self._ports(), checks(state) if state is not None else {}
        self._ours = state is not None
        self.pulse.updated = self.pulse.clock()
        if before != self._ports():
            self._changed.set()

    async def run(self) -> None:
        """Until it is cancelled, which closes all ports."""
        try:
            while True:
                self._changed.clear()
                await self._settle()
                try:
                    async with asyncio.timeout(self._again if self.failures else None):
                        await self._changed.wait()
                except TimeoutError:
                    pass
        finally:
            await self.close()

    async def close(self) -> None:
        """All ports, and calls that are under way."""
        for port in list(self._open):
            self._shut(port)
        for call in list(self._callers):
            call.abort()

    def _ports(self) -> set[int]:
        return set(self._wanted) | ({self._healthz_port} if self._healthz_port and self._ours else set())

    async def _settle(self) -> None:
        ports = self._ports()
        for port in [port for port in self._open if port not in ports]:
            self._shut(port)
        self.failures = {port: why for port, why in self.failures.items() if port in ports}
        for port in sorted(ports - set(self._open)):
            try:
                await self._listen(port)
                self.failures.pop(port, None)
            except OSError as error:
                what = self._title(port)
                text = f"cannot listen on port {port}, {what}: {os.strerror(error.errno or 0)}; it is tried again"
                self.failures[port] = text
                self._complain.warning(text)

    def _title(self, port: int) -> str:
        if port not in self._wanted:
            return "for /healthz"
        return f"the healthCheckNodePort of Service {'/'.join(self._wanted[port][0])}"

    async def _listen(self, port: int) -> None:
        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            return self._answer(port, request)

        server = web.Server(answer)
        loop = asyncio.get_running_loop()
        listener = _socket(port)
        try:
            made = await loop.create_server(
                lambda: _Call(server, loop, self._callers, self._complain, self._call_seconds),
                sock=listener,
                backlog=BACKLOG,
            )
        except BaseException:
            listener.close()
            raise
        self._open[port] = server, made

    def _shut(self, port: int) -> None:
        _, listener = self._open.pop(port)
        listener.close()

    def _answer(self, port: int, request: web.BaseRequest) -> web.StreamResponse:
        """One question a connection: who asks every few seconds keeps nothing open meanwhile."""
        found = self._wanted.get(port)
        if found is not None:
            key, check = found
            response = check_answer(key, check.local, self.pulse.healthy())
        elif port == self._healthz_port:
            response = pulse_answer(request.path, self.pulse)
        else:  # the service went while this call came
            response = web.Response(status=503)
        response.force_close()
        return response


def _socket(port: int) -> socket.socket:
    """For both versions of IP, or for IPv4 where the machine has no IPv6. Raises OSError."""
    try:
        return _bound(socket.AF_INET6, "::", port)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return _bound(socket.AF_INET, "0.0.0.0", port)


def _bound(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        one.bind((address, port))
        one.listen(BACKLOG)
    except BaseException:
        one.close()
        raise
    return one


class _Call(web.RequestHandler):
    """One caller, within bounds of time, size and number."""

    __slots__ = ("_all", "_complain", "_end", "_seconds")

    def __init__(
        self,
        server: web.Server,
        loop: asyncio.AbstractEventLoop,
        callers: set[_Call],
        complain: Seldom,
        seconds: float,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=0,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            lingering_time=0,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]  # it looks whether there is one
        )
        self._all = callers
        self._complain = complain
        self._seconds = seconds
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if len(self._all) >= MAX_CALLERS:
            self._complain.warning(f"health checks: {MAX_CALLERS} callers are there already; more are turned away")
            self.abort()
            return
        self._all.add(self)
        self._end = self._loop.call_later(self._seconds, self.abort)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._all.discard(self)
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What is not HTTP is the caller's mistake, and no bug of ours."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        response = web.Response(status=status, text="not HTTP\n")
        response.force_close()
        return response
