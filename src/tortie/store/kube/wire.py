"""What goes over the line to an API server, as text: URLs, path templates, events in chunks, warnings. No sockets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, urlencode

_WARNING = re.compile(r'\b(\d{3}) [^\s"]+ "((?:[^"\\]|\\.)*)"')
"""warn-code SP warn-agent SP warn-text. Source: RFC 7234, 5.5."""
_PLAIN = "/:@!$&'()*+,;=-._~"
"""Characters that a path may have as they are. Source: RFC 3986, 3.3."""
_OF_A_NAMESPACE = frozenset({"status", "finalize"})
"""Subresources of namespaces, which stand where kinds stand."""


def url(server: str, path: str, query: Mapping[str, str] | None = None) -> str:
    """Encoded, once."""
    text = f"{server}{quote(path, safe=_PLAIN)}"
    return f"{text}?{urlencode(query, quote_via=quote)}" if query else text


def template(path: str) -> str:
    """The path without names, so that there are few of them: for counting.

    >>> template("/api/v1/namespaces/red/pods/a/status")
    '/api/v1/namespaces/{namespace}/pods/{name}/status'
    """
    parts = path.strip("/").split("/")
    head = {"api": 2, "apis": 3}.get(parts[0], 1)
    begin, rest = parts[:head], parts[head:]
    if head == 1:
        return f"/{parts[0]}"
    if rest[:1] == ["namespaces"] and len(rest) > 2 and rest[2] not in _OF_A_NAMESPACE:
        begin, rest = [*begin, "namespaces", "{namespace}"], rest[2:]
    if len(rest) > 1:
        rest = [rest[0], "{name}", *rest[2:3]]
    return "/" + "/".join([*begin, *rest])


def warnings(values: list[str]) -> list[str]:
    """What the server would like a person to know, of `Warning` headers (code 299)."""
    return [
        re.sub(r"\\(.)", r"\1", text) for value in values for code, text in _WARNING.findall(value) if code == "299"
    ]


def one_line(text: str, longest: int = 400) -> str:
    """Somebody else's words in a message of ours."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


class Lines:
    """Cuts a stream of chunks into lines, whatever their length; each byte is looked at once."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that end in this chunk, those without content left out."""
        first, *others = chunk.split(b"\n")
        self._begun.append(first)
        if not others:
            return []
        lines = [b"".join(self._begun), *others[:-1]]
        self._begun = [others[-1]]
        return [line for line in lines if line.strip()]

    @property
    def rest(self) -> bytes:
        """What has begun and not ended."""
        return b"".join(self._begun).strip()
