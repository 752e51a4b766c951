"""Readiness gates, asked of a server on this machine's loopback."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from aiohttp import web

from tortie.agent.cni import gates
from tortie.base.errors import Unavailable

QUICK = gates.Pace(patience=0.6, request=0.2, pause=0.05)


@asynccontextmanager
async def answering(*statuses: int) -> AsyncIterator[tuple[str, Callable[[], int]]]:
    """A URL that answers with these in turn, the last for ever, and how often it was asked."""
    asked = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        headers = {"Location": "/other"} if 300 <= statuses[min(asked, len(statuses)) - 1] < 400 else None
        return web.Response(status=statuses[min(asked, len(statuses)) - 1], headers=headers)

    app = web.Application()
    app.router.add_get("/ready", answer)
    app.router.add_get("/other", _there)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        yield f"http://127.0.0.1:{port}/ready", lambda: asked
    finally:
        await runner.cleanup()


async def _there(_: web.Request) -> web.Response:
    return web.Response()


@pytest.mark.parametrize(("statuses", "times"), [((200,), 1), ((204,), 1), ((302,), 1), ((503, 404, 200), 3)])
async def test_it_is_ready_with_a_status_from_200_to_399(statuses: tuple[int, ...], times: int) -> None:
    async with answering(*statuses) as (url, asked):
        await gates.passed([url], QUICK)
        assert asked() == times


async def test_each_is_waited_for_in_turn() -> None:
    async with AsyncExitStack() as stack:
        (first, _), (second, asked) = [
            await stack.enter_async_context(answering(*statuses)) for statuses in ((500, 200), (200,))
        ]
        await gates.passed([first, second], QUICK)
        assert asked() == 1


async def test_one_that_does_not_come_up_is_named_with_its_reason() -> None:
    began = time.monotonic()
    async with answering(503) as (url, asked):
        with pytest.raises(Unavailable, match=rf"readiness gate {url} is not ready after 0\.6 s: status 503"):
            await gates.passed([url], QUICK)
        assert asked() > 2
    assert time.monotonic() - began < 5


async def test_nobody_there() -> None:
    with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:1/ is not ready after .*(refused|Connect)"):
        await gates.passed(["http://127.0.0.1:1/"], QUICK)
