"""Policies that close more, or less, than they seem to: directions, tiers, peers, names of hosts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from tortie.base.addr import within
from tortie.base.errors import suggest
from tortie.calc.lint.findings import CODES, Finding, about
from tortie.calc.lint.subjects import KUBERNETES, Scene, Subject
from tortie.calc.unserved import unserved
from tortie.model.ipam import IPPool
from tortie.model.meta import title
from tortie.policy.rules import DIRECTIONS, Direction

DNS, UDP, TCP = 53, 17, 6
OTHER: dict[Direction, Direction] = {"ingress": "egress", "egress": "ingress"}
TYPES = {"ingress": "Ingress", "egress": "Egress"}


def isolation(scene: Scene) -> Iterator[Finding]:
    for subject in scene.ours:
        yield from _tier(scene, subject)
        yield from _only_logs(scene, subject)
        yield from _directions(subject)
        yield from _pod_addresses(scene, subject)
        yield from _two_peers(subject)
    yield from _nameless(scene)
    yield from _twice(scene)
    yield from _ignored(scene)


def _tier(scene: Scene, subject: Subject) -> Iterator[Finding]:
    tier = subject.policy.tier
    if tier not in scene.tiers:
        text = f'there is no tier "{tier}": the policy is enforced after all others, and what it selects is closed'
        yield about("TL007", subject, "spec.tier", text, suggest(tier, scene.tiers))


def _only_logs(scene: Scene, subject: Subject) -> Iterator[Finding]:
    tier = subject.policy.tier
    if scene.tiers.get(tier, (None, "Deny"))[1] == "Pass":
        return
    for direction in sorted(subject.policy.directions):
        rules = subject.policy.rules(direction)
        if rules and all(rule.action == "Log" for rule in rules):
            text = f"it logs and then denies: what no rule of tier {tier} allows is denied to the pods of its policies"
            hint = "end it with a rule of action Pass or Allow, or put it into a tier with defaultAction Pass"
            yield about("TL004", subject, f"spec.{direction}", text, hint)


def _directions(subject: Subject) -> Iterator[Finding]:
    kubernetes = isinstance(subject.resource, KUBERNETES)
    field = "spec.policyTypes" if kubernetes else "spec.types"
    for direction in DIRECTIONS:
        about_it = direction in subject.policy.directions
        rules, others = (getattr(subject.resource.spec, way) for way in (direction, OTHER[direction]))
        if rules and not about_it:
            text = f"nobody asks these rules: {field.removeprefix('spec.')} has no {TYPES[direction]}"
            yield about("TL010", subject, f"spec.{direction}", text, f"add {TYPES[direction]} to {field}")
        elif about_it and others and not rules and not _said(subject, kubernetes):
            text = f"no {direction} rules, and still nothing may {'come in' if direction == 'ingress' else 'go out'}:"
            text = f"{text} without policyTypes a NetworkPolicy is always about Ingress"
            yield about("TL009", subject, field, text, f"write policyTypes: [{TYPES[OTHER[direction]]}]")


def _said(subject: Subject, kubernetes: bool) -> bool:
    """Whether the author has listed the directions."""
    spec = subject.written.spec
    return bool(spec.policy_types if kubernetes else getattr(spec, "types", ("Ingress",)))


def _pod_addresses(scene: Scene, subject: Subject) -> Iterator[Finding]:
    pools = [pool for pool in scene.simulation.objects.all(IPPool) if "Workload" in pool.spec.uses]
    seen = set()
    for place in subject.places:
        for side in (place.rule.source, place.rule.destination):
            for net in side.nets:
                pool = next((pool for pool in pools if within(net, pool.spec.net)), None)
                if pool is not None and (place.peer, net) not in seen:
                    seen.add((place.peer, net))
                    text = f"{net} is of IPPool {pool.name}: which pod has such an address changes with every restart"
                    yield about("TL013", subject, place.peer, text, "select pods by their labels")


def _two_peers(subject: Subject) -> Iterator[Finding]:
    """`- namespaceSelector` and `- podSelector` as two entries of a list: a dash too many is easily written."""
    if not isinstance(subject.resource, KUBERNETES):
        return
    for direction, field in (("ingress", "from_"), ("egress", "to")):
        for number, rule in enumerate(getattr(subject.resource.spec, direction)):
            peers = getattr(rule, field)
            for i, pair in enumerate(pairwise(peers), 1):
                alone = {(one.namespace_selector is not None, one.pod_selector is not None) for one in pair}
                if alone == {(True, False), (False, True)}:
                    path = f"spec.{direction}[{number}].{field.rstrip('_')}[{i}]"
                    text = "this entry and the one before are alternatives: all pods of namespaces, or such pods here"
                    hint = "one entry with both selectors means such pods in those namespaces"
                    yield about("TL015", subject, path, text, hint)


def _nameless(scene: Scene) -> Iterator[Finding]:
    """Pods that may send somewhere, and for which no rule is about the port of name servers, whoever these are."""
    restricted: dict[str, list[Subject]] = {}
    for subject in scene.subjects:
        if "egress" in subject.policy.directions and subject.policy.staged is None:
            for name in scene.selected(subject):
                restricted.setdefault(name, []).append(subject)
    mute = {name for name, subjects in restricted.items() if not any(_about_names(one) for one in subjects)}
    for subject in scene.ours:
        if any(rule.action == "Allow" for rule in subject.policy.egress):
            pods = [name for name in scene.selected(subject) if name in mute]
            more = f" and {len(pods) - 1} more" if len(pods) > 1 else ""
            if pods:
                text = f"{pods[0]}{more} may send, but ask no name server: no rule lets port 53 out"
                yield about("TL014", subject, "spec.egress", text, "allow UDP and TCP 53 to the cluster's name servers")


def _about_names(subject: Subject) -> bool:
    """Whether some rule may let questions to a name server out."""
    for rule in subject.policy.egress:
        side = rule.destination
        free = not (side.ports or side.named) or any(first <= DNS <= last for first, last in side.ports)
        if rule.action in ("Allow", "Pass") and rule.protocol in (None, UDP, TCP) and (free or side.named):
            return True
    return False


def _twice(scene: Scene) -> Iterator[Finding]:
    severity = CODES["TL017"][0]
    for (kind, namespace, name), every in scene.simulation.written.items():
        for earlier in every[:-1]:
            text = f"is written again in {every[-1].source}, which replaces this one"
            what = title(kind.KIND, name, namespace)
            yield Finding("TL017", severity, earlier.source, what, "", text, "keep one of them")


def _ignored(scene: Scene) -> Iterator[Finding]:
    """What apply warns of: parts of objects that nobody acts on."""
    severity = CODES["TL018"][0]
    for (kind, namespace, name), every in scene.simulation.written.items():
        stored = scene.simulation.objects.get(kind, name, namespace)
        for line in unserved(stored) if stored is not None else ():
            yield Finding("TL018", severity, every[-1].source, title(kind.KIND, name, namespace), "", line)
