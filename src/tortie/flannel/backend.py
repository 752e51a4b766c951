"""One way to bring packets to other nodes' pods: what every file in `backends` has to offer.

begin ──► what is published of this node ──► acquire a lease ──► want, for every change of the leases ──► the kernel
                                                            └──► carry_out: what is not the kernel's: a proxy,
                                                                 commands, a cloud's route tables
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import Protocol

from tortie.flannel.config import NetworkConfig
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.state import FlannelState, Place, Site, Ways


@dataclass(frozen=True, slots=True)
class Published:
    """What a backend says of this node to others: compact JSON text, None for nothing."""

    data: str | None = None
    data6: str | None = None


class Backend(Protocol):
    """Made once for a daemon's life, of the network's configuration."""

    @property
    def published_type(self) -> str:
        """`BackendType` of its leases; leases of another type are not for it. "" is what udp, alloc and clouds say."""
        ...

    @property
    def versions(self) -> frozenset[int]:
        """IP versions that it can carry."""
        ...

    @property
    def watches(self) -> bool:
        """Whether it wants to hear of other nodes."""
        ...

    @property
    def asks_ways(self) -> bool:
        """Whether `want` looks at ways: which nodes are reached without a gateway."""
        ...

    async def begin(self, site: Site, remembered: Attrs | None) -> Published:
        """`remembered` is what the daemon before this one published. Raises ConfigError, NotSupported, Unavailable."""
        ...

    def mtu(self, site: Site) -> int:
        """Of pods, in bytes."""
        ...

    def want(self, place: Place, leases: Sequence[Lease], ways: Ways) -> FlannelState:
        """What the kernel should be like: devices, far ends, paths, peers. Pure. `leases` are other nodes', of its
        type; what is wrong with one is a line in `problems`, and does not keep the others from their ways."""
        ...

    async def carry_out(self, place: Place, leases: Sequence[Lease]) -> Sequence[str]:
        """Does what is not the kernel's, at every change and every resync; idempotent. What did not work, in lines."""
        ...

    async def end(self) -> None:
        """The daemon stops: of what is there only goes what upstream's takes away."""
        ...


@dataclass(frozen=True, slots=True)
class Setting:
    """What a backend may need of its program: where files of this daemon lie, as flannel's `/run/flannel`."""

    run_dir: File = File("/run/flannel")


Maker = Callable[[NetworkConfig, Setting], Backend]
"""Each file in `backends` has a function `backend` of this type. Raises ConfigError naming the option."""
