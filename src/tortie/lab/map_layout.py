"""Where everything of a lab's map is: boxes, links and sessions with their coordinates, in pixels. Pure.

      outside                                  at the top, above its router
      spine                                    routers above racks, by how many links they are away from one
    ┌ rack ─────────────┐ ┌ rack ───────────┐
    │      tor-a        │ │     tor-b       │   links: thick and pale; a session between their ends runs on them
    │ node1     node2   │ │ node3    node4  │
    └───╰─────────╯─────┘ └──╰────────╯─────┘   sessions between nodes: arcs below, the wider the deeper

The writing is of one width, so that what fits is known without a screen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from tortie.lab.chart import Chart, NodeSpot, Pair, RouterSpot
from tortie.lab.topology import OUTSIDE

FONT, SMALL = 12, 10
WIDE = 0.602  # width of a character of a monospaced face, in its size: DejaVu Sans Mono's
LINE = {FONT: 17, SMALL: 14}
PAD = 10  # inside boxes
GAP = 26  # between boxes of a row
RACK_PAD = 18
ROW = 62  # between rows of routers
HEAD = 38  # above a rack's router, for the name of the rack
MARGIN = 24
MANY = 12
"""More nodes than these are drawn small, with nothing but their names, and only sessions that are down."""
SMALL_ROW = 10
BLOCKS = 6
"""Of a node so many are written."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of writing in a box."""

    text: str
    size: int = FONT
    bold: bool = False
    style: str = ""

    @property
    def width(self) -> float:
        return len(self.text) * self.size * WIDE


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle with lines of writing. `kind`: node, reflector, router, plain, outside, elsewhere, rack."""

    name: str
    kind: str
    x: float
    y: float
    width: float
    height: float
    lines: tuple[Line, ...] = ()
    ready: bool | None = None

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def right(self) -> float:
        return self.x + self.width


@dataclass(frozen=True, slots=True)
class Wire:
    """A link, or a session (`pair`): a line, or an arc of that `depth` below its ends. One between a reflector and its
    client begins at the reflector."""

    x1: float
    y1: float
    x2: float
    y2: float
    pair: Pair | None = None
    depth: float = 0


@dataclass(slots=True)
class Layout:
    """The whole map."""

    width: float = 0
    height: float = 0
    boxes: dict[str, Box] = field(default_factory=dict)
    racks: list[Box] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    foot: float = 0
    """Where the legend begins."""


def layout(chart: Chart) -> Layout:
    """The same for the same chart."""
    made = Layout()
    levels = _levels(chart)
    top = MARGIN + 34  # below the title
    elsewhere = [Box(name, "elsewhere", 0, 0, *_size([Line(name)]), (Line(name),)) for name in chart.elsewhere]
    outside = _outside(chart)
    rows = [[outside, *elsewhere], *([_router(router) for router in row] for row in reversed(levels[1:]))]
    racks_y = top + len(rows) * ROW + (len(rows) - 1) * 12
    bottom = _place_racks(made, chart, racks_y)
    made.width = max((box.right for box in made.racks), default=0) + MARGIN
    for i, row in reversed(list(enumerate(rows))):
        _place_row(made, chart, row, top + i * (ROW + 12))
    made.width = max(made.width, max(box.right for box in made.boxes.values()) + MARGIN)
    made.foot = bottom + _draw(made, chart, bottom)
    return made


def _levels(chart: Chart) -> list[list[RouterSpot]]:
    """Routers by how many links they are away from the nearest one of a rack."""
    far = {router.name: 0 for router in chart.routers if router.rack}
    edge = set(far)
    while edge:
        near = {end for link in chart.links if edge & set(link) for end in link} - far.keys()
        far |= {name: max(far[known] for known in edge) + 1 for name in near}
        edge = near
    count = max(far.values(), default=0) + 1
    return [[router for router in chart.routers if far.get(router.name, 0) == level] for level in range(count)]


# --- boxes --------------------------------------------------------------------------------------------------------


def _size(lines: Sequence[Line]) -> tuple[float, float]:
    width = max(line.width for line in lines) + 2 * PAD
    return width, sum(LINE[line.size] for line in lines) + 2 * PAD - 6


def _outside(chart: Chart) -> Box:
    lines = (Line(OUTSIDE, bold=True), Line(chart.outside, SMALL))
    return Box(OUTSIDE, "outside", 0, 0, *_size(lines), lines)


def _router(router: RouterSpot) -> Box:
    bgp = router.as_number is not None
    what = f"AS {router.as_number}, {router.daemon}" if bgp else "forwards only"
    lines = (Line(router.name, bold=True), Line(what, SMALL))
    return Box(router.name, "router" if bgp else "plain", 0, 0, *_size(lines), lines)


def _node(node: NodeSpot, few: bool) -> Box:
    lines = [Line(node.name, bold=True)]
    if few:
        lines += [Line(address, SMALL) for address in node.addresses]
        lines.append(Line(node.way, SMALL))
        if node.cluster_id:
            lines.append(Line(f"reflects for {node.cluster_id}", SMALL, style="reflector"))
        blocks = [(block, "block") for block in node.blocks] + [(block, "kept") for block in node.kept]
        lines += [Line(block, SMALL, style=style) for block, style in blocks[:BLOCKS]]
        if len(blocks) > BLOCKS:
            lines.append(Line(f"and {len(blocks) - BLOCKS} blocks more", SMALL, style="kept"))
    kind = "reflector" if node.cluster_id else "node"
    return Box(node.name, kind, 0, 0, *_size(lines), tuple(lines), node.ready)


def _moved(box: Box, x: float, y: float, height: float = 0) -> Box:
    return replace(box, x=x, y=y, height=height or box.height)


def _place_racks(made: Layout, chart: Chart, y: float) -> float:
    """Racks side by side; where their nodes end."""
    few = len(chart.nodes) <= MANY
    x, bottom = float(MARGIN), y
    for rack in chart.racks:
        head = (Line(f"rack {rack.name}, {rack.subnets[0]}", SMALL), Line(rack.subnets[1], SMALL))
        router = _router(next(router for router in chart.routers if router.name == rack.router))
        nodes = [_node(node, few) for node in rack.nodes]
        if not few:
            widest = max(box.width for box in nodes)
            nodes = [replace(box, width=widest) for box in nodes]
        rows = [nodes] if few else [nodes[i : i + SMALL_ROW] for i in range(0, len(nodes), SMALL_ROW)]
        gap = GAP if few else 8
        inner = max(
            [sum(box.width + gap for box in row) - gap for row in rows] + [2 * max(line.width for line in head) + 10]
        )
        width = inner + 2 * RACK_PAD
        made.boxes[router.name] = _moved(router, x + (width - router.width) / 2, y + HEAD)
        below = made.boxes[router.name].bottom + 44
        for row in rows:
            below = _place_nodes(made, row, x + width / 2, below, gap)
        made.racks.append(Box(f"rack {rack.name}", "rack", x, y, width, 0, head))
        bottom = max(bottom, below)
        x += width + GAP
    made.racks = [replace(box, height=bottom - box.y) for box in made.racks]
    return bottom


def _place_nodes(made: Layout, row: Sequence[Box], middle: float, y: float, gap: float) -> float:
    """One row of nodes, all as high as the highest; where the next one begins."""
    height = max((box.height for box in row), default=0)
    x = middle - (sum(box.width + gap for box in row) - gap) / 2
    for box in row:
        made.boxes[box.name] = _moved(box, x, y, height)
        x += box.width + gap
    return y + height + (GAP if gap == GAP else 8)


def _place_row(made: Layout, chart: Chart, row: Sequence[Box], y: float) -> None:
    """Routers of one level above what they are linked to, side by side where those are the same."""
    wished = [(_wish(made, chart, box), box) for box in row]
    x = float(MARGIN)
    for middle, box in sorted(wished, key=lambda one: (one[0], one[1].name)):
        x = max(x, middle - box.width / 2)
        made.boxes[box.name] = _moved(box, x, y)
        x += box.width + GAP


def _wish(made: Layout, chart: Chart, box: Box) -> float:
    """Where the middle of a box would best be."""
    if box.name == OUTSIDE:
        near = [chart.outside_router]
    else:
        near = [end for link in chart.links if box.name in link for end in link if end != box.name]
        near += [end for pair in chart.pairs if box.name in pair.ends for end in pair.ends if end != box.name]
    middles = [made.boxes[name].middle for name in near if name in made.boxes]
    return sum(middles) / len(middles) if middles else made.width / 2


# --- wires --------------------------------------------------------------------------------------------------------


def _draw(made: Layout, chart: Chart, bottom: float) -> float:
    """Links, then sessions; how far arcs reach below the nodes."""
    few = len(chart.nodes) <= MANY
    linked = [*chart.links, (OUTSIDE, chart.outside_router)]
    linked += [(rack.router, node.name) for rack in chart.racks for node in rack.nodes] if few else []
    made.wires += [_straight(made, *ends) for ends in linked]
    if not few:
        return 14
    along = {frozenset(ends) for ends in linked}
    arcs = []
    for pair in chart.pairs:
        if frozenset(pair.ends) in along or not all(_is_node(made, end) for end in pair.ends):
            made.wires.append(_straight(made, *pair.ends, pair))
        else:
            arcs.append(pair)
    return _arcs(made, arcs, bottom)


def _is_node(made: Layout, name: str) -> bool:
    return made.boxes[name].kind in ("node", "reflector")


def _straight(made: Layout, a: str, b: str, pair: Pair | None = None) -> Wire:
    """From the upper box to the lower one; between boxes of one row, from side to side."""
    one, other = sorted((made.boxes[a], made.boxes[b]), key=lambda box: (box.y, box.x))
    if one.y == other.y:
        y = one.y + one.height / 2
        wire = Wire(one.right, y, other.x, y, pair)
    else:
        x = other.middle
        below = one.x + 8 <= x <= one.right - 8
        wire = Wire(x if below else one.middle, one.bottom, x, other.y, pair)
    return _turned(wire) if pair and pair.client == one.name else wire


def _turned(wire: Wire) -> Wire:
    """The same from the other end."""
    return replace(wire, x1=wire.x2, y1=wire.y2, x2=wire.x1, y2=wire.y1)


def _arcs(made: Layout, arcs: Sequence[Pair], bottom: float) -> float:
    """Sessions between nodes, below them. Those that share a node end side by side, so that none crosses its like."""
    order = {box.name: i for i, box in enumerate(sorted(made.boxes.values(), key=lambda box: box.x))}
    slots = {name: _slots(name, arcs, order) for name in order}
    deepest = 0.0
    for pair in arcs:
        first, second = sorted(pair.ends, key=order.__getitem__)
        span = sum(order[first] < i <= order[second] for name, i in order.items() if _is_node(made, name))
        depth = 18 + 24 * (span - 1)
        x1, x2 = (_slot(made.boxes[name], slots[name], pair) for name in (first, second))
        y1, y2 = made.boxes[first].bottom, made.boxes[second].bottom
        wire = Wire(x1, y1, x2, y2, pair, depth)
        made.wires.append(_turned(wire) if pair.client == first else wire)
        deepest = max(deepest, depth)
    return max(deepest + 24 - GAP, 14)


def _slots(name: str, arcs: Sequence[Pair], order: dict[str, int]) -> list[Pair]:
    """The arcs of a node from left to right: those to the left, the nearest first, then those to the right, the
    farthest first."""

    def place(pair: Pair) -> tuple[int, int]:
        far = order[pair.ends[0] if pair.ends[1] == name else pair.ends[1]] - order[name]
        return (0, -far) if far < 0 else (1, -far)

    return sorted((pair for pair in arcs if name in pair.ends), key=place)


def _slot(box: Box, slots: Sequence[Pair], pair: Pair) -> float:
    step = min(22.0, (box.width - 16) / max(len(slots), 1))
    return box.middle + (slots.index(pair) - (len(slots) - 1) / 2) * step


def crowded(made: Layout) -> Iterator[tuple[str, str]]:
    """Boxes that overlap; none should."""
    boxes = list(made.boxes.values())
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            apart = one.right <= other.x or other.right <= one.x or one.bottom <= other.y or other.bottom <= one.y
            if not apart:
                yield one.name, other.name
