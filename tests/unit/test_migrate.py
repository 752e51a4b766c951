"""A datastore moved into another one: what is moved, that nothing is lost or made up, and what is refused."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import migrated
from tortie.base.errors import ConfigError, Exists, NotSupported, Unavailable
from tortie.cli.export import exported
from tortie.cli.import_ import MARK, imported, parts
from tortie.cli.main import main
from tortie.cli.migrate import set_ready
from tortie.cli.node_names import kubernetes_names
from tortie.controllers.configuration import Configured
from tortie.controllers.running_config import RunningConfig
from tortie.ipam.check import Finding, check
from tortie.model.bgp import BGPConfiguration, BGPPeer
from tortie.model.controllers import KubeControllersConfiguration, LoadBalancerControllerConfig
from tortie.model.hostendpoint import HostEndpoint
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPAMConfig, IPAMHandle, IPPool
from tortie.model.k8s import Namespace, Pod
from tortie.model.kinds import KINDS
from tortie.model.meta import Metadata, Resource
from tortie.model.node import ClusterInformation, Node, NodeSpec, OrchRef
from tortie.model.secret import Secret
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint
from tortie.store import open_store
from tortie.store.first import initialise
from tortie.store.memory import MemoryStore
from tortie.store.sqlite import SqliteStore

CALICOS_OWN = """
apiVersion: projectcalico.org/v3
items:
- apiVersion: projectcalico.org/v3
  kind: IPPool
  metadata:
    creationTimestamp: null
    name: p
  spec:
    allowedUses:
    - Workload
    - Tunnel
    blockSize: 30
    cidr: 192.168.0.0/16
    ipipMode: Always
    natOutgoing: true
    nodeSelector: all()
    vxlanMode: Never
kind: IPPoolList
metadata:
  resourceVersion: "42"
---
apiVersion: projectcalico.org/v3
items: []
kind: BGPPeerList
metadata:
  resourceVersion: "42"
---
===
{
  "kind": "ClusterInformation",
  "apiVersion": "projectcalico.org/v3",
  "metadata": {"name": "default", "uid": "u", "resourceVersion": "9", "creationTimestamp": "2026-01-01T00:00:00Z"},
  "spec": {"clusterGUID": "aa", "clusterType": "k8s,bgp", "calicoVersion": "v3.32.1", "datastoreReady": false}
}
===
{
  "block_affinities": [
    {"Key": "/calico/ipam/v2/host/n1/ipv4/block/192.168.0.0-30", "TTL": 0,
     "Value": {"state": "confirmed", "deleted": false}}
  ],
  "blocks": [
    {
      "Key": "/calico/ipam/v2/assignment/ipv4/block/192.168.0.0-30",
      "Value": {
        "cidr": "192.168.0.0/30", "affinity": "host:n1", "allocations": [0, null, null, null],
        "unallocated": [1, 2, 3],
        "attributes": [{"handle_id": "h", "secondary": null}], "sequenceNumber": 3,
        "sequenceNumberForAllocation": {"0": 2}, "deleted": false, "hostAffinity": null, "later": 1
      },
      "TTL": 0
    }
  ],
  "handles": [
    {"Key": "/calico/ipam/v2/handle/h", "Value": {"block": {"192.168.0.0/30": 1}, "deleted": false}, "TTL": 0}
  ]
}
"""


async def source() -> MemoryStore:
    store = MemoryStore()
    await migrated.fill(store)
    await set_ready(store, False)
    return store


async def text_of(store: Store, **how: Any) -> str:
    return await exported(store, how.get("elsewhere", False), how.get("keep_names", True), how.get("say", print))


async def read(store: Store) -> dict[tuple[str, str, str], Resource]:
    """Everything, without what is of one datastore only."""
    found = {}
    for kind in KINDS:
        for one in (await store.list(kind)).items:
            metadata = replace(one.metadata, uid="", resource_version="", creation_timestamp=None)
            found[kind.KIND.key, one.namespace, one.name] = replace(one, metadata=metadata)
    return found


async def test_there_and_back(tmp_path: Path) -> None:
    """Through memory and a file: the texts are the same byte for byte, the objects the same value for value."""
    first = await source()
    text = await text_of(first)
    second = open_store(tmp_path / "store.db")
    await imported(second, parts(text, "a"), False, False, lambda _: None)
    assert await text_of(second) == text
    third = MemoryStore()
    await imported(third, parts(await text_of(second), "b"), False, False, lambda _: None)
    assert await read(third) == await read(first) == await read(second)
    information = await second.get(ClusterInformation, "default")
    assert (information.spec.cluster_guid, information.spec.datastore_ready) == (migrated.GUID, False)
    assert MARK not in information.metadata.annotations
    assert await _faults(second) == await _faults(first) == []
    await second.close()


async def _faults(store: Store) -> list[Finding]:
    blocks, handles = (await store.list(IPAMBlock)).items, (await store.list(IPAMHandle)).items
    return check(blocks, handles, (await store.list(BlockAffinity)).items)


async def test_the_form_is_calicos() -> None:
    """Three parts; lists by kind, of which none knows this datastore; IPAM by etcd's keys."""
    text = await text_of(await source())
    lists, information, ipam = text.split("\n===\n")
    kinds = [line.removeprefix("kind: ") for line in lists.splitlines() if line.startswith("kind: ")]
    assert kinds[:3] == ["IPPoolList", "BGPPeerList", "TierList"]
    assert kinds[-2:] == ["IPReservationList", "BGPFilterList"]
    assert len(kinds) == 17
    assert lists.endswith("---")
    assert "uid" not in lists
    assert "resourceVersion" not in lists
    assert json.loads(information)["spec"]["clusterGUID"] == migrated.GUID
    found = json.loads(ipam)
    blocks = {pair["Key"]: pair["Value"] for pair in found["blocks"]}
    assert set(found) == {"block_affinities", "blocks", "handles", "config", "tortie"}
    block = blocks[
        "/calico/ipam/v2/assignment/ipv4/block/" + next(key for key in blocks if "ipv4" in key).split("/")[-1]
    ]
    assert {"cidr", "affinity", "allocations", "unallocated", "attributes", "deleted"} <= set(block)
    assert {pair["Key"] for pair in found["handles"]} >= {"/calico/ipam/v2/handle/k8s-pod-network.alpha0"}
    assert found["config"]["Key"] == "/calico/ipam/v2/config"
    assert found["config"]["Value"]["strict_affinity"] is True
    assert found["block_affinities"][0]["Value"] == {"state": "confirmed", "deleted": False}
    assert all(pair["TTL"] == 0 for group in ("blocks", "handles", "block_affinities") for pair in found[group])


async def test_a_text_of_calicos_own_exporter_is_read() -> None:
    """As it prints it: empty times, lists with nothing in them, null for nothing."""
    text = CALICOS_OWN
    store = MemoryStore()
    await imported(store, parts(text, "calico"), False, False, lambda _: None)
    block = await store.get(IPAMBlock, "192-168-0-0-30")
    assert block.spec.attributes[0].handle_id == "h"
    assert (await store.get(IPAMHandle, "h")).spec.block == {"192.168.0.0/30": 1}
    assert (await store.get(BlockAffinity, "n1-192-168-0-0-30")).spec.owns
    assert (await store.get(ClusterInformation, "default")).spec.cluster_guid == "aa"
    assert await _faults(store) == []


async def test_what_is_kubernetes_is_left_to_it() -> None:
    first = await source()
    beside = json.loads((await text_of(first, elsewhere=True)).split("\n===\n")[2])["tortie"]["objects"]
    assert {one["kind"] for one in beside} == {"WorkloadEndpoint", "Profile", "CalicoNodeStatus"}
    found = parts(await text_of(first), "a")
    into_kubernetes, into_both = MemoryStore(), MemoryStore()
    await imported(into_kubernetes, found, True, True, lambda _: None)
    await imported(into_both, found, False, True, lambda _: None)
    for kind, in_kubernetes, in_both in (
        (Pod, 0, 0),
        (Namespace, 0, 0),
        (WorkloadEndpoint, 0, 1),
        (IPPool, 2, 2),
        (IPAMConfig, 1, 1),
    ):
        assert len((await into_kubernetes.list(kind)).items) == in_kubernetes, kind
        assert len((await into_both.list(kind)).items) == in_both, kind


async def test_nodes_go_by_the_names_of_kubernetes() -> None:
    text = await text_of(await source(), keep_names=False)
    store, new = MemoryStore(), "beta.example.org"
    await imported(store, parts(text, "a"), False, False, lambda _: None)
    assert {one.name for one in (await store.list(Node)).items} == {"alpha", new}
    assert {one.name for one in (await store.list(BGPConfiguration)).items} == {f"node.{new}"}
    assert (await store.get(BGPPeer, "tor")).spec.node == new
    assert (await store.get(HostEndpoint, "beta-eth0")).spec.node == new
    assert (await store.get(WorkloadEndpoint, f"{new}-k8s-web-eth0", "default")).spec.node == new
    assert {one.spec.node for one in (await store.list(BlockAffinity)).items} == {"alpha", new}
    blocks = (await store.list(IPAMBlock)).items
    assert {one.spec.affinity for one in blocks} == {"host:alpha", f"host:{new}"}
    handles = {one.spec.handle_id for one in (await store.list(IPAMHandle)).items}
    assert {f"vxlan-tunnel-addr-{new}", f"tortie-ready-{new}", "vxlan-tunnel-addr-alpha"} <= handles
    assert {one.secondary["node"] for block in blocks for one in block.spec.attributes} == {"alpha", new}
    assert await _faults(store) == []
    assert '"beta"' not in text.replace('"web"', "")


def test_two_nodes_of_one_name_in_kubernetes_are_refused() -> None:
    refs = (OrchRef(node_name="n", orchestrator="k8s"),)
    nodes = [Node(metadata=Metadata(name=name), spec=NodeSpec(orch_refs=refs)) for name in ("a", "b")]
    with pytest.raises(ConfigError, match=r'^Node b: spec.orchRefs: is "n", as that of a'):
        kubernetes_names(nodes)
    nodes = [Node(metadata=Metadata(name="a"), spec=NodeSpec(orch_refs=refs)), Node(metadata=Metadata(name="n"))]
    for either in (nodes, nodes[::-1]):
        with pytest.raises(ConfigError, match=r'^Node a: spec.orchRefs: is "n", as that of n'):
            kubernetes_names(either)
    theirs = (OrchRef(node_name="a", orchestrator="k8s"),)
    nodes[1] = Node(metadata=Metadata(name="n"), spec=NodeSpec(orch_refs=theirs))
    assert kubernetes_names(nodes) == {"a": "n", "n": "a"}


async def test_only_a_locked_datastore_is_exported() -> None:
    store = await source()
    await set_ready(store, True)
    with pytest.raises(NotSupported, match=r"^the datastore is not locked: .*: tortie datastore migrate lock$"):
        await text_of(store)
    await set_ready(store, False)

    class Unlocked(MemoryStore):
        async def list(self, kind: Any, namespace: str | None = None) -> Any:
            if kind is IPAMBlock:
                await set_ready(store, True)
            return await store.list(kind, namespace)

        async def get(self, *which: Any) -> Any:
            return await store.get(*which)

    with pytest.raises(NotSupported, match="not locked"):
        await text_of(Unlocked())


async def test_no_secret_is_in_a_text() -> None:
    store, said = await source(), list[str]()
    await store.create(Secret(metadata=Metadata(name="s", namespace="default"), data={"password": "aHVzaA=="}))
    assert "aHVzaA" not in await text_of(store, say=said.append)
    assert said == ["left out: 1 Secret(s), which are to be in no file: write them into the new datastore yourself"]


async def test_a_datastore_that_is_not_empty_is_refused_and_left_as_it_was() -> None:
    found, store = parts(await text_of(await source()), "a"), MemoryStore()
    await migrated.fill(store)
    before = await read(store)
    with pytest.raises(Exists) as caught:
        await imported(store, found, False, False, lambda _: None)
    said = str(caught.value)
    assert said.startswith(
        "the datastore is not empty: it has 2 IPPool (pods, six), 1 BGPPeer (tor), 1 Tier (security), "
    )
    assert said.endswith("; import into an empty one")
    assert await read(store) == before


async def test_the_configuration_that_controllers_have_made_is_no_obstacle(tmp_path: Path) -> None:
    found, store = parts(await text_of(await source()), "a"), SqliteStore(tmp_path / "store.db")
    try:
        await RunningConfig(store, Configured()).run_once()
        made = await store.get(KubeControllersConfiguration, "default")
        controllers = replace(made.spec.controllers, load_balancer=LoadBalancerControllerConfig())
        changed = replace(made, spec=replace(made.spec, controllers=controllers))
        changed = await store.update(changed)
        with pytest.raises(Exists, match=r"it has 1 KubeControllersConfiguration \(default\)"):
            await imported(store, found, False, False, lambda _: None)
        await store.update(replace(changed, spec=made.spec))
        await imported(store, found, False, False, lambda _: None)
    finally:
        await store.close()


class Breaking(MemoryStore):
    """Goes away after so many writes."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        self.left = writes

    async def create(self, obj: Any) -> Any:
        self._take()
        return await super().create(obj)

    async def update(self, obj: Any) -> Any:
        self._take()
        return await super().update(obj)

    def _take(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Unavailable("gone")


async def test_an_import_that_is_cut_short_anywhere_is_done_by_doing_it_again() -> None:
    first = await source()
    text = await text_of(first)
    found, wanted = parts(text, "a"), await read(first)
    whole = Breaking(10_000)
    await imported(whole, found, False, False, lambda _: None)
    writes = 10_000 - whole.left
    assert writes > 40
    for allowed in range(0, writes, 3):
        store, said = Breaking(allowed), list[str]()
        with pytest.raises(Unavailable):
            await imported(store, found, False, False, said.append)
        store.left = 10_000
        information = (await store.list(ClusterInformation)).items
        assert all(one.spec.datastore_ready is False for one in information)
        await imported(store, found, False, False, said.append)
        assert ("an import of this file was cut short: it goes on" in said) is bool(information)
        assert await read(store) == wanted


async def test_another_file_does_not_go_on_where_one_was_cut_short() -> None:
    text = await text_of(await source())
    store = Breaking(20)
    with pytest.raises(Unavailable):
        await imported(store, parts(text, "a"), False, False, lambda _: None)
    store.left = 10_000
    with pytest.raises(NotSupported, match="another file is being imported"):
        await imported(store, parts(text.replace("64999", "64998"), "b"), False, False, lambda _: None)


@pytest.mark.parametrize("begun", [False, True])
async def test_of_two_files_at_once_one_is_imported(begun: bool) -> None:
    """Into nothing at all, and into what `tortie apply` has begun."""
    text = await text_of(await source())
    found = [parts(text, "a"), parts(text.replace("64999", "64998"), "b")]
    store = MemoryStore()
    if begun:
        await initialise(store)
    done = await asyncio.gather(
        *(imported(store, one, False, False, lambda _: None) for one in found), return_exceptions=True
    )
    (refused,) = [one for one in done if one is not None]
    assert isinstance(refused, Exists | NotSupported)
    number = 64999 if done[0] is None else 64998
    assert (await store.get(BGPPeer, "tor")).spec.as_number == number
    assert (await store.get(ClusterInformation, "default")).spec.datastore_ready is False


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("\n===\n", "\n"), "x: has not the three parts of an export"),
        (
            lambda text: text.replace("cidr: 10.9.0.0/16", "cidr: 10.9.0.0/160"),
            'x: IPPool pods: spec.cidr: "10.9.0.0/160"',
        ),
        (
            lambda text: text.replace("natOutgoing", "natOutgoin"),
            "x: IPPool pods: spec.natOutgoin: is not a known field",
        ),
        (lambda text: text.replace("/handle/k8s", "/handel/k8s"), "x: IPAM: handles["),
        (lambda text: text[:-20], "x: IPAM: not valid JSON"),
        (lambda text: text.replace('"kind": "ClusterInformation"', '"kind": "Tier"'), "x: Tier default: spec."),
    ],
)
async def test_a_text_that_is_wrong_is_refused_before_anything_is_written(
    change: Callable[[str], str], said: str
) -> None:
    text = await text_of(await source())
    changed = change(text)
    assert changed != text
    with pytest.raises(ConfigError) as caught:
        parts(changed, "x")
    assert str(caught.value).startswith(said)


# The commands


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    return status, *capsys.readouterr()


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new, file = tmp_path / "old.db", tmp_path / "new.db", tmp_path / "export"

    async def begin() -> None:
        store = open_store(old)
        await migrated.fill(store)
        await store.close()

    asyncio.run(begin())
    at_old, at_new = ("--datastore", old), ("--datastore", new)
    status, out, err = run(capsys, "datastore", "migrate", "export", *at_old)
    assert (status, out) == (1, "")
    assert "not locked" in err
    assert run(capsys, "datastore", "migrate", "lock", *at_old)[:2] == (0, "Datastore locked.\n")
    status, text, err = run(capsys, "datastore", "migrate", "export", *at_old)
    assert (status, err) == (0, "")
    assert run(capsys, "datastore", "migrate", "export", "-o", file, *at_old) == (0, "", "")
    assert file.read_text() == text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not list(tmp_path.glob(".export*"))
    status, out, err = run(capsys, "datastore", "migrate", "import", "-f", file, *at_new)
    assert status == 0, err
    assert out.startswith("Datastore information successfully imported.")
    assert "IPAM resource(s)" in err
    assert run(capsys, "datastore", "migrate", "export", *at_new)[1] == text
    status, out, err = run(capsys, "datastore", "migrate", "import", "-f", file, *at_new)
    assert status == 1
    assert err.startswith("tortie: the datastore is not empty: it has 2 IPPool (pods, six)")
    status, out, _ = run(capsys, "datastore", "status", "-o", "json", *at_new)
    told = json.loads(out)
    assert (status, told["locked"], told["clusterGUID"], told["objects"]["ippools.projectcalico.org"]) == (
        *(0, True),
        *(migrated.GUID, 2),
    )
    assert run(capsys, "datastore", "migrate", "unlock", *at_new)[0] == 0
    out = run(capsys, "datastore", "status", *at_new)[1]
    assert f"DATASTORE  {new}\nREACHABLE  yes\nREAD       " in out
    assert f"LOCKED     no\nCLUSTER    {migrated.GUID}\n" in out
    assert run(capsys, "datastore", "migrate-policy-names", *at_new)[1].endswith("migrated 0 policies.\n")


def test_files_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(
        capsys, "datastore", "migrate", "import", "-f", tmp_path / "none", "--datastore", tmp_path / "d"
    )
    assert (status, err) == (2, f"tortie: {tmp_path}/none: cannot be read: No such file or directory\n")
    assert not (tmp_path / "d").exists()
    status, out, _ = run(capsys, "datastore", "status", "--datastore", tmp_path / "d")
    assert status == 1
    assert f"REACHABLE  no: there is no datastore {tmp_path}/d" in out
