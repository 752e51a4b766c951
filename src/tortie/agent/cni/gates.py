"""Readiness gates: addresses that must answer before a container is connected."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import aiohttp

from tortie.base.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds that each gate may take, those of one request, and those between two. The defaults are Calico's."""

    patience: float = 30.0
    request: float = 5.0
    pause: float = 5.0


CALICOS = Pace()


async def passed(gates: Iterable[str], pace: Pace = CALICOS) -> None:
    """Until each has answered with a status from 200 to 399. Raises Unavailable naming the one that has not."""
    for url in gates:
        why = ""
        try:
            async with asyncio.timeout(pace.patience):
                while True:
                    why = await _answer(url, pace.request)
                    if not why:
                        break
                    await asyncio.sleep(pace.pause)
        except TimeoutError:
            raise Unavailable(f"readiness gate {url} is not ready after {pace.patience:g} s: {why}") from None


async def _answer(url: str, seconds: float) -> str:
    """What is wrong with it; "" when it is ready."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as session,
            session.get(url) as response,
        ):
            return "" if 200 <= response.status < 400 else f"status {response.status}"
    except TimeoutError:
        return f"no answer within {seconds:g} s"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return str(error) or type(error).__name__
