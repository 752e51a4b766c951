"""host-local as the IPAM of `calico`: its addresses, this node's pod CIDRs, and routes of the user's choice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from agent_node import NETWORK, RED, Site, conflist, endpoints, ips, nothing_left, site_in
from agent_pods import MakeSandbox, refused, sandboxes
from conftest import Ns
from machines import Container, Machine, machine, needs_host_local, plain_conflist

from tortie.cni.conflist import ConfList
from tortie.model.k8s import K8sNode, K8sNodeSpec
from tortie.model.meta import Metadata, changed
from tortie.model.policy import Profile
from tortie.model.store import Store

pytestmark = [pytest.mark.root, needs_host_local]

GATEWAY4, GATEWAY6 = "169.254.1.1", "fe80::ecee:eeff:feee:eeee"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("host-local")) as site:
        site.set_up()
        spec = K8sNodeSpec(pod_cidrs=("10.77.0.0/24", "fd00:77::/64"))
        site.write(K8sNode(metadata=Metadata(name="node1"), spec=spec))
        yield site


@pytest.fixture(scope="module")
def node(site: Site) -> Machine:
    node = machine(site, "node1")
    node.start()
    return node


@pytest.fixture
async def sandbox(node: Machine, store: Store, make_ns: Callable[..., Ns]) -> AsyncIterator[MakeSandbox]:
    async with sandboxes(node, store, make_ns) as make:
        yield make
    assert reserved(node) == set()


def host_local(version: str = "1.0.0", ipam: dict[str, Any] | None = None, **more: Any) -> ConfList:
    return conflist(version, ipam={"type": "host-local", **(ipam or {})}, **more)


def reserved(node: Machine, network: str = NETWORK) -> set[str]:
    """The addresses that host-local keeps for containers."""
    directory = node.var_lib / "cni" / "networks" / network
    names = {file.name for file in directory.iterdir()} if directory.exists() else set()
    return {name for name in names if name != "lock" and not name.startswith("last_reserved")}


def routes(ns: Ns, version: int) -> set[str]:
    every = ns.json(f"-{version}", "route", "show", "dev", "eth0")
    return {f"{one['dst']} via {one.get('gateway', '-')}" for one in every if one["protocol"] != "kernel"}


async def test_situation_01_02_pod_with_an_address_of_host_local(
    sandbox: MakeSandbox, node: Machine, store: Store
) -> None:
    one = await sandbox("situation1", conflist=host_local(ipam={"subnet": "10.0.0.0/8"}))
    result = await one.add()
    (ip,) = ips(result)
    assert result["ips"] == [{"interface": 1, "address": f"{ip}/32"}]
    assert reserved(node) == {ip}
    endpoint = (await endpoints(store))["situation1"]
    assert endpoint.labels == {
        "projectcalico.org/namespace": RED,
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "default",
    }
    assert endpoint.spec.profiles == (f"kns.{RED}", f"ksa.{RED}.default")
    assert endpoint.spec.ip_networks == (f"{ip}/32",)
    assert routes(one.ns, 4) == {f"default via {GATEWAY4}", f"{GATEWAY4} via -"}
    (host,) = node.ns.json("link", "show", "dev", one.host_ifname)
    assert "UP" in host["flags"]
    assert host["mtu"] == 1460  # of a node without a link that counts
    for key, value in (("conf", "proxy_arp=1"), ("neigh", "proxy_delay=0"), ("conf", "forwarding=1")):
        name, _, wanted = value.partition("=")
        found = node.ns.run("sysctl", "-n", f"net.ipv4.{key}.{one.host_ifname}.{name}").strip()
        assert (name, found) == (name, wanted)
    (route,) = node.ns.json("route", "show", "dev", one.host_ifname)
    assert (route["dst"], route["scope"]) == (ip, "link")
    await one.check()
    for _ in range(2):
        await one.delete()
        assert [link["ifname"] for link in one.ns.json("link", "show")] == ["lo"]
        await nothing_left(node, store)
        assert reserved(node) == set()


async def test_situation_07_pod_cidr(sandbox: MakeSandbox) -> None:
    one = await sandbox("situation7", conflist=host_local(ipam={"subnet": "usePodCidr"}))
    for _ in range(2):
        (ip,) = ips(await one.add())
        assert ip.startswith("10.77.0.")
        assert routes(one.ns, 4) == {f"default via {GATEWAY4}", f"{GATEWAY4} via -"}
        await one.check()
        await one.delete()


RANGES = {
    "ranges": [
        [{"subnet": "UsePodCIDR"}],
        [{"subnet": "10.100.0.0/24"}],
        [{"subnet": "dead:beef::/96"}],
    ],
    "routes": [
        {"dst": "10.123.0.0/16", "gw": "10.123.0.1"},
        {"dst": "10.124.0.0/16"},
        {"dst": "dead:beef::/96"},
    ],
}


@pytest.mark.parametrize("defaults", [False, True])
async def test_situation_08_09_ranges_and_routes(sandbox: MakeSandbox, node: Machine, defaults: bool) -> None:
    one = await sandbox("situation8", conflist=host_local("0.3.1", ipam=RANGES, include_default_routes=defaults))
    got = ips(await one.add())
    assert [ip.rpartition("." if "." in ip else ":")[0] for ip in got] == ["10.77.0", "10.100.0", "dead:beef:"]
    more4, more6 = ({f"default via {GATEWAY4}"}, {f"default via {GATEWAY6}"}) if defaults else (set(), set())
    assert routes(one.ns, 4) == more4 | {
        f"{GATEWAY4} via -",
        f"10.123.0.0/16 via {GATEWAY4}",
        f"10.124.0.0/16 via {GATEWAY4}",
    }
    assert routes(one.ns, 6) == more6 | {f"dead:beef::/96 via {GATEWAY6}"}
    assert reserved(node) == set(got)


async def test_node_that_has_gone_does_not_hold_up_delete(sandbox: MakeSandbox, node: Machine, store: Store) -> None:
    one = await sandbox("gone", conflist=host_local(ipam={"subnet": "usePodCidr"}))
    await one.add()
    old = await store.delete(K8sNode, "node1")
    try:
        again = await sandbox("gone2", conflist=one.conflist)
        assert "Node node1 is not in the datastore" in (await refused(again, "pod CIDR")).msg
        await one.delete()
        assert reserved(node) == set()
    finally:
        await store.create(changed(old, resource_version=""))


async def test_plugins_own_error_is_passed_on(sandbox: MakeSandbox, node: Machine, store: Store) -> None:
    """With its code and message; and it can be repeated."""
    one = await sandbox("own-error", conflist=host_local(ipam={"subnet": "10.0.0.0/32"}))
    error = await refused(one, "too small to allocate")
    assert error.code == 999
    other = await sandbox("nobody", conflist=conflist(ipam={"type": "no-such-ipam"}))
    await refused(other, 'failed to find plugin "no-such-ipam" in path')
    one.conflist = other.conflist = conflist()
    await nothing_left(node, store)


async def test_failure_after_host_local_gives_the_address_back(sandbox: MakeSandbox, node: Machine) -> None:
    one = await sandbox("given-back", conflist=host_local(ipam={"subnet": "10.0.0.0/8"}), ifname="lo")
    await refused(one, "File exists")
    assert reserved(node) == set()


async def test_dual_stack_of_host_local_without_a_pod(node: Machine, store: Store, make_ns: Callable[..., Ns]) -> None:
    ipam = {"type": "host-local", "ranges": [[{"subnet": "usePodCidr"}], [{"subnet": "usePodCidrIPv6"}]]}
    one = Container(node, ns=make_ns("plain"), conflist=plain_conflist(ipam=ipam))
    got = ips(await one.add())
    assert [ip.rpartition("." if "." in ip else ":")[0] for ip in got] == ["10.77.0", "fd00:77:"]
    assert reserved(node, "plainnet") == set(got)
    await one.check()
    assert ips(await one.add()) == got
    await one.delete()
    assert reserved(node, "plainnet") == set()
    await store.delete(Profile, "plainnet")
    await nothing_left(node, store)
