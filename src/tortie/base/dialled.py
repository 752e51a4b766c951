"""What became of a try to open a TCP connection."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Dialled(StrEnum):
    """From the nearest to the farthest that a try can get."""

    FAILED = "failed"
    """Nothing was sent: `Answer.why` says what this machine has against it."""
    UNREACHABLE = "unreachable"
    """A router, or our own neighbour table, says so."""
    SILENT = "silent"
    """Dropped on the way, or there: a firewall, a signature (MD5), a TTL."""
    REFUSED = "refused"
    """The machine is there, and nobody listens."""
    DEAF = "deaf"
    """Somebody accepts and speaks, and drops what we say: TTL security is not asked before that."""
    CLOSED = "closed"
    """Somebody listens, and will not have us."""
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Answer:
    """`why` is the kernel's word for what is not plain from `result`."""

    result: Dialled
    why: str = ""
