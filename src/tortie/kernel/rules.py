"""Policy rules: which routing table is looked up for which packets (`ip rule`)."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from tortie.base.addr import Net, parse_net
from tortie.base.errors import ConfigError, Exists, KernelError, NotFound
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.codec import NLM_F_CREATE, NLM_F_EXCL
from tortie.kernel.netlink.tables import (
    AF_INET6,
    FIB_RULE_INVERT,
    PROTOCOLS,
    RT_TABLE_COMPAT,
    RTM_DELRULE,
    RTM_GETRULE,
    RTM_NEWRULE,
    RULE,
    RULE_ACTION_NUMBERS,
    RULE_ACTIONS,
    TABLES,
)

TYPE_CHECKING = False  # as in netlink.codec
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_NO_SUPPRESSION = 0xFFFFFFFF  # FRA_SUPPRESS_PREFIXLEN of a rule that suppresses nothing
_WHOLE_MARK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule. `family` is AF_INET or AF_INET6; the others, left alone, match everything.

    `protocol` marks whose rule it is, as with routes. `suppress_prefixlength`: routes no longer than this do not count.
    """

    family: int
    priority: int
    table: int = 0
    src: Net | None = None
    dst: Net | None = None
    mark: int = 0
    mask: int = 0
    iif: str = ""
    oif: str = ""
    invert: bool = False
    action: str = "lookup"
    goto: int = 0
    suppress_prefixlength: int | None = None
    protocol: int = 0

    def __post_init__(self) -> None:
        if self.action not in RULE_ACTION_NUMBERS:
            raise ConfigError(f'"{self.action}" is no action of a rule')
        if self.mark and not self.mask:
            object.__setattr__(self, "mask", _WHOLE_MARK)
        for name in ("src", "dst"):  # the kernel does not tell "everything" from nothing said
            net = getattr(self, name)
            if net is not None and net.prefixlen == 0:
                object.__setattr__(self, name, None)

    def __str__(self) -> str:
        words = [f"priority {self.priority}", *["not"] * self.invert, f"from {self.src or 'all'}"]
        if self.dst is not None:
            words.append(f"to {self.dst}")
        if self.mask:
            words.append(f"fwmark {self.mark:#x}" + (f"/{self.mask:#x}" if self.mask != _WHOLE_MARK else ""))
        words += [f"iif {self.iif}"] if self.iif else []
        words += [f"oif {self.oif}"] if self.oif else []
        if self.action == "lookup":
            words.append(f"lookup {TABLES.get(self.table, self.table)}")
        else:
            words.append(f"goto {self.goto}" if self.action == "goto" else self.action)
        if self.suppress_prefixlength is not None:
            words.append(f"suppress_prefixlength {self.suppress_prefixlength}")
        if self.protocol:
            words.append(f"protocol {PROTOCOLS.get(self.protocol, self.protocol)}")
        return " ".join(words)


def decode(payload: bytes) -> Rule:
    """The rule in the body of an RTM_NEWRULE or RTM_DELRULE message."""
    values = RULE.unpack(payload)
    suppress = values.get("suppress_prefixlen", _NO_SUPPRESSION)
    return Rule(
        family=values["frh_family"],
        priority=values.get("priority", 0),
        table=values.get("table", values["frh_table"]),
        src=_net(values, "src", "frh_src_len"),
        dst=_net(values, "dst", "frh_dst_len"),
        mark=values.get("fwmark", 0),
        mask=values.get("fwmask", 0),
        iif=values.get("iifname", ""),
        oif=values.get("oifname", ""),
        invert=bool(values["frh_flags"] & FIB_RULE_INVERT),
        action=RULE_ACTIONS.get(values["frh_action"], "nop"),
        goto=values.get("goto", 0),
        suppress_prefixlength=None if suppress == _NO_SUPPRESSION else suppress,
        protocol=values.get("protocol", 0),
    )


def _net(values: Mapping[str, Any], name: str, length: str) -> Net | None:
    return parse_net(f"{values[name]}/{values[length]}") if name in values else None


def encode(rule: Rule) -> bytes:
    """The body of a message about the rule."""
    return RULE.pack(
        {
            "frh_family": rule.family,
            "frh_src_len": 0 if rule.src is None else rule.src.prefixlen,
            "frh_dst_len": 0 if rule.dst is None else rule.dst.prefixlen,
            "frh_table": rule.table if rule.table < 256 else RT_TABLE_COMPAT,
            "frh_action": RULE_ACTION_NUMBERS[rule.action],
            "frh_flags": FIB_RULE_INVERT if rule.invert else 0,
            "src": None if rule.src is None else str(rule.src.network_address),
            "dst": None if rule.dst is None else str(rule.dst.network_address),
            "iifname": rule.iif or None,
            "oifname": rule.oif or None,
            "goto": rule.goto or None,
            "priority": rule.priority,
            "fwmark": rule.mark if rule.mask else None,
            "fwmask": rule.mask or None,
            "table": rule.table,
            "suppress_prefixlen": rule.suppress_prefixlength,
            "protocol": rule.protocol or None,
        }
    )


def list_rules(nl: Netlink, family: int) -> list[Rule]:
    """The rules of a family in the order in which they are tried."""
    messages = nl.dump(RTM_GETRULE, RULE.pack({"frh_family": family}), f"ip {_family(family)}rule show")
    return [decode(message.payload) for message in messages if message.type == RTM_NEWRULE]


def add_rule(nl: Netlink, rule: Rule) -> None:
    """Adds a rule. Raises Exists when there is the same one."""
    _ask(nl, RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, rule, "add")


def delete_rule(nl: Netlink, rule: Rule) -> None:
    """Deletes the rule. Raises NotFound."""
    _ask(nl, RTM_DELRULE, 0, rule, "delete")


def _family(family: int) -> str:
    return "-6 " if family == AF_INET6 else ""


def _ask(nl: Netlink, type: int, flags: int, rule: Rule, verb: str) -> None:
    doing = f"ip {_family(rule.family)}rule {verb} {rule}"
    try:
        body = encode(rule)
    except ValueError as why:
        raise ConfigError(str(why), doing) from None
    try:
        nl.request(type, flags, body, doing)
    except KernelError as why:
        if why.errno == errno.EEXIST:
            raise Exists(str(why)) from None
        if why.errno == errno.ENOENT:
            raise NotFound(str(why)) from None
        raise
