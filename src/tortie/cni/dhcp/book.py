"""The leases that a daemon keeps, in a file beside its socket: one that is started again goes on with them.

The file is on a file system that a reboot empties, as the socket is, and times in it are those since the boot.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from tortie.cni.dhcp.lease import Identity, Terms


@dataclass(frozen=True, slots=True)
class Entry:
    """A lease that is held: whose, where, and on which terms since when (seconds since the boot)."""

    network: str
    container: str
    ifname: str
    path: str
    inode: int
    who: Identity
    terms: Terms
    bound: float

    def dump(self) -> dict[str, Any]:
        body = asdict(self)
        body["who"] |= {
            "mac": self.who.mac.hex(),
            "client_id": self.who.client_id.hex(),
            "provide": {str(code): value.hex() for code, value in self.who.provide.items()},
        }
        return body

    @classmethod
    def load(cls, body: dict[str, Any]) -> Entry:
        """Raises KeyError, TypeError, ValueError for what `dump` did not write."""
        who, terms = body["who"], body["terms"]
        identity = Identity(
            bytes.fromhex(who["mac"]),
            bytes.fromhex(who["client_id"]),
            {int(code): bytes.fromhex(value) for code, value in who["provide"].items()},
            tuple(who["request"]),
            who["broadcast"],
        )
        routes = tuple((dst, gw) for dst, gw in terms["routes"])
        found = Terms(**{**terms, "routes": routes, "dns": tuple(terms["dns"])})
        return cls(**{**body, "who": identity, "terms": found})


def save(path: str, entries: Iterable[Entry]) -> None:
    """In one step: a reader finds the old file or the new one. Raises OSError."""
    fresh = f"{path}.new"
    with open(fresh, "w", encoding="utf-8") as file:
        json.dump({"boot": boot_id(), "leases": [each.dump() for each in entries]}, file, indent=1)
    os.replace(fresh, path)


def load(path: str) -> list[Entry]:
    """What a daemon before this held. Nothing from under another boot, and nothing of a file that is none of ours."""
    try:
        with open(path, encoding="utf-8") as file:
            body = json.load(file)
        return [Entry.load(each) for each in body["leases"]] if body["boot"] == boot_id() else []
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
