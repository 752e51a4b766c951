"""What a server's refusal means for the one who asked, and whether to ask again. Pure.

    status, headers, Status object ──refusal──► Trouble: the error to raise, and what may be done before it is

Source: Kubernetes' API conventions, "Response Status Kind"; the reasons of apimachinery's metav1.Status.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import msgspec

from tortie.base.errors import (
    Compacted,
    ConfigError,
    Conflict,
    Exists,
    NotFound,
    NotSupported,
    TortieError,
    Unavailable,
)
from tortie.store.kube.wire import one_line


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a try came to nothing. `again`: another may help. `untaken`: it is certain that nothing was done.

    `after`: seconds that the server wants to be left alone. `unknown`: it does not know who asks (401).
    """

    error: TortieError
    again: bool = False
    untaken: bool = False
    after: float | None = None
    unknown: bool = False


class _Details(msgspec.Struct, rename="camel"):
    name: str = ""
    retry_after_seconds: int = 0


class _Status(msgspec.Struct, rename="camel"):
    kind: str = ""
    message: str = ""
    reason: str = ""
    details: _Details | None = None


class _Preconditions(msgspec.Struct, rename="camel"):
    uid: str | None = None
    resource_version: str | None = None


class _Body(msgspec.Struct, rename="camel"):
    metadata: _Preconditions | None = None
    preconditions: _Preconditions | None = None


def repeatable(method: str, path: str, body: bytes) -> bool:
    """Whether asking twice does no more than asking once: it reads, or says which state it is about.

    Reviews (`may I ...?`) are POSTs that write nothing.
    """
    if method in ("GET", "HEAD"):
        return True
    if method == "POST":
        return path.endswith("reviews")
    try:
        said = msgspec.json.decode(body or b"{}", type=_Body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    if method == "DELETE":
        return said.preconditions is not None and bool(said.preconditions.uid or said.preconditions.resource_version)
    return said.metadata is not None and bool(said.metadata.resource_version)


def refusal(server: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> Trouble:
    """What an answer other than 2xx stands for."""
    said = _said(body)
    words = one_line(said.message) or _plain(headers, body) or f"status {status}"
    if 300 <= status < 400:
        where = one_line(headers.get("Location", "elsewhere"), 200).partition("?")[0]
        return Trouble(Unavailable(f"{server}: redirects to {where}, which is not followed: name that server"))
    if status == 401:
        return Trouble(Unavailable(f"connection is unauthorized: {words} ({server})"), untaken=True, unknown=True)
    if status == 403:
        return Trouble(Unavailable(f"connection is unauthorized: {words} ({server})"), untaken=True)
    if status in (408, 429) or (status >= 500 and status != 501):
        after = _after(headers, said)
        # 429: turned away at the door. 503 with a time to come back at: it starts, stops, or has no etcd.
        untaken = status == 429 or (status == 503 and after is not None)
        return Trouble(Unavailable(f"{server}: {status}: {words}"), again=True, untaken=untaken, after=after)
    return Trouble(_error(path, status, said, words), untaken=True)


def _error(path: str, status: int, said: _Status, words: str) -> TortieError:
    if status == 404:
        if said.kind == "Status" and said.details is not None and said.details.name:
            return NotFound(words)
        return NotFound(f"the server does not know {path}")
    if status == 409:
        return Exists(words) if said.reason == "AlreadyExists" else Conflict(words)
    if status == 410 or said.reason in ("Expired", "Gone"):
        return Compacted(words)
    if status in (400, 413, 422):
        return ConfigError(words)
    return NotSupported(f"{path}: {status}: {words}")


def unexpected(server: str, content_type: str) -> Trouble | None:
    """A page for people where JSON should be: the login page of something in between."""
    if "html" not in content_type:
        return None
    return Trouble(Unavailable(f"{server}: answers with a web page: that is no API server, or something is before it"))


def _said(body: bytes) -> _Status:
    try:
        return msgspec.json.decode(body, type=_Status)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _Status()


def _plain(headers: Mapping[str, str], body: bytes) -> str:
    return one_line(body[:1000].decode(errors="replace")) if "html" not in headers.get("Content-Type", "") else ""


def _after(headers: Mapping[str, str], said: _Status) -> float | None:
    """Seconds. A date counts from the server's own `Date`: our clock may be wrong."""
    text = headers.get("Retry-After", "")
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - parsedate_to_datetime(headers["Date"])).total_seconds())
    except (KeyError, ValueError, TypeError):
        seconds = said.details.retry_after_seconds if said.details is not None else 0
        return float(seconds) if seconds > 0 else None
