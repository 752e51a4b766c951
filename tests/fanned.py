"""A fan-out server in this process and clients of it, for tests: a store that is served, and one that is written to.

async with Ground(tmp_path, store) as ground:
    client = ground.client()            # a Store, by way of the server
    await ground.restart()              # the server forgets everything
    await ground.stop(); await ground.start()
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tortie.fanout.server import Server, Settings
from tortie.model.store import Store
from tortie.store.fanout.address import Address
from tortie.store.fanout.client import FanoutStore
from tortie.store.fanout.servers import Patience, Servers
from tortie.store.fanout.tls import Tls

QUICK = Patience(grace=0.2, spread=0.1, first_retry=0.05, longest_retry=0.2, again=0.2, avoid=0.1)
"""For tests that fall back and return."""

_numbers = itertools.count()


class Shared:
    """A store that several clients use and whose owner closes it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def close(self) -> None:
        pass


def servers(where: Iterable[Address], tls: Tls | None = None, patience: Patience = QUICK, who: str = "test") -> Servers:
    found = tuple(where)

    async def addresses() -> tuple[Address, ...]:
        return found

    return Servers(addresses, tls or Tls(), who, patience)


class Ground:
    """`direct` is what the server reads and clients write to; it is not closed."""

    def __init__(self, directory: Path, direct: Store, settings: Settings | None = None) -> None:
        self.direct = direct
        self.settings = settings
        self.address = Address(path=str(directory / f"fanout-{next(_numbers)}.sock"))
        self.server: Server | None = None
        self.clients: list[FanoutStore] = []

    async def __aenter__(self) -> Ground:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self.clients:
            await client.close()
        await self.stop()

    async def start(self) -> None:
        self.server = Server(self.direct, self.settings)
        await self.server.listen(self.address)

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.close()
            self.server = None

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def client(self, patience: Patience = QUICK) -> FanoutStore:
        client = FanoutStore(Shared(self.direct), servers([self.address], patience=patience))
        self.clients.append(client)
        return client
