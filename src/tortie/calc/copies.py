"""Which counts where an object of Kubernetes' and Calico's copy of it are both there: the original.

Calico's controllers on etcd copy namespaces and service accounts to Profiles, and NetworkPolicies of Kubernetes' to its
own (`knp.default.<name>`). A copy is late by as much as they are, and stays when they do not run; so a node that sees
the originals goes by them. One that only sees etcd has the copies, and goes by those.

    original ─┐
    copy ─────┴─► the original; without one the copy; without either nothing
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

POLICY_PREFIX = "knp.default."
"""Stands before the name of a NetworkPolicy of Kubernetes' in its copy's."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Originals(Generic[K, V]):
    """What is known of each thing, from two sides; both return what counts then."""

    def __init__(self) -> None:
        self._originals: dict[K, V] = {}
        self._copies: dict[K, V] = {}

    def original(self, key: K, value: V | None) -> V | None:
        return self._note(self._originals, key, value)

    def copy(self, key: K, value: V | None) -> V | None:
        return self._note(self._copies, key, value)

    def _note(self, side: dict[K, V], key: K, value: V | None) -> V | None:
        if value is None:
            side.pop(key, None)
        else:
            side[key] = value
        return self._originals.get(key, self._copies.get(key))
