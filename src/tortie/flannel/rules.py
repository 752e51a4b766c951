"""flannel's nft tables, as text: `ip flannel-ipv4`, `ip6 flannel-ipv6`. A second network's have names of their own.

N: the network, P: this node's subnet in it, M: multicast. First match wins.

    chain forward                               chain postrtg
      saddr N   accept                            mark 0x4000 set        return      kube-proxy masquerades it
      daddr N   accept                            saddr P   daddr N      return      pod to pod
                                                  saddr N   daddr P      return      pod to pod
                                                  saddr !N  daddr P      return      a pod sees its clients' addresses
                                                  saddr N   daddr !M     masquerade  pod to the world
                                                  saddr !N  daddr N      masquerade  this host to other nodes' pods

Names are those of flanneld's own tables, so that what an earlier flanneld left is replaced. The decisions are those of
its iptables rules, which are not those of its nftables rules: there the fourth compares P and N the other way round,
the last is never reached, and the mark is compared whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tortie.base.addr import Net
from tortie.flannel.config import NetworkConfig
from tortie.flannel.lease import Lease

TABLES = {4: "ip flannel-ipv4", 6: "ip6 flannel-ipv6"}
"""By IP version."""
ORDINARY, ORDINARY_PREFIX = "subnet", "coreos.com/network"
"""The subnet file's name without its ending, and the prefix in etcd, where a node has one network."""
MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}
MASQUERADED = 0x4000
"""The bit that kube-proxy sets in the mark of packets that it masquerades itself."""


def names(subnet_file: Path, etcd_prefix: str = ORDINARY_PREFIX) -> Mapping[int, str]:
    """The tables of the daemon that writes this file, for the network under that prefix of etcd: several on one node
    must not write each other's.

    >>> names(Path("/run/flannel/subnet.env"))[4], names(Path("/run/flannel/red.env"))[4]
    ('ip flannel-ipv4', 'ip flannel-ipv4-red')
    >>> names(Path("/run/flannel-red/subnet.env"), "/red/network")[4]
    'ip flannel-ipv4-red-network'
    """
    whose = subnet_file.stem if subnet_file.stem != ORDINARY else ""
    if not whose and etcd_prefix.strip("/") != ORDINARY_PREFIX:
        whose = etcd_prefix.strip("/")
    suffix = re.sub(r"[^A-Za-z0-9_.-]", "-", f"-{whose}") if whose else ""
    return {version: f"{table}{suffix}" for version, table in TABLES.items()}


def tables(
    config: NetworkConfig,
    lease: Lease,
    called: Mapping[int, str] = TABLES,
    *,
    masq: bool,
    forward: bool,
    random_fully: bool = True,
) -> Mapping[str, str]:
    """The text of each table by its name; "" for one that is not to be there. `masq`, `forward`: what is wanted;
    `random_fully`: masqueraded packets get random ports, against two that get the same at one instant."""
    found = {}
    for version, family, subnet in ((4, config.v4, lease.subnet), (6, config.v6, lease.subnet6)):
        chains = ""
        if family is not None and subnet is not None:
            chains += _forward(version, family.network) if forward else ""
            chains += _postrouting(version, family.network, subnet, random_fully) if masq else ""
        table = called[version]
        comment = f'    comment "rules for {table.split()[1]}"\n'
        found[table] = f"table {table} {{\n{comment}{chains}}}\n" if chains else ""
    return found


def _forward(version: int, network: Net) -> str:
    ip = _word(version)
    rules = (
        (f"{ip} saddr {network}", "accept", "from pods"),
        (f"{ip} daddr {network}", "accept", "to pods"),
    )
    return _chain("forward", "filter hook forward priority filter", "chain to accept flannel traffic", "forward", rules)


def _postrouting(version: int, network: Net, subnet: Net, random_fully: bool) -> str:
    ip = _word(version)
    masquerade = "masquerade fully-random" if random_fully else "masquerade"
    mark = f"{MASQUERADED:#x}"
    rules = (
        (f"meta mark & {mark} == {mark}", "return", "marked by kube-proxy"),
        (f"{ip} saddr {subnet} {ip} daddr {network}", "return", "own pods to pods"),
        (f"{ip} saddr {network} {ip} daddr {subnet}", "return", "pods to own pods"),
        (f"{ip} saddr != {network} {ip} daddr {subnet}", "return", "clients to own pods"),
        (f"{ip} saddr {network} {ip} daddr != {MULTICAST[version]}", masquerade, "pods to the world"),
        (f"{ip} saddr != {network} {ip} daddr {network}", masquerade, "host to pods"),
    )
    hook = "nat hook postrouting priority srcnat"
    return _chain("postrtg", hook, "chain to manage traffic masquerading by flannel", "masq", rules)


def _chain(name: str, hook: str, comment: str, of: str, rules: tuple[tuple[str, str, str], ...]) -> str:
    lines = [f"chain {name} {{", f'    comment "{comment}"', f"    type {hook}; policy accept;"]
    lines += [f'    {match} counter {verdict} comment "flanneld {of}: {what}"' for match, verdict, what in rules]
    return "".join(f"    {line}\n" for line in (*lines, "}"))


def _word(version: int) -> str:
    return "ip" if version == 4 else "ip6"
