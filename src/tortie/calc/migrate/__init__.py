"""What an existing cluster would become, and how to get there: a plan made of its objects alone.

kubectl get -o yaml ──gathered──► Evidence ──calico | flannel──► Migration ──► tables, steps, the way back
"""

from __future__ import annotations

from tortie.calc.migrate.calico import calico
from tortie.calc.migrate.evidence import Evidence, gathered
from tortie.calc.migrate.flannel import flannel
from tortie.calc.migrate.plan import Finding, Migration, NodeRow, PoolRow, Step

__all__ = ["Evidence", "Finding", "Migration", "NodeRow", "PoolRow", "Step", "calico", "flannel", "gathered"]
