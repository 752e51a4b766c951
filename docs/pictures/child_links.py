"""Draws child-links.svg: the ways of a packet between a pod of ipvlan or macvlan, its node and the wire.

.venv/bin/python docs/pictures/child_links.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

FILE = Path(__file__).parent / "child-links.svg"

WIDTH, HEIGHT = 1000, 700
PANEL = (490, 300)
"""Width and height of one of the four drawings."""
FONT = "'DejaVu Sans', Verdana, Arial, sans-serif"
INK, PAPER, FRAME = "#0f172a", "#ffffff", "#cbd5e1"
OUT, IN, BESIDE = "#1d4ed8", "#15803d", "#b45309"
"""What the pod sends, what comes to it, and what goes between it and its own node with a sibling."""
LINK, NODE = ("#ecfdf5", "#15803d"), ("#f1f5f9", "#94a3b8")
"""Fill and border."""

POD, DRIVER, MASTER, HOST = (40, 50, 150, 44), (40, 130, 150, 66), (40, 232, 150, 44), (305, 122, 176, 82)
"""x, y, width and height in a drawing."""
SENT, COME, SIBLING = 150, 178, 138
"""How far down arrows between the driver and the node are."""


@dataclass(frozen=True, slots=True)
class Mode:
    """A drawing: what it is of, and whether packets pass the node's netfilter on their way out and in."""

    title: str
    words: str
    hooks: tuple[str, ...]
    out_by_node: bool = False
    in_by_node: bool = False


MODES = (
    Mode("macvlan bridge", "own MAC address for each pod, ARP, broadcast", ("sees nothing", "of the pods' packets")),
    Mode("ipvlan l2", "the master's MAC address, ARP, broadcast", ("sees nothing", "of the pods' packets")),
    Mode("ipvlan l3", "no ARP, routed by the node", ("out: OUTPUT,", "POSTROUTING"), out_by_node=True),
    Mode(
        "ipvlan l3s",
        "no ARP, routed, translations work",
        ("out: OUTPUT,", "POSTROUTING", "in: PREROUTING, INPUT"),
        out_by_node=True,
        in_by_node=True,
    ),
)


def text(x: int, y: int, words: str, *, bold: bool = False, size: int = 13, colour: str = INK) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}"{weight}>{escape(words)}</text>'


def box(place: tuple[int, int, int, int], lines: Sequence[str], colours: tuple[str, str]) -> str:
    x, y, width, height = place
    fill, border = colours
    frame = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}" stroke="{border}"/>'
    return frame + "".join(text(x + 10, y + 19 + 18 * i, words, bold=i == 0) for i, words in enumerate(lines))


def arrow(points: Sequence[tuple[int, int]], colour: str, *, both: bool = False) -> str:
    path = " L".join(f"{x} {y}" for x, y in points)
    name = {OUT: "out", IN: "in", BESIDE: "beside"}[colour]
    style = f'stroke="{colour}" stroke-width="2" marker-end="url(#{name})"'
    style += f' marker-start="url(#{name})" stroke-dasharray="6 4"' if both else ""
    return f'<path d="M{path}" fill="none" {style}/>'


def between(upper: tuple[int, int, int, int], lower: tuple[int, int, int, int], x: int, colour: str) -> str:
    """Straight down, or up when it is for the pod."""
    ends = [(x, upper[1] + upper[3]), (x, lower[1])]
    return arrow(ends if colour == OUT else ends[::-1], colour)


def ways(mode: Mode) -> Iterator[str]:
    right, left, bottom = DRIVER[0] + DRIVER[2], HOST[0], HOST[1] + HOST[3]
    yield between(POD, DRIVER, 90, OUT)
    yield between(POD, DRIVER, 140, IN)
    if mode.out_by_node:
        yield arrow(((right, SENT + 8), (left, SENT + 8)), OUT)
        yield arrow(((440, bottom), (440, 264), (right, 264)), OUT)
    else:
        yield between(DRIVER, MASTER, 90, OUT)
    if mode.in_by_node:
        yield arrow(((right, 246), (370, 246), (370, bottom)), IN)
        yield arrow(((left, COME + 8), (right, COME + 8)), IN)
    else:
        yield between(DRIVER, MASTER, 140, IN)
    yield arrow(((left, SIBLING), (right, SIBLING)), BESIDE, both=True)


def drawing(mode: Mode, x: int, y: int) -> str:
    width, height = PANEL
    parts = [
        f'<g transform="translate({x} {y})">',
        f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}" stroke="{FRAME}"/>',
        text(20, 30, mode.title, bold=True, size=15),
        text(20 + 10 * len(mode.title), 30, mode.words, size=12),
        box(POD, ("pod", "eth0"), LINK),
        box(DRIVER, ("driver", "tells pods apart", "by MAC" if mode.title.startswith("mac") else "by IP"), LINK),
        box(MASTER, ("master", "eth0 ── wire"), NODE),
        box(HOST, ("node", *mode.hooks), NODE),
        *ways(mode),
        "</g>",
    ]
    return "\n".join(parts)


def parts() -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="{FONT}">'
    )
    yield "<title>The ways of a packet of ipvlan and macvlan pods</title>"
    heads = "".join(
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path d="M0 0 L10 5 L0 10 z" fill="{colour}"/></marker>'
        for name, colour in (("out", OUT), ("in", IN), ("beside", BESIDE))
    )
    yield f"<defs>{heads}</defs>"
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>'
    yield text(20, 32, "The ways of a packet", bold=True, size=17)
    yield text(260, 32, "what the pod sends", colour=OUT)
    yield text(440, 32, "what comes to it", colour=IN)
    yield text(600, 32, 'node and pod, with hostAccess "sibling" only', colour=BESIDE)
    for i, mode in enumerate(MODES):
        yield drawing(mode, 5 + 500 * (i % 2), 60 + 320 * (i // 2))
    yield "</svg>"


def drawn() -> str:
    """What should be in the file."""
    return "\n".join(parts()) + "\n"


if __name__ == "__main__":
    FILE.write_text(drawn())
