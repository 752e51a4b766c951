"""The client of an API server against servers on loopback: watches, and closing."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web
from kube_peers import PODS, Script, client, ok, refused, serving, speaking

from tortie.base.errors import Compacted, NotFound, Unavailable
from tortie.store.kube.client import Client


class Streaming:
    """Sends the chunks, then ends, or waits until the client has gone."""

    def __init__(self, *chunks: bytes, stays: bool = False) -> None:
        self.chunks = chunks
        self.stays = stays
        self.query: dict[str, str] = {}
        self.gone = asyncio.Event()
        self.waiting = asyncio.Event()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.query = dict(request.query)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        try:
            for chunk in self.chunks:
                await response.write(chunk)
                await asyncio.sleep(0.01)
            self.waiting.set()
            if self.stays:
                await asyncio.Event().wait()
        finally:
            self.gone.set()
        return response


async def collected(api: Client, into: list[bytes] | None = None, **query: str) -> list[bytes]:
    found = into if into is not None else []
    async for line in api.watch(PODS, query):
        found.append(line)
    return found


async def test_events_come_out_whole_however_they_are_sent() -> None:
    long = json.dumps({"type": "ADDED", "object": {"spec": "x" * 1_600_000}}).encode()
    short = b'{"type":"BOOKMARK"}'
    stream = short + b"\n" + long + b"\n\n" + short + b"\r\n" + short
    pieces = [stream[at : at + 70_001] for at in range(0, len(stream), 70_001)]
    script, counted = Streaming(*pieces), []
    async with serving(script) as server, client(server, on_request=lambda *each: counted.append(each)) as api:
        found = await collected(api, resourceVersion="7", allowWatchBookmarks="true")
    assert [json.loads(line)["type"] for line in found] == ["BOOKMARK", "ADDED", "BOOKMARK", "BOOKMARK"]
    assert found[1] == long
    assert script.query.pop("timeoutSeconds").isdecimal()
    assert script.query == {"resourceVersion": "7", "allowWatchBookmarks": "true", "watch": "true"}
    assert [each[:3] for each in counted] == [("WATCH", PODS, 200)]


async def test_a_watch_that_begins_badly() -> None:
    script = Script(lambda: refused(410, "Expired", "too old resource version: 7 (9)"))
    async with serving(script) as server, client(server) as api:
        with pytest.raises(Compacted, match="too old resource version"):
            await collected(api, resourceVersion="7")
    gone = Script(lambda: refused(500), lambda: refused(404, "NotFound"))
    async with serving(gone) as server, client(server) as api:
        with pytest.raises(NotFound):
            await collected(api)
    assert len(gone.requests) == 2


async def test_a_watch_that_is_silent_for_too_long() -> None:
    script = Streaming(b'{"type":"A"}\n', stays=True)
    async with serving(script) as server, client(server, grace=0.3) as api:
        found: list[bytes] = []
        with pytest.raises(Unavailable, match=rf"{server}: the watch of {PODS} was silent for 0\.3 s"):
            await asyncio.wait_for(collected(api, found, timeoutSeconds="0"), 5)
        assert found == [b'{"type":"A"}']
        await asyncio.wait_for(script.gone.wait(), 5)  # and the connection is closed
    assert script.query["timeoutSeconds"] == "0"


@pytest.mark.parametrize("properly", [True, False], ids=["the answer ends", "the connection breaks"])
async def test_a_watch_that_is_cut_in_the_middle_of_an_event(properly: bool) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        for line in (b'{"type":"A"}\n', b'{"type":"MOD'):
            writer.write(b"%x\r\n%s\r\n" % (len(line), line))
        writer.write(b"0\r\n\r\n" if properly else b"")
        await writer.drain()

    async with speaking(speak) as server, client(server) as api:
        found: list[bytes] = []
        with pytest.raises(Unavailable, match=r"was cut in the middle of an event|broke: the answer was cut"):
            await collected(api, found)
    assert found == [b'{"type":"A"}']


async def test_a_caller_who_stops_closes_the_connection() -> None:
    script = Streaming(b'{"type":"A"}\n{"type":"B"}\n', stays=True)
    async with serving(script) as server, client(server) as api:
        async for line in api.watch(PODS, {}):
            assert line == b'{"type":"A"}'
            break
        await asyncio.wait_for(script.gone.wait(), 5)


async def test_closing_the_client_ends_its_watches() -> None:
    script = Streaming(b'{"type":"A"}\n{"typ', stays=True)
    async with serving(script) as server, client(server) as api:
        watching = asyncio.create_task(collected(api))
        await asyncio.wait_for(script.waiting.wait(), 5)
        await asyncio.sleep(0.05)
        await api.close()
        assert await asyncio.wait_for(watching, 5) == [b'{"type":"A"}']


async def test_closing_the_client_ends_what_is_under_way() -> None:
    asked = asyncio.Event()
    bodies = [b"", b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"]

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(bodies.pop())
        if not bodies:
            asked.set()
        await reader.read()

    async with speaking(speak) as server, client(server) as api:
        waiting = [asyncio.create_task(api.request("GET", PODS)) for _ in range(2)]
        await asyncio.wait_for(asked.wait(), 5)
        await asyncio.sleep(0.05)
        await api.close()
        ended = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
    assert [type(one) for one in ended] == [Unavailable, Unavailable], ended


async def test_watches_do_not_keep_requests_waiting() -> None:
    streaming = Streaming(stays=True)

    async def answer(request: web.Request) -> web.StreamResponse:
        return await streaming(request) if "watch" in request.query else ok()

    async with serving(answer) as server, client(server) as api:
        watching = [asyncio.create_task(collected(api)) for _ in range(150)]
        await asyncio.wait_for(streaming.waiting.wait(), 5)
        await asyncio.wait_for(asyncio.gather(*(api.request("GET", PODS) for _ in range(200))), 10)
        await api.close()
        assert await asyncio.gather(*watching) == [[]] * 150
