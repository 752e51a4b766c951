"""Host endpoints as rules: which hooks and chains there are, and which are not."""

from __future__ import annotations

from itertools import pairwise

import pytest
from host_world import AOF, ETH0, EVERY, INTERFACES, OPEN, PRE, RAW, World, document, felix, gnp, hep

from tortie.base.errors import ConfigError
from tortie.model.document import parse
from tortie.policy.rules import Direction
from tortie.policy.verdict import failsafe_id, host_id
from tortie.render.nft import NftRenderer
from tortie.render.ruleset import Ruleset, transaction


def rendered(*documents: str) -> Ruleset:
    return NftRenderer().render(World(documents).state, INTERFACES)


def test_a_node_without_host_endpoints_pays_nothing() -> None:
    idle = (gnp("g", "ingress: [{action: Deny}]"), gnp("pre", f"{PRE}, ingress: [{{action: Deny}}]"))
    with_policies, without = rendered(*idle), rendered()
    assert with_policies == without
    assert not [name for name in without.chains if name.startswith(("host-", "fh", "th", "failsafe"))]
    assert not [name for name in without.sets if "host" in name or "failsafe" in name or "tunnels" in name]


def test_a_class_that_nobody_has_has_no_hook() -> None:
    assert {name for name in rendered(ETH0).chains if name.startswith("host-")} == {
        "host-input", "host-output", "host-postrouting",
    }  # fmt: skip
    forward = rendered(ETH0, gnp("g", f"{AOF}, ingress: [{{action: Allow}}]"))
    assert {name for name in forward.chains if name.startswith("host-")} == {
        "host-input", "host-output", "host-postrouting", "host-forward-in",
    }  # fmt: skip


def test_who_has_no_forward_policy_is_kept_from_that_of_the_others() -> None:
    rules = rendered(
        hep("mine", "interfaceName: eth0", "role: mine"), EVERY, gnp("g", f"{AOF}, ingress: [{{action: Deny}}]")
    )
    assert '"eth0" : return' in rules.sets["from-host-forward"].elements
    assert rules.chains["host-forward-in"].rules[-1] == "goto fhfw-any-interface-at-all"


def test_each_name_of_the_verdict_is_a_rule_s() -> None:
    policies = [
        gnp(name, f"{more}, types: [Ingress, Egress], ingress: [{{action: Allow}}], egress: [{{action: Allow}}]")
        for name, more in (("aof", AOF), ("raw", RAW))
    ]
    rules = rendered(ETH0, *policies, gnp("pre", f"{PRE}, ingress: [{{action: Allow}}]"))
    text = transaction(rules, None)
    both: tuple[Direction, ...] = ("ingress", "egress")
    for direction in both:
        for kind, what in (("normal", "no-profile"), ("normal", "tier/default"), ("forward", "tier/default")):
            assert f'comment "{host_id("uplink", kind, direction, what)}"' in text  # type: ignore[arg-type]
        for what in ("port", "link", "answer"):
            assert f'comment "{failsafe_id(direction, what)}"' in text


def test_nothing_can_reject_where_the_kernel_cannot() -> None:
    """The chains that postrouting leads to, and those before connection tracking and translation."""
    egress = gnp("g", "types: [Egress], egress: [{action: Deny, protocol: TCP}, {action: Allow}]")
    early = [gnp(name, f"{more}, ingress: [{{action: Deny}}]") for name, more in (("pre", PRE), ("raw", RAW))]
    rules = rendered(OPEN, EVERY, egress, *early, felix("nftablesFilterDenyAction: Reject"))
    assert any("reject" in rule for rule in rules.chains["denied"].rules)
    for hook in ("host-postrouting", "host-raw-in", "host-mangle-in"):
        assert "denied" not in reachable(rules, hook)
    assert "denied" in reachable(rules, "host-output")


def reachable(rules: Ruleset, chain: str) -> set[str]:
    """The chains that a packet may come to."""
    found, waiting = set(), [chain]
    while waiting:
        here = waiting.pop()
        if here in found:
            continue
        found.add(here)
        for rule in rules.chains[here].rules:
            words = rule.split()
            for verb, word in pairwise(words):
                if verb in ("goto", "jump"):
                    waiting.append(word)
                if verb == "vmap":
                    elements = rules.sets[word.removeprefix("@")].elements
                    waiting += [one.split()[-1] for one in elements if " goto " in one]
    return found


def test_names_that_nft_does_not_read_never_reach_it() -> None:
    long = "a" * 250
    rules = rendered(hep(long, "interfaceName: eth0"))
    (end,) = [rule for rule in rules.chains["fh-eth0"].rules if "no-profile" in rule or "goto denied" in rule]
    assert len(end.partition('comment "')[2]) <= 121
    for interface in ('eth0"; drop', "a b", "eth*", "eth0/1", "cali123", "x" * 16):
        with pytest.raises(ConfigError, match="interfaceName"):
            parse(document("HostEndpoint", "h", f"node: n1, interfaceName: '{interface}'"))


TUNNEL_POOLS = (
    document("IPPool", "v4", "cidr: 10.244.0.0/16, vxlanMode: CrossSubnet"),
    document("IPPool", "old", "cidr: 10.245.0.0/16, ipipMode: Always"),
)
NODE = document("Node", "n2", "bgp: {ipv4Address: 192.0.2.2/24}")


def test_p69_tunnel_packets_come_from_nodes() -> None:
    rules = rendered(*TUNNEL_POOLS, NODE, felix("externalNodesList: [203.0.113.0/24, 192.0.2.2], vxlanPort: 8472"))
    assert rules.sets["tunnels4"].elements == {"192.0.2.2", "203.0.113.0/24"}
    lines = rules.chains["input"].rules
    assert [line for line in lines if "@tunnels4" in line] == [
        'meta l4proto 4 ip saddr @tunnels4 counter accept comment "IPIP from a node"',
        'udp dport 8472 ip saddr @tunnels4 counter accept comment "VXLAN from a node"',
    ]
    assert sum("goto dropped" in line for line in lines) == 2
    for chain in ("prerouting", "host-raw-out"):
        assert rules.chains[chain].rules[0] == 'udp dport 8472 meta nfproto ipv4 iifname != "cali*" notrack'
    assert "host-output" not in rules.chains  # nobody would stop them there
    assert "tunnels6" not in rules.sets


def test_tunnel_packets_pass_the_host_s_own_policy() -> None:
    lines = rendered(*TUNNEL_POOLS, NODE, ETH0).chains["host-output"].rules
    assert 'udp dport 4789 ip daddr @tunnels4 counter accept comment "VXLAN to a node"' in lines
