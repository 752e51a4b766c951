"""BGPFilters to the values that BIRD's functions are written from."""

from __future__ import annotations

from tortie.base.addr import Net, parse_net
from tortie.base.errors import ConfigError
from tortie.bgp.filters import AddCommunity, Filter, FilterRule, Operation, PrependPath, SetPriority
from tortie.model.bgp import as_number, community
from tortie.model.bgpfilter import RULES, BGPFilter, BGPFilterRule, FilterOperation


def filter_of(resource: BGPFilter) -> Filter:
    """Raises ConfigError, field path first."""
    for path, problem in resource.spec.problems():  # not every datastore's objects come through the model's checks
        raise ConfigError(problem, f"spec.{path}")
    lists = {name: _rules(name, getattr(resource.spec, attribute)) for name, attribute in RULES.items()}
    return Filter(
        name=resource.name,
        import4=lists["importV4"],
        export4=lists["exportV4"],
        import6=lists["importV6"],
        export6=lists["exportV6"],
    )


def _rules(name: str, rules: tuple[BGPFilterRule, ...]) -> tuple[FilterRule, ...]:
    found: list[FilterRule] = []
    for i, rule in enumerate(rules):
        try:
            for path, problem in rule.problems():
                raise ConfigError(problem, path)
            found.append(_rule(rule))
        except ConfigError as error:
            raise error.within(f"spec.{name}[{i}]") from None
    return tuple(found)


def _rule(rule: BGPFilterRule) -> FilterRule:
    net = parse_net(rule.cidr) if rule.cidr else None
    return FilterRule(
        accept=rule.action == "Accept",
        net=net,
        inside=rule.match_operator in ("In", "NotIn"),
        negated=rule.match_operator in ("NotEqual", "NotIn"),
        lengths=_lengths(rule, net) if net is not None else None,
        learned=rule.source == "RemotePeers",
        interface=rule.interface,
        same_as=rule.peer_type == "iBGP" if rule.peer_type else None,
        community=_one_community(rule),
        as_path=tuple(map(as_number, rule.as_path_prefix)),
        priority=rule.priority,
        operations=tuple(map(_operation, rule.operations)),
    )


def _lengths(rule: BGPFilterRule, net: Net) -> tuple[int, int] | None:
    """What is asked for, as far as the network itself has it."""
    asked = rule.prefix_length
    if asked is None or (asked.min is None and asked.max is None):
        return None
    most = net.max_prefixlen if asked.max is None else min(net.max_prefixlen, asked.max)
    return max(net.prefixlen, asked.min or 0), most


def _one_community(rule: BGPFilterRule) -> tuple[int, ...]:
    if rule.communities is None:
        return ()
    for path, problem in rule.communities.problems():
        raise ConfigError(problem, f"communities.{path}")
    return community(rule.communities.values[0])


def _operation(operation: FilterOperation) -> Operation:
    for _, problem in operation.problems():
        raise ConfigError(problem, "operations")
    if operation.add_community is not None:
        return AddCommunity(community(operation.add_community.value))
    if operation.prepend_as_path is not None:
        return PrependPath(tuple(map(as_number, operation.prepend_as_path.prefix)))
    assert operation.set_priority is not None
    return SetPriority(operation.set_priority.value)
