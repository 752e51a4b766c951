"""The real flanneld and our subnet manager in one Kubernetes cluster: each writes what the other reads.

FLANNELD names its executable. It runs in a namespace that has the API server's double on its loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from flannel_cluster import ACCOUNT, MAC, PREFIX, SPACE, account, node

import namespaces
from flannel_daemons import TORTIE, until
from flannel_nodes import NETWORK, Wire, network_config, subnet_of
from flannel_watched import Watched, soon
from kube_api import KubeApi
from kube_thread import ApiThread
from namespaces import Ns
from tortie.cni.subnet_env import dump
from tortie.flannel import subnet_file
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.manager import Previous, SubnetManager
from tortie.flannel.managers import opened
from tortie.flannel.options import parse
from tortie.flannel.state import External, Place, Site
from tortie.kernel import netns

FLANNELD = os.environ.get("FLANNELD", "")

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not FLANNELD, reason="needs the real flanneld: FLANNELD names its executable"),
]

FOUR, SIX = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
CIDRS = {"n1": ("10.244.1.0/24", "fd00:10:244:1::/64"), "n2": ("10.244.2.0/24", "fd00:10:244:2::/64")}


def net(backend: str, *, six: bool = False) -> str:
    more = {"EnableIPv6": True, "IPv6Network": "fd00:10:244::/48"} if six else {}
    return json.dumps({"Network": "10.244.0.0/16", "EnableNFTables": True, "Backend": {"Type": backend}, **more})


class Cluster:
    """Nodes n1, where flanneld runs, and n2, which is ours, on one machine."""

    def __init__(self, ns: Ns, directory: Path) -> None:
        self.ns, self.directory = ns, directory
        self.api = ApiThread(ns.path, KubeApi(rbac=True, tls=True))
        self.log = directory / "flanneld.log"

    def begin(self, text: str, *, six: bool) -> None:
        (self.directory / "net-conf.json").write_text(text)
        self.api.start()
        for document in (*account(), *(node(name, *CIDRS[name][: 1 + six]) for name in CIDRS)):
            self.api.do(self.api.api.create, document)
        token = self.api.do(self.api.api.service_account_token, SPACE, ACCOUNT)
        self.api.do(self.api.api.kubeconfig, self.directory / "kubeconfig", token=token)

    @property
    def flags(self) -> list[str]:
        files = {"kubeconfig-file": "kubeconfig", "net-config-path": "net-conf.json", "subnet-file": "subnet.env"}
        return ["-kube-subnet-mgr", *(f"-{flag}={self.directory / name}" for flag, name in files.items())]

    @contextlib.contextmanager
    def flanneld(self, *flags: str) -> Iterator[None]:
        with self.log.open("ab") as log:
            words = ["ip", "netns", "exec", self.ns.name, FLANNELD, *self.flags, *flags]
            env = {"PATH": os.environ["PATH"], "NODE_NAME": "n1"}
            running = subprocess.Popen(words, env=env, stdout=log, stderr=log)
        try:
            yield
        finally:
            running.terminate()
            running.wait(20)

    @contextlib.asynccontextmanager
    async def ours(self, name: str = "n2") -> AsyncIterator[SubnetManager]:
        manager = await opened(parse(self.flags, {}), {"NODE_NAME": name})
        try:
            yield manager
        finally:
            await manager.close()

    def node(self, name: str) -> dict[str, Any]:
        return self.api.get("nodes", name)

    def said(self, name: str = "n1") -> dict[str, str]:
        return dict(self.node(name)["metadata"].get("annotations") or {})

    def condition(self, name: str) -> dict[str, str]:
        every = self.node(name)["status"]["conditions"]
        found = next((one for one in every if one["type"] == "NetworkUnavailable"), {})
        return {key: value for key, value in found.items() if not key.startswith("last")}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    for make in namespaces.namespaces():
        ns = make("machine")
        ns.ip("link", "set", "lo", "up")
        ns.ip("link", "add", "eth0", "type", "veth", "peer", "name", "wire")
        for link in ("eth0", "wire"):
            ns.ip("link", "set", link, "up")
        ns.ip("addr", "add", f"{FOUR}/24", "dev", "eth0")
        ns.ip("addr", "add", f"{SIX}/64", "dev", "eth0", "nodad")
        ns.ip("route", "add", "default", "via", "192.0.2.254")
        ns.ip("-6", "route", "add", "default", "via", "2001:db8::fe")
        found = Cluster(ns, tmp_path)
        with netns.entered(ns.path):
            yield found
        found.api.stop()


CASES: dict[str, tuple[bool, Attrs]] = {
    "vxlan": (False, Attrs(FOUR, None, "vxlan", "its")),
    "vxlan, dual": (True, Attrs(FOUR, SIX, "vxlan", "its", "its")),
    "host-gw": (False, Attrs(FOUR, None, "host-gw")),
    "host-gw, dual": (True, Attrs(FOUR, SIX, "host-gw")),
    "alloc": (False, Attrs(FOUR)),
    "alloc, dual": (True, Attrs(FOUR, SIX)),
    "udp": (False, Attrs(FOUR)),
    "udp, dual": (True, Attrs(FOUR, SIX)),
}


@pytest.mark.parametrize("case", CASES)
async def test_annotations_are_the_same(cluster: Cluster, case: str) -> None:
    """What flanneld has written is taken away again, and ours writes it with what it was."""
    six, attrs = CASES[case]
    cluster.begin(net(case.partition(",")[0], six=six), six=six)
    env = cluster.directory / "subnet.env"
    with cluster.flanneld("-ip-masq"):
        await soon(lambda: cluster.condition("n1") and env.exists(), cluster.log.read_text)
    theirs, condition, written = cluster.said(), cluster.condition("n1"), env.read_text()
    data, data6 = theirs.get(f"{PREFIX}backend-data"), theirs.get(f"{PREFIX}backend-v6-data")
    cluster.api.do(cluster.api.api.delete, "nodes", "n1")
    cluster.api.do(cluster.api.api.create, node("n1", *CIDRS["n1"][: 1 + six]))
    async with cluster.ours("n1") as manager:
        config = await manager.network()
        attrs = replace(attrs, data=attrs.data and data, data6=attrs.data6 and data6)
        lease = await manager.acquire(config, attrs, Previous())
        await manager.tell_ready()
        assert cluster.said() == theirs
        assert cluster.condition("n1") == condition
        assert await manager.remembered(Attrs()) == (attrs if attrs.backend_type else Attrs(FOUR))
        mtu = int(written.partition("FLANNEL_MTU=")[2].partition("\n")[0])
        place = Place(Site(config, External("eth0", 2, 1500, FOUR, SIX)), lease)
        assert dump(subnet_file.of(place, mtu, True)) == written


async def test_each_finds_the_other(cluster: Cluster) -> None:
    cluster.begin(net("vxlan", six=True), six=True)
    async with cluster.ours() as manager:
        config = await manager.network()
        attrs = Attrs(IPv4Address("192.0.2.2"), IPv6Address("2001:db8::2"), "vxlan", MAC, MAC)
        watched = Watched(manager, await manager.acquire(config, attrs, Previous()))
        with cluster.flanneld():
            await watched.until("n1")
            found = watched.shown[-1]["n1"]
            assert (found.subnet, found.subnet6) == (IPv4Network(CIDRS["n1"][0]), IPv6Network(CIDRS["n1"][1]))
            assert (found.attrs.public_ip, found.attrs.public_ipv6) == (FOUR, SIX)
            (link,) = cluster.ns.json("link", "show", "dev", "flannel.1")
            assert json.loads(found.attrs.data or "") == {"VNI": 1, "VtepMAC": link["address"]}

            def ways() -> list[Any]:
                every = [*cluster.ns.json("route", "show"), *cluster.ns.json("-6", "route", "show")]
                return [one["dst"] for one in every if one.get("dev", "").startswith("flannel") and "gateway" in one]

            await soon(lambda: set(ways()) == set(CIDRS["n2"]), lambda: f"{ways()}\n{cluster.log.read_text()}")
            heard = cluster.ns.json("neigh", "show", "dev", "flannel.1")
            assert {(one["dst"], one["lladdr"]) for one in heard} == {("10.244.2.0", json.loads(MAC)["VtepMAC"])}
            before = cluster.said()
        with cluster.flanneld():
            await asyncio.sleep(2)
            assert cluster.said() == before, "the MAC address is found again"
        own = await manager.leases()
        assert set(own) == {"n1", "n2"}
        assert own["n2"] == Lease(IPv4Network(CIDRS["n2"][0]), IPv6Network(CIDRS["n2"][1]), attrs, node="n2")
        await watched.close()


async def test_ours_takes_over_from_flanneld(cluster: Cluster) -> None:
    """With a prefix of its own, under which flanneld itself does not find its MAC address again."""
    cluster.begin(net("vxlan"), six=False)
    prefix = "-kube-annotation-prefix=example.com/net"
    with cluster.flanneld(prefix):
        await soon(lambda: "example.com/net-backend-data" in cluster.said(), cluster.log.read_text)
    manager = await opened(parse([*cluster.flags, prefix], {}), {"NODE_NAME": "n1"})
    remembered = await manager.remembered(Attrs())
    assert remembered is not None
    (link,) = cluster.ns.json("link", "show", "dev", "flannel.1")
    assert remembered.data == f'{{"VNI":1,"VtepMAC":"{link["address"]}"}}'
    before = cluster.said()
    await manager.acquire(await manager.network(), remembered, Previous())
    assert cluster.said() == before
    await manager.close()


# --- packets ------------------------------------------------------------------------------------------------------

SERVER = "192.0.2.100"


class Mixed:
    """Node 1 runs flanneld, node 2 `tortie flanneld`, on one wire with the API server, as kube-flannel's account."""

    def __init__(self, wire: Wire, directory: Path, backend: str) -> None:
        self.directory = directory
        self.nodes = {number: wire.node(number, network_config(backend)) for number in (1, 2)}
        wire.ns.ip("address", "add", f"{SERVER}/24", "dev", "wire")
        self.api = ApiThread(wire.ns.path, KubeApi(host=SERVER, rbac=True, tls=True))
        self.api.start()
        document = {"Network": str(NETWORK), "EnableNFTables": True, "Backend": {"Type": backend}}
        (directory / "net-conf.json").write_text(json.dumps(document))
        for one in (*account(), *(node(f"node{number}", str(subnet_of(number))) for number in self.nodes)):
            self.api.do(self.api.api.create, one)
        token = self.api.do(self.api.api.service_account_token, SPACE, ACCOUNT)
        self.api.do(self.api.api.kubeconfig, directory / "kubeconfig", token=token)
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, number: int) -> None:
        files = {"kubeconfig-file": self.directory / "kubeconfig", "net-config-path": self.directory / "net-conf.json"}
        files["subnet-file"] = self.subnet_file(number)
        program = [FLANNELD] if number == 1 else [TORTIE, "flanneld"]
        flags = ["-kube-subnet-mgr", "-iface=eth0", *(f"-{flag}={path}" for flag, path in files.items())]
        words = ["ip", "netns", "exec", self.nodes[number].ns.name, *program, *flags]
        env = {"PATH": os.environ["PATH"], "NODE_NAME": f"node{number}"}
        with self.log(number).open("ab") as log:
            self.running[number] = subprocess.Popen(words, stdin=subprocess.DEVNULL, env=env, stdout=log, stderr=log)

    def subnet_file(self, number: int) -> Path:
        """A daemon writes it when it is ready for pods."""
        return self.directory / str(number) / "subnet.env"

    def log(self, number: int) -> Path:
        return self.directory / f"{number}.log"

    def kill(self, number: int) -> None:
        process = self.running.pop(number)
        process.kill()
        process.wait(20)

    def connected(self) -> None:
        """Pods of both nodes reach one another."""
        one, two = self.nodes.values()
        said = "".join(self.log(number).read_text(errors="replace")[-2000:] for number in self.nodes)
        until(f"pods reach one another: {said}", lambda: one.reaches(two) and two.reaches(one))

    def close(self) -> None:
        for number in list(self.running):
            self.kill(number)
        self.api.stop()


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_128_mixed_cluster(tmp_path: Path, backend: str) -> None:
    for make in namespaces.namespaces():
        mixed = Mixed(Wire(make), tmp_path, backend)
        try:
            for number in mixed.nodes:
                mixed.start(number)
            mixed.connected()
            for number in mixed.nodes:
                mixed.kill(number)
                mixed.connected()
                mixed.subnet_file(number).unlink()
                mixed.start(number)
                until(f"{number} has begun", mixed.subnet_file(number).exists)
                mixed.connected()
        finally:
            mixed.close()
