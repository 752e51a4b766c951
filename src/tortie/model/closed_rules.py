"""Rules of policies with conditions that this version does not know: they never let anything through.

    Allow, Pass   with a condition unknown to us ─► matches nothing, and says why in an annotation of the rule
    Deny, Log                                    ─► as it is: denies more than was meant, never less

A rule stays where it stood, so that its number is the one in the datastore. Pure. Who reads what a newer program wrote
closes the rules before it becomes a value; who writes opens them again, so that nothing of them is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tortie.model.meta import Resource
from tortie.model.policy import Rule

MARK = "tortie.dev/unknown-conditions"
"""The annotation of a closed rule: the fields that are not known, divided by commas."""
NOBODY = "!all()"
"""A selector that selects nothing."""
DIRECTIONS = ("ingress", "egress")
LETS_THROUGH = ("Allow", "Pass")

Document = dict[str, Any]


def closed(spec: Document, unknown: Iterable[str]) -> Document:
    """The spec of a policy or profile, as JSON that the model knows, with such rules closed. `unknown`: the paths of
    the fields that were left out of it, such as `ingress[0].source.domains`. One of the spec's own that ends in
    `Selector` says to whom the policy applies: it counts for every rule."""
    paths = tuple(unknown)
    everywhere = [path for path in paths if path.endswith("Selector") and "." not in path and "[" not in path]
    made = dict(spec)
    for direction in DIRECTIONS:
        rules = spec.get(direction)
        if isinstance(rules, list):
            made[direction] = [
                _closed(rule, [*everywhere, *_of(paths, f"{direction}[{number}].")])
                for number, rule in enumerate(rules)
            ]
    return made


def opened(after: Document, before: Document, plain: Document) -> Document:
    """The spec that is to be written, with the rules that are still as `closed` made them as they are without that:
    `before` is what was shown, `plain` the same without closing."""
    made = dict(after)
    for direction in DIRECTIONS:
        pairs = [
            (shown, own)
            for shown, own in zip(before.get(direction, ()), plain.get(direction, ()), strict=True)
            if shown != own
        ]
        if pairs and isinstance(rules := after.get(direction), list):
            made[direction] = [next((own for shown, own in pairs if shown == rule), rule) for rule in rules]
    return made


def unknown_conditions(resource: Resource) -> Iterator[str]:
    """A line for each closed rule of an object, field path first."""
    spec = getattr(resource, "spec", None)
    for direction in DIRECTIONS:
        for number, rule in enumerate(getattr(spec, direction, None) or ()):
            if isinstance(rule, Rule) and rule.metadata is not None and (what := rule.metadata.annotations.get(MARK)):
                yield f"spec.{direction}[{number}]: {what}: not known to this version, so that it matches nothing"


def _of(paths: Iterable[str], begin: str) -> Iterator[str]:
    """The conditions among the paths in a rule; its metadata is for people."""
    for path in paths:
        if path.startswith(begin) and not path.startswith(f"{begin}metadata"):
            yield path.removeprefix(begin)


def _closed(rule: Any, unknown: list[str]) -> Any:
    if not unknown or not isinstance(rule, Mapping) or rule.get("action") not in LETS_THROUGH:
        return rule
    told = rule.get("metadata") or {}
    annotations = (told.get("annotations") or {}) | {MARK: ", ".join(unknown)}
    return {"action": rule["action"], "source": {"selector": NOBODY}, "metadata": {**told, "annotations": annotations}}
