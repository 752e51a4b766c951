"""CalicoAPIConfig as a file and as environment variables, and that no credential in it is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tortie.base.errors import ConfigError
from tortie.model.apiconfig import CREDENTIALS, VARIABLES, ApiConfig, checked, from_environment, from_file, shown

FILE = """
apiVersion: projectcalico.org/v3
kind: CalicoAPIConfig
metadata:
spec:
  datastoreType: etcdv3
  etcdEndpoints: https://192.0.2.1:2379, https://192.0.2.2:2379
  etcdCACertFile: /etc/calico/ca.pem
  etcdUsername: calico
  etcdPassword: "1234"
  k8sClientQPS: 20
"""


def file(spec: str) -> str:
    return f"apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nspec: {{{spec}}}\n"


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        from_file(text, "c.cfg")
    return str(caught.value)


def test_a_file() -> None:
    config = from_file(FILE, "c.cfg")
    assert config.kind == "etcdv3"
    assert config.endpoints == ("https://192.0.2.1:2379", "https://192.0.2.2:2379")
    assert (config.etcd_ca_cert_file, config.etcd_password, config.k8s_client_qps) == ("/etc/calico/ca.pem", "1234", 20)
    assert from_file(file("kubeconfig: /k, k8sCurrentContext: a"), "c.cfg", "b").k8s_current_context == "b"
    assert from_file(file("kubeconfig: /k, k8sCurrentContext: a"), "c.cfg").k8s_current_context == "a"
    assert from_file('{"apiVersion":"projectcalico.org/v3","kind":"CalicoAPIConfig"}', "c.cfg") == ApiConfig()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            file("etcdEndpoint: http://a"),
            'c.cfg: spec.etcdEndpoint: is not a known field, did you mean "etcdEndp',
        ),
        (FILE + "extra: 1\n", "c.cfg: extra: is not a known field"),
        (file("datastoreType: etcd"), 'c.cfg: spec.datastoreType: "etcd" is not one of'),
        (file("etcdEndpoints: 192.0.2.1"), 'c.cfg: spec.etcdEndpoints[0]: "192.0.2.1" is not a URL'),
        (file("etcdEndpoints: http://a, etcdDiscoverySrv: b"), "c.cfg: spec.etcdDiscoverySrv: cannot be combined"),
        (file("etcdKey: a, etcdKeyFile: b"), "c.cfg: spec.etcdKey: keys and certificates are given inline or as files"),
        (file("k8sClientQPS: .nan"), "c.cfg: "),
        (file("k8sClientBurst: -1"), "c.cfg: spec.k8sClientBurst: "),
        ("kind: CalicoAPIConfig\n", "c.cfg: apiVersion: is required"),
        ("apiVersion: v1\nkind: Config\n", "c.cfg: apiVersion: "),
        ("- a\n", "c.cfg: is not one document of kind CalicoAPIConfig"),
        ("", "c.cfg: is not one document of kind CalicoAPIConfig"),
        ("a: [", "c.cfg: "),
    ],
)
def test_what_is_wrong_with_a_file_is_named(text: str, said: str) -> None:
    assert refusal(text).startswith(said)


def test_variables_and_their_prefix() -> None:
    config = from_environment({"ETCD_ENDPOINTS": "http://a:1", "CALICO_ETCD_ENDPOINTS": "http://b:2", "KUBECONFIG": ""})
    assert config.endpoints == ("http://b:2",)
    assert from_environment({"K8S_INSECURE_SKIP_TLS_VERIFY": "False"}) == ApiConfig()
    assert from_environment({"K8S_CLIENT_QPS": "2.5", "K8S_CLIENT_BURST": "7"}).k8s_client_qps == 2.5
    assert from_environment(dict.fromkeys(VARIABLES, "")) == ApiConfig()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"DATASTORE_TYPE": "etcd"}, 'DATASTORE_TYPE: "etcd" is neither kubernetes nor etcdv3'),
        ({"CALICO_K8S_CLIENT_QPS": "many"}, 'CALICO_K8S_CLIENT_QPS: "many" is not a number'),
        ({"ETCD_ENDPOINTS": "http://a,b:1"}, 'ETCD_ENDPOINTS: "b:1" is not a URL such as http://192.0.2.1:2379'),
        ({"ETCD_ENDPOINTS": "http://a:99999"}, 'ETCD_ENDPOINTS: "http://a:99999" is not a URL such as'),
        ({"ETCD_ENDPOINTS": "http://a:x"}, 'ETCD_ENDPOINTS: "http://a:x" is not a URL such as'),
        ({"ETCD_ENDPOINTS": "http://"}, 'ETCD_ENDPOINTS: "http://" is not a URL such as'),
        ({"K8S_CLIENT_QPS": "-1"}, "K8S_CLIENT_QPS: must be a number of requests in a second"),
    ],
)
def test_what_is_wrong_with_a_variable_is_named(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_environment(environment)
    assert str(caught.value).startswith(said)


def test_which_datastore_it_is() -> None:
    assert ApiConfig().kind == "kubernetes"
    assert ApiConfig(etcd_endpoints="http://a").kind == "etcdv3"
    assert ApiConfig(etcd_discovery_srv="a").kind == "etcdv3"
    assert ApiConfig(etcd_endpoints="http://a", datastore_type="kubernetes").kind == "kubernetes"


def test_credentials_are_shown_nowhere() -> None:
    config = ApiConfig(**dict.fromkeys(CREDENTIALS, "hush"), etcd_username="calico")
    for text in (shown(config), repr(config), str(config), f"{config}", repr([config])):
        assert "hush" not in text
        assert "calico" in text
    with pytest.raises(ConfigError) as caught:
        checked(ApiConfig(etcd_endpoints="http://calico:hush@a:2379"))
    assert "hush" not in str(caught.value)
    assert "hush" not in refusal(file("etcdPassword: [hush]"))


def test_the_page_has_every_variable_and_field() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/environment.md").read_text()
    assert [name for name in (*VARIABLES, *ApiConfig.__struct_encode_fields__) if f"`{name}`" not in page] == []
