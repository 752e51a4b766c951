"""Whether everything that one rule matches is matched by another: answered from what the rules say, whatever pods there
are. "Yes" is always right; "no" may only mean that it takes more than this to see it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from math import prod

from tortie.base.addr import Net, collapse, within
from tortie.policy.rules import PolicyRule, PortSet, SelectorSet, Side
from tortie.policy.selector import All, And, Ne, Not, NotIn, Or, Selector

MAX_CASES = 256
"""Combinations of label values that are tried one by one."""


# --- selectors ----------------------------------------------------------------------------------------------------


def implies(narrow: Selector, wide: Selector) -> bool:
    """Whether whatever `narrow` matches is matched by `wide`."""
    if narrow == wide or isinstance(wide, All) or contradicts_itself(narrow) or _tried(narrow, wide):
        return True
    if isinstance(wide, And):
        return all(implies(narrow, operand) for operand in wide.operands)
    if isinstance(narrow, Or):
        return all(implies(operand, wide) for operand in narrow.operands)
    if isinstance(wide, Or) and any(implies(narrow, operand) for operand in wide.operands):
        return True
    if isinstance(narrow, And):
        return any(implies(operand, wide) for operand in narrow.operands)
    if isinstance(narrow, Not) and isinstance(wide, Not):
        return implies(wide.operand, narrow.operand)
    excluded, other = _excluded(narrow), _excluded(wide)
    return excluded is not None and other is not None and excluded[0] == other[0] and excluded[1] >= other[1]


def contradicts_itself(selector: Selector) -> bool:
    """Whether a selector can match nothing, whatever the labels."""
    if isinstance(selector, Or):
        return all(map(contradicts_itself, selector.operands))
    if isinstance(selector, Not) and isinstance(selector.operand, All):
        return True
    return any(restriction.impossible for restriction in selector.restrictions().values())


def _tried(narrow: Selector, wide: Selector) -> bool:
    """Where `narrow` leaves few values for every label that `wide` looks at, all of them are tried."""
    restrictions = narrow.restrictions()
    choices: list[list[tuple[str, str | None]]] = []
    for label in sorted(wide.labels()):
        restriction = restrictions.get(label)
        if restriction is not None and restriction.values is not None:
            choices.append([(label, value) for value in sorted(restriction.values)])
        elif restriction is not None and restriction.must_be_absent:
            choices.append([(label, None)])
        else:
            return _present(restrictions, wide)
    if prod(map(len, choices)) > MAX_CASES:
        return False
    cases = ({label: value for label, value in case if value is not None} for case in product(*choices))
    return all(wide.matches(labels) for labels in cases)


def _present(restrictions: Mapping[str, object], wide: Selector) -> bool:
    """Whether `wide` only asks for a label that must be there anyway."""
    wanted = wide.restrictions()
    if len(wanted) != 1 or str(wide) != f"has({next(iter(wanted))})":
        return False
    found = restrictions.get(next(iter(wanted)))
    return bool(getattr(found, "must_be_present", False))


def _excluded(selector: Selector) -> tuple[str, frozenset[str]] | None:
    """The label and the values that `!=` and `not in` exclude."""
    if isinstance(selector, Ne):
        return selector.label, frozenset((selector.value,))
    return (selector.label, selector.values) if isinstance(selector, NotIn) else None


# --- rules --------------------------------------------------------------------------------------------------------


def covers(wide: PolicyRule, narrow: PolicyRule) -> bool:
    """Whether every packet that `narrow` matches is matched by `wide`."""
    return (
        set(narrow.versions) <= set(wide.versions)
        and wide.http in (None, narrow.http)
        and _protocol_covers(wide, narrow)
        and _icmp_covers(wide, narrow)
        and side_covers(wide.source, narrow.source)
        and side_covers(wide.destination, narrow.destination)
    )


def _protocol_covers(wide: PolicyRule, narrow: PolicyRule) -> bool:
    if wide.protocol is not None and narrow.protocol != wide.protocol:
        return False
    excluded = wide.not_protocol
    return excluded is None or narrow.not_protocol == excluded or narrow.protocol not in (None, excluded)


def _icmp_covers(wide: PolicyRule, narrow: PolicyRule) -> bool:
    if wide.icmp is not None and (narrow.icmp is None or not _icmp_within(narrow.icmp, wide.icmp)):
        return False
    if wide.not_icmp is None:
        return True
    if narrow.not_icmp is not None and _icmp_within(wide.not_icmp, narrow.not_icmp):
        return True
    return (
        narrow.icmp is not None
        and None not in (narrow.icmp[0], wide.not_icmp[0])
        and (narrow.icmp[0] != wide.not_icmp[0])
    )


def _icmp_within(narrow: tuple[int | None, int | None], wide: tuple[int | None, int | None]) -> bool:
    return all(b is None or a == b for a, b in zip(narrow, wide, strict=True))


def side_covers(wide: Side, narrow: Side) -> bool:
    """Whether every address with a port that `narrow` admits is admitted by `wide`."""
    return (
        (not wide.nets or (bool(narrow.nets) and _nets_within(narrow.nets, wide.nets)))
        and all(_excludes(narrow, net) for net in wide.not_nets)
        and all(any(implies(mine.selector, ref.selector) for mine in _required(narrow)) for ref in wide.sets)
        and all(any(implies(ref.selector, mine.selector) for mine in narrow.not_sets) for ref in wide.not_sets)
        and (not (wide.ports or wide.named) or _ports_within(narrow, wide))
        and all(_avoids(narrow, ports) for ports in wide.not_ports)
        and all(any(_within_set(ref, mine) for mine in narrow.not_named) for ref in wide.not_named)
        and all(ref in narrow.services for ref in wide.services)
    )


def _required(side: Side) -> Iterable[SelectorSet | PortSet]:
    """Sets of which an address must be a member: named ports, too, when there is one set of them and no number."""
    yield from side.sets
    if len(side.named) == 1 and not side.ports:
        yield from side.named


def _nets_within(nets: Iterable[Net], outer: Iterable[Net]) -> bool:
    whole = collapse(outer)
    return all(any(within(net, one) for one in whole) for net in nets)


def _excludes(side: Side, net: Net) -> bool:
    """Whether a side admits no address of a network."""
    if any(within(net, one) for one in side.not_nets):
        return True
    return bool(side.nets) and not any(one.overlaps(net) for one in side.nets if one.version == net.version)


def _ports_within(narrow: Side, wide: Side) -> bool:
    """Whether `narrow` asks for ports, and for none that `wide` does not admit."""
    if not (narrow.ports or narrow.named):
        return False
    numeric = all(any(low <= first and last <= high for low, high in wide.ports) for first, last in narrow.ports)
    return numeric and all(any(_within_set(ref, one) for one in wide.named) for ref in narrow.named)


def _within_set(narrow: PortSet, wide: PortSet) -> bool:
    alike = narrow.port == wide.port and wide.protocol in (None, narrow.protocol)
    return alike and implies(narrow.selector, wide.selector)


def _avoids(side: Side, ports: tuple[int, int]) -> bool:
    """Whether a side admits none of a range of ports."""
    first, last = ports
    if any(low <= first and last <= high for low, high in side.not_ports):
        return True
    return bool(side.ports) and not side.named and all(last < low or high < first for low, high in side.ports)
