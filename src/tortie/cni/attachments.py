"""Which attachments a network still has, as GC is told, and how a DEL gets through all of its steps."""

from __future__ import annotations

import sys

from tortie.base.errors import ConfigError
from tortie.cni.spec import Call, lookup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Attachments = frozenset[tuple[str, str]]

KEYS = ("cni.dev/valid-attachments", "cni.dev/attachments")
"""The key of the specification, and the one that libcni sends besides."""


def valid_attachments(call: Call) -> Attachments:
    """(container, interface) of those that GC must leave. A list that is null is empty, as libcni writes it.

    Raises ConfigError for none at all, and for one that is not a list of attachments.
    """
    keys = {key.casefold() for key in call.conf}
    named = next((key for key in KEYS if key in keys), "")
    if not named:
        raise ConfigError(f"GC needs {KEYS[0]}: without it everything would be collected")
    listed = lookup(call.conf, named, [])
    if not isinstance(listed, list):
        raise ConfigError("is not a list", named)
    valid: set[tuple[str, str]] = set()
    for number, each in enumerate(listed):
        pair = [lookup(each, key) if isinstance(each, dict) else None for key in ("containerID", "ifname")]
        if not all(isinstance(part, str) for part in pair):
            raise ConfigError("needs containerID and ifname", f"{named}[{number}]")
        valid.add((str(pair[0]), str(pair[1])))
    return frozenset(valid)


def all_of(*steps: Callable[[], object]) -> None:
    """Runs every step, whatever becomes of those before: what can be taken away goes. Raises the first error."""
    first: Exception | None = None
    for step in steps:
        try:
            step()
        except Exception as why:
            if first is None:
                first = why
            else:
                sys.stderr.write(f"{why}\n")
    if first is not None:
        raise first
