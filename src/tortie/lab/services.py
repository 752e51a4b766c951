"""The services that a lab's cluster has from the beginning. Pure.

    default/kubernetes     10.96.0.1:443   as every API server writes it; nobody is behind it: a lab has none
    kube-system/kube-dns   10.96.0.10:53   the name servers, see `dns`

The addresses are those of kubeadm's clusters.
"""

from __future__ import annotations

from collections.abc import Iterator

from tortie.lab import dns
from tortie.lab.topology import Topology
from tortie.model.meta import Metadata, Resource
from tortie.model.service import Service, ServicePort, ServiceSpec

API_SERVER = "10.96.0.1"


def objects(lab: Topology) -> Iterator[Resource]:
    """What is in the datastore before anybody asks."""
    yield _api_server()
    yield from dns.objects(lab)


def _api_server() -> Service:
    """As an API server writes it: without a selector, and with one family."""
    spec = ServiceSpec(
        type="ClusterIP",
        cluster_ip=API_SERVER,
        cluster_ips=(API_SERVER,),
        ip_families=("IPv4",),
        ip_family_policy="SingleStack",
        internal_traffic_policy="Cluster",
        session_affinity="None",
        ports=(ServicePort(name="https", port=443, target_port=6443),),
    )
    labels = {"component": "apiserver", "provider": "kubernetes"}
    return Service(metadata=Metadata(name="kubernetes", namespace="default", labels=labels), spec=spec)
