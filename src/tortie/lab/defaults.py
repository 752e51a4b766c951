"""What a lab is where nothing else is said. Imports nothing: the command line shows it in its help."""

from __future__ import annotations

DEFAULT_NAME = "default"
DEFAULT_NODES = 3
DEFAULT_POOL = "10.244.0.0/16"
DEFAULT_POOL6 = "fd00:10:244::/56"
SERVICE_CIDRS = ("10.96.0.0/12", "fd00:10:96::/112")
"""Where services have their addresses, in labs that have services."""

CNI_NETWORKS = ("bridge", "ipvlan-l2", "ipvlan-l3", "macvlan", "own")
OWN_NETWORK = "own"

FLANNEL, CANAL = "flannel", "canal"
"""Networks of flanneld's: alone, and with agents that enforce policy."""
FLANNEL_BACKENDS = ("vxlan", "host-gw", "udp", "ipip", "wireguard")
"""The first is the one where nothing is said."""
IPV4_BACKENDS = ("udp", "ipip")
"""Those of them that carry no IPv6."""
