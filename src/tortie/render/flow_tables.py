"""The table `inet tortie-flows`: established TCP connections of pods go past all rules.

    ingress of each link   in the flow table? ─► out at the connection's other link, past routing and every hook
    forward (filter + 20)  after policy: TCP, established, of a pod ─► into the flow table

A table of its own: a link that has just gone makes nft refuse the whole transaction, which must not be that of policy.
"""

from __future__ import annotations

from collections.abc import Iterable

from tortie.calc.flow_tables import FlowTable
from tortie.render.sources import WORKLOADS

TABLE = "inet tortie-flows"
"""Everything in it is ours."""
FLOWS = "established"
"""The flow table's name."""
PRIORITY = 20
"""After policy (`filter`) and what comes after it (`filter + 10`)."""

AT_ONCE = 200
"""Links in one statement: the kernel refuses 256 (NFT_NETDEVICE_MAX, net/netfilter/nf_tables_api.c)."""


def fresh(table: FlowTable) -> str:
    """The script that makes it where there is nothing."""
    members = f" elements = {{ {', '.join(map(_quoted, sorted(table.slow)))} }};" if table.slow else ""
    flows = "ct state established meta l4proto tcp iifname != @slow oifname != @slow"
    lines = (
        f"add table {TABLE}",
        f"add set {TABLE} slow {{ type ifname;{members} }}",
        f"add flowtable {TABLE} {FLOWS} {{ hook ingress priority filter; counter; }}",
        f"add chain {TABLE} forward {{ type filter hook forward priority filter + {PRIORITY}; policy accept; }}",
        *(f"add rule {TABLE} forward {flows} {way} {WORKLOADS} flow add @{FLOWS}" for way in ("iifname", "oifname")),
    )
    return "\n".join(lines) + "\n" + more(table.devices)


def more(devices: Iterable[str]) -> str:
    """The script that adds links to those of the table."""
    names = sorted(map(_quoted, devices))
    portions = (", ".join(names[at : at + AT_ONCE]) for at in range(0, len(names), AT_ONCE))
    return "".join(
        f"add flowtable {TABLE} {FLOWS} {{ hook ingress priority filter; devices = {{ {portion} }}; }}\n"
        for portion in portions
    )


def removal() -> str:
    return f"delete table {TABLE}\n"


def _quoted(name: str) -> str:
    return f'"{name}"'
