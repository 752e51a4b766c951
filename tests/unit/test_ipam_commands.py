"""`tortie ipam`, `tortie controllers` and the lock over an SQLite datastore: what they print, write, and refuse."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from ipam_cluster import matches
from tortie.base.addr import parse_ip, parse_net
from tortie.base.errors import ConfigError, NotFound
from tortie.cli.ipam_text import boxed
from tortie.cli.main import main
from tortie.ipam.assign import Ipam
from tortie.ipam.ledger import Ledger
from tortie.ipam.retire import retire
from tortie.model.ipam import (
    BlockAffinity,
    IPAMBlock,
    IPAMConfig,
    IPAMHandle,
    IPPool,
    IPPoolSpec,
    IPReservation,
    IPReservationSpec,
)
from tortie.model.k8s import Container, Pod, PodSpec, PodStatus
from tortie.model.meta import Metadata, Resource
from tortie.model.node import Node
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint, WorkloadEndpointSpec, endpoint_name
from tortie.store import open_store

T = TypeVar("T")

LONG_AGO = "2026-01-02 03:04:05.5 +0000 UTC"


def now() -> datetime:
    return datetime.now(UTC)


class Shell:
    """Runs commands on one datastore file, and prepares what they find there."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory, self._capsys = directory, capsys
        self.path = directory / "store.db"
        self.err = ""

    def __call__(self, *arguments: str, status: int = 0) -> str:
        got = main([*arguments, "--datastore", str(self.path)])
        out, self.err = self._capsys.readouterr()
        assert got == status, self.err
        return out

    def ask(self, question: Callable[[Store], Awaitable[T]]) -> T:
        async def run() -> T:
            store = open_store(self.path)
            try:
                return await question(store)
            finally:
                await store.close()

        return asyncio.run(run())

    def put(self, *resources: Resource) -> None:
        async def create(store: Store) -> None:
            for one in resources:
                await store.create(one)

        self.ask(create)

    def assign(self, *ips: str, node: str = "node1", handle: str = "net.c1", **attrs: str) -> None:
        async def run(store: Store) -> None:
            noted = {"node": node, "timestamp": LONG_AGO, **(attrs or {"pod": "web", "namespace": "red"})}
            for ip in ips:
                await Ipam(store, node, now, matches).assign_ip(parse_ip(ip), handle=handle, attrs=noted)

        self.ask(run)

    def release(self, handle: str) -> None:
        self.ask(lambda store: Ipam(store, "node1", now, matches).release_by_handle(handle))

    def held(self, handle: str = "net.c1") -> list[str]:
        async def run(store: Store) -> list[str]:
            try:
                return [str(ip) for ip in await Ipam(store, "node1", now, matches).ips_by_handle(handle)]
            except NotFound:
                return []

        return self.ask(run)

    def attach(self, ip: str, pod: str = "web", there: bool = True) -> None:
        spec = WorkloadEndpointSpec(
            orchestrator="k8s", node="node1", pod=pod, container_id="c1", endpoint="eth0", ip_networks=(f"{ip}/32",)
        )
        name = endpoint_name("node1", "k8s", pod, "eth0")
        self.put(WorkloadEndpoint(metadata=Metadata(name=name, namespace="red"), spec=spec))
        if there:
            pod_spec = PodSpec(containers=(Container(name="c"),), node_name="node1")
            status = PodStatus(phase="Running", pod_ip=ip)
            self.put(Pod(metadata=Metadata(name=pod, namespace="red"), spec=pod_spec, status=status))


def pool(cidr: str, name: str = "main", **spec: Any) -> IPPool:
    return IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr, **spec))


@pytest.fixture
def tortie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    shell = Shell(tmp_path, capsys)
    nodes = [Node(metadata=Metadata(name=name)) for name in ("node1", "node2")]
    shell.put(*nodes, pool("10.65.0.0/16"))
    return shell


# ------------------------------------------------------------------------------------------------------------- show


def test_usage_of_pools_and_blocks(tortie: Shell) -> None:
    tortie.put(
        pool("fd5f:abcd:64::/48", "six"),
        IPReservation(metadata=Metadata(name="r"), spec=IPReservationSpec(reserved_cidrs=("10.65.1.0/28",))),
    )
    tortie.assign(*(f"10.65.1.{i}" for i in range(5)))
    assert tortie("ipam", "show", "--show-blocks") == boxed(
        ("GROUPING", "CIDR", "IPS TOTAL", "IPS IN USE", "IPS RESERVED", "IPS FREE"),
        [
            ("IP Pool", "10.65.0.0/16", "65536", "5 (0%)", "16 (0%)", "65520 (100%)"),
            ("Block", "10.65.1.0/26", "64", "5 (8%)", "16 (25%)", "48 (75%)"),
            ("IP Pool", "fd5f:abcd:64::/48", "1.2089e+24", "0 (0%)", "0 (0%)", "1.2089e+24 (100%)"),
        ],
    )
    (first, second) = json.loads(tortie("ipam", "show", "-o", "json"))
    assert (first["name"], first["inUse"], first["blocks"][0]["affinity"]) == ("main", 5, "host:node1")
    assert second["total"] == 2**80


def test_box() -> None:
    assert boxed(["A", "LONG"], [["12", "x"], ["abc", "7"]]) == (
        "+-----+------+\n|  A  | LONG |\n+-----+------+\n|  12 | x    |\n| abc |    7 |\n+-----+------+\n"
    )


def test_borrowed_addresses(tortie: Shell) -> None:
    tortie.assign("10.65.1.0")
    tortie.assign("10.65.1.1", node="node2", handle="net.c2")
    tortie.assign("10.65.1.2", node="", handle="h", note="who knows")
    out = tortie("ipam", "show", "--show-borrowed")
    assert "| 10.65.1.1 | node2          | 10.65.1.0/26 | node1       | pod  | red/web      |" in out
    assert out.endswith("1 addresses have no node, so nobody can tell whether they are borrowed.\n")
    assert [each["ip"] for each in json.loads(tortie("ipam", "show", "--show-borrowed", "-o", "json"))] == ["10.65.1.1"]


def test_one_address(tortie: Shell) -> None:
    tortie.assign("10.65.1.0")
    assert tortie("ipam", "show", "--ip=10.65.1.0") == (
        "IP 10.65.1.0 is in use\nHandle ID: net.c1\nAttributes:\n"
        f"  namespace: red\n  node: node1\n  pod: web\n  timestamp: {LONG_AGO}\n"
    )
    assert tortie("ipam", "show", "--ip=10.65.1.1") == "10.65.1.1 is not assigned\n"
    assert json.loads(tortie("ipam", "show", "--ip=10.65.1.1", "-o", "json")) == {"ip": "10.65.1.1", "assigned": False}
    tortie("ipam", "show", "--ip=10.65.1", status=2)
    tortie("ipam", "configure", "--ip-cooldown-seconds", "60")
    tortie.release("net.c1")
    assert "10.65.1.0 is not assigned: released at" in tortie("ipam", "show", "--ip=10.65.1.0")


# --------------------------------------------------------------------------------------------------------- configure


def test_configure(tortie: Shell) -> None:
    assert tortie("ipam", "configure", "--strictaffinity=true", "--max-blocks-per-host", "3") == (
        "Successfully set StrictAffinity to: true\nSuccessfully set MaxBlocksPerHost to: 3\n"
    )
    assert "Disabled" in tortie("ipam", "configure", "--kubevirt-ip-persistence=Disabled")
    tortie("ipam", "configure", "--strictaffinity=false", status=2)
    assert tortie.err == "tortie: spec.maxBlocksPerHost: needs strictAffinity: true\n"
    for wrong in (["--strictaffinity=yes"], ["--ip-cooldown-seconds=1201"], []):
        tortie("ipam", "configure", *wrong, status=2)
    assert json.loads(tortie("ipam", "show", "--show-configuration", "-o", "json")) == {
        "StrictAffinity": "true",
        "AutoAllocateBlocks": "true",
        "MaxBlocksPerHost": "3",
        "KubeVirtVMAddressPersistence": "Disabled",
        "IPCooldownSeconds": "0",
    }
    before = tortie.ask(lambda store: store.get(IPAMConfig, "default"))
    tortie("ipam", "configure", "--max-blocks-per-host", "3")
    assert tortie.ask(lambda store: store.get(IPAMConfig, "default")) == before  # nothing new, nothing written


# ----------------------------------------------------------------------------------------------------------- release


def test_release_of_an_address(tortie: Shell) -> None:
    tortie.assign("10.65.1.0")
    assert tortie("ipam", "release", "--ip=10.65.1.0") == "Successfully released IP address 10.65.1.0\n"
    assert tortie.held() == []
    tortie("ipam", "release", "--ip=10.65.1.0", status=1)
    assert tortie.err == "tortie: IP address 10.65.1.0 is not assigned\n"
    tortie("ipam", "release", status=2)


def test_address_in_use_is_released_by_force_only(tortie: Shell) -> None:
    tortie.assign("10.65.1.0")
    tortie.attach("10.65.1.0")
    tortie("ipam", "release", "--ip=10.65.1.0", status=1)
    assert "10.65.1.0 is in use: WorkloadEndpoint red/node1-k8s-web-eth0 has it" in tortie.err
    assert tortie.held() == ["10.65.1.0"]
    tortie("ipam", "release", "--ip=10.65.1.0", "--force")
    assert tortie.held() == []


def test_release_from_reports(tortie: Shell) -> None:
    tortie("datastore", "migrate", "lock")
    tortie.assign("10.65.1.0", "10.65.1.1")
    tortie.assign("10.65.1.2", handle="net.c2")
    tortie.ask(lambda store: Ledger(store, now).count_up("net.idle", parse_net("10.65.1.0/26"), 1))
    first, second = str(tortie.directory / "1.json"), str(tortie.directory / "2.json")
    assert tortie("ipam", "check", "-o", first).endswith("Check complete; found 4 problems.\n")
    tortie("ipam", "release", "--ip=10.65.1.2")
    tortie.assign("10.65.1.2", handle="net.c2")  # the same address and handle, assigned once more
    tortie("ipam", "check", "--report", second)
    assert tortie("ipam", "release", f"--from-report={first}", f"--from-report={second}") == (
        "Releasing 2 old IPs...\nReleased 2 IPs successfully\nReleased 1 handles; 0 skipped; 0 errors.\n"
    )
    assert (tortie.held(), tortie.held("net.c2")) == ([], ["10.65.1.2"])


def test_reports_that_are_not_acted_on(tortie: Shell) -> None:
    tortie("ipam", "configure", "--ip-cooldown-seconds=0")  # makes the cluster's information
    tortie.assign("10.65.1.0")
    path = tortie.directory / "r.json"
    tortie("ipam", "check", "-o", str(path))
    tortie("ipam", "release", f"--from-report={path}", status=1)
    assert "the datastore is not locked" in tortie.err
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"version": "0.0.1"}))
    tortie("ipam", "release", f"--from-report={path}", status=1)
    assert "was made by version 0.0.1" in tortie.err
    tortie("datastore", "migrate", "lock")
    tortie("ipam", "release", f"--from-report={path}", "--force", status=2)
    assert "no report was made since the datastore was locked" in tortie.err
    path.write_text(json.dumps(document | {"clusterGUID": "another"}))
    tortie("ipam", "release", f"--from-report={path}", "--force", status=2)
    assert 'is of the cluster with GUID "another"' in tortie.err
    path.write_text("[]")
    tortie("ipam", "release", f"--from-report={path}", status=2)
    assert tortie.held() == ["10.65.1.0"]


def test_forced_release_from_a_report_warns(tortie: Shell) -> None:
    tortie("ipam", "configure", "--ip-cooldown-seconds=0")
    tortie.assign("10.65.1.0")
    path = tortie.directory / "r.json"
    tortie("ipam", "check", "-o", str(path))
    tortie("ipam", "release", f"--from-report={path}", "--force")
    assert tortie.err.startswith("tortie: warning: the datastore is not locked")
    assert tortie.held() == []


# ------------------------------------------------------------------------------------------------------------- check


def test_check_tells_what_is_wrong_and_fix_mends_it(tortie: Shell) -> None:
    tortie.assign("10.65.1.0", "10.65.1.1")
    tortie.assign("10.65.1.2", handle="net.c2", pod="live", namespace="red")
    tortie.attach("10.65.1.2", pod="live")
    tortie.attach("10.65.1.9", pod="lost")

    async def break_it(store: Store) -> None:
        block = await store.get(IPAMBlock, "10-65-1-0-26")
        await store.update(replace(block, spec=replace(block.spec, unallocated=block.spec.unallocated[1:])))
        await store.delete(IPAMHandle, "net.c2")
        await Ledger(store, now).count_up("net.idle", parse_net("10.65.1.0/26"), 1)

    tortie.ask(break_it)
    out = tortie("ipam", "check", "--show-problem-ips")
    for line in (
        "Found 1 IPAM blocks.",
        "IPAM blocks record 3 allocations.",
        "Found 2 workload IPs.",
        "Found 2 IPs that are allocated in IPAM but not actually in use.",
        "  10.65.1.0 (red/web on node1): Pod red/web is gone",
        "Found 1 in-use IPs that are in active IP pools but have no corresponding IPAM allocation.",
        "  10.65.1.9: WorkloadEndpoint red/node1-k8s-lost-eth0",
        "  net.idle",
        "  IPAMBlock 10-65-1-0-26: ordinals neither free nor held: 3",
        '  IPAMBlock 10-65-1-0-26: handle "net.c2" holds 1 addresses, of which it knows 0',
        "Check complete; found 6 problems.",
    ):
        assert line in out.splitlines()
    plan = tortie("ipam", "check", "--fix", "--dry-run").partition("repairs (dry run):\n")[2]
    assert plan == (
        "  mend IPAMBlock 10-65-1-0-26: ordinals neither free nor held: 3\n"
        '  count 1 addresses of 10.65.1.0/26 in IPAMHandle "net.c2", which counts 0\n'
        "  assign 10.65.1.9 to WorkloadEndpoint red/node1-k8s-lost-eth0, which has it\n"
        "  release 10.65.1.0: Pod red/web is gone\n"
        "  release 10.65.1.1: Pod red/web is gone\n"
        "  delete IPAMHandle net.idle: it holds nothing\n"
    )
    assert tortie.held() == ["10.65.1.0", "10.65.1.1"]
    assert tortie("ipam", "check", "--fix").endswith(plan)
    assert tortie("ipam", "check", "--fix").endswith("found 0 problems.\n\nThere is nothing to mend.\n")
    assert (tortie.held(), tortie.held("net.c2")) == ([], ["10.65.1.2"])
    tortie("ipam", "check", "--dry-run", status=2)


# ------------------------------------------------------------------------------------------------------------- split


def test_split_needs_a_lock_and_a_number_that_fits(tortie: Shell) -> None:
    tortie.assign("10.65.200.0")
    tortie("ipam", "split", "4", "--name", "main", status=2)
    assert tortie.err == "tortie: the datastore must be locked: tortie datastore migrate lock\n"
    assert tortie("datastore", "migrate", "lock") == "Datastore locked.\n"
    for number in ("3", "1", "2048"):
        tortie("ipam", "split", number, "--name", "main", status=2)
    assert "a block (/26) fits into at most 1024 parts" in tortie.err
    tortie("ipam", "split", "4", "--name", "other", status=2)
    tortie("ipam", "split", "4", status=2)
    tortie.put(pool("10.65.0.0/18", "split-main-0"))  # an earlier try that was cut short
    assert tortie("ipam", "split", "4", "--cidr", "10.65.0.0/16") == (
        "Successfully split pool main (10.65.0.0/16) into:\n"
        "  split-main-0  10.65.0.0/18\n  split-main-1  10.65.64.0/18\n"
        "  split-main-2  10.65.128.0/18\n  split-main-3  10.65.192.0/18\n"
    )
    pools = tortie.ask(lambda store: store.list(IPPool)).items
    assert [each.name for each in pools] == [f"split-main-{i}" for i in range(4)]
    assert "| Block    | 10.65.200.0/26 |" in tortie("ipam", "show", "--show-blocks")
    assert tortie("datastore", "migrate", "unlock") == "Datastore unlocked.\n"


# ----------------------------------------------------------------------------------------------------------- explain


def test_explain_says_who_where_and_whether_it_is_reclaimed(tortie: Shell) -> None:
    tortie.assign("10.65.1.0", "10.65.1.1")
    out = tortie("ipam", "explain", "10.65.1.0").splitlines()
    assert out[0] == "10.65.1.0  leaked: assigned, but nobody uses it"
    assert "  pod        red/web, which is gone" in out
    assert "  handle     net.c1, which holds 10.65.1.1 too" in out
    assert any(line.startswith("  since      2026-01-02T03:04:05Z, ") for line in out)
    assert "  block      10.65.1.0/26 of host:node1, affinity confirmed" in out
    assert "  pool       main, 10.65.0.0/16" in out
    assert out[-1] == "  reclaimed  yes, once it has been seen for 15 minutes: Pod red/web is gone"
    tortie.attach("10.65.1.1")
    facts = {
        each["about"]: each["text"]
        for each in json.loads(tortie("ipam", "explain", "10.65.1.1", "-o", "json"))["facts"]
    }
    assert facts["pod"] == "red/web, Running on node1, reports 10.65.1.1"
    assert facts["endpoint"] == "red/node1-k8s-web-eth0, container c1"
    assert facts["reclaimed"] == "no: WorkloadEndpoint red/node1-k8s-web-eth0 has it"
    fate = tortie("ipam", "explain", "10.65.1.0").splitlines()[-1]
    assert fate.endswith("Pod red/web has 10.65.1.1, but its handle holds an address that is in use")


def test_explain_addresses_that_nobody_holds(tortie: Shell) -> None:
    tortie.put(IPReservation(metadata=Metadata(name="r"), spec=IPReservationSpec(reserved_cidrs=("10.65.2.0/24",))))
    assert tortie("ipam", "explain", "10.65.1.0") == (
        "10.65.1.0  not assigned\n  block  none yet\n  pool   main, 10.65.0.0/16\n"
    )
    assert "an IPReservation keeps it back" in tortie("ipam", "explain", "10.65.2.9")
    assert "  pool   none\n" in tortie("ipam", "explain", "192.0.2.1")
    tortie.attach("10.65.1.0")
    assert tortie("ipam", "explain", "10.65.1.0").startswith("10.65.1.0  in use, but not assigned in IPAM\n")
    tortie("ipam", "explain", "nonsense", status=2)


# ------------------------------------------------------------------------------------------------------- controllers


@pytest.fixture
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("_logging_as_it_was")
def test_one_pass_of_the_controllers(tortie: Shell) -> None:
    tortie.assign("10.65.1.0")
    tortie.assign("10.65.2.0", node="node2", handle="net.c2", pod="b", namespace="red")
    tortie.ask(lambda store: store.delete(Node, "node1"))
    tortie("controllers", "--once")
    assert (tortie.held(), tortie.held("net.c2")) == ([], ["10.65.2.0"])
    assert "released 10.65.1.0 (red/web on node1)" in tortie.err
    tortie("controllers", "--once", "--leak-grace-period=soon", status=2)


# -------------------------------------------------------------------------------------------------- deleting a pool


def test_deleting_a_pool_ends_its_claims_and_leaves_what_is_in_use(tortie: Shell) -> None:
    tortie.put(pool("10.66.0.0/16", "other"))
    tortie.assign("10.65.0.1")
    tortie.assign("10.66.0.1", handle="net.other")
    tortie.assign("10.65.9.1", handle="net.gone")
    tortie.release("net.gone")
    assert tortie("delete", "ippool", "main").startswith("ippool/main deleted\n")

    async def left(store: Store) -> tuple[list[str], dict[str, str | None], list[str]]:
        pools, blocks = (await store.list(IPPool)).items, (await store.list(IPAMBlock)).items
        affinities = (await store.list(BlockAffinity)).items
        owners = {block.spec.cidr: block.spec.affinity for block in blocks}
        return [each.name for each in pools], owners, [each.spec.cidr for each in affinities]

    found = {"10.65.0.0/26": None, "10.66.0.0/26": "host:node1"}
    assert tortie.ask(left) == (["other"], found, ["10.66.0.0/26"])
    tortie.release("net.c1")
    assert tortie.ask(left) == (["other"], {"10.66.0.0/26": "host:node1"}, ["10.66.0.0/26"])


def test_a_pool_that_is_being_deleted_is_closed_before_its_claims_end(tortie: Shell) -> None:
    """Who asks for an address meanwhile gets none of it, and makes no claim that would outlive it."""

    async def run(store: Store) -> None:
        deleting = asyncio.create_task(retire(store, "main", now, rest=0.3))
        async for batch in store.watch(IPPool, (await store.list(IPPool)).revision):
            assert [event.object.spec.disabled for event in batch] == [True]
            break
        with pytest.raises(ConfigError, match="no enabled IPv4 pool"):
            await Ipam(store, "node1", now, matches).auto_assign(1, handle="h", attrs={})
        await deleting

    tortie.ask(run)
    tortie("delete", "ippool", "main", status=1)
    assert "resource does not exist: IPPool(main)" in tortie.err


def test_deleting_a_pool_goes_on_where_it_was_cut_short(tortie: Shell) -> None:
    tortie.assign("10.65.0.1")

    async def cut_short(store: Store) -> bool:
        deleting = asyncio.create_task(retire(store, "main", now, rest=60))
        async for _ in store.watch(IPPool, (await store.list(IPPool)).revision):
            break
        deleting.cancel()
        await asyncio.gather(deleting, return_exceptions=True)
        return (await store.get(IPPool, "main")).spec.disabled

    assert tortie.ask(cut_short)
    assert tortie("delete", "ippool", "main").startswith("ippool/main deleted\n")
