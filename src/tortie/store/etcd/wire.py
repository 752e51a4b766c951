"""Requests to the members of an etcd: over gRPC, to whichever of them answers.

    ask ──► Wire ──► the member in use ──fails──► the next one ──► ... until `patience` is over: Unavailable
              │ with a token, got anew when etcd forgets it
              └─► Unsure, for a write of which nobody knows whether it was carried out: the caller looks

The messages and stubs are those of aetcd. Its client is not used: it knows one member, no TLS, and keeps its first
token.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it has to say is in our errors, and stderr is the user's

import grpc
from aetcd import rpc
from grpc.aio import AioRpcError, Channel, Metadata, StreamStreamCall

from tortie.base.errors import Compacted, ConfigError, NotSupported, TortieError, Unavailable
from tortie.model.apiconfig import ApiConfig
from tortie.store.etcd.tls import credentials

PATIENCE = 15.0
"""Seconds that a request tries to find a member that answers: an election takes one or two, a lost message up to 7."""
FIRST = 3.0
"""The same before any member has ever answered: a wrong address should be known soon."""
ATTEMPT = 5.0
"""Seconds that one member is given. A long page of a list has more."""
QUIET = 4.0
"""Seconds of silence after which a member that tells of changes is asked whether it lives, and has for the answer."""
LONGEST_PAUSE = 0.5
"""Seconds between two tries, at most."""
KEYS = "/calico/ and /tortie/"
"""Where a datastore's keys are, for who is not let in."""

_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
"""etcd calls it too often when a client asks for a sign of life every 5 s or more often."""

NEVER_SENT = ("failed to connect", "connection refused", "dns resolution failed")
"""What Unavailable says when the request was not taken."""
AGAIN = ("invalid auth token", "revision of auth store is old", "token is not provided")
"""What a member says of a token that is no longer good."""


class Unsure(Exception):
    """The connection broke, or time ran out, while a write was on its way: it may be carried out yet."""


class Full(Unavailable):
    """etcd takes nothing that needs room: surely it was not carried out. It still reads, deletes and compacts."""


class LeaseGone(Exception):
    """The lease that a write asked for has run out; nothing was written."""


@dataclass(eq=False)
class Member:
    """One endpoint and the connection to it, which is made when it is first used."""

    url: str
    channel: Channel | None = None
    stubs: dict[str, Any] | None = None

    @property
    def secure(self) -> bool:
        return self.url.startswith("https://")

    @property
    def target(self) -> str:
        """`host:port`; IPv6 addresses in brackets."""
        rest = self.url.partition("://")[2].rstrip("/")
        has_port = ":" in rest.rpartition("]")[2]
        return rest if has_port else f"{rest}:2379"


class Wire:
    """The way to an etcd. Belongs to the event loop in which it is first used."""

    def __init__(self, config: ApiConfig, patience: float = PATIENCE, quiet: float = QUIET, keys: str = KEYS) -> None:
        """Raises ConfigError and NotSupported for what cannot work, and what TLS files have to say."""
        self.config = config
        self.keys = keys
        self.patience = patience
        self.quiet = quiet
        self.members = [Member(url) for url in endpoints(config)]
        random.shuffle(self.members)
        self.closed = False
        self.answered = False
        if any(member.secure for member in self.members):
            credentials(config)
        self._token = ""
        self._authenticating = asyncio.Lock()

    @property
    def where(self) -> str:
        return ",".join(sorted(member.url for member in self.members))

    async def ask(self, method: str, request: Any, timeout: float = ATTEMPT) -> Any:
        """The answer to something that may be asked twice. Raises Unavailable, ConfigError, Compacted."""
        return await self._until_answered(lambda member: self._once(member, method, request, timeout))

    async def ask_once(self, method: str, request: Any) -> Any:
        """The answer to a write. Raises Unsure when nobody knows; what was surely not taken is tried again."""

        async def once(member: Member) -> Any:
            try:
                return await self._once(member, method, request, ATTEMPT)
            except AioRpcError as error:
                if doubtful(error):
                    self.leave(member)
                    raise Unsure from None
                raise

        return await self._until_answered(once)

    async def stream(self, member: Member) -> StreamStreamCall[Any, Any]:
        """A stream of watches from a member, which ends when that has lost the others."""
        metadata = (*await self._metadata(member), ("hasleader", "true"))
        call: StreamStreamCall[Any, Any] = self._stub(member, "Watch")(metadata=metadata)
        return call

    @property
    def member(self) -> Member:
        """The one in use."""
        return self.members[0]

    def leave(self, member: Member) -> None:
        """Uses the next one from now on, unless somebody has decided so already."""
        if self.members[0] is member:
            self.members.append(self.members.pop(0))

    def forget_token(self) -> bool:
        """Whether there was one that can be got anew."""
        had, self._token = bool(self._token), ""
        return had

    async def close(self) -> None:
        self.closed = True
        for member in self.members:
            channel, member.channel, member.stubs = member.channel, None, None
            if channel is not None:
                await channel.close()

    def check_open(self) -> None:
        """Raises Unavailable."""
        if self.closed:
            raise Unavailable("this store is closed")

    async def _until_answered(self, attempt: Callable[[Member], Any]) -> Any:
        begin, tries = time.monotonic(), 0
        while True:
            self.check_open()
            member = self.member
            try:
                answer = await attempt(member)
            except AioRpcError as error:
                self.check_open()
                if stale_token(error) and self.forget_token() and tries < 3:
                    tries += 1
                    continue
                raise_final(error, self.config, self.keys)
                why = reason(error, member)
                self.answered = self.answered or (error.details() or "").startswith("etcdserver:")
            else:
                self.answered = True
                return answer
            self.leave(member)
            await self._refreshed(member, why)
            tries += 1
            waited = time.monotonic() - begin
            enough = self.patience if self.answered else min(FIRST, self.patience)
            if waited > enough or (not self.answered and tries > 3 * len(self.members)):
                raise Unavailable(f"etcd {self.where}: {why}")
            if tries % len(self.members) == 0:
                await asyncio.sleep(min(LONGEST_PAUSE, 0.05 * tries) * random.uniform(0.5, 1))

    async def _once(self, member: Member, method: str, request: Any, timeout: float) -> Any:
        try:
            metadata = await self._metadata(member)
            timeout = min(timeout, max(1.0, self.patience))
            return await self._stub(member, method)(request, timeout=timeout, metadata=metadata)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():  # gRPC cancels what is under way when a channel is closed
                self.check_open()
                raise _cut() from None
            raise

    async def _metadata(self, member: Member) -> tuple[tuple[str, str], ...]:
        if not (self.config.etcd_username and self.config.etcd_password):
            return ()
        async with self._authenticating:
            if not self._token:
                who = rpc.AuthenticateRequest(name=self.config.etcd_username, password=self.config.etcd_password)
                try:
                    self._token = (await self._stub(member, "Authenticate")(who, timeout=ATTEMPT)).token
                except AioRpcError as error:
                    if "authentication is not enabled" not in (error.details() or ""):
                        raise
        return (("token", self._token),) if self._token else ()

    def _stub(self, member: Member, method: str) -> Any:
        self.check_open()
        if member.stubs is None:
            if member.secure:
                member.channel = grpc.aio.secure_channel(member.target, credentials(self.config), _OPTIONS)
            else:
                member.channel = grpc.aio.insecure_channel(member.target, _OPTIONS)
            kv, lease, auth = rpc.KVStub(member.channel), rpc.LeaseStub(member.channel), rpc.AuthStub(member.channel)
            member.stubs = {
                "Range": kv.Range,
                "Txn": kv.Txn,
                "Compact": kv.Compact,
                "LeaseGrant": lease.LeaseGrant,
                "LeaseRevoke": lease.LeaseRevoke,
                "LeaseTimeToLive": lease.LeaseTimeToLive,
                "LeaseKeepAlive": _single(lease.LeaseKeepAlive),
                "Authenticate": auth.Authenticate,
                "Status": rpc.MaintenanceStub(member.channel).Status,
                "Watch": rpc.WatchStub(member.channel).Watch,
            }
        return member.stubs[method]

    async def _refreshed(self, member: Member, why: str) -> None:
        """A connection that failed for its certificates is built anew, with what the files hold by then."""
        if why.startswith("TLS") and member.channel is not None:
            channel, member.channel, member.stubs = member.channel, None, None
            await channel.close()


def endpoints(config: ApiConfig) -> tuple[str, ...]:
    """Raises NotSupported for a discovery through DNS, ConfigError where there is none."""
    if config.etcd_discovery_srv:
        record = f"_etcd-client._tcp.{config.etcd_discovery_srv}"
        raise NotSupported(
            f"etcdDiscoverySrv: endpoints are not looked up in DNS: put what `dig +short SRV {record}` says into"
            " etcdEndpoints (ETCD_ENDPOINTS)"
        )
    if not config.endpoints:
        raise ConfigError("is required: the URLs of etcd's members, such as http://192.0.2.1:2379", "etcdEndpoints")
    return config.endpoints


def _single(stream: Any) -> Any:
    """A stream as a method that is asked once and answers once."""

    async def ask(request: Any, **options: Any) -> Any:
        call = stream(iter((request,)), **options)
        answer = await call.read()
        call.cancel()
        if answer is grpc.aio.EOF:
            raise _cut()
        return answer

    return ask


def _cut() -> AioRpcError:
    """What becomes of a request whose connection is closed by another one that failed on it."""
    return AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), "the connection was closed")


def doubtful(error: AioRpcError) -> bool:
    """Whether a write that ended so may have been carried out."""
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL):
        text = (error.details() or "").lower()
        return not any(word in text for word in NEVER_SENT)
    return error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


def stale_token(error: AioRpcError) -> bool:
    """Whether a new token may help."""
    text = error.details() or ""
    return any(word in text for word in AGAIN)


def raise_final(error: AioRpcError, config: ApiConfig, keys: str) -> None:
    """Raises what no other member would answer differently; returns when trying on may help."""
    found = refusal(error.code(), error.details() or "", config, keys)
    if found is not None:
        raise found from None


def refusal(code: grpc.StatusCode, text: str, config: ApiConfig, keys: str) -> TortieError | LeaseGone | None:
    """What an answer of etcd means to the caller; None: try another member."""
    text = text.removeprefix("etcdserver: ")
    user = f'user "{config.etcd_username}"' if config.etcd_username else "nobody"
    if "has been compacted" in text or "future revision" in text:
        return Compacted(f"etcd: {text}; list again")
    if "lease not found" in text:
        return LeaseGone()
    if "authentication failed" in text or "invalid user ID or password" in text:
        return ConfigError(f"etcd does not let {user} in: wrong user or password", "etcdUsername, etcdPassword")
    if "user name is empty" in text:
        return ConfigError("etcd asks who we are: give a user and a password", "etcdUsername, etcdPassword")
    if code is grpc.StatusCode.PERMISSION_DENIED or any(word in text for word in ("permission denied", *AGAIN)):
        return Unavailable(
            f"connection is unauthorized: etcd does not let {user} do this: {text}; its role needs to read and write"
            f" {keys}"
        )
    if "request is too large" in text or "message larger than max" in text:
        return ConfigError(
            "the object is too large for etcd: its members' --max-request-bytes says how large it may be"
        )
    if "database space exceeded" in text:
        return Full(
            "etcd: its database is full: make room (etcdctl compact, etcdctl defrag; deleting works), then take its"
            " alarm away (etcdctl alarm disarm)"
        )
    return None


def reason(error: AioRpcError, member: Member) -> str:
    """Why a member did not answer, in one line."""
    text = " ".join((error.details() or "").split())
    for word, meaning in _TLS.items():
        if word in text:
            return f"TLS: {meaning}"
    if member.secure and ("handshake" in text.lower() or "ssl" in text.lower()):
        return "TLS: no agreement: is it served with TLS, and does it believe our certificate?"
    if "Failed parsing HTTP/2" in text:
        return "what answers there is not etcd, or has another scheme than the URL (http, https)"
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    return text.rpartition("last error: ")[2].removeprefix("UNKNOWN: ").removeprefix("UNAVAILABLE: ") or "no answer"


_TLS = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not signed by an authority that we were given (etcdCACertFile)",
    "Hostname Verification Check failed": "its certificate is for another host",
    "Peer name": "its certificate is for another host",
    "WRONG_VERSION_NUMBER": "it speaks no TLS: write http://",
    "CERTIFICATE_REQUIRED": "it asks for a client's certificate (etcdCertFile, etcdKeyFile)",
    "BAD_CERTIFICATE": "it does not believe our certificate (etcdCertFile)",
    "Unwrap failed": "it breaks off: it asks for another client's certificate than ours (etcdCertFile, etcdKeyFile)",
    "UNKNOWN_CA": "it does not believe our certificate (etcdCertFile)",
}
