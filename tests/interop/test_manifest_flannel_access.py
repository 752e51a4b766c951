"""`tortie manifest --network flannel` in an API server that authorises: its account can do its work, and no other.

The server is the double, whose RBAC evaluates the very role that the manifest has.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from kube_store import Server, server

from tortie.base.errors import TortieError
from tortie.flannel.lease import Attrs
from tortie.flannel.manager import Previous
from tortie.flannel.managers import opened
from tortie.flannel.options import parse
from tortie.model.k8s import K8sNode, Namespace
from tortie.model.secret import Secret
from tortie.render.manifest import Options, documents, without_comments
from tortie.render.manifest.flannel import ACCOUNT, NAMESPACE
from tortie.store import open_store

OWN = Attrs(IPv4Address("192.0.2.1"), None, "vxlan", '{"VNI":1,"VtepMAC":"66:00:00:00:00:01"}')
MADE = [without_comments(one) for one in documents(Options(network="flannel"))]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("kube"), rbac=True) as running:
        for document in MADE:
            running.do(running.api.create, document)
        for number in (1, 2):
            spec = {"podCIDR": f"10.244.{number}.0/24", "podCIDRs": [f"10.244.{number}.0/24"]}
            metadata = {"name": f"worker-{number}"}
            running.do(running.api.create, {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec})
        running.api.log.clear()
        yield running


@pytest.fixture(scope="module")
def kubeconfig(api: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    token = api.do(api.api.service_account_token, NAMESPACE, ACCOUNT)
    path: Path = api.do(api.api.kubeconfig, tmp_path_factory.mktemp("account") / "flannel", token=token)
    return path


async def test_flanneld_does_its_work_as_it(api: Server, kubeconfig: Path, tmp_path: Path) -> None:
    (config,) = (one for one in MADE if one["kind"] == "ConfigMap")
    (tmp_path / "net-conf.json").write_text(config["data"]["net-conf.json"])
    (workload,) = (one for one in MADE if one["kind"] == "DaemonSet")
    told = workload["spec"]["template"]["spec"]["containers"][0]["args"]
    files = [f"--kubeconfig-file={kubeconfig}", f"--net-config-path={tmp_path}/net-conf.json"]
    manager = await opened(parse([*told, *files], {}), {"NODE_NAME": "worker-1"})
    try:
        network = await manager.network()
        assert await manager.overrides() is not None
        await manager.remembered(OWN)
        lease = await manager.acquire(network, OWN, Previous())
        assert str(lease.subnet) == "10.244.1.0/24"
        async for others in manager.neighbours(lease):
            assert others == {}, "worker-2 has not published anything"
            break
        await manager.tell_ready()
    finally:
        await manager.close()
    assert [f"{one.user} {one.method} {one.path}" for one in api.api.log if one.status == 403] == []
    node = api.do(api.api.get, "nodes", "worker-1")
    assert node["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"] == "192.0.2.1"
    assert {one["type"]: one["reason"] for one in node["status"]["conditions"]}["NetworkUnavailable"] == "FlannelIsUp"


@pytest.mark.parametrize("kind", [Secret, Namespace])
async def test_it_may_not_read_what_is_not_its_business(api: Server, kubeconfig: Path, kind: type[Secret]) -> None:
    store = open_store(f"kubernetes:{kubeconfig}")
    try:
        assert len((await store.list(K8sNode)).items) == 2
        with pytest.raises(TortieError, match="forbidden"):
            await store.list(kind)
    finally:
        await store.close()
