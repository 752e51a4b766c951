"""Who leads: Kubernetes' Lease (coordination.k8s.io/v1), by which one of several controllers does the work.

Any datastore keeps it; compare-and-swap makes it safe.
"""

from __future__ import annotations

from typing import ClassVar

from tortie.model.meta import Kind, Resource, Value


class LeaseSpec(Value, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """Times as RFC 3339 with microseconds, in UTC; durations in seconds."""

    holder_identity: str = ""
    lease_duration_seconds: int = 0
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int = 0


class Lease(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="coordination.k8s.io/v1", kind="Lease", plural="leases", namespaced=True, aliases=("lease",)
    )
    spec: LeaseSpec = LeaseSpec()
