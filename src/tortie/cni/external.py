"""The dataplane of another process, which `dataplane_options` of the configuration names: ADD and DEL over gRPC.

grpcio is imported by the first call, never before: see docs/design/dependencies.md. The calls block; the agent makes
them in a worker thread.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from tortie.base.errors import NotSupported
from tortie.cni.cnidataplane import (
    ADD_REPLY,
    ADD_REQUEST,
    DEL_REPLY,
    DEL_REQUEST,
    SERVICE,
    AddReply,
    AddRequest,
    DelReply,
    DelRequest,
)
from tortie.cni.proto3 import Message
from tortie.cni.spec import CniError, Code, member, quote

if TYPE_CHECKING:
    import grpc

R = TypeVar("R", AddReply, DelReply)

DEADLINE = 5.0
"""Seconds that Calico gives each call."""
INSTALL = "pip install grpcio"

_CHANNEL_OPTIONS = (("grpc.enable_http_proxy", 0),)
"""The dataplane is on this node, whatever the environment says about proxies."""


def external_dataplane(conf: Mapping[str, Any]) -> ExternalDataplane | None:
    """The one that a configuration asks for; None means our own. To be called before anything is done for the pod.

    Raises CniError 999 for options that name none, NotSupported where grpcio is missing.
    """
    options: dict[str, Any] = member(conf, "dataplane_options", dict, {})
    if "type" not in options:
        return None
    if options["type"] != "grpc":
        word = options["type"] if isinstance(options["type"], str) else repr(options["type"])
        text = f'invalid dataplane type {quote(word)}: write "grpc", or leave dataplane_options out for the kernel\'s'
        raise CniError(Code.INTERNAL, text)
    target = options.get("socket")
    if not isinstance(target, str) or not target:
        raise CniError(Code.INTERNAL, "GRPC dataplane socket not configured")
    if importlib.util.find_spec("grpc") is None:
        raise _not_installed()
    return ExternalDataplane(target, {key: value for key, value in options.items() if isinstance(value, str)})


@dataclass(frozen=True, slots=True)
class ExternalDataplane:
    """Reached in plain text at a gRPC target such as `unix:///var/run/calico/cni-server.sock`.

    `options` are what each request carries on to it.
    """

    target: str
    options: Mapping[str, str] = field(default_factory=dict, hash=False)
    deadline: float = DEADLINE

    def add(self, request: AddRequest) -> AddReply:
        """Connects a pod. Raises CniError 999, NotSupported; then it is not known how much was done."""
        return self._successful("Add", ADD_REQUEST.pack(request), ADD_REPLY)

    def delete(self, request: DelRequest) -> DelReply:
        """Disconnects a pod. Raises CniError 999, NotSupported."""
        return self._successful("Del", DEL_REQUEST.pack(request), DEL_REPLY)

    def _successful(self, method: str, request: bytes, replies: Message[R]) -> R:
        answer = self._call(method, request)
        try:
            reply = replies.unpack(answer)
        except ValueError as error:
            raise self._error(f"{method}: the answer cannot be read: {error}") from None
        if not reply.successful:
            raise CniError(Code.INTERNAL, f"grpc dataplane error: {reply.error_message}")
        return reply

    def _call(self, method: str, request: bytes) -> bytes:
        """One call on a channel of its own: nothing is left open between pods, and a new server is met at once."""
        grpc = _load()
        try:
            with grpc.insecure_channel(_resolvable(self.target), options=_CHANNEL_OPTIONS) as channel:
                answer: bytes = channel.unary_unary(f"/{SERVICE}/{method}")(request, timeout=self.deadline)
                return answer
        except grpc.RpcError as error:
            raise self._error(_reason(method, error, self.deadline)) from None

    def _error(self, why: str) -> CniError:
        return CniError(Code.INTERNAL, f"grpc dataplane {self.target}: {why}")


def _load() -> Any:
    try:
        import grpc
    except ImportError as error:
        raise _not_installed(str(error)) from None
    return grpc


def _not_installed(why: str = "") -> NotSupported:
    because = f" ({why})" if why else ""
    return NotSupported(f"dataplane_options.type grpc needs grpcio{because}: {INSTALL}")


def _resolvable(target: str) -> str:
    """The target as the library resolves it. A path alone, which Go's would take for a host, can only mean a socket."""
    return f"unix:{target}" if target.startswith("/") else target


def _reason(method: str, error: grpc.RpcError, deadline: float) -> str:
    """One line. What the library says of a refused connection ends with the kernel's words, and they are enough."""
    status, details = error.code().name, " ".join((error.details() or "").split())
    if status == "DEADLINE_EXCEEDED":
        return f"{method}: no answer within {deadline:g} s"
    if status == "UNAVAILABLE":
        return f"{method}: cannot be reached: {details.rpartition('error: ')[2]}"
    return f"{method}: {status.lower().replace('_', ' ')}: {details}"
