"""What an object asks for and nobody does yet: said when it is written, so that nobody waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from tortie.calc.routing import unserved as unserved_peering
from tortie.model.bgp import BGPPeer
from tortie.model.ipam import IPPool
from tortie.model.meta import Resource
from tortie.model.node import FelixConfiguration, FelixConfigurationSpec

_SERVED = frozenset(
    (
        "allow_ipip_packets_from_workloads",
        "allow_vxlan_packets_from_workloads",
        "default_endpoint_to_host_action",
        "disable_conntrack_invalid_check",
        "floating_ips",
        "ipv4_normal_route_priority",
        "ipv6_normal_route_priority",
        "ipv6_support",
        "log_prefix",
        "nat_outgoing_address",
        "nat_outgoing_exclusions",
        "nftables_filter_deny_action",
        "node_selector",
        "vxlan_port",
    )
)
"""The FelixConfiguration's fields that `calc.settings` reads."""


def unserved(resource: Resource) -> Iterator[str]:
    """A line for each thing, field path first."""
    if isinstance(resource, IPPool) and resource.spec.encapsulated:
        field = "vxlanMode" if resource.spec.vxlan_mode not in (None, "Never") else "ipipMode"
        yield f"spec.{field}: tunnels are not built yet: pods of this pool reach only the pods of their own node"
    elif isinstance(resource, BGPPeer) and (field := unserved_peering(resource.spec)):
        yield f"spec.{field}: is not acted on yet, so this peering is left out"
    elif isinstance(resource, FelixConfiguration):
        ignored = [name for field, name in _names() if field not in _SERVED and getattr(resource.spec, field)]
        if ignored:
            yield f"spec: kept, but not acted on yet: {', '.join(ignored)}"


@lru_cache(maxsize=1)
def _names() -> tuple[tuple[str, str], ...]:
    """The FelixConfiguration's fields, as we call them and as documents do."""
    config = FelixConfigurationSpec
    return tuple(zip(config.__struct_fields__, config.__struct_encode_fields__, strict=True))
