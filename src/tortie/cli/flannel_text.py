"""What the commands of `tortie flannel` print. Values in, text out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from tortie.cli.output import aligned
from tortie.cli.status import span
from tortie.flannel.lease import Lease

NEIGHBOURS = ("SUBNET", "PUBLIC IP", "NODE", "WAY", "STATE")
RULES = ("TABLE", "RULE", "PACKETS", "BYTES")
LEASES = ("SUBNET", "PUBLIC IP", "NODE", "BACKEND", "EXPIRES", "REMARK")
NOTHING = "-"


def wrong(answer: Mapping[str, Any]) -> list[str]:
    """What is not well with a daemon, in lines."""
    return [*answer.get("failures", ()), *answer.get("problems", ())]


# --- status -------------------------------------------------------------------------------------------------------


def page(answer: Mapping[str, Any], now: datetime) -> str:
    """A daemon on one page; the last lines are what is not well, and what was found."""
    bad = wrong(answer)
    state = "not well" if bad else "well" if answer.get("ready") else "not ready yet"
    lines = [f"{answer['socket']}  {state}"]
    if "pid" in answer:
        lines += [f"  {name:<9} {text}" for name, text in _parts(answer, now) if text]
        lines += ["", *aligned([NEIGHBOURS, *_neighbours(answer)]).splitlines()]
        if rules := _rules(answer.get("rules") or {}):
            lines += ["", *aligned([RULES, *rules]).splitlines()]
        lines += [""] if bad or answer["findings"] else []
    lines += [f"✘ {line}" for line in bad]
    lines += [f"! {line}" for line in answer.get("findings", ())]
    return "\n".join(lines) + "\n"


def _parts(answer: Mapping[str, Any], now: datetime) -> Iterator[tuple[str, str]]:
    node = answer["node"]
    if node is None:
        yield "node", "has no subnet yet"
    else:
        public = ", ".join(filter(None, (node["public_ip"], node["public_ipv6"])))
        yield "node", f"{_subnets(node)} on {node['interface']} (MTU {node['mtu']}), reached by {public}"
        yield "lease", _expiry(node["expires"], now)
    mtu = f", pods' MTU {node['pod_mtu']}" if node is not None else ""
    yield "backend", f"{answer['backend'] or 'not known yet'}{mtu}"
    mode, where = answer["mode"], answer["where"]
    asked = where if where.lower().startswith(mode) else f"{mode}, {where}"
    yield "subnets", f"{asked}{'' if answer['in_sync'] else ', not read yet'}"
    runs = span((now - datetime.fromisoformat(answer["since"])).total_seconds())
    yield "daemon", f"tortie {answer['version']}, process {answer['pid']}, runs for {runs}"
    yield "counted", ", ".join(f"{name} {count}" for name, count in (answer["counters"] or {}).items() if count)


def _neighbours(answer: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    backend = answer["backend"]
    for one in answer["neighbours"]:
        public = ", ".join(filter(None, (one["public_ip"], one["public_ipv6"])))
        yield _subnets(one), public or NOTHING, one["node"] or NOTHING, one["path"] or NOTHING, _state(one, answer)
    if not answer["neighbours"]:
        alone = "none looked for" if backend == "alloc" else "no other node" if answer["in_sync"] else "not known yet"
        yield alone, NOTHING, NOTHING, NOTHING, NOTHING


def _state(neighbour: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """Backends that say no type of theirs (udp, clouds) cannot be told from one another."""
    if neighbour["type"] and neighbour["type"] != answer["backend"]:
        return f"backend {neighbour['type']}"
    if not answer["in_sync"]:
        return "not known yet"
    return "failing" if answer["failures"] else "up"


def _rules(tables: Mapping[str, Mapping[str, Sequence[int]]]) -> list[Sequence[str]]:
    """`tables` have packets and bytes by the rule's comment."""
    return [
        (table, rule.removeprefix("flanneld "), str(packets), str(octets))
        for table, rules in tables.items()
        for rule, (packets, octets) in rules.items()
    ]


def _subnets(one: Mapping[str, Any]) -> str:
    return ", ".join(filter(None, (one["subnet"], one["subnet6"]))) or NOTHING


def _expiry(expires: str | None, now: datetime) -> str:
    if expires is None:
        return "never expires"
    left = (datetime.fromisoformat(expires) - now).total_seconds()
    return f"expires in {span(left)}" if left > 0 else f"expired {span(-left)} ago"


# --- leases -------------------------------------------------------------------------------------------------------


def leases_document(leases: Mapping[str, Lease], reserves: bool) -> list[dict[str, Any]]:
    """For JSON and YAML. `reserves`: a lease without an end is a reservation; in Kubernetes no lease has one."""
    shared = Counter(ip for lease in leases.values() for ip in _public_ips(lease))
    found = []
    for key, lease in sorted(leases.items(), key=lambda item: _order(item[1])):
        twice = [ip for ip in _public_ips(lease) if shared[ip] > 1]
        others = [_name(other, of) for other, of in leases.items() if other != key and {*twice} & {*_public_ips(of)}]
        found.append(
            {
                "key": key,
                "subnet": _text(lease.subnet),
                "subnet6": _text(lease.subnet6),
                "public_ip": _text(lease.attrs.public_ip),
                "public_ipv6": _text(lease.attrs.public_ipv6),
                "node": lease.node or None,
                "type": lease.attrs.backend_type,
                "expires": lease.expires,
                "reservation": reserves and lease.expires is None,
                "same_public_ip": others,
            }
        )
    return found


def leases_table(documents: Iterable[Mapping[str, Any]], now: float) -> str:
    rows = [LEASES]
    for one in documents:
        public = ", ".join(filter(None, (one["public_ip"], one["public_ipv6"])))
        left = "never" if one["expires"] is None else f"in {span(one['expires'] - now)}"
        remarks = ["reservation"] if one["reservation"] else []
        remarks += [f"same public IP as {' and '.join(one['same_public_ip'])}"] if one["same_public_ip"] else []
        node, backend = one["node"] or NOTHING, one["type"] or NOTHING
        rows.append((_subnets(one), public or NOTHING, node, backend, left, ", ".join(remarks)))
    return aligned(rows)


def _public_ips(lease: Lease) -> list[object]:
    return [ip for ip in (lease.attrs.public_ip, lease.attrs.public_ipv6) if ip is not None]


def _name(key: str, lease: Lease) -> str:
    return lease.node or _text(lease.subnet) or _text(lease.subnet6) or key


def _order(lease: Lease) -> tuple[int, int]:
    return (
        int(lease.subnet.network_address) if lease.subnet is not None else -1,
        int(lease.subnet6.network_address) if lease.subnet6 is not None else -1,
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)
