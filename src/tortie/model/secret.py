"""What only some may read: Kubernetes' Secret, for the passwords of BGP sessions.

Its contents are in no message and in no `repr`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from typing import Any, ClassVar

from msgspec import field

from tortie.model.meta import Kind, Problem, Resource

_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}\Z")
"""What Kubernetes allows as a key."""


class Secret(Resource, frozen=True, kw_only=True):
    """`data` is base64. `string_data` is text; it is put into `data` when the object is written.

    Their values are looked at by `problems`, not by the type, which would repeat in its message what does not fit.
    """

    KIND: ClassVar[Kind] = Kind(api_version="v1", kind="Secret", plural="secrets", namespaced=True, aliases=("secret",))
    data: Any = field(default_factory=dict)
    string_data: Any = field(default_factory=dict)
    type: str = ""
    immutable: bool | None = None

    def __repr__(self) -> str:
        return f"<{self.title}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("title", self.title)]

    def problems(self) -> Iterator[Problem]:
        for name, values in (("data", self.data), ("stringData", self.string_data)):
            if not isinstance(values, dict):
                yield name, "must be a mapping of keys to text"
                continue
            for key, value in values.items():
                yield from _problems(f"{name}[{key}]", key, value, encoded=name == "data")

    def value(self, key: str) -> bytes | None:
        """What is under a key, None when there is nothing that could be read."""
        text = self.data.get(key) if isinstance(self.data, dict) else None
        return _decoded(text) if isinstance(text, str) else None


def _problems(path: str, key: str, value: object, *, encoded: bool) -> Iterator[Problem]:
    if not _KEY.match(key):
        yield path, 'a key must be of letters, digits, "-", "_" and "."'
    if not isinstance(value, str):
        yield path, "must be text: put it in quotes"
    elif encoded and _decoded(value) is None:
        yield path, "is not base64: write plain text under stringData"


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None


def encoded(values: dict[str, str]) -> dict[str, str]:
    """Text as `data` has it."""
    return {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
