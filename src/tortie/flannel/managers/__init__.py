"""What knows the subnets: a file for etcd, and one for Kubernetes."""

from __future__ import annotations

from collections.abc import Mapping

from tortie.base.errors import ConfigError, NotSupported
from tortie.flannel.manager import SubnetManager
from tortie.flannel.options import Options
from tortie.model.apiconfig import ApiConfig
from tortie.model.store import Store
from tortie.store import open_store


async def opened(options: Options, environment: Mapping[str, str], *, observes: bool = False) -> SubnetManager:
    """The one that the flags ask for. `observes`: it is only looked at, and need not know which node this is.

    Raises ConfigError, NotFound, NotSupported, Unavailable.
    """
    return await _kubernetes(options, environment, observes) if options.kube_subnet_mgr else _etcd(options)


def _etcd(options: Options) -> SubnetManager:
    try:
        from tortie.flannel.managers.etcd import EtcdManager, EtcdOptions
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tortie"):
            raise
        raise NotSupported(f"etcd needs the Python package {error.name}: pip install 'tortie[etcd]'") from None
    return EtcdManager(
        EtcdOptions(
            options.etcd_endpoints,
            options.etcd_prefix,
            options.etcd_keyfile,
            options.etcd_certfile,
            options.etcd_cafile,
            options.etcd_username,
            options.etcd_password,
            options.subnet_lease_renew_margin,
        )
    )


async def _kubernetes(options: Options, environment: Mapping[str, str], observes: bool) -> SubnetManager:
    from tortie.flannel.managers.kubernetes import KubernetesManager, node_name

    store = _store(options, environment)
    try:
        return KubernetesManager(
            store,
            "" if observes else await node_name(environment, store),
            options.net_config_path,
            prefix=options.kube_annotation_prefix,
            where=options.datastore or "Kubernetes",
            tells_ready=options.set_node_network_unavailable,
        )
    except BaseException:
        await store.close()
        raise


def _store(options: Options, environment: Mapping[str, str]) -> Store:
    if options.datastore:
        return open_store(options.datastore, environment=environment)
    config = ApiConfig(
        datastore_type="kubernetes", kubeconfig=options.kubeconfig_file, k8s_api_endpoint=options.kube_api_url
    )
    try:
        return open_store(config, environment=environment)
    except ConfigError as error:
        raise _by_our_flags(error) from None


def _by_our_flags(error: ConfigError) -> ConfigError:
    """The store speaks of the agent's variables, which flanneld does not read."""
    from tortie.store.kube.access import NoCluster

    if isinstance(error, NoCluster):
        why = "this is no pod with a service account: name the cluster by -kubeconfig-file or -kube-api-url"
        return ConfigError(why, "-kube-subnet-mgr")
    return ConfigError(error.message, *("-kube-api-url" if one == "K8S_API_ENDPOINT" else one for one in error.where))
