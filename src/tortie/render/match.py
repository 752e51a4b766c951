"""One policy rule as lines of nft. A rule becomes several lines where its clauses are alternatives for nft: two address
families, numeric or named ports. They share their identity, so their counters add up.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from itertools import product

from tortie.base.addr import Net, collapse
from tortie.calc.state import Settings
from tortie.model.policy import PORT_PROTOCOLS
from tortie.policy.rules import Direction, Policy, PolicyKey, PolicyRule, PortSet, SelectorSet, ServiceSet, SetRef, Side
from tortie.render.denials import DENIED, number

ACCEPT = 0x00010000
"""Mark bit: the policy of this direction allows the packet. The lowest of Calico's range 0xffff0000."""
PASS = 0x00020000
"""Mark bit: go on with the next tier."""
CLEAR = 0xFFFFFFFF & ~(ACCEPT | PASS)
CLEAR_PASS = 0xFFFFFFFF & ~PASS

FAMILY = {4: "ip", 6: "ip6"}
ADDRESS_WORD = {"source": "saddr", "destination": "daddr"}
PORT_WORD = {"source": "sport", "destination": "dport"}


NAME_LENGTH = 120
"""Characters of a chain's name or a comment. nft takes 127 bytes of a comment."""
LOG_LENGTH = 125
"""Characters of a log prefix without its `: `. The kernel takes 127 bytes: NF_LOG_PREFIXLEN (netfilter/nf_log.h)."""
CHAIN_NAME = re.compile(r"[A-Za-z0-9._/-]*")
COMMENT = re.compile(r"[A-Za-z0-9._/|:, -]*")


def fit(text: str, limit: int = NAME_LENGTH, plain: re.Pattern[str] = COMMENT) -> str:
    """`text`, if nft reads all of it as a name. What is longer than `limit`, or holds anything else, becomes a name
    that begins alike and ends in a digest. Everything that somebody has named goes through here."""
    if len(text) <= limit and plain.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{re.sub(r'[^A-Za-z0-9._/-]', '_', text[: limit - 17])}_{digest}"


def comment(identity: str) -> str:
    """A rule's identity as nft's comment."""
    return f'comment "{fit(identity)}"'


def log_prefix(template: str, policy: Policy) -> str:
    """FelixConfiguration's logPrefix for the rules of a policy: %t is its tier, %k its kind, %n its name, %p its name
    with its namespace. What nft would read as more than text ends as `_`."""
    key = policy.key
    words = {"%t": policy.tier, "%k": key.kind, "%n": key.name, "%p": f"{key.namespace}/{key.name}".removeprefix("/")}
    text = re.sub("%[tknp]", lambda found: words[found[0]], template)
    return re.sub(r'[^ -~]|["$\\]', "_", text)[:LOG_LENGTH]


def log_statement(settings: Settings, policy: Policy) -> str:
    """What a Log rule of a policy does. Its counter comes before: it has what matches, the log what the limit lets."""
    limit = f"limit rate {settings.log_rate} burst {settings.log_burst} packets " if settings.log_rate else ""
    return f'{limit}log prefix "{log_prefix(settings.log_prefix, policy)}: "'


def policy_chain(key: PolicyKey, direction: Direction) -> str:
    """The chain of a policy: `pi-np/red/web`. Long names are cut and end in a digest."""
    return fit(f"{'pi' if direction == 'ingress' else 'po'}-{key}", plain=CHAIN_NAME)


def set_name(ref: SetRef, version: int) -> str:
    """The kernel name of a set: the same for the same meaning on every node and after every restart."""
    if isinstance(ref, SelectorSet):
        return f"s{version}-{ref.uid.removeprefix('s:')}"
    if isinstance(ref, ServiceSet):
        return f"svc{version}-{hashlib.sha224(ref.uid.encode()).hexdigest()[:32]}"
    return f"n{version}-{hashlib.sha224(ref.uid.encode()).hexdigest()[:32]}"


def rule_lines(rule: PolicyRule, identity: str, log: str, denying: str = DENIED) -> Iterator[str]:
    """The nft rules of one policy rule; none when it can match in neither family. `log` is the statement that logs,
    `denying` the chain that what it denies goes to."""
    ending = _ending(rule, identity, log, denying)
    return (f"{clauses} {ending}".lstrip() for clauses in rule_clauses(rule))


def rule_clauses(rule: PolicyRule) -> Iterator[str]:
    """What a packet must be for one policy rule to match it: each of these is enough."""
    for version in rule.versions if _needs_family(rule) else (0,):
        alternatives = (
            list(_icmp(rule, version)),
            list(_side(rule.source, "source", version)),
            list(_side(rule.destination, "destination", version)),
        )
        for choice in product(*alternatives):
            protocol, others = list(_protocol(rule)), [part for part in choice if part]
            # nft cannot list what looks for ports after it has named a protocol that it knows to have none.
            last = rule.protocol not in (None, *PORT_PROTOCOLS) and any(" . th " in part for part in others)
            clauses = [*others, *protocol] if last else [*protocol, *others]
            if version and not any(clause.startswith(f"{FAMILY[version]} ") for clause in clauses):
                clauses.insert(0, f"meta nfproto ipv{version}")
            yield " ".join(clauses)


def denial(identity: str, chain: str = DENIED) -> str:
    """The end of a rule that denies. The packet takes the rule's number along, for whoever watches."""
    name = fit(identity)
    return f'counter meta mark set {number(name):#010x} goto {chain} comment "{name}"'


def _needs_family(rule: PolicyRule) -> bool:
    return rule.source.asks_address or rule.destination.asks_address or len(rule.versions) < 2


def _ending(rule: PolicyRule, identity: str, log: str, denying: str) -> str:
    match rule.action:
        case "Allow":
            does = f"meta mark set meta mark | {ACCEPT:#010x} return"
        case "Pass":
            does = f"meta mark set meta mark | {PASS:#010x} return"
        case "Log":
            does = log
        case "Deny":
            return denial(identity, denying)
    return f"counter {does} {comment(identity)}"


def _protocol(rule: PolicyRule) -> Iterator[str]:
    if rule.protocol is not None:
        yield f"meta l4proto {rule.protocol}"
    if rule.not_protocol is not None:
        yield f"meta l4proto != {rule.not_protocol}"


def _icmp(rule: PolicyRule, version: int) -> Iterator[str]:
    """Alternatives of the ICMP clauses; one empty text when there are none."""
    word = "icmpv6" if rule.protocol == 58 else "icmp"
    clauses = ""
    if rule.icmp is not None:
        kind, code = rule.icmp
        clauses = f"{word} type {kind}" + (f" {word} code {code}" if code is not None else "")
    if rule.not_icmp is None:
        yield clauses
        return
    kind, code = rule.not_icmp
    yield f"{clauses} {word} type != {kind}".strip()
    if code is not None:  # NOT (type and code) is: another type, or this type with another code
        yield f"{clauses} {word} type {kind} {word} code != {code}".strip()


def _side(side: Side, end: str, version: int) -> Iterator[str]:
    """Alternatives of one end's clauses."""
    family, address, port = FAMILY.get(version, ""), ADDRESS_WORD[end], PORT_WORD[end]
    fixed: list[str] = []
    if side.nets:
        fixed.append(f"{family} {address} {_nets(side.nets, version)}")
    not_nets = [net for net in side.not_nets if net.version == version]
    if not_nets:
        fixed.append(f"{family} {address} != {_nets(tuple(not_nets), version)}")
    fixed.extend(f"{family} {address} @{set_name(ref, version)}" for ref in side.sets)
    fixed.extend(f"{family} {address} != @{set_name(ref, version)}" for ref in side.not_sets)
    for service in side.services:
        what = _triple(family, address, port) if service.ports else f"{family} {address}"
        fixed.append(f"{what} @{set_name(service, version)}")
    if side.not_ports:
        fixed.append(f"th {port} != {_ports(side.not_ports)}")
    fixed.extend(f"{_triple(family, address, port)} != @{set_name(ref, version)}" for ref in side.not_named)
    options: list[str] = []
    if side.ports:
        options.append(f"th {port} {_ports(side.ports)}")
    options.extend(_named(ref, family, address, port, version) for ref in side.named)
    for option in options or [""]:
        yield " ".join(part for part in (*fixed, option) if part)


def _named(ref: PortSet, family: str, address: str, port: str, version: int) -> str:
    return f"{_triple(family, address, port)} @{set_name(ref, version)}"


def _triple(family: str, address: str, port: str) -> str:
    return f"{family} {address} . meta l4proto . th {port}"


def _nets(nets: tuple[Net, ...], version: int) -> str:
    mine = [str(net) for net in collapse(net for net in nets if net.version == version)]
    return mine[0] if len(mine) == 1 else f"{{ {', '.join(mine)} }}"


def _ports(ports: tuple[tuple[int, int], ...]) -> str:
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ports]
    return texts[0] if len(texts) == 1 else f"{{ {', '.join(texts)} }}"
