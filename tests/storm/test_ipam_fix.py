"""`ipam check --fix` on a broken store while other processes assign and release on it.

Afterwards nothing is broken any more, and what the others hold by their own account is still theirs.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace

from tortie.base.addr import parse_net
from tortie.base.errors import NotFound
from tortie.cli.main import main
from tortie.ipam.assign import Ipam
from tortie.ipam.check import check
from tortie.ipam.ledger import Ledger
from tortie.ipam.owner import Owner
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPAMHandle, IPPool, IPPoolSpec
from tortie.model.meta import Metadata
from tortie.model.node import Node
from tortie.policy.selector import parse
from tortie.store import open_store

WORKERS = 3
LOST, IDLE, MISCOUNTED = 10, 20, 10
"""Handles that are missing, that hold nothing, that count too many."""


def matches(selector: str, labels: Mapping[str, str]) -> bool:
    return parse(selector).matches(labels)


def now() -> datetime:
    return datetime.now(UTC)


def asked_to(stop: str) -> bool:
    return Path(stop).exists()


async def work(path: str, name: str, stop: str) -> None:
    """Assigns and releases until the file `stop` is there; prints what this worker holds then."""
    store, dice, held, turn = open_store(path), random.Random(name), dict[str, list[str]](), 0
    ipam = Ipam(store, f"node{name}", now, matches)
    while not asked_to(stop):
        turn += 1
        handle = f"net.{name}-{turn % 40}"  # the same ones again and again, as those of tunnels are
        if handle in held and dice.random() < 0.7:
            await ipam.release_by_handle(handle)
            del held[handle]
        else:
            got = await ipam.auto_assign(dice.randint(1, 3), handle=handle, attrs={"node": ipam.owner.name})
            assert got.v4.error is None, got.v4.error
            held.setdefault(handle, []).extend(str(ip.ip) for ip in got.ips)
    await store.close()
    print(json.dumps(held))


async def prepare(path: Path) -> dict[str, list[str]]:
    """A store with everything broken that can be mended; returns what `net.kept-*` hold."""
    store = open_store(path)
    await store.create(IPPool(metadata=Metadata(name="pool"), spec=IPPoolSpec(cidr="10.0.0.0/16", block_size=28)))
    for i in range(WORKERS + 1):
        await store.create(Node(metadata=Metadata(name=f"node{i}")))
    ipam, ledger, kept = Ipam(store, "node0", now, matches), Ledger(store, now), {}
    for i in range(LOST + MISCOUNTED):
        got = await ipam.auto_assign(2, handle=f"net.kept-{i}", attrs={})
        kept[f"net.kept-{i}"] = [str(ip.ip) for ip in got.ips]
    blocks = await ledger.blocks()
    for i in range(LOST):
        await store.delete(IPAMHandle, f"net.kept-{i}")
    for i in range(LOST, LOST + MISCOUNTED):
        await ledger.count_up(f"net.kept-{i}", blocks[0].spec.net, 3)
    for i in range(IDLE):
        await ledger.count_up(f"net.idle-{i}", blocks[0].spec.net, 1)
    await ledger.write_affinity(await ledger.create_affinity(Owner("node9"), parse_net("10.0.255.0/28")), "confirmed")
    stored = await store.get(IPAMBlock, blocks[0].name)
    await store.update(replace(stored, spec=replace(stored.spec, unallocated=stored.spec.unallocated[1:])))
    await store.close()
    return kept


async def holdings(path: Path, handles: Mapping[str, list[str]]) -> tuple[dict[str, list[str]], list[str]]:
    """What handles hold according to the store, and what does not fit there."""
    store, found = open_store(path), {}
    ipam = Ipam(store, "node0", now, matches)
    for handle in handles:
        try:
            found[handle] = [str(ip) for ip in await ipam.ips_by_handle(handle)]
        except NotFound:
            found[handle] = []
    lists = [(await store.list(kind)).items for kind in (IPAMBlock, IPAMHandle, BlockAffinity)]
    await store.close()
    return found, [str(each) for each in check(*lists, now())]  # type: ignore[arg-type]


def test_fix_while_others_work(tmp_path: Path) -> None:
    path, stop = tmp_path / "store.db", tmp_path / "stop"
    mine = asyncio.run(prepare(path))
    arguments = [[sys.executable, __file__, str(path), str(i + 1), str(stop)] for i in range(WORKERS)]
    workers = [subprocess.Popen(each, stdout=subprocess.PIPE, text=True) for each in arguments]
    try:
        for _ in range(2):
            main(["ipam", "check", "--fix", "--datastore", str(path)])
    finally:
        stop.touch()
        outs = [worker.communicate(timeout=30)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * WORKERS
    theirs = {handle: ips for out in outs for handle, ips in json.loads(out).items()}
    assert main(["ipam", "check", "--fix", "--datastore", str(path)]) == 0
    found, findings = asyncio.run(holdings(path, mine | theirs))
    assert findings == []
    assert {handle: sorted(ips) for handle, ips in found.items()} == {
        handle: sorted(ips) for handle, ips in (mine | theirs).items()
    }
    every = [ip for ips in (mine | theirs).values() for ip in ips]
    assert len(every) == len(set(every))


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]))
