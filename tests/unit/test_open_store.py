"""Which datastore a text means, and that it is opened: embedded ones, etcd, Kubernetes, and etcd beside Kubernetes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tortie.base.errors import ConfigError, NotFound
from tortie.model.apiconfig import ApiConfig
from tortie.model.ipam import IPPool, IPPoolSpec
from tortie.model.k8s import Namespace, Pod
from tortie.model.kinds import KINDS
from tortie.model.meta import Metadata
from tortie.model.workload import WorkloadEndpoint
from tortie.store import open_store
from tortie.store.composite import OF_KUBERNETES, CompositeStore
from tortie.store.memory import MemoryStore
from tortie.store.place import Place, is_file, place

ETCD_FILE = "{apiVersion: projectcalico.org/v3, kind: CalicoAPIConfig, spec: {etcdEndpoints: 'http://192.0.2.1:2379'}}"
ENDPOINTS = {"ETCD_ENDPOINTS": "https://192.0.2.9:2379", "ETCD_CA_CERT_FILE": "/ca.pem"}


@pytest.mark.parametrize(
    ("where", "environment", "shown"),
    [
        ("memory:", {}, "memory:"),
        ("sqlite:/x/y.db", {}, "/x/y.db"),
        ("sqlite:///x/y.db", {}, "/x/y.db"),
        ("y.db", ENDPOINTS, "y.db"),
        (Path("/x/a:b.db"), {}, "/x/a:b.db"),
        ("/x/a:b.db", {}, "/x/a:b.db"),
        ("etcd:192.0.2.1:2379", {}, "etcd:http://192.0.2.1:2379"),
        ("etcd://192.0.2.1:2379", {}, "etcd:http://192.0.2.1:2379"),
        ("etcdv3:https://a:1,b:2", {}, "etcd:https://a:1,http://b:2"),
        ("https://a:1,https://b:2", {}, "etcd:https://a:1,https://b:2"),
        ("etcd:", ENDPOINTS, "etcd:https://192.0.2.9:2379"),
        ("etcd:http://a:1", ENDPOINTS, "etcd:http://a:1"),
        ("etcd:", {"ETCD_DISCOVERY_SRV": "example.org"}, "etcd:example.org"),
        ("etcd:http://a:1", {"KUBECONFIG": "/k"}, "etcd:http://a:1 and kubernetes:/k"),
        ("etcd:http://a:1", {"K8S_API_ENDPOINT": "https://k"}, "etcd:http://a:1 and kubernetes:https://k"),
        ("etcd:http://a:1", {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, "etcd:http://a:1 and kubernetes:"),
        ("kubernetes:", {}, "kubernetes:"),
        ("k8s:", {"KUBECONFIG": "/k"}, "kubernetes:/k"),
        ("kubernetes://", {"KUBECONFIG": "/k", "DATASTORE_TYPE": "etcdv3"}, "kubernetes:/k"),
        ("kubernetes:/mine", {"KUBECONFIG": "/k", "K8S_API_ENDPOINT": "https://k"}, "kubernetes:/mine"),
        ("kubernetes:", {"K8S_CURRENT_CONTEXT": "blue"}, "kubernetes: (context blue)"),
        (ApiConfig(etcd_endpoints="http://a:1"), {}, "etcd:http://a:1"),
        (ApiConfig(etcd_endpoints="http://a:1"), {"KUBECONFIG": "/k"}, "etcd:http://a:1"),
        (ApiConfig(etcd_endpoints="http://a:1", kubeconfig="/k"), {}, "etcd:http://a:1 and kubernetes:/k"),
        (ApiConfig(kubeconfig="/k"), {}, "kubernetes:/k"),
        (ApiConfig(), {}, "kubernetes:"),
    ],
)
def test_what_a_text_means(where: str | Path | ApiConfig, environment: Mapping[str, str], shown: str) -> None:
    assert str(place(where, environment)) == shown


def test_the_environment_says_what_the_text_leaves_out() -> None:
    assert place("etcd:http://a:1", ENDPOINTS).config.etcd_ca_cert_file == "/ca.pem"
    told = {"K8S_API_TOKEN": "hush", "K8S_API_ENDPOINT": "https://k", "K8S_CLIENT_QPS": "3"}
    mine = place("kubernetes:/mine", told).config
    assert (mine.k8s_api_token, mine.k8s_api_endpoint, mine.k8s_client_qps) == ("", "", 3)
    assert "hush" not in repr(place("kubernetes:", told))
    assert "hush" not in str(place("kubernetes:", told))


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("", "a datastore is needed; write sqlite:PATH"),
        ("sqlite:", "a datastore is needed; write sqlite:PATH"),
        ("mysql://user:hush@localhost/x", '"mysql:..." is not a datastore; write sqlite:PATH'),
        ("etcd:", "etcd needs endpoints: write etcd:http://192.0.2.1:2379, or set ETCD_ENDPOINTS"),
        ("http://user:hush@a:1", "etcdEndpoints[0]: a password in a URL would be seen"),
        (ApiConfig(datastore_type="etcdv3"), "etcd needs endpoints"),
        ("memory:x", '"memory:..." is not a datastore'),
    ],
)
def test_what_is_no_datastore(where: str | ApiConfig, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(where, environment={})
    assert said in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "calicoctl.cfg"
    file.write_text(ETCD_FILE)
    assert str(place(f"config:{file}", {})) == "etcd:http://192.0.2.1:2379"
    assert str(place(f"config:{file}", {"KUBECONFIG": "/k"})) == "etcd:http://192.0.2.1:2379"
    assert place(f"config:{file}", {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}).kubernetes_too
    file.write_text("{apiVersion: projectcalico.org/v3, kind: CalicoAPIConfig, spec: {kubeconfig: /k}}")
    assert str(place(f"config:{file}", {"CALICO_K8S_CURRENT_CONTEXT": "red"})) == "kubernetes:/k (context red)"
    file.write_text("{}")
    with pytest.raises(ConfigError, match=f"^{file}: apiVersion: is required"):
        open_store(f"config:{file}", environment={})
    with pytest.raises(NotFound, match=f"^Error reading config file: {tmp_path}/none$"):
        open_store(f"config:{tmp_path}/none", environment={})
    with pytest.raises(NotFound, match=f"^Error reading config file: {tmp_path}: Is a directory$"):
        open_store(f"config:{tmp_path}", environment={})


def test_what_is_a_file() -> None:
    assert is_file("/x.db")
    assert is_file("sqlite:x.db")
    assert is_file("/x/a:b.db")
    assert not any(map(is_file, ("memory:", "etcd:", "kubernetes:/k", "http://a", "config:/c")))


def test_kinds_of_kubernetes() -> None:
    assert {Pod, Namespace} <= OF_KUBERNETES
    assert not {IPPool, WorkloadEndpoint} & OF_KUBERNETES
    assert len(OF_KUBERNETES) < len(KINDS)


async def test_two_as_one() -> None:
    main, apart = MemoryStore(), MemoryStore()
    store = CompositeStore(main, apart)
    namespace = await store.create(Namespace(metadata=Metadata(name="red")))
    pool = await store.create(IPPool(metadata=Metadata(name="p"), spec=IPPoolSpec(cidr="10.0.0.0/16")))
    assert (await apart.list(Namespace)).items == (namespace,)
    assert (await main.list(IPPool)).items == (pool,)
    assert not (await main.list(Namespace)).items
    assert not (await apart.list(IPPool)).items
    assert await store.get(Namespace, "red") == namespace
    assert await store.update(pool) == pool
    seen = [event async for batch in _first(store) for event in batch]
    assert [event.object.name for event in seen] == ["red"]
    await store.delete(Namespace, "red")
    assert not (await store.list(Namespace)).items
    await store.close()


async def _first(store: CompositeStore):  # type: ignore[no-untyped-def]
    async for batch in store.watch(Namespace, "0"):
        yield batch
        return


def test_a_place_is_a_value() -> None:
    assert place("etcd:http://a:1", {}) == Place(
        "etcd", config=ApiConfig(datastore_type="etcdv3", etcd_endpoints="http://a:1")
    )


def test_a_package_that_is_missing_is_named_with_what_brings_it() -> None:
    """In a process of its own, to which aetcd is not there."""
    program = (
        "import sys; sys.modules['aetcd'] = None\nfrom tortie.cli.main import main\n"
        "sys.exit(main(['get', 'nodes', '--datastore', 'etcd:127.0.0.1:1']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr == "tortie: etcd needs the Python package aetcd: pip install 'tortie[etcd]'\n"
