"""Where flows are cut that policy forbids: a connection that connection tracking does not know is not taken up midway.

    forward, output    a TCP segment of a pod's that begins nothing, and is taken for the first of a flow ─► drop

When a flow's entry is deleted, its next packet counts as new. In the direction in which the flow was opened, policy
denies it. The other end's next packet would make a flow of its own in the other direction, which policy may allow, and
everything would go on. So these chains come after policy, and drop what it lets by.
"""

from __future__ import annotations

from tortie.calc.state import Settings
from tortie.render.denials import DROPPED
from tortie.render.match import denial
from tortie.render.ruleset import Chain
from tortie.render.sources import WORKLOADS

MIDWAY = "in the middle of a connection: established-flows is Cut"
_BEGINS_NOTHING = "ct state new tcp flags & (fin | syn | rst | ack) != syn"


def midway_chains(settings: Settings) -> dict[str, Chain]:
    """None unless flows are cut."""
    if settings.established != "Cut":
        return {}
    drop = denial(MIDWAY, DROPPED)
    forward = tuple(f"{side} {WORKLOADS} {_BEGINS_NOTHING} {drop}" for side in ("iifname", "oifname"))
    return {
        "midway-forward": Chain(forward, "type filter hook forward priority filter + 10; policy accept;"),
        "midway-output": Chain(forward[1:], "type filter hook output priority filter + 10; policy accept;"),
    }
