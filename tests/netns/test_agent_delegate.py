"""Addresses from a plugin that the agent runs: every verb reaches it, and what it says reaches the runtime.

The plugin is a shell script, so that it can be made to say anything. It notes each call.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from agent_node import NETWORK, Node, Sandbox, Site, conflist, endpoints, ips, nothing_left, site_in
from agent_pods import MakeSandbox, code, sandboxes
from conftest import Ns
from machines import Container, plain_conflist

from tortie.cni.conflist import ConfList
from tortie.cni.runtime import Runtime
from tortie.cni.spec import CniError
from tortie.model.policy import Profile
from tortie.model.store import Store

pytestmark = pytest.mark.root

SCRIPT = """#!/bin/sh
conf=$(cat)
printf '%s %s %s %s\\n' "$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_IFNAME" "$CNI_ARGS" >> {directory}/calls
printf '%s' "$conf" > {directory}/stdin
ip -o link show lo > /dev/null && readlink /proc/self/ns/net > {directory}/netns
if [ -e {directory}/fails.$CNI_COMMAND ]; then cat {directory}/fails.$CNI_COMMAND; exit 1; fi
if [ "$CNI_COMMAND" = ADD ]; then cat {directory}/answer; fi
"""
ANSWER = {
    "cniVersion": "1.0.0",
    "ips": [{"address": "10.9.0.7/16", "gateway": "10.9.0.1"}, {"address": "fd00:9::7/64"}],
    "routes": [{"dst": "10.8.0.0/16", "gw": "10.9.0.1"}],
    "dns": {"nameservers": ["10.9.0.53"]},
}


@dataclass
class Plugin:
    """The script `fixed-ipam`, and what it has been asked."""

    directory: Path
    before: int = field(default=0)

    def install(self) -> None:
        script = self.directory / "fixed-ipam"
        script.write_text(SCRIPT.format(directory=self.directory))
        script.chmod(0o755)

    def answers(self, answer: Any) -> None:
        (self.directory / "answer").write_text(answer if isinstance(answer, str) else json.dumps(answer))

    def fails(self, command: str, answer: str | None) -> None:
        file = self.directory / f"fails.{command}"
        if answer is None:
            file.unlink()
        else:
            file.write_text(answer)

    def calls(self) -> list[list[str]]:
        """Those since the last time that somebody asked."""
        file = self.directory / "calls"
        every = file.read_text().splitlines() if file.exists() else []
        new, self.before = every[self.before :], len(every)
        return [line.split(" ") for line in new]


@dataclass
class NodeWithPlugin(Node):
    plugins: str = ""

    def runtime(self, **environment: str) -> Runtime:
        made = super().runtime(**environment)
        made.path = (*made.path, self.plugins)
        return made


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("delegate")) as site:
        site.set_up()
        yield site


@pytest.fixture(scope="module")
def node(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Node:
    made = site.node("node1", "--no-bgp")
    site.nodes[-1] = found = NodeWithPlugin(site, "node1", made.ns, made.words)
    found.plugins = str(tmp_path_factory.mktemp("plugins"))
    return found.start()


@pytest.fixture
def plugin(node: NodeWithPlugin) -> Plugin:
    made = Plugin(Path(node.plugins))
    made.install()
    made.answers(ANSWER)
    made.calls()
    return made


@pytest.fixture
async def sandbox(node: Node, store: Store, plugin: Plugin, make_ns: Callable[..., Ns]) -> AsyncIterator[MakeSandbox]:
    async with sandboxes(node, store, make_ns) as make:
        yield make


def fixed(version: str = "1.0.0", **more: Any) -> ConfList:
    return conflist(version, ipam={"type": "fixed-ipam", "own": "member"}, **more)


async def test_its_answer_is_what_the_pod_gets(sandbox: MakeSandbox, plugin: Plugin, node: Node, store: Store) -> None:
    one: Sandbox = await sandbox("fixed", conflist=fixed())
    result = await one.add()
    assert result["ips"] == [{"interface": 1, "address": "10.9.0.7/32"}, {"interface": 1, "address": "fd00:9::7/128"}]
    assert (result["routes"], result["dns"]) == (ANSWER["routes"], ANSWER["dns"])
    (asked,) = plugin.calls()
    assert asked[:3] == ["ADD", one.container_id, "eth0"]
    assert {"K8S_POD_NAMESPACE=red", "K8S_POD_NAME=fixed"} <= set(asked[3].split(";"))
    told = json.loads((plugin.directory / "stdin").read_text())
    assert (told["name"], told["type"]) == (NETWORK, "calico")
    assert told["ipam"] == {"type": "fixed-ipam", "own": "member", "assign_ipv4": "true", "assign_ipv6": "true"}
    inode = node.ns.run("readlink", "/proc/self/ns/net")
    assert (plugin.directory / "netns").read_text() == inode
    assert (await endpoints(store))["fixed"].spec.ip_networks == ("10.9.0.7/32", "fd00:9::7/128")
    await one.check()
    await one.delete()
    assert [asked[0] for asked in plugin.calls()] == ["CHECK", "DEL"]


ERROR = '{"code": 114, "msg": "no more addresses", "details": "of this kind"}'


@pytest.mark.parametrize("plain", [False, True])
async def test_its_errors_are_passed_on_and_leave_nothing(
    sandbox: MakeSandbox, plugin: Plugin, node: Node, store: Store, make_ns: Callable[..., Ns], plain: bool
) -> None:
    one = Container(node, ns=make_ns("c"), conflist=plain_conflist(ipam={"type": "fixed-ipam"}))
    if not plain:
        one = await sandbox("error", conflist=fixed())
    plugin.fails("ADD", ERROR)
    with pytest.raises(CniError, match="no more addresses; of this kind") as error:
        await one.add()
    assert code(error) == 114
    plugin.fails("ADD", None)
    await nothing_left(node, store)
    await one.add()
    for verb in ("CHECK", "DEL"):
        plugin.fails(verb, ERROR)
        with pytest.raises(CniError, match="no more addresses") as error:
            await (one.check() if verb == "CHECK" else one.delete())
        assert code(error) == 114
        plugin.fails(verb, None)
    assert node.links() == set()  # DEL had taken the rest away, and is said again
    await one.delete()
    await nothing_left(node, store)
    if plain:
        await store.delete(Profile, "plainnet")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"cniVersion": "1.0.0"}, "IPAM plugin fixed-ipam returned no IP addresses"),
        ("not JSON", "cannot decode the result of fixed-ipam"),
        ({"cniVersion": "1.0.0", "ips": "many"}, "cannot decode result"),
        ({"cniVersion": "1.0.0", "ips": [{"address": "nowhere/8"}]}, '"nowhere" is not an IP address'),
    ],
)
async def test_an_answer_that_is_none_is_taken_back(
    sandbox: MakeSandbox, plugin: Plugin, node: Node, store: Store, answer: Any, says: str
) -> None:
    plugin.answers(answer)
    one = await sandbox("nothing", conflist=fixed())
    with pytest.raises(CniError, match=says) as error:
        await one.add()
    code(error)
    assert [asked[0] for asked in plugin.calls()] == ["ADD", "DEL"]
    await nothing_left(node, store)


async def test_failure_after_it_gives_the_address_back(sandbox: MakeSandbox, plugin: Plugin) -> None:
    one = await sandbox("late", conflist=fixed(), ifname="lo")
    with pytest.raises(CniError, match="File exists"):
        await one.add()
    assert [asked[:3] for asked in plugin.calls()] == [[verb, one.container_id, "lo"] for verb in ("ADD", "DEL")]


async def test_status_and_gc_reach_it(sandbox: MakeSandbox, plugin: Plugin, node: Node, site: Site) -> None:
    """GC says DEL for each container that is not valid; another network's containers are not looked at."""
    plugin.answers(ANSWER | {"cniVersion": "1.1.0"})
    network, other = fixed("1.1.0"), fixed("1.1.0", name="other")
    kept, lost = await sandbox("kept", conflist=network), await sandbox("lost", conflist=network)
    elsewhere = await sandbox("elsewhere", conflist=other)
    await node.runtime().status(network)
    assert [asked[0] for asked in plugin.calls()] == ["STATUS"]
    for one in (kept, lost, elsewhere):
        await one.add()
    plugin.calls()
    for file in (site.directory / "cache-node1" / "results").iterdir():
        file.unlink()
    await node.runtime().gc(network, [(kept.container_id, "eth0")])
    assert [asked[:3] for asked in plugin.calls()] == [["DEL", lost.container_id, "eth0"], ["GC", "", ""]]
    assert node.links() == {kept.host_ifname, elsewhere.host_ifname}
    plugin.fails("STATUS", '{"code": 50, "msg": "out of order"}')
    with pytest.raises(CniError, match="out of order") as error:
        await node.runtime().status(network)
    assert code(error) == 50
    plugin.fails("STATUS", None)
    assert ips(await kept.add()) == ["10.9.0.7", "fd00:9::7"]
