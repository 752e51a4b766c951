"""The cluster's machines and settings: Node, ClusterInformation, FelixConfiguration (projectcalico.org/v3)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_interface
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, field

from tortie.model.bgp import PROGRAM_CLUSTER_ROUTES, as_problem
from tortie.model.meta import Kind, Port, Problem, Resource, Value, cidr_problem, duration_problem, ip_problem

Mtu = Annotated[int, Meta(ge=0, le=65535)]
"""Bytes; 0 is for the agent to find out."""


def interface_problem(path: str, text: str, version: int) -> Iterator[Problem]:
    """The problem of a field that must hold an address, with or without its prefix length."""
    try:
        right = ip_interface(text).version == version
    except ValueError:
        right = False
    if not right:
        yield (
            path,
            f'"{text}" is not an IPv{version} address such as {"192.0.2.1/24" if version == 4 else "fd00::1/64"}',
        )


class NodeBGPSpec(Value, frozen=True, kw_only=True):
    """Addresses carry the prefix length of the node's subnet."""

    as_number: int | str | None = None
    ipv4_address: str = ""
    ipv6_address: str = ""
    ipv4_ipip_tunnel_addr: str = field(name="ipv4IPIPTunnelAddr", default="")
    route_reflector_cluster_id: str = field(name="routeReflectorClusterID", default="")

    def problems(self) -> Iterator[Problem]:
        yield from as_problem("asNumber", self.as_number)
        if self.ipv4_address:
            yield from interface_problem("ipv4Address", self.ipv4_address, 4)
        if self.ipv6_address:
            yield from interface_problem("ipv6Address", self.ipv6_address, 6)
        cluster = self.route_reflector_cluster_id
        if cluster and not re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}", cluster):
            yield "routeReflectorClusterID", f'"{cluster}" must look like an IPv4 address'


class OrchRef(Value, frozen=True, kw_only=True):
    node_name: str = ""
    orchestrator: str = ""


class NodeWireguardSpec(Value, frozen=True, kw_only=True):
    interface_ipv4_address: str = field(name="interfaceIPv4Address", default="")
    interface_ipv6_address: str = field(name="interfaceIPv6Address", default="")


class NodeAddress(Value, frozen=True, kw_only=True):
    address: str = ""
    type: str = ""


class NodeInterface(Value, frozen=True, kw_only=True):
    name: str = ""
    addresses: tuple[str, ...] = ()


class NodeSpec(Value, frozen=True, kw_only=True):
    bgp: NodeBGPSpec | None = None
    orch_refs: tuple[OrchRef, ...] = ()
    ipv4_vxlan_tunnel_addr: str = field(name="ipv4VXLANTunnelAddr", default="")
    ipv6_vxlan_tunnel_addr: str = field(name="ipv6VXLANTunnelAddr", default="")
    vxlan_tunnel_mac_addr: str = field(name="vxlanTunnelMACAddr", default="")
    vxlan_tunnel_mac_addr_v6: str = field(name="vxlanTunnelMACAddrV6", default="")
    wireguard: NodeWireguardSpec | None = None
    addresses: tuple[NodeAddress, ...] = ()
    interfaces: tuple[NodeInterface, ...] = ()

    def problems(self) -> Iterator[Problem]:
        if self.bgp == NodeBGPSpec():
            yield "bgp", "should not be empty: give ipv4Address or ipv6Address, or leave it out"
        orchestrators = [ref.orchestrator for ref in self.orch_refs]
        for i, name in enumerate(orchestrators):
            if name in orchestrators[:i]:
                yield f"orchRefs[{i}].orchestrator", f'"{name}" is there twice'


class Node(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3", kind="Node", plural="nodes", aliases=("node", "no", "nos")
    )
    spec: NodeSpec = NodeSpec()
    status: Any = None

    @property
    def pod_cidrs(self) -> tuple[str, ...]:
        """What Kubernetes has given its pods: known where Kubernetes is the datastore."""
        cidrs = self.status.get("podCIDRs") if isinstance(self.status, dict) else None
        return tuple(one for one in cidrs if isinstance(one, str)) if isinstance(cidrs, list) else ()

    @property
    def leaving(self) -> bool:
        """Whether Kubernetes deletes the machine, or is about to: known where Kubernetes is the datastore. Elsewhere
        Kubernetes' own Node is asked (`agent.node_leaving`)."""
        return isinstance(self.status, dict) and self.status.get("leaving") is True


class ClusterInformationSpec(Value, frozen=True, kw_only=True):
    cluster_guid: str = field(name="clusterGUID", default="")
    cluster_type: str = ""
    calico_version: str = ""
    datastore_ready: bool | None = None
    variant: str = ""


class ClusterInformation(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="ClusterInformation",
        plural="clusterinformations",
        aliases=("clusterinformation", "clusterinfo"),
        read_only=True,
    )
    spec: ClusterInformationSpec = ClusterInformationSpec()

    def problems(self) -> Iterator[Problem]:
        if self.name != "default":
            yield "metadata.name", f'"{self.name}" must be "default": there is one only'


class ProtocolPort(Value, frozen=True, kw_only=True):
    protocol: str = "TCP"
    port: Port
    net: str = ""

    def problems(self) -> Iterator[Problem]:
        if self.protocol.upper() not in ("TCP", "UDP", "SCTP"):
            yield "protocol", f'"{self.protocol}" is not one of TCP, UDP, SCTP'
        if self.net:
            yield from cidr_problem("net", self.net)


class FelixConfigurationSpec(Value, frozen=True, kw_only=True):
    """The settings that are acted on are typed; the others are accepted and kept, so that a user's YAML works."""

    interface_prefix: str = ""
    interface_exclude: str = ""
    default_endpoint_to_host_action: Literal["Drop", "Accept", "Return"] | None = None
    disable_conntrack_invalid_check: bool | None = None
    nftables_filter_deny_action: Literal["Drop", "Reject"] | None = None
    nftables_mark_mask: int | None = None
    log_prefix: str = ""
    allow_vxlan_packets_from_workloads: bool | None = field(name="allowVXLANPacketsFromWorkloads", default=None)
    allow_ipip_packets_from_workloads: bool | None = field(name="allowIPIPPacketsFromWorkloads", default=None)
    ipv6_support: bool | None = None
    ip_forwarding: Literal["Enabled", "Disabled"] | None = None
    nat_outgoing_address: str = ""
    nat_outgoing_exclusions: Literal["IPPoolsOnly", "IPPoolsAndHostIPs"] | None = None
    vxlan_port: Port | None = None
    health_enabled: bool | None = None
    health_host: str = ""
    health_port: Port | None = None
    prometheus_metrics_enabled: bool | None = None
    prometheus_metrics_host: str = ""
    prometheus_metrics_port: Port | None = None
    log_severity_screen: str = ""
    device_route_protocol: int | None = None
    remove_external_routes: bool | None = None
    ipv4_normal_route_priority: Annotated[int, Meta(ge=1, le=2147483646)] | None = None
    ipv6_normal_route_priority: Annotated[int, Meta(ge=1, le=2147483646)] | None = None
    route_refresh_interval: str = ""
    nftables_refresh_interval: str = ""
    interface_refresh_interval: str = ""
    failsafe_inbound_host_ports: tuple[ProtocolPort, ...] | None = None
    failsafe_outbound_host_ports: tuple[ProtocolPort, ...] | None = None
    node_selector: str = ""
    workload_source_spoofing: Literal["Disabled", "Any"] | None = None
    # Accepted and kept; the agent says once at start which of them it does not act on.
    chain_insert_mode: Any = None
    iptables_filter_allow_action: Any = None
    nftables_filter_allow_action: Any = None
    iptables_mangle_allow_action: Any = None
    nftables_mangle_allow_action: Any = None
    iptables_filter_deny_action: Any = None
    iptables_mark_mask: Any = None
    iptables_backend: Any = None
    iptables_refresh_interval: Any = None
    iptables_post_write_check_interval: Any = field(name="iptablesPostWriteCheckInterval", default=None)
    iptables_nat_outgoing_interface_filter: Any = field(name="iptablesNATOutgoingInterfaceFilter", default=None)
    log_action_rate_limit: Any = None
    log_action_rate_limit_burst: Any = None
    log_file_path: Any = None
    log_severity_file: Any = None
    log_severity_sys: Any = None
    log_debug_filename_regex: Any = None
    floating_ips: Literal["Enabled", "Disabled"] | None = field(name="floatingIPs", default=None)
    nat_port_range: Any = None
    kube_node_port_ranges: Any = None
    service_loop_prevention: Literal["Drop", "Reject", "Disabled"] | None = None
    ipsets_refresh_interval: Any = None
    nftables_mode: Any = None
    nftables_flow_table_offload: Any = None
    nftables_flow_table_data_iface_pattern: Any = None
    max_ipset_size: Any = None
    xdp_refresh_interval: Any = None
    device_route_source_address: Any = None
    device_route_source_address_ipv6: Any = field(name="deviceRouteSourceAddressIPv6", default=None)
    ipv4_elevated_route_priority: Any = None
    ipv6_elevated_route_priority: Any = None
    route_table_ranges: Any = None
    route_table_range: Any = None
    route_source: Any = None
    program_cluster_routes: PROGRAM_CLUSTER_ROUTES | None = None
    route_sync_disabled: Any = None
    mtu_iface_pattern: str = ""
    vxlan_enabled: bool | None = None
    ipip_enabled: bool | None = None
    vxlan_vni: Annotated[int, Meta(ge=0, le=(1 << 24) - 1)] | None = field(name="vxlanVNI", default=None)
    vxlan_mtu: Mtu | None = field(name="vxlanMTU", default=None)
    vxlan_mtu_v6: Mtu | None = field(name="vxlanMTUV6", default=None)
    ipip_mtu: Mtu | None = field(name="ipipMTU", default=None)
    wireguard_mtu: Mtu | None = field(name="wireguardMTU", default=None)
    wireguard_mtu_v6: Mtu | None = field(name="wireguardMTUV6", default=None)
    wireguard_enabled: bool | None = None
    wireguard_enabled_v6: bool | None = None
    wireguard_host_encryption_enabled: Any = None
    wireguard_interface_name: Any = None
    wireguard_interface_name_v6: Any = None
    wireguard_listening_port: Any = None
    wireguard_listening_port_v6: Any = None
    wireguard_routing_rule_priority: Any = None
    wireguard_keep_alive: Any = None
    external_nodes_list: Any = None
    health_timeout_overrides: Any = None
    prometheus_metrics_ca_file: Any = field(name="prometheusMetricsCAFile", default=None)
    prometheus_metrics_cert_file: Any = None
    prometheus_metrics_key_file: Any = None
    prometheus_metrics_client_auth: Any = None
    prometheus_go_metrics_enabled: Any = None
    prometheus_process_metrics_enabled: Any = None
    prometheus_wire_guard_metrics_enabled: Any = None
    dataplane_watchdog_timeout: Any = None
    dataplane_driver: Any = None
    use_internal_dataplane_driver: Any = None
    endpoint_status_path_prefix: Any = None
    endpoint_reporting_enabled: Any = None
    endpoint_reporting_delay: Any = None
    reporting_interval: Any = None
    reporting_ttl: Any = field(name="reportingTTL", default=None)
    policy_sync_path_prefix: Any = None
    sidecar_acceleration_enabled: Any = None
    istio_ambient_mode: Any = None
    istio_dscp_mark: Any = field(name="istioDSCPMark", default=None)
    flow_logs_flush_interval: Any = None
    flow_logs_goldmane_server: Any = None
    flow_logs_local_reporter: Any = None
    flow_logs_policy_evaluation_mode: Any = None
    flow_logs_collector_debug_trace: Any = None
    xdp_enabled: Any = None
    generic_xdp_enabled: Any = field(name="genericXDPEnabled", default=None)
    aws_src_dst_check: Any = None
    local_subnet_l2_reachability: Any = None
    local_subnet_l2_reachability_refresh_interval: Any = None
    live_migration_route_convergence_time: Any = None
    usage_reporting_enabled: Any = None
    usage_reporting_initial_delay: Any = None
    usage_reporting_interval: Any = None
    go_gc_threshold: Any = field(name="goGCThreshold", default=None)
    go_memory_limit_mb: Any = field(name="goMemoryLimitMB", default=None)
    go_max_procs: Any = None
    go_maxprocs: Any = field(name="goMaxprocs", default=None)
    metadata_addr: Any = None
    metadata_port: Any = None
    openstack_region: Any = None
    netlink_timeout: Any = None
    feature_detect_override: Any = None
    feature_gates: Any = None
    debug_disable_log_dropping: Any = None
    debug_memory_profile_path: Any = None
    debug_simulate_calc_graph_hang_after: Any = None
    debug_simulate_dataplane_hang_after: Any = None
    debug_port: Any = None
    debug_host: Any = None
    cgroup_v2_path: Any = None
    windows_network_name: Any = None
    windows_manage_firewall_rules: Any = None
    service_loop_prevention_mode: Any = None
    require_mtu_file: Any = field(name="requireMTUFile", default=None)
    bpf_enabled: Any = None
    bpf_disable_unprivileged: Any = None
    bpf_log_level: Any = None
    bpf_log_filters: Any = None
    bpf_conntrack_log_level: Any = None
    bpf_conntrack_mode: Any = None
    bpf_conntrack_timeouts: Any = None
    bpf_ctlb_log_filter: Any = field(name="bpfCTLBLogFilter", default=None)
    bpf_data_iface_pattern: Any = None
    bpf_l3_iface_pattern: Any = None
    bpf_connect_time_load_balancing: Any = None
    bpf_connect_time_load_balancing_enabled: Any = None
    bpf_host_networked_nat_without_ctlb: Any = field(name="bpfHostNetworkedNATWithoutCTLB", default=None)
    bpf_external_service_mode: Any = None
    bpf_dsr_optout_cidrs: Any = field(name="bpfDSROptoutCIDRs", default=None)
    bpf_ext_to_service_connmark: Any = None
    bpf_kube_proxy_iptables_cleanup_enabled: Any = None
    bpf_kube_proxy_min_sync_period: Any = None
    bpf_kube_proxy_healthz_port: Any = None
    bpf_kube_proxy_endpoint_slices_enabled: Any = None
    bpf_psnat_ports: Any = field(name="bpfPSNATPorts", default=None)
    bpf_map_size_nat_frontend: Any = field(name="bpfMapSizeNATFrontend", default=None)
    bpf_map_size_nat_backend: Any = field(name="bpfMapSizeNATBackend", default=None)
    bpf_map_size_nat_affinity: Any = field(name="bpfMapSizeNATAffinity", default=None)
    bpf_map_size_route: Any = None
    bpf_map_size_conntrack: Any = None
    bpf_map_size_per_cpu_conntrack: Any = None
    bpf_map_size_conntrack_scaling: Any = None
    bpf_map_size_conntrack_cleanup_queue: Any = None
    bpf_map_size_ip_sets: Any = field(name="bpfMapSizeIPSets", default=None)
    bpf_map_size_if_state: Any = None
    bpf_enforce_rpf: Any = field(name="bpfEnforceRPF", default=None)
    bpf_policy_debug_enabled: Any = None
    bpf_force_track_packets_from_ifaces: Any = None
    bpf_disable_gro_for_ifaces: Any = field(name="bpfDisableGROForIfaces", default=None)
    bpf_exclude_cidrs_from_nat: Any = field(name="bpfExcludeCIDRsFromNAT", default=None)
    bpf_host_conntrack_bypass: Any = None
    bpf_redirect_to_peer: Any = None
    bpf_export_buffer_size_mb: Any = field(name="bpfExportBufferSizeMB", default=None)
    bpf_profiling: Any = None
    bpf_attach_type: Any = None
    bpf_jit_hardening: Any = field(name="bpfJITHardening", default=None)
    bpf_overlay_host_source_ip: Any = field(name="bpfOverlayHostSourceIP", default=None)
    bpf_ip_fragment_reassembly_enabled: Any = field(name="bpfIPFragmentReassemblyEnabled", default=None)
    bpf_maglev_max_services: Any = None
    bpf_maglev_max_endpoints_per_service: Any = None

    def problems(self) -> Iterator[Problem]:
        if self.nat_outgoing_address:
            yield from ip_problem("natOutgoingAddress", self.nat_outgoing_address)
        yield from duration_problem("routeRefreshInterval", self.route_refresh_interval)
        yield from duration_problem("nftablesRefreshInterval", self.nftables_refresh_interval)
        yield from duration_problem("interfaceRefreshInterval", self.interface_refresh_interval)
        for prefix in self.interface_prefix.split(",") if self.interface_prefix else ():
            if not re.fullmatch(r"[a-zA-Z0-9:._+-]{1,15}", prefix):
                yield "interfacePrefix", f'"{prefix}" is not the beginning of an interface name'


ESTABLISHED_FLOWS = "tortie.dev/established-flows"
"""The annotation of a FelixConfiguration that says what becomes of flows which a new policy forbids."""
FLOW_TABLES = "tortie.dev/flow-tables"
"""The annotation of a FelixConfiguration that says whether established TCP connections go past the rules."""
FELIX_ANNOTATIONS = {ESTABLISHED_FLOWS: ("Keep", "Cut"), FLOW_TABLES: ("Disabled", "Enabled")}
"""What they may say; the first is what holds where none says anything."""


class FelixConfiguration(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="FelixConfiguration",
        plural="felixconfigurations",
        aliases=("felixconfiguration", "felixconfig", "felixconfigs"),
    )
    spec: FelixConfigurationSpec = FelixConfigurationSpec()

    def problems(self) -> Iterator[Problem]:
        if self.name != "default" and not self.name.startswith("node.") and not self.spec.node_selector:
            yield "metadata.name", f'"{self.name}" must be "default" or "node.<node name>", or have spec.nodeSelector'
        for name, choices in FELIX_ANNOTATIONS.items():
            said = self.metadata.annotations.get(name)
            if said is not None and said not in choices:
                yield f'metadata.annotations["{name}"]', f'"{said}" is not one of {", ".join(choices)}'
