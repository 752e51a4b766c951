"""Selectors, names of ports and services that find nothing among what there is. Without pods nobody can tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from tortie.base.errors import suggest
from tortie.calc.defaults import NAME_LABEL
from tortie.calc.lint.findings import Finding, about
from tortie.calc.lint.subjects import CALICO, Place, Scene, Subject
from tortie.model.policy import EntityRule
from tortie.model.service import EndpointSlice, Service
from tortie.policy.label_names import NAMESPACE, NAMESPACE_PREFIX, ORCHESTRATOR
from tortie.policy.lint_cover import contradicts_itself
from tortie.policy.rules import Direction, PortSet, SelectorSet, Side
from tortie.policy.selector import All, Eq, In, Selector, parse

SIDES: tuple[tuple[str, Direction], tuple[str, Direction]] = (("source", "ingress"), ("destination", "egress"))
"""The ends of a rule, each with the direction in which it is the other end."""
VERBS = {"Allow": "allowed", "Deny": "denied", "Log": "logged", "Pass": "passed on"}


def matches(scene: Scene) -> Iterator[Finding]:
    for subject in scene.ours:
        yield from _selected(scene, subject)
        for place in subject.places:
            for end, direction in SIDES:
                side = place.rule.source if end == "source" else place.rule.destination
                path = f"{place.path}.{end}" if isinstance(subject.resource, CALICO) else place.peer
                yield from _rule_selectors(scene, subject, side, path)
                yield from _services(scene, subject, side, path)
                yield from _everybody(subject, place, end, path)
                if end == "destination":
                    yield from _ports(scene, subject, place, side, path, chosen=direction != place.direction)


# --- selectors ----------------------------------------------------------------------------------------------------


def _selected(scene: Scene, subject: Subject) -> Iterator[Finding]:
    selector = subject.policy.selector
    if selector is None:
        return
    path = "spec.selector" if isinstance(subject.resource, CALICO) else "spec.podSelector"
    if hasattr(subject.resource.spec, "subject"):
        path = "spec.subject"
    if contradicts_itself(selector):
        yield about("TL016", subject, path, "nothing can match it: its conditions exclude one another")
    elif scene.pods and not scene.selected(subject) and not any(map(subject.selects, scene.hosts.values())):
        hint = _nearest(selector, scene.everything)
        yield about("TL002", subject, path, "selects nothing of what there is: the policy does nothing", hint)


def _rule_selectors(scene: Scene, subject: Subject, side: Side, path: str) -> Iterator[Finding]:
    asked: list[SelectorSet | PortSet] = [*side.sets, *side.not_sets]
    asked += [one for one in side.named if not isinstance(one.selector, All)]
    for ref in asked:
        if contradicts_itself(ref.selector):
            yield about("TL016", subject, path, f"nothing can match {ref.selector}")
        elif scene.pods and not scene.found(ref.selector):
            does = "it excludes nothing" if ref in side.not_sets else "the rule matches nothing"
            where = f"{path}.{_field(scene, subject, side, path)}".rstrip(".")
            absent = _absent_namespace(scene, ref.selector)
            hint = _nearest(ref.selector, scene.everything)
            if absent:
                hint = f'no pods of namespace "{absent}" are at hand: give their manifests, too, or --against live'
            found = about("TL003", subject, where, f"no pod and no network set is matched: {does}", hint)
            yield replace(found, severity="info") if absent else found


def _field(scene: Scene, subject: Subject, side: Side, path: str) -> str:
    """Which selector of a Calico rule it is: that of namespaces if they alone find nothing."""
    if not isinstance(subject.resource, CALICO):
        return ""
    entity = _entity(subject, path)
    if entity.namespace_selector and entity.selector:
        return "namespaceSelector" if not _any_namespace(scene, entity.namespace_selector) else "selector"
    asked = (
        ("namespaceSelector", entity.namespace_selector),
        ("selector", entity.selector),
        ("notSelector", entity.not_selector),
        ("serviceAccounts", entity.service_accounts),
    )
    return next((name for name, value in asked if value), "")


def _any_namespace(scene: Scene, text: str) -> bool:
    selector = parse(text).prefixed(NAMESPACE_PREFIX)
    return any(selector.matches(labels) for labels in scene.everything if NAMESPACE in labels)


def _entity(subject: Subject, path: str) -> EntityRule:
    """The side of a Calico rule at a path such as `spec.ingress[0].source`."""
    _, rules, end = path.split(".")
    direction, _, number = rules.rstrip("]").partition("[")
    rule = getattr(subject.resource.spec, direction)[int(number)]
    found: EntityRule = getattr(rule, end)
    return found


def _nearest(selector: Selector, everything: Iterable[Mapping[str, str]]) -> str:
    """Which word of a selector is not to be found, and what it may have been meant to be."""
    labels: dict[str, set[str]] = {}
    for one in everything:
        for key, value in one.items():
            labels.setdefault(key, set()).add(value)
    for leaf in selector.leaves():
        if not isinstance(leaf, Eq | In) or leaf.label == ORCHESTRATOR:
            continue
        name = leaf.label.removeprefix(NAMESPACE_PREFIX)
        owner = "namespace" if name != leaf.label else "pod or set"
        values = {leaf.value} if isinstance(leaf, Eq) else leaf.values
        if owner == "namespace" and values & labels.get(NAMESPACE, set()) and name != NAME_LABEL:
            return f"the label that every namespace has is {NAME_LABEL}"
        if leaf.label not in labels:
            hint = suggest(leaf.label, labels).removeprefix("known: ")
            near = f", {hint.replace(NAMESPACE_PREFIX, '')}" if hint.startswith("did you mean") else ""
            return f'no {owner} has a label "{name}"{near}'
        if not values & labels[leaf.label]:
            hint = suggest(min(values), labels[leaf.label])
            return f'no {owner} has {name} "{min(values)}"{", " if hint else ""}{hint}'
    return "no pod has all of these labels together"


def _absent_namespace(scene: Scene, selector: Selector) -> str:
    """A namespace that a selector names, of which nothing is here: probably it is somebody else's, and not misspelt."""
    here = {labels[NAMESPACE] for labels in scene.everything if NAMESPACE in labels}
    for leaf in selector.leaves():
        if isinstance(leaf, Eq) and leaf.label in (NAMESPACE, f"{NAMESPACE_PREFIX}{NAME_LABEL}"):
            near = suggest(leaf.value, here).startswith("did you mean")
            if leaf.value not in here and not near:
                return leaf.value
    return ""


def _everybody(subject: Subject, place: Place, end: str, path: str) -> Iterator[Finding]:
    """`all()` of Calico's rules means every pod and network set, and not the rest of the world."""
    if not isinstance(subject.resource, CALICO):
        return
    entity = _entity(subject, path)
    if not entity.selector or not isinstance(parse(entity.selector), All) or entity.namespace_selector:
        return
    text = f"all() is every pod and network set that there is: hosts outside are not {VERBS[place.rule.action]}"
    yield about("TL011", subject, f"{path}.selector", text, f"leave {end}.selector out to mean anybody")


# --- ports and services -------------------------------------------------------------------------------------------


def _ports(scene: Scene, subject: Subject, place: Place, side: Side, path: str, *, chosen: bool) -> Iterator[Finding]:
    """Names of ports that nobody declares who could be meant: the selected pods in ingress rules, else the peers."""
    for ref in side.named:
        near = scene.selected(subject) if chosen else scene.pods
        asked = [name for name in near if ref.selector.matches(scene.pods[name])]
        if asked and not any(_declares(scene, name, ref) for name in asked):
            ports = {port.name for name in asked for port in scene.simulation.endpoints[name].spec.ports if port.name}
            hint = suggest(ref.port, ports) if ports else "the port of a container gets its name in the pod"
            who = "no pod that the policy selects" if chosen else "no pod that the rule selects"
            where = f"{path}.ports" if isinstance(subject.resource, CALICO) else f"{place.path}.ports"
            yield about("TL008", subject, where, f'{who} declares a port "{ref.port}" of this protocol', hint)


def _declares(scene: Scene, name: str, ref: PortSet) -> bool:
    ports = scene.simulation.explainer.party(name).ports
    return any(port == ref.port and ref.protocol in (None, number) for port, number, _ in ports)


def _services(scene: Scene, subject: Subject, side: Side, path: str) -> Iterator[Finding]:
    objects = scene.simulation.objects
    for ref in side.services:
        behind = [one for one in objects.all(EndpointSlice, ref.namespace) if one.service == ref.name]
        if any(one.endpoints for one in behind):
            continue
        if objects.get(Service, ref.name, ref.namespace) is None:
            hint = suggest(ref.name, (one.name for one in objects.all(Service, ref.namespace)))
            yield about("TL012", subject, f"{path}.services", f"there is no Service {ref.namespace}/{ref.name}", hint)
        elif scene.pods:
            text = f"Service {ref.namespace}/{ref.name} has nothing behind it: the rule matches nothing"
            yield about("TL012", subject, f"{path}.services", text)
