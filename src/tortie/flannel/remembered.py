"""What is known of the leases in etcd, and what is still believed when etcd has forgotten. Pure.

    a list ──► the history that we know ──► it is as the list says: what it lacks was given up
           └─► another history ──► what it lacks is remembered ──► until it would have expired
                                                               ──► until somebody else has its subnet or its address
    a change ──► it is as the change says

An etcd that was restarted empty, or restored from a backup, looks like a network that every node has just left. Its
nodes are there all the same, and their pods talk. Nodes that run this publish their leases again within seconds, under
the same subnets; those that run flannel do it when they renew, which is before their leases expire.

Histories are told apart by a key with a random value, and by revisions, which only grow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tortie.flannel.lease import Lease

TTL = 86_400
"""Seconds that a lease lives, as flannel's do."""


@dataclass(frozen=True, slots=True)
class History:
    """Of an etcd: the random value that its first daemon wrote, and the highest revision that was seen of it."""

    mark: str
    revision: int

    def goes_on(self, mark: str, revision: int) -> bool:
        """Whether what is read afterwards is of the same history.

        >>> History("a", 7).goes_on("a", 8), History("a", 7).goes_on("b", 8), History("a", 7).goes_on("a", 6)
        (True, False, False)
        """
        return mark == self.mark and revision >= self.revision


@dataclass(frozen=True, slots=True)
class Known:
    """`stored` is what etcd has, `remembered` what it has no longer; both by key."""

    stored: Mapping[str, Lease] = field(default_factory=dict)
    remembered: Mapping[str, Lease] = field(default_factory=dict)

    def listed(self, leases: Mapping[str, Lease], same: bool, now: float) -> Known:
        """After a list, of the `same` history or of another."""
        believed = dict(self.remembered)
        if not same:
            latest = now + TTL
            believed |= {
                key: replace(lease, expires=min(lease.expires or latest, latest)) for key, lease in self.stored.items()
            }
        return Known(leases, _believed(believed, leases, now))

    def changed(self, changes: Iterable[tuple[str, Lease | None]], now: float) -> Known:
        """After keys were written, or deleted (None)."""
        stored, new = dict(self.stored), {}
        for key, lease in changes:
            if lease is None:
                stored.pop(key, None)
            else:
                stored[key] = new[key] = lease
        return Known(stored, _believed(self.remembered, new, now))

    @property
    def all(self) -> Mapping[str, Lease]:
        return {**self.remembered, **self.stored}

    @property
    def next_end(self) -> float | None:
        """When the next remembered one expires, in seconds since 1970."""
        return min((lease.expires for lease in self.remembered.values() if lease.expires is not None), default=None)


def _believed(remembered: Mapping[str, Lease], stored: Mapping[str, Lease], now: float) -> Mapping[str, Lease]:
    """Those that what is stored does not speak against."""
    return {
        key: lease
        for key, lease in remembered.items()
        if key not in stored
        and (lease.expires is None or lease.expires > now)
        and not any(_replaces(other, lease) for other in stored.values())
    }


def _replaces(new: Lease, old: Lease) -> bool:
    """Whether what is stored now says that the old one cannot be true any more."""
    if new.attrs.public_ip is not None and new.attrs.public_ip == old.attrs.public_ip:
        return True
    return overlap(new, old)


def overlap(one: Lease, other: Lease) -> bool:
    """Whether an address is in subnets of both."""
    if one.subnet is not None and other.subnet is not None and one.subnet.overlaps(other.subnet):
        return True
    return one.subnet6 is not None and other.subnet6 is not None and one.subnet6.overlaps(other.subnet6)
