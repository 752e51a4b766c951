"""Who knows the subnets of all nodes, and gives this one its own: a file in `managers` for each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Protocol

from tortie.base.errors import TortieError
from tortie.flannel.config import NetworkConfig
from tortie.flannel.lease import Attrs, Lease

Leases = Mapping[str, Lease]
"""By what tells them apart: the key in etcd, the name of the Node in Kubernetes."""


class LeaseLost(TortieError):
    """Our own lease is gone: somebody has revoked it, or it expired. The daemon ends."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the datastore says of this node's public addresses, before its flags: None for nothing. `public_*` replace
    the flags (`node-public-ip`), `published_*` only what is published (`public-ip-overwrite`)."""

    public_ip: IPv4Address | None = None
    public_ipv6: IPv6Address | None = None
    published_ip: IPv4Address | None = None
    published_ipv6: IPv6Address | None = None


@dataclass(frozen=True, slots=True)
class Previous:
    """The subnets that this node had, by its subnet file: where nothing else speaks against it, it gets them again."""

    subnet: IPv4Network | None = None
    subnet6: IPv6Network | None = None


class SubnetManager(Protocol):
    """Every method may raise Unavailable (try again) and ConfigError (an operator has to mend it)."""

    @property
    def where(self) -> str:
        """Whom it asks, for people, without a credential."""
        ...

    @property
    def problems(self) -> tuple[str, ...]:
        """What an operator should know and that ends nothing, in lines: () usually."""
        ...

    async def network(self) -> NetworkConfig:
        """Raises NotFound while there is none."""
        ...

    async def overrides(self) -> Overrides: ...

    async def remembered(self, attrs: Attrs) -> Attrs | None:
        """What the daemon before this one published here. Of `attrs` only the public addresses are looked at."""
        ...

    async def acquire(self, config: NetworkConfig, attrs: Attrs, previous: Previous) -> Lease:
        """This node's lease, published with these attributes. Raises ConfigError when there is no subnet to be had."""
        ...

    def neighbours(self, own: Lease) -> AsyncIterator[Leases]:
        """All other nodes' leases: at once as they are, and again, whole, whenever something of them changes. Goes on
        through outages: it never ends, and never shows fewer because its source is away."""
        ...

    async def leases(self) -> Leases:
        """All nodes' leases as they are now, our own included, and when they expire: for people."""
        ...

    async def keep(self, own: Lease) -> None:
        """Renews the lease for as long as it is cancelled. Raises LeaseLost."""
        ...

    async def tell_ready(self) -> None:
        """The node's network is there, where somebody wants to know (Kubernetes' NetworkUnavailable)."""
        ...

    async def close(self) -> None: ...
