"""What an agent says of its kernel beside a prediction: which of it is a difference, and what is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from situations import base, calico, felix, gnp, np, tier

from tortie.base.addr import parse_ip, parse_net
from tortie.calc.cluster import Cluster
from tortie.calc.explain import Explainer, Explanation, Route
from tortie.cli.explain_kernel import Read, astray, differing
from tortie.model.document import parse
from tortie.render.nft import NftRenderer
from tortie.render.part import named, part

POLICIES = (
    tier("sec", "order: 100"),
    gnp("tier: sec, selector: app == 'web', ingress: [{action: Log}, {action: Pass}]", "sec.a"),
    np("selector: app == 'web', ingress: [{action: Allow, source: {selector: app == 'db'}}, {action: Deny}]"),
    felix("logPrefix: node-%t, nftablesFilterDenyAction: Reject", "node.n1"),
    calico("StagedNetworkPolicy", "n", "selector: app == 'db', ingress: [{action: Deny}]", ", namespace: red"),
)


def cluster_of(node: str | None, documents: Sequence[str] = POLICIES) -> Cluster:
    cluster = Cluster(node)
    for resource in (*base(), *(one for text in documents for one in parse(text))):
        cluster.put(resource)
    return cluster


def asked(source: str = "red/b", destination: str = "red/a") -> tuple[list[Explanation], Read]:
    """Predicted from the datastore, for both ends on n1."""
    cluster = cluster_of(None)
    explainer = Explainer(cluster)
    found = [explainer.explain(explainer.party(source), explainer.party(destination), "tcp", 80, 4)]
    return found, Read("/store.db", explainer, {"n1": cluster.settings_of("n1")}, {"networkpolicies": 7})


def told(explanations: Sequence[Explanation], documents: Sequence[str] = POLICIES) -> dict[str, Any]:
    """What the agent of n1 says, whose kernel is as it should be."""
    state = cluster_of("n1", documents).state()
    ruleset = NftRenderer().render(state)
    names = [name for one in explanations for step in one.steps for name in (step.rule, *(n.rule for n in step.notes))]
    rules = {
        name: {"kernel": [rule for rules in named(ruleset, name).values() for rule in rules], "packets": 0, "bytes": 0}
        for name in names
        if name
    }
    interfaces = [step.interface for one in explanations for step in one.steps if step.interface]
    return {
        "inSync": True,
        "enforced": True,
        "failures": [],
        "revisions": {"networkpolicies": 7},
        "interfaces": list(state.endpoints),
        "chains": {name: list(chain.rules) for name, chain in part(ruleset, interfaces).chains.items()},
        "rules": rules,
        "differences": [],
    }


def test_a_node_that_has_followed_does_not_differ() -> None:
    """Its own settings included, and what is staged there."""
    for ends in (("red/b", "red/a"), ("red/a", "red/b"), ("blue/c", "red/a"), ("red/b", "blue/c")):
        explanations, read = asked(*ends)
        answer = told(explanations)
        assert [name for name, rule in answer["rules"].items() if not rule["kernel"]] == []
        assert list(differing("n1", answer, explanations, read)) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inSync": False}, ["the agent has not read all of the datastore yet"]),
        ({"failures": ["nft: no"]}, ["the agent could not do all that it should: nft: no"]),
        ({"revisions": {}}, ["behind: it has read networkpolicies up to revision 0, the datastore is at 7"]),
        ({"revisions": {"networkpolicies": 9}}, []),
        ({"enforced": False}, ["has read more than it has put into the kernel so far"]),
        ({"interfaces": ["cali00000000a"]}, ["the agent knows no endpoint with interface cali00000000b"]),
        ({"differences": ["chain x: its rules are gone"]}, ["chain x: its rules are gone"]),
    ],
)
def test_what_is_a_difference(change: dict[str, Any], words: list[str]) -> None:
    explanations, read = asked()
    found = list(differing("n1", told(explanations) | change, explanations, read))
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


def test_an_agent_that_has_read_another_policy() -> None:
    explanations, read = asked()
    other = (*POLICIES[:2], POLICIES[2].replace("Deny", "Allow"), *POLICIES[3:])
    (text,) = differing("n1", told(explanations, other), explanations, read)
    assert text == "the agent makes something else of the datastore than this prediction: chain pi-np/red/n"
    without = told(explanations, POLICIES[3:])
    texts = list(differing("n1", without, explanations, read))
    assert {text.rpartition(" ")[2] for text in texts if "chain" in text} == {
        "tw-cali00000000a",
        "pi-np/red/n",
        "pi-gnp/sec.a",
    }
    assert "rule np/red/n|ingress|0 is not in the kernel" in texts


def test_a_rule_that_the_kernel_lacks() -> None:
    explanations, read = asked()
    answer = told(explanations)
    answer["rules"]["np/red/n|ingress|0"]["kernel"] = []
    assert list(differing("n1", answer, explanations, read)) == ["rule np/red/n|ingress|0 is not in the kernel"]


def test_an_agent_of_before_says_less_and_differs_in_nothing() -> None:
    explanations, read = asked()
    answer = {"rules": {}, "differences": [], "chains": {}}
    assert list(differing("n1", answer, explanations, read)) == []


OUT = Route("n2", parse_ip("10.244.1.10"), parse_ip("10.244.2.10"), "", "to the pod", out="cali0d")
FAR = replace(OUT, out="", block=parse_net("10.244.2.0/26"), owner="n2")


@pytest.mark.parametrize(
    ("route", "kernel", "word"),
    [
        (OUT, {"error": "Network is unreachable"}, "no route to 10.244.2.10: Network is unreachable"),
        (
            OUT,
            {"dev": "eth0", "to": "0.0.0.0/0", "route": "default dev eth0"},
            "by default dev eth0, not out of cali0d",
        ),
        (OUT, {"dev": "cali0d", "to": "10.244.2.10/32", "route": "10.244.2.10 dev cali0d"}, ""),
        (FAR, {"dev": "eth0", "to": "0.0.0.0/0", "route": "default dev eth0"}, "no route to block 10.244.2.0/26 of n2"),
        (FAR, {"dev": "eth0", "to": "10.244.2.0/26", "route": "10.244.2.0/26 via 10.0.0.2 dev eth0"}, ""),
        (replace(FAR, block=None), {"dev": "eth0", "to": "0.0.0.0/0", "route": "default dev eth0"}, ""),
    ],
)
def test_routes(route: Route, kernel: dict[str, Any], word: str) -> None:
    found = list(astray(route, kernel))
    assert [word in text for text in found] == ([True] if word else [])
