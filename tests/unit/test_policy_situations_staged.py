"""Staged policies, situation by situation: nobody obeys them, and what they would do is known."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
from situations import (
    ALLOW,
    CALICO_ON_A,
    CAST,
    DENY,
    ON_A,
    PLACES,
    SEC,
    TCP8080,
    base,
    calico,
    cluster_of,
    consulted,
    documents,
    explained,
    gnp,
    knp,
    np,
    tier,
)

from tortie.base.addr import parse_ip
from tortie.calc.cluster import Cluster
from tortie.calc.staged import Counted, Prediction, StagedReport
from tortie.model.document import parse
from tortie.model.staged import Staged, StagedNetworkPolicy
from tortie.policy.translate import policy_of
from tortie.policy.verdict import Packet, judge, judge_pending
from tortie.render.nft import NftRenderer


def snp(spec: str, name: str = "n", namespace: str = "red") -> str:
    return calico("StagedNetworkPolicy", name, spec, f", namespace: {namespace}")


def sgnp(spec: str, name: str = "g") -> str:
    return calico("StagedGlobalNetworkPolicy", name, spec)


def sknp(spec: str, name: str = "k") -> str:
    return calico("StagedKubernetesNetworkPolicy", name, spec, ", namespace: red")


def verdicts(cluster: Cluster, source: str, pod: str, port: int, version: int) -> tuple[bool, bool]:
    """Into a pod: what is, and what would be."""
    endpoint, contains = consulted(cluster, pod)
    state = cluster.state()
    ips = {
        f"{local.key[0]}/{endpoint_.spec.pod}": {ip.version: ip for ip in local.ips}
        for local in state.endpoints.values()
        if (endpoint_ := cluster.endpoint(local.key)) is not None
    }
    mine = ips[CAST[pod]][version]
    other = ips[CAST[source]][version] if source in CAST else parse_ip(PLACES[version][source])
    packet = Packet(other, mine, 6, 40000, port)
    return (
        judge(packet, endpoint, "ingress", contains).allowed,
        judge_pending(packet, endpoint, "ingress", contains).allowed,
    )


Ways = Sequence[tuple[str, str, int, bool, bool]]

SITUATIONS: dict[str, tuple[list[str], Ways]] = {
    "P32 a tier with none but staged policies is as if it were not there": (
        [SEC, sgnp("tier: sec, selector: all(), ingress: [{action: Deny}]")],
        [("d", "a", 80, ALLOW, DENY)],
    ),
    "P32 nor is its end": (
        [SEC, sgnp(f"tier: sec, selector: all(), ingress: [{{action: Allow, {TCP8080}}}]")],
        [("d", "a", 8080, ALLOW, ALLOW), ("d", "a", 80, ALLOW, DENY)],
    ),
    "P33 the next in the tier decides": (
        [snp("order: 1, ingress: [{action: Deny}]", "s"), np("order: 2, ingress: [{action: Allow}]")],
        [("d", "a", 80, ALLOW, DENY)],
    ),
    "a staged policy behind the one that decides would change nothing": (
        [snp("order: 3, ingress: [{action: Deny}]", "s"), np("order: 2, ingress: [{action: Allow}]")],
        [("d", "a", 80, ALLOW, ALLOW)],
    ),
    "a staged policy opens": (
        [
            np(f"order: 5, {CALICO_ON_A}, ingress: [{{action: Deny}}]"),
            snp(f"order: 1, ingress: [{{action: Allow, {TCP8080}}}]", "s"),
        ],
        [
            ("d", "a", 8080, DENY, ALLOW),
            ("d", "a", 80, DENY, DENY),
            ("d", "b", 8080, ALLOW, ALLOW),
            ("d", "b", 80, ALLOW, DENY),
        ],
    ),
    "a staged policy takes the place of the one that has its name": (
        [np("order: 1, ingress: [{action: Deny}]"), snp(f"order: 9, ingress: [{{action: Allow, {TCP8080}}}]")],
        [("d", "a", 8080, DENY, ALLOW), ("d", "a", 80, DENY, DENY)],
    ),
    "whatever pods it selects itself": (
        [np(f"{CALICO_ON_A}, ingress: [{{action: Deny}}]"), snp("selector: app == 'db', ingress: [{action: Allow}]")],
        [("d", "a", 80, DENY, ALLOW), ("d", "b", 80, ALLOW, ALLOW)],
    ),
    "a policy that would be deleted": (
        [np("ingress: [{action: Deny}]"), snp("stagedAction: Delete")],
        [("d", "a", 80, DENY, ALLOW)],
    ),
    "and no other": (
        [np("ingress: [{action: Deny}]", "other"), gnp("ingress: [{action: Pass}]", "n"), snp("stagedAction: Delete")],
        [("d", "a", 80, ALLOW, ALLOW), ("d", "c", 80, ALLOW, ALLOW)],
    ),
    "Kubernetes' policies": (
        [sknp(f"{ON_A}, ingress: [{{ports: [{{port: 8080}}]}}]")],
        [("d", "a", 8080, ALLOW, ALLOW), ("d", "a", 80, ALLOW, DENY), ("d", "b", 80, ALLOW, ALLOW)],
    ),
    "the deletion of one": (
        [knp(f"{ON_A}, policyTypes: [Ingress]"), sknp("stagedAction: Delete")],
        [("d", "a", 8080, DENY, ALLOW)],
    ),
    "Pass leads to the next tier": (
        [
            tier("early", "order: 1"),
            sgnp("tier: early, ingress: [{action: Pass}]"),
            np("ingress: [{action: Deny}]"),
        ],
        [("d", "a", 80, DENY, DENY)],
    ),
    "what is learnt or ignored says nothing": (
        [
            snp("stagedAction: Learn, ingress: [{action: Deny}]"),
            sgnp("stagedAction: Ignore, ingress: [{action: Deny}]"),
        ],
        [("d", "a", 80, ALLOW, ALLOW)],
    ),
    "the classes of host endpoints are none of pods": (
        [sgnp("preDNAT: true, applyOnForward: true, ingress: [{action: Deny}]")],
        [("d", "a", 80, ALLOW, ALLOW)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", SITUATIONS)
def test_situation(name: str, version: int) -> None:
    objects, ways = SITUATIONS[name]
    cluster = cluster_of([*base(), *documents(objects, version)])
    for source, pod, port, now, then in ways:
        assert verdicts(cluster, source, pod, port, version) == (now, then), f"{source} to {pod} at {port}"
        assert explained(cluster, source, pod, port, version).allowed is now


def test_policies_that_are_staged_change_no_endpoint_that_they_do_not_concern() -> None:
    cluster = cluster_of([*base(), *parse(np("ingress: [{action: Deny}]"))])
    before = cluster.state()
    for text in (snp(f"{CALICO_ON_A}, ingress: [{{action: Allow}}]", "s"), snp("stagedAction: Delete", "nobody")):
        cluster.put(parse(text)[0])
    staged = cluster.state()
    assert staged.endpoints["cali00000000a"] is not before.endpoints["cali00000000a"]
    for pod in "bcd":
        assert staged.endpoints[f"cali00000000{pod}"] is before.endpoints[f"cali00000000{pod}"]
    again = cluster_of([*base(), *parse(snp(f"{CALICO_ON_A}, ingress: [{{action: Allow}}]", "s")),
                        *parse(np("ingress: [{action: Deny}]"))]).state()  # fmt: skip
    assert again.endpoints == staged.endpoints
    cluster.drop(StagedNetworkPolicy, "red", "s")
    assert cluster.state().endpoints == before.endpoints
    assert cluster.state().policies == before.policies


def test_to_stage_a_deletion_and_to_take_it_back() -> None:
    cluster = cluster_of([*base(), *parse(np("ingress: [{action: Deny}]"))])
    before = cluster.state()
    assert before.endpoints["cali00000000a"].policy.staging is None
    cluster.put(parse(snp("stagedAction: Delete"))[0])
    assert verdicts(cluster, "d", "a", 80, 4) == (DENY, ALLOW)
    cluster.put(parse(snp("stagedAction: Ignore"))[0])
    assert cluster.state().endpoints == before.endpoints
    cluster.put(parse(snp("stagedAction: Delete"))[0])
    cluster.drop(StagedNetworkPolicy, "red", "n")
    assert cluster.state().endpoints == before.endpoints


# --- in the kernel ----------------------------------------------------------------------------------------------------


def test_nothing_but_counts_comes_of_a_staged_policy_and_it_ends_nothing() -> None:
    rules = "{action: Log}, {action: Pass, protocol: UDP}, {action: Allow, protocol: TCP}, {action: Deny}"
    objects = [SEC, sgnp(f"tier: sec, selector: app == 'web', ingress: [{rules}]"), np("ingress: [{action: Deny}]")]
    table = NftRenderer().render(cluster_of([*base(), *documents(objects, 4)]).state())
    assert table.chains["si-sgnp/g"].rules == (
        'counter comment "sgnp/g|ingress|0"',
        'meta l4proto 17 counter meta mark set meta mark | 0x00100000 return comment "sgnp/g|ingress|1"',
        'meta l4proto 6 counter meta mark set meta mark | 0x00080000 return comment "sgnp/g|ingress|2"',
        'counter meta mark set meta mark | 0x00080000 return comment "sgnp/g|ingress|3"',
    )
    lines = table.chains["tw-cali00000000a"].rules
    start = lines.index("meta mark set meta mark & 0xffe7ffff")
    assert lines[start + 1 : start + 7] == (
        "meta mark set meta mark & 0xfffdffff",
        "meta mark set meta mark & 0xffefffff",
        "meta mark & 0x001a0000 == 0 jump si-sgnp/g",
        "meta mark & 0x001a0000 == 0 counter meta mark set meta mark | 0x00080000 "
        'comment "staged-tier/sec|cali00000000a|ingress"',
        "meta mark set meta mark & 0xfffdffff",
        "meta mark & 0x00020000 == 0 jump pi-np/red/n",
    )
    assert "pi-sgnp/g" not in table.chains
    untouched = table.chains["tw-cali00000000b"].rules
    assert not any("si-" in line or "0x0008" in line for line in untouched)


# --- the report -------------------------------------------------------------------------------------------------------

OPEN_8080 = f"ingress: [{{action: Allow, {TCP8080}}}]"
CLOSED = "ingress: [{action: Deny}]"


def predictions(*objects: str) -> dict[str, Prediction]:
    resources = documents(objects, 4)
    staged = [policy for one in resources if isinstance(one, Staged) and (policy := policy_of(one)) is not None]
    return {str(one.policy.key): one for one in StagedReport(cluster_of([*base(), *resources])).predictions(staged)}


def changed(prediction: Prediction) -> set[tuple[str, str]]:
    """The pairs that it is about, each on its own."""
    return {
        (source, destination)
        for change in prediction.changes
        for source, destination in product(change.source.names, change.destination.names)
        if source != destination
    }


def test_the_connections_that_a_policy_would_close() -> None:
    only_db = f"{CALICO_ON_A}, ingress: [{{action: Allow, {TCP8080}, source: {{selector: app == 'db'}}}}]"
    [found] = predictions(snp(only_db, "s")).values()
    assert changed(found) == {(one, "red/a") for one in ("red/b", "blue/c", "blue/d", "outside")}
    assert {(one.verdict.allowed, one.ports, one.versions, one.verdict.rule) for one in found.changes} == {
        (False, ((6, 8080), (6, None)), (4, 6), "tier/default|cali00000000a|ingress"),
        (False, ((6, None),), (4, 6), "tier/default|cali00000000a|ingress"),
    }
    assert found.selected == ("red/a",)


def test_the_connections_that_a_policy_would_open() -> None:
    [found] = predictions(np(f"order: 2, {CLOSED}"), snp(f"order: 1, {OPEN_8080}", "s")).values()
    everybody = ("red/a", "red/b", "blue/c", "blue/d", "outside")
    assert changed(found) == {(one, red) for one in everybody for red in ("red/a", "red/b") if one != red}
    assert {(one.verdict.allowed, one.ports, one.verdict.rule) for one in found.changes} == {
        (True, ((6, 8080),), "snp/red/s|ingress|0")
    }
    assert found.counted == (Counted("ingress", 0, "Allow", ("snp/red/s|ingress|0",)),)


def test_each_is_asked_as_if_it_were_alone() -> None:
    found = predictions(np(CLOSED), snp("stagedAction: Delete"), sgnp(f"order: 1, {CLOSED}"))
    deleted, closing = found["snp/red/n"], found["sgnp/g"]
    assert deleted.selected == ("red/a", "red/b")
    assert deleted.counted == (Counted("ingress", 0, "Deny", ("np/red/n|ingress|0",)),)
    assert {change.verdict.allowed for change in deleted.changes} == {True}
    assert {change.verdict.allowed for change in closing.changes} == {False}
    assert {destination for _, destination in changed(closing)} == {"blue/c", "blue/d"}


def test_pods_that_no_rule_can_tell_apart_are_asked_once() -> None:
    [found] = predictions(sgnp(f"selector: app == 'web', {CLOSED}")).values()
    apart = {str(change.source): change.source for change in found.changes}
    assert set(apart) == {"red/a", "red/b", "blue/c", "blue/d", "outside"}, "who declares a port is not like the others"
    [found] = predictions(sgnp(f"selector: app == 'nothing' || app == 'web' || app == 'client', {CLOSED}")).values()
    blue = next(change for change in found.changes if change.source.names == change.destination.names)
    assert (blue.source.names, blue.pairs) == (["blue/c", "blue/d"], 2)


def test_a_policy_that_selects_nobody_is_told_too() -> None:
    [found] = predictions(sgnp(f"selector: app == 'nobody', {CLOSED}")).values()
    assert (found.selected, found.changes, len(found.counted)) == ((), (), 1)


def test_the_ends_of_tiers_that_count() -> None:
    objects = documents([SEC, sgnp("tier: sec, selector: app == 'web', ingress: [{action: Pass}]")], 4)
    report = StagedReport(cluster_of([*base(), *objects]))
    assert list(report.ends()) == [
        ("sec", Counted("ingress", None, None, tuple(f"staged-tier/sec|cali00000000{pod}|ingress" for pod in "ac")))
    ]
