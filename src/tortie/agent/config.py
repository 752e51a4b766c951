"""What the agent is told on its command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RUN_DIR = Path("/run/tortie")
HEALTH_PORT = 9099
METRICS_PORT = 9091
CONNECT_DELAY = 2
"""Seconds from the start of BIRD to the first dial, as in Calico's configuration."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """`ipv4` and `ipv6` carry the prefix length of the node's subnet; empty: what the Node object says. Ports of 0 are
    not served. `bgp` False runs no BIRD: then the node's own blocks are blackholed by the agent."""

    node: str
    datastore: str
    run_dir: Path = RUN_DIR
    ipv4: str = ""
    ipv6: str = ""
    bgp: bool = True
    connect_delay: int = CONNECT_DELAY
    health_port: int = HEALTH_PORT
    metrics_port: int = METRICS_PORT

    @property
    def socket(self) -> Path:
        return self.run_dir / "agent.sock"
