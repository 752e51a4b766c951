"""A cluster moved between all datastores, by the commands: a file, a real etcd, a Kubernetes API server's double.

file ──► etcd ──► file         everything
file ──► Kubernetes ──► etcd   without what is of pods, which a cluster has of itself
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kube_store import Server, server

import migrated
from etcd_server import Etcd, needs_etcd, running
from tortie.cli.main import main
from tortie.cli.migrate import set_ready
from tortie.model.ipam import IPAMBlock
from tortie.model.k8s import Namespace
from tortie.model.kinds import KINDS
from tortie.model.meta import Resource
from tortie.model.node import ClusterInformation, Node
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint
from tortie.store import open_store
from tortie.store.composite import CompositeStore

pytestmark = needs_etcd

OF_PODS = ("WorkloadEndpoint", "Profile")
SOON = 10.0
"""Seconds in which a command says that nobody answers."""


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with running(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("kube")) as cluster:
        yield cluster


@pytest.fixture
def empty(etcd: Etcd, cluster: Server) -> None:
    etcd.ctl("del", "--prefix", "")
    cluster.empty()
    for name in (*migrated.NODES[:1], "beta.example.org"):
        cluster.do(cluster.api.create, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A locked file with a whole cluster."""

    async def fill() -> None:
        store = open_store(tmp_path / "old.db")
        await migrated.fill(store)
        await set_ready(store, False)
        await store.close()

    asyncio.run(fill())
    return tmp_path / "old.db"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)


class Commands:
    def __init__(self, capsys: pytest.CaptureFixture[str], directory: Path) -> None:
        self._capsys, self._directory = capsys, directory

    def __call__(self, *words: object, status: int = 0) -> tuple[str, str]:
        found = main([str(word) for word in words])
        out, err = self._capsys.readouterr()
        assert found == status, err
        return out, err

    def exported(self, where: object, *more: str) -> str:
        return self("datastore", "migrate", "export", "--datastore", where, *more)[0]

    def import_(self, text: str, where: object, status: int = 0) -> str:
        file = self._directory / "export"
        file.write_text(text)
        return self("datastore", "migrate", "import", "-f", file, "--datastore", where, status=status)[1]


@pytest.fixture
def tortie(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Commands:
    return Commands(capsys, tmp_path)


@pytest.mark.usefixtures("empty")
def test_through_etcd_nothing_is_lost(tortie: Commands, old: Path, etcd: Etcd, tmp_path: Path) -> None:
    text, new = tortie.exported(old, "--keep-node-names"), tmp_path / "new.db"
    tortie.import_(text, f"etcd:{etcd.url}")
    assert tortie.exported(f"etcd:{etcd.url}", "--keep-node-names") == text
    tortie.import_(tortie.exported(f"etcd:{etcd.url}", "--keep-node-names"), new)
    assert tortie.exported(new, "--keep-node-names") == text
    assert migrated.GUID in etcd.ctl("get", "/calico/resources/v3/projectcalico.org/clusterinformations/default")
    assert "not empty" in tortie.import_(text, f"etcd:{etcd.url}", status=1)


@pytest.mark.usefixtures("empty")
def test_into_kubernetes_and_out_of_it(tortie: Commands, old: Path, etcd: Etcd, cluster: Server) -> None:
    text, kubernetes = tortie.exported(old), f"kubernetes:{cluster._kubeconfig}"
    assert "warning" not in tortie.import_(text, kubernetes)
    back = tortie.exported(kubernetes)
    before, after = text.split("\n===\n"), back.split("\n===\n")
    assert after[1] == before[1]
    ipam, found = json.loads(before[2]), json.loads(after[2])
    assert {group: found[group] for group in ipam if group != "tortie"} == {
        group: pairs for group, pairs in ipam.items() if group != "tortie"
    }
    assert [one["kind"] for one in found["tortie"]["objects"] if one["kind"] not in OF_PODS] == ["CalicoNodeStatus"]
    for part in before[0].split("---\n"):
        if "kind: NodeList" not in part:
            assert part in back
    tortie.import_(back, f"etcd:{etcd.url}")
    nodes = asyncio.run(_all(open_store(f"etcd:{etcd.url}", environment={}), Node))
    assert {(one.name, one.spec.bgp.ipv4_address) for one in nodes if one.spec.bgp} == {
        ("alpha", "192.0.2.1/24"),
        ("beta.example.org", "192.0.2.2/24"),
    }
    assert "not empty" in tortie.import_(text, kubernetes, status=1)


async def _all(store: Store, kind: type[Resource]) -> tuple[Resource, ...]:
    try:
        return (await store.list(kind)).items
    finally:
        await store.close()


@pytest.mark.usefixtures("empty")
def test_a_node_that_kubernetes_does_not_have_is_passed_over(tortie: Commands, old: Path, cluster: Server) -> None:
    cluster.do(cluster.api.delete, "nodes", "beta.example.org")
    said = tortie.import_(tortie.exported(old), f"kubernetes:{cluster._kubeconfig}")
    assert "warning: there is no Kubernetes node beta.example.org: it is passed over" in said


@pytest.mark.usefixtures("empty")
def test_etcd_beside_kubernetes(tortie: Commands, old: Path, etcd: Etcd, cluster: Server, tmp_path: Path) -> None:
    """By a file of calicoctl's. Kubernetes' kinds are never in etcd, nor Calico's in Kubernetes."""
    file = tmp_path / "calicoctl.cfg"
    spec = f"{{datastoreType: etcdv3, etcdEndpoints: '{etcd.url}', kubeconfig: '{cluster._kubeconfig}'}}"
    file.write_text(f"{{apiVersion: projectcalico.org/v3, kind: CalicoAPIConfig, spec: {spec}}}")
    tortie.import_(tortie.exported(old), f"config:{file}")
    keys = etcd.ctl("get", "--prefix", "/tortie/v1/", "--keys-only").split()
    assert not [key for key in keys if key.split("/")[3] in {kind.KIND.key for kind in KINDS}]
    assert etcd.ctl("get", "--prefix", "/calico/resources/v3/projectcalico.org/workloadendpoints/", "--keys-only")
    out, _ = tortie("get", "namespaces", "-c", file)
    assert "kube-system" in out
    assert "pods" in tortie("get", "ippools", "-c", file)[0]
    assert cluster.do(cluster.api.list, "ippools") == []

    async def look() -> None:
        store = open_store(f"config:{file}", environment={})
        assert isinstance(store, CompositeStore)
        assert (await store.list(Namespace)).items
        assert len((await store.list(WorkloadEndpoint)).items) == 1
        assert (await store.list(IPAMBlock)).items
        await store.close()

    asyncio.run(look())
    told = json.loads(tortie("datastore", "status", "-o", "json", "-c", file)[0])
    assert told["backend"] == "etcd"
    assert told["datastore"] == f"etcd:{etcd.url} and kubernetes:{cluster._kubeconfig}"
    assert told["servers"][etcd.url].startswith("etcd 3.")
    assert [one for one in told["servers"].values() if one.startswith("Kubernetes v1.")]


@pytest.mark.usefixtures("empty")
def test_commands_begin_and_tell_a_cluster_of_every_datastore(
    tortie: Commands, etcd: Etcd, cluster: Server, tmp_path: Path
) -> None:
    """`apply` into an empty one makes what every cluster has; `version` and the check of versions work."""
    pool = tmp_path / "pool.yaml"
    pool.write_text("{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: p}, spec: {cidr: 10.0.0.0/16}}")
    for where in (f"etcd:{etcd.url}", f"kubernetes:{cluster._kubeconfig}"):
        tortie("version", "--datastore", where, status=1)
        tortie("apply", "-f", pool, "--datastore", where)
        assert "Cluster Version:   v3." in tortie("version", "--datastore", where)[0]
        told = json.loads(tortie("datastore", "status", "-o", "json", "--datastore", where)[0])
        assert told["reachable"] is True
        assert told["locked"] is False
        assert told["objects"]["ippools.projectcalico.org"] == 1
        assert told["objects"]["tiers.projectcalico.org"] == 3
        asyncio.run(_of_version(where, "v3.1.0"))
        assert "version mismatch" in tortie("get", "ippools", "--datastore", where, status=1)[1]
        assert tortie("--allow-version-mismatch", "get", "ippools", "--datastore", where)[0]


async def _of_version(where: str, version: str) -> None:
    from msgspec.structs import replace

    store = open_store(where, environment={})
    there = await store.get(ClusterInformation, "default")
    await store.update(replace(there, spec=replace(there.spec, calico_version=version)))
    await store.close()


def test_a_cluster_without_calicos_resources_says_what_to_apply(
    tortie: Commands, cluster: Server, tmp_path: Path
) -> None:
    cluster.do(cluster.api.restart, keep=False)
    pool = tmp_path / "pool.yaml"
    pool.write_text("{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: p}, spec: {cidr: 10.0.0.0/16}}")
    where = ("--datastore", f"kubernetes:{cluster._kubeconfig}")
    for words in (("get", "ippools"), ("apply", "-f", pool), ("datastore", "migrate", "lock")):
        _, err = tortie(*words, *where, status=1)
        assert err.count("\n") == 1
        assert "tortie manifest | kubectl apply -f -" in err


@pytest.mark.usefixtures("empty")
def test_what_cannot_be_read_is_not_lost_without_a_word(tortie: Commands, old: Path, etcd: Etcd) -> None:
    where = f"etcd:{etcd.url}"
    tortie.import_(tortie.exported(old), where)
    etcd.ctl("put", "/calico/resources/v3/projectcalico.org/ippools/new", '{"metadata": {}, "spec": {"cidr": 7}}')
    _, err = tortie("datastore", "migrate", "export", "--datastore", where, status=1)
    assert "IPPool" in err
    assert "--leave-out-unknown" in err
    assert "kind: IPPoolList" in tortie.exported(where, "--leave-out-unknown")


def test_servers_that_do_not_answer_are_told_soon(tortie: Commands, cluster: Server) -> None:
    cluster.do(cluster.api.refuse)
    try:
        begin = time.monotonic()
        _, err = tortie("get", "nodes", "--datastore", f"kubernetes:{cluster._kubeconfig}", status=1)
        assert err.count("\n") == 1
        assert time.monotonic() - begin < SOON
    finally:
        cluster.do(cluster.api.accept)


def test_every_kind_has_a_place_somewhere() -> None:
    """A kind that is new is moved or is said to stay."""
    from tortie.cli.export import BESIDE, IPAM, NEVER, V3

    assert {*V3, *IPAM, *BESIDE, *NEVER, ClusterInformation} == set(KINDS)
