"""Situations of routing, start-up and commands that Calico's own tests have, by their numbers: which test holds each.

Most are with the part that they are about; what is held nowhere else is here.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from bgp_world import A, B, C, Seen, node, pool
from kube_api import KubeApi
from tortie.agent.node_status import status_of
from tortie.agent.node_view import Told
from tortie.bgp.announce import Candidate, Decision, announce
from tortie.bgp.birdc import Protocol, Session, Status
from tortie.bgp.sessions import Peer
from tortie.model.apiconfig import ApiConfig
from tortie.model.meta import Metadata
from tortie.model.node import Node, NodeBGPSpec
from tortie.model.nodestatus import CalicoNodeStatusSpec, CalicoNodeStatusStatus
from tortie.model.workload import endpoint_name, interface_name
from tortie.render.announcing import announcing
from tortie.render.routing import bird_config
from tortie.store.etcd import layout as etcd_layout
from tortie.store.kube.access import access
from tortie.store.kube.client import Client
from tortie.store.kubernetes import KubernetesStore

TESTS = Path(__file__).parents[1]
BGP, SERVICES, OVERLAY = "unit/test_bgp_situations.py", "unit/test_bgp_services.py", "unit/test_overlay.py"
ADDRESSES, STARTUP, STATUS = "unit/test_node_addresses.py", "unit/test_startup.py", "unit/test_node_status.py"
CLI, IPAM, GC = "unit/test_cli_resources.py", "unit/test_ipam_commands.py", "unit/test_ipam_gc.py"
PATCH = "unit/test_cli_patch.py"
BIRD, CHANGES = "interop/test_bird.py", "interop/test_bird_changes.py"
HERE = "unit/test_routing_situations.py"

HELD: dict[int, tuple[tuple[str, str], ...]] = {
    1: ((BGP, "test_1_two_nodes_and_nothing_said"), (BIRD, "test_sessions_come_up_in_both_families_soon")),
    2: ((BGP, "test_2_addresses_are_compared_as_texts"),),
    3: ((BGP, "test_3_a_route_reflector_leaves_the_mesh"),),
    4: ((BGP, "test_4_reflectors_of_one_cluster_are_no_clients"),),
    5: ((BGP, "test_5_no_mesh_and_no_peers"),),
    6: ((BGP, "test_6_a_pool_that_is_not_exported"), (BIRD, "test_nothing_outside_the_pools_is_announced")),
    7: ((HERE, "test_7_8_what_is_told_of_addresses"), (BIRD, "test_workloads_inside_their_block_stay_home")),
    8: ((HERE, "test_7_8_what_is_told_of_addresses"), (BIRD, "test_workloads_inside_their_block_stay_home")),
    9: (
        (OVERLAY, "test_9_ipip_leads_to_the_node_and_bird_leaves_the_pool_alone"),
        (HERE, "test_9_what_the_agent_routes_is_not_told_again"),
    ),
    10: ((OVERLAY, "test_10_ipip_of_birds_is_not_the_agents"), (CHANGES, "test_bird_s_own_ipip_waits_for_its_link")),
    11: (
        (OVERLAY, "test_11_cross_subnet_tunnels_only_to_the_other_subnet"),
        (BGP, "test_11_ipip_between_subnets_only"),
    ),
    12: ((OVERLAY, "test_12_who_writes_unencapsulated_routes"), (BGP, "test_9_10_12_who_routes_a_pool_of_ipip")),
    13: ((BIRD, "test_blocks_are_in_the_fib_with_the_normal_metric"),),
    14: ((HERE, "test_14_connected_routes_are_the_kernels_own"), (BIRD, "test_workloads_inside_their_block_stay_home")),
    15: ((SERVICES, "test_15_service_networks_are_announced_and_in_no_fib"),),
    16: ((SERVICES, "test_16_a_node_that_is_excluded_announces_no_services"),),
    17: ((SERVICES, "test_17_the_node_with_an_endpoint_announces_a_local_service"),),
    18: ((SERVICES, "test_18_a_single_address_is_announced_while_a_service_has_it"),),
    19: ((SERVICES, "test_19_load_balancers_one_by_one"),),
    20: ((BGP, "test_20_communities_on_what_is_announced"), (BIRD, "test_communities_travel")),
    21: ((BGP, "test_21_a_peer_with_port_ttl_security_and_a_gateway"),),
    22: ((BGP, "test_22_global_beats_node_specific"),),
    23: ((BGP, "test_23_the_node_that_is_peered_with_peers_back"),),
    24: ((BGP, "test_24_a_local_as_is_for_addresses_not_for_selectors"),),
    25: (
        (BGP, "test_25_a_password_comes_with_its_secret"),
        (CHANGES, "test_a_password_restarts_its_session_and_no_other"),
    ),
    26: ((BGP, "test_26_restart_time_of_the_mesh"),),
    27: ((BGP, "test_27_what_a_filter_rejects_is_not_taken_in"),),
    28: ((BGP, "test_28_long_names_of_filters"),),
    29: ((BGP, "test_29_listening_on_one_address_and_port"),),
    30: (
        (BIRD, "test_a_bad_configuration_changes_nothing"),
        (CHANGES, "test_what_bird_refuses_replaces_nothing_and_says_why"),
    ),
    31: ((BIRD, "test_a_new_block_reaches_peers_without_a_session_blinking"),),
    32: ((CHANGES, "test_an_end_that_is_to_wait_restarts_alone"),),
    33: ((HERE, "test_33_one_of_three_peers_is_down"), (STATUS, "test_what_is_written")),
    34: ((BGP, "test_34_a_router_id_of_a_node_without_ipv4"), (STARTUP, "test_situation_34_router_id_from_the_name")),
    35: ((ADDRESSES, "test_situation_35_cidr"),),
    36: ((ADDRESSES, "test_situation_36_interface_expressions_need_not_begin_a_name"),),
    37: (
        (STARTUP, "test_situation_37_another_node_has_the_address"),
        ("netns/test_startup_agents.py", "test_situation_37_an_address_that_another_node_has"),
    ),
    38: ((STARTUP, "test_situation_38_pool_from_variables"),),
    39: ((STARTUP, "test_situation_39_pool_of_kubeadm"),),
    40: ((STARTUP, "test_situation_40_first_free_pool"),),
    41: ((STARTUP, "test_situation_41_no_pools_and_a_pool"),),
    42: ((STARTUP, "test_situation_42_block_size"),),
    43: ((STARTUP, "test_situation_43_all_peers_count_first_and_one_later"),),
    44: (
        (HERE, "test_44_the_key_of_a_node"),
        ("interop/test_store_etcd_calico.py", "test_what_we_write_is_where_calico_looks"),
    ),
    45: (
        (HERE, "test_45_what_a_node_says_of_itself_are_annotations"),
        ("interop/test_store_kubernetes_views.py", "test_a_node_registers_itself_in_annotations"),
    ),
    46: ((HERE, "test_46_names_of_a_pods_endpoint"),),
    47: (("unit/test_admission.py", "test_a_pool_keeps_its_network_and_its_block_size"),),
    48: ((CLI, "test_an_outdated_document_is_refused"),),
    49: ((CLI, "test_the_tables_of_calico"),),
    50: ((CLI, "test_the_tables_of_calico"),),
    51: ((CLI, "test_create_only_creates"),),
    52: ((PATCH, "test_52_every_type_of_patch_is_a_strategic_merge"),),
    53: ((PATCH, "test_53_another_value_needs_overwrite"),),
    54: ((IPAM, "test_one_address"),),
    55: ((IPAM, "test_split_needs_a_lock_and_a_number_that_fits"),),
    56: (("unit/test_versions.py", "test_56_client_and_cluster"), ("unit/test_versions.py", "test_the_command_line")),
    57: ((GC, "test_leak_is_released_after_the_grace_period"),),
    58: ((GC, "test_node_that_is_gone_has_no_grace"), (GC, "test_settings_of_a_node_go_only_if_it_has_been_seen")),
    59: (("unit/test_auto_hosts.py", "test_59_one_for_every_node"),),
    60: (
        ("unit/test_load_balancer_ipam.py", "test_60_the_handle_is_calico_s"),
        ("unit/test_load_balancer_ipam.py", "test_60_an_address_of_the_pool_whose_use_that_is"),
    ),
    61: ((STATUS, "test_without_bird_there_are_neither_peers_nor_routes_of_any_family"),),
}
"""By situation the files and tests that hold it."""


def test_every_situation_is_held() -> None:
    assert sorted(HELD) == list(range(1, 62))
    missing = [
        (number, file, name)
        for number, tests in HELD.items()
        for file, name in tests
        if not re.search(rf"^(async )?def {name}\(", (TESTS / file).read_text(), re.MULTILINE)
    ]
    assert missing == []


# --- what peers are told ------------------------------------------------------------------------------------------

NEIGHBOUR = Peer(name="Mesh_10_0_0_3", ip=ip_address("10.0.0.3"), remote_as=64512, local_as=64512)


def told(route: str, *resources: Any, **more: Any) -> Decision:
    """What becomes of a route of a's on its way to c."""
    config = bird_config(Seen("a", A, B, C, *resources).cluster.state(), 2)
    assert config is not None
    return announce(Candidate(prefix=ip_network(route), **more), NEIGHBOUR, announcing(config, 4))


@pytest.mark.parametrize(
    ("route", "metric", "accepted", "local_pref"),
    [
        ("192.168.1.0/26", None, True, 2147482623),
        ("192.168.2.70/32", 1024, True, 2147482623),  # of another's block, and here
        ("192.168.1.6/32", 512, True, 2147483135),  # urgent
        ("192.168.1.5/32", 1024, False, 2147482623),
        ("10.0.0.0/24", None, False, 2147482623),  # the nodes' own network
    ],
)
def test_7_8_what_is_told_of_addresses(route: str, metric: int | None, accepted: bool, local_pref: int) -> None:
    """Local preference and metric add up to 2147483647, so that the receiver has the metric again."""
    found = told(route, metric=metric)
    assert (found.accepted, found.route.local_pref) == (accepted, local_pref), found.step


@pytest.mark.parametrize(
    ("way", "accepted"),
    [
        ({"interface": "tunl0", "source": 80}, False),
        ({"interface": "vxlan.calico", "source": 80}, False),
        ({"interface": "eth0", "source": 80}, False),
        ({"interface": "eth0", "source": 4}, True),  # what an administrator has written
    ],
)
def test_9_what_the_agent_routes_is_not_told_again(way: dict[str, Any], accepted: bool) -> None:
    """The other node tells of its block itself."""
    assert told("192.168.2.0/26", pool(ipipMode="Always"), **way).accepted is accepted


@pytest.mark.parametrize("version", [4, 6])
def test_14_connected_routes_are_the_kernels_own(version: int) -> None:
    """Else BIRD 2 writes each of them once more; so they are rejected before anything else is asked."""
    text = Seen("a", node("a", 1, ipv6Address="fd00::1/64"), B).part(f"filter to_kernel{version}")
    decided = re.search(r"if .* then (accept|reject);", text)
    assert decided is not None
    assert decided[0] == "if source = RTS_DEVICE then reject;"


# --- what is written down of them ---------------------------------------------------------------------------------


def test_33_one_of_three_peers_is_down() -> None:
    then = datetime(2026, 1, 1)
    states = {"Mesh_10_0_0_2": "Established", "Mesh_10_0_0_3": "Established", "Global_10_0_0_9": "Connect"}
    protocols = tuple(
        Protocol(name, "BGP", "---", "up" if state == "Established" else "start", "10:00:00", state, Session(state))
        for name, state in states.items()
    )
    seen = Told(Status("2.0.12", "10.0.0.1", "a", then, then, then, "up"), protocols, ())
    spec = CalicoNodeStatusSpec(node="a", classes=("BGP",))
    found = status_of(spec, seen, (4,), CalicoNodeStatusStatus(), datetime(2026, 1, 2, tzinfo=UTC)).bgp
    assert found is not None
    assert (found.number_established_v4, found.number_not_established_v4) == (2, 1)
    assert (found.number_established_v6, found.number_not_established_v6, found.peers_v6) == (0, 0, ())
    assert [(one.peer_ip, one.type, one.state) for one in found.peers_v4] == [
        ("10.0.0.2", "NodeMesh", "Established"),
        ("10.0.0.3", "NodeMesh", "Established"),
        ("10.0.0.9", "GlobalPeer", "Connect"),
    ]


# --- where a node is written ---------------------------------------------------------------------------------------


def test_44_the_key_of_a_node() -> None:
    assert etcd_layout.key(Node(metadata=Metadata(name="n1"))) == b"/calico/resources/v3/projectcalico.org/nodes/n1"


async def test_45_what_a_node_says_of_itself_are_annotations() -> None:
    """Written through nodes/status, which is what Kubernetes lets a node's agent change."""
    async with KubeApi() as api:
        api.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"zone": "a"}}})
        store = KubernetesStore(Client(access(ApiConfig(k8s_api_endpoint=api.url), {})))
        try:
            found = await store.get(Node, "n1")
            bgp = NodeBGPSpec(ipv4_address="10.0.0.1/24", as_number=64513)
            since = len(api.log)
            await store.update(replace(found, spec=replace(found.spec, bgp=bgp, ipv4_vxlan_tunnel_addr="10.65.0.1")))
        finally:
            await store.close()
        assert [f"{one.method} {one.path}" for one in list(api.log)[since:]] == ["PATCH /api/v1/nodes/n1/status"]
        kept = api.get("nodes", "n1")["metadata"]
    assert kept["labels"] == {"zone": "a"}
    assert kept["annotations"] == {
        "projectcalico.org/IPv4Address": "10.0.0.1/24",
        "projectcalico.org/ASNumber": "64513",
        "projectcalico.org/IPv4VXLANTunnelAddr": "10.65.0.1",
    }


# --- names --------------------------------------------------------------------------------------------------------


def test_46_names_of_a_pods_endpoint() -> None:
    assert endpoint_name("node-1", "k8s", "my-pod", "eth0") == "node--1-k8s-my--pod-eth0"
    # printf %s kube-system.my-pod | sha1sum
    assert interface_name("kube-system", "my-pod") == "cali5c31fd5e659"
