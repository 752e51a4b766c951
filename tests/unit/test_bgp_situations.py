"""Situations of a cluster's BGP, by number: objects go in, and what one node's bird.conf says comes out.

What only real daemons and kernels show is tested elsewhere: 13 and 14 (metrics and duplicates in the FIB), 30 to 32
(reloading) in interop; 15 to 19 are about services, 33 is with the status of nodes.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest

from bgp_world import A, B, C, Seen, bgp, block, felix, named, nets, node, peer, pool, secret, service, slice_
from tortie.base.errors import ConfigError
from tortie.calc.routing import BgpEnvironment
from tortie.model.bgpfilter import BGPFilter
from tortie.model.node import Node
from tortie.model.secret import Secret
from tortie.model.workload import WorkloadEndpoint
from tortie.render.nft import NftRenderer

TOR = {"peerIP": "10.0.0.9", "asNumber": 64999}


# --- the mesh, and peers ----------------------------------------------------------------------------------------------


def test_1_two_nodes_and_nothing_said() -> None:
    at_a, at_b = Seen("a", A, B), Seen("b", A, B)
    assert (at_a.names, at_b.names) == ({"Mesh_10_0_0_2"}, {"Mesh_10_0_0_1"})
    assert "passive on;" in at_a.sessions["Mesh_10_0_0_2"]
    assert "passive" not in at_b.sessions["Mesh_10_0_0_1"]
    assert "local 10.0.0.1 as 64512;" in at_a.sessions["Mesh_10_0_0_2"]
    assert at_a.blackholes == {"192.168.1.0/26"}
    assert "net ~ [ 192.168.1.0/26 ] then accept" in at_a.part("function announce4")


def test_2_addresses_are_compared_as_texts() -> None:
    nine, ten = node("x", 9), node("y", 10)
    assert "passive on;" in Seen("y", nine, ten).sessions["Mesh_10_0_0_9"]
    assert "passive" not in Seen("x", nine, ten).sessions["Mesh_10_0_0_10"]


def test_3_a_route_reflector_leaves_the_mesh() -> None:
    reflector = node("b", 2, {"rr": "yes"}, routeReflectorClusterID="1.0.0.1")
    assert Seen("a", A, reflector).names == set()
    assert Seen("c", A, reflector, C).names == {"Mesh_10_0_0_1"}
    to_reflector = peer(nodeSelector="all()", peerSelector="has(rr)")
    assert Seen("a", A, reflector, to_reflector).names == {"Node_10_0_0_2"}
    assert "rr client;\n  rr cluster id 1.0.0.1;" in Seen("b", A, reflector, to_reflector).sessions["Node_10_0_0_1"]


@pytest.mark.parametrize(("other", "client"), [("1.0.0.1", False), ("1.0.0.2", True)])
def test_4_reflectors_of_one_cluster_are_no_clients(other: str, client: bool) -> None:
    rr = {"rr": "yes"}
    nodes = node("a", 1, rr, routeReflectorClusterID="1.0.0.1"), node("b", 2, rr, routeReflectorClusterID=other)
    among = peer(nodeSelector="has(rr)", peerSelector="has(rr)")
    assert ("rr client" in Seen("a", *nodes, among).sessions["Node_10_0_0_2"]) is client


def test_5_no_mesh_and_no_peers() -> None:
    seen = Seen("a", A, B, bgp(nodeToNodeMeshEnabled=False))
    assert seen.names == set()
    for part in ("protocol kernel kernel4", "protocol static static4", "protocol direct"):
        assert part in seen.text


def test_21_a_peer_with_port_ttl_security_and_a_gateway() -> None:
    seen = Seen("a", A, peer(peerIP="10.0.0.9:1179", asNumber=64999, ttlSecurity=3, reachableBy="10.0.0.254"))
    session = seen.sessions["Global_10_0_0_9_port_1179"]
    assert "ttl security on;\n  multihop 3;" in session
    assert "local 10.0.0.1 as 64512;\n  neighbor 10.0.0.9 port 1179 as 64999;" in session
    assert "route 10.0.0.9/32 via 10.0.0.254;" in seen.text


def test_22_global_beats_node_specific() -> None:
    assert Seen("a", A, peer("one", **TOR), peer("two", node="a", **TOR)).names == {"Global_10_0_0_9"}


@pytest.mark.parametrize(("back", "names"), [("Auto", {"Node_10_0_0_1"}), ("Manual", set())])
def test_23_the_node_that_is_peered_with_peers_back(back: str, names: set[str]) -> None:
    written = peer(peerIP="10.0.0.2", asNumber=64512, node="a", reversePeering=back)
    assert Seen("b", A, B, written, bgp(nodeToNodeMeshEnabled=False)).names == names


def test_24_a_local_as_is_for_addresses_not_for_selectors() -> None:
    inside = Seen("a", A, peer(peerIP="10.0.0.9", asNumber=65001, localASNumber=65001)).sessions["Global_10_0_0_9"]
    assert "as 65001;\n  neighbor 10.0.0.9 as 65001;" in inside
    assert "to_ibgp4" in inside
    mesh_off = bgp(nodeToNodeMeshEnabled=False)
    selected = Seen("a", A, B, peer(peerSelector="all()", localASNumber=65001, reversePeering="Manual"), mesh_off)
    assert "as 64512;\n  neighbor 10.0.0.2 as 64512;" in selected.sessions["Global_10_0_0_2"]


PASSWORD = {"password": {"secretKeyRef": {"name": "bgp", "key": "tor"}}}


def test_25_a_password_comes_with_its_secret() -> None:
    seen = Seen("a", A, B, peer(**TOR, **PASSWORD))
    assert "password" not in seen.text
    assert seen.cluster.problems == {
        "password of BGPPeer peer": "Secret kube-system/bgp is not there, so its sessions have none"
    }
    seen.put(secret(namespace="default", tor="elsewhere"))
    assert "password" not in seen.text
    seen.put(secret(tor="it's hushed"))
    assert 'password "it\'s hushed";' in seen.sessions["Global_10_0_0_9"]
    assert "password" not in seen.sessions["Mesh_10_0_0_2"]
    assert seen.cluster.problems == {}
    seen.cluster.drop(Secret, "kube-system", "bgp")
    assert "password" not in seen.text


def test_25_the_mesh_has_a_password_too_and_another_namespace_may_hold_it() -> None:
    mesh = bgp(nodeMeshPassword={"secretKeyRef": {"name": "bgp", "key": "mesh"}})
    seen = Seen("a", A, B, mesh, peer(**TOR), environment=BgpEnvironment(secrets="network"))
    seen.put(secret(mesh="no"), secret(namespace="network", mesh="yes"))
    assert 'password "yes";' in seen.sessions["Mesh_10_0_0_2"]
    assert "password" not in seen.sessions["Global_10_0_0_9"]


@pytest.mark.parametrize(
    ("password", "why"),
    [
        ('say "please"', "a quote or a control character"),
        ("two\nlines", "a quote or a control character"),
        ("hushhush\n", "ends in a newline"),
        ("", "is empty"),
        ("x" * 81, "more than 80 bytes"),
    ],
)
def test_25_a_password_that_cannot_be_stops_nothing_else(password: str, why: str) -> None:
    seen = Seen("a", A, B, peer(**TOR, **PASSWORD), secret(tor=password))
    assert "password" not in seen.sessions["Global_10_0_0_9"]
    assert "Mesh_10_0_0_2" in seen.names
    [(what, problem)] = seen.cluster.problems.items()
    assert what == "password of BGPPeer peer"
    assert why in problem
    assert not password or password.strip() not in problem


def test_25_no_session_is_decided_on_while_its_secret_is_not_known() -> None:
    """A session that runs with a password would end, were it configured without."""
    seen = Seen("a", A, B)
    seen.cluster.secrets_are_known(False)
    assert seen.cluster.state().routing is not None
    seen.put(peer(**TOR, **PASSWORD))
    assert seen.cluster.asks_secrets()
    assert seen.cluster.state().routing is None
    assert seen.cluster.problems == {}
    seen.cluster.secrets_are_known(True)
    assert seen.names == {"Mesh_10_0_0_2", "Global_10_0_0_9"}


def test_26_restart_time_of_the_mesh() -> None:
    seen = Seen("a", A, B)
    assert "graceful restart time" not in seen.text
    seen.put(bgp(nodeMeshMaxRestartTime="200s"))
    assert "graceful restart time 200;" in seen.sessions["Mesh_10_0_0_2"]


def test_34_a_router_id_of_a_node_without_ipv4() -> None:
    six = named(Node, "six", spec={"bgp": {"ipv6Address": "fd00::6/64"}})
    digest = bytearray(hashlib.sha256(b"six").digest()[:4])
    digest[0] -= 32 if digest[0] > 223 else 0
    expected = f"router id {'.'.join(map(str, digest))};"
    assert expected in Seen("six", six, environment=BgpEnvironment(router_id="hash")).text
    assert expected in Seen("six", six).text
    assert "router id 1.2.3.4;" in Seen("a", A, environment=BgpEnvironment(router_id="1.2.3.4")).text
    with pytest.raises(ConfigError, match=r'CALICO_ROUTER_ID: "me" is neither'):
        Seen("a", A, environment=BgpEnvironment(router_id="me"))


# --- what is announced, and what is programmed ------------------------------------------------------------------------


def test_6_a_pool_that_is_not_exported() -> None:
    seen = Seen("a", A, B, pool(disableBGPExport=True))
    assert "net ~ [ 192.168.0.0/16+ ] then reject" in seen.part("function announce4")
    assert "192.168" not in seen.part("filter to_kernel4")


def test_7_a_borrowed_address_is_announced_by_the_node_that_has_it() -> None:
    """By way of the pool: it is in no block of A's."""
    announce = Seen("a", A, B).part("function announce4")
    assert announce.index("192.168.1.0/26+") < announce.index("192.168.0.0/16+ ] then accept")


def test_8_an_urgent_route_leaves_its_block() -> None:
    seen = Seen("a", A, B, bgp(ipv4NormalRoutePriority=2000))
    assert "define NORMAL4 = 2000;" in seen.text
    assert "if krt_metric < NORMAL4 then accept;" in seen.part("function announce4")
    assert "bgp_local_pref > TOP - NORMAL4 then preference = 200" in seen.part("function admit4")


@pytest.mark.parametrize(
    ("bird", "agent", "rejected"),
    [
        (None, None, True),  # situation 9
        ("Enabled", "Disabled", False),  # situation 10
        ("EnabledIPIPOnly", "EnabledNoEncapOnly", False),
        ("Disabled", "Enabled", True),
        ("Disabled", "Disabled", True),  # situation 12: nobody writes them
    ],
)
def test_9_10_12_who_routes_a_pool_of_ipip(bird: str | None, agent: str | None, rejected: bool) -> None:
    said = ({"programClusterRoutes": bird} if bird else {}), ({"programClusterRoutes": agent} if agent else {})
    seen = Seen("a", A, B, pool(ipipMode="Always"), bgp(**said[0]), felix(**said[1]))
    assert ("net ~ [ 192.168.0.0/16+ ] then reject" in seen.part("filter to_kernel4")) is rejected
    tunnelled = 'onlink = true; ifname = "tunl0"; gw = bgp_next_hop;' in seen.part("function admit4")
    assert tunnelled is not rejected
    assert seen.blackholes == {"192.168.1.0/26"}  # announced in any case


def test_11_ipip_between_subnets_only() -> None:
    seen = Seen("a", A, B, pool(ipipMode="CrossSubnet"), bgp(programClusterRoutes="Enabled"))
    assert "net ~ [ 192.168.0.0/16+ ] && !(bgp_next_hop ~ 10.0.0.0/24) then {" in seen.part("function admit4")


def test_a_vxlan_pool_is_never_bird_s() -> None:
    seen = Seen("a", A, B, pool(vxlanMode="Always"), bgp(programClusterRoutes="Enabled"))
    assert "net ~ [ 192.168.0.0/16+ ] then reject" in seen.part("filter to_kernel4")
    assert "tunl0" not in seen.part("function admit4")


def test_a_claim_that_is_not_confirmed_is_announced_by_nobody() -> None:
    seen = Seen("a", A, block("a", "192.168.5.0/26", "pending"), block("a", "192.168.6.0/26", "pendingDeletion"))
    assert seen.blackholes == {"192.168.1.0/26"}


# --- communities, filters ---------------------------------------------------------------------------------------------


def test_20_communities_on_what_is_announced() -> None:
    said = bgp(
        communities=[{"name": "cust", "value": "100:6532"}],
        prefixAdvertisements=[{"cidr": "192.168.0.0/16", "communities": ["cust", "100:555:107"]}],
    )
    announce = Seen("a", A, B, said).part("function announce4")
    assert "net ~ [ 192.168.0.0/16+ ] then {\n    bgp_community.add((100, 6532));" in announce
    assert "bgp_large_community.add((100, 555, 107));" in announce
    own = bgp("node.a", prefixAdvertisements=[{"cidr": "192.168.1.0/26", "communities": ["1:2"]}])
    assert "(100, 6532)" not in Seen("a", A, B, said, own).text
    assert "(100, 6532)" in Seen("b", A, B, said, own).text


def rule(action: str = "Reject", **conditions: Any) -> dict[str, Any]:
    return {"action": action, **conditions}


def filtered(name: str = "rack", **lists: Any) -> BGPFilter:
    made: BGPFilter = named(BGPFilter, name, spec=lists)
    return made


def test_27_what_a_filter_rejects_is_not_taken_in() -> None:
    ten = rule(cidr="10.0.0.0/8", matchOperator="In")
    seen = Seen("a", A, B, peer(**TOR, filters=["rack"]), filtered(importV4=[ten]))
    assert "if net ~ 10.0.0.0/8 then reject;" in seen.part("function 'bgp_rack_importFilterV4'")
    assert "import filter { 'bgp_rack_importFilterV4'(false); admit4(); };" in seen.sessions["Global_10_0_0_9"]
    assert "export filter to_ebgp4;" in seen.sessions["Global_10_0_0_9"]
    assert "bgp_rack" not in seen.sessions["Mesh_10_0_0_2"]


def test_28_long_names_of_filters() -> None:
    names = ["f" * 80, "f" * 79 + "g"]
    filters = (filtered(name, exportV4=[rule()]) for name in names)
    seen = Seen("a", A, peer(**TOR, filters=names), *filters)
    symbols = re.findall(r"^function '(bgp_f\S+)'", seen.text, re.MULTILINE)
    digest = hashlib.sha256(names[0].encode()).hexdigest().upper()[:16]
    assert f"bgp_{'f' * 28}_{digest}_exportFilterV4" in symbols
    assert len(set(symbols)) == 2
    assert max(map(len, symbols)) <= 64


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (rule("Accept"), "accept;"),
        (rule(cidr="10.0.0.0/8", matchOperator="Equal"), "if net = 10.0.0.0/8 then reject;"),
        (rule(cidr="10.0.0.0/8", matchOperator="NotEqual"), "if net != 10.0.0.0/8 then reject;"),
        (rule(cidr="10.0.0.0/8", matchOperator="NotIn"), "if net !~ 10.0.0.0/8 then reject;"),
        (
            rule(cidr="10.0.0.0/8", matchOperator="In", prefixLength={"min": 4, "max": 24}),
            "if net ~ [ 10.0.0.0/8{8,24} ] then reject;",
        ),
        (
            rule(cidr="10.0.0.0/8", matchOperator="NotIn", prefixLength={"min": 16}),
            "if net !~ [ 10.0.0.0/8{16,32} ] then reject;",
        ),
        (rule(source="RemotePeers"), "if source = RTS_BGP then reject;"),
        (rule(interface="eth*"), 'if defined(ifname) && ifname ~ "eth*" then reject;'),
        (rule(peerType="eBGP"), "if !same_as then reject;"),
        (rule(peerType="iBGP"), "if same_as then reject;"),
        (rule(communities={"values": ["1:2"]}), "if (1, 2) ~ bgp_community then reject;"),
        (rule(communities={"values": ["1:2:3"]}), "if (1, 2, 3) ~ bgp_large_community then reject;"),
        (rule(asPathPrefix=[65000, "1.1"]), "if bgp_path ~ [= 65000 65537 * =] then reject;"),
        (rule(priority=512), "if defined(bgp_local_pref) && bgp_local_pref = TOP - 512 then reject;"),
        (
            rule("Accept", operations=[{"addCommunity": {"value": "1:2"}}, {"setPriority": {"value": 512}}]),
            "{ bgp_community.add((1, 2)); bgp_local_pref = TOP - 512; accept; }",
        ),
        (
            rule("Accept", source="RemotePeers", operations=[{"prependASPath": {"prefix": [1, 2]}}]),
            "if source = RTS_BGP then { bgp_path.prepend(2); bgp_path.prepend(1); accept; }",
        ),
    ],
)
def test_every_condition_and_operation_of_a_filter(given: dict[str, Any], line: str) -> None:
    seen = Seen("a", A, peer(**TOR, filters=["rack"]), filtered(exportV4=[given], importV4=[given]))
    assert f"\n  {line}" in seen.part("function 'bgp_rack_exportFilterV4'")
    taken = line.replace("accept;", "admit4();")  # the way of all that is taken in
    assert f"\n  {taken}" in seen.part("function 'bgp_rack_importFilterV4'")


def test_a_filter_is_of_its_family_and_in_the_order_of_the_peer() -> None:
    six = peer("six", peerIP="fd00::9", asNumber=64512, filters=["two", "one"])
    dual = node("a", 1, ipv6Address="fd00::1/64")
    one, two = filtered("one", exportV6=[rule()], importV4=[rule()]), filtered("two", exportV6=[rule("Accept")])
    seen = Seen("a", dual, six, one, two)
    assert "'bgp_two_exportFilterV6'(true); 'bgp_one_exportFilterV6'(true); announce6(true);" in seen.text
    assert "V4" not in seen.text


def test_a_filter_that_is_not_there_stops_nothing_else() -> None:
    seen = Seen("a", A, B, peer(**TOR, filters=["gone"]))
    assert "export filter to_ebgp4;" in seen.sessions["Global_10_0_0_9"]
    assert list(seen.cluster.problems) == ["filter gone of BGPPeer peer"]
    seen.put(filtered("gone", exportV4=[rule()]))
    assert seen.cluster.state()
    assert seen.cluster.problems == {}
    assert "'bgp_gone_exportFilterV4'(false);" in seen.sessions["Global_10_0_0_9"]


# --- workloads --------------------------------------------------------------------------------------------------------


def endpoint(name: str, where: str = "a", labels: dict[str, str] | None = None, profile: str = "") -> WorkloadEndpoint:
    spec = {
        "node": where,
        "orchestrator": "k8s",
        "pod": name,
        "endpoint": "eth0",
        "interfaceName": f"cali{name}",
        "ipNetworks": [f"192.168.1.{len(name)}/32"],
        "profiles": [profile] if profile else [],
    }
    made: WorkloadEndpoint = named(
        WorkloadEndpoint, f"{where}-k8s-{name}-eth0", "default", labels=labels or {}, spec=spec
    )
    return made


def test_workloads_of_this_node_are_peers() -> None:
    router = {"role": "router"}
    seen = Seen(
        "a",
        A,
        B,
        peer(localWorkloadSelector="role == 'router'", asNumber=65010, filters=["rack"]),
        filtered(importV4=[rule()]),
        bgp(localWorkloadPeeringIPV4="169.254.7.7"),
        endpoint("r", labels=router),
        endpoint("web"),
        endpoint("far", "b", router),
    )
    assert seen.names == {"Mesh_10_0_0_2", "Local_Workload_192_168_1_1"}
    session = seen.sessions["Local_Workload_192_168_1_1"]
    assert "local as 64512;\n  neighbor 192.168.1.1 as 65010;" in session
    assert "passive on;" in session
    assert "'bgp_rack_importFilterV4'(false)" in session
    routing = seen.cluster.state().routing
    assert routing is not None
    assert (routing.workload_interfaces, [str(ip) for ip in routing.workload_ips]) == (("calir",), ["169.254.7.7"])
    state = seen.cluster.state()
    to_host = NftRenderer().render(state).chains["workload-to-host"].rules
    [dial] = [rule for rule in to_host if "169.254.7.7" in rule]
    assert dial.startswith('iifname { "calir" } ip daddr 169.254.7.7 tcp dport 179 counter accept')
    assert to_host.index("jump from-workload") < to_host.index(dial) < len(to_host) - 1
    seen.put(endpoint("r"))  # it loses the label
    assert seen.names == {"Mesh_10_0_0_2"}
    assert "169.254.7.7" not in str(NftRenderer().render(seen.cluster.state()).chains)


def test_29_listening_on_one_address_and_port() -> None:
    said = bgp(bindMode="NodeIP", listenPort=177, localWorkloadPeeringIPV4="169.254.7.7")
    seen = Seen("a", A, B, said, peer(localWorkloadSelector="all()", asNumber=65010), endpoint("r"))
    assert "strict bind on;" in seen.text
    assert "local 10.0.0.1 port 177 as 64512;\n  neighbor 10.0.0.2 port 177 as" in seen.sessions["Mesh_10_0_0_2"]
    # Workloads dial the address that is on their interface.
    assert "local 169.254.7.7 port 177" in seen.sessions["Local_Workload_192_168_1_1"]


# --- what costs nothing -----------------------------------------------------------------------------------------------


def test_what_concerns_no_session_leaves_them_as_they_are() -> None:
    seen = Seen("a", A, B, bgp(serviceExternalIPs=nets("80.15.0.0/24")), endpoint("r"))
    before = seen.cluster.routing()
    seen.put(service("quiet"), slice_("a", of="quiet"), endpoint("web"), B, secret(tor="x"), pool("10.5.0.0/16"))
    assert seen.cluster.routing() is before
    seen.put(service(externalIPs=["80.15.0.7"], externalTrafficPolicy="Local"), slice_("a"))
    after = seen.cluster.routing()
    assert before is not None
    assert after is not None
    assert after is not before
    assert after.peers is before.peers
