"""How IPAM's objects are named and labelled in a datastore. Source: Calico's CRDs, so that both can share one."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache

from tortie.base.addr import Net
from tortie.ipam.owner import Owner

HOSTNAME_HASH = "projectcalico.org/hostname-hash"
AFFINITY_TYPE = "projectcalico.org/affinity-type"
IP_VERSION = "projectcalico.org/ip-version"

NAME_LIMIT = 253
"""Kubernetes' limit on the length of an object's name."""
DIGEST = 11
"""Hexadecimal digits of the hash that keeps a shortened name unique."""

MACHINE = ".vmi."
"""Stands between the network and the virtual machine in the handle of its addresses."""
HANDLE_LIMIT = 128
"""Characters of such a handle, as in Calico."""

_DASHES = str.maketrans("./:", "---")


def block_name(net: Net) -> str:
    """`10-0-0-0-26`, `fd80---122`."""
    return str(net).translate(_DASHES)


def affinity_name(host: str, net: Net) -> str:
    """`node1-10-0-0-0-26`; a host name that would make it too long is cut and a hash put at the end."""
    block = block_name(net)
    name = f"{host}-{block}"
    if len(name) < NAME_LIMIT:
        return name
    digest = hashlib.sha256(f"{host}+{block}".encode()).hexdigest()[:DIGEST]
    room = NAME_LIMIT - 1 - len(block) - len(digest) - len("--")
    return f"{host[:room]}-{block}-{digest}"


def handle_name(handle: str) -> str:
    """Object names are lower case; the handle's own spelling stays in `spec.handleID`."""
    return handle.lower()


def machine_handle(network: str, namespace: str, machine: str) -> str:
    """`k8s-pod-network.vmi.red.db`: what a virtual machine holds, whichever pod it runs in. Too long a one ends in a
    digest instead."""
    start = f"{network}{MACHINE}"
    name = f"{namespace}.{machine}"
    if len(start) + len(name) <= HANDLE_LIMIT:
        return start + name
    digest = base64.urlsafe_b64encode(hashlib.sha256(name.encode()).digest()).decode().rstrip("=")
    return f"{start}_{digest}"[:HANDLE_LIMIT]


def machine_network(handle: str) -> str | None:
    """The network of a virtual machine's handle; None for a container's."""
    network, between, rest = handle.rpartition(MACHINE)
    return network if between and rest else None


@lru_cache(maxsize=4096)
def hostname_hash(host: str) -> str:
    """A host name as a label value, whatever its length."""
    return base64.b32encode(hashlib.sha3_256(host.encode()).digest()).decode().rstrip("=")


def affinity_labels(owner: Owner, version: int) -> dict[str, str]:
    """What an affinity is found by: whose it is, of which type, for which IP version."""
    return {HOSTNAME_HASH: hostname_hash(owner.name), AFFINITY_TYPE: owner.type, IP_VERSION: str(version)}
