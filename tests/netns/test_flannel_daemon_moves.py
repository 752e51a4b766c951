"""A daemon that begins anew, that is told to end while it does, and whose datastore, file or interface is not as it
should be for a while. The subnets are those of a clerk in memory, which may be away, or slow."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from flannel_daemons import Town, until
from flannel_nodes import FlannelNode, Wire, network_config, subnet_of
from namespaces import Ns
from tortie.base.errors import Unavailable
from tortie.flannel.config import NetworkConfig
from tortie.flannel.daemon import Daemon
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.manager import Leases, Overrides, Previous
from tortie.flannel.options import parse
from tortie.kernel.netns import entered

pytestmark = pytest.mark.root

PATIENCE = 15.0


class Clerk:
    """Implements `SubnetManager`, of one node: number 1."""

    where = "a clerk"
    problems: tuple[str, ...] = ()

    def __init__(self, config: NetworkConfig, *others: Lease) -> None:
        self.config = config
        self.others: Leases = {str(lease.subnet): lease for lease in others}
        self.news = asyncio.Event()
        self.given: list[IPv4Address | None] = []
        """The public addresses that leases were for."""
        self.away = self.deaf = False
        self.slowness = 0.0

    async def network(self) -> NetworkConfig:
        return self.config

    async def overrides(self) -> Overrides:
        return Overrides()

    async def remembered(self, attrs: Attrs) -> Attrs | None:
        return None

    async def acquire(self, config: NetworkConfig, attrs: Attrs, previous: Previous) -> Lease:
        if self.away:
            raise Unavailable("the clerk is out")
        self.given.append(attrs.public_ip)
        return Lease(subnet_of(1), None, attrs)

    async def neighbours(self, own: Lease) -> AsyncIterator[Leases]:
        while True:
            yield dict(self.others)
            await self.news.wait()
            self.news.clear()

    async def leases(self) -> Leases:
        return self.others

    async def keep(self, own: Lease) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(self.slowness)

    async def tell_ready(self) -> None:
        if self.deaf:
            raise Unavailable("the clerk does not listen")

    async def close(self) -> None:
        """Nothing is open."""


def lease(number: int, kind: str, ip: str = "") -> Lease:
    return Lease(subnet_of(number), None, Attrs(IPv4Address(ip or f"192.0.2.{number}"), None, kind))


class Life:
    """A daemon in this process."""

    def __init__(self, node: FlannelNode, clerk: Clerk, file: Path) -> None:
        self.node = node
        self.clerk = clerk
        self.file = file
        self.daemon = Daemon(parse(["-iface", "eth0", "-subnet-file", str(file)], {}), clerk, lambda: None)
        self.work = asyncio.create_task(self.daemon.run())

    async def until(self, what: str, holds: Callable[[], Awaitable[object]]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not await holds():
                assert not self.work.done(), self.work
                await asyncio.sleep(0.05)

    async def ready(self) -> bool:
        return bool((await self.daemon.status())["ready"])

    async def problems(self) -> str:
        return "\n".join((await self.daemon.status())["problems"])

    async def says(self, line: str) -> bool:
        return self.file.exists() and line in self.file.read_text()

    async def end(self) -> None:
        self.work.cancel()
        with suppress(asyncio.CancelledError):
            async with asyncio.timeout(PATIENCE):
                await self.work


Case = Callable[[Life], Awaitable[None]]


@pytest.fixture
def live(make_ns: Callable[..., Ns], tmp_path: Path) -> Callable[[Case, Clerk], None]:
    def run(case: Case, clerk: Clerk) -> None:
        node = Wire(make_ns).node(1, clerk.config)

        async def all_of_it() -> None:
            life = Life(node, clerk, tmp_path / "subnet.env")
            try:
                await case(life)
            finally:
                await life.end()

        with entered(node.ns.path):
            asyncio.run(all_of_it())

    return run


Live = Callable[[Case, Clerk], None]


def test_told_to_end_while_it_begins_anew(live: Live) -> None:
    async def case(life: Life) -> None:
        await life.until("ready", life.ready)
        life.clerk.slowness = 0.5
        life.node.ns.ip("link", "set", "eth0", "mtu", "1400")
        await asyncio.sleep(0.3)  # its other tasks are ending now, and the clerk's takes its time
        life.work.cancel()
        done, _ = await asyncio.wait([life.work], timeout=3)
        assert done
        assert life.work.cancelled()
        assert len(life.clerk.given) == 1

    live(case, Clerk(network_config("alloc")))


def test_address_that_changes_while_there_is_no_lease_yet(live: Live) -> None:
    clerk = Clerk(network_config("alloc"))
    clerk.away = True

    async def waits(life: Life) -> bool:
        return "the clerk is out" in await life.problems()

    async def case(life: Life) -> None:
        await life.until("the clerk is asked", lambda: waits(life))
        life.node.ns.ip("address", "delete", "192.0.2.1/24", "dev", "eth0")
        life.node.ns.ip("address", "add", "192.0.2.99/24", "dev", "eth0")
        clerk.away = False

        async def moved() -> bool:
            return clerk.given[-1:] == [IPv4Address("192.0.2.99")]

        await life.until("it has a lease for the new one", moved)

    live(case, clerk)


def test_what_is_found_wrong_is_found_again_after_a_move(live: Live) -> None:
    async def case(life: Life) -> None:
        async def found() -> bool:
            status = await life.daemon.status()
            return any("192.0.2.1 is the public address of" in line for line in status["findings"])

        await life.until("two nodes have one address", found)
        life.node.ns.ip("link", "set", "eth0", "mtu", "1400")
        await life.until("it has begun anew", lambda: life.says("FLANNEL_MTU=1350\n"))
        await life.until("and still have", found)

    live(case, Clerk(network_config("vxlan"), lease(2, "ipip", "192.0.2.1")))


def test_nothing_waits_for_who_is_told_that_the_node_is_ready(live: Live, tmp_path: Path) -> None:
    said = tmp_path / "said"
    clerk = Clerk(network_config("extension", SubnetAddCommand=f"echo $SUBNET >> {said}", Shell=True))
    clerk.deaf = True

    async def case(life: Life) -> None:
        await life.until("ready", life.ready)
        clerk.others = {"2": lease(2, "extension")}
        clerk.news.set()

        async def added() -> bool:
            return said.exists() and said.read_text() == "10.5.2.0/24\n"

        await life.until("the new node is added", added)
        assert "the clerk does not listen" in await life.problems()

    live(case, clerk)


def test_file_that_cannot_be_written_for_a_while(live: Live, tmp_path: Path) -> None:
    (tmp_path / "subnet.env").mkdir()

    async def case(life: Life) -> None:
        async def told() -> bool:
            return f"write {tmp_path}/subnet.env: Is a directory" in await life.problems()

        await life.until("it is told", told)
        assert not await life.ready()
        life.file.rmdir()
        life.node.ns.ip("route", "add", "203.0.113.0/24", "via", "192.0.2.9")  # any reason for another pass
        await life.until("ready", life.ready)

    live(case, Clerk(network_config("alloc")))


def test_link_that_is_too_small_or_without_an_address_for_a_while(make_ns: Callable[..., Ns], tmp_path: Path) -> None:
    """Where a daemon that starts would end, one that runs waits."""
    town = Town(Wire(make_ns), tmp_path)
    one = town.node(1)
    try:
        one.start().until_ready()
        ns = one.node.ns
        ns.ip("link", "set", "eth0", "mtu", "100")
        until("it says so", lambda: "IPv4 needs 68" in "\n".join(one.status()["problems"]))
        ns.ip("address", "flush", "dev", "eth0")
        until("it says so", lambda: "IPv4 address for interface eth0" in "\n".join(one.status()["problems"]))
        ns.ip("link", "set", "eth0", "mtu", "1400")
        ns.ip("address", "add", "192.0.2.1/24", "dev", "eth0")
        until("the file says so", lambda: "FLANNEL_MTU=1350\n" in one.subnet_file.read_text())
        until("all is well", lambda: not one.status()["problems"])
        assert one.stop() == 0, one.said()
    finally:
        town.close()


def test_address_stays_where_only_the_mtu_changes(make_ns: Callable[..., Ns], tmp_path: Path) -> None:
    """The kernel lists the newest of IPv6 first."""
    town = Town(Wire(make_ns), tmp_path, dual=True)
    one = town.node(1)
    try:
        one.start().until_ready()
        one.node.ns.ip("address", "add", "2001:db8::77/64", "dev", "eth0", "nodad")
        one.node.ns.ip("link", "set", "eth0", "mtu", "1400")
        until("the file says so", lambda: "FLANNEL_MTU=1330\n" in one.subnet_file.read_text())
        assert one.status()["node"]["public_ipv6"] == "2001:db8::1"
    finally:
        town.close()


def test_cluster_that_is_away_when_the_node_starts(ns: Ns, tmp_path: Path) -> None:
    """It has to say which node this is: that is waited for."""
    words = ["-kube-subnet-mgr", "-kube-api-url", "http://127.0.0.1:9", "-subnet-file", str(tmp_path / "subnet.env")]
    environment = {name: text for name, text in os.environ.items() if name != "NODE_NAME"}
    environment |= {"POD_NAME": "kube-flannel-x", "POD_NAMESPACE": "kube-flannel"}
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["ip", "netns", "exec", ns.name, sys.executable, "-m", "tortie.flannel", *words],
            stderr=file,
            env=environment,
        )
    try:
        until(
            "it waits", lambda: process.poll() is not None or "waiting to learn which node this is" in log.read_text()
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0, log.read_text()
        assert [json.loads(line)["level"] for line in log.read_text().splitlines()] == ["warning"]
    finally:
        process.kill()
        process.wait()
