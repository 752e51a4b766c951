"""Readiness gates: addresses that must answer before a container is connected."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import aiohttp

from tortie.base.errors import Unavailable

PATIENCE = 30.0
"""Seconds that each may take, the seconds of one request, and those between two: Calico's."""
REQUEST = 5.0
PAUSE = 5.0


async def passed(gates: Iterable[str]) -> None:
    """Until each has answered with a status from 200 to 399. Raises Unavailable naming the one that has not."""
    for url in gates:
        why = ""
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    why = await _answer(url)
                    if not why:
                        break
                    await asyncio.sleep(PAUSE)
        except TimeoutError:
            raise Unavailable(f"readiness gate {url} is not ready after {PATIENCE:g} s: {why}") from None


async def _answer(url: str) -> str:
    """What is wrong with it; "" when it is ready."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST)) as session,
            session.get(url) as response,
        ):
            return "" if 200 <= response.status < 400 else f"status {response.status}"
    except TimeoutError:
        return f"no answer within {REQUEST:g} s"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return str(error) or type(error).__name__
