"""Kubernetes' own objects as they are in the wild, and what is derived from them: endpoints, nodes, profiles."""

from __future__ import annotations

import copy
import json
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tortie.base.addr import parse_ip
from tortie.calc.cluster import Cluster
from tortie.calc.workloads import endpoint_of_pod
from tortie.model.clusterpolicy import ClusterNetworkPolicy
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPAMHandle, IPPool, IPPoolSpec
from tortie.model.k8s import K8sNetworkPolicy, K8sNode, Namespace, Pod, ServiceAccount, VirtualMachineInstance
from tortie.model.lease import Lease
from tortie.model.meta import Metadata, changed
from tortie.model.node import Node, NodeBGPSpec, NodeInterface
from tortie.model.policy import NetworkPolicy
from tortie.model.service import EndpointSlice, Service
from tortie.model.store import EventType
from tortie.model.workload import NETWORK, WorkloadEndpoint, interface_name
from tortie.store.kube import crd, pods, profiles
from tortie.store.kube.changes import Changes
from tortie.store.kube.decoding import Refused, identity
from tortie.store.kube.forms import Custom, Endpoints, Native, Nodes, Pods
from tortie.store.kube.overlay import merge_patch
from tortie.store.kube.watches import Happened


def encoded(document):
    return json.dumps(document).encode()


def native(kind, document):
    return Native(kind).read(encoded(document))[0]


def pod(name="web-0", *, annotations=None, ip="", ips=None, node="node-1", phase="Running", **metadata):
    """As a server has it, with more than we know."""
    status = {"phase": phase, "qosClass": "BestEffort", "conditions": [{"type": "Ready", "status": "True"}]}
    status |= {"podIP": ip} if ip else {}
    status |= {"podIPs": [{"ip": one} for one in ips]} if ips is not None else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "red", "uid": "u-1", "resourceVersion": "40", "labels": {"app": "web"},
                     "annotations": annotations, "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:x": {}}}],
                     "creationTimestamp": "2026-01-01T00:00:00Z", **metadata},
        "spec": {
            "nodeName": node, "serviceAccountName": "robot", "someday": {"new": True},
            "containers": [{"name": "c", "ports": [{"containerPort": 80, "name": "http", "protocol": "TCP"},
                                                   {"containerPort": 9, "protocol": "DCCP"}], "unheardOf": 1}],
            "initContainers": None, "volumes": [{"name": "v"}],
        },
        "status": status,
    }  # fmt: skip


def endpoint(document) -> WorkloadEndpoint | None:
    return pods.endpoint_of(pods.pod_of(encoded(document)))


# Pods ------------------------------------------------------------------------------------------------------------


def test_a_pod_is_read_with_what_a_network_looks_at():
    found = pods.pod_of(encoded(pod(ip="10.0.0.5", ips=["10.0.0.5", "fd00::5"])))
    assert (found.name, found.namespace, found.labels, found.service_account) == (
        "web-0", "red", {"app": "web"}, "robot")  # fmt: skip
    assert [port.name for port in found.spec.containers[0].ports] == ["http"]
    assert [one.ip for one in found.status.pod_ips] == ["10.0.0.5", "fd00::5"]
    with pytest.raises(Refused):
        pods.pod_of(b'{"metadata": {"name": "x"}, "spec": {"nodeName": 7}}')


def test_an_endpoint_is_derived_from_its_pod():
    noted = {"cni.projectcalico.org/containerID": "c1", "cni.projectcalico.org/podIP": "10.0.0.5/32",
             "tortie.dev/endpoint": '{"mac":"0a:00:00:00:00:01","network":"k8s-pod-network"}',
             "cni.projectcalico.org/floatingIPs": '["172.16.0.9", "fd00::9"]',
             "qos.projectcalico.org/ingressBandwidth": "10M",
             "cni.projectcalico.org/allowedSourcePrefixes": '["10.9.0.1/16"]'}  # fmt: skip
    found = endpoint(pod(ip="10.0.0.5", ips=["10.0.0.5"], annotations=noted))
    assert (found.namespace, found.name) == ("red", "node--1-k8s-web--0-eth0")
    assert found.labels == {
        "app": "web",
        "projectcalico.org/namespace": "red",
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "robot",
    }
    spec = found.spec
    assert (spec.node, spec.pod, spec.container_id, spec.mac) == ("node-1", "web-0", "c1", "0a:00:00:00:00:01")
    assert spec.ip_networks == ("10.0.0.5/32",)
    assert spec.profiles == ("kns.red", "ksa.red.robot")
    assert [(nat.external_ip, nat.internal_ip) for nat in spec.ip_nats] == [("172.16.0.9", "10.0.0.5")]
    assert spec.qos_controls.ingress_bandwidth == 10_000_000
    assert spec.allow_spoofed_source_prefixes == ("10.9.0.0/16",)
    assert [port.name for port in spec.ports] == ["http"]
    assert found.metadata.annotations == {NETWORK: "k8s-pod-network"}
    assert (found.metadata.uid, found.metadata.resource_version) == ("u-1", "40")


@pytest.mark.parametrize(
    ("status", "noted", "expected"),
    [
        ({}, {}, None),
        ({"ip": "10.0.0.5"}, {}, ("10.0.0.5/32",)),
        ({"ips": ["10.0.0.5", "fd00::5"], "ip": "10.0.0.5"}, {}, ("10.0.0.5/32", "fd00::5/128")),
        ({}, {"podIP": "10.0.0.6/32"}, ("10.0.0.6/32",)),
        ({}, {"podIP": "10.0.0.6/32", "podIPs": "10.0.0.6/32,fd00::6/128"}, ("10.0.0.6/32", "fd00::6/128")),
        ({"ips": ["10.0.0.5"]}, {"podIP": "10.66.6.6/32", "podIPs": "10.66.6.6/32"}, ("10.0.0.5/32",)),
        ({"ips": ["10.0.0.5"]}, {"podIP": "", "podIPs": ""}, None),
        ({"ips": ["10.0.0.5"], "phase": "Succeeded"}, {}, None),
        ({"ips": ["10.0.0.5"], "phase": "Failed", "reason": "Evicted"}, {}, None),
        ({"ips": []}, {}, None),
        ({"ips": ["no address"]}, {}, None),
        ({"ips": ["10.0.0.5"], "deletionTimestamp": "2026-01-01T00:00:00Z"}, {}, ("10.0.0.5/32",)),
        ({"ips": ["10.0.0.5"], "node": ""}, {}, None),
    ],
)
def test_which_addresses_count(status, noted, expected):
    annotations = {f"cni.projectcalico.org/{name}": text for name, text in noted.items()}
    reason = status.pop("reason", "")
    document = pod(annotations=annotations, **status)
    document["status"]["reason"] = reason
    found = endpoint(document)
    assert (found.spec.ip_networks if found else None) == expected


def test_pods_of_the_host_and_static_pods():
    document = pod(ips=["192.0.2.1"])
    document["spec"]["hostNetwork"] = True
    assert endpoint(document) is None
    owner = {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "n", "new": 1}
    mirror = pod(ips=["10.0.0.7"], annotations={"kubernetes.io/config.mirror": "abc"}, ownerReferences=[owner])
    assert endpoint(mirror).spec.ip_networks == ("10.0.0.7/32",)
    assert pods.pod_of(encoded(mirror)).metadata.owner_references[0].kind == "Node"


def test_annotations_that_cannot_be_read_are_let_pass():
    noted = {"cni.projectcalico.org/allowedSourcePrefixes": "everything", "cni.projectcalico.org/floatingIPs": "[",
             "tortie.dev/endpoint": "{", "qos.projectcalico.org/dscp": "x"}  # fmt: skip
    found = endpoint(pod(ips=["10.0.0.5"], annotations=noted))
    assert found.spec.allow_spoofed_source_prefixes == ()
    assert (found.spec.ip_nats, found.spec.mac) == ((), "")


def test_who_may_edit_a_pod_does_not_name_interface_or_labels():
    own = {"mac": "0a:00:00:00:00:01\n", "network": "n", "interface": "cali0", "profiles": ["kns.kube-system"]}
    found = endpoint(pod(ips=["10.0.0.5"], annotations={"tortie.dev/endpoint": json.dumps(own)}))
    assert (found.spec.interface_name, found.spec.mac) == (interface_name("red", "web-0"), "")
    assert found.spec.profiles == ("kns.red", "ksa.red.robot")


def test_what_the_agent_writes_is_what_it_reads_again():
    """The endpoint of an attached pod goes into annotations and comes back the same: no news to the agent itself."""
    before = pod()
    made = endpoint_of_pod(
        pods.pod_of(encoded(before)), node="node-1", container_id="c1", interface="cali1", mac="0a:00:00:00:00:01",
        ips=(parse_ip("10.0.0.5"), parse_ip("fd00::5")),
    )  # fmt: skip
    made = changed(made, annotations={NETWORK: "net"})
    after = pods.written(before, made)
    assert merge_patch(before, after)["metadata"] == {
        "annotations": {
            "cni.projectcalico.org/podIP": "10.0.0.5/32",
            "cni.projectcalico.org/podIPs": "10.0.0.5/32,fd00::5/128",
            "cni.projectcalico.org/containerID": "c1",
            "tortie.dev/endpoint": '{"mac":"0a:00:00:00:00:01","network":"net"}',
        }
    }
    found = endpoint(after)
    same = msgspec.structs.replace(found.spec, interface_name="cali1")
    found = msgspec.structs.replace(found, spec=same)
    assert changed(found, resource_version="", creation_timestamp=None) == made
    cleared = pods.annotated(after, pods.CLEARED)
    assert endpoint(cleared) is None
    cleared["status"]["podIPs"] = [{"ip": "10.0.0.5"}]
    assert endpoint(cleared) is None, "what the kubelet still reports is of a container that is gone"


def test_a_second_container_reports_its_addresses_in_place_of_the_firsts():
    before = pod(ip="10.0.0.4", ips=["10.0.0.4"], annotations={"cni.projectcalico.org/podIP": ""})
    made = endpoint_of_pod(pods.pod_of(encoded(before)), node="node-1", container_id="c2", interface="cali1", mac="",
                           ips=(parse_ip("10.0.0.5"),))  # fmt: skip
    after = pods.written(before, made)
    assert after["status"]["podIPs"] == [{"ip": "10.0.0.5"}]
    assert endpoint(after).spec.ip_networks == ("10.0.0.5/32",)
    assert pods.written(after, made)["status"] is after["status"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("node--1-k8s-web--0-eth0", ("node-1", "web-0")),
        ("n.example.org-k8s-a.b-eth0", ("n.example.org", "a.b")),
        ("n-k8s-p-eth1", None),
        ("n-cni-c-eth0", None),
        ("n-k8s-eth0", None),
        ("", None),
    ],
)
def test_the_pod_of_an_endpoints_name(name, found):
    assert pods.pod_name(name) == found


def test_many_pods_are_read_quickly():
    """5 KB each, half of it managedFields, as on real clusters. 100,000 are to take seconds, not minutes."""
    document = pod(ips=["10.0.0.5"])
    document["metadata"]["managedFields"] = [{"fieldsV1": {f"f:{number}": {"f:x": {}} for number in range(180)}}]
    document["spec"]["volumes"] = [{"name": f"v{number}", "emptyDir": {}} for number in range(40)]
    raw = encoded(document)
    assert 4_500 < len(raw) < 7_000
    form, begin = Endpoints(), time.process_time()
    for _ in range(2_000):
        form.read(raw)
    assert time.process_time() - begin < 2, "1 ms each would be 100 s for 100,000"


FIELDS = st.sampled_from(
    ["name", "namespace", "nodeName", "containers", "ports", "podIPs", "podIP", "phase", "labels", "cidr", "ingress",
     "from", "ipBlock", "clusterIP", "podCIDRs", "addresses", "type", "unheardOf", "allocations", "block", "handleID"]
)  # fmt: skip
ANNOTATIONS = st.sampled_from(
    ["projectcalico.org/metadata", "projectcalico.org/labels", "projectcalico.org/ASNumber", "tortie.dev/endpoint",
     "projectcalico.org/IPv4Address", "cni.projectcalico.org/podIP", "cni.projectcalico.org/podIPs",
     "cni.projectcalico.org/floatingIPs", "qos.projectcalico.org/dscp", "projectcalico.org/Interfaces"]
)  # fmt: skip
FORMS = [Pods(), Endpoints(), Nodes(use_pod_cidr=True), *map(Native, (Service, EndpointSlice, K8sNetworkPolicy)),
         *(Custom(kind, layout) for kind in (IPPool, IPAMBlock, IPAMHandle, BlockAffinity, NetworkPolicy)
           for layout in (crd.V1, crd.V3))]  # fmt: skip


# What a watch tells -------------------------------------------------------------------------------------------------


def happened(type_: str, raw: bytes, wire=msgspec.Raw) -> Happened:
    """As a watch tells it, the object decoded together with the event or not."""
    line = b'{"type":"' + type_.encode() + b'","object":' + raw + b"}"
    decoded = None if wire is msgspec.Raw else msgspec.json.decode(raw, type=wire)
    return Happened(EventType(type_), identity(raw), decoded, line)


def reading(form, raw):
    return form.read(raw)[0]


@pytest.mark.parametrize("wire", [msgspec.Raw, Endpoints.wire])
def test_a_pod_becomes_an_endpoint_and_ceases_to_be_one(wire):
    form = Endpoints()
    changes = Changes(form, ())
    told = []

    def happens(type_, document, revision):
        document = copy.deepcopy(document)
        document["metadata"]["resourceVersion"] = str(revision)
        raw = encoded(document)
        event = changes.event(happened(type_, raw, wire), reading)
        told.append(event and (event.type.value, event.object.name, event.object.metadata.resource_version))

    bare, up = pod(node=""), pod(ips=["10.0.0.5"])
    happens("ADDED", bare, 1)
    happens("MODIFIED", pod(), 2)
    happens("MODIFIED", up, 3)
    up["status"]["conditions"] = []
    happens("MODIFIED", up, 4)
    up["metadata"]["labels"] = {"app": "db"}
    happens("MODIFIED", up, 5)
    happens("MODIFIED", pod(ips=["10.0.0.5"], phase="Succeeded"), 6)
    happens("MODIFIED", pod(ips=["10.0.0.5"], phase="Succeeded"), 7)
    happens("DELETED", pod(ips=["10.0.0.5"], phase="Succeeded"), 8)
    happens("ADDED", up, 9)
    happens("DELETED", up, 10)
    name = "node--1-k8s-web--0-eth0"
    assert told == [
        None, None, ("ADDED", name, "3"), None, ("MODIFIED", name, "5"), ("DELETED", name, "6"), None, None,
        ("ADDED", name, "9"), ("DELETED", name, "10"),
    ]  # fmt: skip


def test_a_watch_knows_from_the_list_who_did_not_count():
    form = Endpoints()
    raw = encoded(pod(ips=["10.0.0.5"], phase="Failed"))
    gone = Changes(form, {("red", "web-0")}).event(happened("DELETED", raw), reading)
    assert gone is None
    ended = Changes(form, ()).event(happened("MODIFIED", raw), reading)
    assert (ended.type, ended.object.name) == (EventType.DELETED, "node--1-k8s-web--0-eth0")


# Nodes --------------------------------------------------------------------------------------------------------------

KUBE_NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {
        "name": "node-1", "uid": "n-1", "resourceVersion": "77", "labels": {"zone": "a", "rack": "1"},
        "annotations": {
            "node.alpha.kubernetes.io/ttl": "0",
            "projectcalico.org/IPv4Address": "192.0.2.7/24", "projectcalico.org/IPv6Address": "fd00::7/64",
            "projectcalico.org/ASNumber": "64512", "projectcalico.org/RouteReflectorClusterID": "1.0.0.1",
            "projectcalico.org/IPv4IPIPTunnelAddr": "10.0.0.1", "projectcalico.org/IPv4VXLANTunnelAddr": "10.0.0.2",
            "projectcalico.org/VXLANTunnelMACAddr": "66:00:00:00:00:01",
            "projectcalico.org/IPv4WireguardInterfaceAddr": "10.0.0.3", "projectcalico.org/WireguardPublicKey": "KEY=",
            "projectcalico.org/Interfaces": '[{"name":"eth0","addresses":["192.0.2.7"]}]',
            "projectcalico.org/labels": '{"rack":"9","tier":"x"}',
            "projectcalico.org/annotations": '{"tortie.dev/pod-networks":"[]"}',
        },
    },
    "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"], "someday": 1},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.7"}, {"type": "Hostname", "address": "node-1"}],
               "nodeInfo": {"x": 1}},
}  # fmt: skip


def calico_node(document=KUBE_NODE, **options) -> Node:
    return Nodes(**options).read(encoded(document))[0]


def test_a_node_is_read_from_annotations():
    node = calico_node()
    assert node.spec.bgp == NodeBGPSpec(
        ipv4_address="192.0.2.7/24", ipv6_address="fd00::7/64", as_number=64512, route_reflector_cluster_id="1.0.0.1",
        ipv4_ipip_tunnel_addr="10.0.0.1",
    )  # fmt: skip
    assert (node.spec.ipv4_vxlan_tunnel_addr, node.spec.vxlan_tunnel_mac_addr) == ("10.0.0.2", "66:00:00:00:00:01")
    assert node.spec.wireguard.interface_ipv4_address == "10.0.0.3"
    assert node.spec.interfaces == (NodeInterface(name="eth0", addresses=("192.0.2.7",)),)
    assert [(one.type, one.address) for one in node.spec.addresses] == [
        ("CalicoNodeIP", "192.0.2.7/24"), ("CalicoNodeIP", "fd00::7/64"), ("InternalIP", "192.0.2.7")]  # fmt: skip
    assert node.labels == {"zone": "a", "rack": "1", "tier": "x"}, "Kubernetes' own win"
    assert node.metadata.annotations["tortie.dev/pod-networks"] == "[]"
    assert json.loads(node.metadata.annotations["projectcalico.org/kube-labels"]) == {"zone": "a", "rack": "1"}
    assert node.status == {"wireguardPublicKey": "KEY=", "podCIDRs": ["10.244.1.0/24"]}
    assert [(ref.orchestrator, ref.node_name) for ref in node.spec.orch_refs] == [("k8s", "node-1")]


def test_a_node_without_annotations_and_with_pod_cidrs():
    document = copy.deepcopy(KUBE_NODE)
    document["metadata"]["annotations"] = None
    node = calico_node(document)
    assert (node.spec.bgp, node.spec.wireguard) == (None, None)
    assert calico_node(document, use_pod_cidr=True).spec.bgp.ipv4_ipip_tunnel_addr == "10.244.1.1"


def test_annotations_of_a_node_that_cannot_be_read_are_told():
    document = copy.deepcopy(KUBE_NODE)
    document["metadata"]["annotations"] |= {"projectcalico.org/ASNumber": "many", "projectcalico.org/labels": "{",
                                            "projectcalico.org/IPv4Address": "here"}  # fmt: skip
    node, wrong = Nodes().read(encoded(document))
    assert (node.spec.bgp.as_number, node.spec.bgp.ipv4_address, node.spec.bgp.ipv6_address) == (None, "", "fd00::7/64")
    assert sorted(line.partition(":")[0] for line in wrong) == [
        "projectcalico.org/ASNumber", "projectcalico.org/IPv4Address", "projectcalico.org/labels"]  # fmt: skip


@pytest.mark.parametrize(
    ("metadata", "taints", "leaving"),
    [
        ({}, None, False),
        ({}, [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}], False),
        ({}, [{"key": "x"}, {"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"}], True),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z"}, None, True),
        ({}, ["nonsense", {}], False),
    ],
)
def test_a_node_that_is_about_to_be_deleted_is_leaving(metadata, taints, leaving):
    document = copy.deepcopy(KUBE_NODE)
    document["metadata"] |= metadata
    document["spec"]["taints"] = taints
    assert native(K8sNode, document).leaving is leaving
    node = calico_node(document)
    assert node.leaving is leaving
    cluster = Cluster("node-1")
    cluster.put(node)
    assert cluster.state().proxy.leaving is leaving


def test_without_a_pool_for_them_pods_are_where_kubernetes_has_put_them():
    """As in a cluster whose network is another's, and only policy and services are ours."""
    cluster = Cluster("elsewhere")
    cluster.put(calico_node())
    assert [str(net) for net in cluster.state().proxy.pods] == ["10.244.1.0/24"]
    balancers = IPPoolSpec(cidr="192.0.2.0/24", allowed_uses=("LoadBalancer",))
    cluster.put(IPPool(metadata=Metadata(name="balancers"), spec=balancers))
    assert [str(net) for net in cluster.state().proxy.pods] == ["10.244.1.0/24"]
    cluster.put(IPPool(metadata=Metadata(name="pods"), spec=IPPoolSpec(cidr="10.1.0.0/16")))
    assert [str(net) for net in cluster.state().proxy.pods] == ["10.1.0.0/16"]
    cluster.drop(IPPool, "", "pods")
    cluster.drop(Node, "", KUBE_NODE["metadata"]["name"])
    assert cluster.state().proxy.pods == ()


def test_an_update_of_a_node_patches_annotations_alone():
    node = calico_node()
    form = Nodes()
    assert form.written(KUBE_NODE, node, changed(node, uid="x")) is not None
    assert merge_patch(KUBE_NODE, form.written(KUBE_NODE, node, node)) == {
        "metadata": {"annotations": {"projectcalico.org/labels": '{"tier":"x"}'}}
    }, "a label that Kubernetes has is not kept twice"
    spec = msgspec.structs.replace(node.spec, bgp=NodeBGPSpec(ipv4_address="192.0.2.8/24"), ipv4_vxlan_tunnel_addr="")
    new = changed(msgspec.structs.replace(node, spec=spec), labels=node.labels | {"mine": "1"}, annotations={})
    patch = merge_patch(KUBE_NODE, form.written(KUBE_NODE, node, new))
    assert set(patch) == {"metadata"}
    assert patch["metadata"]["annotations"] == {
        "projectcalico.org/IPv4Address": "192.0.2.8/24",
        "projectcalico.org/IPv6Address": None,
        "projectcalico.org/ASNumber": None,
        "projectcalico.org/RouteReflectorClusterID": None,
        "projectcalico.org/IPv4IPIPTunnelAddr": None,
        "projectcalico.org/IPv4VXLANTunnelAddr": None,
        "projectcalico.org/labels": '{"mine":"1","tier":"x"}',
        "projectcalico.org/annotations": None,
    }
    again = calico_node(form.written(KUBE_NODE, node, new))
    assert (again.spec.bgp, again.labels) == (new.spec.bgp, new.labels)


# The others ---------------------------------------------------------------------------------------------------------


def test_what_a_newer_server_has_is_left_out():
    service = {"metadata": {"name": "s", "namespace": "red", "newMeta": 1},
               "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80, "new": 1}], "externalIPs": None, "new": {}},
               "status": {"loadBalancer": {}}}  # fmt: skip
    found = native(Service, service)
    assert (found.spec.cluster_ip, found.spec.ports[0].port) == ("10.96.0.1", 80)
    slice_ = {"metadata": {"name": "s", "namespace": "red"}, "addressType": "IPv4", "endpoints": None, "ports": None}
    assert native(EndpointSlice, slice_).endpoints == ()
    lease = {"metadata": {"name": "l", "namespace": "kube-system"},
             "spec": {"holderIdentity": "a", "acquireTime": "2026-01-01T00:00:00.000001Z", "new": 1}}  # fmt: skip
    assert native(Lease, lease).spec.holder_identity == "a"
    machine = {"metadata": {"name": "m", "namespace": "red"}, "spec": {"any": 1}, "status": {"nodeName": "n"}}
    assert native(VirtualMachineInstance, machine).node == "n"
    assert native(K8sNode, KUBE_NODE).spec.pod_cidrs == ("10.244.1.0/24",)
    with pytest.raises(Refused, match="addressType"):
        native(EndpointSlice, {"metadata": {"name": "s"}, "addressType": "IPv9"})


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"endpoints": [{"addresses": [5]}]}, "endpoints[1].addresses[0]: 5 must be text: put it in quotes"),
        ({"endpoints": [{"addresses": [None]}]}, "endpoints[1].addresses[0]: is empty, must be text"),
        ({"endpoints": [{"addresses": "10.0.0.3"}]}, 'endpoints[1].addresses: "10.0.0.3" must be a list'),
        ({"endpoints": ["10.0.0.3"]}, 'endpoints[1]: "10.0.0.3" must be a mapping'),
        ({"ports": [{"port": 1, "protocol": "QUIC"}]}, 'ports[1].protocol: "QUIC" is not one of TCP, UDP, SCTP'),
    ],
)
def test_what_cannot_be_read_of_a_slice_costs_no_other_endpoint(bad, why):
    good = {"endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}], "ports": [{"port": 80}]}
    ((field, (one,)),) = bad.items()
    first, *others = good[field]
    document = {"metadata": {"name": "s", "namespace": "red"}, "addressType": "IPv4"}
    document |= good | {field: [first, one, *others]}
    found, told = Native(EndpointSlice).read(encoded(document))
    assert [one.addresses for one in found.endpoints] == [("10.0.0.1",), ("10.0.0.2",)]
    assert [one.port for one in found.ports] == [80]
    assert told == (f"{why}; {field}[1] is left out",)


def test_rules_with_unknown_conditions_are_left_out_and_the_policy_still_isolates():
    policy = {
        "metadata": {"name": "p", "namespace": "red"},
        "spec": {
            "podSelector": {},
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"a": "b"}}, "onWeekdays": True}]},
                {"from": [{"ipBlock": {"cidr": f"10.{i // 250}.{i % 250}.0/24"}} for i in range(1000)]},
                {"from": None},
            ],
            "egress": None,
            "policyTypes": ["Ingress"],
        },
    }
    found = native(K8sNetworkPolicy, policy)
    assert [len(rule.from_) for rule in found.spec.ingress] == [1000, 0]
    assert found.spec.policy_types == ("Ingress",)


def test_a_cluster_policy_with_an_unknown_condition_is_refused():
    policy = {"metadata": {"name": "p"}, "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
                                                  "ingress": [{"action": "Accept", "from": [{"namespaces": {}}],
                                                               "onWeekdays": True}]}}  # fmt: skip
    with pytest.raises(Refused, match=r"ingress\[0\].onWeekdays"):
        native(ClusterNetworkPolicy, policy)


def test_an_update_of_a_native_object_is_what_differs():
    form = Native(K8sNode)
    old = native(K8sNode, KUBE_NODE)
    conditions = [{"type": "NetworkUnavailable", "status": "False"}]
    new = msgspec.structs.replace(old, status=dict(old.status) | {"conditions": conditions})
    assert merge_patch(KUBE_NODE, form.written(KUBE_NODE, old, new)) == {"status": {"conditions": conditions}}
    labelled = changed(old, labels={"zone": "a"}, resource_version="", uid="forged", creation_timestamp=None)
    assert merge_patch(KUBE_NODE, form.written(KUBE_NODE, old, labelled)) == {"metadata": {"labels": {"rack": None}}}
    assert form.written(KUBE_NODE, old, changed(old, uid="x")) == KUBE_NODE
    document = pod(ips=["10.0.0.5"])
    known = Pods().read(encoded(document))[0]
    assert isinstance(known, Pod)
    patch = merge_patch(document, Pods().written(document, known, changed(known, labels={"app": "db"})))
    assert patch == {"metadata": {"labels": {"app": "db"}}}


def test_profiles_are_those_of_namespaces_and_accounts():
    found = profiles.of_namespace(native(Namespace, {"metadata": {"name": "red", "labels": {"team": "x"}}}))
    assert (found.name, found.spec.labels_to_apply) == (
        "kns.red", {"pcns.team": "x", "pcns.projectcalico.org/name": "red"})  # fmt: skip
    assert [rule.action for rule in (*found.spec.ingress, *found.spec.egress)] == ["Allow", "Allow"]
    account = profiles.of_account(native(ServiceAccount, {"metadata": {"name": "web.old", "namespace": "red"}}))
    assert (account.name, account.spec.ingress) == ("ksa.red.web.old", ())
    assert account.spec.labels_to_apply == {"pcsa.projectcalico.org/name": "web.old"}
    assert profiles.source("ksa.red.web.old") == (ServiceAccount, "web.old", "red")
    assert profiles.source("kns.red") == (Namespace, "red", "")
    assert profiles.source("mine") is None


WORDS = st.sampled_from(["", "a", "10.0.0.0/8", "10.0.0.1", "TCP", "IPv4", "true", "Ingress", "-1", "\x00", "é"])
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2**63) | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.fixed_dictionaries({}, optional=dict.fromkeys(("metadata", "spec", "status", "endpoints", "data"), ANY))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__ + form.kind.KIND.kind)
@given(document=DOCUMENTS | ANY, annotations=st.dictionaries(ANNOTATIONS, WORDS | st.just('{"a":"b"}'), max_size=3))
@settings(max_examples=25)
def test_whatever_a_server_sends_is_a_value_or_refused(form, document, annotations):
    if isinstance(document, dict) and isinstance(document.get("metadata", {}), dict):
        document = document | {"metadata": document.get("metadata", {}) | {"annotations": annotations}}
    raw = msgspec.json.encode(document)
    try:
        found, _ = form.read(raw)
    except Refused:
        found = None
    assert found is None or isinstance(found, form.kind)
    assert isinstance(form.last(raw), form.kind)
