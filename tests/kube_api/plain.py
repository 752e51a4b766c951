"""Plain HTTP to an API server, as the double's own tests speak it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple, Self

import aiohttp
import msgspec


async def until(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for it. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Answer(NamedTuple):
    """`body` is decoded if it is JSON."""

    status: int
    body: Any
    headers: dict[str, str]

    @property
    def message(self) -> str:
        return str(self.body["message"])


class Plain:
    """One session. `token`: whom to ask as."""

    def __init__(self, url: str, token: str = "", *, context: ssl.SSLContext | None = None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.session = aiohttp.ClientSession(
            url, headers=headers, connector=aiohttp.TCPConnector(ssl=context or True, limit=0)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def ask(
        self, method: str, path: str, body: Any = None, kind: str = "application/json", **query: Any
    ) -> Answer:
        """`body` bytes or an object; `query` with its own names."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body) if body is not None else None
        words = {name: str(value) for name, value in query.items()}
        headers = {"Content-Type": kind} if data is not None else {}
        async with self.session.request(method, path, data=data, params=words, headers=headers) as answer:
            text = await answer.read()
            with contextlib.suppress(msgspec.DecodeError):
                return Answer(answer.status, msgspec.json.decode(text), dict(answer.headers))
            return Answer(answer.status, text.decode(), dict(answer.headers))

    async def get(self, path: str, **query: Any) -> Answer:
        return await self.ask("GET", path, **query)

    async def post(self, path: str, body: Any, **query: Any) -> Answer:
        return await self.ask("POST", path, body, **query)

    async def put(self, path: str, body: Any, **query: Any) -> Answer:
        return await self.ask("PUT", path, body, **query)

    async def patch(self, path: str, body: Any, form: str = "merge-patch+json", **query: Any) -> Answer:
        return await self.ask("PATCH", path, body, f"application/{form}", **query)

    async def delete(self, path: str, body: Any = None, **query: Any) -> Answer:
        return await self.ask("DELETE", path, body, **query)

    @contextlib.asynccontextmanager
    async def watch(self, path: str, **query: Any) -> AsyncIterator[AsyncIterator[tuple[str, dict[str, Any]]]]:
        """Type and object of one event after the other; raises AssertionError when there is no watch."""
        words = {name: str(value) for name, value in query.items()} | {"watch": "true"}
        async with self.session.get(path, params=words) as answer:
            assert answer.status == 200, await answer.text()

            async def events() -> AsyncIterator[tuple[str, dict[str, Any]]]:
                rest = b""
                async for chunk in answer.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        event = msgspec.json.decode(line)
                        yield event["type"], event["object"]

            yield events()
