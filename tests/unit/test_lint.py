"""The linter: what it finds in a document made for it, and that what it says about order is true in any world."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_simulate_reach import PORTS, PROTOCOLS, SOURCE_PORTS

from policy_rules import SELECTORS
from policy_worlds import Chance, some_resources
from tortie.base.addr import IP, parse_ip
from tortie.calc.lint import CODES, Finding, lint
from tortie.calc.lint.order import order, unreachable
from tortie.calc.lint.subjects import Scene
from tortie.calc.simulate import Simulation
from tortie.calc.simulate.files import Documents
from tortie.calc.simulate.workloads import Given
from tortie.model.document import parse as parse_documents
from tortie.model.meta import changed
from tortie.policy.lint_cover import contradicts_itself, covers, implies
from tortie.policy.rules import DIRECTIONS, Direction, NamedPort, Policy, PolicyKey, SetRef
from tortie.policy.selector import conj, disj, negate, parse
from tortie.policy.verdict import EndpointPolicy, Packet, judge, matches

seeds = st.integers(0, 2**32)

PODS = """
apiVersion: v1
kind: Pod
metadata: {name: frontend, namespace: web, labels: {app: frontend}}
spec: {containers: [{name: c, ports: [{containerPort: 8080, name: http}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: postgres, namespace: db, labels: {app: postgres}}
spec: {containers: [{name: c, ports: [{containerPort: 5432, name: sql}]}]}
---
"""


def policy(spec: str, name: str = "p", kind: str = "NetworkPolicy", namespace: str = "web") -> str:
    where = "" if kind.startswith("Global") else f", namespace: {namespace}"
    return f"""
apiVersion: projectcalico.org/v3
kind: {kind}
metadata: {{name: {name}{where}}}
spec: {spec}
---"""


def kubernetes(spec: str, namespace: str = "web") -> str:
    return f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: k, namespace: {namespace}}}
spec: {spec}
---"""


def found(text: str, pods: str = PODS) -> list[Finding]:
    return lint(Simulation.of(parse_documents(pods + text)))


def codes(text: str, pods: str = PODS) -> list[tuple[str, str]]:
    return [(one.code, one.path) for one in found(text, pods)]


# --- one document for each code -----------------------------------------------------------------------------------

ALLOW_80 = "{action: Allow, protocol: TCP, destination: {ports: [80]}}"
EXAMPLES = {
    "TL001": (
        policy(
            "{selector: app == 'frontend', ingress: [{action: Deny, protocol: TCP, destination: {ports: ['1:1024']}},"
            f" {ALLOW_80}]}}"
        ),
        "spec.ingress[1]",
    ),
    "TL002": (policy("{selector: app == 'frontned'}"), "spec.selector"),
    "TL003": (
        policy("{ingress: [{action: Allow, source: {selector: app == 'postgress', namespaceSelector: all()}}]}"),
        "spec.ingress[0].source.selector",
    ),
    "TL004": (policy("{ingress: [{action: Log}]}"), "spec.ingress"),
    "TL005": (
        policy(f"{{order: 1, ingress: [{ALLOW_80}]}}")
        + policy(f"{{order: 2, selector: app == 'frontend', ingress: [{ALLOW_80}]}}", "q"),
        "",
    ),
    "TL006": (
        policy("{order: 1, ingress: [{action: Allow, protocol: TCP}]}")
        + policy("{order: 1, ingress: [{action: Deny, source: {nets: [198.51.100.0/24]}}]}", "q"),
        "spec.order",
    ),
    "TL007": (policy("{tier: securty, ingress: [{action: Allow}]}"), "spec.tier"),
    "TL008": (
        policy("{ingress: [{action: Allow, protocol: TCP, destination: {ports: [htp]}}]}"),
        "spec.ingress[0].destination.ports",
    ),
    "TL009": (kubernetes("{podSelector: {}, egress: [{}]}"), "spec.policyTypes"),
    "TL010": (policy("{types: [Ingress], ingress: [{action: Allow}], egress: [{action: Deny}]}"), "spec.egress"),
    "TL011": (
        policy("{ingress: [{action: Deny, source: {selector: all()}}]}", kind="GlobalNetworkPolicy"),
        "spec.ingress[0].source.selector",
    ),
    "TL012": (
        policy("{egress: [{action: Allow}, {action: Allow, destination: {services: {name: dns, namespace: kube}}}]}"),
        "spec.egress[1].destination.services",
    ),
    "TL013": (
        kubernetes("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.244.3.0/24}}]}]}")
        + """
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool}
spec: {cidr: 10.244.0.0/16}
""",
        "spec.ingress[0].from[0]",
    ),
    "TL014": (
        kubernetes("{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 5432}]}]}"),
        "spec.egress",
    ),
    "TL015": (
        kubernetes(
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}},"
            " {podSelector: {matchLabels: {app: frontend}}}]}]}"
        ),
        "spec.ingress[0].from[1]",
    ),
    "TL016": (policy("{selector: app == 'a' && app == 'b'}"), "spec.selector"),
    "TL017": (policy("{ingress: [{action: Allow}]}") * 2, ""),
    "TL018": (
        policy("{stagedAction: Ignore, ingress: [{action: Allow}]}", kind="StagedNetworkPolicy"),
        "",
    ),
}


@pytest.mark.parametrize("code", CODES)
def test_what_is_written_wrong_is_found_and_nothing_else(code: str) -> None:
    text, path = EXAMPLES[code]
    assert (code, path) in codes(text)
    others = {each for each, _ in codes(text)} - {code}
    assert others <= {"TL005": {"TL001"}, "TL001": set(), "TL011": set(), "TL003": set()}.get(code, {"TL001"}), others


GOOD = (
    kubernetes("{podSelector: {}}"),
    kubernetes("{podSelector: {}, policyTypes: [Ingress, Egress]}"),
    kubernetes("{podSelector: {}, policyTypes: [Ingress, Egress], egress: [{}]}"),
    kubernetes(
        "{podSelector: {matchLabels: {app: postgres}}, ingress: [{from: [{namespaceSelector:"
        " {matchLabels: {kubernetes.io/metadata.name: web}}, podSelector: {matchLabels: {app: frontend}}}],"
        " ports: [{port: sql}]}]}",
        "db",
    ),
    policy(f"{{order: 1, ingress: [{ALLOW_80}]}}") + policy("{order: 2, ingress: [{action: Deny}]}", "q"),
    policy("{ingress: [{action: Log}, {action: Allow}]}"),
    policy("{order: 1, ingress: [{action: Allow, protocol: TCP}]}")
    + policy("{order: 1, ingress: [{action: Deny, protocol: UDP}]}", "q"),
)


@pytest.mark.parametrize("text", GOOD)
def test_what_is_meant_is_left_alone(text: str) -> None:
    assert found(text) == []


def test_the_book_has_every_code_with_its_severity() -> None:
    page = (Path(__file__).parents[2] / "docs/policy-tools.md").read_text()
    rows = re.findall(r"^\| `(TL\d+)` \| (\w+) \|", page, re.MULTILINE)
    assert rows == [(code, severity) for code, (severity, _) in CODES.items()]


def test_hints_name_what_was_probably_meant() -> None:
    hints = {code: next(one.hint for one in found(EXAMPLES[code][0]) if one.code == code) for code in CODES}
    assert 'did you mean "frontend"?' in hints["TL002"]
    assert 'did you mean "postgres"?' in hints["TL003"]
    assert 'did you mean "http"?' in hints["TL008"]
    wrong = kubernetes("{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {name: db}}}]}]}")
    assert [one.hint for one in found(wrong)] == ["the label that every namespace has is kubernetes.io/metadata.name"]


def test_without_pods_nothing_is_said_about_selectors() -> None:
    assert (
        codes(policy("{selector: app == 'nobody', ingress: [{action: Allow, source: {selector: x == 'y'}}]}"), "") == []
    )


def test_a_finding_says_where() -> None:
    resource = parse_documents(EXAMPLES["TL004"][0])[0]
    simulation = Simulation.of_documents(Documents((Given(resource, "web.yaml: document 3"),), {}))
    assert [one.where for one in lint(simulation)] == ["web.yaml: document 3: NetworkPolicy web/p: spec.ingress"]


def test_what_was_there_before_is_asked_but_not_complained_about() -> None:
    there = Simulation.of(
        parse_documents(PODS + EXAMPLES["TL004"][0] + EXAMPLES["TL002"][0].replace("name: p", "name: r"))
    )
    new = [Given(one) for one in parse_documents(policy("{selector: app == 'frontend', ingress: []}", "new"))]
    stored = [one for kind in (type(each) for each in new) for one in there.objects.all(type(new[0].resource))]
    stored += [*there.endpoints.values()]
    simulation = Simulation.of_documents(Documents(tuple(new), {}), stored)
    assert {one.title for one in lint(simulation)} <= {"NetworkPolicy web/new"}


# --- true in any world --------------------------------------------------------------------------------------------

LABELS = st.dictionaries(st.sampled_from(("app", "zone", "outside")), st.sampled_from(("web", "db", "z1", "yes", "x")))
LEAVES = st.sampled_from(
    [parse(text) for text in (*SELECTORS, "app contains 'b'", "zone != 'z1'", "app not in {'db', 'x'}")]
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(lambda all_: conj(*all_)),
        st.lists(inner, min_size=2, max_size=3).map(lambda all_: disj(*all_)),
        inner.map(negate),
    ),
    max_leaves=5,
)


@given(st.lists(TREES, min_size=4, max_size=4), st.lists(LABELS, min_size=4, max_size=4))
@settings(max_examples=150, deadline=None)
def test_what_a_selector_implies_holds_of_everything_that_it_matches(trees, things) -> None:
    for narrow, wide in permutations(trees, 2):
        if implies(narrow, wide):
            assert all(wide.matches(labels) for labels in things if narrow.matches(labels))
    for tree in trees:
        if contradicts_itself(tree):
            assert not any(tree.matches(labels) for labels in things)


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        ("app == 'a'", "app in {'a', 'b'}"),
        ("app == 'a' && x == 'y'", "app == 'a'"),
        ("app == 'a'", "has(app)"),
        ("app starts with 'a'", "has(app)"),
        ("app == 'a'", "app != 'b'"),
        ("app not in {'a', 'b'}", "app != 'a'"),
        ("app == 'abc' && zone == 'z'", "app starts with 'a' && !(zone == 'x')"),
        ("app == 'a' || app == 'b'", "app in {'a', 'b', 'c'}"),
        ("!has(app)", "app != 'a'"),
        ("app == 'a' && app == 'b'", "nothing == 'x'"),
        ("x == 'y'", "all()"),
    ],
)
def test_selectors_that_imply_another(narrow: str, wide: str) -> None:
    assert implies(parse(narrow), parse(wide))
    assert not implies(parse("all()"), parse("app == 'a'"))


class World:
    """A datastore at random with packets to ask about."""

    def __init__(self, seed: int) -> None:
        self.rng = Chance(seed)
        resources = list(some_resources(self.rng))
        policies = [one for one in resources if one.KIND.kind in ("NetworkPolicy", "GlobalNetworkPolicy")]
        resources += [changed(one, name=f"{one.name}-again") for one in policies if self.rng.maybe(0.3)]
        self.simulation = Simulation.of_stored(resources)
        self.simulation.written = {
            (type(one), one.namespace, one.name): (Given(one),) for one in resources if "Policy" in one.KIND.kind
        }
        self.state = self.simulation.explainer.state
        pods = [ip for endpoint in self.state.endpoints.values() for ip in endpoint.ips]
        self.ips = [*pods, *map(parse_ip, ("198.51.100.9", "198.51.100.77", "2001:db8:51::9", "2001:db8:51::77"))]

    def contains(self, ref: SetRef, item: NamedPort | IP) -> bool:
        members = self.state.sets.get(ref, frozenset())
        if isinstance(item, tuple):
            return item in members
        return any(not isinstance(net, tuple) and item in net for net in members)

    def packet(self, own: IP | None = None, direction: Direction = "egress") -> Packet:
        one = own if own is not None else self.rng.choice(self.ips)
        other = self.rng.choice([ip for ip in self.ips if ip.version == one.version])
        ends = (one, other) if direction == "egress" else (other, one)
        port, source = self.rng.choice(PORTS), self.rng.choice(SOURCE_PORTS)
        return Packet(
            *ends, self.rng.choice(PROTOCOLS), source, port, self.rng.choice((8, 13, 128)), self.rng.choice((0, 3))
        )


def without(
    policy: EndpointPolicy, gone: dict[PolicyKey, set[tuple[Direction, int]]], whole: set[PolicyKey]
) -> EndpointPolicy:
    def kept(one: Policy) -> Policy:
        numbers = gone.get(one.key, set())
        rules = {
            way: tuple(rule for i, rule in enumerate(one.rules(way)) if (way, i) not in numbers) for way in DIRECTIONS
        }
        return replace(one, ingress=rules["ingress"], egress=rules["egress"])

    tiers = {
        way: tuple(
            replace(tier, policies=policies)
            for tier in policy.tiers(way)
            if (policies := tuple(kept(one) for one in tier.policies if one.key not in whole))
        )
        for way in DIRECTIONS
    }
    return replace(policy, ingress=tiers["ingress"], egress=tiers["egress"])


@given(seeds)
@settings(max_examples=100, deadline=None)
def test_without_what_nothing_reaches_every_packet_fares_as_before(seed: int) -> None:
    world = World(seed)
    scene = Scene(world.simulation)
    gone = {one.policy.key: set(unreachable(scene, one)) for one in scene.subjects}
    titles = {one.title for one in order(scene) if one.code == "TL005"}
    whole = {one.policy.key for one in scene.subjects if one.resource.title in titles}
    if not any(gone.values()):
        return
    for endpoint in world.state.endpoints.values():
        other = without(endpoint.policy, gone, whole)
        for direction in DIRECTIONS:
            for _ in range(25):
                packet = world.packet(world.rng.choice(endpoint.ips), direction)
                before = judge(packet, endpoint.policy, direction, world.contains)
                after = judge(packet, other, direction, world.contains)
                assert before.allowed is after.allowed, (packet, before, after, gone)


@given(seeds)
@settings(max_examples=100, deadline=None)
def test_a_rule_that_covers_another_matches_all_its_packets(seed: int) -> None:
    world = World(seed)
    policies = world.state.policies.values()
    rules = [rule for policy in policies for way in DIRECTIONS for rule in policy.rules(way)]
    pairs = [(wide, narrow) for wide in rules for narrow in rules if wide is not narrow and covers(wide, narrow)]
    for wide, narrow in pairs[:40]:
        for _ in range(20):
            packet = world.packet()
            assert not matches(narrow, packet, world.contains) or matches(wide, packet, world.contains)


def test_worlds_do_have_rules_that_nothing_reaches() -> None:
    """Else the law above would say nothing."""
    scenes = [Scene(World(seed).simulation) for seed in range(40)]
    assert sum(bool(unreachable(scene, one)) for scene in scenes for one in scene.subjects) > 3
    assert any(finding.code == "TL005" for scene in scenes for finding in order(scene))


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_any_world_can_be_looked_at(seed: int) -> None:
    for one in lint(World(seed).simulation):
        assert one.code in CODES
        assert one.message
