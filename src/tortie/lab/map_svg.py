"""A lab's map as a picture: SVG by hand, the same bytes for the same chart. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from tortie.lab.chart import Chart, Pair
from tortie.lab.map_layout import FONT, LINE, MANY, MARGIN, PAD, SMALL, WIDE, Box, Line, Wire, layout

COLOURS = {None: "#64748b", True: "#15803d", False: "#dc2626"}
"""Of a session that was not asked about, is up, is down."""
FILLS = {
    "node": ("#ffffff", "#94a3b8"),
    "reflector": ("#fef9c3", "#ca8a04"),
    "router": ("#e0f2fe", "#0284c7"),
    "plain": ("#f1f5f9", "#94a3b8"),
    "outside": ("#f8fafc", "#94a3b8"),
    "elsewhere": ("#fff7ed", "#ea580c"),
    "rack": ("#f8fafc", "#cbd5e1"),
}
"""Inside and border, by kind of box."""
INK = {"": "#0f172a", "block": "#7c3aed", "kept": "#64748b", "reflector": "#a16207"}
LINK = "#d7dee8"
FACE = "'DejaVu Sans Mono', Menlo, Consolas, 'Liberation Mono', monospace"
DOWN_SHOWN = 8
_EBGP = "7 4"


def render(chart: Chart) -> str:
    """The text of the SVG file."""
    made = layout(chart)
    legend = list(_legend(chart))
    width = max(made.width, _width(_title(chart), 15) + 2 * MARGIN, *(MARGIN + reach for reach, _, _ in legend))
    height = made.foot + max(y for _, y, _ in legend) + 22 + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="{FACE}" font-size="{FONT}">',
        f"<title>{escape(_title(chart))}</title>",
        _markers(),
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        _text(MARGIN, MARGIN + 12, Line(_title(chart), bold=True), "start", 15),
    ]
    parts += [_rack(box, made.width) for box in made.racks]
    parts += [_wire(wire) for wire in made.wires if wire.pair is None]
    parts += [_wire(wire) for wire in made.wires if wire.pair is not None]
    parts += [_box(box) for box in made.boxes.values()]
    parts += [drawn.format(y=made.foot + y + 14) for _, y, drawn in legend]
    return "\n".join((*parts, "</svg>")) + "\n"


def _title(chart: Chart) -> str:
    return f"{chart.name}: {chart.about}" if chart.about else chart.name


def _markers() -> str:
    """An arrow head for each colour: SVG 1.1 has none that takes its line's."""
    return "<defs>" + "".join(
        f'<marker id="{_marker(up)}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="5" markerHeight="5" '
        f'orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{colour}"/></marker>'
        for up, colour in COLOURS.items()
    ) + "</defs>"  # fmt: skip


def _marker(up: bool | None) -> str:
    return {None: "asked", True: "up", False: "down"}[up]


# --- boxes --------------------------------------------------------------------------------------------------------


def _rect(box: Box, radius: int, fill: str, border: str, extra: str = "") -> str:
    return (
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="{radius}" '
        f'fill="{fill}" stroke="{border}"{extra}/>'
    )


def _rack(box: Box, width: float) -> str:
    """Its name is on the side that is away from the middle, from where links come."""
    fill, border = FILLS["rack"]
    left = box.middle <= width / 2
    x, anchor = (box.x + 12, "start") if left else (box.right - 12, "end")
    lines = (
        _text(x, box.y + 4 + LINE[SMALL] * (i + 1), line, anchor, SMALL, "#475569") for i, line in enumerate(box.lines)
    )
    return _rect(box, 10, fill, border) + "".join(lines)


def _box(box: Box) -> str:
    fill, border = FILLS[box.kind]
    if box.ready is False:
        fill, border = "#fee2e2", COLOURS[False]
    parts = [_rect(box, 6, fill, border, ' stroke-width="1.4"')]
    y = box.y + PAD - 3
    for line in box.lines:
        y += LINE[line.size]
        parts.append(_text(box.middle, y - 4, line, "middle", line.size))
    return "".join(parts)


def _text(x: float, y: float, line: Line, anchor: str, size: int = FONT, colour: str = "") -> str:
    bold = ' font-weight="bold"' if line.bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour or INK[line.style]}"'
        f"{bold}>{escape(line.text)}</text>"
    )


# --- wires --------------------------------------------------------------------------------------------------------


def _wire(wire: Wire) -> str:
    if wire.pair is None:
        path = f"M{wire.x1:.1f} {wire.y1:.1f} L{wire.x2:.1f} {wire.y2:.1f}"
        return f'<path d="{path}" fill="none" stroke="{LINK}" stroke-width="9" stroke-linecap="round"/>'
    deep = wire.depth / 0.75  # a cubic curve gets three quarters of the way to its control points
    if wire.depth:
        low = max(wire.y1, wire.y2) + deep
        path = (
            f"M{wire.x1:.1f} {wire.y1:.1f} C{wire.x1:.1f} {low:.1f} {wire.x2:.1f} {low:.1f} {wire.x2:.1f} {wire.y2:.1f}"
        )
    else:
        path = f"M{wire.x1:.1f} {wire.y1:.1f} L{wire.x2:.1f} {wire.y2:.1f}"
    return f'<path d="{path}" fill="none" {_stroke(wire.pair)}{_head(wire)}/>'


def _stroke(pair: Pair) -> str:
    dash = "" if pair.internal else f' stroke-dasharray="{_EBGP}"'
    return f'stroke="{COLOURS[pair.up]}" stroke-width="2"{dash}'


def _head(wire: Wire) -> str:
    """An arrow to the client of a reflector."""
    if wire.pair is None or not wire.pair.client:
        return ""
    return f' marker-end="url(#{_marker(wire.pair.up)})"'


# --- the legend ---------------------------------------------------------------------------------------------------


def _legend(chart: Chart) -> Iterator[tuple[float, int, str]]:
    """How far it reaches to the right and how far down it is, and what is drawn there, with `{y}` for its base line."""
    colour = COLOURS[_state(chart)]
    samples: list[tuple[str, str]] = []
    if any(pair.internal for pair in chart.pairs):
        samples.append((f'stroke="{colour}" stroke-width="2"', "iBGP"))
    if any(not pair.internal for pair in chart.pairs):
        samples.append((f'stroke="{colour}" stroke-width="2" stroke-dasharray="{_EBGP}"', "eBGP"))
    if any(pair.client for pair in chart.pairs):
        head = f'marker-end="url(#{_marker(_state(chart))})"'
        samples.append((f'stroke="{colour}" stroke-width="2" {head}', "reflector to client"))
    samples.append((f'stroke="{LINK}" stroke-width="9" stroke-linecap="round"', "link"))
    x = float(MARGIN)
    for stroke, words in samples:
        line = f'<path d="M{x:.1f} {{y:.1f}} h34" transform="translate(0 -4)" fill="none" {stroke}/>'
        x += 42
        yield x + _width(words, FONT), 0, line + _line(x, words)
        x += _width(words, FONT) + 26
    y = 24
    for style, words in _blocks(chart):
        yield MARGIN + _width(words, SMALL), y, _line(MARGIN, words, INK[style], SMALL)
        y += LINE[SMALL] + 4
    for words, style in (_counted(chart), *_down(chart)):
        yield MARGIN + _width(words, FONT), y, _line(MARGIN, words, style)
        y += LINE[FONT]
    y += 4
    for pool in chart.pools:
        words = f"pool {pool}"
        yield MARGIN + _width(words, SMALL), y, _line(MARGIN, words, "#475569", SMALL)
        y += LINE[SMALL]


def _blocks(chart: Chart) -> Iterator[tuple[str, str]]:
    """What the colours of blocks mean, of those that occur."""
    if len(chart.nodes) > MANY:
        return
    if any(node.blocks for node in chart.nodes):
        yield "block", "10.0.0.0/26  a block that the node announces"
    if any(node.kept for node in chart.nodes):
        yield "kept", "10.0.0.0/26  a block of a pool with disableBGPExport"


def _state(chart: Chart) -> bool | None:
    """The colour of the samples: nobody has been asked, or all else."""
    return None if all(pair.up is None for pair in chart.pairs) else True


def _counted(chart: Chart) -> tuple[str, str]:
    kind = "full mesh: " if chart.is_mesh and len(chart.nodes) > 2 else ""
    return f"{kind}{chart.counted}", INK[""]


def _down(chart: Chart) -> Iterator[tuple[str, str]]:
    down = [pair for pair in chart.pairs if pair.up is False]
    for pair in down[:DOWN_SHOWN]:
        families = " and ".join(f"IPv{version}" for version in pair.down)
        yield f"down: {' and '.join(pair.ends)} over {families}", COLOURS[False]
    if len(down) > DOWN_SHOWN:
        yield f"and {len(down) - DOWN_SHOWN} pairs more", COLOURS[False]


def _line(x: float, words: str, colour: str = INK[""], size: int = FONT) -> str:
    safe = escape(words).replace("{", "{{").replace("}", "}}")
    return f'<text x="{x:.1f}" y="{{y:.1f}}" font-size="{size}" fill="{colour}">{safe}</text>'


def _width(words: str, size: int) -> float:
    return len(words) * size * WIDE
