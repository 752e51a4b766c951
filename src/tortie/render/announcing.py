"""What bird.conf makes of a route, on values: the input of `bgp.announce` from the input of `render.bird`."""

from __future__ import annotations

from tortie.bgp.announce import Announcing
from tortie.render.bird_config import BirdConfig, family_of, sorted_nets


def announcing(config: BirdConfig, version: int) -> Announcing:
    """What holds for the routes of IP version 4 or 6."""
    family = family_of(config, version)
    return Announcing(
        blocks=family.blocks,
        private=tuple(pool.cidr for pool in family.pools if pool.export_disabled),
        public=tuple(pool.cidr for pool in family.pools if not pool.export_disabled),
        services=sorted_nets((*family.services, *family.passed_on), version),
        advertisements=family.advertisements,
        filters={one.name: one for one in family.filters},
        normal=family.normal,
        cluster_source=config.cluster_route_protocol,
    )
