"""BGPFilters as functions of BIRD's: one for each list of rules that a session of this node uses."""

from __future__ import annotations

from collections.abc import Iterator

from tortie.bgp.filters import AddCommunity, Direction, FilterRule, Operation, PrependPath, SetPriority, symbol
from tortie.render.bird_config import Family

_WORDS = {
    Direction.IMPORT: "routes that a peer sends",
    Direction.EXPORT: "routes that a peer is told",
}


def filter_functions(family: Family) -> Iterator[list[str]]:
    """The functions of one family, by name of their filters."""
    v = family.version
    for one in family.filters:
        for direction in Direction:
            rules = one.rules(direction, v)
            if rules:
                yield [
                    f"# BGPFilter {one.name}, of {_WORDS[direction]}. The first rule that matches decides.",
                    f"function '{symbol(one.name, direction, v)}'(bool same_as) {{",
                    *(f"  {_rule(rule, direction, v)}" for rule in rules),
                    "}",
                ]


def filter_calls(family: Family, names: tuple[str, ...], direction: Direction, *, same_as: bool) -> str:
    """The calls that a session makes, in its order of the filters; with a blank behind each."""
    known = {one.name: one for one in family.filters}
    word = "true" if same_as else "false"
    return "".join(
        f"'{symbol(name, direction, family.version)}'({word}); "
        for name in names
        if name in known and known[name].rules(direction, family.version)
    )


def _rule(rule: FilterRule, direction: Direction, version: int) -> str:
    conditions = " && ".join(_conditions(rule))
    return (
        f"if {conditions} then {_action(rule, direction, version)}" if conditions else _action(rule, direction, version)
    )


def _conditions(rule: FilterRule) -> Iterator[str]:
    if rule.net is not None:
        yield _net(rule)
    if rule.learned:
        yield "source = RTS_BGP"
    if rule.interface:
        yield f'defined(ifname) && ifname ~ "{rule.interface}"'
    if rule.same_as is not None:
        yield "same_as" if rule.same_as else "!same_as"
    if rule.community:
        attribute = "bgp_community" if len(rule.community) == 2 else "bgp_large_community"
        yield f"{_numbers(rule.community)} ~ {attribute}"
    if rule.as_path:
        yield f"bgp_path ~ [= {' '.join(map(str, rule.as_path))} * =]"
    if rule.priority is not None:
        yield f"defined(bgp_local_pref) && bgp_local_pref = TOP - {rule.priority}"


def _net(rule: FilterRule) -> str:
    if not rule.inside:
        return f"net {'!=' if rule.negated else '='} {rule.net}"
    word = "!~" if rule.negated else "~"
    if rule.lengths is None:
        return f"net {word} {rule.net}"
    least, most = rule.lengths
    return f"net {word} [ {rule.net}{{{least},{most}}} ]"


def _action(rule: FilterRule, direction: Direction, version: int) -> str:
    """What is taken in goes the way of all that is taken in."""
    if not rule.accept:
        return "reject;"
    accept = f"admit{version}();" if direction is Direction.IMPORT else "accept;"
    if not rule.operations:
        return accept
    steps = [step for operation in rule.operations for step in _steps(operation)]
    return f"{{ {' '.join(steps)} {accept} }}"


def _steps(operation: Operation) -> Iterator[str]:
    match operation:
        case AddCommunity(community):
            attribute = "bgp_community" if len(community) == 2 else "bgp_large_community"
            yield f"{attribute}.add({_numbers(community)});"
        case PrependPath(path):
            yield from (f"bgp_path.prepend({number});" for number in reversed(path))
        case SetPriority(priority):
            yield f"bgp_local_pref = TOP - {priority};"


def _numbers(community: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, community))})"
