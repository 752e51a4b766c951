"""What the agent is told on its command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RUN_DIR = Path("/run/tortie")
HEALTH_PORT = 9099
METRICS_PORT = 9091
PROXY_HEALTH_PORT = 10256
"""kube-proxy's, by which load balancers ask whether a node serves."""
LIB_DIR = Path("/var/lib/calico")
"""Where Calico's programs look for the files of a machine."""
CNI_CONF_DIR = Path("/etc/cni/net.d")
READY_ADDRESSES = 64
"""A block of the usual size."""
CONNECT_DELAY = 2
"""Seconds from the start of BIRD to the first dial, as in Calico's configuration."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """`node` empty: found as Calico finds it. `ipv4` and `ipv6` are addresses, with the prefix length of the node's
    subnet, or `autodetect`, `none`, or empty: what the environment says. Ports of 0 are not served. `bgp` False runs no
    BIRD: then the node's own blocks are blackholed by the agent. `ready_addresses` are held ready at most for the pods
    of a choice of pools; 0: none. `lib_dir` None: the machine's own agent has Calico's, one with a run directory of its
    own keeps its files there. `defaults`: the first pools and objects are made where there are none. `pod_subnet`:
    kubeadm's, for the first pools. `cni_conf_dir` None: the runtime's directory of network configurations for the
    machine's own agent, `net.d` in the run directory for others. `fanout`: addresses of fan-out
    servers, with commas; empty: what the environment says. `services` is auto, on or off, `nodeport_addresses` networks
    with commas, where NodePorts are answered; empty: what the environment says."""

    node: str
    datastore: str
    run_dir: Path = RUN_DIR
    ipv4: str = ""
    ipv6: str = ""
    bgp: bool = True
    connect_delay: int = CONNECT_DELAY
    health_port: int = HEALTH_PORT
    metrics_port: int = METRICS_PORT
    ready_addresses: int = READY_ADDRESSES
    lib_dir: Path | None = None
    defaults: bool = True
    pod_subnet: str = ""
    cni_conf_dir: Path | None = None
    fanout: str = ""
    services: str = ""
    nodeport_addresses: str = ""
    proxy_health_port: int = PROXY_HEALTH_PORT

    @property
    def socket(self) -> Path:
        return self.run_dir / "agent.sock"

    @property
    def files(self) -> Path:
        """Where the files `mtu` and `nodename` are."""
        return self.lib_dir or (LIB_DIR if self.run_dir == RUN_DIR else self.run_dir)

    @property
    def networks(self) -> Path:
        """Where the CNI configurations of this node are."""
        return self.cni_conf_dir or (CNI_CONF_DIR if self.run_dir == RUN_DIR else self.run_dir / "net.d")
