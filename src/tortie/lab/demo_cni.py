"""The tour through a lab whose pods are connected by CNI plugins alone: `tortie lab demo --cni NETWORK`."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tortie.lab import cluster, map_text, network
from tortie.lab.guide import PATIENCE, Guide, demand, pods_of
from tortie.lab.networks import blueprint_of, networks
from tortie.lab.places import opened
from tortie.lab.podspec import key_of
from tortie.lab.topology import laid_out
from tortie.model.k8s import Pod

NAME = "democni"
EXAMPLES = Path(__file__).parents[3] / "examples" / "networks"
PODS = "pods.yaml"
FIRST = "default/pod1"
SAME_MAC = "ipvlan"
"""The plugin whose pods have the MAC address of their node."""


class CniTour(Guide):
    """The lab `democni`, on one of the built-in networks."""

    def __init__(self, console: Console, cni: str, plugins: str = "") -> None:
        super().__init__(console, laid_out(NAME, blueprint_of(cni, plugins=plugins)), EXAMPLES)
        self.cni = cni

    async def take(self) -> None:
        """The whole tour; the lab is still there afterwards."""
        await self.bring_up()
        await self.look_at_pods()
        await self.measure("who reaches whom: packets do what the configuration says")
        await self.reach_outside()
        await self.add_pods()
        await self.draw()
        await self.delete_pods()

    # --- the stations -----------------------------------------------------------------------------------------------

    async def bring_up(self) -> None:
        self.title(f"Three nodes on one LAN, each with its own file in net.d: {self.cni}, and no agent")
        self.say(f"$ tortie lab up --name {NAME} --cni {self.cni}")
        with self.check("the nodes are up, and a pod runs on each", vital=True):
            await cluster.up(self.lab, self.directory, self.steps)
        first = self.lab.nodes[0].name
        for file in self.directory.net_d(first).iterdir():
            self.say(f"{first}: /etc/cni/net.d/{file.name}\n{file.read_text().rstrip()}")

    async def look_at_pods(self) -> None:
        self.title("What the plugins made of it")
        own = networks(self.lab)
        for node in self.lab.nodes:
            pod = f"default/pod{node.name.removeprefix('node')}"
            with self.check(f"{pod} has an address of {node.name}'s range"):
                (link,) = json.loads(
                    await self.tortie("lab", "exec", pod, "--", "ip", "-j", "-4", "address", "show", "eth0")
                )
                address = ip_address(link["addr_info"][0]["local"])
                ranges = own[node.name].ranges
                demand(any(int(first) <= int(address) <= int(last) for first, last in ranges), f"it has {address}")
            self.say(f"{address}, of {own[node.name]}")
        same = own[self.lab.nodes[0].name].type == SAME_MAC
        with self.check(f"its MAC address is {'its node’s' if same else 'its own'}"):
            macs = [await self._mac(where) for where in (FIRST, "node:node1")]
            demand((macs[0] == macs[1]) is same, f"pod {macs[0]}, node {macs[1]}")
        self.say(f"{FIRST} {macs[0]}, node1 {macs[1]}")

    async def measure(self, words: str) -> None:
        with self.check(words, vital=True):
            found = await self.settled(4)
            wrong = [" to ".join(pair) for pair in found.disagreements]
            demand(not wrong, "; ".join(wrong[:3]))
        self.show_matrix(found)

    async def reach_outside(self) -> None:
        self.title("Beyond the gateway: nothing translates addresses")
        pod = await self._pod("pod1")
        with self.check("the outside host sees the pod's own address"):
            said = await self.tortie("lab", "exec", FIRST, "--", "busybox", "wget", "-qO-", "http://198.51.100.9/")
            demand(f"saw {pod.status.pod_ip} " in said, said)
            self.say(said.rstrip())

    async def add_pods(self) -> None:
        self.title("More pods: the runtime calls the plugins, nobody else is asked")
        with self.check(f"{PODS} is applied and its pods run", vital=True):
            await self.tortie("apply", "-f", PODS)
            async with opened(self.directory) as store:
                pods = await cluster.wait_running(store, pods_of(EXAMPLES / PODS), PATIENCE)
            for pod in pods:
                self.say(f"{pod.name} on {pod.spec.node_name}: {pod.status.pod_ip}")
        await self.measure("they reach the others, and the pod of their own node")

    async def draw(self) -> None:
        self.say(f"$ tortie lab map --name {NAME}")
        self.show(map_text.render(await cluster.charted(self.directory)))

    async def delete_pods(self) -> None:
        self.title("Away with them")
        pods = [(await self._pod(name)) for name in ("beside", "anywhere")]
        with self.check("their addresses are free again"):
            await self.tortie("delete", "-f", PODS)
            await self.until(lambda: not any(pod.status.pod_ip in self._kept(pod) for pod in pods))
        self.show(Text(f"what host-local of node1 remembers: {', '.join(sorted(self._kept(pods[0])))}", "dim"))

    def tear_down(self) -> None:
        with self.check("the lab is taken down: no namespace, process, mount or file is left"):
            network.destroy(self.directory)
            left = network.leftovers(self.directory)
            demand(not left, "; ".join(left))

    # --- pieces -----------------------------------------------------------------------------------------------------

    async def _mac(self, where: str) -> str:
        (link,) = json.loads(await self.tortie("lab", "exec", where, "--", "ip", "-j", "link", "show", "eth0"))
        return str(link["address"])

    async def _pod(self, name: str) -> Pod:
        async with opened(self.directory) as store:
            return next(pod for pod in (await store.list(Pod)).items if key_of(pod) == ("default", name))

    def _kept(self, pod: Pod) -> set[str]:
        """The addresses that host-local of the pod's node has given away."""
        files = (self.directory.node(pod.spec.node_name) / "var-lib-cni").glob("networks/*/*")
        return {file.name for file in files if file.name[0].isdigit()}
