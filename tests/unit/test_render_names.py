"""What somebody has named never reaches nft as anything but a name: a policy, a tier, an interface, a log prefix."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.calc.cluster import Cluster
from tortie.model.document import convert, problems, shape
from tortie.model.meta import Resource
from tortie.model.node import FelixConfiguration
from tortie.model.policy import GlobalNetworkPolicy, NetworkPolicy, Profile
from tortie.model.workload import WorkloadEndpoint
from tortie.policy.rules import Policy, PolicyKey
from tortie.render.match import CHAIN_NAME, COMMENT, LOG_LENGTH, NAME_LENGTH, fit, log_prefix
from tortie.render.nft import NftRenderer
from tortie.render.ruleset import transaction

RULES = [{"action": "Log"}, {"action": "Deny", "protocol": "TCP"}, {"action": "Pass", "protocol": "UDP"}]
INJECTIONS = (
    'x" accept comment "',
    "x\nflush ruleset\n",
    "x; drop",
    "a b",
    "x|y",
    "$(reboot)",
    "ü",
    "\ud800",
    "x" * 300,
    "",
)
anything = st.text() | st.sampled_from(INJECTIONS)

LINE = re.compile(
    r"(add|delete) table inet tortie"
    r"|add chain inet tortie [A-Za-z0-9._/-]+( \{ type \w+ hook \w+ priority [\w +-]+; policy accept; \})?"
    r"|add (set|map) inet tortie [\w-]+ \{ type [\w .:]+;( flags interval;)? \}"
    r'|add element inet tortie [\w-]+ \{ [\w.:/ ,"-]+ \}'
    r'|add rule inet tortie [A-Za-z0-9._/-]+ [^";\n]*("cali\*"[^";\n]*)?'
    r'(log prefix "[ !#%-\[\]-~]{0,127}" )?(comment "[\w ./|:,-]{0,127}")?',
    re.ASCII,
)
"""What a line of ours can look like."""


def a_node(name: str, prefix: str) -> list[Resource]:
    """Everything that carries a name, in the kinds whose names reach the kernel. Nobody has checked it."""
    named = {"name": name}
    endpoint = {
        "metadata": {"name": "n1-k8s-a-eth0", "namespace": "red", "labels": {"app": "web"}},
        "spec": {"node": "n1", "interfaceName": "cali0", "profiles": [name, "none"], "ipNetworks": ["10.0.0.1/32"]},
    }
    spec = {"tier": name, "selector": "all()", "types": ["Ingress", "Egress"], "ingress": RULES, "egress": RULES}
    return [
        shape(WorkloadEndpoint, endpoint),
        shape(NetworkPolicy, {"metadata": {**named, "namespace": "red"}, "spec": {**spec, "selector": ""}}),
        shape(GlobalNetworkPolicy, {"metadata": named, "spec": spec}),
        shape(Profile, {"metadata": named, "spec": {"ingress": RULES, "egress": RULES}}),
        shape(FelixConfiguration, {"metadata": {"name": "default"}, "spec": {"logPrefix": prefix}}),
    ]


def script(resources: list[Resource]) -> str:
    cluster = Cluster("n1")
    for resource in resources:
        cluster.put(resource)
    return transaction(NftRenderer().render(cluster.state()), None)


@given(anything, anything)
def test_no_name_becomes_a_statement(name: str, prefix: str) -> None:
    for line in script(a_node(name, prefix)).splitlines():
        assert LINE.fullmatch(line), line


def test_the_pattern_sees_an_injection() -> None:
    """Otherwise the test above would prove little."""
    line = 'add rule inet tortie fw-cali0 counter accept comment "tier/x" accept comment "|cali0|egress"'
    assert not LINE.fullmatch(line)
    assert LINE.fullmatch(line.replace('x" accept comment "', "x"))


@given(anything)
def test_a_name_of_the_kernel_is_short_and_plain(text: str) -> None:
    for pattern in (COMMENT, CHAIN_NAME):
        name = fit(text, plain=pattern)
        assert len(name) <= NAME_LENGTH
        assert pattern.fullmatch(name)
        assert fit(name, plain=pattern) == name


@given(anything, anything)
def test_different_things_have_different_names(one: str, other: str) -> None:
    assert (one == other) == (fit(one) == fit(other))


@given(anything)
def test_a_log_prefix_is_one_quoted_text(template: str) -> None:
    prefix = log_prefix(template, Policy(PolicyKey("np", "red", "web"), None, frozenset()))
    assert len(prefix) <= LOG_LENGTH
    assert re.fullmatch(r"[ !#%-\[\]-~]*", prefix)


def test_a_log_prefix_may_name_the_policy() -> None:
    policy = Policy(PolicyKey("np", "red", "web"), None, frozenset(), tier="sec")
    assert log_prefix("%t %k %n %p %x %", policy) == "sec np web red/web %x %"
    assert log_prefix("%p", Policy(PolicyKey("gnp", "", "all"), None, frozenset())) == "all"


@pytest.mark.parametrize("name", ['cali0" : accept, "x', "cali*", "a b", "caliü", "a" * 16, "a/b", "cali0\n"])
def test_an_interface_that_is_none_is_no_endpoint(name: str) -> None:
    """It would have to stand in the script as it is: it is refused, also where nobody has asked the model."""
    body = {"metadata": {"name": "n1-k8s-a-eth0", "namespace": "red"}, "spec": {"node": "n1", "interfaceName": name}}
    endpoint = shape(WorkloadEndpoint, body)
    assert [path for path, _ in problems(endpoint)] == ["spec.interfaceName"]
    cluster = Cluster("n1")
    cluster.put(endpoint)
    assert "is not an interface name" in cluster.problems[endpoint.title]
    assert not cluster.state().endpoints


@pytest.mark.parametrize("tier", ['x" accept', "UPPER", "a.b", "x" * 64, "-a"])
def test_a_tier_has_a_name(tier: str) -> None:
    policy = shape(NetworkPolicy, {"metadata": {"name": "p", "namespace": "red"}, "spec": {"tier": tier}})
    assert [path for path, _ in problems(policy)] == ["spec.tier"]


def test_how_policy_denies_may_change_while_policies_stay() -> None:
    cluster, renderer = Cluster("n1"), NftRenderer()
    for resource in a_node("p", "log"):
        cluster.put(resource)
    before = renderer.render(cluster.state()).chains
    cluster.put(
        convert(FelixConfiguration, {"metadata": {"name": "default"}, "spec": {"nftablesFilterDenyAction": "Reject"}})
    )
    after = renderer.render(cluster.state()).chains
    assert after["pi-gnp/p"].rules[1] == before["pi-gnp/p"].rules[1]
    assert before["denied"].rules[-1] == "drop"
    assert after["denied"].rules[-1].endswith(" reject")
