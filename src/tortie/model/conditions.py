"""Conditions in the status of an object, of which anybody may have written anything: what is none is passed over.

One of the type `tortie.dev/NotApplied-<node>` says what a node does not carry out of the object; NetworkUnavailable, of
Kubernetes' Node, whether pods there can be connected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

NETWORK_UNAVAILABLE = "NetworkUnavailable"
NOT_APPLIED = "NotApplied"
_PREFIX = f"tortie.dev/{NOT_APPLIED}-"

Condition = Mapping[str, Any]


def condition_type(node: str) -> str:
    return f"{_PREFIX}{node}"


def node_of(condition: Condition) -> str:
    """The node that does not carry the object out; "" for a condition of another kind.

    >>> node_of({"type": "tortie.dev/NotApplied-node1"})
    'node1'
    """
    kind = condition.get("type")
    return kind.removeprefix(_PREFIX) if isinstance(kind, str) and kind.startswith(_PREFIX) else ""


def conditions(status: Any) -> tuple[Condition, ...]:
    have = status.get("conditions") if isinstance(status, dict) else None
    return tuple(one for one in have if isinstance(one, dict)) if isinstance(have, (list, tuple)) else ()


def with_conditions(status: Any, these: Iterable[Condition]) -> dict[str, Any] | None:
    """The status with these in place of its own; None when nothing is in it then."""
    rest = {key: value for key, value in status.items() if key != "conditions"} if isinstance(status, dict) else {}
    kept = list(these)
    return rest | ({"conditions": kept} if kept else {}) or None


@dataclass(frozen=True, slots=True)
class NetworkCondition:
    """NetworkUnavailable as a network's program sets it. `status` "False": pods can be connected."""

    status: str
    reason: str
    message: str


def with_network(status: Any, wanted: NetworkCondition, now: datetime) -> Any:
    """A Node's status with the condition; the same object when it says so already."""
    have = conditions(status)
    old = next((one for one in have if one.get("type") == NETWORK_UNAVAILABLE), {})
    if (old.get("status"), old.get("reason")) == (wanted.status, wanted.reason):
        return status
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    since = old.get("lastTransitionTime") if old.get("status") == wanted.status else None
    new = {
        "type": NETWORK_UNAVAILABLE,
        "status": wanted.status,
        "reason": wanted.reason,
        "message": wanted.message,
        "lastHeartbeatTime": time,
        "lastTransitionTime": since or time,
    }
    return with_conditions(status, [*(one for one in have if one.get("type") != NETWORK_UNAVAILABLE), new])
