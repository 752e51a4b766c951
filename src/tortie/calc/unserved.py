"""What an object asks for and nobody does, yet or at all: said when it is written, so that nobody waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from tortie.calc.workloads import disregarded
from tortie.model.clusterpolicy import ClusterNetworkPolicy, unmatched
from tortie.model.k8s import Pod
from tortie.model.meta import Resource
from tortie.model.node import FelixConfiguration, FelixConfigurationSpec
from tortie.model.staged import Staged, StagedGlobalNetworkPolicy

_SERVED = frozenset(
    (
        "allow_ipip_packets_from_workloads",
        "allow_vxlan_packets_from_workloads",
        "default_endpoint_to_host_action",
        "disable_conntrack_invalid_check",
        "external_nodes_list",
        "failsafe_inbound_host_ports",
        "failsafe_outbound_host_ports",
        "floating_ips",
        "interface_exclude",
        "ipip_enabled",
        "ipip_mtu",
        "ipv4_normal_route_priority",
        "ipv6_normal_route_priority",
        "ipv6_support",
        "log_action_rate_limit",
        "log_action_rate_limit_burst",
        "log_prefix",
        "mtu_iface_pattern",
        "nat_outgoing_address",
        "nat_outgoing_exclusions",
        "nftables_filter_allow_action",
        "nftables_filter_deny_action",
        "nftables_mangle_allow_action",
        "node_selector",
        "program_cluster_routes",
        "service_loop_prevention",
        "vxlan_enabled",
        "vxlan_mtu",
        "vxlan_mtu_v6",
        "vxlan_port",
        "vxlan_vni",
        "workload_source_spoofing",
    )
)
"""The FelixConfiguration's fields that `calc.settings` reads."""


def unserved(resource: Resource) -> Iterator[str]:
    """A line for each thing, field path first."""
    if isinstance(resource, Pod):
        yield from disregarded(resource)
    elif isinstance(resource, ClusterNetworkPolicy):
        yield from _unmatched(resource)
    elif isinstance(resource, Staged):
        yield from _not_counted(resource)
    elif isinstance(resource, FelixConfiguration):
        ignored = [name for field, name in _names() if field not in _SERVED and getattr(resource.spec, field)]
        if ignored:
            yield f"spec: kept, but not acted on yet: {', '.join(ignored)}"


def _unmatched(policy: ClusterNetworkPolicy) -> Iterator[str]:
    """The rules that name what has no addresses here. They are on the safe side."""
    for i, rule in enumerate(policy.spec.egress):
        for path, problem in unmatched(rule):
            instead = "accepts nothing" if rule.action == "Accept" else "denies all egress"
            yield f"spec.egress[{i}].{path}: {problem}, so this rule {instead}"


def _not_counted(policy: Staged) -> Iterator[str]:
    if policy.spec.staged_action in ("Learn", "Ignore"):
        yield f"spec.stagedAction: {policy.spec.staged_action} says nothing about packets"
    elif isinstance(policy, StagedGlobalNetworkPolicy) and (policy.spec.do_not_track or policy.spec.pre_dnat):
        yield "spec: what staged policies would do at host endpoints is not counted yet"


@lru_cache(maxsize=1)
def _names() -> tuple[tuple[str, str], ...]:
    """The FelixConfiguration's fields, as we call them and as documents do."""
    config = FelixConfigurationSpec
    return tuple(zip(config.__struct_fields__, config.__struct_encode_fields__, strict=True))
