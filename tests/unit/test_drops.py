"""What is said of a denied packet: the rule's name in words, whose an address is, what is counted together."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tortie.agent.drops import DISTINCT, WAITING, Drop, Drops, Lines, Tally, Watcher
from tortie.agent.names import AddressNames, Name, RuleNames
from tortie.base.addr import parse_ip
from tortie.base.errors import NotSupported
from tortie.calc.cluster import Cluster
from tortie.calc.denials import Denial, denial
from tortie.cli.main import main
from tortie.cli.watch import Summary, concerns, line, whole_name
from tortie.model.document import parse
from tortie.model.workload import WorkloadEndpoint
from tortie.policy.rules import Policy, PolicyKey, PolicyRule, end_of_tier_id, no_profile_id, rule_id
from tortie.policy.verdict import host_id
from tortie.render.denials import denial_chains, number
from tortie.render.match import denial as denying
from tortie.render.match import fit
from tortie.render.nft import NftRenderer
from tortie.render.ruleset import Chain, Ruleset

# --- the names of rules -------------------------------------------------------------------------------------------

POLICIES = {
    key: Policy(key, None, frozenset(("ingress",)), ingress=(PolicyRule("Log"), PolicyRule("Deny")), tier="sec")
    for key in (PolicyKey("np", "red", "web"), PolicyKey("gnp", "", "guard"), PolicyKey("gnp", "", "x" * 200))
}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            rule_id(PolicyKey("np", "red", "web"), "ingress", 1),
            Denial(
                "np/red/web|ingress|1", "NetworkPolicy red/web, rule 1, tier sec", "ingress", "sec", "np/red/web", 1
            ),
        ),
        (
            rule_id(PolicyKey("gnp", "", "guard"), "egress", 0),
            Denial(
                "gnp/guard|egress|0", "GlobalNetworkPolicy guard, rule 0, tier sec", "egress", "sec", "gnp/guard", 0
            ),
        ),
        (
            rule_id(PolicyKey("knp", "red", "gone"), "ingress", 12),
            Denial(
                "knp/red/gone|ingress|12",
                "Kubernetes NetworkPolicy red/gone, rule 12",
                "ingress",
                policy="knp/red/gone",
                index=12,
            ),
        ),
        (
            rule_id(PolicyKey("profile", "", "kns.red"), "egress", 3),
            Denial("profile/kns.red|egress|3", "profile kns.red, rule 3", "egress", policy="profile/kns.red", index=3),
        ),
        (
            end_of_tier_id("sec", "cali1", "egress"),
            Denial("tier/sec|cali1|egress", "end of tier sec: no rule allows it", "egress", "sec"),
        ),
        (
            no_profile_id("cali1", "ingress"),
            Denial("no-profile|cali1|ingress", "no profile allows it", "ingress"),
        ),
        (
            "qos|cali1|egress|connections",
            Denial("qos|cali1|egress|connections", "too many connections at a time", "egress"),
        ),
        (
            host_id("eth0", "forward", "ingress", "tier/sec"),
            Denial(
                "hep/eth0|forward|ingress|tier/sec",
                "host endpoint eth0: end of tier sec: no rule allows it",
                "ingress",
                "sec",
            ),
        ),
        (
            host_id("eth0", "normal", "egress", "no-profile"),
            Denial("hep/eth0|normal|egress|no-profile", "host endpoint eth0: no profile allows it", "egress"),
        ),
        (
            host_id("eth0", "normal", "egress", "invalid"),
            Denial(
                "hep/eth0|normal|egress|invalid",
                "host endpoint eth0: connection tracking finds the packet invalid",
                "egress",
            ),
        ),
        (
            host_id("x", "untracked", "ingress", "new"),
            Denial("hep/x|untracked|ingress|new", "host endpoint x: new", "ingress"),
        ),
        ("anti-spoofing", Denial("anti-spoofing", "anti-spoofing: the source address is not the pod's own", "egress")),
        ("something | new", Denial("something | new", "something | new")),
        ("", Denial("", "")),
    ],
)
def test_a_name_in_words(name: str, said: Denial) -> None:
    assert denial(name, POLICIES) == said


BUILT_IN = {
    "anti-spoofing",
    "invalid",
    "IPIP from a pod",
    "VXLAN from a pod",
    "no endpoint: from interface",
    "no endpoint: to interface",
    "no-profile|calilocal|egress",
    "pod to its own host: defaultEndpointToHostAction",
}


def test_every_built_in_denial_has_words_of_its_own() -> None:
    """Those of every node that are not of policy: what `render` calls them is what is understood here."""
    cluster, rules = the_cluster(), RuleNames()
    cluster.put(endpoint("local", "10.0.1.1/32", node="n1"))
    rules.learn(NftRenderer().render(cluster.state()))
    assert rules.all() >= BUILT_IN
    assert not [name for name in BUILT_IN if rules.say(name, {}).words == name]


def ruleset(*rules: str) -> Ruleset:
    return Ruleset({"c": Chain(rules)})


def test_a_number_leads_to_its_rule() -> None:
    names, rules = RuleNames(), ("np/red/web|ingress|1", "tier/sec|cali1|egress")
    names.learn(ruleset("accept", *(f"ip saddr 192.0.2.1 {denying(rule)}" for rule in rules)))
    assert [names.of(number(rule), POLICIES).name for rule in rules] == list(rules)
    names.learn(ruleset(denying("invalid", "dropped")))
    assert names.of(number("invalid"), {}).words == "connection tracking finds the packet invalid"
    assert names.of(number(rules[0]), POLICIES).index == 1  # what has been there is still told
    assert names.of(7, {}).words == "a rule that this agent does not know, number 0x00000007"


def test_two_rules_with_one_number_are_both_named() -> None:
    names = RuleNames()
    rule = denying("invalid")
    names.learn(ruleset(rule, rule, rule.replace('"invalid"', '"anti-spoofing"')))
    found = names.of(number("invalid"), {})
    assert found.name == "invalid or anti-spoofing"
    assert found.words.startswith("connection tracking finds the packet invalid or anti-spoofing: ")


def test_a_cut_name_is_found_among_the_policies() -> None:
    whole = rule_id(PolicyKey("gnp", "", "x" * 200), "ingress", 1)
    assert fit(whole) != whole
    names = RuleNames()
    names.learn(ruleset(denying(whole)))
    assert names.of(number(fit(whole)), POLICIES).name == whole
    assert names.of(number(fit(whole)), POLICIES).tier == "sec"
    other = RuleNames()
    other.learn(ruleset(denying(whole)))
    assert other.of(number(fit(whole)), {}) == Denial(fit(whole), fit(whole))


# --- whose an address is ------------------------------------------------------------------------------------------

WORLD = """
{apiVersion: v1, kind: Node, metadata: {name: n2}, spec: {}}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: n2}
spec: {bgp: {ipv4Address: 192.0.2.2/24, ipv6Address: "fd00::2/64"}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkSet, metadata: {name: wide}, spec: {nets: [198.51.100.0/24]}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkSet, metadata: {name: all}, spec: {nets: [0.0.0.0/0, "::/0"]}}
---
{apiVersion: projectcalico.org/v3, kind: NetworkSet, metadata: {name: close, namespace: red},
 spec: {nets: [198.51.100.64/26, "2001:db8::/32", 198.51.100.7]}}
---
{apiVersion: projectcalico.org/v3, kind: NetworkSet, metadata: {name: also, namespace: red},
 spec: {nets: [198.51.100.64/26]}}
"""


def endpoint(pod: str, *ips: str, node: str = "n2") -> WorkloadEndpoint:
    (found,) = parse(
        json.dumps(
            {
                "apiVersion": "projectcalico.org/v3",
                "kind": "WorkloadEndpoint",
                "metadata": {"name": f"{node}-k8s-{pod}-eth0", "namespace": "red"},
                "spec": {"node": node, "pod": pod, "interfaceName": f"cali{pod}", "ipNetworks": list(ips)},
            }
        )
    )
    assert isinstance(found, WorkloadEndpoint)
    return found


def the_cluster() -> Cluster:
    cluster = Cluster("n1")
    for one in (*parse(WORLD.partition("---\n")[2]), endpoint("web", "10.0.0.1/32", "fd00:1::1/128")):
        cluster.put(one)
    assert not cluster.problems
    return cluster


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("10.0.0.1", Name("pod", "red/web")),
        ("fd00:1::1", Name("pod", "red/web")),
        ("192.0.2.2", Name("node", "n2")),
        ("fd00::2", Name("node", "n2")),
        ("198.51.100.65", Name("networkset", "red/also, red/close")),
        ("198.51.100.7", Name("networkset", "red/close")),
        ("198.51.100.8", Name("networkset", "wide")),
        ("2001:db8::9", Name("networkset", "red/close")),
        ("8.8.8.8", Name("networkset", "all")),
        ("::", Name("networkset", "all")),
    ],
)
def test_an_address_has_the_nearest_name(address: str, name: Name) -> None:
    assert AddressNames(the_cluster()).of(parse_ip(address)) == name


def test_an_address_that_is_nobodys() -> None:
    names = AddressNames(Cluster("n1"))
    assert names.of(parse_ip("10.0.0.1")) is None
    assert names.pod(("red", "web")) is None


def test_an_address_never_has_the_name_that_it_had() -> None:
    now = 0.0
    cluster = Cluster("n1")
    names, ip = AddressNames(cluster, lambda: now), parse_ip("10.0.0.1")
    web, shop = endpoint("web", "10.0.0.1/32"), endpoint("shop", "10.0.0.1/32")
    cluster.put(web)
    assert names.of(ip) == Name("pod", "red/web")
    cluster.drop(WorkloadEndpoint, web.namespace, web.name)
    cluster.put(shop)
    names.changed()
    assert names.of(ip) is None  # it has been looked at this very moment
    now = 5.0
    assert names.of(ip) == Name("pod", "red/shop")
    cluster.put(endpoint("shop", "10.0.0.2/32"))
    assert names.of(ip) is None


# --- counting -----------------------------------------------------------------------------------------------------


def drop(mark: int) -> Drop:
    return Drop(mark, "forward", "cali1", "eth0", None)


def test_equal_drops_are_counted() -> None:
    tally = Tally()
    assert not tally
    for mark, when in ((1, 5.0), (2, 6.0), (1, 7.0)):
        tally.add(drop(mark), when)
    assert tally.counts == {drop(1): 2, drop(2): 1}
    assert tally.since == {drop(1): 5.0, drop(2): 6.0}
    assert tally


def test_of_very_many_different_drops_some_are_only_missing() -> None:
    tally = Tally()
    for mark in range(DISTINCT + 10):
        tally.add(drop(mark), 0)
    tally.add(drop(0), 0)
    assert (len(tally.counts), tally.counts[drop(0)], tally.missing) == (DISTINCT, 2, 10)


async def test_who_does_not_read_misses_what_is_too_much() -> None:
    watcher = Watcher()
    for i in range(WAITING + 5):
        watcher.give(Lines(f"{i}\n".encode(), 3))
    assert (await watcher.take()).splitlines() == [str(i).encode() for i in range(WAITING)]
    assert watcher.missing == 15
    waiting = asyncio.create_task(watcher.take())
    await asyncio.sleep(0)
    watcher.end()
    assert (await waiting, watcher.ended) == (b"", True)


async def test_a_kernel_that_tells_nobody_cannot_be_watched() -> None:
    drops = Drops("n1", Cluster("n1"), lambda: Ruleset(denial_chains("Drop", told=False)))
    with pytest.raises(NotSupported, match="it lacks nfnetlink_log"):
        await anext(drops.watch())


# --- on the command line ------------------------------------------------------------------------------------------

TOLD: dict[str, Any] = {
    "time": "2026-11-21T06:00:01.250+00:00",
    "node": "n1",
    "count": 1,
    "direction": "ingress",
    "rule": {"name": "np/red/db|ingress|1", "words": "NetworkPolicy red/db, rule 1, tier sec"},
    "hook": "forward",
    "protocol": "tcp",
    "source": {"address": "10.0.0.1", "port": 41000, "pod": "red/web", "interface": "caliweb"},
    "destination": {"address": "10.0.0.2", "port": 5432, "pod": "red/db"},
}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "n1  red/web:41000 → red/db:5432 tcp  ingress: NetworkPolicy red/db, rule 1, tier sec"),
        ({"count": 3}, "rule 1, tier sec  ×3"),
        ({"direction": ""}, " tcp  NetworkPolicy red/db, rule 1"),
        ({"source": {"address": "192.0.2.9", "port": 7, "node": "n2"}}, " node:n2:7 → red/db"),
        ({"source": {"address": "192.0.2.9", "port": 7}}, " 192.0.2.9:7 → red/db"),
        ({"source": {"address": "2001:db8::9", "port": 7}}, " [2001:db8::9]:7 → red/db:5432 tcp6 "),
        ({"source": {"address": "2001:db8::9"}, "protocol": "89"}, " 2001:db8::9 → red/db:5432 protocol 89 "),
        ({"source": {"address": "8.8.8.8", "port": 7, "networkset": "dns"}}, " 8.8.8.8:7 (dns) → red/db"),
        (
            {"source": {"address": "8.8.8.8", "port": 7, "pod": "red/web", "ownAddress": False}},
            " red/web as 8.8.8.8:7 → red/db",
        ),
        (
            {"source": {"address": "10.0.0.9", "pod": "red/web", "ownAddress": False, "owner": "red/shop"}},
            " red/web as 10.0.0.9 (red/shop) → red/db",
        ),
        (
            {"source": {"address": "10.0.0.1"}, "destination": {"address": "8.8.8.8"}, "protocol": "icmp"}
            | {"icmp": {"type": 8, "code": 0}},
            " 10.0.0.1 → 8.8.8.8 icmp type 8 code 0  ingress",
        ),
    ],
)
def test_a_drop_in_a_line(changes: dict[str, Any], says: str) -> None:
    assert says in line(TOLD | changes)


def test_a_packet_that_cannot_be_read_has_a_rule_at_least() -> None:
    bare = {key: value for key, value in TOLD.items() if key not in ("source", "destination", "protocol")}
    assert "  a packet that cannot be read  ingress: NetworkPolicy red/db" in line(bare)
    assert not concerns(bare, "red/web")


def test_what_is_not_told_is_said() -> None:
    lost = {"node": "n1", "lost": 53, "why": "too many"}
    assert line(lost) == "          n1  53 more packets were denied: too many"
    assert "n1  not watched now: its agent has ended" in line({"node": "n1", "gone": "its agent has ended"})
    assert concerns(lost, "red/web")


def test_only_what_concerns_a_pod() -> None:
    assert concerns(TOLD, "red/web")
    assert concerns(TOLD, "red/db")
    assert not concerns(TOLD, "red/shop")
    assert concerns(TOLD | {"source": {"pod": "red/x", "ownAddress": False, "owner": "red/shop"}}, "red/shop")


def test_the_summary_counts_what_the_kernel_counts() -> None:
    seen = Summary()
    for document in (TOLD, TOLD | {"count": 4}, {"node": "n1", "lost": 9, "why": ""}):
        seen.add(document)
    said = {"words": "NetworkPolicy red/db, rule 1, tier sec", "direction": "ingress"}
    other = {"words": "no profile allows it", "direction": "egress"}
    before = {"a": {"packets": 10, **said}, "b": {"packets": 7, **other}, "c": {"packets": 3, **other}}
    after = {"a": {"packets": 110, **said}, "b": {"packets": 9, **other}, "c": {"packets": 1, **other}}
    seen.count(before, after)
    assert [(row.words, row.packets, row.shown) for row in seen.sorted()] == [
        ("ingress: NetworkPolicy red/db, rule 1, tier sec", 100, 5),
        ("egress: no profile allows it", 3, 0),  # c was written anew
    ]
    assert (seen.lines, seen.lost) == (2, 9)


def test_without_counters_what_was_shown_counts() -> None:
    seen = Summary()
    seen.add(TOLD)
    seen.count({}, {})
    seen.count({"a": {"packets": 5}}, {})
    assert [(row.packets, row.shown) for row in seen.sorted()] == [(1, 1)]


@pytest.mark.parametrize(("pod", "whole"), [("red/web", "red/web"), ("web", "default/web")])
def test_a_pod_on_the_command_line(pod: str, whole: str) -> None:
    assert whole_name(pod) == whole


@pytest.mark.parametrize(
    "words",
    [
        ("--pod", "a/b/c"),
        ("--pod", "red/"),
        ("--pod", "/web"),
        ("-o", "yaml"),
        ("--count", "-1"),
        ("--count", "x"),
        ("--seconds", "-1"),
        ("--lab", "there-is-no-such-lab"),
        ("red/web",),
    ],
)
def test_a_bad_argument_is_one_line(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "drops", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("tortie: ")
    assert len(said.splitlines()) == 1
