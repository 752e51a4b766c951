"""A pool cut into equal parts, which keep its settings and, between them, its blocks. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from tortie.base.addr import parse_net
from tortie.base.errors import ConfigError
from tortie.model.ipam import IPPool
from tortie.model.meta import Metadata


def named(pools: Sequence[IPPool], name: str, cidr: str) -> IPPool:
    """The pool that an operator means, by either. Raises ConfigError."""
    if bool(name) == bool(cidr):
        raise ConfigError("name the pool with either --cidr or --name")
    net = parse_net(cidr) if cidr else None
    for pool in pools:
        if pool.name == name or pool.spec.net == net:
            return pool
    known = ", ".join(f"{pool.name} ({pool.spec.cidr})" for pool in pools) or "none"
    raise ConfigError(f"there is no pool {name or cidr}: there are {known}")


def parts(pool: IPPool, count: int) -> tuple[IPPool, ...]:
    """The pools `split-<name>-<i>`. Raises ConfigError unless `count` is a power of two and blocks fit into a part."""
    if count < 2 or count & (count - 1):
        raise ConfigError(f"{count} is not a power of two greater than 1")
    longer = count.bit_length() - 1
    net = pool.spec.net
    if net.prefixlen + longer > pool.spec.blocks:
        most = 2 ** (pool.spec.blocks - net.prefixlen)
        raise ConfigError(
            f"pool {pool.name} ({net}) cannot be split into {count}: "
            f"a block (/{pool.spec.blocks}) fits into at most {most} parts"
        )
    metadata = Metadata(labels=pool.labels, annotations=pool.metadata.annotations)
    return tuple(
        replace(
            pool,
            metadata=replace(metadata, name=f"split-{pool.name}-{i}"),
            spec=replace(pool.spec, cidr=str(part)),
            status=None,
        )
        for i, part in enumerate(net.subnets(prefixlen_diff=longer))
    )
