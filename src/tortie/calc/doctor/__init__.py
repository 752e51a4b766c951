"""Is this machine, and the way to the other nodes, such that pods reach one another? What is found, judged.

Seen (machine, cluster, ways) ─► judge ─────────────┬─► Finding: ok, warn or bad; what; where; what to do
what an agent says of services ─► judge_services ───┘
"""

from tortie.calc.doctor.findings import LEVELS, Finding, judge
from tortie.calc.doctor.seen import (
    Chain,
    Cluster,
    Interface,
    Machine,
    Marking,
    PolicyRule,
    Seen,
    Way,
)
from tortie.calc.doctor.services import judge_services

__all__ = [
    "LEVELS",
    "Chain",
    "Cluster",
    "Finding",
    "Interface",
    "Machine",
    "Marking",
    "PolicyRule",
    "Seen",
    "Way",
    "judge",
    "judge_services",
]
