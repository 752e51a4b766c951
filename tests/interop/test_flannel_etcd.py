"""Flannel's leases in a real etcd: what daemons write there, how they join, and what they hear of one another."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

import flannel_etcds
from etcd_server import Certificates, Etcd, needs_etcd, running
from flannel_etcds import PREFIX, Neighbours, attrs, configure, etcd_lease, joined, left, stored, until
from tortie.base.errors import ConfigError, NotFound
from tortie.flannel.lease import Attrs, value
from tortie.flannel.manager import LeaseLost, Overrides, Previous
from tortie.flannel.managers.etcd import EtcdManager, EtcdOptions
from tortie.flannel.presence import Machine

pytestmark = needs_etcd

Make = Callable[..., EtcdManager]
DAY = 86_400
LAST_HOUR = 24 * 60 - 1 / 60
"""A margin, in minutes, that has a lease renewed after a second."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with running(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture
def etcd(server: Etcd) -> Etcd:
    """With a network, and no lease."""
    server.ctl("del", "--prefix", "")
    configure(server)
    return server


@pytest.fixture
async def make(etcd: Etcd) -> AsyncIterator[Make]:
    made: list[EtcdManager] = []

    def manager(number: int = 1, **options: object) -> EtcdManager:
        made.append(flannel_etcds.manager(etcd, number, **options))
        return made[-1]

    yield manager
    for one in made:
        await one.close()


def day_leases(etcd: Etcd) -> set[str]:
    """The etcd leases that subnets hang on, or have hung on."""
    every = etcd.ctl("lease", "list").splitlines()[1:]
    return {one for one in every if f"granted with TTL({DAY}s)" in etcd.ctl("lease", "timetolive", one)}


# --- joining ----------------------------------------------------------------------------------------------------------


async def test_a_network_is_waited_for(etcd: Etcd, make: Make) -> None:
    etcd.ctl("del", "--prefix", PREFIX)
    with pytest.raises(NotFound, match=f"has no key {PREFIX}/config: etcdctl put {PREFIX}/config '"):
        await make().network()
    configure(etcd, SubnetLen=31)
    with pytest.raises(ConfigError) as error:
        await make().network()
    assert str(error.value) == f"etcd {etcd.url}: {PREFIX}/config: SubnetLen must be less than /31"
    configure(etcd)
    assert (await make().network()).backend_type == "vxlan"


async def test_a_lease_is_flannels(etcd: Etcd, make: Make) -> None:
    one = make()
    before = time.time()
    lease = await joined(one)
    assert lease.subnet is not None
    assert lease.subnet.subnet_of(IPv4Network("10.5.0.0/16"))
    key = f"{lease.subnet.network_address}-24"
    assert stored(etcd) == {
        key: '{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1}}'
    }
    assert DAY - 20 < left(etcd, key) <= DAY
    assert before + DAY <= (lease.expires or 0) <= time.time() + DAY
    assert await one.remembered(attrs()) == attrs()
    assert await make(2).remembered(attrs(2)) is None
    assert await one.overrides() == Overrides()
    await one.tell_ready()
    assert one.problems == ()


async def test_a_restart_gets_it_again(etcd: Etcd, make: Make) -> None:
    """Situation 106."""
    lease = await joined(make())
    (key,) = stored(etcd)
    first = etcd_lease(etcd, key)
    assert await joined(make()) == lease
    assert list(stored(etcd)) == [key]
    assert etcd_lease(etcd, key) != first


async def test_the_subnet_file_brings_it_back(etcd: Etcd, make: Make) -> None:
    """Situation 107."""
    lease = await joined(make())
    etcd.ctl("del", "--prefix", f"{PREFIX}/subnets/")
    assert await joined(make(), previous=Previous(lease.subnet)) == lease


async def test_a_new_address_of_a_running_daemon_keeps_its_subnet(etcd: Etcd, make: Make) -> None:
    one = make()
    lease = await joined(one)
    assert await one.remembered(attrs(2)) == replace(attrs(1), public_ip=IPv4Address("192.0.2.2"))
    moved = await one.acquire(await one.network(), attrs(2), Previous(lease.subnet))
    assert moved.subnet == lease.subnet
    assert [json.loads(text)["PublicIP"] for text in stored(etcd).values()] == ["192.0.2.2"]
    await joined(make(3), 1)  # nobody has the old address any more


async def test_racing_for_the_last_subnets(etcd: Etcd, make: Make) -> None:
    """Situation 108: three are free, six want one."""
    configure(etcd, SubnetMax="10.5.3.0")
    before = day_leases(etcd)
    results = await asyncio.gather(*(joined(make(n), n) for n in range(1, 7)), return_exceptions=True)
    won = [one for one in results if not isinstance(one, BaseException)]
    assert {str(lease.subnet) for lease in won} == {"10.5.1.0/24", "10.5.2.0/24", "10.5.3.0/24"}
    lost = [str(one) for one in results if isinstance(one, ConfigError)]
    assert len(won) == len(lost) == 3, results
    assert {text.partition(":")[0] for text in lost} == {"out of subnets"}
    assert set(stored(etcd)) == {"10.5.1.0-24", "10.5.2.0-24", "10.5.3.0-24"}
    new = day_leases(etcd) - before
    assert new == {f"{etcd_lease(etcd, key):016x}" for key in stored(etcd)}, "those of who lost are revoked"


async def test_many_join_at_once(etcd: Etcd, make: Make) -> None:
    leases = await asyncio.gather(*(joined(make(n), n) for n in range(1, 21)))
    assert len({lease.subnet for lease in leases}) == len(stored(etcd)) == 20


async def test_dual_stack(etcd: Etcd, make: Make) -> None:
    """Situation 111; and a node that had an IPv4 subnet before keeps it."""
    lease = await joined(make())
    configure(etcd, EnableIPv6=True, IPv6Network="fc00:5::/48", IPv6SubnetMax="fc00:5:0:1::")
    again = await joined(make())
    assert (again.subnet, again.subnet6) == (lease.subnet, IPv6Network("fc00:5:0:1::/64"))
    assert lease.subnet is not None
    assert list(stored(etcd)) == [f"{lease.subnet.network_address}-24&fc00:5:0:1::-64"]


async def test_a_reservation_stays_one(etcd: Etcd, make: Make) -> None:
    """Situation 110."""
    etcd.ctl("put", f"{PREFIX}/subnets/10.5.77.0-24", '{"PublicIP":"192.0.2.1"}')
    lease = await joined(make())
    assert (str(lease.subnet), lease.expires) == ("10.5.77.0/24", None)
    assert etcd_lease(etcd, "10.5.77.0-24") == 0
    assert stored(etcd) == {"10.5.77.0-24": value(attrs())}
    assert str((await joined(make(2), 2)).subnet) != "10.5.77.0/24"


async def test_a_node_without_a_public_address(make: Make) -> None:
    one = make()
    with pytest.raises(ConfigError, match="no public IPv4 address"):
        await one.acquire(await one.network(), Attrs(), Previous())


async def test_several_networks_on_one_node(etcd: Etcd, make: Make) -> None:
    configure(etcd, "/blue", Network="10.6.0.0/16")
    one, blue = make(), make(prefix="/blue/")
    lease, other = await joined(one), await joined(blue)
    assert lease.subnet is not None
    assert other.subnet is not None
    assert other.subnet.subnet_of(IPv4Network("10.6.0.0/16"))
    assert (len(stored(etcd)), len(stored(etcd, "/blue"))) == (1, 1)
    assert one.problems == blue.problems == ()


async def test_what_nobody_can_read_keeps_its_subnet(etcd: Etcd, make: Make) -> None:
    configure(etcd, SubnetMax="10.5.2.0")
    etcd.ctl("put", f"{PREFIX}/subnets/10.5.1.0-24", "gibberish")
    etcd.ctl("put", f"{PREFIX}/subnets/strange", "{}")
    one = make()
    assert str((await joined(one)).subnet) == "10.5.2.0/24"
    lines = "\n".join(one.problems)
    assert f"{PREFIX}/subnets/10.5.1.0-24: is not JSON" in lines
    assert f"{PREFIX}/subnets/strange: is not the key of a subnet, such as 10.5.52.0-24" in lines


# --- one address for two ----------------------------------------------------------------------------------------------


async def test_two_machines_with_one_address(etcd: Etcd, make: Make) -> None:
    nat = Attrs(IPv4Address("10.0.2.15"), backend_type="vxlan")
    first, second = make(1, host="web1"), make(2, host="web2")
    config = await first.network()
    await first.acquire(config, nat, Previous())
    with pytest.raises(ConfigError) as error:
        await second.acquire(config, nat, Previous())
    assert str(error.value) == (
        "public IP 10.0.2.15: another node publishes it, web1, and both would get one subnet: give this one another by"
        " --iface or --public-ip (10.0.2.15 is what VirtualBox's NAT gives every machine: take the interface of the"
        " network between them); if web1 is gone, its claim ends within 60 s"
    )
    assert len(stored(etcd)) == 1
    await first.close()
    await second.acquire(config, nat, Previous())


async def test_a_copied_machine_is_another_one(make: Make) -> None:
    """Many templates of virtual machines have an id, and all copies have it in common."""
    await joined(make(machine=Machine("web1", "same", "boot 1")))
    with pytest.raises(ConfigError, match="another node publishes it, web1"):
        await joined(make(machine=Machine("web2", "same", "boot 2")))


async def test_a_claim_of_two_at_once(make: Make) -> None:
    results = await asyncio.gather(*(joined(make(n, host=f"web{n}"), 1) for n in range(4)), return_exceptions=True)
    assert sorted(type(one).__name__ for one in results) == ["ConfigError"] * 3 + ["Lease"]


@pytest.mark.parametrize(
    "again",
    [Machine("web1", "id"), Machine("web1", "id", "boot 2"), Machine("renamed", "id", "boot 1")],
)
async def test_a_killed_daemon_comes_back(make: Make, again: Machine) -> None:
    """Its claim is still there; it may have come with another boot, or under another name."""
    lease = await joined(make(machine=Machine("web1", "id", "boot 1")))
    assert await joined(make(machine=again)) == lease


async def test_a_claim_ends_with_its_lease(etcd: Etcd, make: Make) -> None:
    await joined(make())
    key = f"{PREFIX}/tortie/nodes/192.0.2.1"
    number = json.loads(etcd.ctl("get", key, "-w", "json"))["kvs"][0]["lease"]
    assert "granted with TTL(60s)" in etcd.ctl("lease", "timetolive", f"{number:x}")


async def test_who_is_overrun_is_told(make: Make) -> None:
    """Machines whose names and ids are the same cannot be told apart, except by that both live."""
    twins = [make(1, beat=0.2), make(1, beat=0.2)]
    leases = [await joined(one) for one in twins]
    async with flannel_etcds.running(*(one.keep(lease) for one, lease in zip(twins, leases, strict=True))):
        await until(lambda: twins[0].problems)
        assert any("another daemon, on node1, publishes it too" in line for line in twins[0].problems)
        assert twins[1].problems == ()


async def test_a_lease_that_somebody_else_writes(etcd: Etcd, make: Make) -> None:
    one = make(renew_margin=LAST_HOUR - 3 / 60)
    lease = await joined(one)
    (key,) = stored(etcd)
    async with flannel_etcds.running(one.keep(lease)):
        await asyncio.sleep(0.5)
        number = etcd.ctl("lease", "grant", str(DAY)).split()[1]
        etcd.ctl("put", f"--lease={number}", f"{PREFIX}/subnets/{key}", value(attrs(1, data6='{"VNI":2}')))
        await until(lambda: one.problems)
        (line,) = one.problems
        assert f"{PREFIX}/subnets/{key}: this node's lease was written by somebody else" in line
        await until(lambda: not one.problems)
        assert stored(etcd) == {key: value(attrs())}, "it is ours again when it is renewed"


# --- keeping ----------------------------------------------------------------------------------------------------------


async def test_a_lease_is_renewed(etcd: Etcd, make: Make) -> None:
    one = make(renew_margin=LAST_HOUR)
    lease = await joined(one)
    (key,) = stored(etcd)
    numbers = [etcd_lease(etcd, key)]
    async with flannel_etcds.running(one.keep(lease)):
        for _ in range(2):
            await until(lambda: etcd_lease(etcd, key) not in numbers)
            numbers.append(etcd_lease(etcd, key))
    assert stored(etcd) == {key: value(attrs())}
    assert DAY - 20 < left(etcd, key) <= DAY
    assert one.problems == ()


async def test_one_that_becomes_a_reservation_is_not(etcd: Etcd, make: Make) -> None:
    one = make(renew_margin=LAST_HOUR)
    lease = await joined(one)
    (key,) = stored(etcd)
    async with flannel_etcds.running(one.keep(lease)) as (keeping,):
        await asyncio.sleep(0.3)
        etcd.ctl("put", f"{PREFIX}/subnets/{key}", value(attrs()))
        await asyncio.sleep(2)
        assert etcd_lease(etcd, key) == 0
        assert not keeping.done()


async def test_one_that_is_a_reservation_no_more_is_renewed(etcd: Etcd, make: Make) -> None:
    etcd.ctl("put", f"{PREFIX}/subnets/10.5.77.0-24", value(attrs()))
    one = make(renew_margin=LAST_HOUR)
    lease = await joined(one)
    async with flannel_etcds.running(one.keep(lease)):
        await asyncio.sleep(0.3)
        number = etcd.ctl("lease", "grant", "1000").split()[1]
        etcd.ctl("put", f"--lease={number}", f"{PREFIX}/subnets/10.5.77.0-24", value(attrs()))
        await until(lambda: left(etcd, "10.5.77.0-24") > 1000)


@pytest.mark.parametrize("how", ["deleted", "expired"])
async def test_a_lease_that_is_taken_away(etcd: Etcd, make: Make, how: str) -> None:
    """Situation 109."""
    one = make()
    lease = await joined(one)
    (key,) = stored(etcd)
    keeping = asyncio.ensure_future(one.keep(lease))
    await asyncio.sleep(0.5)
    assert not keeping.done()
    if how == "deleted":
        etcd.ctl("del", f"{PREFIX}/subnets/{key}")
    else:
        etcd.ctl("lease", "revoke", f"{etcd_lease(etcd, key):x}")
    with pytest.raises(LeaseLost) as error:
        await asyncio.wait_for(keeping, 5)
    assert str(error.value) == "Lease has been revoked. Shutting down daemon."


async def test_or_was_taken_away_before(etcd: Etcd, make: Make) -> None:
    one = make()
    lease = await joined(one)
    etcd.ctl("del", "--prefix", f"{PREFIX}/subnets/")
    with pytest.raises(LeaseLost):
        await asyncio.wait_for(one.keep(lease), 5)


# --- other nodes ------------------------------------------------------------------------------------------------------


async def test_neighbours_come_change_and_go(etcd: Etcd, make: Make) -> None:
    one, two, three = make(1), make(2), make(3)
    own, second = await joined(one), await joined(two, 2)
    seen = Neighbours()
    async with flannel_etcds.running(seen.follow(one, own)):
        await until(lambda: seen.told)
        (key,) = seen.keys
        assert seen.told == [{key: second}]
        third = await joined(three, 3)
        await until(lambda: len(seen.keys) == 2)
        assert set(seen.told[-1].values()) == {second, third}
        changed = await joined(make(2), 2, data6='{"VNI":9}')
        await until(lambda: seen.told[-1].get(key) == changed)
        etcd.ctl("del", f"{PREFIX}/subnets/{key}")
        await until(lambda: list(seen.told[-1].values()) == [third])
        heard = len(seen.told)
        await joined(make(1))  # our own is nobody's neighbour
        await asyncio.sleep(0.3)
        assert len(seen.told) == heard
    (expires,) = (lease.expires for lease in seen.told[-1].values())
    assert expires is not None
    assert abs(expires - time.time() - DAY) < 20


async def test_a_node_alone_is_told_so(make: Make) -> None:
    one = make()
    seen = Neighbours()
    async with flannel_etcds.running(seen.follow(one, await joined(one))):
        await until(lambda: seen.told)
        assert seen.told == [{}]


async def test_reservations_of_others_and_old_leases_of_ours(etcd: Etcd, make: Make) -> None:
    """A neighbour that never expires; one that is no neighbour, and is told; one that nobody can be reached by."""
    one = make()
    etcd.ctl("put", f"{PREFIX}/subnets/10.5.200.0-24", '{"PublicIP":"192.0.2.9"}')
    etcd.ctl("put", f"{PREFIX}/subnets/10.5.201.0-24", "{}")
    own = await joined(one)
    etcd.ctl("put", f"{PREFIX}/subnets/10.5.202.0-24", '{"PublicIP":"192.0.2.1"}')
    seen = Neighbours()
    async with flannel_etcds.running(seen.follow(one, own)):
        await until(lambda: seen.keys == {"10.5.200.0-24"})
        assert seen.told[-1]["10.5.200.0-24"].expires is None
        assert one.problems == ("10.5.202.0-24: leased to 192.0.2.1, too, which is this node, and not used by it",)
        etcd.ctl("del", f"{PREFIX}/subnets/10.5.202.0-24")
        await until(lambda: not one.problems)


async def test_all_leases_for_people(etcd: Etcd, make: Make) -> None:
    one = make()
    own, other = await joined(one), await joined(make(2), 2)
    etcd.ctl("put", f"{PREFIX}/subnets/10.5.200.0-24", '{"PublicIP":"192.0.2.9"}')
    onlooker = flannel_etcds.manager(etcd, 7)
    leases = await onlooker.leases()
    await onlooker.close()
    assert [lease for lease in leases.values() if lease.expires is None] == [leases["10.5.200.0-24"]]
    assert {replace(own, node="node1"), replace(other, node="node2")} < set(leases.values())
    assert all(abs((lease.expires or time.time() + DAY) - time.time() - DAY) < 20 for lease in leases.values())
    assert f"{PREFIX}/tortie/nodes/192.0.2.7" not in etcd.ctl("get", "--prefix", "--keys-only", PREFIX)


# --- where it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("http://root:secret@192.0.2.1:2379", "a password in a URL would be seen: give --etcd-username"),
        ("unix:///run/etcd", '"unix:///run/etcd" is not a URL such as http://192.0.2.1:2379'),
    ],
)
def test_endpoints_that_are_none(endpoint: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        EtcdManager(EtcdOptions(endpoints=(endpoint,)))
    assert str(error.value).startswith(f"--etcd-endpoints: {said}")
    assert "secret" not in str(error.value)


async def test_an_endpoint_without_a_scheme_beside_one_where_nobody_listens(etcd: Etcd, make: Make) -> None:
    one = make(endpoints=("127.0.0.1:1", etcd.url.removeprefix("http://")))
    await joined(one)
    assert one.where == f"etcd {','.join(sorted((etcd.url, 'http://127.0.0.1:1')))}"


async def test_a_user_who_may_write_the_network_only(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running(tmp_path_factory.mktemp("users")) as guarded:
        configure(guarded)
        for words in (
            ("user", "add", "root:correct-horse"), ("user", "grant-role", "root", "root"),
            ("role", "add", "flannel"), ("role", "grant-permission", "flannel", "--prefix=true", "readwrite", PREFIX),
            ("user", "add", "flannel:staple"), ("user", "grant-role", "flannel", "flannel"), ("auth", "enable"),
        ):  # fmt: skip
            _ctl(guarded, *words)
        allowed = flannel_etcds.manager(guarded, username="flannel", password="staple")
        assert (await joined(allowed)).subnet is not None
        await allowed.close()
        for prefix, password, said in (
            (PREFIX, "wrong", "wrong user or password"),
            ("/other", "staple", "its role needs to read and write /other/"),
        ):
            refused = flannel_etcds.manager(guarded, prefix=prefix, username="flannel", password=password, patience=1)
            with pytest.raises(Exception, match=said):
                await refused.network()
            await refused.close()
        assert "staple" not in repr(EtcdOptions(password="staple"))


async def test_tls_by_flannels_flags(tmp_path_factory: pytest.TempPathFactory) -> None:
    certificates = Certificates(tmp_path_factory.mktemp("certificates"))
    certificates.make()
    files = {
        "cafile": str(certificates.ca),
        "certfile": str(certificates.certificate("client")),
        "keyfile": str(certificates.key("client")),
    }
    with running(tmp_path_factory.mktemp("tls"), tls=certificates) as secure:
        configure(secure)
        for endpoint in (secure.url, secure.url.removeprefix("https://")):
            one = flannel_etcds.manager(secure, endpoints=(endpoint,), **files)
            assert (await joined(one)).subnet is not None
            await one.close()
        for flag, said in (
            ("cafile", "--etcd-cafile: /nowhere: cannot be read: No such file or directory"),
            ("certfile", "--etcd-certfile: /nowhere: cannot be read: No such file or directory"),
        ):
            with pytest.raises(ConfigError) as error:
                flannel_etcds.manager(secure, **files | {flag: "/nowhere"})
            assert str(error.value) == said
        with pytest.raises(ConfigError) as error:
            flannel_etcds.manager(secure, **files | {"keyfile": ""})
        assert str(error.value) == "--etcd-keyfile: a client's key and certificate go together"


def test_this_machine() -> None:
    here = Machine.here()
    assert here.is_same(Machine.here())
    assert here.boot
    assert not Machine("a", "").is_same(Machine("a", "")), "without an id a name says nothing"


def _ctl(etcd: Etcd, *words: str) -> None:
    try:
        etcd.ctl(*words)
    except subprocess.CalledProcessError as error:
        pytest.fail(f"etcdctl {' '.join(words)}: {error.stderr.decode()}")
