"""How a person says who is meant, of many: whole namespaces as `web/*`, replicas as `web/api-*`, the rest by name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable

MOST = 6
"""Names in one line; of the others only the number is said."""

FEW = 3
"""Exceptions that are worth being named instead of all the others."""

EVERYBODY, ALL_PODS, ANY_ADDRESS = "everybody", "all pods", "any address"

_REPLICA = re.compile(r"(-[0-9a-z]{6,10})?-[0-9a-z]{5}\Z|-\d+\Z")
"""What controllers append to a workload's name: hashes of a ReplicaSet and its pod, or a number."""


def named(names: Iterable[str], pods: Collection[str], addresses: Collection[str] = (), most: int = MOST) -> str:
    """`pods` and `addresses`: everybody there is."""
    wanted, every = set(names), set(pods)
    outside = sorted(wanted - every)
    if len(addresses) > 1 and wanted.issuperset(addresses):
        outside = [ANY_ADDRESS, *(name for name in outside if name not in addresses)]
        if len(every) > 1 and wanted >= every:
            return ", ".join([EVERYBODY, *outside[1:]])
    said = [*_pods(wanted & every, every), *outside]
    return ", ".join(said[:most]) + (f" and {len(said) - most} more" if len(said) > most else "")


def _pods(wanted: set[str], every: set[str]) -> list[str]:
    if len(every) > 1 and wanted == every:
        return [ALL_PODS]
    said = _together(wanted, every)
    others = _together(every - wanted, every) if len(said) > FEW else []
    return [f"{ALL_PODS} (but {', '.join(others)})"] if 0 < len(others) <= FEW else said


def _together(wanted: set[str], every: set[str]) -> list[str]:
    """Groups that are wanted as a whole, then the rest."""
    left, said = set(wanted), list[str]()
    for of in (_namespace, _workload):
        for group, inside in _groups(every, of).items():
            if len(inside) > 1 and inside <= left:
                said.append(group)
                left -= inside
    return said + sorted(left)


def _namespace(name: str) -> str:
    return f"{name.partition('/')[0]}/*"


def _workload(name: str) -> str:
    return f"{_REPLICA.sub('', name)}-*"


def _groups(names: Iterable[str], of: Callable[[str], str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for name in sorted(names):
        found[of(name)].add(name)
    return found
