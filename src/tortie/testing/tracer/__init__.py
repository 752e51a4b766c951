"""A packet tracer: what the kernel would do with a packet, read off a rendered ruleset, without a kernel.

    render.nft ─► Ruleset ─► Tracer(ruleset, host).trace(packet, interface) ─► Trace: verdict, rule, every rule it met

It reads the text of the rules, as nft does, and knows nothing of policy: so it is a second opinion on what the renderer
wrote. What it does not know it refuses.
"""

from tortie.testing.tracer.flight import Host, host_of
from tortie.testing.tracer.machine import Line, Trace, Tracer
from tortie.testing.tracer.words import NotUnderstood

__all__ = ["Host", "Line", "NotUnderstood", "Trace", "Tracer", "host_of"]
