"""What the commands of `tortie ipam` print: calicoctl's tables and sentences. Values in, text out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tortie.base.addr import IP
from tortie.ipam.allocation import Allocation
from tortie.ipam.explain import Explanation
from tortie.ipam.leak import held_ready
from tortie.ipam.report import Report, Users
from tortie.ipam.survey import Survey
from tortie.ipam.usage import ORPHANS, BlockUsage, PoolUsage
from tortie.model.ipam import IPAMConfigSpec

TOP = 20
"""Nodes that `check` lists, those with most addresses first."""

USAGE = ("GROUPING", "CIDR", "IPS TOTAL", "IPS IN USE", "IPS RESERVED", "IPS FREE")
BORROWED = ("IP", "BORROWING-NODE", "BLOCK", "BLOCK OWNER", "TYPE", "ALLOCATED-TO")


def boxed(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in a box, as calicoctl draws it: headings in the middle, numbers to the right.

    >>> print(boxed(["CIDR", "IPS"], [["10.0.0.0/26", "64"]]), end="")
    +-------------+-----+
    |    CIDR     | IPS |
    +-------------+-----+
    | 10.0.0.0/26 |  64 |
    +-------------+-----+
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+\n"
    lines = [_line(_heading(cell, width) for cell, width in zip(headings, widths, strict=True))]
    body = [_line(_cell(cell, width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "".join((rule, *lines, rule, *body, rule if body else ""))


def _line(cells: Iterable[str]) -> str:
    return "".join(f"| {cell} " for cell in cells) + "|\n"


def _heading(text: str, width: int) -> str:
    left = (width - len(text)) // 2
    return (" " * left + text).ljust(width)


def _cell(text: str, width: int) -> str:
    try:
        float(text)
    except ValueError:
        return text.ljust(width)
    return text.rjust(width)


def usage_table(pools: Sequence[PoolUsage], with_blocks: bool) -> str:
    """How full pools are, and with `with_blocks` each block; below the table, how many of the free ones nodes hold
    ready."""
    rows: list[tuple[str, ...]] = []
    for pool in pools:
        kind, cidr = ("IP Pool", str(pool.net)) if pool.net is not None else ("IP Pool", ORPHANS)
        rows.append((kind, cidr, *_counts(pool)))
        if with_blocks:
            rows.extend(("Block", each.block.spec.cidr, *_counts(each)) for each in pool.blocks)
    ready = sum(pool.ready for pool in pools)
    note = f"{ready} of the free IPs are held ready by nodes for pods to come.\n" if ready else ""
    return boxed(USAGE, rows) + note


def _counts(of: PoolUsage | BlockUsage) -> tuple[str, ...]:
    shares = (_share(count, of.capacity) for count in (of.in_use, of.reserved, of.available))
    return f"{float(of.capacity):.5g}", *shares


def _share(count: int, of: int) -> str:
    """`5 (8%)`: five digits, and how much that is of the whole."""
    return f"{float(count):.5g} ({100 * count / of if of else 0:.0f}%)"


def usage_documents(pools: Iterable[PoolUsage]) -> list[dict[str, Any]]:
    """The same for machines."""
    return [
        {
            "name": pool.name,
            "cidr": str(pool.net) if pool.net is not None else None,
            **_numbers(pool),
            "blocks": [
                {"cidr": each.block.spec.cidr, "affinity": each.block.spec.affinity, **_numbers(each)}
                for each in pool.blocks
            ],
        }
        for pool in pools
    ]


def _numbers(of: PoolUsage | BlockUsage) -> dict[str, int]:
    return {"total": of.capacity, "inUse": of.in_use, "reserved": of.reserved, "free": of.available, "ready": of.ready}


def borrowed_text(allocations: Sequence[Allocation]) -> str:
    """The addresses that nodes have from blocks that are not theirs."""
    rows = [
        (str(each.ip), each.node, each.block, owner_of(each), *_allocated_to(each))
        for each in allocations
        if each.borrowed
    ]
    unknown = sum(1 for each in allocations if not each.node and not each.cooling and not each.reserved)
    note = f"{unknown} addresses have no node, so nobody can tell whether they are borrowed.\n" if unknown else ""
    return boxed(BORROWED, rows) + note


def borrowed_documents(allocations: Iterable[Allocation]) -> list[dict[str, str]]:
    """The same for machines."""
    found = []
    for each in allocations:
        if each.borrowed:
            kind, holder = _allocated_to(each)
            place = {"ip": str(each.ip), "node": each.node, "block": each.block, "blockOwner": owner_of(each)}
            found.append({**place, "type": kind, "allocatedTo": holder})
    return found


def owner_of(each: Allocation) -> str:
    """The name of whose the block is."""
    return (each.affinity or "").partition(":")[2]


def _allocated_to(each: Allocation) -> tuple[str, str]:
    if each.pod is not None:
        return "pod", "/".join(each.pod)
    return each.attrs.get("type", ""), each.attrs.get("service") or each.handle or ""


def configuration_rows(config: IPAMConfigSpec) -> list[tuple[str, str]]:
    """PROPERTY and VALUE of the IPAM configuration, defaults filled in."""
    return [
        ("StrictAffinity", _word(config.strict_affinity)),
        ("AutoAllocateBlocks", _word(config.auto_allocate)),
        ("MaxBlocksPerHost", str(config.max_blocks_per_host)),
        ("KubeVirtVMAddressPersistence", config.kube_virt_vm_address_persistence or "Enabled"),
        ("IPCooldownSeconds", str(config.ip_cooldown_seconds)),
    ]


def _word(value: bool) -> str:
    return "true" if value else "false"


def address_text(ip: IP, held: Allocation | None) -> str:
    """`show --ip`."""
    if held is None:
        return f"{ip} is not assigned\n"
    if held.cooling:
        return f"{ip} is not assigned: released at {held.released_at}, it cools down\n"
    lines = [f"IP {ip} is in use", f"Handle ID: {held.handle or '<none>'}"]
    if held.attrs:
        lines += ["Attributes:", *(f"  {key}: {value}" for key, value in sorted(held.attrs.items()))]
    if held.alternate:
        lines += ["Alternate owner:", *(f"  {key}: {value}" for key, value in sorted(held.alternate.items()))]
    return "\n".join(lines) + "\n"


def explanation_text(found: Explanation) -> str:
    """The address and its state, then a line for each fact."""
    width = max((len(label) for label, _ in found.facts), default=0)
    lines = [f"{found.ip}  {found.state}", *(f"  {label.ljust(width)}  {text}" for label, text in found.facts)]
    return "\n".join(lines) + "\n"


def check_lines(found: Report, show_all: bool, show_problems: bool) -> Iterator[str]:
    """What `check` says, section by section."""
    survey = found.survey
    yield "Checking IPAM for inconsistencies..."
    yield ""
    yield f"Found {len(survey.blocks)} IPAM blocks."
    for block in survey.blocks:
        yield f"  IPAM block {block.spec.cidr} affinity={block.spec.affinity or 'none'}"
    yield f"IPAM blocks record {len(survey.allocations)} allocations."
    if show_all:
        yield from (f"  {each}" for each in survey.allocations)
    yield ""
    pools = [pool.spec.cidr for pool in survey.pools if not pool.spec.disabled]
    yield f"Found {len(pools)} active IP pools."
    yield from (f"  {cidr}" for cidr in pools)
    yield ""
    yield f"Found {len(survey.tunnels)} node tunnel IPs."
    yield f"Found {sum('service' in each.attrs for each in survey.allocations)} service load balancer IPs."
    yield f"Found {len(survey.users)} workload IPs."
    yield f"Workloads and nodes are using {len({*survey.users, *survey.tunnels})} IPs."
    ready = sum(held_ready(each, survey) for each in survey.allocations)
    if ready:
        yield f"Nodes hold {ready} IPs ready for pods to come."
    yield from _top_nodes(survey)
    yield ""
    yield from _problem_lines(found, show_all or show_problems)
    yield ""
    yield f"Check complete; found {found.problems} problems."


def _top_nodes(survey: Survey) -> Iterator[str]:
    nodes = Counter(each.node for each in survey.allocations if each.node)
    if nodes:
        yield f"Nodes with most allocations (of {len(nodes)}):"
        yield from (f"  {node} has {count}" for node, count in nodes.most_common(TOP))


def _problem_lines(found: Report, show: bool) -> Iterator[str]:
    yield f"Found {len(found.leaked)} IPs that are allocated in IPAM but not actually in use."
    if show:
        yield from (f"  {each}: {why.reason}" for each, why in found.leaked)
    sections: Mapping[str, Users] = {
        "in-use IPs that are not in active IP pools": found.outside,
        "in-use IPs that are in active IP pools but have no corresponding IPAM allocation": found.missing,
        "IPs that several endpoints have": found.twice,
    }
    for what, users in sections.items():
        yield f"Found {len(users)} {what}."
        if show:
            yield from (f"  {ip}: {', '.join(titles)}" for ip, titles in users.items())
    yield f"Found {len(found.idle_handles)} handles with no matching IPs."
    if show:
        yield from (f"  {each.spec.handle_id}" for each in found.idle_handles)
    yield f"Found {len(found.findings)} blocks, affinities and handles that do not fit together."
    yield from (f"  {each}" for each in found.findings)
