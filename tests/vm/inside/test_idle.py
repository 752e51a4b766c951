"""With nothing to do nothing is done, on a stock kernel: an agent with a tunnel of either kind, with flow tables and
services, and flanneld on IP in IP. And what the agent does when somebody changes its flow table."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flannel_daemons import Daemon
from flannel_daemons import Town as FlannelTown
from flannel_daemons import until as flannel_until
from flannel_nodes import Wire
from idleness import Watched, revision
from namespaces import Ns, namespaces
from tortie.agent.client import ask
from tortie.base.addr import parse_ip
from tortie.calc.admission import bootstrap
from tortie.dataplane.attachment import Attachment, attach
from tortie.kernel.netns import entered
from tortie.model.document import parse
from tortie.store import open_store

pytestmark = pytest.mark.root

PATIENCE = 120.0
"""Seconds: a guest is emulated."""
MOST = 25.0
CLUSTER = """
apiVersion: v1
kind: Namespace
metadata: {name: red}
---
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default, annotations: {tortie.dev/flow-tables: Enabled}}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool4}
spec: {cidr: 10.65.0.0/16, ipipMode: Always, vxlanMode: Never, natOutgoing: true}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool6}
spec: {cidr: "fd00:65::/48", vxlanMode: Always, natOutgoing: true}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: b}
spec:
  bgp: {ipv4Address: 192.0.2.2/24, ipv6Address: "2001:db8::2/64", ipv4IPIPTunnelAddr: 10.65.2.1}
  ipv6VXLANTunnelAddr: "fd00:65:0:2::1"
---
apiVersion: projectcalico.org/v3
kind: BlockAffinity
metadata: {name: block4}
spec: {cidr: 10.65.2.0/26, node: b, state: confirmed}
---
apiVersion: projectcalico.org/v3
kind: BlockAffinity
metadata: {name: block6}
spec: {cidr: "fd00:65:0:2::/122", node: b, state: confirmed}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata:
  name: a-k8s-web-eth0
  namespace: red
  labels: {projectcalico.org/namespace: red, projectcalico.org/orchestrator: k8s}
spec:
  {orchestrator: k8s, node: a, pod: web, endpoint: eth0, interfaceName: caliweb, profiles: [kns.red],
   ipNetworks: [10.65.1.7/32, "fd00:65:0:1::7/128"]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: red}
spec: {clusterIP: 10.96.7.7, clusterIPs: [10.96.7.7], ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: red, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.65.1.7], nodeName: a}]
ports: [{port: 8080}]
"""


def until(what: str, holds: Callable[[], object]) -> None:
    flannel_until(what, holds, PATIENCE)


async def furnish(datastore: Path) -> None:
    store = open_store(datastore)
    try:
        for one in (*bootstrap("0" * 32), *parse(CLUSTER)):
            await store.create(one)
    finally:
        await store.close()


@contextmanager
def agent(ns: Ns, directory: Path, datastore: Path) -> Iterator[subprocess.Popen[bytes]]:
    own = ("--node", "a", "--datastore", str(datastore), "--run-dir", str(directory), "--services", "on")
    more = ("--no-bgp", "--no-defaults", "--ipv4", "192.0.2.1/24", "--ipv6", "2001:db8::1/64")
    command = ["nsenter", f"--net={ns.path}", sys.executable, "-m", "tortie.agent", *own, *more]
    with (directory / "agent.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE)


def passes(ns: Ns) -> str:
    with entered(ns.path), urllib.request.urlopen("http://127.0.0.1:9091/metrics", timeout=30) as answer:
        text = answer.read().decode()
    names = "tortie_passes_total|felix_int_dataplane_failures_total|kubeproxy_sync_proxy_rules_duration_seconds_count"
    return "\n".join(re.findall(rf"^(?:{names}).*", text, re.MULTILINE))


@dataclass
class Place:
    ns: Ns
    process: subprocess.Popen[bytes]
    directory: Path
    datastore: Path

    def flow_table(self) -> Any:
        return ask(self.directory / "agent.sock", "/status")["flowTable"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    spaces = namespaces()
    try:
        with placed(next(spaces), tmp_path_factory.mktemp("node")) as place:
            yield place
    finally:
        next(spaces, None)


@contextmanager
def placed(make_ns: Callable[..., Ns], home: Path) -> Iterator[Place]:
    """A node with a pod, and all of it in the kernel."""
    node, other, pod = make_ns("a"), make_ns("b"), make_ns("web")
    node.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", other.name)
    node.batch("address add 192.0.2.1/24 dev eth0", "address add 2001:db8::1/64 dev eth0 nodad", "link set eth0 up")
    other.ip("link", "set", "eth0", "up")
    ips = tuple(map(parse_ip, ("10.65.1.7", "fd00:65:0:1::7")))
    attach(Attachment(pod.path, "eth0", "caliweb", ips, host_netns=node.path))
    directory, datastore = home / "a", home / "store.db"
    directory.mkdir()
    asyncio.run(furnish(datastore))
    with agent(node, directory, datastore) as process:

        def there() -> bool:
            assert process.poll() is None, (directory / "agent.log").read_text()
            rules, routes = node.run("nft", "list", "ruleset"), str(node.json("-4", "route", "show"))
            routes += str(node.json("-6", "route", "show"))
            wanted = "caliweb" in rules and "flowtable" in rules and "10.96.7.7" in rules
            return wanted and "tunl0" in routes and "vxlan-v6.calico" in routes

        until("rules, flow tables, services, both tunnels", there)
        yield Place(node, process, directory, datastore)


def test_an_agent_with_tunnels_of_both_kinds_and_flow_tables(place: Place) -> None:
    counts = {"passes": lambda: passes(place.ns), "datastore": revision(place.datastore)}
    Watched(place.ns, [place.process.pid], counts, [place.directory]).rests(MOST)


LINKS = ["caliweb", "eth0", "tunl0", "vxlan-v6.calico"]
TABLE = ("inet", "tortie-flows")
DAMAGES = (
    "flush chain inet tortie-flows forward",
    "delete table inet tortie-flows",
    "add element inet tortie-flows slow { caliweb }",
    "delete flowtable inet tortie-flows established { hook ingress priority filter; devices = { caliweb }; }",
    "add chain inet tortie-flows somebody",
)


def test_whatever_somebody_does_to_the_flow_table_is_mended_at_once(place: Place) -> None:
    """Long before everything is looked at again, which is after 90 seconds."""

    def listed() -> str:
        return place.ns.run("nft", "-s", "list", "table", *TABLE, check=False)

    until("the table is told of", lambda: place.flow_table()["links"] == LINKS)
    assert place.flow_table() == {"asked": True, "why": "", "links": LINKS, "out": {}}
    whole = listed()
    assert all(link in whole for link in LINKS)
    for damage in DAMAGES:
        began = time.monotonic()
        place.ns.run("nft", damage)
        until(damage, lambda: sorted(listed().split()) == sorted(whole.split()))
        assert time.monotonic() - began < 45, damage


def test_flanneld_with_ipip(make_ns: Callable[..., Ns], tmp_path: Path) -> None:
    town = FlannelTown(Wire(make_ns), tmp_path, "ipip")
    try:
        one, two = (town.node(number).start() for number in (1, 2))

        def knows(daemon: Daemon) -> bool:
            return daemon.is_ready() and any(each["path"] for each in daemon.status()["neighbours"])

        for daemon in (one, two):
            until(f"node {daemon.node.number} has its way", lambda daemon=daemon: knows(daemon))
        assert one.process is not None
        time.sleep(1)
        watched = Watched(
            one.node.ns, [one.process.pid], {"datastore": revision(Path(town.datastore))}, [one.directory]
        )
        watched.rests(MOST)
    finally:
        town.close()
