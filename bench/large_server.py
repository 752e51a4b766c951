"""A child of the scripts about large clusters: a fan-out server on the datastore that its first argument names.

It listens on the Unix socket of the second one, and answers when every kind is known.
"""

from __future__ import annotations

import asyncio
import sys

from bench.large import say
from tortie.fanout.server import Server
from tortie.store import open_store
from tortie.store.fanout.address import Address


async def main(where: str, path: str) -> None:
    store = open_store(where)
    try:
        async with Server(store) as server:
            await server.listen(Address(path=path))
            while server.unready:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            say({"requests": sum(feed.requests for feed in server.feeds.values())})
            while await asyncio.to_thread(sys.stdin.readline):
                say({"lists": sum(feed.requests for feed in server.feeds.values()), "watches": len(server.feeds)})
    finally:
        await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
