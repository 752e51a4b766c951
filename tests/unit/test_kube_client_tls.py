"""The client of an API server over TLS: whom it believes, what it shows, proxies; and credentials of exec plugins."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shlex
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kube_peers import Authority, Leaf, serving, speaking, until

from tortie.base.errors import Unavailable
from tortie.model.apiconfig import ApiConfig
from tortie.store.kube.access import Access, access
from tortie.store.kube.client import Client
from tortie.store.kube.plugin import Command, ExecPlugin

SECRET = "sekrit-of-the-test"
PODS = "/api/v1/pods"
V1 = "client.authentication.k8s.io/v1"


class World:
    """A CA, a server's certificate for 127.0.0.1, one for another name, clients' certificates."""

    def __init__(self, folder: Path) -> None:
        self.ca = Authority(folder, "cluster-ca")
        self.here = self.ca.sign("here", "/CN=kube-apiserver", "IP:127.0.0.1")
        self.elsewhere = self.ca.sign("elsewhere", "/CN=kube-apiserver", "DNS:kubernetes.default.svc")
        self.alice = self.ca.sign("alice", "/O=admins/CN=alice")
        self.bob = self.ca.sign("bob", "/CN=bob")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("certificates"))


async def whoami(request: web.Request) -> web.StreamResponse:
    """Who the server takes the client for."""
    transport = request.transport
    assert transport is not None
    shown = transport.get_extra_info("peercert") or {}
    names = {key: value for part in shown.get("subject", ()) for key, value in part}
    return web.json_response(
        {"name": names.get("commonName", ""), "authorization": request.headers.get("Authorization", "")}
    )


def reached(cluster: dict[str, Any], user: dict[str, Any] | None = None) -> Access:
    config = {
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    }
    return access(ApiConfig(kubeconfig_inline=json.dumps(config)), {"PATH": os.environ["PATH"]})


@contextlib.asynccontextmanager
async def client(
    cluster: dict[str, Any], user: dict[str, Any] | None = None, patience: float = 5
) -> AsyncIterator[Client]:
    made = Client(reached(cluster, user), patience=patience)
    try:
        yield made
    finally:
        await made.close()


async def seen(api: Client) -> dict[str, str]:
    found: dict[str, str] = json.loads(await api.request("GET", PODS))
    return found


def packed(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


# --- the server ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inline", [True, False], ids=["data", "file"])
async def test_a_server_of_the_right_ca_is_believed(world: World, inline: bool) -> None:
    async with serving(whoami, world.ca.serving(world.here)) as server:
        ca = world.ca.certificate
        trust = {"certificate-authority-data": packed(ca)} if inline else {"certificate-authority": str(ca)}
        async with client({"server": server, **trust}, {"token": "t"}) as api:
            assert await seen(api) == {"name": "", "authorization": "Bearer t"}


async def test_another_ca_is_told_with_the_one_that_is_needed(world: World, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other-ca")
    async with (
        serving(whoami, world.ca.serving(world.here)) as server,
        client({"server": server, "certificate-authority": str(other.certificate)}, {"token": SECRET}) as api,
    ):
        begin = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            await api.request("POST", PODS, body=b"{}")
        assert time.monotonic() - begin < 2.5  # it is not tried again
    text = str(caught.value)
    assert text.startswith(f"{server}: its certificate is signed by O=test,CN=cluster-ca, which is not trusted")
    assert "certificate-authority or K8S_CA_FILE" in text
    assert "; it is sha256:" in text
    assert "may have been taken" not in text


async def test_the_name_in_the_certificate(world: World) -> None:
    trust = {"certificate-authority": str(world.ca.certificate)}
    async with serving(whoami, world.ca.serving(world.elsewhere)) as server:
        async with client({"server": server, **trust}) as api:
            with pytest.raises(Unavailable, match=r"is not for 127\.0\.0\.1: tls-server-name"):
                await seen(api)
        async with client({"server": server, **trust, "tls-server-name": "kubernetes.default.svc"}) as api:
            assert await seen(api)
        async with client({"server": server, "insecure-skip-tls-verify": True}) as api:
            assert await seen(api)


async def test_tls_with_a_server_that_has_none() -> None:
    async with (
        serving(whoami) as server,
        client({"server": server.replace("http:", "https:"), "insecure-skip-tls-verify": True}) as api,
    ):
        with pytest.raises(Unavailable, match="the server speaks no TLS, is it http://"):
            await seen(api)


async def test_a_ca_that_is_renewed_is_believed(world: World, tmp_path: Path) -> None:
    file = tmp_path / "ca.crt"
    file.write_bytes(Authority(tmp_path, "old-ca").certificate.read_bytes())
    async with (
        serving(whoami, world.ca.serving(world.here)) as server,
        client({"server": server, "certificate-authority": str(file)}) as api,
    ):
        with pytest.raises(Unavailable, match="is not trusted"):
            await seen(api)
        file.write_bytes(world.ca.certificate.read_bytes())
        assert await seen(api)


# --- the client ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inline", [True, False], ids=["data", "file"])
async def test_a_client_shows_its_certificate_and_leaves_no_file(world: World, inline: bool, tmp_path: Path) -> None:
    alice = world.alice
    user = {"client-certificate": str(alice.certificate), "client-key": str(alice.key)}
    if inline:
        user = {"client-certificate-data": packed(alice.certificate), "client-key-data": packed(alice.key)}
    files = set(os.listdir("/proc/self/fd"))
    found = reached({"server": "https://127.0.0.1", "insecure-skip-tls-verify": True}, user)
    assert set(os.listdir("/proc/self/fd")) <= files
    assert "PRIVATE" not in repr(found) + repr(await found.credentials.identity())
    async with (
        serving(whoami, world.ca.serving(world.here)) as server,
        client({"server": server, "certificate-authority": str(world.ca.certificate)}, user) as api,
    ):
        assert (await seen(api))["name"] == "alice"


async def test_a_certificate_that_is_renewed_on_disk_is_shown(world: World, tmp_path: Path) -> None:
    """The first file is new and the second is not yet: the old pair stays."""
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def copy(one: Leaf, *, whole: bool = True) -> None:
        certificate.write_bytes(one.certificate.read_bytes())
        if whole:
            key.write_bytes(one.key.read_bytes())

    copy(world.alice)
    user = {"client-certificate": str(certificate), "client-key": str(key)}
    async with (
        serving(whoami, world.ca.serving(world.here)) as server,
        client({"server": server, "certificate-authority": str(world.ca.certificate)}, user) as api,
    ):
        assert (await seen(api))["name"] == "alice"
        copy(world.bob, whole=False)
        credentials = api.access.credentials
        credentials.refused(await credentials.identity())  # as after a minute, or a 401
        assert (await seen(api))["name"] == "alice"
        copy(world.bob)
        credentials.refused(await credentials.identity())
        assert (await seen(api))["name"] == "bob"


# --- proxies ------------------------------------------------------------------------------------------------------


async def test_a_proxy_between(world: World) -> None:
    heads: list[bytes] = []

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        host, _, port = heads[-1].split()[1].decode().rpartition(":")
        there, here = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while chunk := await source.read(1 << 16):
                sink.write(chunk)
            sink.close()

        await asyncio.gather(pump(reader, here), pump(there, writer))

    trust = {"certificate-authority": str(world.ca.certificate)}
    async with serving(whoami, world.ca.serving(world.here)) as server, speaking(speak) as proxy:
        through = proxy.replace("//", f"//me:{SECRET}@")
        async with client({"server": server, **trust, "proxy-url": through}, {"token": "t"}) as api:
            assert (await seen(api))["authorization"] == "Bearer t"
            assert SECRET not in repr(api.access)
    (head,) = heads
    assert head.startswith(f"CONNECT {server.removeprefix('https://')} ".encode())
    assert base64.b64encode(f"me:{SECRET}".encode()) in head
    assert b"Bearer" not in head
    async with client({"server": server, **trust, "proxy-url": through}, patience=0.3) as api:
        with pytest.raises(Unavailable, match=r"connection refused \(through the proxy 127\.0\.0\.1:\d+\)") as caught:
            await seen(api)
    assert SECRET not in str(caught.value)


# --- exec plugins -------------------------------------------------------------------------------------------------


class Program:
    """A plugin in a folder: what it prints and does is a shell script. `runs` lists what it was told each time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "plugin"
        self.log = folder / "runs"
        self.prints = folder / "prints"

    def says(self, *, before: str = "", version: str = V1, **status: str) -> None:
        self.prints.write_text(json.dumps({"kind": "ExecCredential", "apiVersion": version, "status": status}))
        log = f'printf "%s\\t%s\\t%s\\n" "$KUBERNETES_EXEC_INFO" "$PROFILE" "$*" >> {shlex.quote(str(self.log))}'
        self.path.write_text(f"#!/bin/sh\n{log}\n{before}\ncat {shlex.quote(str(self.prints))}\n")
        self.path.chmod(0o755)

    def user(self, **more: Any) -> dict[str, Any]:
        described = {"apiVersion": V1, "command": str(self.path), "interactiveMode": "Never", **more}
        return {"exec": described}

    @property
    def runs(self) -> list[list[str]]:
        return [line.split("\t") for line in self.log.read_text().splitlines()] if self.log.exists() else []


def alive(pid: str) -> bool:
    """And no zombie, which waits for its parent only."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


async def test_a_plugin_is_run_once_and_told_what_it_wants_to_know(program: Program, world: World) -> None:
    program.says(token=SECRET)
    user = program.user(args=["a b", "$c"], env=[{"name": "PROFILE", "value": "work"}], provideClusterInfo=True)
    ca = str(world.ca.certificate)
    extension = [{"name": "client.authentication.k8s.io/exec", "extension": {"audience": "x"}}]
    async with serving(whoami, world.ca.serving(world.here)) as server:
        cluster = {"server": server, "certificate-authority": ca, "extensions": extension}
        async with client(cluster, user) as api:
            found = await asyncio.gather(*(seen(api) for _ in range(5)))
            assert {one["authorization"] for one in found} == {f"Bearer {SECRET}"}
            assert SECRET not in repr(api.access)
    ((info, profile, arguments),) = program.runs
    assert (profile, arguments) == ("work", "a b $c")
    told = {"server": server, "certificate-authority-data": packed(world.ca.certificate), "config": {"audience": "x"}}
    assert json.loads(info) == {
        "kind": "ExecCredential",
        "apiVersion": V1,
        "spec": {"interactive": False, "cluster": told},
    }


async def test_a_plugin_is_run_again_when_the_server_refuses_or_the_answer_has_ended(program: Program) -> None:
    good = "first"

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers["Authorization"] != f"Bearer {good}":
            return web.json_response({"kind": "Status", "message": "Unauthorized"}, status=401)
        return await whoami(request)

    program.says(token="first")
    async with serving(answer) as server, client({"server": server}, program.user()) as api:
        await seen(api)
        good = "second"
        program.says(token="second", expirationTimestamp="2001-01-01T00:00:00Z")
        assert (await seen(api))["authorization"] == "Bearer second"
        assert 2 <= len(program.runs) <= 3
        runs = len(program.runs)
        await seen(api)
        assert len(program.runs) > runs  # by our clock it has ended
        good = "third"
        with pytest.raises(Unavailable, match="connection is unauthorized: Unauthorized"):
            await seen(api)


async def test_a_plugin_may_print_a_certificate(program: Program, world: World) -> None:
    certificate, key = world.alice.certificate.read_text(), world.alice.key.read_text()
    program.says(clientCertificateData=certificate, clientKeyData=key)
    async with (
        serving(whoami, world.ca.serving(world.here)) as server,
        client({"server": server, "certificate-authority": str(world.ca.certificate)}, program.user()) as api,
    ):
        assert await seen(api) == {"name": "alice", "authorization": ""}


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("echo first >&2; printf 'log in\\033 again\\n' >&2; exit 3", "ended with 3: log in  again (buy it)"),
        ("echo nonsense; exit 0", "what it prints is not an ExecCredential in JSON"),
    ],
)
async def test_a_plugin_that_fails_is_told_with_its_last_words(program: Program, before: str, words: str) -> None:
    program.says(before=before, token=SECRET)
    async with client({"server": "http://127.0.0.1:1"}, program.user(installHint="buy it")) as api:
        for _ in range(3):
            with pytest.raises(Unavailable) as caught:
                await seen(api)
            assert str(caught.value) == f"{program.path} {words}".replace(" what", ": what")
    assert len(program.runs) == 1  # its failure stands for a while


async def test_a_plugin_that_hangs_is_ended_with_all_that_it_started(program: Program) -> None:
    pids = program.folder / "pids"
    program.says(before=f"sleep 30 & echo $! $$ > {pids}.new; mv {pids}.new {pids}; wait")
    plugin = ExecPlugin(Command(str(program.path), (), dict(os.environ), V1, ""), patience=1.0)
    begun = time.monotonic()
    asked = asyncio.create_task(plugin.identity())
    ticks = 0
    while not asked.done():
        await asyncio.sleep(0.02)
        ticks += 1
    assert ticks > 10  # the loop was never held up
    with pytest.raises(Unavailable, match=r"has printed no credentials in 1 s"):
        await asked
    assert time.monotonic() - begun < 5
    await until(lambda: not any(alive(pid) for pid in pids.read_text().split()))


async def test_a_plugin_that_runs_ends_with_the_client(program: Program) -> None:
    pids = program.folder / "pids"
    program.says(before=f"echo $$ > {pids}.new; mv {pids}.new {pids}; exec sleep 30")
    async with client({"server": "http://127.0.0.1:1"}, program.user()) as api:
        asked = asyncio.create_task(seen(api))
        await until(pids.exists)
    with pytest.raises((Unavailable, asyncio.CancelledError)):
        await asked
    assert not alive(pids.read_text().strip())


async def test_a_plugin_beside_the_kubeconfig_is_found_there(program: Program) -> None:
    program.says(token="t")
    config = program.folder / "config"
    user = {"exec": {"apiVersion": V1, "command": "./plugin", "interactiveMode": "IfAvailable"}}
    config.write_text(
        json.dumps(
            {
                "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
                "users": [{"name": "u", "user": user}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            }
        )
    )
    found = access(ApiConfig(kubeconfig=str(config)), {})
    assert (await found.credentials.identity()).token == "t"
    await found.credentials.close()
