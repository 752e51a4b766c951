"""With nothing to do nothing is done: by an agent, `tortie proxy`, `tortie controllers` and flanneld, whose counts and
whose announcements of the kernel are looked at from outside. A loop that writes, or that only looks, is seen."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from agent_node import RED, Node, Site, apply, environment, site_in, until
from kube_town import NODE, Cluster
from kube_town import town as kube_town
from overlay_nodes import Town, change_pool

from flannel_daemons import Town as FlannelTown
from flannel_nodes import Wire
from idleness import Watched, revision
from namespaces import Ns, namespaces

pytestmark = pytest.mark.root

MOST, FEW = 25.0, 10.0
"""Wake-ups a second, of an agent and of the others: now it is 12 to 15, and 3. What looks at something over and over
does so ten times a second at least, in several threads."""
OWN = {"a": ("192.0.2.1", "2001:db8::1"), "b": ("192.0.2.2", "2001:db8::2")}
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: red}
spec:
  clusterIP: 10.96.7.7
  clusterIPs: [10.96.7.7, "fd00:96::7"]
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, namespace: red, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.65.9.1], nodeName: b}]
ports: [{port: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-6, namespace: red, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
endpoints: [{addresses: ["fd00:65::9:1"], nodeName: b}]
ports: [{port: 8080}]
"""
POLICIES = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: some, namespace: red}
spec:
  selector: all()
  types: [Ingress, Egress]
  ingress: [{action: Allow, source: {selector: all()}}, {action: Allow, source: {nets: [192.0.2.0/24]}}]
  egress: [{action: Allow}]
---
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default, annotations: {tortie.dev/established-flows: Cut}}
---
"""


def passes(*names: str) -> Callable[[str], dict[str, str]]:
    """Of metrics those of these names, with their labels; only by them it is told how often the kernel is looked at."""

    def of(text: str) -> dict[str, str]:
        found = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(names))
        assert found, text
        return found

    return of


def agents_passes(node: Node) -> dict[str, str]:
    """But for those that look every two seconds whether BIRD is well."""
    read = passes("tortie_passes_total", "felix_int_dataplane_failures_total", "kubeproxy_sync_proxy_rules_duration")
    found = read(node.ask_port(9091, "/metrics")[1])
    return {name: value for name, value in found.items() if "routing" not in name}


def pids_of(node: Node) -> list[int]:
    assert node.process is not None
    return [node.process.pid]


# --- agents -------------------------------------------------------------------------------------------------------


@contextmanager
def overlays(directory: Path, *words: str) -> Iterator[Town]:
    """Two nodes with a pod each, VXLAN for both families, policies and services."""
    spaces = namespaces()
    make = next(spaces)
    try:
        with site_in(directory) as site:
            site.set_up()
            town = Town(site, make)
            for name, (ipv4, ipv6) in OWN.items():
                town.node(name, "--services", "on", *words, ipv4=f"{ipv4}/24", ipv6=f"{ipv6}/64").spawn()
            asyncio.run(_furnish(town))
            for version in (4, 6):
                town.reach("pod-a", "pod-b", version)
            yield town
    finally:
        next(spaces, None)


async def _furnish(town: Town) -> None:
    async with town.site.store() as store:
        for number in (4, 6):
            await change_pool(store, f"pool{number}", vxlan_mode="Always")
        await apply(store, POLICIES + SERVICES)
        for name, node in town.nodes.items():
            await asyncio.to_thread(node.await_ready)
            await town.pod(store, f"pod-{name}", name)


@pytest.mark.parametrize("bgp", [False, True], ids=["alone", "with BIRD"])
def test_an_agent_with_tunnels(tmp_path: Path, bgp: bool) -> None:
    if bgp and shutil.which("bird") is None:
        pytest.skip("needs bird: apt install bird2")
    with overlays(tmp_path, *(() if bgp else ("--no-bgp",))) as town:
        node = town.nodes["a"]
        counts = {"passes": lambda: agents_passes(node), "datastore": revision(town.site.datastore)}
        Watched(node.ns, pids_of(node), counts, [node.run_dir]).rests(MOST)


def test_an_agent_of_kubernetes(tmp_path: Path, make_ns: Callable[..., Ns]) -> None:
    """Who asks now and then whether the cluster is the same still writes nothing, and lists nothing over and over."""
    with kube_town(tmp_path, "--no-bgp", "--services", "on") as place:
        place.node.start()

        async def connect() -> None:
            one = place.sandbox(place.cluster.pod("web"), make_ns("web"))
            await one.add()
            await place.rested()

        until(lambda: place.status()["dataplane"]["enforced"], what="in sync")
        asyncio.run(connect())
        log = place.cluster.api.log
        reads = len(log)
        counts = {"passes": lambda: agents_passes(place.node), "requests": lambda: writes(place.cluster)}
        Watched(place.node.ns, pids_of(place.node), counts, [place.node.run_dir]).rests(MOST)
        assert len(log) - reads < 60, "requests of a minute at most"
        assert place.cluster.get("pods", "web", RED)["spec"]["nodeName"] == NODE


def writes(cluster: Cluster) -> dict[int, str]:
    """All that was asked for but reading, and Leases, which who leads must tell of in time."""
    every = [f"{one.method} {one.path}" for one in cluster.api.log if one.method != "GET" and "/leases" not in one.path]
    return dict(enumerate(every))


# --- the other programs -------------------------------------------------------------------------------------------


@contextmanager
def running(ns: Ns, log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    command = ["nsenter", f"--net={ns.path}", sys.executable, "-m", "tortie.cli.main", *words]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment())
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_in(tmp_path) as site:
        site.set_up()

        async def furnish() -> None:
            async with site.store() as store:
                await apply(store, POLICIES + SERVICES)

        asyncio.run(furnish())
        yield site


def test_a_proxy(site: Site) -> None:
    node = site.node()
    node.ns.ip("address", "add", "192.0.2.1/24", "dev", "lo")
    where = site.directory / "proxy"
    where.mkdir()
    words = ("--datastore", str(site.datastore), "--node", "node1", "--run-dir", str(where), "--services", "on")
    read = passes("kubeproxy_sync_proxy_rules_duration")
    with running(node.ns, where / "log", "proxy", *words) as process:
        until(lambda: "10.96.7.7" in node.ns.run("nft", "list", "ruleset"), what="services are served")
        counts: Mapping[str, Callable[[], Any]] = {
            "passes": lambda: read(node.ask_port(10249, "/metrics")[1]),
            "datastore": revision(site.datastore),
        }
        Watched(node.ns, [process.pid], counts, [where]).rests(FEW)


def test_controllers(site: Site) -> None:
    """Who leads says so in time, in the Lease and in a file: nothing else."""
    node = site.node()
    where = site.directory / "controllers"
    where.mkdir()

    words = ("--datastore", str(site.datastore), "--status-file", str(where / "status.json"))
    with running(node.ns, where / "log", "controllers", *words) as process:
        until(lambda: "leading as" in (where / "log").read_text(), what="it leads")
        watched = Watched(
            node.ns,
            [process.pid],
            {"datastore": revision(site.datastore, "leases")},
            [where],
            ("status.json", "controllers"),
        )
        watched.rests(FEW)


def test_controllers_and_a_proxy_of_kubernetes(tmp_path: Path) -> None:
    with kube_town(tmp_path) as place:
        ns, where = place.node.ns, tmp_path / "programs"
        where.mkdir()
        ns.ip("address", "add", "192.0.2.1/24", "dev", "lo")
        spec = {"clusterIP": "10.96.7.7", "clusterIPs": ["10.96.7.7"], "ports": [{"port": 80, "targetPort": 8080}]}
        place.cluster.create("v1", "Service", "web", RED, spec=spec)
        datastore = ("--datastore", str(place.site.datastore))
        own = ("--node", NODE, "--run-dir", str(where), "--services", "on")
        status = ("--status-file", str(where / "status.json"))
        with (
            running(ns, where / "controllers.log", "controllers", *datastore, *status) as controllers,
            running(ns, where / "proxy.log", "proxy", *datastore, *own) as proxy,
        ):
            until(lambda: "leading as" in (where / "controllers.log").read_text(), what="it leads")
            until(lambda: "10.96.7.7" in ns.run("nft", "list", "ruleset"), what="services are served")
            reads = len(place.cluster.api.log)
            counts = {"requests": lambda: writes(place.cluster)}
            pids = [controllers.pid, proxy.pid]
            Watched(ns, pids, counts, [where], ("status.json", "programs")).rests(MOST)
            assert len(place.cluster.api.log) - reads < 60, "requests of a minute at most"


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_flanneld(tmp_path: Path, make_ns: Callable[..., Ns], backend: str) -> None:
    town = FlannelTown(Wire(make_ns), tmp_path, backend, dual=True)
    try:
        one, two = (town.node(number, "-ip-masq").start() for number in (1, 2))
        one.until_ready().knows(2)
        two.until_ready().knows(1)
        assert one.process is not None
        counts = {"datastore": revision(Path(town.datastore))}
        Watched(one.node.ns, [one.process.pid], counts, [one.directory]).rests(FEW)
    finally:
        town.close()
