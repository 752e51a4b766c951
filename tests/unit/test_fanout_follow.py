"""Clients that follow a kind by way of a fan-out server, while servers and datastores come and go."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from fanned import QUICK, Ground, Shared, servers
from kube_api.certificates import Authority
from store_words import pool, seen, take
from tortie.base.errors import Compacted, Exists, NotFound, Unavailable
from tortie.fanout.feed import Pace
from tortie.fanout.server import Server, Settings
from tortie.fanout.session import Patience as SessionPatience
from tortie.model.document import convert
from tortie.model.ipam import IPPool
from tortie.model.secret import Secret
from tortie.model.service import EndpointSlice
from tortie.model.store import Store
from tortie.store.fanout import wire
from tortie.store.fanout.address import Address
from tortie.store.fanout.client import FanoutStore
from tortie.store.fanout.link import Elsewhere, connected
from tortie.store.fanout.servers import Patience
from tortie.store.fanout.tls import Tls
from tortie.store.fanout.wanted import by_fanout
from tortie.store.memory import MemoryStore

DEADLINE = 15.0
HASTE = Patience(grace=0.02, spread=0.02, first_retry=0.01, longest_retry=0.04, again=0.02, avoid=0.01)
PACE = Pace(first_retry=0.02, longest_retry=0.1, away=0.2, late=0.05, silent=0.3, pause=0.05, patience=1.0)


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not true():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.01)


class Follower:
    """Does what an agent does: list, watch, again when the history is lost. `told` are the events since the first list;
    `lists` how often it has listed."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.picture: dict[str, int] = {}
        self.told: list[tuple[str, str, int]] = []
        self.lists = 0
        self.listed_at = -1
        self.away = 0
        self.task = asyncio.create_task(self.run())

    async def run(self) -> None:
        while True:
            try:
                listing = await self.store.list(IPPool)
                assert int(listing.revision) >= self.newest, "a list has gone back"
                self.lists += 1
                self.listed_at = int(listing.revision)
                self.picture = {one.name: int(one.metadata.resource_version) for one in listing.items}
                async for batch in self.store.watch(IPPool, listing.revision):
                    for event in batch:
                        self.hear(event)
            except Compacted:
                continue
            except Unavailable:
                self.away += 1
                await asyncio.sleep(0.02)

    @property
    def newest(self) -> int:
        return max(self.listed_at, self.told[-1][2] if self.told else -1)

    def hear(self, event: Any) -> None:
        name, revision = event.object.name, int(event.object.metadata.resource_version)
        assert revision > self.newest, "told twice, or in disorder"
        self.told.append((event.type.value, name, revision))
        if event.type.value == "DELETED":
            del self.picture[name]
        else:
            self.picture[name] = revision

    async def stop(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


@pytest.fixture
async def follow() -> AsyncIterator[Callable[[Store], Follower]]:
    made: list[Follower] = []

    def follow(store: Store) -> Follower:
        made.append(Follower(store))
        return made[-1]

    yield follow
    for one in made:
        await one.stop()


async def truth(store: Store) -> dict[str, int]:
    return {one.name: int(one.metadata.resource_version) for one in (await store.list(IPPool)).items}


class Switched(Shared):
    """A store that can be away: calls fail, and watches break off."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.away = asyncio.Event()
        self.deaf = False

    def demand(self) -> None:
        if self.away.is_set():
            raise Unavailable("the cable is out")

    async def get(self, *what: Any) -> Any:
        self.demand()
        return await self._store.get(*what)

    async def list(self, *what: Any) -> Any:
        self.demand()
        return await self._store.list(*what)

    async def watch(self, kind: Any, revision: str) -> Any:
        self.demand()
        inner = self._store.watch(kind, revision)
        gone = asyncio.ensure_future(self.away.wait())
        step: asyncio.Task[Any] | None = None
        try:
            while True:
                step = asyncio.ensure_future(anext(inner))
                await asyncio.wait({step, gone}, return_when=asyncio.FIRST_COMPLETED)
                self.demand()
                batch = await step
                if not self.deaf:
                    yield batch
        finally:
            for task in filter(None, (step, gone)):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await inner.aclose()


# --- servers come and go --------------------------------------------------------------------------------------------


async def test_a_server_that_goes_away_costs_nothing_but_a_moment(tmp_path: Path, follow: Any) -> None:
    """It goes in the middle of writes: not one is lost, told twice, or asked for by a new list."""
    direct = MemoryStore()
    async with Ground(tmp_path, direct, Settings(pace=PACE)) as ground:
        clients = [ground.client(HASTE) for _ in range(5)]
        followers = [follow(one) for one in clients]
        await until(lambda: all(one.lists for one in followers))
        assert all(one.served == 1 for one in clients)
        for number in range(60):
            await direct.create(pool(f"p{number}"))
            await asyncio.sleep(0.005)
            if number == 20:
                await ground.stop()
        await until(lambda: all(len(one.told) == 60 for one in followers))
        assert [one.told for one in followers] == [[("ADDED", f"p{n}", n + 1) for n in range(60)]] * 5
        assert all(one.lists == 1 and client.servers.falls for one, client in zip(followers, clients, strict=True))


async def test_agents_come_back_to_a_server(tmp_path: Path, follow: Any) -> None:
    direct = MemoryStore()
    async with Ground(tmp_path, direct, Settings(pace=PACE)) as ground:
        await ground.stop()
        client = ground.client(HASTE)
        follower = follow(client)
        await until(lambda: follower.lists)
        assert client.served == 0
        assert client.servers.fallen_back
        await direct.create(pool("a"))
        await until(lambda: follower.picture == {"a": 1})
        await ground.start()
        await until(lambda: client.servers.link is not None)
        await until(lambda: any(session.readings for session in ground.server.sessions))
        assert not client.servers.fallen_back
        await direct.create(pool("b"))
        await until(lambda: follower.picture == {"a": 1, "b": 2})


async def test_a_client_that_is_ahead_of_a_server_stays_where_it_is_until_the_server_has_come_to_it(
    tmp_path: Path, follow: Any
) -> None:
    """The kind was quiet for long, so that the server has not heard of the revision that the datastore is at."""
    direct = MemoryStore()
    async with Ground(tmp_path, direct, Settings(pace=PACE)) as ground:
        await until(lambda: not ground.server.unready)
        for number in range(10):
            await direct.create(convert(EndpointSlice, {"metadata": {"name": f"s{number}"}, "addressType": "IPv4"}))
        pools = ground.server.feeds[IPPool.KIND.key]
        assert (pools.shelf.revision, pools.requests) == (0, 1)
        async with aclosing(ground.client().watch(IPPool, "10")) as watch:
            waiting = asyncio.create_task(take(watch, 1))
            await until(lambda: pools.shelf.revision == 10)
            assert pools.requests == 2, "it has looked once"
            await direct.create(pool("a"))
            assert seen(await waiting) == [("ADDED", "a")]


async def test_lists_have_what_this_client_has_written_and_not_what_it_has_deleted(tmp_path: Path) -> None:
    direct = Switched(MemoryStore())
    async with Ground(tmp_path, direct, Settings(pace=PACE)) as ground:
        client, other = ground.client(), ground.client()
        assert (await client.list(IPPool)).items == ()
        await client.create(pool("a"))
        assert [one.name for one in (await client.list(IPPool)).items] == ["a"]
        direct.deaf = True  # the server hears nothing from now on
        await client.delete(IPPool, "a")
        assert (await client.list(IPPool)).items == (), "the server has noticed, or the datastore was asked"
        direct.deaf = False
        assert (await other.list(IPPool)).items == ()


async def test_a_watch_upstream_that_fell_silent_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    direct = Switched(MemoryStore())
    async with Ground(tmp_path, direct, Settings(pace=PACE)) as ground:
        client = ground.client()
        await client.list(IPPool)
        direct.deaf = True
        made = await client.create(pool("a"))
        with caplog.at_level(logging.WARNING):
            assert (await client.list(IPPool)).items == (made,)
        assert "the watch of ippools is silent: it has not told of IPPool a" in caplog.text


async def test_a_server_without_its_datastore_sends_clients_there_themselves(tmp_path: Path, follow: Any) -> None:
    direct = MemoryStore()
    upstream = Switched(direct)
    async with Ground(tmp_path, upstream, Settings(pace=PACE)) as ground:
        client = FanoutStore(Shared(direct), servers([ground.address], patience=HASTE))
        ground.clients.append(client)
        follower = follow(client)
        await until(lambda: follower.lists)
        upstream.away.set()
        await direct.create(pool("a"))
        await until(lambda: follower.picture == {"a": 1})
        assert client.asked
        await until(lambda: ground.server.unready == "the cable is out")
        assert (await client.list(IPPool)).items
        upstream.away.clear()
        await until(lambda: not ground.server.unready)
        await until(lambda: any(one.readings for one in ground.server.sessions))
        await direct.create(pool("b"))
        await until(lambda: follower.picture == {"a": 1, "b": 2})
        assert follower.lists == 1


async def test_a_server_that_stops_says_so(tmp_path: Path, follow: Any) -> None:
    direct = MemoryStore()
    settings = Settings(pace=PACE, leave=1.0)
    async with Ground(tmp_path, direct, settings) as one, Ground(tmp_path, direct, settings) as two:
        clients = [FanoutStore(Shared(direct), servers([one.address, two.address])) for _ in range(6)]
        one.clients += clients
        followers = [follow(client) for client in clients]
        await until(lambda: all(follower.lists for follower in followers))
        assert one.server.sessions | two.server.sessions
        await one.server.leave()
        assert not one.server.sessions
        await direct.create(pool("a"))
        await until(lambda: all(follower.picture == {"a": 1} for follower in followers))
        await until(lambda: len(two.server.sessions) == 6)
        assert all(client.servers.falls == 0 for client in clients), "nobody had to ask the datastore"


# --- clients that are slow, wrong or gone ---------------------------------------------------------------------------


async def test_a_client_that_does_not_read_costs_the_others_nothing_and_is_told(tmp_path: Path) -> None:
    """It reads on when more has been written than is remembered: its history is gone. What waits for it is bounded."""
    direct = MemoryStore()
    async with Ground(tmp_path, direct, Settings(history=50, pace=PACE)) as ground:
        client = ground.client()
        revision = (await client.list(IPPool)).revision
        reader, writer = await asyncio.open_unix_connection(ground.address.path, limit=1000)
        writer.write(wire.frame(wire.Hello(wire.VERSION, "slow")) + wire.frame(wire.Watch(IPPool.KIND.key, "0"), 7))
        server = ground.server
        await until(lambda: any(session.readings for session in server.sessions))
        (slow,) = (session for session in server.sessions if session.who == "slow")
        text = random.Random(7).randbytes(50_000).hex()
        async with aclosing(client.watch(IPPool, revision)) as watch:
            for number in range(150):
                await direct.create(pool(f"p{number}", annotations={"example.org/bulk": text}))
                assert seen(await take(watch, 1)) == [("ADDED", f"p{number}")]
        assert slow.sent < 4_000_000, "of 15 MB"
        ear, heard = wire.Ear(), []
        async with asyncio.timeout(DEADLINE):
            while not any(isinstance(one, wire.Ended) for one in heard):
                heard += [message for _, message in ear.hear(await reader.read(100_000))]
        assert heard[-1].why is wire.Why.COMPACTED
        assert slow.compactions == 1
        writer.close()


@pytest.mark.parametrize("reads", [True, False])
async def test_a_client_that_is_dead_is_hung_up_on(tmp_path: Path, reads: bool) -> None:
    patience = SessionPatience(ping=0.05, silence=0.3, stall=0.4)
    direct = MemoryStore()
    async with Ground(tmp_path, direct, Settings(patience=patience, pace=PACE)) as ground:
        quick = ground.client()
        await quick.list(IPPool)
        _reader, writer = await asyncio.open_unix_connection(ground.address.path, limit=1000)
        writer.write(wire.frame(wire.Hello(wire.VERSION, "dead")) + wire.frame(wire.Watch(IPPool.KIND.key, "0"), 7))
        server = ground.server
        await until(lambda: any(session.readings for session in server.sessions))
        if not reads:
            text = random.Random(7).randbytes(100_000).hex()
            for number in range(20):
                await direct.create(pool(f"p{number}", annotations={"example.org/bulk": text}))
        await until(lambda: len(server.sessions) == 1)
        assert server.drops == {"silent" if reads else "slow": 1}
        assert quick.servers.link is not None, "the others answer"
        writer.close()


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (wire.frame(wire.Hello(99, "new")), "this server speaks version 1 of the protocol, not 99"),
        (wire.frame(wire.Ping()), "say Hello first"),
        (b"GET / HTTP/1.1\r\nHost: typha\r\n\r\n", "is no fan-out protocol: a message of 1195725856 bytes"),
        (wire.HEADER.pack(3, 0, 99) + b"abc", "is no fan-out protocol: message 99"),
        (wire.HEADER.pack(3, 0, wire.Type.PART) + b"abc", "is no fan-out protocol: message 6"),
        (wire.HEADER.pack(3, 0, wire.Type.HELLO) + b"abc", "is no fan-out protocol: message 1: "),
    ],
)
async def test_what_is_no_client_is_refused_in_one_line(tmp_path: Path, said: bytes, answer: str) -> None:
    async with Ground(tmp_path, MemoryStore()) as ground:
        reader, writer = await asyncio.open_unix_connection(ground.address.path)
        writer.write(said)
        async with asyncio.timeout(DEADLINE):
            ((_, heard),) = wire.Ear().hear(await reader.read())
        assert isinstance(heard, wire.Refused)
        assert heard.why.startswith(answer)
        assert "\n" not in heard.why
        writer.close()


async def test_revisions_that_cannot_be_are_compacted(tmp_path: Path) -> None:
    async with Ground(tmp_path, MemoryStore(), Settings(pace=PACE)) as ground:
        link = await connected(ground.address, Tls(), "odd")
        for revision in ("", "x", "-1", "9" * 5000, "²"):
            with pytest.raises(Compacted, match="list again"):
                await anext(link.watch(IPPool.KIND.key, revision))  # type: ignore[arg-type]
        with pytest.raises(Elsewhere, match="are known up to revision 0, not to 18446744073709551615"):
            await link.list(IPPool.KIND.key, 2**64 - 1, ())
        link.close()


async def test_a_client_that_talks_nonsense_later_is_hung_up_on(tmp_path: Path) -> None:
    async with Ground(tmp_path, MemoryStore()) as ground:
        for nonsense in (wire.frame(wire.Watching(1), 5), b"\xff" * 20, wire.frame(wire.Watch("x", "1"), 0)):
            reader, writer = await asyncio.open_unix_connection(ground.address.path)
            writer.write(wire.frame(wire.Hello(wire.VERSION)) + nonsense)
            async with asyncio.timeout(DEADLINE):
                await reader.read()
            writer.close()
        await until(lambda: ground.server.drops["protocol"] == 3)


async def test_a_full_server_sends_clients_away(tmp_path: Path) -> None:
    async with Ground(tmp_path, MemoryStore(), Settings(max_connections=1)) as ground:
        first = await connected(ground.address, Tls(), "first")
        with pytest.raises(Unavailable, match=r"^fan-out server unix:/.*: 1 clients are here: full$"):
            await connected(ground.address, Tls(), "second")
        first.close()


async def test_what_is_not_a_fan_out_server_is_not_waited_for() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as listener:
        where = Address("127.0.0.1", listener.sockets[0].getsockname()[1])
        with pytest.raises(Unavailable, match=f"^fan-out server {where}: no answer for 0.1 s$"):
            await connected(where, Tls(), "x", seconds=0.1)
    with pytest.raises(Unavailable, match="refused"):
        await connected(where, Tls(), "x")


async def test_secrets_go_directly(tmp_path: Path) -> None:
    direct = MemoryStore()
    await direct.create(convert(Secret, {"metadata": {"name": "s", "namespace": "red"}, "stringData": {}}))
    async with Ground(tmp_path, direct, Settings(kinds=(IPPool, Secret))) as ground:
        client = ground.client()
        assert len((await client.list(Secret)).items) == 1
        assert client.served == 0
        await client.list(IPPool)
        assert client.served == 1
        link = await connected(ground.address, Tls(), "curious")
        assert link.kinds == {IPPool.KIND.key}
        with pytest.raises(Exception, match="are not fanned out"):
            await link.list(Secret.KIND.key, 0, ())
        link.close()


# --- TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


def tls(authority: Authority, pair: tuple[Path, Path], **peer: str) -> Tls:
    return Tls(str(authority.ca), str(pair[0]), str(pair[1]), **peer)


async def test_both_sides_demand_whom_they_expect(tmp_path: Path, authority: Authority) -> None:
    agent, stranger = authority.client("agent"), authority.client("stranger")
    uri = authority.issue("uri", "/CN=x", "subjectAltName=URI:spiffe://c/agent\nextendedKeyUsage=clientAuth")
    (tmp_path / "other").mkdir()
    foreign = Authority(tmp_path / "other")
    mine = tls(authority, authority.server, cn="agent", uri="spiffe://c/agent")
    async with Server(MemoryStore(), Settings(mine)) as server:
        where = await server.listen(Address("127.0.0.1", 0))
        for pair, peer in ((agent, {}), (agent, {"cn": "kube-apiserver"}), (uri, {})):
            link = await connected(where, tls(authority, pair, **peer), "agent")
            assert IPPool.KIND.key in link.kinds
            link.close()
        with pytest.raises(Unavailable, match='its certificate has the common name "stranger", not "agent"'):
            await connected(where, tls(authority, stranger), "x")
        with pytest.raises(Unavailable, match='common name "kube-apiserver", not "typha"'):
            await connected(where, tls(authority, agent, cn="typha"), "x")
        with pytest.raises(Unavailable, match="certificate verify failed"):
            await connected(where, Tls(str(foreign.ca), str(agent[0]), str(agent[1])), "x")
        for without in (tls(foreign, foreign.client("agent")), Tls()):
            trusting = Tls(str(authority.ca), without.cert, without.key) if without else without
            with pytest.raises(Unavailable, match=r"^fan-out server 127"):
                await connected(where, trusting, "x", seconds=3)
        assert server.drops["tls"] == 1


def test_files_that_are_none_are_named(tmp_path: Path, authority: Authority) -> None:
    from tortie.base.errors import ConfigError

    (tmp_path / "x").write_text("nothing")
    certificate, key = authority.server
    with pytest.raises(ConfigError, match=f"^{tmp_path}/x: is no authority"):
        Tls(f"{tmp_path}/x", str(certificate), str(key)).checked("a", "b", "c")
    with pytest.raises(ConfigError, match="No such file"):
        Tls(str(authority.ca), f"{tmp_path}/y", str(key)).checked("a", "b", "c")
    assert str(key) not in repr(tls(authority, authority.server))


# --- what an agent is told ------------------------------------------------------------------------------------------


async def test_an_agent_finds_servers_as_felix_does(tmp_path: Path) -> None:
    direct = MemoryStore()
    assert by_fanout(direct, "", "n", {}) is direct
    assert by_fanout(direct, "", "n", {"FELIX_TYPHAK8SSERVICENAME": "none"}) is direct
    async with Server(direct) as server:
        where = await server.listen(Address("127.0.0.1", 0))
        labels = {"kubernetes.io/service-name": "calico-typha"}
        slice_ = {
            "metadata": {"name": "typha-1", "namespace": "calico-system", "labels": labels},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["127.0.0.1"]}],
            "ports": [{"name": "calico-typha", "port": where.port}],
        }
        await direct.create(convert(EndpointSlice, slice_))
        service = {"FELIX_TYPHAK8SSERVICENAME": "calico-typha", "FELIX_TYPHAK8SNAMESPACE": "calico-system"}
        for given, environment in ((str(where), {}), ("", {"FELIX_TYPHAADDR": str(where)}), ("", service)):
            store = by_fanout(Shared(direct), given, "n", environment, QUICK)
            assert isinstance(store, FanoutStore)
            await store.list(IPPool)
            assert store.served == 1
            await store.close()


# --- any interleaving -----------------------------------------------------------------------------------------------


def test_whatever_happens_every_client_comes_to_what_there_is(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("storm")

    class Storm(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.runner = asyncio.Runner()

        def run_(self, work: Any) -> Any:
            return self.runner.run(work)

        @initialize()
        def begin(self) -> None:
            async def begin() -> None:
                self.direct = MemoryStore(history=12)
                self.upstream = Switched(self.direct)
                settings = Settings(history=8, pace=PACE, leave=0.05)
                self.grounds = [Ground(directory, self.upstream, settings) for _ in range(2)]
                for ground in self.grounds:
                    await ground.start()
                where = [ground.address for ground in self.grounds]
                self.clients = [FanoutStore(Shared(self.direct), servers(where, patience=HASTE)) for _ in range(3)]
                self.followers = [Follower(client) for client in self.clients]

            self.run_(begin())

        @rule(name=st.sampled_from("abcd"), count=st.integers(1, 5))
        def write(self, name: str, count: int) -> None:
            async def write() -> None:
                for number in range(count):
                    try:
                        await self.direct.create(pool(name))
                    except Exists:
                        await self.direct.update(pool(name, labels={"n": str(random.random()), "m": str(number)}))

            self.run_(write())

        @rule(name=st.sampled_from("abcd"))
        def delete(self, name: str) -> None:
            with suppress(NotFound):
                self.run_(self.direct.delete(IPPool, name))

        @rule(name=st.sampled_from("abcd"), who=st.integers(0, 2))
        def client_deletes_and_lists(self, name: str, who: int) -> None:
            async def go() -> None:
                try:
                    await self.clients[who].delete(IPPool, name)
                except NotFound:  # somebody else deleted it, of whom a server without its cable need not have heard
                    return
                async with asyncio.timeout(DEADLINE):
                    listed = await self.clients[who].list(IPPool)
                assert name not in {one.name for one in listed.items}

            self.run_(go())

        @rule(count=st.integers(1, 12))
        def something_else_happens(self, count: int) -> None:
            """The datastore forgets as much of its history."""

            async def go() -> None:
                for _ in range(count):
                    name = f"s{random.random()}"
                    await self.direct.create(
                        convert(EndpointSlice, {"metadata": {"name": name}, "addressType": "IPv4"})
                    )

            self.run_(go())

        @rule(which=st.integers(0, 1), how=st.sampled_from(["stop", "restart", "start", "forget", "leave"]))
        def a_server(self, which: int, how: str) -> None:
            async def go() -> None:
                ground = self.grounds[which]
                if how == "forget" and ground.server:
                    ground.server.feeds[IPPool.KIND.key].shelf.forget()
                elif how == "leave" and ground.server:
                    await ground.server.leave()
                    await ground.stop()
                elif how == "restart":
                    await ground.restart()
                elif how == "stop":
                    await ground.stop()
                elif how == "start" and not ground.server:
                    await ground.start()

            self.run_(go())

        @rule(who=st.integers(0, 2))
        def a_connection_breaks(self, who: int) -> None:
            async def go() -> None:
                if (link := self.clients[who].servers.link) is not None:
                    link.close("cut")

            self.run_(go())

        @rule(away=st.booleans())
        def the_cable_of_the_servers(self, away: bool) -> None:
            (self.upstream.away.set if away else self.upstream.away.clear)()

        @rule(seconds=st.sampled_from([0.0, 0.0, 0.01, 0.1]))
        def time_passes(self, seconds: float) -> None:
            self.run_(asyncio.sleep(seconds))

        def teardown(self) -> None:
            async def end() -> None:
                try:
                    expected = await truth(self.direct)
                    for one in self.followers:
                        await until(lambda one=one: one.picture == expected or one.task.done())
                finally:
                    for one in self.followers:
                        await one.stop()
                    for client in self.clients:
                        await client.close()
                    for ground in self.grounds:
                        await ground.stop()

            self.run_(end())
            self.runner.close()

    run_state_machine_as_test(
        Storm,
        settings=settings(
            max_examples=30, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
