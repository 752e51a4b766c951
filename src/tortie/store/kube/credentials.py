"""As whom a server is asked: certificates and tokens, fixed or in files that somebody renews.

    text, or a file, read anew  ──► token ───────┐
    PEM, or two files, read anew ──► certificate ├──► Credentials.identity() ──► one Identity for a request
    exec plugin (`plugin`) ──► either, or both ──┘              ▲
                                     401 ──► refused(identity) ─┘ what can be read anew is

Everything stays in memory, and no `repr` shows it.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import time
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from tortie.base.errors import Unavailable

log = logging.getLogger(__name__)

REREAD = 60.0
"""Seconds after which a file is read anew."""
EARLY = 10.0
"""Seconds before a token ends at which its file is read anew."""
HURRY = 1.0
"""Seconds between readings of a file that is away or empty, or whose token has ended by our (maybe wrong) clock."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A client's certificate, with what leads to its CA, and its key: PEM."""

    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Identity:
    """Nothing in it: nobody, "system:anonymous"."""

    token: str = field(default="", repr=False)
    pair: Pair | None = None


class Plugin(Protocol):
    """`plugin.ExecPlugin`."""

    async def identity(self) -> Identity: ...
    def refused(self, identity: Identity) -> None: ...
    async def close(self) -> None: ...


class Content:
    """Bytes that are given, or of a file, which is read anew at least every `period` seconds."""

    def __init__(self, given: bytes = b"", path: str = "", period: float = REREAD) -> None:
        self.path = path
        self._bytes = given
        self._period = period
        self._due = float("-inf") if path else float("inf")
        self._told = ""

    def __repr__(self) -> str:
        return f"Content({self.path or '...'})"

    def current(self) -> bytes:
        """Raises Unavailable when the file was never read. While it is away, or empty because somebody writes it at
        this moment, what it said before counts."""
        now = time.monotonic()
        if now >= self._due:
            try:
                with open(self.path, "rb") as stream:
                    found = stream.read()
                problem = "" if found.strip() else f"{self.path} is empty"
            except OSError as error:
                problem = f"{self.path} cannot be read: {os.strerror(error.errno or 0)}"
            if not problem:
                self._bytes = found
            elif not self._bytes:
                raise Unavailable(problem)
            elif problem != self._told:
                log.warning("%s; what it said before is used", problem)
            self._told = problem
            self._due = now + (HURRY if problem else self._period)
        return self._bytes

    def expire(self, seconds: float = 0.0) -> None:
        """Read anew in so many seconds, if that is earlier than otherwise."""
        if self.path:
            self._due = min(self._due, time.monotonic() + seconds)


class Token:
    """A bearer token. In a file it is read anew every minute, and before it ends if it says when."""

    def __init__(self, content: Content) -> None:
        self.content = content
        self._read: bytes | None = None
        self._text = ""
        self._ends: float | None = None

    def current(self) -> str:
        """Raises Unavailable."""
        content = self.content.current()
        if content is not self._read:
            try:
                self._text = cleaned(content, self.content.path or "token")
            except Unavailable:
                self.content.expire(HURRY)
                raise
            self._read = content
            self._ends = ends(self._text)
        if self._ends is not None:
            left = self._ends - time.time()
            self.content.expire(left - EARLY if left > EARLY + HURRY else HURRY)
        return self._text

    def refused(self) -> None:
        self.content.expire()


class Credentials:
    """All that a user of a cluster has. `headers` go with every request: whom the user acts for."""

    def __init__(
        self,
        *,
        token: Token | None = None,
        pair: tuple[Content, Content] | None = None,
        plugin: Plugin | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.headers = headers
        self._token = token
        self._pair = pair
        self._plugin = plugin

    def __repr__(self) -> str:
        found = {"token": self._token, "certificate": self._pair, "plugin": self._plugin}
        return f"Credentials({', '.join(name for name, value in found.items() if value is not None)})"

    @property
    def renewable(self) -> bool:
        """Whether an identity that was refused may be followed by another one."""
        return self._plugin is not None or any(one.path for one in self._files())

    async def identity(self) -> Identity:
        """As whom to ask now. Raises Unavailable."""
        given = await self._plugin.identity() if self._plugin is not None else Identity()
        token = given.token or (self._token.current() if self._token is not None else "")
        return Identity(token, given.pair or self.pair())

    def pair(self) -> Pair | None:
        """The client's certificate, without asking the plugin. Raises Unavailable."""
        return Pair(self._pair[0].current(), self._pair[1].current()) if self._pair is not None else None

    def refused(self, identity: Identity) -> None:
        """The server does not know this one (any more)."""
        for content in self._files():
            content.expire()
        if self._plugin is not None:
            self._plugin.refused(identity)

    async def close(self) -> None:
        if self._plugin is not None:
            await self._plugin.close()

    def _files(self) -> list[Content]:
        return [*(self._pair or ()), *([self._token.content] if self._token is not None else [])]


def cleaned(content: bytes, where: str) -> str:
    """A token without the line end after it. Raises Unavailable: empty, or it can be no header."""
    text = content.decode("ascii", "replace").strip()
    if not text:
        raise Unavailable(f"{where}: there is no token in it")
    if not text.isprintable() or not text.isascii() or " " in text:
        raise Unavailable(f"{where}: what is in it is not a token")
    return text


class _Claims(msgspec.Struct):
    exp: float | None = None


def ends(token: str) -> float | None:
    """When a token ends, in seconds since 1970, if it is a JWT that says so. Nothing is verified: it is not for us."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)), type=_Claims).exp
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        return None
