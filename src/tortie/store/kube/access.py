"""Where the Kubernetes API is, whom it trusts, and as whom it is asked: one value from configuration and environment.

    kubeconfigInline ──┐ first of these that there is
    KUBECONFIG ────────┤
    K8S_API_ENDPOINT ──┼──► server, CA, user ◄── K8S_* replace parts ──► Access ──► client
    ~/.kube/config ────┤
    service account ───┘

Everything that can be wrong with it is said here, once, before anybody connects.
Source: Calico's reference of calicoctl for Kubernetes; client-go's rules of overrides.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from tortie.base.errors import ConfigError, Unavailable
from tortie.model.apiconfig import ApiConfig
from tortie.store.kube import kubeconfig, plugin
from tortie.store.kube.credentials import Content, Credentials, Token
from tortie.store.kube.kubeconfig import Cluster, User, decoded
from tortie.store.kube.proxies import proxy_for
from tortie.store.kube.tls import Tls

log = logging.getLogger(__name__)

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where every pod finds who it is: token, ca.crt, namespace."""
BURST = 100
"""Calico's default of k8sClientBurst."""


class NoCluster(ConfigError):
    """Nothing says which cluster is meant: who asks knows best how it is said."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a server. `origin` says in messages where that is from; `namespace` is the context's, or the pod's.

    `qps` requests a second on average, after `burst` at once; 0: no limit.
    """

    server: str
    origin: str
    credentials: Credentials
    tls: Tls | None = None
    namespace: str = ""
    proxy: str = field(default="", repr=False)
    compressed: bool = True
    qps: float = 0.0
    burst: int = BURST


@dataclass(frozen=True, slots=True)
class _Found:
    """Cluster and user, and what to call them in messages."""

    cluster: Cluster
    cluster_where: str
    user: User
    user_where: str
    origin: str
    namespace: str = ""


def access(config: ApiConfig, environment: Mapping[str, str], *, service_account: Path = SERVICE_ACCOUNT) -> Access:
    """The server that is meant. Reads files, and does not connect.

    Raises ConfigError: nothing is named, or something of it is wrong or cannot be read; no message has a credential.
    """
    found = _found(config, environment, service_account)
    cluster, user = _replaced(config, found)
    server = _server(cluster.server, found.cluster_where)
    secure = server.startswith("https:")
    try:
        tls = _tls(cluster, found.cluster_where) if secure else None
        credentials = _credentials(user, found.user_where, cluster, environment)
        if tls is not None:
            tls.context(credentials.pair())
    except Unavailable as error:
        raise ConfigError(str(error), found.origin) from None
    except ConfigError as error:
        inner = error.where and (error.where[0].startswith((found.cluster_where, found.user_where)))
        raise error if inner else error.within(found.origin) from None
    if tls is not None and tls.insecure:
        log.warning("%s: the server's certificate is not looked at: anybody may answer", server)
    return Access(
        server=server,
        origin=found.origin,
        credentials=credentials,
        tls=tls,
        namespace=found.namespace,
        proxy=proxy_for(server, cluster.proxy_url, environment, f"{found.cluster_where}: proxy-url"),
        compressed=not cluster.disable_compression,
        qps=max(0.0, config.k8s_client_qps),
        burst=config.k8s_client_burst if config.k8s_client_burst > 0 else BURST,
    )


# --- which cluster, which user -----------------------------------------------------------------------------------


def _found(config: ApiConfig, environment: Mapping[str, str], service_account: Path) -> _Found:
    context = config.k8s_current_context
    if config.kubeconfig_inline:
        file = kubeconfig.parse(config.kubeconfig_inline, "kubeconfigInline", Path.cwd())
        return _chosen(file, context, "kubeconfigInline")
    if config.kubeconfig:
        return _chosen(kubeconfig.read(kubeconfig.paths(config.kubeconfig)), context, config.kubeconfig)
    inside = _pod(environment, service_account)
    if config.k8s_api_endpoint:
        return inside or _Found(Cluster(), "K8S_API_ENDPOINT", User(), "K8S_API_TOKEN", "K8S_API_ENDPOINT")
    home = environment.get("HOME", "")
    usual = Path(home) / ".kube/config" if home else None
    if usual is not None and usual.is_file():
        file = kubeconfig.read((usual,))
        if not file.empty:
            return _chosen(file, context, str(usual))
    if inside is not None:
        return inside
    raise NoCluster(
        "no cluster is named: set KUBECONFIG or K8S_API_ENDPOINT"
        f" ({usual or '~/.kube/config'} is not there or empty, and there is no service account of a pod)",
        "kubernetes",
    )


def _chosen(file: kubeconfig.File, context: str, name: str) -> _Found:
    choice = kubeconfig.choose(file, context, name)
    return _Found(choice.cluster, choice.cluster_where, choice.user, choice.user_where, choice.where, choice.namespace)


def _pod(environment: Mapping[str, str], folder: Path) -> _Found | None:
    """What Kubernetes gives every pod; None: this is no pod, or one without a service account."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port or not (folder / "token").exists():
        return None
    ca = folder / "ca.crt"
    try:
        namespace = (folder / "namespace").read_text().strip()
    except OSError:
        namespace = ""
    bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
    cluster = Cluster(server=f"https://{bracketed}:{port}", certificate_authority=str(ca) if ca.exists() else "")
    user = User(token_file=str(folder / "token"))
    return _Found(cluster, "KUBERNETES_SERVICE_HOST", user, "service account", "service account", namespace)


def _replaced(config: ApiConfig, found: _Found) -> tuple[Cluster, User]:
    """Cluster and user with what K8S_* say. A credential among them replaces all that the user has."""
    cluster, user = found.cluster, found.user
    if config.k8s_api_endpoint:
        cluster = msgspec.structs.replace(cluster, server=config.k8s_api_endpoint, tls_server_name="")
    if config.k8s_ca_file:
        cluster = msgspec.structs.replace(
            cluster,
            certificate_authority=config.k8s_ca_file,
            certificate_authority_data="",
            insecure_skip_tls_verify=False,
        )
    if config.k8s_insecure_skip_tls_verify:
        cluster = msgspec.structs.replace(
            cluster, insecure_skip_tls_verify=True, certificate_authority="", certificate_authority_data=""
        )
    if config.k8s_api_token or config.k8s_cert_file or config.k8s_key_file:
        user = User(token=config.k8s_api_token, client_certificate=config.k8s_cert_file, client_key=config.k8s_key_file)
    return cluster, user


def _server(text: str, where: str) -> str:
    """The URL without a slash at its end. Raises ConfigError."""
    if not text:
        raise ConfigError("server is not given", where)
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment:
        shown = "it" if "@" in text else f'"{text}"'
        raise ConfigError(f"server: {shown} is not a URL such as https://192.0.2.1:6443", where)
    if parts.username is not None:
        raise ConfigError("server: a user in the URL is not supported: give a token or a client certificate", where)
    return text.rstrip("/")


# --- TLS and credentials ----------------------------------------------------------------------------------------


def _tls(cluster: Cluster, where: str) -> Tls:
    data, path = cluster.certificate_authority_data, cluster.certificate_authority
    if cluster.insecure_skip_tls_verify and (data or path):
        raise ConfigError("insecure-skip-tls-verify and certificate-authority exclude one another", where)
    ca = _content(data, path, where, "certificate-authority") if data or path else None
    return Tls(ca, name=cluster.tls_server_name, insecure=cluster.insecure_skip_tls_verify)


def _credentials(user: User, where: str, cluster: Cluster, environment: Mapping[str, str]) -> Credentials:
    if user.username or user.password:
        raise ConfigError(
            "username and password: Kubernetes has no passwords any more (since 1.19); give a token, a client"
            " certificate or an exec plugin",
            where,
        )
    if user.auth_provider is not None:
        raise ConfigError("auth-provider was removed from Kubernetes in 1.26: give an exec plugin instead", where)
    certificate, key = (
        bool(user.client_certificate_data or user.client_certificate),
        bool(user.client_key_data or user.client_key),
    )
    if certificate != key:
        given, missing = ("client-certificate", "client-key") if certificate else ("client-key", "client-certificate")
        raise ConfigError(f"{given} is given without {missing}", where)
    pair = None
    if certificate:
        pair = (
            _content(user.client_certificate_data, user.client_certificate, where, "client-certificate"),
            _content(user.client_key_data, user.client_key, where, "client-key"),
        )
    token = None
    if user.token_file:
        token = Token(Content(path=user.token_file))
    elif user.token:
        token = Token(Content(user.token.encode()))
    if token is not None:
        try:
            token.current()
        except Unavailable as error:
            raise ConfigError(str(error), where) from None
    run = None
    if user.exec is not None and token is None:
        run = plugin.ExecPlugin(plugin.command(user.exec, _told(cluster), environment, where))
    return Credentials(token=token, pair=pair, plugin=run, headers=_acting_for(user, where))


def _content(data: str, path: str, where: str, name: str) -> Content:
    """Of `NAME-data`, which wins, or of the file `NAME`, which must be there. Raises ConfigError."""
    content = Content(decoded(data, where, f"{name}-data")) if data else Content(path=path)
    try:
        if not content.current().strip():
            raise ConfigError("is empty", where, f"{name}-data")
    except Unavailable as error:
        raise ConfigError(str(error), where, name) from None
    return content


def _told(cluster: Cluster) -> dict[str, Any]:
    """A cluster as exec plugins are told of it: `Cluster` of client.authentication.k8s.io/v1."""
    data = cluster.certificate_authority_data
    if not data and cluster.certificate_authority:
        data = kubeconfig.encoded(Content(path=cluster.certificate_authority).current())
    told = {
        "server": cluster.server,
        "tls-server-name": cluster.tls_server_name,
        "insecure-skip-tls-verify": cluster.insecure_skip_tls_verify,
        "certificate-authority-data": data,
        "proxy-url": cluster.proxy_url,
        "disable-compression": cluster.disable_compression,
        "config": cluster.for_plugins,
    }
    return {name: value for name, value in told.items() if value}


def _acting_for(user: User, where: str) -> tuple[tuple[str, str], ...]:
    """Headers of impersonation."""
    if not user.impersonate:
        if user.impersonate_uid or user.impersonate_groups or user.impersonate_extra:
            raise ConfigError("as-uid, as-groups and as-user-extra need as", where)
        return ()
    headers = [("Impersonate-User", user.impersonate)]
    headers += [("Impersonate-Uid", user.impersonate_uid)] if user.impersonate_uid else []
    headers += [("Impersonate-Group", group) for group in user.impersonate_groups or ()]
    for name, values in (user.impersonate_extra or {}).items():
        headers += [(f"Impersonate-Extra-{quote(name, safe='')}", value) for value in values]
    if not all(value.isprintable() for _, value in headers):
        raise ConfigError("as: what is in it can be no header", where)
    return tuple(headers)
