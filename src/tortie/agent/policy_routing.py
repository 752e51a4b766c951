"""What others have in `ip rule`, and which marks their nftables set, for the doctor. Only reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tortie.calc.doctor import Marking, PolicyRule
from tortie.kernel import nft
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import AF_INET, AF_INET6, RT_TABLE_LOCAL, RT_TABLE_MAIN
from tortie.kernel.rules import Rule, list_rules
from tortie.render.match import ACCEPT, PASS
from tortie.render.ruleset import TABLE
from tortie.render.staged import ENDED, NEXT_TIER

POLICY_BITS = ACCEPT | PASS | ENDED | NEXT_TIER
"""Of the mark that policy sets and takes away. A packet that is denied has a whole mark of ours, but ends there."""
_MAIN_PRIORITY = 32766
"""Of the kernel's own rule for main (net/ipv4/fib_rules.c)."""
_NOWHERE = frozenset({"blackhole", "unreachable", "prohibit"})


def policy_rules() -> tuple[PolicyRule, ...]:
    """Those of others that are tried before the main table, of both families. Raises KernelError."""
    with Netlink() as nl:
        every = [rule for family in (AF_INET, AF_INET6) for rule in list_rules(nl, family)]
    return tuple(as_seen(rule) for rule in every if rule.priority < _MAIN_PRIORITY and not _is_local(rule))


def _is_local(rule: Rule) -> bool:
    """The kernel's own, which may have been moved behind another."""
    return rule == Rule(rule.family, rule.priority, RT_TABLE_LOCAL, protocol=rule.protocol)


def as_seen(rule: Rule) -> PolicyRule:
    """`goto` may skip main, and counts as leading past it. A table 0 is that of a link's own VRF, where it has one."""
    to_main = rule.action == "lookup" and rule.table == RT_TABLE_MAIN
    whole = not (rule.src or rule.dst or rule.mask or rule.iif or rule.oif or rule.invert)
    elsewhere = rule.action == "lookup" and rule.table not in (0, RT_TABLE_MAIN, RT_TABLE_LOCAL)
    host = "/32 " if rule.family == AF_INET else "/128 "  # which ip does not print
    words = str(rule).removeprefix(f"priority {rule.priority} ").replace(" protocol ", " proto ").replace(host, " ")
    return PolicyRule(
        text=f"{rule.priority}: {words}",
        command="ip rule" if rule.family == AF_INET else "ip -6 rule",
        priority=rule.priority,
        past=elsewhere or rule.action in _NOWHERE or (rule.action == "goto" and rule.goto > _MAIN_PRIORITY),
        all_to_main=to_main and whole and (rule.suppress_prefixlength or 0) == 0,
        src=None if rule.invert else rule.src,
        dst=None if rule.invert else rule.dst,
        iif="" if rule.invert else rule.iif,
        oif="" if rule.invert else rule.oif,
        marked=bool(rule.mask) and not rule.invert,
        bits=rule.mask & POLICY_BITS,
    )


def markings() -> Iterator[Marking]:
    """The tables of others with a rule that sets bits of policy's. Raises KernelError."""
    for item in nft.list_json(["list", "tables"]):
        table = f"{item['table']['family']} {item['table']['name']}" if "table" in item else TABLE
        if table == TABLE:
            continue
        listed = nft.list_json(["list", "table", *table.split()])
        bits = bits_set(one["rule"] for one in listed if "rule" in one) & POLICY_BITS
        if bits:
            yield Marking(where=f"nft list table {table}", bits=bits)


def bits_set(rules: Iterable[dict[str, Any]]) -> int:
    """Of packets' marks, by rules as nft's JSON has them: `meta mark set 1`, `... set meta mark or 1`, `... xor 1`."""
    bits = 0
    for rule in rules:
        for expression in rule.get("expr", ()):
            change = expression.get("mangle") if isinstance(expression, dict) else None
            if change and change.get("key") == {"meta": {"key": "mark"}}:
                bits |= _bits(change.get("value"))
    return bits


def _bits(value: object) -> int:
    """Those that a value brings in; a conntrack mark's or a map's are not known."""
    if isinstance(value, int):
        return value
    if isinstance(value, dict):
        for sign in ("|", "^"):
            if sign in value:
                left, right = value[sign]
                return _bits(left) | _bits(right)
    return 0
