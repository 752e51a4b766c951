"""What the text that names a datastore means. It only reads the file that `config:FILE` names.

    sqlite:PATH, PATH             ─► the embedded one, a file
    memory:                       ─► this process's memory
    etcd:[URL,...], http(s)://... ─► etcd; what the text leaves out is in ETCD_*
    kubernetes:[KUBECONFIG]       ─► a Kubernetes API server; what the text leaves out is in KUBECONFIG, K8S_*
    config:FILE                   ─► what the CalicoAPIConfig in the file says

Beside etcd, Kubernetes' own kinds come from Kubernetes if a cluster is named: by KUBECONFIG, K8S_API_ENDPOINT, or
by what Kubernetes tells every container.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from tortie.base.errors import ConfigError, NotFound
from tortie.model.apiconfig import PREFIX, ApiConfig, checked, from_environment, from_file

ETCD, KUBERNETES = ("etcd", "etcdv3"), ("kubernetes", "k8s")
URLS = ("http", "https")
IN_CLUSTER = "KUBERNETES_SERVICE_HOST"
"""What Kubernetes tells every container: where its API is."""
CONTEXT = "K8S_CURRENT_CONTEXT"
NAMES_ONE = ("DATASTORE_TYPE", "ETCD_ENDPOINTS", "ETCD_DISCOVERY_SRV", "K8S_API_ENDPOINT")
"""Variables of Calico's programs only: whoever sets one means a datastore by it."""

WRITE = "write sqlite:PATH, a path, or memory:; etcd:URL, kubernetes:KUBECONFIG, or config:FILE"

_OWN_WAY = {
    "kubeconfig": "",
    "kubeconfig_inline": "",
    "k8s_api_endpoint": "",
    "k8s_key_file": "",
    "k8s_cert_file": "",
    "k8s_ca_file": "",
    "k8s_api_token": "",
    "k8s_insecure_skip_tls_verify": False,
}
"""What says where a cluster is and as whom it is asked: all of it is the environment's, or none."""


@dataclass(frozen=True, slots=True)
class Place:
    """A datastore that is meant. `kubernetes_too`: of etcd, Kubernetes' own kinds are read from Kubernetes."""

    backend: Literal["memory", "sqlite", "etcd", "kubernetes"]
    path: str = ""
    config: ApiConfig = field(default_factory=ApiConfig)
    kubernetes_too: bool = False

    def __str__(self) -> str:
        """For people: no credential is in it."""
        if self.backend == "sqlite":
            return self.path
        if self.backend == "memory":
            return "memory:"
        config = self.config
        cluster = f"kubernetes:{config.k8s_api_endpoint or config.kubeconfig}"
        context = f" (context {config.k8s_current_context})" if config.k8s_current_context else ""
        if self.backend == "kubernetes":
            return f"{cluster}{context}"
        etcd = f"etcd:{','.join(config.endpoints) or config.etcd_discovery_srv}"
        return f"{etcd} and {cluster}{context}" if self.kubernetes_too else etcd


def place(where: str | Path | ApiConfig, environment: Mapping[str, str] = os.environ) -> Place:
    """The datastore that a text, a path or a configuration means.

    Raises ConfigError for what cannot be a datastore, NotFound for a configuration that cannot be read.
    """
    if isinstance(where, ApiConfig):
        return _configured(checked(where), environment)
    if isinstance(where, Path):
        return Place("sqlite", str(where))
    scheme, rest = _parted(where)
    if scheme == "memory" and not rest:
        return Place("memory")
    if scheme == "config":
        return _configured(read_config(rest, environment), environment)
    if scheme in (*ETCD, *URLS):
        return _etcd(where if scheme in URLS else rest, environment)
    if scheme in KUBERNETES:
        return _kubernetes(rest, environment)
    if scheme not in ("", "sqlite"):
        raise ConfigError(f'"{scheme}:..." is not a datastore; {WRITE}')
    path = rest.removeprefix("//")
    if not path:
        raise ConfigError(f"a datastore is needed; {WRITE}")
    return Place("sqlite", path)


def named_by(environment: Mapping[str, str]) -> bool:
    """Whether Calico's variables name a datastore."""
    return any(environment.get(name) for plain in NAMES_ONE for name in (plain, f"{PREFIX}{plain}")) or bool(
        environment.get(f"{PREFIX}KUBECONFIG")
    )


def hints_at_cluster(environment: Mapping[str, str]) -> bool:
    """Whether there is what other programs, too, find a Kubernetes cluster by."""
    return bool(environment.get("KUBECONFIG") or environment.get(IN_CLUSTER))


def of_environment(environment: Mapping[str, str]) -> str:
    """The text for what the environment names. Raises ConfigError."""
    return "etcd:" if from_environment(environment).kind == "etcdv3" else "kubernetes:"


def of_a_daemon(datastore: str, environment: Mapping[str, str] = os.environ) -> str:
    """That of a program which runs on: what it is told, or what its environment names. Raises ConfigError."""
    if datastore:
        return datastore
    if not (named_by(environment) or hints_at_cluster(environment)):
        what = "is needed: name the datastore by it, by $TORTIE_DATASTORE, or by Calico's DATASTORE_TYPE"
        raise ConfigError(what, "--datastore")
    return of_environment(environment)


def is_file(where: str) -> bool:
    """Whether a text names an embedded datastore, which is there or is not."""
    return _parted(where)[0] in ("", "sqlite")


def read_config(path: str, environment: Mapping[str, str]) -> ApiConfig:
    """The CalicoAPIConfig in a file; the context of the environment wins. Raises ConfigError, NotFound."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        why = "" if isinstance(error, FileNotFoundError) else f": {os.strerror(error.errno or 0)}"
        raise NotFound(f"Error reading config file: {path}{why}") from None
    return from_file(text, path, environment.get(f"{PREFIX}{CONTEXT}") or environment.get(CONTEXT, ""))


def _parted(where: str) -> tuple[str, str]:
    """Scheme and rest; a path has no scheme, also with a colon in it."""
    scheme, colon, rest = where.partition(":")
    return (scheme, rest) if colon and "/" not in scheme else ("", where)


def _configured(config: ApiConfig, environment: Mapping[str, str]) -> Place:
    """etcd's file may leave a cluster to the machine: then only what Kubernetes told this container names one."""
    if config.kind == "kubernetes":
        return Place("kubernetes", config=config)
    _demand_endpoints(config)
    return Place("etcd", config=config, kubernetes_too=config.names_kubernetes or bool(environment.get(IN_CLUSTER)))


def _etcd(text: str, environment: Mapping[str, str]) -> Place:
    """Endpoints without a scheme are http. TLS files and credentials are the environment's."""
    endpoints = [one.strip().removeprefix("//") for one in text.split(",") if one.strip().removeprefix("//")]
    told = from_environment(environment)
    config = replace(told, datastore_type="etcdv3")
    if endpoints:
        urls = ",".join(one if "://" in one else f"http://{one}" for one in endpoints)
        config = checked(replace(config, etcd_endpoints=urls, etcd_discovery_srv=""))
    _demand_endpoints(config)
    return Place("etcd", config=config, kubernetes_too=told.names_kubernetes or bool(environment.get(IN_CLUSTER)))


def _kubernetes(text: str, environment: Mapping[str, str]) -> Place:
    config = replace(from_environment(environment), datastore_type="kubernetes")
    path = text.removeprefix("//")
    if path:
        config = replace(config, **{**_OWN_WAY, "kubeconfig": path})
    return Place("kubernetes", config=config)


def _demand_endpoints(config: ApiConfig) -> None:
    if not (config.endpoints or config.etcd_discovery_srv):
        raise ConfigError("etcd needs endpoints: write etcd:http://192.0.2.1:2379, or set ETCD_ENDPOINTS")
