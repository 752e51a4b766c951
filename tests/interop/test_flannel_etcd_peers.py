"""flannel's own daemon and ours on one etcd: the same keys and values, one network, one another's leases.

this process: our managers ──────────► etcd
nodes (namespaces): flanneld ──proxy──► ─┘          eth0 ══ peer0, all that flanneld needs to begin

FLANNELD names flannel's own daemon, a release of 2025 or later (its rules have to be nftables').
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import Any

import pytest

import flannel_etcds
from cut_proxy import Proxy
from etcd_server import Etcd, needs_etcd, running
from flannel_etcds import PREFIX, Neighbours, configure, etcd_lease, joined, left, stored, until
from namespaces import Ns, namespaces
from tortie.base.errors import ConfigError
from tortie.flannel.lease import Attrs, Lease, key_of, read_value, subnets, value
from tortie.flannel.manager import Previous
from tortie.flannel.managers.etcd import EtcdManager

FLANNELD = os.environ.get("FLANNELD", "")

pytestmark = [
    pytest.mark.root,
    needs_etcd,
    pytest.mark.skipif(not FLANNELD, reason="FLANNELD does not name flannel's own daemon"),
]

MAC = "02:00:00:00:00:09"
OURS = Attrs(IPv4Address("192.0.2.9"), None, "vxlan", f'{{"VNI":1,"VtepMAC":"{MAC}"}}')
DUAL = {"EnableIPv6": True, "IPv6Network": "fc00:5::/48"}
UPSTREAM_IP = IPv4Address("192.0.2.7")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with running(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture
def etcd(server: Etcd) -> Etcd:
    server.ctl("del", "--prefix", "")
    configure(server, EnableNFTables=True)
    return server


@pytest.fixture
async def one(etcd: Etcd) -> AsyncIterator[EtcdManager]:
    """192.0.2.9."""
    one = flannel_etcds.manager(etcd, 9)
    yield one
    await one.close()


@dataclass
class Flanneld:
    """flannel's own daemon, at 192.0.2.7."""

    ns: Ns
    directory: Path
    url: str
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [FLANNELD, f"--etcd-endpoints={self.url}", f"--subnet-file={self.directory}/subnet.env", "--iface=eth0"]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.ns.name, *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def kill(self) -> None:
        """At once: told to stop while it begins, it sometimes goes on for ever."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    @property
    def said(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    async def ready(self) -> None:
        await until((self.directory / "subnet.env").exists, lambda: self.said)

    @property
    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def routes(self, *family: str) -> dict[str, Any]:
        found = self.ns.json(*family, "route", "show")
        return {route["dst"]: route for route in found if str(route.get("dev", "")).startswith("flannel")}


@pytest.fixture
async def upstream(etcd: Etcd, tmp_path: Path) -> AsyncIterator[Flanneld]:
    for ns in _with_eth0():
        proxy = Proxy(etcd.members[0].port)
        flanneld = Flanneld(ns, tmp_path, await proxy.start(ns.path))
        yield flanneld
        flanneld.kill()
        await proxy.stop()


def _with_eth0() -> Iterator[Ns]:
    made = namespaces()
    ns = next(made)()
    ns.ip("link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
    ns.ip("address", "add", f"{UPSTREAM_IP}/24", "dev", "eth0")
    ns.ip("address", "add", "2001:db8::7/64", "dev", "eth0", "nodad")
    for link in ("eth0", "peer0"):
        ns.ip("link", "set", link, "up")
    ns.ip("route", "add", "default", "via", "192.0.2.1")
    ns.ip("-6", "route", "add", "default", "via", "2001:db8::1")
    yield ns
    made.close()


def its_key(etcd: Etcd) -> str:
    return next(key for key, text in stored(etcd).items() if f'"{UPSTREAM_IP}"' in text)


@pytest.mark.parametrize("dual", [False, True])
async def test_every_byte_is_read_and_would_be_written(
    etcd: Etcd, one: EtcdManager, upstream: Flanneld, dual: bool
) -> None:
    configure(etcd, EnableNFTables=True, **(DUAL if dual else {}))
    config = await one.network()
    upstream.start()
    await upstream.ready()
    ((key, text),) = stored(etcd).items()
    attrs = read_value(text)
    assert value(attrs) == text
    assert key_of(*subnets(key)) == key
    assert (attrs.public_ip, attrs.backend_type) == (UPSTREAM_IP, "vxlan")
    assert attrs.public_ipv6 == (IPv6Address("2001:db8::7") if dual else None)
    assert (attrs.data6 is not None) == dual
    (family, *_) = config.families
    subnet = subnets(key)[0]
    assert subnet is not None
    assert subnet.prefixlen == family.subnet_len
    assert family.first <= subnet.network_address <= family.last
    assert 86_300 < left(etcd, key) <= 86_400


@pytest.mark.parametrize("dual", [False, True])
async def test_each_has_the_other_for_a_neighbour(etcd: Etcd, one: EtcdManager, upstream: Flanneld, dual: bool) -> None:
    """In both orders: who was there first is found, who comes later is heard of, and who goes is gone."""
    configure(etcd, EnableNFTables=True, **(DUAL if dual else {}))
    attrs = replace(OURS, public_ipv6=IPv6Address("2001:db8::9"), data6=OURS.data) if dual else OURS
    own = await one.acquire(await one.network(), attrs, Previous())
    upstream.start()
    await upstream.ready()
    await until(lambda: str(own.subnet) in upstream.routes(), lambda: upstream.said)
    if dual:
        await until(lambda: str(own.subnet6) in upstream.routes("-6"), lambda: upstream.said)
    assert own.subnet is not None
    neighbours = upstream.ns.json("neighbour", "show", "dev", "flannel.1")
    assert [(one["dst"], one["lladdr"]) for one in neighbours] == [(str(own.subnet.network_address), MAC)]
    seen = Neighbours()
    async with flannel_etcds.running(seen.follow(one, own), one.keep(own)):
        await until(lambda: seen.keys == {its_key(etcd)})
        again = await restarted(etcd, replace(attrs, data='{"VNI":1,"VtepMAC":"02:00:00:00:00:0a"}'), own)
        await until(
            lambda: any(one["lladdr"] == "02:00:00:00:00:0a" for one in upstream.ns.json("neighbour", "show")),
            lambda: upstream.said,
        )
        assert again.subnet == own.subnet
        etcd.ctl("del", f"{PREFIX}/subnets/{its_key(etcd)}")
        await until(lambda: seen.keys == set())
    await until(lambda: upstream.ended, lambda: upstream.said)
    assert "Lease has been revoked. Shutting down daemon." in upstream.said


async def restarted(etcd: Etcd, attrs: Attrs, own: Lease) -> Lease:
    """Our node after a restart, publishing something else."""
    again = flannel_etcds.manager(etcd, 9)
    try:
        return await again.acquire(await again.network(), attrs, Previous(own.subnet, own.subnet6))
    finally:
        await again.close()


async def test_one_that_goes_is_gone_for_it(etcd: Etcd, one: EtcdManager, upstream: Flanneld) -> None:
    own = await one.acquire(await one.network(), OURS, Previous())
    upstream.start()
    await until(lambda: str(own.subnet) in upstream.routes(), lambda: upstream.said)
    etcd.ctl("del", f"{PREFIX}/subnets/{key_of(own.subnet)}")
    await until(lambda: str(own.subnet) not in upstream.routes(), lambda: upstream.said)


async def test_one_in_the_place_of_the_other(etcd: Etcd, upstream: Flanneld) -> None:
    """A node goes from flannel to us and back: its subnet stays, and we know what flannel published."""
    upstream.start()
    await upstream.ready()
    key, text = its_key(etcd), stored(etcd)[its_key(etcd)]
    upstream.kill()
    ours = flannel_etcds.manager(etcd, 7)
    attrs = Attrs(UPSTREAM_IP, None, "vxlan", '{"VNI":1,"VtepMAC":"02:00:00:00:00:07"}')
    remembered = await ours.remembered(attrs)
    assert remembered == read_value(text)
    lease = await ours.acquire(await ours.network(), attrs, Previous())
    assert stored(etcd) == {key: value(attrs)}
    assert key_of(lease.subnet) == key
    await ours.close()
    (upstream.directory / "subnet.env").unlink()
    upstream.start()
    await upstream.ready()
    assert list(stored(etcd)) == [key]


async def test_a_reservation_survives_us_and_binds_it(etcd: Etcd, one: EtcdManager, upstream: Flanneld) -> None:
    etcd.ctl("put", f"{PREFIX}/subnets/10.5.77.0-24", f'{{"PublicIP":"{UPSTREAM_IP}"}}')
    etcd.ctl("put", f"{PREFIX}/subnets/10.5.78.0-24", f'{{"PublicIP":"{OURS.public_ip}"}}')
    own = await one.acquire(await one.network(), OURS, Previous())
    upstream.start()
    await upstream.ready()
    assert set(stored(etcd)) == {"10.5.77.0-24", "10.5.78.0-24"}
    assert own.subnet == IPv4Network("10.5.78.0/24")
    assert etcd_lease(etcd, "10.5.78.0-24") == 0


async def test_the_last_subnet(etcd: Etcd, one: EtcdManager, upstream: Flanneld) -> None:
    configure(etcd, EnableNFTables=True, SubnetMax="10.5.2.0")
    upstream.start()
    await upstream.ready()  # it gives up when somebody is quicker
    await one.acquire(await one.network(), OURS, Previous())
    assert set(stored(etcd)) == {"10.5.1.0-24", "10.5.2.0-24"}
    third = flannel_etcds.manager(etcd, 8)
    with pytest.raises(ConfigError, match="out of subnets"):
        await joined(third, 8)
    await third.close()


async def test_two_nodes_with_one_address(etcd: Etcd, upstream: Flanneld) -> None:
    """flannel's daemon takes our lease for its own: that is told."""
    ours = flannel_etcds.manager(etcd, 7)
    attrs = Attrs(UPSTREAM_IP, None, "vxlan", f'{{"VNI":1,"VtepMAC":"{MAC}"}}')
    own = await ours.acquire(await ours.network(), attrs, Previous())
    async with flannel_etcds.running(ours.keep(own)):
        await asyncio.sleep(0.3)
        upstream.start()
        await until(lambda: ours.problems, lambda: upstream.said)
    (line,) = ours.problems
    assert "this node's lease was written by somebody else" in line
    assert f"another daemon with public IP {UPSTREAM_IP} runs" in line
    await ours.close()


@pytest.mark.parametrize(
    "keys",
    [
        {"Network": "10.5.0.0/29"},
        {"SubnetLen": 31},
        {"SubnetLen": 17},
        {"SubnetMin": "10.5.0.1"},
        {"SubnetMax": "10.6.0.0"},
        DUAL | {"IPv6Network": "fc00::/125"},
        DUAL | {"IPv6SubnetLen": 127},
        DUAL | {"IPv6SubnetMin": "fc00:5::1"},
    ],
)
async def test_the_same_words(etcd: Etcd, one: EtcdManager, upstream: Flanneld, keys: dict[str, Any]) -> None:
    """What is said of a configuration that cannot be."""
    configure(etcd, EnableNFTables=True, **keys)
    with pytest.raises(ConfigError) as error:
        await one.network()
    upstream.start()
    await until(lambda: "Couldn't fetch network config: " in upstream.said)
    said = upstream.said.partition("Couldn't fetch network config: ")[2].splitlines()[0]
    assert str(error.value) == f"etcd {etcd.url}: {PREFIX}/config: {said}"
    assert json.loads(etcd.ctl("get", f"{PREFIX}/config", "--print-value-only"))
