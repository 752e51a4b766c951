"""The client of an API server against servers on loopback: answers, refusals, what is asked again."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kube_peers import PODS, TOKEN, Script, client, jwt, ok, refused, serving, speaking, until

from tortie.base.errors import NotFound, Unavailable
from tortie.model.apiconfig import ApiConfig
from tortie.store.kube.access import access
from tortie.store.kube.api import MERGE_PATCH, Api
from tortie.store.kube.client import Client
from tortie.store.kube.credentials import Content, Token
from tortie.store.kube.review import may

# --- one request --------------------------------------------------------------------------------------------------


async def test_a_request_arrives_as_it_was_asked() -> None:
    script, counted = Script(ok), []
    async with serving(script) as server, client(server, on_request=lambda *each: counted.append(each)) as api:
        typed: Api = api
        query = {"labelSelector": "a in (b, c)", "dryRun": "All"}
        path = "/api/v1/namespaces/red/pods/a%b"
        assert b"PodList" in await typed.request("PATCH", path, query=query, body=b"{}", content_type=MERGE_PATCH)
        await typed.request("GET", PODS)
    first, second = script.requests
    assert (first.method, first.path, dict(first.query)) == ("PATCH", "/api/v1/namespaces/red/pods/a%b", query)
    assert first.headers["Authorization"] == f"Bearer {TOKEN}"
    assert first.headers["Content-Type"] == MERGE_PATCH
    assert first.headers["Accept"] == "application/json"
    assert first.headers["User-Agent"].startswith("tortie/")
    assert first.transport is second.transport  # kept alive
    assert [each[:3] for each in counted] == [
        ("PATCH", "/api/v1/namespaces/{namespace}/pods/{name}", 200),
        ("GET", PODS, 200),
    ]
    assert all(0 < seconds < 5 for *_, seconds in counted)


async def test_a_packed_answer_is_unpacked() -> None:
    def packed() -> web.Response:
        return web.Response(body=gzip.compress(b"x" * 3_000_000), headers={"Content-Encoding": "gzip"})

    script = Script(packed)
    async with serving(script) as server, client(server) as api:
        assert await api.request("GET", PODS) == b"x" * 3_000_000
    assert "gzip" in script.requests[0].headers["Accept-Encoding"]


async def test_a_refusal_is_asked_once() -> None:
    script = Script(lambda: refused(404, "NotFound", 'pods "a" not found'))
    async with serving(script) as server, client(server) as api:
        with pytest.raises(NotFound, match='pods "a" not found'):
            await api.request("GET", f"{PODS}/a")
    assert len(script.requests) == 1


async def test_warnings_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def warned() -> web.Response:
        return web.json_response({}, headers={"Warning": '299 - "v1beta1 is old"'})

    async with serving(Script(warned)) as server, client(server) as api:
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                await api.request("GET", PODS)
    assert [record.getMessage() for record in caplog.records] == [f"{server}: v1beta1 is old"]


async def test_credentials_do_not_follow_a_redirect() -> None:
    elsewhere = Script(ok)
    async with serving(elsewhere) as other:
        script = Script(lambda: web.Response(status=302, headers={"Location": f"{other}/login?next=x"}))
        async with serving(script) as server, client(server) as api:
            with pytest.raises(Unavailable, match=f"redirects to {other}/login, which is not followed"):
                await api.request("GET", PODS)
    assert not elsewhere.requests


async def test_a_login_page_is_no_answer() -> None:
    page = Script(lambda: web.Response(text="<html>", content_type="text/html"))
    async with serving(page) as server, client(server) as api:
        with pytest.raises(Unavailable, match="answers with a web page"):
            await api.request("GET", PODS)


# --- again --------------------------------------------------------------------------------------------------------


async def test_a_server_that_stumbles_is_asked_again() -> None:
    script = Script(lambda: refused(500), lambda: refused(503), ok)
    async with serving(script) as server, client(server) as api:
        assert b"PodList" in await api.request("GET", PODS)
    assert len(script.requests) == 3


async def test_it_is_left_alone_for_as_long_as_it_asks() -> None:
    script = Script(lambda: refused(429, "TooManyRequests", "slow down", {"Retry-After": "1"}), ok)
    async with serving(script) as server, client(server) as api:
        await api.request("POST", PODS, body=b"{}")  # 429 says that it was not taken
    assert script.times[1] - script.times[0] >= 1
    assert script.bodies == [b"{}", b"{}"]


async def test_nobody_waits_for_what_is_beyond_patience() -> None:
    script = Script(lambda: refused(429, "TooManyRequests", "slow down", {"Retry-After": "3600"}))
    async with serving(script) as server, client(server) as api:
        async with asyncio.timeout(2):
            with pytest.raises(Unavailable, match="429: slow down"):
                await api.request("GET", PODS)
    assert len(script.requests) == 1


async def test_patience_ends() -> None:
    script = Script(lambda: refused(500, "", "etcd is away"))
    async with serving(script) as server, client(server, patience=1) as api:
        begin = time.monotonic()
        with pytest.raises(Unavailable, match=r"500: etcd is away$"):
            await api.request("GET", PODS)
        assert time.monotonic() - begin < 8
    assert len(script.requests) > 1


@pytest.mark.parametrize(
    ("method", "body", "times"),
    [
        ("POST", b"{}", 1),
        ("PATCH", b'{"spec": {}}', 1),
        ("PUT", b'{"metadata": {"resourceVersion": "7"}}', 2),
        ("DELETE", b'{"preconditions": {"uid": "u"}}', 2),
    ],
)
async def test_what_may_have_been_taken_is_asked_again_only_if_that_does_no_harm(
    method: str, body: bytes, times: int
) -> None:
    script = Script(lambda: refused(500, "", "timed out"), ok)
    async with serving(script) as server, client(server) as api:
        if times == 1:
            with pytest.raises(Unavailable, match=f"timed out; {method} {PODS}/a may have been taken"):
                await api.request(method, f"{PODS}/a", body=body)
        else:
            await api.request(method, f"{PODS}/a", body=body)
    assert len(script.requests) == times


async def test_what_did_not_leave_is_asked_again() -> None:
    """Nobody listens at first: the POST was certainly not taken, and is made once."""
    script = Script(ok)
    async with serving(Script(ok)) as gone:
        pass
    port = int(gone.rpartition(":")[2])
    async with client(gone) as api:
        asked = asyncio.create_task(api.request("POST", PODS, body=b"{}"))
        await asyncio.sleep(0.2)
        async with serving(script, port=port):
            assert b"PodList" in await asked
    assert len(script.requests) == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_answer_that_is_cut_in_the_middle(method: str) -> None:
    connections = 0

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n")
        writer.write(b"x" * (100 if connections == 3 else 50))
        await writer.drain()

    async with speaking(speak) as server, client(server) as api:
        if method == "GET":
            assert await api.request("GET", PODS) == b"x" * 100
            assert connections == 3
        else:
            with pytest.raises(Unavailable, match=r"the answer was cut; POST .* may have been taken"):
                await api.request("POST", PODS)
            assert connections == 1


@pytest.mark.parametrize(
    ("method", "body", "times"), [("GET", b"", 2), ("DELETE", b"", 1), ("PUT", b"{}", 1), ("POST", b"{}", 1)]
)
async def test_a_kept_connection_that_breaks(method: str, body: bytes, times: int) -> None:
    """The first request is answered, the second on the same connection is read and not answered."""
    asked: list[bytes] = []

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            asked.append(head.split()[0])
            if len(asked) == 2:
                return
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")

    async with speaking(speak) as server, client(server) as api:
        await api.request("GET", PODS)
        if times == 2:
            assert await api.request(method, PODS, body=body) == b"{}"
        else:
            with pytest.raises(Unavailable, match=f"closed before an answer; {method} .* may have been taken"):
                await api.request(method, PODS, body=body)
    assert len(asked) == 1 + times


async def test_a_server_that_hangs() -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with speaking(speak) as server, client(server, patience=0.4) as api:
        begin = time.monotonic()
        with pytest.raises(Unavailable, match=r"no answer in 0\.4 s"):
            await api.request("GET", PODS)
        assert time.monotonic() - begin < 8


async def test_what_speaks_no_http_and_nobody() -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()

    async with speaking(speak) as server, client(server, patience=1) as api:
        with pytest.raises(Unavailable, match="does not speak HTTP"):
            await api.request("GET", PODS)
    async with client(server, patience=1) as api:
        with pytest.raises(Unavailable, match=r"connection refused$"):
            await api.request("POST", PODS)
    async with client("https" + server.removeprefix("http"), patience=1) as api:
        with pytest.raises(Unavailable, match=r"connection refused$"):
            await api.request("GET", PODS)


async def test_a_closed_client_says_so() -> None:
    async with client("http://127.0.0.1:1") as api:
        await api.close()
        with pytest.raises(Unavailable, match="is closed"):
            await api.request("GET", PODS)


async def test_the_limit_of_requests() -> None:
    script = Script(ok)
    async with serving(script) as server, client(server, k8s_client_qps=20, k8s_client_burst=2) as api:
        await asyncio.gather(*(api.request("GET", PODS) for _ in range(8)))
    assert script.times[-1] - script.times[0] >= 6 / 20 - 0.05


# --- who asks -----------------------------------------------------------------------------------------------------


async def test_a_token_that_is_refused_is_read_anew_at_once(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old\n")
    seen: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers["Authorization"])
        return ok() if seen[-1] == "Bearer new" else refused(401, "Unauthorized", "Unauthorized")

    async with serving(answer) as server:
        config = {"clusters": [{"name": "c", "cluster": {"server": server}}], "users": [{"name": "u", "user": {}}]}
        config["users"][0]["user"] = {"tokenFile": str(token)}
        config["contexts"] = [{"name": "x", "context": {"cluster": "c", "user": "u"}}]
        api = Client(access(ApiConfig(kubeconfig_inline=json.dumps(config)), {}))
        with pytest.raises(Unavailable, match="connection is unauthorized: Unauthorized"):
            await api.request("GET", PODS)
        assert seen == ["Bearer old"]  # nobody else to ask as
        token.write_text("new\n")
        await api.request("POST", PODS, body=b"{}")
        for content in (None, ""):
            token.write_text("") if content is not None else token.unlink()
            credentials = api.access.credentials
            credentials.refused(await credentials.identity())
            await api.request("GET", PODS)  # what it said before is used
        await api.close()
    assert seen[1:] == ["Bearer old", *["Bearer new"] * 3]


async def test_a_file_that_is_away_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "token"
    file.write_text("secret")
    content = Content(path=str(file))

    def read_anew() -> bytes:
        content.expire()
        return content.current()

    read_anew()
    for _ in range(2):
        file.unlink()
        assert [read_anew() for _ in range(5)] == [b"secret"] * 5
        file.write_text("secret")
        read_anew()
    assert caplog.text.count("what it said before is used") == 2
    assert "secret" not in caplog.text


async def test_a_token_that_ends_soon_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(jwt({"exp": time.time() + 5}))
    token = Token(Content(path=str(file)))
    first = token.current()
    file.write_text(jwt({"exp": time.time() + 3600}))
    await until(lambda: token.current() != first)  # within a second, not a minute
    lasting = token.current()
    file.write_text("other")
    assert token.current() == lasting
    token.refused()
    assert token.current() == "other"


async def test_a_fixed_token_that_is_refused_is_told_without_it() -> None:
    script = Script(lambda: refused(401, "Unauthorized", "Unauthorized"))
    async with serving(script) as server, client(server) as api:
        with pytest.raises(Unavailable) as caught:
            await api.request("GET", PODS)
        assert TOKEN not in str(caught.value) + repr(api)
    assert len(script.requests) == 1


async def test_what_we_may_do_is_asked_of_the_server() -> None:
    asked: list[Any] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        review = await request.json()
        asked.append((request.path, review["kind"], review["spec"]["resourceAttributes"]))
        if len(asked) == 1:
            return refused(500)  # nothing was written: it is asked again
        allowed = review["spec"]["resourceAttributes"]["verb"] == "patch"
        return web.json_response({**review, "status": {"allowed": allowed, "reason": ""}}, status=201)

    async with serving(answer) as server, client(server) as api:
        assert await may(api, "patch", "", "nodes/status", name="n")
        assert not await may(api, "list", "crd.projectcalico.org", "ippools", "red")
    kind = ("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "SelfSubjectAccessReview")
    assert asked[1] == (*kind, {"verb": "patch", "resource": "nodes", "subresource": "status", "name": "n"})
    group = "crd.projectcalico.org"
    assert asked[2] == (*kind, {"verb": "list", "group": group, "resource": "ippools", "namespace": "red"})
