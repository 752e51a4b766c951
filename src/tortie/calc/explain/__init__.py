"""What happens to a connection, and why: every station that its first packet passes, on values.

    explainer = Explainer(cluster)                       a Cluster with node=None: everybody is local
    ends = explainer.party("red/web"), explainer.party("198.51.100.9")
    told = explainer.explain(*ends, "tcp", 443, 4)
    told.allowed, told.decisive.reason, [(step.hook, step.rule) for step in told.steps]

`parties` says who can be asked about, `services` who is behind a service for whom, `journey` in which order a packet
meets what, `path` what NAT and routing do on the way. The kernel's counters are not ours to read: every step names the
rule or the service that decides, and whoever shows the explanation asks the node for their counters.
"""

from __future__ import annotations

from tortie.calc.explain.explainer import Explainer
from tortie.calc.explain.explanation import Explanation, Note, Past, Route, Step
from tortie.calc.explain.party import Party, Translation

__all__ = ["Explainer", "Explanation", "Note", "Party", "Past", "Route", "Step", "Translation"]
