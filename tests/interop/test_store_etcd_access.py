"""Who may ask a real etcd: TLS with certificates of clients, users with passwords, and what is said to others."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from etcd_server import Certificates, Etcd, free_ports, needs_etcd, running
from store_words import pool, seen, take
from tortie.base.errors import ConfigError, NotSupported, Unavailable
from tortie.model.apiconfig import ApiConfig
from tortie.model.ipam import IPPool
from tortie.store import open_store
from tortie.store.etcd.store import EtcdStore
from tortie.store.etcd.wire import FIRST

pytestmark = needs_etcd

PASSWORD = "correct-horse"
TOKEN_LIFE = 1
"""Seconds that a token lives unused; etcd looks once a second."""

Open = Callable[..., EtcdStore]


@pytest.fixture
async def opened() -> AsyncIterator[Open]:
    """Opens stores and closes them after the test."""
    made: list[EtcdStore] = []

    def open_(config: ApiConfig, **options: float) -> EtcdStore:
        made.append(EtcdStore(config, **options))
        return made[-1]

    yield open_
    for store in made:
        await store.close()


# TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    made.make()
    return made


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Etcd]:
    with running(tmp_path_factory.mktemp("tls"), tls=certificates) as etcd:
        yield etcd


def with_files(url: str, certificates: Certificates, who: str = "client") -> ApiConfig:
    return ApiConfig(
        etcd_endpoints=url,
        etcd_ca_cert_file=str(certificates.ca),
        etcd_cert_file=str(certificates.certificate(who)),
        etcd_key_file=str(certificates.key(who)),
    )


async def test_certificates_from_files(tls: Etcd, certificates: Certificates, opened: Open) -> None:
    store = opened(with_files(tls.url, certificates))
    made = await store.create(pool("a"))
    async with aclosing(store.watch(IPPool, made.metadata.resource_version)) as watch:
        await store.delete(IPPool, "a")
        assert seen(await take(watch, 1)) == [("DELETED", "a")]


async def test_certificates_inline(tls: Etcd, certificates: Certificates, opened: Open) -> None:
    inline = ApiConfig(
        etcd_endpoints=tls.url,
        etcd_ca_cert=certificates.ca.read_text(),
        etcd_cert=certificates.certificate("client").read_text(),
        etcd_key=certificates.key("client").read_text(),
    )
    assert (await opened(inline).list(IPPool)).items == ()


async def refused(store: EtcdStore) -> str:
    """What a call says of an etcd that will not do; soon, in one line."""
    begin = time.monotonic()
    with pytest.raises(Unavailable) as error:
        await store.list(IPPool)
    assert time.monotonic() - begin < 8
    assert "\n" not in str(error.value)
    return str(error.value)


async def test_without_a_client_certificate(tls: Etcd, certificates: Certificates, opened: Open) -> None:
    bare = ApiConfig(etcd_endpoints=tls.url, etcd_ca_cert_file=str(certificates.ca))
    assert re.match(r"etcd https://127.*: TLS: .*certificate", await refused(opened(bare)))


async def test_an_authority_that_is_not_ours(
    tls: Etcd, certificates: Certificates, opened: Open, tmp_path: Path
) -> None:
    other = Certificates(tmp_path / "other")
    await asyncio.to_thread(other.make)
    config = with_files(tls.url, certificates)
    unknown = msgspec.structs.replace(config, etcd_ca_cert_file=str(other.ca))
    assert "not signed by an authority that we were given" in await refused(opened(unknown))
    stranger = msgspec.structs.replace(with_files(tls.url, other), etcd_ca_cert_file=str(certificates.ca))
    assert "TLS: " in await refused(opened(stranger))


async def test_a_certificate_for_another_host(certificates: Certificates, opened: Open, tmp_path: Path) -> None:
    class Elsewhere(Certificates):
        def server(self) -> list[str]:
            return [one.replace("server.", "elsewhere.") for one in super().server()]

        def flags(self) -> list[str]:
            return [*super().flags(), "--insecure-skip-tls-verify"]

    with running(tmp_path / "elsewhere", tls=Elsewhere(certificates.directory)) as etcd:
        assert "TLS: its certificate is for another host" in await refused(opened(with_files(etcd.url, certificates)))


async def test_tls_and_none(tls: Etcd, certificates: Certificates, opened: Open) -> None:
    plain = ApiConfig(etcd_endpoints=tls.url.replace("https", "http"))
    assert await refused(opened(plain))


async def test_a_server_without_tls(certificates: Certificates, opened: Open, tmp_path: Path) -> None:
    with running(tmp_path / "plain") as etcd:
        config = with_files(etcd.url.replace("http", "https"), certificates)
        assert "TLS: no agreement: is it served with TLS" in await refused(opened(config))


async def test_a_server_that_is_no_etcd(opened: Open) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert "what answers there is not etcd" in await refused(opened(ApiConfig(etcd_endpoints=url)))


async def test_renewed_certificates_need_no_restart(
    tls: Etcd, certificates: Certificates, opened: Open, tmp_path: Path
) -> None:
    """Files that were wrong when they were first read, and are right later."""
    other = Certificates(tmp_path / "late")
    await asyncio.to_thread(other.make)
    store = opened(with_files(tls.url, other))
    await refused(store)
    for name in ("ca.pem", "client.pem", "client.key"):
        (other.directory / name).write_bytes((certificates.directory / name).read_bytes())
    assert (await store.list(IPPool)).items == ()


def test_what_is_wrong_with_files(certificates: Certificates, tmp_path: Path) -> None:
    good = with_files("https://127.0.0.1:1", certificates)
    replace = msgspec.structs.replace
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    cases = {
        replace(good, etcd_ca_cert_file="/nowhere/ca.pem"): r"etcdCACertFile: /nowhere/ca\.pem: cannot be read: ",
        replace(good, etcd_ca_cert_file=str(wrong)): r"wrong\.pem: is not a certificate in PEM",
        replace(good, etcd_key_file=""): r"etcdKeyFile \(or etcdKey\): a client's key and certificate go together",
        replace(good, etcd_key_file=str(certificates.ca)): r"ca\.pem: is not a private key in PEM: .*BEGIN PRIVATE",
        replace(good, etcd_key_file=str(certificates.key("server"))): r"server\.key: is not the key of this",
    }
    for config, message in cases.items():
        with pytest.raises(ConfigError, match=message) as error:
            EtcdStore(config)
        assert "PRIVATE" not in str(error.value).replace("PRIVATE KEY-----", "") or "BEGIN" not in str(error.value)


def test_what_is_wrong_with_endpoints() -> None:
    with pytest.raises(ConfigError, match=r"^etcdEndpoints: is required"):
        EtcdStore(ApiConfig(datastore_type="etcdv3"))
    with pytest.raises(NotSupported, match=r"^etcdDiscoverySrv: .*dig \+short SRV _etcd-client\._tcp\.example\.org"):
        EtcdStore(ApiConfig(etcd_discovery_srv="example.org"))


async def test_nobody_listens(opened: Open) -> None:
    first, second = free_ports(2)
    store = opened(ApiConfig(etcd_endpoints=f"http://127.0.0.1:{first},http://127.0.0.1:{second}"))
    message = await refused(store)
    assert re.match(rf"etcd http://127\.0\.0\.1:{min(first, second)},http.*: .*(refused|connect)", message)


async def test_whoever_opens_says_how_long_to_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        store = open_store(f"etcd:{url}", environment={}, patience=0.2)
        begin = time.monotonic()
        with pytest.raises(Unavailable):
            await store.list(IPPool)
        assert time.monotonic() - begin < FIRST, "what it would wait by itself"
        await store.close()


async def test_one_of_two_endpoints_will_do(tls: Etcd, certificates: Certificates, opened: Open) -> None:
    (nobody,) = free_ports(1)
    for _ in range(4):  # which is asked first is chosen by lot
        config = with_files(f"https://127.0.0.1:{nobody},{tls.url}", certificates)
        assert (await opened(config).list(IPPool)).items == ()


# Users ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """An etcd with passwords: root; tortie, who may use our keys; and guest, who may read one."""
    with running(tmp_path_factory.mktemp("guarded"), options=[f"--auth-token-ttl={TOKEN_LIFE}"]) as etcd:
        for user in ("root", "tortie", "guest"):
            etcd.ctl("user", "add", user, "--interactive=false", given=PASSWORD.encode() + b"\n")
        etcd.ctl("user", "grant-role", "root", "root")
        for role, mode, prefixes in (
            ("net", "readwrite", ("/calico/", "/tortie/")),
            ("guest", "read", ("/elsewhere/",)),
        ):
            etcd.ctl("role", "add", role)
            for prefix in prefixes:
                etcd.ctl("role", "grant-permission", role, "--prefix", mode, prefix)
        etcd.ctl("user", "grant-role", "tortie", "net")
        etcd.ctl("user", "grant-role", "guest", "guest")
        etcd.ctl("auth", "enable")
        etcd.flags.append(f"--user=root:{PASSWORD}")
        yield etcd


def user(etcd: Etcd, name: str, password: str = PASSWORD) -> ApiConfig:
    return ApiConfig(etcd_endpoints=etcd.url, etcd_username=name, etcd_password=password)


async def test_a_role_for_our_keys_is_enough(guarded: Etcd, opened: Open) -> None:
    store = opened(user(guarded, "tortie"))
    made = await store.create(pool("role"))
    async with aclosing(store.watch(IPPool, made.metadata.resource_version)) as watch:
        await store.delete(IPPool, "role")
        assert seen(await take(watch, 1)) == [("DELETED", "role")]
    await store.compact((await store.list(IPPool)).revision)


async def test_a_wrong_password(guarded: Etcd, opened: Open) -> None:
    with pytest.raises(ConfigError) as error:
        await opened(user(guarded, "tortie", "wrong one")).list(IPPool)
    assert "wrong user or password" in str(error.value)
    assert 'user "tortie"' in str(error.value)
    assert "wrong one" not in str(error.value)


async def test_no_password(guarded: Etcd, opened: Open) -> None:
    with pytest.raises(ConfigError, match="give a user and a password"):
        await opened(ApiConfig(etcd_endpoints=guarded.url)).list(IPPool)


async def test_a_user_who_may_not(guarded: Etcd, opened: Open) -> None:
    store = opened(user(guarded, "guest"))
    for call in (store.list(IPPool), store.create(pool("x")), anext(store.watch(IPPool, "1"))):
        with pytest.raises(Unavailable, match=r'^connection is unauthorized: .*user "guest".* /calico/ and /tortie/'):
            await call  # type: ignore[misc]


async def test_a_password_where_none_is_asked_for(tmp_path: Path, opened: Open) -> None:
    with running(tmp_path / "open") as etcd:
        store = opened(user(etcd, "tortie"))
        await store.create(pool("a"))
        etcd.members[0].stop()


async def test_tokens_are_renewed(guarded: Etcd, opened: Open) -> None:
    """They die when they were not used for a while, when etcd starts again, and when anybody's rights change. Reads,
    writes and watches go on; a running watch outlives its token."""
    store = opened(user(guarded, "tortie"))
    made = await store.create(pool("token"))
    async with aclosing(store.watch(IPPool, made.metadata.resource_version)) as watch:
        first = store._wire._token
        assert first
        await asyncio.sleep(TOKEN_LIFE + 1.5)  # what is waited for cannot be asked about: asking keeps the token alive
        new = await store.update(pool("token", labels={"n": "1"}))
        assert store._wire._token != first
        await asyncio.to_thread(guarded.ctl, "user", "add", "another", "--interactive=false", given=b"another\n")
        await store.update(pool("token", labels={"n": "2"}))
        guarded.members[0].stop()
        guarded.members[0].start()
        await asyncio.to_thread(guarded.ready)
        await store.delete(IPPool, "token")
        found = await take(watch, 3)
        assert found[0].object == new
        assert [event.type.value for event in found] == ["MODIFIED", "MODIFIED", "DELETED"]


def test_no_secret_is_in_a_repr(guarded: Etcd) -> None:
    config = user(guarded, "tortie", "hush-hush")
    assert "hush-hush" not in repr(EtcdStore(config)) + repr(EtcdStore(config)._wire)
