"""What the scripts about large clusters share: the cluster, a datastore that has it, processes and what they cost.

SCALE (in the environment, 1 by default) makes the cluster smaller or larger: 5,000 nodes, 100,000 pods, 2,000 policies.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from bench.world import World
from tortie.model.document import encode
from tortie.model.meta import Resource, changed
from tortie.store.sqlite import SqliteStore

SCALE = float(os.environ.get("SCALE", "1"))
PODS, POLICIES, LOCAL = int(100_000 * SCALE), max(100, int(2_000 * SCALE)), 100
PODS_OF_A_NODE = 20
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1024 * 1024


class Large(World):
    """As `World`, with fewer pods on a node."""

    __slots__ = ()

    @property
    def nodes(self) -> int:
        return max(2, self.pods // PODS_OF_A_NODE)


WORLD = Large(pods=PODS, local=LOCAL, policies=POLICIES)
TITLE = f"{WORLD.nodes:,} nodes, {WORLD.pods:,} pods, {WORLD.policies:,} policies"


def fill(path: Path, resources: Iterable[Resource]) -> int:
    """Puts objects into an embedded datastore as it would itself, but all at once; how many."""
    with closing(sqlite3.connect(path)) as connection, connection:
        done = 0
        for done, one in enumerate(resources, 1):
            body = encode(changed(one, resource_version=str(done), uid=f"{done:032x}"))
            row = (one.KIND.key, one.namespace, one.name, body)
            connection.execute("INSERT INTO objects (kind, namespace, name, body) VALUES (?, ?, ?, ?)", row)
        last = connection.execute("SELECT kind, body FROM objects ORDER BY rowid DESC LIMIT 1").fetchone()
        connection.execute("INSERT INTO changes (revision, type, kind, body) VALUES (?, 'ADDED', ?, ?)", (done, *last))
    return done


async def made(path: Path) -> SqliteStore:
    """An embedded datastore with nothing in it."""
    from tortie.model.ipam import IPPool

    store = SqliteStore(path)
    await store.list(IPPool)
    return store


def cpu(*pids: int) -> float:
    """Seconds of processor time that processes have had, all together."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def memory(pid: int) -> float:
    """MiB that a process has in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / MIB


class Child:
    """A Python module of ours as a process that is told things and answers, a line of JSON each."""

    def __init__(self, module: str, *arguments: str) -> None:
        command = [sys.executable, "-m", module, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} has ended: {self.process.wait()}")
        return json.loads(line)

    def ask(self, word: str) -> Any:
        self.tell(word)
        return self.hear()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def children(module: str, each: Iterable[tuple[str, ...]]) -> Iterator[list[Child]]:
    with ExitStack() as stack:
        found = []
        for arguments in each:
            child = Child(module, *arguments)
            stack.callback(child.end)
            found.append(child)
        yield found


def say(answer: Any) -> None:
    """What a child answers."""
    print(json.dumps(answer), flush=True)
