"""A cluster on paper, and who reaches whom in it.

simulation   manifests (files, workloads, slices) made a cluster that can be asked: Simulation
reach        verdicts for many pods at once: equal pods are asked once (services: packets, as finely cut as the rules)
matrix       a table of who reaches whom
diff         what a change opens and closes (names: in words)
"""

from __future__ import annotations

from tortie.calc.simulate.simulation import DEFAULT_PORT, OUTSIDE, OUTSIDE_IPS, Key, Port, Simulation

__all__ = ["DEFAULT_PORT", "OUTSIDE", "OUTSIDE_IPS", "Key", "Port", "Simulation"]
