"""Host endpoints on values: which interface is whose, and what each class of policy says.

The host is that of `host_world`. The numbers P.. are those of the catalogue of Calico's packet-level situations.
`tests/netns/test_host_packets.py` asks the kernel the same.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from host_world import (
    AOF,
    CLOSED_A,
    ETH0,
    EVERY,
    ICMP6,
    INTERFACES,
    OPEN,
    PLACES,
    PRE,
    RAW,
    UDP,
    World,
    document,
    felix,
    gnp,
    hep,
    wep,
)

from tortie.base.addr import parse_ip, parse_net
from tortie.base.errors import ConfigError
from tortie.calc.hosts import asks_interfaces, excluded, resolve
from tortie.calc.state import DesiredState
from tortie.calc.unserved import unserved
from tortie.model.document import parse
from tortie.policy.verdict import Failsafe, Failsafes, HostPolicy, Verdict
from tortie.render.nft import NftRenderer

BOTH = pytest.mark.parametrize("version", [4, 6])


def is_denied(said: Verdict | None, rule: str) -> bool:
    assert said is not None
    return (said.allowed, said.rule) == (False, rule)


def is_allowed(said: Verdict | None, rule: str) -> bool:
    assert said is not None
    return (said.allowed, said.rule) == (True, rule)


DEFAULT_IN = "profile/projectcalico-default-allow|ingress|0"
KNS = "profile/kns.red|ingress|0"


@BOTH
def test_p77_no_host_endpoint_no_verdict(version: int) -> None:
    world = World((gnp("g", "types: [Ingress], ingress: [{action: Deny}]"),), version)
    assert world.into(world.packet("X", "n1", 80)) is None
    assert world.hosts == {}


@BOTH
def test_p78_neither_policy_nor_profile(version: int) -> None:
    world = World((ETH0,), version)
    assert is_allowed(world.into(world.packet("X", "n1", 22)), "failsafe|ingress|port")
    assert is_denied(world.into(world.packet("X", "n1", 80)), "hep/uplink|normal|ingress|no-profile")
    assert is_allowed(world.out_of(world.packet("n1", "X", 53, UDP)), "failsafe|egress|port")
    assert is_denied(world.out_of(world.packet("n1", "X", 443)), "hep/uplink|normal|egress|no-profile")


@BOTH
def test_p79_forwarded_without_forward_policy(version: int) -> None:
    world = World((ETH0,), version)
    said = world.ask("eth0", "forward", "egress", world.packet("a", "X", 443))
    assert is_allowed(said, "")
    assert "no policy of host endpoint uplink" in said.reason  # type: ignore[union-attr]


@BOTH
def test_p80_a_profile(version: int) -> None:
    world = World((OPEN,), version)
    assert is_allowed(world.into(world.packet("X", "n1", 80)), DEFAULT_IN)
    gone = World((hep("uplink", "interfaceName: eth0, profiles: [nobody, projectcalico-default-allow]"),), version)
    assert is_denied(gone.into(gone.packet("X", "n1", 80)), "hep/uplink|normal|ingress|no-profile")


@BOTH
def test_p81_a_policy_isolates(version: int) -> None:
    rules = "types: [Ingress], ingress: [{action: Allow, protocol: TCP, destination: {ports: [443]}}]"
    world = World((OPEN, gnp("g", rules)), version)
    assert is_denied(world.into(world.packet("X", "n1", 80)), "hep/uplink|normal|ingress|tier/default")
    assert is_allowed(world.into(world.packet("X", "n1", 443)), "gnp/g|ingress|0")


@BOTH
def test_p82_normal_policy_is_not_about_forwarding(version: int) -> None:
    world = World((ETH0, gnp("g", "types: [Ingress], ingress: [{action: Deny}]")), version)
    assert is_allowed(world.to_pod(world.packet("X", "a", 8080)), KNS)
    assert is_denied(world.into(world.packet("X", "n1", 80)), "gnp/g|ingress|0")


NODE_PORT = 30080


def ports(action: str, *numbers: int, end: str = "destination") -> str:
    return f"{{action: {action}, protocol: TCP, {end}: {{ports: [{', '.join(map(str, numbers))}]}}}}"


def test_p83_forward_policy_sees_what_is_translated() -> None:
    world = World((ETH0, gnp("g", f"{AOF}, ingress: [{ports('Deny', 8080)}]")))
    said = world.to_pod(world.packet("X", "a", 8080), world.packet("X", "n1", NODE_PORT))
    assert is_denied(said, "gnp/g|ingress|0")


def test_p84_and_ends_in_its_tier_s_default() -> None:
    world = World((ETH0, gnp("g", f"{AOF}, ingress: [{ports('Allow', NODE_PORT)}]")))
    said = world.to_pod(world.packet("X", "a", 8080), world.packet("X", "n1", NODE_PORT))
    assert is_denied(said, "hep/uplink|forward|ingress|tier/default")


def test_p85_policy_before_translation() -> None:
    world = World((ETH0, gnp("g", f"{PRE}, ingress: [{ports('Deny', NODE_PORT)}]")))
    assert is_denied(world.to_pod(world.packet("X", "a", 8080), world.packet("X", "n1", NODE_PORT)), "gnp/g|ingress|0")


BEFORE_AND_FORWARD = (
    gnp("pre", f"{PRE}, ingress: [{ports('Allow', NODE_PORT)}]"),
    gnp("aof", f"{AOF}, types: [Ingress], ingress: [{{action: Deny}}]"),
)


def test_p86_allowed_before_translation_the_pod_s_policy_still_holds() -> None:
    world = World((ETH0, *BEFORE_AND_FORWARD, CLOSED_A))
    said = world.to_pod(world.packet("X", "a", 8080), world.packet("X", "n1", NODE_PORT))
    assert is_denied(said, "tier/default|cali00000000a|ingress")


def test_p87_and_forward_policy_is_not_asked() -> None:
    world = World((ETH0, *BEFORE_AND_FORWARD))
    assert is_allowed(world.to_pod(world.packet("X", "a", 8080), world.packet("X", "n1", NODE_PORT)), KNS)
    assert is_denied(world.to_pod(world.packet("X", "a", 8080)), "gnp/aof|ingress|0")


@BOTH
def test_p88_no_end_of_tier_before_translation(version: int) -> None:
    early = gnp("pre", f"{PRE}, ingress: [{ports('Deny', 81)}]")
    world = World((ETH0, early, gnp("g", f"ingress: [{ports('Allow', 80)}]")), version)
    assert is_allowed(world.into(world.packet("X", "n1", 80)), "gnp/g|ingress|0")
    assert is_denied(world.into(world.packet("X", "n1", 81)), "gnp/pre|ingress|0")


@BOTH
def test_p89_untracked_in_and_out(version: int) -> None:
    both = (
        gnp("in", f"{RAW}, ingress: [{ports('Allow', 9999)}]"),
        gnp("out", f"{RAW}, types: [Egress], egress: [{ports('Allow', 9999, end='source')}]"),
    )
    world = World((ETH0, *both), version)
    assert is_allowed(world.into(world.packet("X", "n1", 9999)), "gnp/in|ingress|0")
    assert is_allowed(world.out_of(world.packet("n1", "X", 33333, source_port=9999)), "gnp/out|egress|0")


@BOTH
def test_p90_untracked_in_alone(version: int) -> None:
    """Of the answer nothing is said before connection tracking, which then does not know it: see the packets' test."""
    world = World((ETH0, gnp("in", f"{RAW}, ingress: [{ports('Allow', 9999)}]")), version)
    answer = world.packet("n1", "X", 33333, source_port=9999)
    assert world.ask("eth0", "untracked", "egress", answer) is None


@BOTH
def test_p91_failsafes_first(version: int) -> None:
    closed = "types: [Ingress, Egress], ingress: [{action: Deny}], egress: [{action: Deny}]"
    world = World((ETH0, gnp("in", f"{RAW}, {closed}")), version)
    assert is_allowed(world.into(world.packet("X", "n1", 22)), "failsafe|ingress|port")
    assert is_denied(world.into(world.packet("X", "n1", 80)), "gnp/in|ingress|0")
    answer = world.packet("n1", "X", 33333, source_port=22)
    assert is_allowed(world.ask("eth0", "untracked", "egress", answer), "failsafe|egress|answer")
    neighbour = replace(world.packet("X", "n1", 0, ICMP6), icmp_type=135)
    assert is_allowed(world.into(neighbour), "failsafe|ingress|link")


@BOTH
def test_p92_pass_in_all_tiers_says_nothing(version: int) -> None:
    world = World((ETH0, gnp("g", f"{AOF}, types: [Ingress], ingress: [{{action: Pass}}]")), version)
    assert world.ask("eth0", "forward", "ingress", world.packet("X", "Z", 80)) is None
    assert is_allowed(world.to_pod(world.packet("X", "a", 8080)), KNS)


@BOTH
def test_p93_every_interface_is_pods_interfaces_too_for_what_is_forwarded(version: int) -> None:
    rules = f"{AOF}, types: [Ingress], ingress: [{ports('Deny', 5432)}, {{action: Allow}}]"
    world = World((EVERY, gnp("g", rules)), version)
    assert is_denied(world.ask("cali00000000a", "forward", "ingress", world.packet("a", "b", 5432)), "gnp/g|ingress|0")
    assert is_allowed(world.ask("cali00000000a", "forward", "ingress", world.packet("a", "b", 80)), "gnp/g|ingress|1")


@BOTH
def test_p94_untracked_policy_is_nothing_to_every_interface(version: int) -> None:
    open_to_all = hep("all", 'interfaceName: "*", profiles: [projectcalico-default-allow]')
    world = World((open_to_all, gnp("g", f"{RAW}, types: [Ingress], ingress: [{{action: Deny}}]")), version)
    assert is_allowed(world.into(world.packet("X", "n1", 80)), DEFAULT_IN)
    assert world.cluster.problems == {
        "doNotTrack on HostEndpoint all": "gnp/g has no effect where interfaceName is *; name the interface"
    }
    world.cluster.drop(type(parse(open_to_all)[0]), "", "all")
    world.cluster.state()
    assert world.cluster.problems == {}


@BOTH
def test_p95_the_specific_one_replaces_the_general_one(version: int) -> None:
    world = World((EVERY, OPEN), version)
    assert is_allowed(world.into(world.packet("X", "n1", 80)), DEFAULT_IN)
    assert is_denied(world.into(world.packet("Z", "n1", 80), "eth1"), "hep/all|normal|ingress|no-profile")


def test_p96_the_lowest_name_has_the_interface() -> None:
    ours = "{}, profiles: [projectcalico-default-allow]"
    for m, z in (
        ("interfaceName: eth0", "interfaceName: eth0"),
        ("expectedIPs: [198.51.100.1]", "interfaceName: eth0"),
        ("interfaceName: eth0", "expectedIPs: ['2001:db8:51::1']"),
    ):
        world = World((hep("z", z), hep("m", ours.format(m))))
        assert is_allowed(world.into(world.packet("X", "n1", 80)), DEFAULT_IN)
        assert [host.name for host in world.hosts.values() if host is not None] == ["m"]


@BOTH
def test_p97_loopback_too(version: int) -> None:
    world = World((EVERY,), version)
    to_itself = world.packet("lo", "lo", 80)
    assert is_denied(world.out_of(to_itself, "lo"), "hep/all|normal|egress|no-profile")
    spared = World((EVERY, document("FelixConfiguration", "default", "interfaceExclude: 'kube-ipvs0,lo'")), version)
    assert spared.out_of(to_itself, "lo") is None


@BOTH
def test_p98_egress_of_what_the_host_translates(version: int) -> None:
    nets = f"'{PLACES[version]['d']}'"
    rules = f"types: [Egress], egress: [{{action: Deny, destination: {{nets: [{nets}]}}}}, {{action: Allow}}]"
    world = World((EVERY, gnp("g", rules)), version)
    assert is_denied(world.out_of(world.packet("n1", "d", 8080)), "gnp/g|egress|0")
    chains = NftRenderer().render(world.state).chains
    # The output hook leaves it alone; behind the translation it meets the same chain.
    assert chains["host-output"].rules[0] == "ct status dnat accept"
    assert chains["host-postrouting"].rules[-1] == "ct status dnat goto th-any-interface-at-all"


@BOTH
def test_p111_the_classes_of_hosts_are_nothing_to_pods(version: int) -> None:
    everything = "types: [Ingress], ingress: [{action: Deny}]"
    policies = [gnp("pre", f"{PRE}, {everything}", "all()"), gnp("raw", f"{RAW}, {everything}", "all()")]
    world = World(policies, version)
    assert is_allowed(world.by_pod(world.packet("X", "a", 8080)), KNS)
    assert not world.state.policies.keys() & {policy for policy in world.state.policies if policy.kind == "gnp"}


# --- which interface is whose ----------------------------------------------------------------------------------------


def host(name: str, interface: str = "", *ips: str) -> HostPolicy:
    return HostPolicy(name, interface, tuple(map(parse_ip, ips)))


def names(*hosts: HostPolicy) -> dict[str, str]:
    return {where: one.name for where, one in resolve({one.name: one for one in hosts}, INTERFACES).items()}


def test_by_name_by_address_and_the_rest() -> None:
    assert names(host("a", "eth0"), host("b", "", "192.0.2.1"), host("c", "*")) == {"eth0": "a", "eth1": "b", "*": "c"}
    assert names(host("c", "*"), host("b", "*")) == {"*": "b"}
    assert names(host("a", "", "203.0.113.1")) == {}
    assert names(host("a", "eth7")) == {"eth7": "a"}  # it has its policy from its first packet on
    # An address counts only where there is no name.
    assert names(host("a", "eth0", "192.0.2.1")) == {"eth0": "a"}
    # One host endpoint may have two interfaces; nothing is merged.
    assert names(host("a", "", "192.0.2.1", "198.51.100.1"), host("b", "eth0")) == {"eth0": "a", "eth1": "a"}


def test_pods_interfaces_are_nobody_s() -> None:
    pods = {"cali00000000a": frozenset({parse_ip("10.0.0.1")})}
    assert resolve({"a": host("a", "", "10.0.0.1")}, pods) == {}


def test_what_is_excluded() -> None:
    assert excluded(("kube-ipvs0", "/^docker/", "/0$/"), ("docker0", "eth0", "eth1", "br-docker")) == {
        "kube-ipvs0", "docker0", "eth0",
    }  # fmt: skip


def test_who_asks_for_interfaces() -> None:
    def state(*documents: str) -> DesiredState:
        return World(documents).state

    regular = document("FelixConfiguration", "default", "interfaceExclude: /docker.*/")
    assert not asks_interfaces(state(ETH0, EVERY))
    assert not asks_interfaces(state(regular))
    assert asks_interfaces(state(hep("by-address", "expectedIPs: [10.0.0.1]")))
    assert asks_interfaces(state(EVERY, regular))


def test_those_of_other_nodes_are_only_addresses() -> None:
    far = document(
        "HostEndpoint", "far", "node: n2, interfaceName: eth0, expectedIPs: [192.0.2.9]", ", labels: {role: far}"
    )
    rules = "types: [Ingress], ingress: [{action: Allow, source: {selector: role == 'far'}}]"
    world = World((far, OPEN, gnp("g", rules)))
    assert world.state.host_endpoints.keys() == {"uplink"}
    assert is_allowed(world.into(world.packet("Z", "n1", 80)), "gnp/g|ingress|0")
    assert is_denied(world.into(world.packet("X", "n1", 80)), "hep/uplink|normal|ingress|tier/default")


def test_labels_come_from_profiles_too() -> None:
    profile = document("Profile", "dmz", "labelsToApply: {zone: dmz}")
    policy = gnp("g", "types: [Ingress], ingress: [{action: Allow}]", "zone == 'dmz'")
    world = World((hep("uplink", "interfaceName: eth0, profiles: [dmz]"), profile, policy))
    assert is_allowed(world.into(world.packet("X", "n1", 80)), "gnp/g|ingress|0")


def test_named_ports() -> None:
    ours = hep(
        "uplink", "interfaceName: eth0, expectedIPs: [198.51.100.1], ports: [{name: web, protocol: tcp, port: 80}]"
    )
    world = World((ours, gnp("g", "ingress: [{action: Allow, protocol: TCP, destination: {ports: [web]}}]")))
    assert is_allowed(world.into(world.packet("X", "n1", 80)), "gnp/g|ingress|0")
    assert is_denied(world.into(world.packet("X", "n1", 81)), "hep/uplink|normal|ingress|tier/default")


def test_the_order_of_arrival_makes_no_difference() -> None:
    documents = (EVERY, OPEN, *BEFORE_AND_FORWARD, gnp("g", "ingress: [{action: Allow}]"))
    one, other = World(documents), World(reversed(documents))
    assert one.state.host_endpoints == other.state.host_endpoints
    assert one.state.policies == other.state.policies


def test_what_does_not_change_is_the_same_object() -> None:
    world = World((EVERY, OPEN))
    before = world.state.host_endpoints
    world.cluster.put(parse(wep("a", "other"))[0])
    assert world.cluster.state().host_endpoints is before
    rendered = NftRenderer()
    one, two = rendered.render(world.state), rendered.render(world.cluster.state())
    assert all(one.chains[name] is two.chains[name] for name in one.chains if name.startswith(("host-", "fh", "th")))


# --- failsafes -------------------------------------------------------------------------------------------------------


def test_the_documented_failsafes() -> None:
    always = [179, 2379, 2380, 5473, 6443, 6666, 6667]
    defaults = World(()).state.settings.failsafes
    assert sorted((one.protocol, one.port) for one in defaults.inbound) == sorted(
        [(17, 68), (6, 22), *((6, port) for port in always)]
    )
    assert sorted((one.protocol, one.port) for one in defaults.outbound) == sorted(
        [(17, 53), (17, 67), *((6, port) for port in always)]
    )


def test_failsafes_of_one_s_own() -> None:
    said = "failsafeInboundHostPorts: [{protocol: udp, port: 5000, net: 10.0.0.0/8}, {protocol: TCP, port: 22}]"
    found = World((felix(f"{said}, failsafeOutboundHostPorts: []"),)).state.settings.failsafes
    assert found == Failsafes((Failsafe(17, 5000, parse_net("10.0.0.0/8")), Failsafe(6, 22)), ())


def test_a_failsafe_of_a_network() -> None:
    near = Failsafe(6, 80, parse_net("198.51.100.0/24"))
    assert near.holds(6, 80, parse_ip("198.51.100.9"))
    for protocol, port, peer in (
        (6, 80, "192.0.2.9"),
        (6, 81, "198.51.100.9"),
        (17, 80, "198.51.100.9"),
        (6, 80, "::1"),
    ):
        assert not near.holds(protocol, port, parse_ip(peer))


@pytest.mark.parametrize(
    ("spec", "where"),
    [("interfaceExclude: 'eth0,/(/'", "interfaceExclude"), ("externalNodesList: [nowhere]", "externalNodesList"),
     ("externalNodesList: 10.0.0.1", "externalNodesList")],
)  # fmt: skip
def test_settings_that_cannot_be(spec: str, where: str) -> None:
    (problem,) = World((felix(spec),)).cluster.problems.values()
    assert problem.startswith(where)


def test_nothing_of_it_is_called_unserved() -> None:
    served = "interfaceExclude: lo, externalNodesList: [10.0.0.1], failsafeInboundHostPorts: [{port: 1}]"
    assert list(unserved(parse(felix(served))[0])) == []


# --- documents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "problem"),
    [("interfaceName: eth0", "spec.node: is required"), ("node: n1", "spec.interfaceName: is required"),
     ("node: n1, expectedIPs: [somewhere]", r"spec.expectedIPs\[0\]: "),
     ("node: n1, interfaceName: eth0, ports: [{name: web, protocol: TCP, port: 0}]", r"spec.ports\[0\].port"),
     ("node: n1, interfaceName: eth0, ports: [{name: web, protocol: carrier, port: 1}]", r"spec.ports\[0\].protocol"),
     ("node: n1, interfaceName: eth0, ports: [{name: '', protocol: TCP, port: 1}]", r"spec.ports\[0\].name"),
     ("node: n1, interface: eth0", "spec.interface")],
)  # fmt: skip
def test_what_a_host_endpoint_cannot_say(spec: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse(document("HostEndpoint", "h", spec))


@pytest.mark.parametrize("spec", ["interfaceName: '*'", "expectedIPs: [10.0.0.1, '::1']", "interfaceName: eth0.100"])
def test_what_it_can(spec: str) -> None:
    (one,) = parse(document("HostEndpoint", "h", f"node: n1, {spec}"))
    assert one.title == "HostEndpoint h"
