"""`tortie ipam migrate-host-local`: a node whose pods have their addresses from host-local goes over to Calico's IPAM.

tunnel address ─► datastore locked, plugins taken away, host-local locked ─► each address: assigned, its file deleted
                                                                          ─► datastore unlocked, directory deleted

Every step may be done again, and is found done: cut short, the command goes on where it was. Source: Calico's
`calico-ipam -upgrade`, which its init container runs before the plugins are installed.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tortie.base.addr import IP, nth, parse_net
from tortie.base.errors import ConfigError, Conflict, Exists, NotFound, Unavailable
from tortie.cli.migrate import set_ready
from tortie.ipam.assign import Ipam
from tortie.ipam.hostlocal import LOCK, Adopt, moves
from tortie.ipam.survey import pod_ips
from tortie.ipam.tunnel import IPIP, address, with_address
from tortie.model.k8s import K8sNode, Pod
from tortie.model.node import Node
from tortie.model.store import Store
from tortie.policy.selector import parse

PLUGINS = ("calico", "host-local")
"""Executables that go before the addresses are read: no pod gets another one from host-local then."""
SETTLE = 5.0
"""Seconds in which a plugin that is running already ends."""
RETRY = 1.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Places:
    """Where host-local keeps its addresses, and where the plugins are."""

    data_dir: Path
    bin_dir: Path


async def migrate(store: Store, node: str, places: Places, say: Say, settle: float = SETTLE) -> None:
    """Until it is done, however often the datastore is away or the Node not yet there. Raises ConfigError."""
    said = ""
    while True:
        try:
            await migrate_once(store, node, places, say, settle)
            return
        except (Unavailable, Conflict, NotFound) as error:
            if str(error) != said:
                said = str(error)
                say(f"{said}; trying again")
        except OSError as error:
            raise ConfigError(error.strerror or str(error), str(error.filename)) from None
        await asyncio.sleep(RETRY)


async def migrate_once(store: Store, node: str, places: Places, say: Say, settle: float) -> None:
    """One attempt. Raises any TortieError."""
    if not places.data_dir.is_dir():
        say(f"There is nothing to migrate: {places.data_dir} does not exist.")
        return
    ipam = Ipam(store, node, lambda: datetime.now(UTC), lambda text, labels: parse(text).matches(labels))
    await _tunnel_address(store, ipam, node, say)
    if not any(places.data_dir.iterdir()):
        places.data_dir.rmdir()
        say(f"{places.data_dir} was empty.")
        return
    await set_ready(store, False)
    for plugin in PLUGINS:
        (places.bin_dir / plugin).unlink(missing_ok=True)
    await asyncio.sleep(settle)
    with _locked(places.data_dir):
        for move in moves(_files(places.data_dir), await _pods(store, node)):
            if isinstance(move, Adopt):
                await _adopt(ipam, move)
            (places.data_dir / move.file).unlink(missing_ok=True)
            say(str(move))
        await set_ready(store, True)
        (places.data_dir / LOCK).unlink(missing_ok=True)
        places.data_dir.rmdir()
    say("Migrated. Install the plugins again: tortie cni install.")


async def _tunnel_address(store: Store, ipam: Ipam, node: str, say: Say) -> None:
    """The first address of the node's pods, which its IPIP tunnel has used without asking IPAM."""
    there = await store.get(Node, node)
    if address(there, IPIP):
        return
    spec = (await store.get(K8sNode, node)).spec
    cidrs = [parse_net(cidr) for cidr in (*spec.pod_cidrs, spec.pod_cidr) if cidr]
    first = next((nth(cidr, 1) for cidr in cidrs if cidr.version == 4), None)
    if first is None:
        raise ConfigError("has no IPv4 CIDR for its pods", f"Node {node}", "spec.podCIDR")
    with suppress(Exists):
        await ipam.assign_ip(first, handle=IPIP.handle(node), attrs=IPIP.attributes(node))
    await store.update(with_address(there, IPIP, str(first)))
    say(f"assign {first} to the IPIP tunnel of {node}")


async def _adopt(ipam: Ipam, move: Adopt) -> None:
    noted = {"node": ipam.owner.name, "pod": move.pod, "namespace": move.namespace}
    with suppress(Exists):
        await ipam.assign_ip(move.ip, handle=move.handle, attrs=noted)


async def _pods(store: Store, node: str) -> dict[IP, Pod]:
    found: dict[IP, Pod] = {}
    for pod in (await store.list(Pod)).items:
        if pod.spec.node_name == node:
            with suppress(ConfigError):
                found.update(dict.fromkeys(pod_ips(pod), pod))
    return found


def _files(directory: Path) -> dict[str, str]:
    return {file.name: file.read_text(errors="replace") for file in directory.iterdir() if file.is_file()}


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """As host-local locks its directory while it gives an address."""
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
