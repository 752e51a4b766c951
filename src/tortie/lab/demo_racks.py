"""The second part of the tour: two racks below routers that speak BGP, a reflector in each, and a pool in VXLAN."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from tortie.lab import cluster, map_svg, map_text, network, picture
from tortie.lab.blueprint import load
from tortie.lab.chart import Chart
from tortie.lab.guide import PATIENCE, Guide, demand, pods_of
from tortie.lab.places import opened
from tortie.lab.topology import OUTSIDE, laid_out

NAME = "demoracks"
TOPOLOGY = "two-racks"
EXAMPLES = Path(__file__).parents[3] / "examples" / "topologies"
PODS = "two-racks-pods.yaml"
ROUTED, TUNNELLED = "10.244.", "10.245."
"""How addresses of the two pools begin: that which routers route, and that of which they know nothing."""
PICTURE = "docs/pictures/topology-two-racks.svg"
WAY = "AS path 65001 65000 65002 65102"
"""From rack to rack: a router, the spine, the other router, the nodes of the other rack."""


class Racks(Guide):
    """The lab `demoracks`."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, laid_out(NAME, load(TOPOLOGY)), EXAMPLES)

    async def take(self) -> None:
        """This part of the tour; the lab is still there afterwards."""
        await self.bring_up()
        await self.measure()
        await self.ask_routers()
        await self.draw()

    async def bring_up(self) -> None:
        self.title("Two racks: BGP routers, reflectors, one pool routed, one in VXLAN")
        self.say(f"$ tortie lab up --name {NAME} --topology {TOPOLOGY}")
        with self.check("the racks are up, and every session between nodes, reflectors and routers", vital=True):
            await cluster.up(self.lab, self.directory, self.steps)
        with self.check("pods of both pools run on every node", vital=True):
            await self.tortie("apply", "-f", PODS)
            async with opened(self.directory) as store:
                await cluster.wait_running(store, pods_of(EXAMPLES / PODS), PATIENCE)

    async def measure(self) -> None:
        for version in (4, 6):
            with self.check(f"over IPv{version} every pod reaches every pod of both racks, and the outside"):
                found = await self.settled(version)
                results = found.matrix.results.items()
                closed = [f"{' to '.join(pair)}: {one}" for pair, one in results if not one.passed]
                wrong = [text for text in closed if not text.startswith(OUTSIDE)]
                demand(not wrong, "; ".join(wrong[:3]))
        self.show_matrix(found)

    async def ask_routers(self) -> None:
        with self.check("the routers route the one pool, and know nothing of the other"):
            routes = await self.tortie(
                "lab", "exec", "router:tor-a", "--", "ip", "-4", "route", "list", "proto", "bird"
            )
            self.say(routes.rstrip())
            demand(routes.count(ROUTED) == len(self.lab.nodes), routes)
            demand(TUNNELLED not in routes, routes)
        with self.check("a node sends the one to its router, and the other through its tunnel"):
            routes = await self.tortie("lab", "exec", "node:node1", "--", "ip", "-4", "route")
            far = [line for line in routes.splitlines() if line.startswith((ROUTED, TUNNELLED)) and " via " in line]
            self.say("\n".join(far))
            tunnelled = [line for line in far if line.startswith(TUNNELLED)]
            demand(len(tunnelled) == 3 and all("vxlan.calico" in line for line in tunnelled), routes)

    async def draw(self) -> None:
        with self.check("the map has every session, and who announces what"):
            drawn: Chart = await cluster.charted(self.directory)
            demand(all(pair.up for pair in drawn.pairs), "a session is down")
            picture.write(map_svg.render(drawn), self.directory.path / "map.svg")
        block = drawn.nodes[-1].blocks[0]
        with self.check(f"{block} of node4 is known on node1, with every AS that it came through"):
            routes = await self.tortie("bgp", "routes", block, "--node", "node1")
            self.say(routes.rstrip())
            demand(WAY in routes, routes)
        self.say(f"$ tortie lab map --name {NAME}")
        self.show(map_text.render(drawn))
        self.show(Text(f"as a picture: tortie lab map --name {NAME} -o map.svg, or {PICTURE}", "dim"))

    def tear_down(self) -> None:
        with self.check("the racks are taken down: nothing is left"):
            network.destroy(self.directory)
            left = network.leftovers(self.directory)
            demand(not left, "; ".join(left))
