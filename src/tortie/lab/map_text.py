"""A lab's map as text: the outside, routers, racks and nodes as a tree, then the sessions. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from tortie.lab.chart import Chart, NodeSpot, Pair, RackSpot, by_name
from tortie.lab.topology import names

MANY = 12
"""Nodes of a rack, and pairs with a session, that are still listed one by one when all is well."""


def render(chart: Chart) -> RenderableType:
    """For a terminal."""
    tree = Tree(Text.assemble(("outside", "bold"), f"  {chart.outside}"), guide_style="dim")
    _grow(tree, chart, chart.outside_router, set())
    head = Text.assemble((f"lab {chart.name}", "bold"), f": {chart.about}" if chart.about else "")
    pools = [Text(f"pool {pool}", "dim") for pool in chart.pools]
    return Group(head, tree, *pools, Text(chart.counted, "bold"), *_sessions(chart))


def _grow(tree: Tree, chart: Chart, name: str, seen: set[str]) -> None:
    """A router with its rack, and those behind it."""
    seen.add(name)
    router = next(router for router in chart.routers if router.name == name)
    what = f"  AS {router.as_number}, {router.daemon}" if router.as_number is not None else "  forwards only"
    rack = next((rack for rack in chart.racks if rack.router == name), None)
    subnets = f"  rack {rack.name}, {' and '.join(rack.subnets)}" if rack else ""
    branch = tree.add(Text.assemble((name, "bold"), what, (subnets, "dim")))
    if rack:
        _add_nodes(branch, rack)
    for a, b in chart.links:
        far = b if a == name else a if b == name else ""
        if far and far not in seen:
            _grow(branch, chart, far, seen)


def _add_nodes(branch: Tree, rack: RackSpot) -> None:
    """Each with its blocks below, a line for each family."""
    if len(rack.nodes) > MANY and all(node.ready is not False for node in rack.nodes):
        first, last = rack.nodes[0], rack.nodes[-1]
        rest = f"  {len(rack.nodes)} nodes, {first.way}"
        if reflectors := [node.name for node in rack.nodes if node.cluster_id]:
            rest += f", of which {names(reflectors)} {'reflects' if len(reflectors) == 1 else 'reflect'} routes"
        branch.add(Text.assemble((f"{first.name} to {last.name}", "bold"), rest))
        return
    for node in rack.nodes:
        leaf = branch.add(_node(node))
        for verb, every in (("announces", node.blocks), ("keeps to itself", node.kept)):
            for six in (False, True):
                blocks = [block for block in every if (":" in block) is six]
                if blocks:
                    leaf.add(Text(f"{verb} {' '.join(blocks)}", "dim"))


def _node(node: NodeSpot) -> Text:
    style = "bold red" if node.ready is False else "bold"
    reflects = f"  reflects for {node.cluster_id}" if node.cluster_id else ""
    return Text.assemble((node.name, style), f"  {node.addresses[0]}  {node.way}{reflects}")


def _sessions(chart: Chart) -> Iterator[Text]:
    """One line for each pair; a mesh that is up is one line."""
    well = all(pair.up is not False for pair in chart.pairs)
    if well and chart.is_mesh and len(chart.nodes) > 2:
        first, last = chart.nodes[0].name, chart.nodes[-1].name
        yield Text(f"  full mesh of {first} to {last}", "green" if chart.pairs[0].up else "")
        return
    shown = sorted(chart.pairs, key=by_name)
    if len(shown) > 2 * MANY:
        shown = [pair for pair in shown if pair.up is False]
    for pair in shown:
        yield _pair(pair)


def _pair(pair: Pair) -> Text:
    state, style = {None: ("", ""), True: ("up", "green"), False: (_down(pair), "red")}[pair.up]
    kind = "iBGP" if pair.internal else "eBGP"
    first, second = (pair.other, pair.client) if pair.client else pair.ends
    arrow = f"reflects to {second}" if pair.client else f"with {second}"
    return Text.assemble(f"  {first} {arrow}, {kind}  ", (state, style))


def _down(pair: Pair) -> str:
    families = " and ".join(f"IPv{version}" for version in pair.down)
    return "down" if len(pair.down) == len(pair.versions) else f"down over {families}"
