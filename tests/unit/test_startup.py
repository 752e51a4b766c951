"""A node's start on values: its environment, what becomes of its Node, first pools, default objects, health.

Numbers are Calico's situations.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from tortie.agent import startup
from tortie.agent.addresses import NodeAddresses
from tortie.agent.booleans import boolean
from tortie.agent.config import AgentConfig
from tortie.agent.environment import PREFIXES_WITHOUT_EFFECT, WITHOUT_EFFECT, Environment, read_environment
from tortie.agent.felix_variables import felix_settings
from tortie.agent.registration import (
    Finding,
    StartUpError,
    addresses,
    conflict_with,
    finding,
    is_news,
    registered,
    without,
)
from tortie.base.addr import parse_ip, parse_net
from tortie.base.errors import ConfigError, Conflict
from tortie.bgp.sessions import router_id
from tortie.calc.admission import bootstrap
from tortie.calc.default_pools import first_pool
from tortie.calc.node_addresses import Family, Link, Sight, Told
from tortie.calc.node_health import BIRD, BIRD6, CHECKS, FELIX, Check, bird_problem, reason
from tortie.calc.settings import SettingsInputs
from tortie.model.bgp import BGPConfiguration
from tortie.model.ipam import IPAMConfig, IPPool
from tortie.model.meta import Metadata
from tortie.model.node import (
    ClusterInformation,
    FelixConfiguration,
    FelixConfigurationSpec,
    Node,
    NodeInterface,
    OrchRef,
)
from tortie.store.memory import MemoryStore

NODE = "node1"
RANDOM = bytes(range(1, 6))


def pool_of(variables: Mapping[str, str], version: int = 4, *, here: str = "", kubeadm: str = "") -> IPPool:
    wish = next(one for one in read_environment(variables).pools if one.version == version)
    nets = tuple(parse_net(part) for part in kubeadm.split(",") if part)
    return first_pool(wish, [ip_interface(one) for one in here.split()], nets, RANDOM)


# --- variables ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["false", "0", "no", "n", "f", "FALSE", "No"])
def test_no(text: str) -> None:
    assert not boolean(text, default=True)


@pytest.mark.parametrize("text", ["true", "1", "yes", "maybe"])
def test_yes(text: str) -> None:
    assert boolean(text)
    assert (boolean(""), boolean("", default=True)) == (False, True)


def test_environment_without_variables() -> None:
    found = read_environment({"PATH": "/bin", "IP": " "})
    assert found == Environment()
    assert (found.poll, found.check_conflicts, found.backend) == (60.0, True, "bird")


def test_everything_that_is_said_is_read() -> None:
    found = read_environment(
        {
            "NODENAME": "n1", "CALICO_NODENAME_FILE": "/run/nodename", "HOSTNAME": "h", "IP": "autodetect",
            "IP6": "none",
            "IP_AUTODETECTION_METHOD": "interface=eth.*", "IP6_AUTODETECTION_METHOD": "cidr=fd00::/8",
            "AUTODETECT_POLL_INTERVAL": "30", "DISABLE_NODE_IP_CHECK": "true", "AS": "64999",
            "CALICO_ROUTER_ID": "hash",
            "CALICO_NETWORKING_BACKEND": "vxlan", "CALICO_K8S_NODE_REF": "k8s-1", "CLUSTER_TYPE": "k8s,bgp",
            "NAMESPACE": "calico-system", "CALICO_ADVERTISE_CLUSTER_IPS": "10.96.0.0/12,fd00:96::/108",
        }
    )  # fmt: skip
    assert (found.node, found.nodename_file, found.hostname) == ("n1", Path("/run/nodename"), "h")
    assert (found.ipv4.address, found.ipv4.method.patterns) == ("autodetect", ("eth.*",))
    assert (found.ipv6.address, found.ipv6.method.nets) == ("none", (parse_net("fd00::/8"),))
    assert (found.poll, found.check_conflicts, found.as_number) == (30.0, False, 64999)
    assert (found.backend, found.kubernetes_node, found.cluster_type) == ("vxlan", "k8s-1", "k8s,bgp")
    assert (found.bgp.router_id, found.bgp.secrets, found.bgp.kubernetes_node) == ("hash", "calico-system", "k8s-1")
    assert found.bgp.service_ips == (parse_net("10.96.0.0/12"), parse_net("fd00:96::/108"))
    assert found.notes == ()


def test_what_has_no_effect_is_named_in_one_line_each() -> None:
    notes = read_environment(
        {"USE_POD_CIDR": "true", "CONFD_TYPHAADDR": "x", "FELIX_NONSENSE": "1", "CNI_TOKEN_REFRESH_INTERVAL": "y"}
    ).notes
    assert len(notes) == 4
    assert all(word in " ".join(notes) for word in ("USE_POD_CIDR", "CONFD_TYPHAADDR", "FELIX_NONSENSE", "CNI_TOKEN"))


def test_environment_of_a_usual_manifest() -> None:
    """Every variable of the kind that people have in a DaemonSet, with its usual value."""
    found = read_environment(
        {
            "DATASTORE_TYPE": "kubernetes", "WAIT_FOR_DATASTORE": "true", "NODENAME": "n1",
            "CALICO_NETWORKING_BACKEND": "bird", "CLUSTER_TYPE": "k8s,bgp", "IP": "autodetect",
            "CALICO_IPV4POOL_IPIP": "Always", "CALICO_IPV4POOL_VXLAN": "Never", "CALICO_IPV6POOL_VXLAN": "Never",
            "FELIX_IPINIPMTU": "0", "FELIX_VXLANMTU": "0", "FELIX_WIREGUARDMTU": "0",
            "CALICO_DISABLE_FILE_LOGGING": "true", "FELIX_DEFAULTENDPOINTTOHOSTACTION": "ACCEPT",
            "FELIX_IPV6SUPPORT": "false", "FELIX_HEALTHENABLED": "true",
        }
    )  # fmt: skip
    assert (found.ipv4.address, found.pools[0].ipip, len(found.pools)) == ("autodetect", "Always", 1)
    assert (found.felix.ipip_mtu, found.felix.default_endpoint_to_host_action) == (0, "Accept")
    assert [note.partition(" ")[0] for note in found.notes] == [
        "CALICO_DISABLE_FILE_LOGGING",
        "FELIX_...:",
    ]


def test_page_has_every_variable() -> None:
    """Of Calico's, and all that we say have no effect."""
    page = (Path(__file__).parents[2] / "docs/reference/environment.md").read_text()
    of_pools = ("CIDR", "BLOCK_SIZE", "VXLAN", "NAT_OUTGOING", "NODE_SELECTOR", "DISABLE_BGP_EXPORT")
    names = {f"CALICO_IPV{version}POOL_{name}" for version in (4, 6) for name in of_pools}
    names |= {"CALICO_IPV4POOL_IPIP", "NODENAME", "CALICO_NODENAME_FILE", "HOSTNAME", "IP", "IP6", "AS", "CLUSTER_TYPE"}
    names |= {
        "IP_AUTODETECTION_METHOD",
        "IP6_AUTODETECTION_METHOD",
        "AUTODETECT_POLL_INTERVAL",
        "DISABLE_NODE_IP_CHECK",
    }
    names |= {"CALICO_ROUTER_ID", "CALICO_NETWORKING_BACKEND", "CALICO_NETWORKING", "CALICO_K8S_NODE_REF"}
    names |= {"NO_DEFAULT_POOLS", "CALICO_ADVERTISE_CLUSTER_IPS", "NAMESPACE", "FELIX_<FIELD>", "WAIT_FOR_DATASTORE"}
    names |= {*WITHOUT_EFFECT, *(f"{prefix}*" for prefix in PREFIXES_WITHOUT_EFFECT)}
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_ip_check_is_switched_off_by_one_word_only() -> None:
    """Not by the other words for yes."""
    assert read_environment({"DISABLE_NODE_IP_CHECK": "TRUE"}).check_conflicts
    assert read_environment({"CALICO_NETWORKING": "false"}).backend == "none"


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("IP", "10.0.0.300"),
        ("IP6", "10.0.0.1/24"),
        ("IP_AUTODETECTION_METHOD", "second-found"),
        ("IP6_AUTODETECTION_METHOD", "interface=["),
        ("AUTODETECT_POLL_INTERVAL", "soon"),
        ("AUTODETECT_POLL_INTERVAL", "0s"),
        ("AS", "65000x"),
        ("CALICO_ROUTER_ID", "node"),
        ("CALICO_NETWORKING_BACKEND", "windows-bgp"),
        ("CALICO_IPV4POOL_CIDR", "10.0.0.1/8"),
        ("CALICO_IPV4POOL_IPIP", "sometimes"),
        ("CALICO_IPV6POOL_BLOCK_SIZE", "64"),
        ("CALICO_IPV4POOL_NODE_SELECTOR", "rack=1"),
        ("CALICO_ADVERTISE_CLUSTER_IPS", "10.96.0.0/33"),
        ("FELIX_VXLANMTU", "large"),
        ("FELIX_DEFAULTENDPOINTTOHOSTACTION", "reject"),
        ("FELIX_FAILSAFEINBOUNDHOSTPORTS", "ssh"),
    ],
)
def test_bad_value_is_one_line_that_names_the_variable(variable: str, text: str) -> None:
    with pytest.raises(StartUpError) as caught:
        startup.told(AgentConfig(NODE, "memory:"), {variable: text})
    assert str(caught.value).startswith(f"{variable}: ")
    assert "\n" not in str(caught.value)


def test_options_win_over_variables() -> None:
    variables = {"NODENAME": "other", "IP": "192.0.2.9/24", "CALICO_NETWORKING_BACKEND": "none"}
    config, environment = startup.told(AgentConfig(NODE, "memory:", ipv4="192.0.2.1/24"), variables)
    assert (config.node, config.bgp, environment.ipv4.address) == (NODE, False, "192.0.2.1/24")
    with pytest.raises(ConfigError, match=r"^--ipv4: "):
        startup.told(AgentConfig(NODE, "memory:", ipv4="192.0.2.300"), {})


def test_name_of_the_node(tmp_path: Path) -> None:
    def name(**variables: str) -> str:
        return startup.told(AgentConfig("", "memory:", lib_dir=tmp_path), variables)[0].node

    assert name(HOSTNAME="Web-1") == "web-1"
    (tmp_path / "nodename").write_text("noted\n")
    assert name(HOSTNAME="Web-1") == "noted"
    assert name(NODENAME="told", HOSTNAME="Web-1") == "told"
    (tmp_path / "elsewhere").write_text("there")
    assert name(CALICO_NODENAME_FILE=str(tmp_path / "elsewhere")) == "there"


# --- FELIX_... ------------------------------------------------------------------------------------------------------


def test_felix_variables_are_fields_in_capitals() -> None:
    spec, unknown = felix_settings(
        {
            "FELIX_IPINIPMTU": "1440", "FELIX_VXLANMTUV6": "1400", "FELIX_HEALTHPORT": "9098",
            "FELIX_IPV6SUPPORT": "no", "felix_defaultendpointtohostaction": "ACCEPT", "FELIX_WIREGUARDKEEPALIVE": "25",
            "FELIX_ROUTEREFRESHINTERVAL": "60", "FELIX_FAILSAFEINBOUNDHOSTPORTS": "tcp:22,udp:10.0.0.0/8:53,179",
            "FELIX_FAILSAFEOUTBOUNDHOSTPORTS": "none", "FELIX_EXTERNALNODESCIDRLIST": "10.1.0.0/16, 10.2.0.0/16",
            "FELIX_TYPHAADDR": "t:5473", "FELIX_WHATEVER": "1", "FELIX_LOGPREFIX": "",
        }
    )  # fmt: skip
    assert (spec.ipip_mtu, spec.vxlan_mtu_v6, spec.health_port, spec.ipv6_support) == (1440, 1400, 9098, False)
    assert (spec.default_endpoint_to_host_action, spec.route_refresh_interval) == ("Accept", "60s")
    assert [(one.protocol, one.net, one.port) for one in spec.failsafe_inbound_host_ports or ()] == [
        ("tcp", "", 22),
        ("udp", "10.0.0.0/8", 53),
        ("tcp", "", 179),
    ]
    assert (spec.failsafe_outbound_host_ports, spec.wireguard_keep_alive) == ((), 25)
    assert list(spec.external_nodes_list) == ["10.1.0.0/16", "10.2.0.0/16"]
    assert unknown == ("FELIX_WHATEVER",)


def test_environment_beats_every_configuration() -> None:
    inputs = SettingsInputs()
    for name, action in (("default", "Drop"), (f"node.{NODE}", "Return")):
        spec = FelixConfigurationSpec(default_endpoint_to_host_action=action, vxlan_mtu=1400)
        inputs.on_configuration(FelixConfiguration(metadata=Metadata(name=name), spec=spec), "", name)
    inputs.told(felix_settings({"FELIX_DEFAULTENDPOINTTOHOSTACTION": "Accept"})[0])
    settings = inputs.settings(NODE, {})
    assert (settings.endpoint_to_host, settings.vxlan_mtu[4]) == ("Accept", 1400)


# --- the Node -----------------------------------------------------------------------------------------------------


MACHINE = Sight((Link("eth0", 2, True, (ip_interface("10.0.0.1/24"), ip_interface("fd00::1/64")), 1500),))
BLIND = Sight((Link("lo", 1, True, (ip_interface("127.0.0.1/8"),), 65536),))
AUTO, UNSET = Told("autodetect"), Told()


def node(name: str = NODE, ipv4: str = "", ipv6: str = "") -> Node:
    return registered(None, name, ipv4, ipv6)


def found(old: Node | None, sight: Sight = MACHINE, *, ipv4: Told = UNSET, ipv6: Told = UNSET) -> Finding:
    return finding((ipv4, ipv6), old, (sight, sight))


def test_first_start_detects_ipv4_alone() -> None:
    first = found(None)
    assert (first.ipv4.address, first.ipv6.address, first.failure, first.interfaces) == ("10.0.0.1/24", "", "", None)
    assert is_news(first, None)
    assert not is_news(first, node(ipv4="10.0.0.1/24"))


def test_interfaces_are_noted_when_an_address_is_told() -> None:
    noted = found(None, ipv6=AUTO).interfaces
    assert noted == (NodeInterface(name="eth0", addresses=("10.0.0.1/24", "fd00::1/64")),)
    assert is_news(
        found(node(ipv4="10.0.0.1/24", ipv6="fd00::1/64"), ipv6=AUTO), node(ipv4="10.0.0.1/24", ipv6="fd00::1/64")
    )
    new = registered(node(), NODE, "10.0.0.1/24", "", interfaces=noted)
    assert new.spec.interfaces == noted
    assert registered(new, NODE, "", "").spec.interfaces == noted


def test_failure_of_one_family_is_the_node_s() -> None:
    """Trap 12: what is cleared then is every family that is autodetected."""
    old = node(ipv4="10.0.0.1/24")
    failed = found(old, BLIND, ipv4=AUTO, ipv6=AUTO)
    assert failed.ipv4.source == "kept"
    assert failed.failure.startswith("no IPv6 address is found")
    assert addresses(without(old, (4, 6))) == ("", "")
    assert without(old, (4, 6)).spec.bgp is None
    assert addresses(without(node(ipv4="10.0.0.1/24", ipv6="fd00::1/64"), (6,))) == ("10.0.0.1/24", "")


def test_no_address_at_all() -> None:
    text = "no IPv4 or IPv6 addresses configured or detected, required for Calico networking"
    assert found(None, BLIND, ipv4=Told("none")).failure == text
    assert found(None, BLIND, ipv4=Told("none"), ipv6=Told("fd00::1/64")).failure == ""


def test_situation_37_another_node_has_the_address() -> None:
    others = [node("node2", "10.0.0.1/16"), node("node3", "10.0.0.3/24", "fd00::1/64")]
    assert conflict_with(found(None), others) == (4, "node2")
    assert conflict_with(Finding(Family(4, "10.0.0.9/24"), Family(6, "fd00::1/64")), others) == (6, "node3")


def test_as_number_and_name_in_kubernetes() -> None:
    made = registered(None, NODE, "10.0.0.1/24", "", as_number=64999, kubernetes_node="k8s-1")
    assert made.spec.bgp is not None
    assert made.spec.bgp.as_number == 64999
    assert made.spec.orch_refs == (OrchRef(node_name="k8s-1", orchestrator="k8s"),)
    again = registered(made, NODE, "", "")
    assert again == made
    assert registered(made, NODE, "", "", kubernetes_node="k8s-2").spec.orch_refs[0].node_name == "k8s-2"


def test_situation_34_router_id_from_the_name() -> None:
    assert router_id(None, NODE, read_environment({"CALICO_ROUTER_ID": "hash"}).bgp.router_id) != parse_ip("0.0.0.0")
    with pytest.raises(ConfigError, match="no IPv4 address to be its router id"):
        router_id(None, NODE, "")


# --- first pools --------------------------------------------------------------------------------------------------


def test_situation_38_pool_from_variables() -> None:
    spec = pool_of({"CALICO_IPV4POOL_CIDR": "10.40.0.0/16", "CALICO_IPV4POOL_IPIP": "cross-subnet"}).spec
    assert (spec.cidr, spec.ipip_mode, spec.vxlan_mode, spec.block_size) == ("10.40.0.0/16", "CrossSubnet", "Never", 26)
    assert (spec.nat_outgoing, spec.node_selector) == (True, "all()")


def test_situation_39_pool_of_kubeadm() -> None:
    kubeadm = "10.244.0.0/16,fd00:244::/56"
    assert pool_of({}, kubeadm=kubeadm).spec.cidr == "10.244.0.0/16"
    assert pool_of({}, 6, kubeadm=kubeadm).spec.cidr == "fd00:244::/56"
    assert pool_of({"CALICO_IPV4POOL_CIDR": "10.40.0.0/16"}, kubeadm=kubeadm).spec.cidr == "10.40.0.0/16"


def test_situation_40_first_free_pool() -> None:
    assert pool_of({}).spec.cidr == "192.168.0.0/16"
    assert pool_of({}, here="192.168.1.5/24").spec.cidr == "172.16.0.0/16"
    assert pool_of({}, here="192.168.1.5/24 172.16.3.1/20 172.17.0.1/16").spec.cidr == "172.18.0.0/16"
    with pytest.raises(ConfigError, match="CALICO_IPV4POOL_CIDR"):
        pool_of({}, here="192.168.1.5/24 172.16.0.1/12")


def test_situation_41_no_pools_and_a_pool() -> None:
    with pytest.raises(ConfigError, match=r"^NO_DEFAULT_POOLS: .*CALICO_IPV4POOL_CIDR"):
        read_environment({"NO_DEFAULT_POOLS": "true", "CALICO_IPV4POOL_CIDR": "10.40.0.0/16"})
    assert read_environment({"NO_DEFAULT_POOLS": "true"}).pools == ()


def test_situation_42_block_size() -> None:
    with pytest.raises(ConfigError, match=r'^CALICO_IPV4POOL_BLOCK_SIZE: "33" is not a prefix length from 20 to 32'):
        read_environment({"CALICO_IPV4POOL_BLOCK_SIZE": "33"})
    with pytest.raises(ConfigError, match="a block of /26 is larger than the pool"):
        pool_of({"CALICO_IPV4POOL_CIDR": "10.40.0.0/28"})


def test_pool_of_ipv6_is_random_and_local() -> None:
    pool = pool_of({"CALICO_IPV6POOL_VXLAN": "Always", "CALICO_IPV6POOL_NAT_OUTGOING": "true"}, 6)
    assert (pool.name, pool.spec.cidr, pool.spec.block_size) == ("default-ipv6-ippool", "fd01:203:405::/48", 122)
    assert (pool.spec.vxlan_mode, pool.spec.nat_outgoing) == ("Always", True)
    assert pool_of({}, 6).spec.nat_outgoing is False
    assert [wish.version for wish in read_environment({"FELIX_IPV6SUPPORT": "false"}).pools] == [4]


def test_one_tunnel_for_a_pool() -> None:
    with pytest.raises(ConfigError, match=r"^CALICO_IPV4POOL_VXLAN: "):
        read_environment({"CALICO_IPV4POOL_IPIP": "Always", "CALICO_IPV4POOL_VXLAN": "Always"})
    with pytest.raises(ConfigError, match=r"^CALICO_IPV6POOL_IPIP: "):
        read_environment({"CALICO_IPV6POOL_IPIP": "Always"})


async def test_defaults_are_made_once_and_filled_in(tmp_path: Path) -> None:
    store = MemoryStore()
    for one in bootstrap("0" * 32):
        await store.create(one)
    mine = FelixConfiguration(
        metadata=Metadata(name="default"), spec=FelixConfigurationSpec(log_severity_screen="Debug")
    )
    await store.create(mine)
    config = AgentConfig(NODE, "memory:", lib_dir=tmp_path)
    told = {"CALICO_IPV4POOL_CIDR": "10.40.0.0/16", "CALICO_IPV6POOL_CIDR": "none", "CLUSTER_TYPE": "k8s,bgp"}
    environment = read_environment(told)
    looked = Looked()
    for _ in range(2):
        await asyncio.wait_for(startup.start_up(config, environment, store, looked), 10)  # type: ignore[arg-type]
    assert [pool.spec.cidr for pool in (await store.list(IPPool)).items] == ["10.40.0.0/16"]
    felix = (await store.get(FelixConfiguration, "default")).spec
    assert (felix.log_severity_screen, felix.reporting_interval) == ("Debug", "0s")
    assert (await store.get(IPAMConfig, "default")).spec.auto_allocate_blocks is True
    assert await store.get(BGPConfiguration, "default")
    assert (await store.get(ClusterInformation, "default")).spec.cluster_type == "tortie,k8s,bgp"
    assert (tmp_path / "nodename").read_text() == NODE
    assert looked.times == 2


class Losing(MemoryStore):
    """Somebody else is always faster."""

    tries = 0

    async def create(self, obj: Any) -> Any:
        self.tries += 1
        raise Conflict(f"{obj.title} has changed meanwhile")


async def test_what_cannot_be_written_now_is_not_tried_all_the_time(tmp_path: Path) -> None:
    """Nor while the ClusterInformation is gone that was there a moment ago."""
    store, environment = Losing(), read_environment({"CALICO_NETWORKING_BACKEND": "none"})
    registering = NodeAddresses(NODE, environment, store, lambda: None).start()
    defaults = startup._patiently("make the default objects", lambda: startup._make_defaults(environment, store))
    for work in (registering, defaults):
        store.tries = 0
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(work, 1)
        assert 1 <= store.tries < 50


class Looked:
    """A machine that has been looked at."""

    links: tuple[Link, ...] = MACHINE.links

    def __init__(self) -> None:
        self.times = 0

    async def start(self) -> None:
        self.times += 1


# --- health -------------------------------------------------------------------------------------------------------


def peers(*states: str, version: int = 4) -> list[dict[str, Any]]:
    prefix = "10.0.0." if version == 4 else "fd00::"
    return [{"name": f"Mesh_{i}", "ip": f"{prefix}{i}", "state": state} for i, state in enumerate(states, 1)]


UP, DOWN = "Established", "Active"
SICK = {"live": False, "ready": False}
AWAY = {"state": "not ready", "reason": "x"}


def test_situation_43_all_peers_count_first_and_one_later() -> None:
    three = peers(UP, UP, DOWN)
    assert bird_problem(three, False, 10, 30) == "BGP not established with 10.0.0.3"
    assert bird_problem(three, False, 60, 30) == ""
    assert bird_problem(peers(DOWN, DOWN), False, 60, 30) == "BGP not established with 10.0.0.1,10.0.0.2"
    assert bird_problem([], False, 10, 30) == ""
    assert bird_problem(peers(UP), True, 10, 30) == "graceful restart in progress"
    assert bird_problem(peers(UP), True, 60, 30) == ""
    assert bird_problem([{"name": "Local_Workload_1", "ip": "10.65.0.1", "state": DOWN}], False, 10, 30) == ""


def answer(**more: Any) -> dict[str, Any]:
    whole = {"felix": {"live": True, "ready": True}, "bird": {"state": "ready"}, "peers": peers(UP), "age": 10.0}
    return whole | more


@pytest.mark.parametrize(
    ("check", "given", "says"),
    [
        (Check(FELIX, False), {"felix": SICK}, "felix is not ready: readiness probe reporting 503"),
        (Check(FELIX, True), {"felix": SICK}, "felix is not live: liveness probe reporting 503"),
        (Check(BIRD, False), {"peers": peers(UP, DOWN)}, "BIRD is not ready: BGP not established with 10.0.0.2"),
        (Check(BIRD6, False), {"peers": peers(UP, DOWN)}, ""),
        (
            Check(BIRD6, False),
            {"peers": peers(DOWN, version=6)},
            "BIRD6 is not ready: BGP not established with fd00::1",
        ),
        (Check(BIRD, True), {"bird": AWAY}, "BIRD is not live: Error querying BIRD: x"),
        (Check(BIRD, True), {"bird": {"state": "none"}}, "BIRD is not live: this node runs without BGP"),
    ],
)
def test_words_of_a_probe(check: Check, given: dict[str, Any], says: str) -> None:
    assert reason([check], answer(**given), 30) == says
    assert reason(CHECKS, answer(), 30) == ""
