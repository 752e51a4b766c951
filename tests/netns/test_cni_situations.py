"""What Calico's own tests of its plugin put it through, with a real agent behind the real stub.

 1  host-local, whole pod          test_agent_host_local
 2  then DEL                       test_agent_host_local
 3  port without a protocol        test_agent: test_endpoint_and_allocation_say_whose_they_are
 4  link of that name is there     test_agent: test_link_that_has_the_name_already_is_replaced
 5  MTU file                       test_situation_05_...
 6  two MTUs                       test_situation_06_...
 7  usePodCidr, ADD DEL ADD        test_agent_host_local
 8  ranges and routes              test_agent_host_local
 9  include_default_routes         test_agent_host_local
10  pool of the namespace          test_situation_10_11_15_...
11  pod wins                       test_situation_10_11_15_...
12  pool that is not there         test_situation_12_...
13  pool is full                   test_situation_13_14_...
14  first pool is full             test_situation_13_14_...
15  pool by name                   test_situation_10_11_15_...
16  allowedSourcePrefixes          test_situation_16_...
17  floatingIPs on and off         test_situation_17_18_...
18  floatingIPs, dual stack        test_situation_17_18_...
19  ipAddrsNoIpam                  test_situation_19_...
20  ipAddrsNoIpam refused          test_situation_20_...
21  ipAddrs                        test_situation_21_...
22  ADD X DEL X ADD Y DEL X        test_agent_again: test_stale_delete_after_delete
23  ADD X ADD Y DEL X DEL Y        test_agent_again: test_newest_container_has_the_pod
24  second container               test_agent_again: test_newest_container_has_the_pod
25  host's link renamed            test_situation_25_...
26  eth1; a similar pod            test_agent_again: test_second_interface_name_is_still_the_one_endpoint
27  readiness gates                test_situation_27_...
28  hwAddr                         test_situation_28_...
29  datastore not ready            test_agent_refused: test_datastore_that_is_not_ready_serves_nobody
30  allow_ip_forwarding            test_agent: test_ip_forwarding_is_the_configurations
31  no such dataplane, dead socket test_situation_31_...
32  gRPC yes and no                test_agent_external
33  hostname, nodename             test_situation_33_...
34  ip_addrs_no_ipam, no pod       test_situation_34_...
35  DEL of what was never added    test_agent_again and test_agent_plain: test_delete_whatever_the_namespace
36  second ADD, second network     test_agent_plain: test_second_add_..., test_second_network_...
41  IP= twice, after DEL           test_situation_41_42_...
42  IP= in a pool for tunnels      test_situation_41_42_...
64  status file                    test_situation_64_..., and the name: unit/test_netconf
"""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from agent_node import (
    NETWORK,
    RED,
    Sandbox,
    Site,
    conflist,
    endpoints,
    held,
    ips,
    nothing_left,
    pod,
    pool,
    site_in,
)
from agent_pods import MakeSandbox, refused, sandboxes
from conftest import Ns
from machines import Container, Machine, machine, plain_conflist

from tortie.base.errors import NotFound
from tortie.kernel import netns
from tortie.model.ipam import IPPool
from tortie.model.k8s import Namespace, Pod
from tortie.model.meta import changed
from tortie.model.policy import Profile
from tortie.model.store import Store

pytestmark = pytest.mark.root

ANNOTATION = "cni.projectcalico.org/"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("situations")) as site:
        site.set_up()
        yield site


@pytest.fixture(scope="module")
def node(site: Site) -> Machine:
    node = machine(site, "node1")
    node.start()
    return node


@pytest.fixture
async def sandbox(node: Machine, store: Store, make_ns: Callable[..., Ns]) -> AsyncIterator[MakeSandbox]:
    """As `sandboxes`, with annotations of Calico's."""
    async with sandboxes(node, store, make_ns) as make_pod:

        async def make(name: str, annotations: Mapping[str, str] | None = None, **fields: Any) -> Sandbox:
            named = {ANNOTATION + key: value for key, value in (annotations or {}).items()}
            return await make_pod(name, annotations=named, **fields)

        yield make


def mtu(ns: Ns) -> int:
    (eth0,) = ns.json("link", "show", "dev", "eth0")
    return int(eth0["mtu"])


# --- MTU ----------------------------------------------------------------------------------------------------------


async def test_situation_05_mtu_file(sandbox: MakeSandbox, node: Machine) -> None:
    """The agent notes what it has worked out: for a node without a link that counts, what Calico takes then."""
    one = await sandbox("situation5")
    required = conflist(require_mtu_file=True, mtu=1400)
    strict = await sandbox("situation5-strict", conflist=required)
    file = node.var_lib / "calico" / "mtu"
    assert file.read_text() == "1460\n"
    result = await one.add()
    assert (mtu(one.ns), result["interfaces"][1]["mtu"]) == (1460, 1460)
    file.unlink()
    try:
        await refused(strict, "require_mtu_file: /var/lib/calico/mtu is missing")
        file.write_text("many")
        await refused(await sandbox("situation5-bad", conflist=required), "does not hold a number")
    finally:
        file.write_text("1460\n")
    await strict.add()
    assert mtu(strict.ns) == 1400


async def test_situation_06_each_network_has_its_mtu(sandbox: MakeSandbox) -> None:
    for wanted in (3000, 4000):
        one = await sandbox(f"situation6-{wanted}", conflist=conflist(mtu=wanted))
        await one.add()
        assert mtu(one.ns) == wanted


# --- annotations --------------------------------------------------------------------------------------------------


@pytest.fixture
async def pools(store: Store) -> AsyncIterator[None]:
    """Three pools besides the usual two."""
    names = {"pool-a": ("172.16.0.0/16", 26), "pool-b": ("172.20.0.0/16", 26), "small": ("172.30.0.0/28", 28)}
    for name, (cidr, size) in names.items():
        await store.create(pool(name, cidr, size))
    yield
    for name in names:
        await store.delete(IPPool, name)


async def annotate_namespace(store: Store, **annotations: str) -> None:
    red = await store.get(Namespace, RED)
    await store.update(changed(red, annotations={ANNOTATION + key: value for key, value in annotations.items()}))


@pytest.mark.usefixtures("pools")
async def test_situation_10_11_15_pools_of_namespace_and_pod(sandbox: MakeSandbox, store: Store) -> None:
    await annotate_namespace(store, ipv4pools='["172.16.0.0/16"]')
    try:
        one = await sandbox("situation10")
        assert ips(await one.add())[0].startswith("172.16.")
        for name, value in (("cidr", '["172.20.0.0/16"]'), ("name", '["pool-b"]')):
            one = await sandbox(f"situation11-{name}", annotations={"ipv4pools": value})
            assert ips(await one.add())[0].startswith("172.20.")
    finally:
        await annotate_namespace(store)


async def test_situation_12_pool_that_is_not_there(sandbox: MakeSandbox, node: Machine, store: Store) -> None:
    one = await sandbox("situation12", annotations={"ipv4pools": '["100.0.0.0/16"]'})
    await refused(one, r"100\.0\.0\.0/16\) does not exist")
    await one.delete()
    await nothing_left(node, store)


@pytest.mark.usefixtures("pools")
async def test_situation_13_14_full_pools(sandbox: MakeSandbox) -> None:
    both = '["172.30.0.0/28", "pool-a"]'
    first = [await sandbox(f"small-{i}", annotations={"ipv4pools": '["small"]'}) for i in range(16)]
    for one in first:
        assert ips(await one.add())[0].startswith("172.30.0.")
    one = await sandbox("situation13", annotations={"ipv4pools": '["172.30.0.0/28"]'})
    await refused(one, "failed to request IPv4 addresses")
    one = await sandbox("situation14", annotations={"ipv4pools": both})
    assert ips(await one.add())[0].startswith("172.16.")


async def test_situation_16_allowed_source_prefixes(sandbox: MakeSandbox, store: Store) -> None:
    one = await sandbox("situation16", annotations={"allowedSourcePrefixes": '["8.8.8.8/32", "1.1.1.0/24"]'})
    await one.add()
    endpoint = (await endpoints(store))["situation16"]
    assert endpoint.spec.allow_spoofed_source_prefixes == ("8.8.8.8/32", "1.1.1.0/24")


async def test_situation_17_18_floating_ips(sandbox: MakeSandbox, node: Machine, store: Store) -> None:
    annotations = {"floatingIPs": '["1.1.1.1", "2001:db8::1"]'}
    on = conflist(feature_control={"floating_ips": True})
    one = await sandbox("situation17", annotations=annotations)
    await refused(one, "requested feature is not enabled: floating_ips")
    assert await endpoints(store) == {}
    await one.delete()
    one = await sandbox("situation17", conflist=on)
    v4, v6 = ips(await one.add())
    nats = (await endpoints(store))["situation17"].spec.ip_nats
    assert [(nat.external_ip, nat.internal_ip) for nat in nats] == [("1.1.1.1", v4), ("2001:db8::1", v6)]


async def test_situation_19_addresses_outside_ipam(sandbox: MakeSandbox, store: Store) -> None:
    on = conflist(feature_control={"ip_addrs_no_ipam": True})
    one = await sandbox("situation19", conflist=on, annotations={"ipAddrsNoIpam": '["10.0.0.1", "fd00:1::1"]'})
    result = await one.add()
    assert ips(result) == ["10.0.0.1", "fd00:1::1"]
    assert "routes" not in result
    assert await held(store) == {}
    await one.check()
    await one.delete()


@pytest.mark.parametrize(
    ("on", "value", "says"),
    [
        (False, '["10.0.0.1"]', "requested feature is not enabled: ip_addrs_no_ipam"),
        (True, '["10.0.0.1", "10.0.0.2"]', "more than one IPv4 address"),
        (True, "[]", "the list is empty"),
        (True, "10.0.0.1", "is not a JSON list"),
    ],
)
async def test_situation_20_addresses_outside_ipam_refused(
    sandbox: MakeSandbox, on: bool, value: str, says: str
) -> None:
    one = await sandbox(
        "situation20",
        conflist=conflist(feature_control={"ip_addrs_no_ipam": on}),
        annotations={"ipAddrsNoIpam": value},
    )
    await refused(one, says)


async def test_situation_21_the_very_address(sandbox: MakeSandbox, store: Store) -> None:
    await store.create(pool("twenty", "20.0.0.0/24"))
    try:
        one = await sandbox("situation21", annotations={"ipAddrs": '["20.0.0.111"]'})
        assert ips(await one.add()) == ["20.0.0.111"]
        assert await held(store) == {f"{NETWORK}.{one.container_id}": {"20.0.0.111"}}
        # Attached again it has it again.
        again = await sandbox("situation21")
        assert ips(await again.add()) == ["20.0.0.111"]
        other = await sandbox("situation21-local", annotations={"ipAddrs": '["20.0.0.111"]'})
        other.conflist = conflist(ipam={"type": "host-local", "subnet": "10.0.0.0/8"})
        await refused(other, 'needs ipam.type "calico-ipam", and it is "host-local"')
        other.conflist = conflist()
        for each in (one, again):
            await each.delete()
    finally:
        await store.delete(IPPool, "twenty")


async def test_situation_28_mac_address(sandbox: MakeSandbox) -> None:
    one = await sandbox("situation28", annotations={"hwAddr": "ca:fe:ca:fe:ca:fe"})
    result = await one.add()
    assert result["interfaces"][1]["mac"] == "ca:fe:ca:fe:ca:fe"
    assert one.ns.json("link", "show", "dev", "eth0")[0]["address"] == "ca:fe:ca:fe:ca:fe"
    await refused(await sandbox("situation28-bad", annotations={"hwAddr": "garbage"}), "is not a MAC address")


# --- the rest -----------------------------------------------------------------------------------------------------


async def test_situation_25_link_of_the_host_renamed(sandbox: MakeSandbox, node: Machine, store: Store) -> None:
    """The interface in the pod is still there, so that it cannot be made: what is allocated stays."""
    one = await sandbox("situation25")
    got = ips(await one.add())
    node.ns.ip("link", "set", one.host_ifname, "down")
    node.ns.ip("link", "set", one.host_ifname, "name", "renamed")
    await refused(one, "File exists")
    assert await held(store) == {f"{NETWORK}.{one.container_id}": set(got)}


async def test_situation_27_readiness_gates(sandbox: MakeSandbox, node: Machine) -> None:
    asked: list[str] = []

    class Gate(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(503 if len(asked) == 1 else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with netns.entered(node.ns.path):
        server = HTTPServer(("127.0.0.1", 0), Gate)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/ready"
        one = await sandbox("situation27", conflist=conflist(readiness_gates=url))
        await refused(one, "readiness_gates must be a list of strings")
        assert asked == []
        one.conflist = conflist(readiness_gates=[url, url])
        await one.add()
        assert asked == ["/ready"] * 3  # not ready, ready, and the second gate
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"type": "invalid-dataplane-type"}, "invalid dataplane type"),
        ({"type": "grpc"}, "socket not configured"),
        ({"type": "grpc", "socket": "unix:///nowhere/vpp.sock"}, "cannot be reached"),
    ],
)
async def test_situation_31_dataplane_that_is_none(
    sandbox: MakeSandbox, node: Machine, store: Store, options: dict[str, str], says: str
) -> None:
    one = await sandbox("situation31", conflist=conflist(dataplane_options=options))
    await refused(one, says)
    one.conflist = conflist()
    await nothing_left(node, store)


async def test_situation_33_names_of_the_node(node: Machine, store: Store, make_ns: Callable[..., Ns]) -> None:
    """The agent knows which node it is; a configuration of another one is served and said to be."""
    for named, as_said in (
        ({"hostname": "node1"}, True),
        ({"hostname": "elsewhere", "nodename": "node1"}, True),
        ({"nodename": "elsewhere"}, False),
    ):
        one = Container(node, ns=make_ns("named"), conflist=plain_conflist(**named))
        await one.add()
        assert (await one.endpoint(store)).spec.node == "node1"
        await one.delete()
        said = [text for text in node.messages() if 'names node "elsewhere"' in text]
        assert bool(said) is not as_said
    await store.delete(Profile, "plainnet")


async def test_situation_34_addresses_outside_ipam_are_for_pods(node: Machine, make_ns: Callable[..., Ns]) -> None:
    one = Container(node, ns=make_ns("c"), conflist=plain_conflist(feature_control={"ip_addrs_no_ipam": True}))
    await refused(one, "ip_addrs_no_ipam: is for Kubernetes pods")
    await one.delete()


@pytest.mark.parametrize("plain", [False, True])
async def test_situation_41_42_address_of_the_callers_choice(
    node: Machine, store: Store, make_ns: Callable[..., Ns], plain: bool
) -> None:
    await store.create(pool("tunnels", "192.168.7.0/24", allowed_uses=("Tunnel",)))
    await store.create(pool("chosen", "192.168.123.0/24"))
    await store.create(pod("chooser"))

    def asking(ip: str) -> Sandbox:
        class Asking(Container if plain else Sandbox):  # type: ignore[misc]
            @property
            def where(self) -> dict[str, Any]:
                found: dict[str, Any] = super().where
                return found | {"args": {**found["args"], "IP": ip}}

        if plain:
            return Asking(node, ns=make_ns("c"), conflist=plain_conflist())
        return Asking(node, "chooser", make_ns("c"))

    try:
        first, second = asking("192.168.123.123"), asking("192.168.123.123")
        assert ips(await first.add()) == ["192.168.123.123"]
        await refused(second, r"192\.168\.123\.123")
        await first.check()
        await first.delete()
        assert ips(await second.add()) == ["192.168.123.123"]
        await second.delete()
        for ip, says in (("192.168.7.7", r"192\.168\.7\.7"), ("1.1.1.1", "1.1.1.1"), ("nonsense", "nonsense")):
            await refused(asking(ip), says)
    finally:
        await store.delete(Pod, "chooser", RED)
        for name in ("tunnels", "chosen"):
            await store.delete(IPPool, name)
        with suppress(NotFound):
            await store.delete(Profile, "plainnet")
    await nothing_left(node, store)


async def test_situation_64_status_file(sandbox: MakeSandbox, node: Machine) -> None:
    directory = node.site.directory / "status"
    one = await sandbox("situation64", conflist=conflist(endpoint_status_dir=str(directory)))
    result = await one.add()
    file = directory / "k8s red%2Fsituation64 eth0"
    assert [path.name for path in directory.iterdir()] == [file.name]
    v4, v6 = ips(result)
    assert json.loads(file.read_text()) == {
        "ifaceName": one.host_ifname,
        "mac": result["interfaces"][1]["mac"],
        "ipv4Nets": [f"{v4}/32"],
        "ipv6Nets": [f"{v6}/128"],
    }
    await one.delete()
    assert list(directory.iterdir()) == []
    one.conflist = conflist(policy_setup_timeout_seconds=-1)
    await refused(one, "policy_setup_timeout_seconds: -1 is negative")
    one.conflist = conflist()


# --- settings that no situation names -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["", "veth", "netkit"])
async def test_device_type(sandbox: MakeSandbox, node: Machine, kind: str) -> None:
    """A kernel without netkit gives a veth, which is what happens on most."""
    one = await sandbox("device", conflist=conflist(device_type=kind, num_queues=2, mtu=1400))
    await one.add()
    (host,) = node.ns.json("link", "show", "dev", one.host_ifname)
    (inside,) = one.ns.json("link", "show", "dev", "eth0")
    has_netkit = host["linkinfo"]["info_kind"] == "netkit"
    assert host["linkinfo"]["info_kind"] == inside["linkinfo"]["info_kind"]
    if kind != "netkit":
        assert not has_netkit
    elif not has_netkit:
        assert any("this kernel has no netkit" in text for text in node.messages())
    assert (host["address"], host["mtu"], inside["mtu"]) == ("ee:ee:ee:ee:ee:ee", 1400, 1400)
    assert (host["num_tx_queues"], inside["num_rx_queues"]) == (2, 2)
    await one.check()
    other = await sandbox("no-device", conflist=conflist(device_type="macvlan"))
    await refused(other, 'device_type: "macvlan" is not known')
    other.conflist = conflist()


async def test_calls_are_logged_where_the_network_says(sandbox: MakeSandbox, node: Machine) -> None:
    file = node.site.directory / "log" / "cni" / "calls.log"
    settings = {"log_file_path": str(file), "log_level": "DEBUG"}
    one = await sandbox("logged", conflist=conflist(**settings))
    await one.add()
    await refused(await sandbox("logged-bad", conflist=conflist(**settings, mtu=10**6)), "mtu|Invalid|ip link add")
    text = file.read_text()
    assert f"[INFO] ADD {NETWORK} {one.container_id}: ADD red/logged: " in text
    assert "[DEBUG]" in text
    assert "ip link add eth0" in text
    assert "[ERROR]" in text
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o644, 0o755)
    assert not any("link add eth0 mtu" in line for line in node.log.splitlines() if '"debug"' in line)
    quiet = await sandbox("quiet", conflist=conflist(log_file_path="/proc/nowhere/calls.log"))
    await quiet.add()  # a log that cannot be written is no reason to refuse a pod
    assert any("log_file_path: /proc/nowhere/calls.log" in text for text in node.messages())
