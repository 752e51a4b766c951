"""Who writes the routes to other nodes' blocks into the kernel: BIRD, or the agent itself.

Two settings, independent of each other, as in Calico; each names what its own side writes. VXLAN is always the agent's.

    BGPConfiguration programClusterRoutes      BIRD           FelixConfiguration programClusterRoutes     agent
    EnabledNoEncapOnly (default)               none           EnabledIPIPOnly (default)                   IPIP
    Enabled                                    none, IPIP     Enabled                                     none, IPIP
    EnabledIPIPOnly                            IPIP           EnabledNoEncapOnly                          none
    Disabled                                   -              Disabled                                    -

Where both write a route there are two, of different metrics, and BIRD's is used; where neither does there is none.
"""

from __future__ import annotations

from tortie.calc.state import Programming

_BIRD = {
    "EnabledNoEncapOnly": frozenset({""}),
    "Enabled": frozenset({"", "IPIP"}),
    "EnabledIPIPOnly": frozenset({"IPIP"}),
    "Disabled": frozenset[str](),
}
_AGENT = {
    "EnabledIPIPOnly": frozenset({"IPIP"}),
    "Enabled": frozenset({"", "IPIP"}),
    "EnabledNoEncapOnly": frozenset({""}),
    "Disabled": frozenset[str](),
}


def programming(bgp: str | None, felix: str | None) -> Programming:
    """What the two settings mean. None, or a value that is none of them: the default, as in Calico."""
    bird = _BIRD.get(bgp or "", _BIRD["EnabledNoEncapOnly"])
    agent = _AGENT.get(felix or "", _AGENT["EnabledIPIPOnly"])
    return Programming(bird, agent | {"VXLAN"})
