"""What this node says of its flow table: which links it has, which pods stay out of it, or why there is none.

Values in, values out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tortie.calc.flow_tables import LACKING, looked_at, without
from tortie.calc.state import DesiredState
from tortie.dataplane.stages.flow_tables import FlowTables


def flow_table_answer(
    state: DesiredState | None, stage: FlowTables, failures: Sequence[str], pod_at: Callable[[str], str]
) -> dict[str, Any]:
    """`failures` are the stage's. `asked`: whether somebody wants a flow table here; `why` there is none then, ""
    where there is one; `out` has by pod why it stays out of it."""
    if state is None or not state.settings.flow_tables:
        return {"asked": False, "why": "", "links": [], "out": {}}
    why = without(state.settings) or (LACKING if stage.lacking else "") or "; ".join(failures)
    devices = stage.devices
    if not why and devices is None:
        why = "not made yet"
    out = {pod_at(name): reason for name, one in state.endpoints.items() if (reason := looked_at(one.qos))}
    return {"asked": True, "why": why, "links": sorted(devices or ()), "out": dict(sorted(out.items()))}
