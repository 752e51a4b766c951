"""Situations of the stand-alone plugins and of flannel's daemon that the Go programs' behaviour makes, by number: which
test holds each.

    1 to 22      the protocol, whatever the plugin is
    23 to 45     address plugins
    46 to 79     plugins that make an interface
    80 to 96     plugins of a chain
    97 to 103    `flannel`
    104 to 128   flannel's daemon
    129 to 136   packets of ipvlan and macvlan between nodes

Tests of `vm` run on a stock kernel. A comment says where we differ on purpose (docs/differences.md has all of that).
"""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PROTOCOL, ROWS = "netns/test_plugin_protocol.py", "netns/test_plugin_rows.py"
ROWS_STOCK = "vm/inside/test_plugin_rows_stock.py"
HOST_LOCAL, STATIC = "netns/test_plugin_host_local.py", "netns/test_plugin_static.py"
BRIDGE, PTP = "netns/test_plugin_bridge.py", "netns/test_plugin_ptp.py"
FLANNEL, FLANNEL_KUBE = "netns/test_plugin_flannel.py", "interop/test_flannel_kubernetes.py"
FLANNEL_NODES = "unit/test_flannel_annotations.py"
FLANNEL_CONFIG, FLANNEL_ETCD = "unit/test_flannel_config.py", "interop/test_flannel_etcd.py"
FLANNELD, FLANNELD_ETCD = "netns/test_flannel_daemon.py", "interop/test_flanneld_etcd.py"
VXLAN, HOST_GW, UDP = "netns/test_flannel_vxlan.py", "netns/test_flannel_host_gw.py", "netns/test_flannel_udp.py"
RULES, LEFTOVERS = "netns/test_flannel_packets.py", "netns/test_flannel_leftovers.py"
WIREGUARD, EXTENSION = "vm/inside/test_flannel_wireguard.py", "unit/test_flannel_extension_lines.py"
AWS, AWS_PLANS = "interop/test_flannel_aws.py", "unit/test_flannel_aws_plans.py"
MACVLAN, VLAN = "netns/test_plugin_macvlan.py", "netns/test_plugin_vlan.py"
IPVLAN, IPVLAN_NOT = "vm/inside/test_plugin_ipvlan.py", "vm/inside/test_plugin_ipvlan_refusals.py"
BRIDGE_VLAN, VLAN_DUMMY = "vm/inside/test_plugin_bridge_vlan.py", "vm/inside/test_plugin_vlan_dummy.py"
PORTMAP, BANDWIDTH = "netns/test_plugin_portmap.py", "netns/test_plugin_bandwidth.py"
PATHS, SIBLING = "vm/inside/test_ipvlan_paths.py", "vm/inside/test_ipvlan_sibling.py"
SERVICES, STOCK = "vm/inside/test_ipvlan_services.py", "vm/inside/test_pod_networks_stock.py"

HELD = {
    # --- the protocol ---
    1: ((PROTOCOL, "test_1_no_command"),),
    2: ((PROTOCOL, "test_2_3_version"),),
    3: ((PROTOCOL, "test_2_3_version"),),
    4: ((PROTOCOL, "test_4_what_is_missing"),),
    5: ((PROTOCOL, "test_5_del_needs_no_namespace"),),
    6: ((PROTOCOL, "test_6_7_8_what_is_no_name"),),
    7: ((PROTOCOL, "test_6_7_8_what_is_no_name"),),
    8: ((PROTOCOL, "test_6_7_8_what_is_no_name"),),
    9: ((PROTOCOL, "test_9_10_11_what_is_no_call"),),
    10: ((PROTOCOL, "test_9_10_11_what_is_no_call"),),
    11: ((PROTOCOL, "test_9_10_11_what_is_no_call"),),
    12: ((PROTOCOL, "test_12_13_verbs_of_later_versions"),),
    13: ((PROTOCOL, "test_12_13_verbs_of_later_versions"),),
    14: ((PROTOCOL, "test_14_status"), (FLANNEL, "test_status")),
    15: (
        (PROTOCOL, "test_15_keys_in_any_case"),
        (PROTOCOL, "test_15_keys_in_any_case_of_what_a_kernel_may_lack"),
        (ROWS_STOCK, "test_15_keys_in_any_case"),
        (HOST_LOCAL, "test_keys_in_any_case"),
    ),
    16: (
        (PROTOCOL, "test_16_17_18_arguments"),
        (PROTOCOL, "test_16_17_18_arguments_of_others_are_ignored"),
    ),
    17: ((PROTOCOL, "test_16_17_18_arguments"),),
    18: ((PROTOCOL, "test_16_17_18_arguments"),),
    19: ((PROTOCOL, "test_19_no_version_is_the_first"),),
    20: ((PROTOCOL, "test_20_a_result_of_another_family"), (PROTOCOL, "test_20_del_does_not_mind_it")),
    21: ((PROTOCOL, "test_21_own_namespace"),),  # Go: the result and the error, after everything has been done
    22: ((PROTOCOL, "test_22_no_such_address_plugin"),),
    # --- address plugins ---
    23: ((HOST_LOCAL, "test_a_fresh_network"),),
    24: ((HOST_LOCAL, "test_addresses_go_round"),),
    25: ((HOST_LOCAL, "test_addresses_go_round"),),
    26: ((HOST_LOCAL, "test_a_full_range"),),
    27: ((HOST_LOCAL, "test_what_is_no_configuration"),),
    28: ((HOST_LOCAL, "test_what_is_no_configuration"),),
    29: ((HOST_LOCAL, "test_what_is_no_configuration"),),
    30: ((HOST_LOCAL, "test_a_part_of_a_lan"),),
    31: ((HOST_LOCAL, "test_two_families"),),
    32: ((HOST_LOCAL, "test_an_address_in_the_arguments"),),
    33: ((HOST_LOCAL, "test_addresses_in_the_configuration"),),
    34: ((HOST_LOCAL, "test_addresses_in_the_configuration"),),
    35: ((HOST_LOCAL, "test_the_runtimes_ranges_come_first"),),
    36: ((HOST_LOCAL, "test_one_address_of_a_family_in_old_versions"),),
    37: ((HOST_LOCAL, "test_addresses_go_round"),),
    38: ((HOST_LOCAL, "test_a_file_of_long_ago"),),
    39: ((HOST_LOCAL, "test_a_file_of_long_ago"),),
    40: ((HOST_LOCAL, "test_fifty_at_once"), ("interop/test_host_local_twins.py", "test_fifty_at_once_of_both")),
    41: ((HOST_LOCAL, "test_no_ipam_at_all"), (STATIC, "test_the_protocol")),
    42: ((STATIC, "test_what_is_wrong"),),
    43: ((STATIC, "test_what_is_asked_for"),),
    44: ((STATIC, "test_what_is_asked_for"),),
    45: ((ROWS, "test_45_no_daemon_where_it_is_looked_for"), ("netns/test_plugin_dhcp.py", "test_no_daemon")),
    # --- interfaces ---
    46: ((IPVLAN, "test_the_case_as_it_is"), (IPVLAN, "test_life"), (IPVLAN, "test_modes")),
    47: ((VLAN, "test_what_is_refused"), (IPVLAN_NOT, "test_refusals")),
    48: ((VLAN, "test_what_is_refused"), (IPVLAN_NOT, "test_refusals")),
    49: ((VLAN, "test_what_is_refused"), (IPVLAN_NOT, "test_no_default_route")),  # Go: DEL fails, too
    50: ((IPVLAN_NOT, "test_refusals"),),  # Go leaves a link behind
    51: ((IPVLAN_NOT, "test_after_another_plugin"),),
    52: ((IPVLAN_NOT, "test_after_another_plugin"),),
    53: (
        (IPVLAN, "test_a_mode_is_not_switched_in_passing"),
        (ROWS_STOCK, "test_53_another_mode_than_that_of_the_configuration"),
    ),
    54: ((IPVLAN_NOT, "test_refusals"),),  # Go leaves a link behind
    55: ((IPVLAN, "test_a_mode_is_not_switched_in_passing"),),  # Go switches all that there are
    56: ((MACVLAN, "test_refusals"),),
    57: ((MACVLAN, "test_whose_word_about_the_mac_counts"),),
    58: ((MACVLAN, "test_refusals"),),
    59: ((MACVLAN, "test_without_addresses"),),
    60: ((IPVLAN_NOT, "test_another_kind_on_the_same_master"),),
    61: ((BRIDGE, "test_default_gateway"),),
    62: ((ROWS, "test_62_bridge_with_another_address"), (ROWS, "test_62_bridge_whose_ports_have_all_left")),
    63: ((BRIDGE, "test_refused"),),
    64: ((BRIDGE, "test_refused"),),
    65: ((BRIDGE_VLAN, "test_gateway_in_a_vlan"),),
    66: ((BRIDGE_VLAN, "test_trunk"),),
    67: ((BRIDGE, "test_refused"),),
    68: (
        (BRIDGE, "test_masquerade"),
    ),  # nftables whatever is asked for: the rules of 69, with the chain's hash in them
    69: ((BRIDGE, "test_masquerade"), (BRIDGE, "test_refused")),
    70: ((BRIDGE, "test_del_without_the_namespace"),),
    71: ((BRIDGE, "test_no_addresses"),),  # Go: CHECK fails
    72: ((PTP, "test_life"),),
    73: ((PTP, "test_del_without_the_namespace"),),  # Go leaves the rules
    74: (("netns/test_plugin_loopback.py", "test_life"),),  # Go: no families in old versions
    75: (("netns/test_plugin_loopback.py", "test_address_that_is_no_loopback"),),
    76: ((VLAN, "test_what_is_refused"), (VLAN_DUMMY, "test_vlan_that_is_not_as_it_should_be")),  # Go: DEL fails
    77: ((VLAN, "test_what_is_refused"),),
    78: (("netns/test_plugin_host_device.py", "test_refusals"),),
    79: (("netns/test_plugin_host_device.py", "test_life"), (ROWS_STOCK, "test_79_a_dummy_goes_and_comes_back")),
    # --- chained plugins ---
    80: ((PORTMAP, "test_rules"),),  # those of nftables, whatever is asked for
    81: ((PORTMAP, "test_refused_configuration"),),
    82: ((PORTMAP, "test_refused_configuration"),),
    83: ((PORTMAP, "test_many_ports"),),  # nothing of nftables ends at 15 ports
    84: ((PORTMAP, "test_host_address_of_the_other_family"),),  # nftables has no entry rules that could list it
    85: ((PORTMAP, "test_without_masquerade"),),
    86: ((PORTMAP, "test_udp_flow_of_before"),),
    87: ((PORTMAP, "test_refused_configuration"),),
    88: ((BANDWIDTH, "test_to_the_container"),),
    89: ((BANDWIDTH, "test_refused"),),
    90: ((BANDWIDTH, "test_life"),),
    91: ((BANDWIDTH, "test_no_pair"),),
    92: (("netns/test_plugin_tuning.py", "test_sysctl_outside_of_the_network"),),
    93: (("netns/test_plugin_tuning.py", "test_mtu_and_its_file"),),
    94: (("netns/test_plugin_firewall.py", "test_life"),),
    95: (("vm/inside/test_plugin_vrf_stock.py", "test_another_table"),),
    96: (("netns/test_plugin_sbr.py", "test_pod_that_is_gone"),),  # Go: an error and an ordinary file
    97: ((FLANNEL, "test_97_pod_of_a_kube_flannel_node"),),
    98: ((FLANNEL, "test_98_no_subnet_env"),),
    99: ((FLANNEL, "test_99_subnet_env_that_is_not_whole"),),
    100: ((FLANNEL, "test_100_delegates_that_cannot_be"),),
    101: ((FLANNEL, "test_101_del_without_state_and_twice"),),
    102: ((FLANNEL, "test_102_masquerading_is_the_plugins_when_it_is_not_flannelds"),),
    103: ((FLANNEL, "test_103_another_delegate"), (ROWS_STOCK, "test_103_flannel_with_ipvlan_l3")),
    # --- flannel's daemon ---
    104: ((FLANNEL_CONFIG, "test_only_a_network_is_needed"),),
    105: ((FLANNEL_CONFIG, "test_refusals"),),
    106: ((FLANNEL_ETCD, "test_a_restart_gets_it_again"),),
    107: ((FLANNEL_ETCD, "test_the_subnet_file_brings_it_back"),),
    108: ((FLANNEL_ETCD, "test_racing_for_the_last_subnets"),),
    109: ((FLANNEL_ETCD, "test_a_lease_that_is_taken_away"), (FLANNELD_ETCD, "test_own_lease_is_revoked")),
    110: ((FLANNEL_ETCD, "test_a_reservation_stays_one"), (FLANNELD_ETCD, "test_reservation_stays_one")),
    111: ((FLANNEL_ETCD, "test_dual_stack"), (FLANNELD_ETCD, "test_dual_stack")),
    112: ((FLANNEL_NODES, "test_112_pod_cidrs_that_cannot_be"), (FLANNEL_KUBE, "test_112_node_without_a_pod_cidr")),
    113: (
        (FLANNEL_KUBE, "test_kube_flannels_role_is_enough"),
        (FLANNEL_KUBE, "test_113_restart_finds_what_was_published"),
    ),
    114: ((FLANNEL_KUBE, "test_114_overwritten_address_is_what_others_see"),),
    115: ((VXLAN, "test_a_peer_appears_and_disappears"), (FLANNELD, "test_nodes_come_and_go")),
    116: ((VXLAN, "test_direct_routing_is_for_those_on_the_link"),),
    117: (
        (HOST_GW, "test_a_route_that_is_deleted_or_stolen_is_ours_again"),
        (FLANNELD, "test_117_118_host_gw"),
    ),
    118: (("unit/test_flannel_backends.py", "test_host_gw_behind_nat_is_refused"), (FLANNELD, "test_117_118_host_gw")),
    119: ((UDP, "test_a_subnet_of_nobody_is_unreachable"),),
    120: (  # upstream makes the device anew; a daemon that was killed finds its sessions
        (WIREGUARD, "test_pods_reach_one_another_encrypted"),
        (WIREGUARD, "test_a_killed_daemon_s_successor_keeps_the_sessions"),
        (WIREGUARD, "test_a_daemon_that_ends_takes_its_device_and_comes_back_as_the_same_node"),
        (WIREGUARD, "test_the_daemon_takes_its_device_along_when_it_ends"),
    ),
    121: (
        (RULES, "test_situation_121_it_is_put_right"),
        ("unit/test_flannel_rules.py", "test_the_order_and_the_words_of_the_rules"),
    ),
    122: ((LEFTOVERS, "test_situation_122_a_daemon_takes_over"),),
    123: (("unit/test_flannel_options.py", "test_situation_123_a_margin_out_of_range_ends_it_with_1"),),
    124: ((FLANNELD, "test_what_it_answers"), (FLANNELD_ETCD, "test_etcd_comes_and_goes_under_traffic")),
    125: ((EXTENSION, "test_every_node_is_added_once_and_removed_as_it_was"),),
    126: (
        (AWS, "test_126_a_dead_route_goes_the_own_one_comes_and_the_check_is_off"),
        (AWS_PLANS, "test_126_a_dead_route_goes_and_the_own_one_comes"),
    ),
    127: ((AWS_PLANS, "test_127_route_table_ids_of_another_type"),),
    128: (
        ("interop/test_flannel_kubernetes_peers.py", "test_128_mixed_cluster"),
        ("interop/test_flannel_dataplane.py", "test_a_mixed_network_whoever_is_restarted"),
    ),
    # --- packets of ipvlan and macvlan between nodes ---
    129: ((PATHS, "test_four_routes"),),
    130: ((STOCK, "test_pods_without_privileges_reach_one_another"), (PATHS, "test_a_default_route_by_itself")),
    131: ((STOCK, "test_the_master_goes_down_and_comes_up"),),
    132: ((SERVICES, "test_service_on_another_node"), (SERVICES, "test_service_on_the_same_node")),
    133: ((SIBLING, "test_node_and_pod_by_a_sibling"), (MACVLAN, "test_node_and_pod_by_a_sibling")),
    134: ((IPVLAN, "test_the_case_as_it_is"), (MACVLAN, "test_the_case_as_it_is")),
    135: (("unit/test_cni_validate.py", "test_ranges_of_two_nodes_that_overlap"),),
    136: ((SERVICES, "test_port_of_the_node"), (MACVLAN, "test_published_port")),
}
"""By situation the files and tests that hold it."""


def test_every_situation_is_held() -> None:
    assert list(HELD) == list(range(1, 137))
    missing = [
        (number, file, name)
        for number, tests in HELD.items()
        for file, name in tests
        if not re.search(rf"^(async )?def {name}\(", (TESTS / file).read_text(), re.MULTILINE)
    ]
    assert missing == []
