"""A whole Kubernetes cluster as its user lives it: the manifest is applied, two nodes get their network, pods come and
go, policies close and open, the API server goes away and comes back, tokens are renewed.

The programs are the manifest's containers, as their accounts: at an API server that allows what the manifest's roles
allow and no more. Tests follow one another in one cluster.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from kube_cluster import Machine, Sandbox
from kube_installation import (
    CONTROLLERS,
    CRD,
    DOOMED,
    MANIFEST,
    NODE,
    PLUGINS,
    PROBE,
    SHOP,
    TAINTS,
    Cluster,
    apply,
    begin,
    furnish,
    soon,
    wired,
)
from namespaces import namespaces
from pings import Ping, Pings, wait_for_answers
from tortie.model.workload import WorkloadEndpoint
from tortie.render.manifest import Options, documents
from tortie.store import open_store

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces"),
    pytest.mark.skipif(not (PLUGINS / "portmap").exists(), reason=f"{PLUGINS} has no portmap"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory, makers = tmp_path_factory.mktemp("kube"), namespaces()
    make = next(makers)
    server, nodes = wired(make, directory)
    server.start()
    try:
        server.do(server.api.kubeconfig, directory / "admin")
        command = [sys.executable, "-m", "tortie.cli.main", *MANIFEST]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        made = Cluster(server, directory, nodes, make, text)
        apply(made)
        furnish(made)
        begin(made)
        yield made
    finally:
        for node in nodes:
            node.stop()
        server.stop()
        for _ in makers:
            pass


@pytest.fixture(autouse=True)
def nobody_is_refused(cluster: Cluster) -> Iterator[None]:
    """Whatever a test does, the manifest's roles allow it."""
    yield
    assert cluster.server.refused() == []


# --- nodes --------------------------------------------------------------------------------------------------------


def condition(cluster: Cluster, node: Machine) -> tuple[str, str]:
    found = cluster.server.get("nodes", node.name).get("status", {}).get("conditions", [])
    return next(((one["status"], one["reason"]) for one in found if one["type"] == "NetworkUnavailable"), ("", ""))


def told(cluster: Cluster, node: Machine) -> dict[str, str]:
    found = cluster.server.get("nodes", node.name)["metadata"].get("annotations", {})
    return {key.partition("/")[2]: value for key, value in found.items() if key.startswith("projectcalico.org/")}


async def test_nodes_get_their_network(cluster: Cluster) -> None:
    for number, node in enumerate(cluster.nodes, 1):
        await soon(lambda node=node: condition(cluster, node), lambda one: one == ("False", "CalicoIsUp"), "up")
        assert told(cluster, node)["IPv4Address"] == f"192.0.2.{number}/24"
        found = cluster.server.get("nodes", node.name)
        assert found["spec"]["taints"] == TAINTS, "Kubernetes makes taints of conditions, nobody else"
        assert [one["type"] for one in found["status"]["conditions"]] == ["Ready", "NetworkUnavailable"]
    pool = cluster.server.get("ippools", "default-ipv4-ippool")["spec"]
    assert (pool["cidr"], pool["ipipMode"], pool["vxlanMode"]) == ("10.65.0.0/16", "Never", "Never")
    probe = cluster.workload("DaemonSet")["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["exec"]
    said = cluster.agent(cluster.nodes[0]).inside(*probe["command"])
    assert said.returncode == 0, said.stdout + said.stderr


async def test_a_pool_with_a_tunnel_is_told_of_in_annotations(cluster: Cluster) -> None:
    """Its tunnel's address is for the other nodes, and goes with the pool."""
    spec = {"cidr": "10.66.0.0/24", "vxlanMode": "Always", "ipipMode": "Never", "nodeSelector": "all()"}
    spec |= {"blockSize": 26, "allowedUses": ["Workload", "Tunnel"]}
    cluster.server.create(CRD, "IPPool", "tunnelled", spec=spec)
    node = cluster.nodes[0]
    await soon(lambda: told(cluster, node), lambda said: "IPv4VXLANTunnelAddr" in said)
    assert told(cluster, node)["IPv4VXLANTunnelAddr"].startswith("10.66.0.")
    cluster.server.delete("ippools", "tunnelled")
    await soon(lambda: told(cluster, node), lambda said: "IPv4VXLANTunnelAddr" not in said)


# --- pods ---------------------------------------------------------------------------------------------------------


async def test_pods_of_two_nodes_reach_each_other(cluster: Cluster) -> None:
    """Addresses are BGP's to tell: there is no tunnel."""
    one, two = [await cluster.running(node, f"on-{node.name}") for node in cluster.nodes]
    await soon(lambda: one.reaches(two.ip), what="there")
    await soon(lambda: two.reaches(one.ip), what="and back")
    for pod in (one, two):
        said = await soon(pod.annotations, lambda said: "podIP" in said)
        assert said == {"podIP": f"{pod.ip}/32", "podIPs": f"{pod.ip}/32", "containerID": pod.container_id}
    await cluster.gone(one, two)


async def test_what_is_asked_for_a_pod(cluster: Cluster) -> None:
    """Nothing before the runtime has its answer; then one request for the pod, beside those of its address."""
    first = await cluster.running(cluster.nodes[0], "first")  # that some addresses are ready
    await soon(first.annotations, lambda said: "podIP" in said)
    pod = cluster.pod(cluster.nodes[0], "counted")
    await soon(lambda: cluster.status(cluster.nodes[0])["cni"]["pods"], lambda known: known == 2, "it is known")
    await cluster.rested(1.0)
    since = len(cluster.server.api.log)
    cluster.server.api.faults.latency = 3.0  # whatever waited for an answer would take longer
    await pod.attach()
    assert cluster.server.asked(NODE, since) == []
    cluster.server.api.faults.clear()
    await soon(pod.annotations, lambda said: "podIP" in said)
    await cluster.rested(1.0)
    after = cluster.server.asked(NODE, since)
    of_the_pod = [one for one in after if "/pods" in one]
    assert of_the_pod == [f"PATCH /api/v1/namespaces/{SHOP}/pods/counted/status"]
    others = [one for one in after if one not in (*of_the_pod, PROBE)]
    looked = "GET /api/v1/namespaces"  # on a slow machine it is time meanwhile to look for silent watches
    others = [one for one in others if one != looked]
    assert all(re.search("/(ipam|ippools|ipreservations|blockaffinities|nodes/node1)", one) for one in others), others
    assert len(others) <= 16, others
    since = len(cluster.server.api.log)
    await pod.detach()
    await cluster.rested(1.0)
    gone = [one for one in cluster.server.asked(NODE, since) if one != PROBE]
    assert [one for one in gone if "/pods" in one and not one.startswith("GET")] == of_the_pod
    assert len(gone) <= 9, gone
    cluster.server.delete("pods", pod.name, SHOP)
    await cluster.gone(first)


async def test_a_policy_closes_and_opens(cluster: Cluster) -> None:
    web = await cluster.running(cluster.nodes[0], "web", labels={"app": "web"})
    client = await cluster.running(cluster.nodes[1], "client")
    await soon(lambda: client.reaches(web.ip))
    chosen = {"matchLabels": {"app": "web"}}
    friends = [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}]
    async with cluster.policy("friends", podSelector=chosen, policyTypes=["Ingress"], ingress=friends):
        await soon(lambda: client.reaches(web.ip), lambda does: not does, "closed")
        label(cluster, client, role="friend")
        await soon(lambda: client.reaches(web.ip), what="opened by a label")
        label(cluster, client, role=None)
        await soon(lambda: client.reaches(web.ip), lambda does: not does, "closed again")
        label(cluster, web, app="other")
        await soon(lambda: client.reaches(web.ip), what="another pod than the policy is about")
        label(cluster, web, app="web")
        await soon(lambda: client.reaches(web.ip), lambda does: not does, "and closed")
    await soon(lambda: client.reaches(web.ip), what="without the policy")
    await cluster.gone(web, client)


def label(cluster: Cluster, pod: Sandbox, **labels: str | None) -> None:
    path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
    body = {"metadata": {"labels": labels}}
    assert cluster.server.ask("PATCH", path, body, "application/merge-patch+json").status == 200


async def test_a_pod_that_serves_names(cluster: Cluster) -> None:
    """In kube-system, with a Service that nobody but kube-proxy acts on."""
    labels = {"k8s-app": "kube-dns"}
    dns = await cluster.running(cluster.nodes[0], "coredns", "kube-system", labels=labels)
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}]
    cluster.server.create("v1", "Service", "kube-dns", "kube-system", spec={
        "selector": labels, "ports": ports, "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
    })  # fmt: skip
    slice_of = {"kubernetes.io/service-name": "kube-dns"}
    endpoints = [{"addresses": [dns.ip], "conditions": {"ready": True}, "nodeName": "node1"}]
    cluster.server.create(
        "discovery.k8s.io/v1", "EndpointSlice", "kube-dns-x", "kube-system",
        metadata={"labels": slice_of}, addressType="IPv4", endpoints=endpoints, ports=ports,
    )  # fmt: skip
    client = await cluster.running(cluster.nodes[1], "asker")
    await soon(lambda: client.reaches(dns.ip))
    rule = [{"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}]}]
    async with cluster.policy("names-only", podSelector={}, policyTypes=["Egress"], egress=rule):
        other = await cluster.running(cluster.nodes[0], "other")
        await soon(lambda: client.reaches(other.ip), lambda does: not does, "no other pod")
        assert client.reaches(dns.ip)
    await cluster.gone(dns, client, other)


async def test_a_pod_completes_and_its_address_is_taken_again(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    job = await cluster.running(node, "job")
    address = job.ip
    await soon(lambda: wep(cluster, "job"), what="an endpoint")
    await job.detach()  # a kubelet ends the sandbox of what has finished, and keeps the pod
    job.report("Succeeded")
    await soon(lambda: wep(cluster, "job"), lambda found: not found, "no endpoint")
    await cluster.rested()
    asks = {"cni.projectcalico.org/ipAddrs": json.dumps([address])}
    heir = await cluster.running(node, "heir", annotations=asks)
    assert heir.ip == address
    await soon(lambda: heir.reaches("192.0.2.2"))
    cluster.server.delete("pods", "job", SHOP)
    await cluster.rested()
    assert heir.reaches("192.0.2.2")
    assert wep(cluster, "heir") == [address]
    await cluster.gone(heir)


def wep(cluster: Cluster, pod: str) -> list[str]:
    """Addresses of a pod's endpoint, as every client of the cluster makes it of the pod."""
    found = cluster.server.do(endpoints, cluster.directory / "admin")
    return [net.partition("/")[0] for one in found if (one.namespace, one.spec.pod) == (SHOP, pod)
            for net in one.spec.ip_networks]  # fmt: skip


async def endpoints(kubeconfig: Path) -> Sequence[WorkloadEndpoint]:
    store = open_store(f"kubernetes:{kubeconfig}", environment={})
    try:
        return (await store.list(WorkloadEndpoint)).items
    finally:
        await store.close()


async def test_static_pods_and_those_on_the_host(cluster: Cluster) -> None:
    """A static pod is known to its kubelet by a hash; what the API server has of it, a mirror, has a UID of its own."""
    node, hashed = cluster.nodes[0], "5f1c1ae6b4f8a4c0e5f1c1ae6b4f8a4c"
    marks = {"kubernetes.io/config.hash": hashed, "kubernetes.io/config.mirror": hashed}
    marks |= {"kubernetes.io/config.source": "file"}
    static = await cluster.running(node, "static-node1", annotations=marks, uid=hashed)
    await soon(static.annotations, lambda said: said.get("podIP") == f"{static.ip}/32", "the mirror is told")
    enforced = cluster.status(node)["dataplane"]["endpoints"]
    spec = {"nodeName": node.name, "hostNetwork": True, "containers": [{"name": "main", "image": "x"}]}
    status = {"phase": "Running", "podIP": "192.0.2.1", "podIPs": [{"ip": "192.0.2.1"}]}
    cluster.server.create("v1", "Pod", "on-the-host", SHOP, spec=spec, status=status)
    plain = await cluster.running(cluster.nodes[1], "plain")
    await soon(lambda: plain.reaches(static.ip))
    assert wep(cluster, "on-the-host") == []
    assert wep(cluster, "static-node1") == [static.ip]
    assert cluster.status(node)["dataplane"]["endpoints"] == enforced
    cluster.server.delete("pods", "on-the-host", SHOP)
    await cluster.gone(static, plain)


async def test_a_namespace_goes_with_its_pods(cluster: Cluster) -> None:
    pods = [await cluster.running(node, f"of-{node.name}", DOOMED) for node in cluster.nodes]
    await cluster.rested()
    cluster.server.delete("namespaces", DOOMED)
    for pod in pods:
        await pod.detach()
    await soon(lambda: exists(cluster, "namespaces", DOOMED), lambda there: not there, "it is gone")
    await cluster.rested()
    assert not {f"k8s-pod-network.{pod.container_id}" for pod in pods} & cluster.handles("10.65.0.0/16")


# --- trouble ------------------------------------------------------------------------------------------------------


async def test_the_api_is_away_and_an_agent_is_restarted(cluster: Cluster) -> None:
    """Nothing is lost of what runs, young pods included; the status says what is away."""
    one, two = [await cluster.running(node, f"steady-{node.name}") for node in cluster.nodes]
    await soon(lambda: one.reaches(two.ip))
    server, node = cluster.server, cluster.nodes[0]
    ways = ((one, two), (two, one))
    pings = Pings(Ping(a.name, a.ns.name, b.ip, cluster.directory / f"ping-{a.name}") for a, b in ways)
    with pings:
        await asyncio.to_thread(wait_for_answers, pings)
        server.do(server.api.refuse)
        try:
            cluster.agent(node).kill()
            agent = node.start(cluster.workload("DaemonSet"), NODE)
            other = cluster.nodes[1]
            await soon(lambda: cluster.status(other)["datastore"]["connected"], lambda up: not up, "it is noticed")
            said = cluster.agent(other).inside("tortie", "status")
            assert "away" in said.stdout, said.stdout + said.stderr
            await soon(lambda: known_from(cluster, node), lambda source: source == "snapshot", "from its snapshot")
            assert agent.process.poll() is None, agent.log
            await asyncio.to_thread(wait_for_answers, pings)
        finally:
            server.do(server.api.accept)
        for each in cluster.nodes:
            await soon(lambda each=each: cluster.status(each)["wrong"], lambda wrong: not wrong, "all is well")
        await asyncio.to_thread(wait_for_answers, pings)
    assert pings.lost == {}
    assert all(ping.answered for ping in pings.pings)
    said = cluster.agent(node).inside("tortie", "status")
    assert (said.returncode, "connected; known" in said.stdout) == (0, True), said.stdout
    third = await cluster.running(node, "third")
    await soon(lambda: third.reaches(two.ip))
    await cluster.gone(one, two, third)


def known_from(cluster: Cluster, node: Machine) -> str:
    found: str = cluster.status(node).get("datastore", {}).get("source", "")
    return found


async def test_tokens_are_renewed(cluster: Cluster) -> None:
    """The old ones are of no use any more, and what they had opened is cut."""
    server = cluster.server
    one = await cluster.running(cluster.nodes[0], "one", labels={"app": "one"})
    two = await cluster.running(cluster.nodes[1], "two")
    await soon(lambda: two.reaches(one.ip))
    server.do(server.api.revoke)
    server.do(server.api.cut_watches)
    await soon(lambda: [one for one in list(server.api.log) if one.status == 401], what="they are refused")
    for node in cluster.nodes:
        node.renew(NODE)
    cluster.nodes[0].renew(CONTROLLERS)
    async with cluster.policy("shut", podSelector={"matchLabels": {"app": "one"}}, policyTypes=["Ingress"]):
        await soon(lambda: two.reaches(one.ip), lambda does: not does, "they hear of policies")
    await soon(lambda: two.reaches(one.ip))
    label(cluster, one, after="renewal")
    await cluster.gone(one, two)
    since = len(server.api.log)
    await soon(lambda: server.asked(CONTROLLERS, since), what="the controllers go on")


# --- commands -----------------------------------------------------------------------------------------------------


async def test_commands_of_an_administrator(cluster: Cluster) -> None:
    web = await cluster.running(cluster.nodes[0], "web", labels={"app": "web"})
    client = await cluster.running(cluster.nodes[1], "client")
    await cluster.rested()
    async with cluster.policy("shut", podSelector={"matchLabels": {"app": "web"}}, policyTypes=["Ingress"]):
        nodes, pools, endpoints, address, check, explained, removal = await asyncio.to_thread(
            cluster.admin,
            "get nodes",
            "get ippools",
            f"get workloadendpoints -n {SHOP}",
            f"ipam show --ip {web.ip}",
            "ipam check",
            f"explain {SHOP}/client {SHOP}/web --port 80",
            "uninstall --cluster --plan",
        )
    assert re.search(r"(?m)^node1\b.*\nnode2\b", nodes), nodes
    assert re.search(r"(?m)^default-ipv4-ippool +10\.65\.0\.0/16", pools), pools
    assert re.search(rf"web +node1 +{web.ip}/32", endpoints), endpoints
    assert web.container_id in address or web.name in address, address
    assert "found 0 problems" in check, check
    assert "shut" in explained, explained
    names_what_is_there(cluster, removal)
    await cluster.gone(web, client)


def names_what_is_there(cluster: Cluster, transcript: str) -> None:
    """Everything that was applied is named; and what is named is there, but for what other options would have made."""
    named: set[tuple[str, str]] = set()
    for line in transcript.splitlines():
        found = re.match(r"kubectl (?:-n kube-system )?delete (\S+) (.*?) --ignore-not-found", line)
        if found is not None:
            kinds = ["customresourcedefinition"] if found[2].startswith("--all") else found[1].split(",")
            names = [found[1]] if found[2].startswith("--all") else found[2].split()
            named |= {(kind, name) for kind in kinds for name in names}
    applied = {(one["kind"].lower(), one["metadata"]["name"]) for one in yaml.safe_load_all(cluster.text)}
    assert applied - named == set()
    others = documents(Options(fanout=2, bgp_passwords=True))
    possible = {(one["kind"].lower(), one["metadata"]["name"]) for one in others}
    assert cluster.server.get("leases", CONTROLLERS, "kube-system")["spec"]["holderIdentity"]
    assert named - applied - possible <= {("lease", CONTROLLERS)}
    assert {name for kind, name in named if kind == "customresourcedefinition"} == crds_of(cluster)


def crds_of(cluster: Cluster) -> set[str]:
    found = cluster.server.do(cluster.server.api.list, "customresourcedefinitions")
    return {one["metadata"]["name"] for one in found}


# --- the controllers' ---------------------------------------------------------------------------------------------


def exists(cluster: Cluster, plural: str, name: str) -> bool:
    return name in {one["metadata"]["name"] for one in cluster.server.do(cluster.server.api.list, plural)}


async def test_the_controllers_do_their_part(cluster: Cluster) -> None:
    server = cluster.server
    spec = {"cidr": "203.0.113.0/29", "blockSize": 29, "allowedUses": ["LoadBalancer"], "nodeSelector": "all()"}
    server.create(CRD, "IPPool", "services", spec=spec)
    ports = [{"name": "http", "port": 80}]
    server.create("v1", "Service", "front", SHOP, spec={"type": "LoadBalancer", "ports": ports})
    service = lambda: server.get("services", "front", SHOP)["status"]["loadBalancer"]  # noqa: E731
    await soon(service, lambda got: got == {"ingress": [{"ip": "203.0.113.0"}]}, "it has an address")
    settings = {"spec": {"controllers": {"node": {"hostEndpoint": {"autoCreate": "Enabled"}}}}}
    path = f"/apis/{CRD}/kubecontrollersconfigurations/default"
    assert server.ask("PATCH", path, settings, "application/merge-patch+json").status == 200
    for node in cluster.nodes:
        await soon(lambda node=node: exists(cluster, "hostendpoints", f"{node.name}-auto-hep"), what="host endpoints")
    server.delete("services", "front", SHOP)
    await soon(lambda: cluster.handles("203.0.113.0/29"), lambda held: not held, "it is given back")


async def test_a_node_goes(cluster: Cluster) -> None:
    """It says so before it is stopped; what was its goes with its Node."""
    server, node = cluster.server, cluster.nodes[1]
    agent = cluster.agent(node)
    hook = cluster.workload("DaemonSet")["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]
    said = agent.inside(*hook["exec"]["command"])
    assert said.returncode == 0, said.stderr
    assert condition(cluster, node) == ("True", "CalicoIsDown")
    assert condition(cluster, cluster.nodes[0]) == ("False", "CalicoIsUp")
    server.create(CRD, "BGPPeer", "of-node2", spec={"node": node.name, "peerIP": "192.0.2.200", "asNumber": 64999})
    agent.kill()
    server.delete("nodes", node.name)
    await soon(lambda: exists(cluster, "hostendpoints", "node2-auto-hep"), lambda there: not there, "its host endpoint")
    await soon(lambda: exists(cluster, "bgppeers", "of-node2"), lambda there: not there, "its peer")
    await soon(lambda: cluster.handles("10.65.0.0/16"), lambda held: "tortie-ready-node2" not in held, "its addresses")
