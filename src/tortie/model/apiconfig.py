"""Which datastore, where it is, and as whom it is asked: Calico's CalicoAPIConfig, and its environment variables.

One value for every program: the command line reads a file or the environment, agent and controllers the environment.

    CalicoAPIConfig   file ──read──┐
    DATASTORE_TYPE, ETCD_*, K8S_*  ├──► ApiConfig ──tortie.store.open_store──► Store
    etcd:URL, kubernetes:FILE  ────┘

Source: Calico's reference of calicoctl's configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import field
from msgspec.structs import replace

from tortie.base.errors import ConfigError
from tortie.model.meta import Problem, Value
from tortie.model.misfit import first_misfit, unknown_field, without_nulls

PREFIX = "CALICO_"
"""Every variable may also be given with it, which then wins."""

CREDENTIALS = ("etcd_password", "etcd_key", "kubeconfig_inline", "k8s_api_token")
"""Fields that are shown to nobody."""


class ApiConfig(Value, frozen=True, kw_only=True):
    """The `spec` of a CalicoAPIConfig. Empty fields are not given. Files are paths; `etcd_key` and its siblings PEM."""

    datastore_type: Literal["", "kubernetes", "etcdv3"] = ""
    etcd_endpoints: str = ""
    etcd_discovery_srv: str = ""
    etcd_username: str = ""
    etcd_password: str = ""
    etcd_key_file: str = ""
    etcd_cert_file: str = ""
    etcd_ca_cert_file: str = field(name="etcdCACertFile", default="")
    etcd_key: str = ""
    etcd_cert: str = ""
    etcd_ca_cert: str = field(name="etcdCACert", default="")
    kubeconfig: str = ""
    kubeconfig_inline: str = ""
    k8s_api_endpoint: str = field(name="k8sAPIEndpoint", default="")
    k8s_key_file: str = ""
    k8s_cert_file: str = ""
    k8s_ca_file: str = field(name="k8sCAFile", default="")
    k8s_api_token: str = field(name="k8sAPIToken", default="")
    k8s_insecure_skip_tls_verify: bool = field(name="k8sInsecureSkipTLSVerify", default=False)
    k8s_client_qps: float = field(name="k8sClientQPS", default=0.0)
    k8s_client_burst: int = 0
    k8s_current_context: str = ""
    k8s_disable_node_poll: bool = False
    use_pod_cidr: bool = field(name="usePodCIDR", default=False)
    calico_api_group: str = field(name="calicoAPIGroup", default="")

    @property
    def kind(self) -> Literal["kubernetes", "etcdv3"]:
        """The datastore that is meant: where nothing says so, etcd if it has endpoints, else Kubernetes."""
        if self.datastore_type:
            return self.datastore_type
        return "etcdv3" if self.etcd_endpoints or self.etcd_discovery_srv else "kubernetes"

    @property
    def endpoints(self) -> tuple[str, ...]:
        """etcd's, as URLs."""
        return tuple(one.strip() for one in self.etcd_endpoints.split(",") if one.strip())

    @property
    def names_kubernetes(self) -> bool:
        """Whether it says where a Kubernetes cluster is."""
        return bool(self.kubeconfig or self.kubeconfig_inline or self.k8s_api_endpoint)

    def __repr__(self) -> str:
        return f"ApiConfig({shown(self)})"

    def problems(self) -> Iterator[Problem]:
        if not 0 <= self.k8s_client_qps < float("inf"):
            yield "k8sClientQPS", "must be a number of requests in a second; 0: no limit"
        if self.k8s_client_burst < 0:
            yield "k8sClientBurst", "must be a number of requests; 0: the usual one"
        if self.etcd_endpoints and self.etcd_discovery_srv:
            yield "etcdDiscoverySrv", "cannot be combined with etcdEndpoints"
        inline = self.etcd_key or self.etcd_cert or self.etcd_ca_cert
        if inline and (self.etcd_key_file or self.etcd_cert_file or self.etcd_ca_cert_file):
            yield "etcdKey", "keys and certificates are given inline or as files, not both"
        for number, url in enumerate(self.endpoints):
            if "@" in url:
                yield (
                    f"etcdEndpoints[{number}]",
                    "a password in a URL would be seen: give etcdUsername and etcdPassword",
                )
            elif not is_of_a_server(url):
                yield f"etcdEndpoints[{number}]", f'"{url}" is not a URL such as http://192.0.2.1:2379'


VARIABLES: dict[str, str] = {
    "DATASTORE_TYPE": "datastore_type",
    "ETCD_ENDPOINTS": "etcd_endpoints",
    "ETCD_DISCOVERY_SRV": "etcd_discovery_srv",
    "ETCD_USERNAME": "etcd_username",
    "ETCD_PASSWORD": "etcd_password",
    "ETCD_KEY_FILE": "etcd_key_file",
    "ETCD_CERT_FILE": "etcd_cert_file",
    "ETCD_CA_CERT_FILE": "etcd_ca_cert_file",
    "KUBECONFIG": "kubeconfig",
    "K8S_API_ENDPOINT": "k8s_api_endpoint",
    "K8S_KEY_FILE": "k8s_key_file",
    "K8S_CERT_FILE": "k8s_cert_file",
    "K8S_CA_FILE": "k8s_ca_file",
    "K8S_API_TOKEN": "k8s_api_token",
    "K8S_INSECURE_SKIP_TLS_VERIFY": "k8s_insecure_skip_tls_verify",
    "K8S_CLIENT_QPS": "k8s_client_qps",
    "K8S_CLIENT_BURST": "k8s_client_burst",
    "K8S_CURRENT_CONTEXT": "k8s_current_context",
    "K8S_DISABLE_NODE_POLL": "k8s_disable_node_poll",
    "USE_POD_CIDR": "use_pod_cidr",
    "CALICO_API_GROUP": "calico_api_group",
}
"""Names of environment variables, and the fields that they fill."""

_DOCUMENTED = dict(zip(ApiConfig.__struct_fields__, ApiConfig.__struct_encode_fields__, strict=True))
"""Names of fields in documents, by ours."""
_FALSE = frozenset({"", "0", "f", "false", "n", "no"})


def is_of_a_server(url: str) -> bool:
    """Whether a URL has a host, and a port if it has one that there can be.

    >>> is_of_a_server("http://192.0.2.1:2379"), is_of_a_server("http://:2379"), is_of_a_server("http://a:99999")
    (True, False, False)
    """
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def from_environment(environment: Mapping[str, str]) -> ApiConfig:
    """What the environment says. Raises ConfigError naming the variable."""
    found: dict[str, Any] = {}
    for name, attribute in VARIABLES.items():
        variable = f"{PREFIX}{name}" if environment.get(f"{PREFIX}{name}") else name
        text = environment.get(variable, "")
        if not text:
            continue
        try:
            found[attribute] = _value(attribute, text)
        except ValueError:
            raise ConfigError(f'"{text}" is not a number', variable) from None
        if attribute == "datastore_type" and text not in ("kubernetes", "etcdv3"):
            raise ConfigError(f'"{text}" is neither kubernetes nor etcdv3', variable)
    config = ApiConfig(**found)
    for path, problem in config.problems():
        variable = next(name for name, attribute in VARIABLES.items() if path.startswith(_DOCUMENTED[attribute]))
        raise ConfigError(problem, variable)
    return config


class CalicoAPIConfig(Value, frozen=True, kw_only=True):
    """The file itself. Calico's metadata is read and means nothing."""

    api_version: Literal["projectcalico.org/v3"]
    kind: Literal["CalicoAPIConfig"]
    metadata: Any = None
    spec: ApiConfig = ApiConfig()


def from_file(text: str | bytes, source: str, context: str = "") -> ApiConfig:
    """A CalicoAPIConfig in YAML or JSON. `context`: that of the kubeconfig which is meant, whatever the file says.

    Raises ConfigError: source: field: what is wrong.
    """
    from tortie.model import text as yaml_text  # as in `document`: no daemon speaks YAML unless it is told to

    try:
        documents = [one for one in yaml_text.load_all(text) if one is not None]
        if len(documents) != 1 or not isinstance(documents[0], dict):
            raise ConfigError("is not one document of kind CalicoAPIConfig")
        config = _read(without_nulls(documents[0], CalicoAPIConfig)).spec
    except ConfigError as error:
        raise error.within(source) from None
    return checked(replace(config, k8s_current_context=context) if context else config, source)


def _read(body: dict[str, Any]) -> CalicoAPIConfig:
    """Raises ConfigError. A value that does not fit may be a credential: it is not repeated."""
    for path, problem in unknown_field(body, CalicoAPIConfig):
        raise ConfigError(problem, path)
    try:
        return msgspec.convert(body, CalicoAPIConfig)
    except msgspec.ValidationError as error:
        path, problem = first_misfit(body, CalicoAPIConfig) or ("", str(error))
        secret = path.removeprefix("spec.") in {_DOCUMENTED[name] for name in CREDENTIALS}
        raise ConfigError("must be text: put it in quotes" if secret else problem, path) from None


def checked(config: ApiConfig, source: str = "") -> ApiConfig:
    """The configuration itself. Raises ConfigError for the first thing that is wrong with it."""
    for path, problem in config.problems():
        raise ConfigError(problem, source, f"spec.{path}") if source else ConfigError(problem, path)
    return config


def shown(config: ApiConfig) -> str:
    """For messages and logs: no credential is in it."""
    hidden = {name: "..." for name in CREDENTIALS if getattr(config, name)}
    return msgspec.json.encode(replace(config, **hidden)).decode()


def _value(attribute: str, text: str) -> Any:
    default = getattr(ApiConfig(), attribute)
    if isinstance(default, bool):
        return text.strip().lower() not in _FALSE
    return type(default)(text)
