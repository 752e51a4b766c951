"""Draws choose-routing.svg: which routing for which network, as questions with two answers.

.venv/bin/python docs/pictures/choose_routing.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

FILE = Path(__file__).parent / "choose-routing.svg"

WIDTH, HEIGHT = 1000, 660
LINE = 17
"""Pixels from one line of text to the next."""
FONT = "'DejaVu Sans', Verdana, Arial, sans-serif"
INK, EDGE, PAPER = "#0f172a", "#64748b", "#ffffff"
QUESTION, ANSWER = ("#f1f5f9", "#94a3b8"), ("#ecfdf5", "#15803d")
"""Fill and border."""


@dataclass(frozen=True, slots=True)
class Box:
    """Lines of text in a frame; x and y are its upper left corner. The first line of an answer is bold."""

    x: int
    y: int
    width: int
    lines: tuple[str, ...]
    answer: bool = False

    @property
    def height(self) -> int:
        return LINE * len(self.lines) + 22

    @property
    def right(self) -> tuple[int, int]:
        return self.x + self.width, self.y + self.height // 2

    @property
    def left(self) -> tuple[int, int]:
        return self.x, self.y + self.height // 2

    @property
    def top(self) -> tuple[int, int]:
        return self.x + self.width // 2, self.y

    @property
    def bottom(self) -> tuple[int, int]:
        return self.x + self.width // 2, self.y + self.height


CLOUD = Box(
    20,
    56,
    300,
    ("May packets with pods' addresses", "travel between two nodes of one", "subnet? Many clouds drop them."),
)
ALWAYS = Box(690, 56, 290, ("VXLAN Always", "vxlanMode: Always", "needs UDP 4789, no BGP"), True)
SUBNET = Box(20, 200, 300, ("Are all nodes in one subnet?",))
MANY = Box(390, 191, 200, ("More than about", "100 nodes?"))
MESH = Box(690, 160, 290, ("Full mesh", "what there is if nothing is said"), True)
REFLECTORS = Box(690, 246, 290, ("Route reflectors", "two or three nodes, or routers"), True)
ROUTERS = Box(20, 360, 300, ("Will the routers between the subnets", "speak BGP with the nodes?"))
PEERING = Box(690, 360, 290, ("Peering with the routers", "an AS or a reflector for each rack"), True)
UDP = Box(20, 500, 300, ("Does the network between them", "let UDP to port 4789 pass?"))
CROSS = Box(690, 482, 290, ("VXLAN CrossSubnet", "vxlanMode: CrossSubnet"), True)
IPIP = Box(690, 570, 290, ("IPIP CrossSubnet", "ipipMode: CrossSubnet, IPv4 only,", "IP protocol 4 must pass"), True)
BOXES = (CLOUD, ALWAYS, SUBNET, MANY, MESH, REFLECTORS, ROUTERS, PEERING, UDP, CROSS, IPIP)


def arrow(points: Sequence[tuple[int, int]], word: str, at: tuple[int, int]) -> str:
    path = " L".join(f"{x} {y}" for x, y in points)
    line = f'<path d="M{path}" fill="none" stroke="{EDGE}" stroke-width="1.6" marker-end="url(#head)"/>'
    return line + text(at[0], at[1], word, bold=True)


def text(x: int, y: int, words: str, *, bold: bool = False, size: int = 13) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{INK}"{weight}>{escape(words)}</text>'


def framed(box: Box) -> str:
    fill, border = ANSWER if box.answer else QUESTION
    place = f'x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}"'
    frame = f'<rect {place} rx="8" fill="{fill}" stroke="{border}"/>'
    lines = (
        text(box.x + 14, box.y + 24 + LINE * i, words, bold=box.answer and i == 0) for i, words in enumerate(box.lines)
    )
    return frame + "".join(lines)


def down(box: Box, below: Box, word: str) -> str:
    (x, y), (_, end) = box.bottom, below.top
    return arrow(((x, y), (x, end)), word, (x + 8, (y + end) // 2 + 4))


def across(box: Box, other: Box, word: str) -> str:
    """To the right, and with a knee where the other box is higher or lower. There roads part: the word is behind it."""
    (x, y), (end, there) = box.right, other.left
    if y == there:
        return arrow(((x, y), (end, y)), word, (x + 8, y - 6))
    knee = end - 54
    return arrow(((x, y), (knee, y), (knee, there), (end, there)), word, (knee + 8, there - 6))


def parts() -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="{FONT}">'
    )
    yield "<title>Which routing for which network</title>"
    yield (
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L10 5 L0 10 z" fill="{EDGE}"/></marker></defs>'
    )
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>'
    yield text(20, 32, "Which routing for which network", bold=True, size=17)
    yield across(CLOUD, ALWAYS, "no")
    yield down(CLOUD, SUBNET, "yes")
    yield across(SUBNET, MANY, "yes")
    yield across(MANY, MESH, "no")
    yield across(MANY, REFLECTORS, "yes")
    yield down(SUBNET, ROUTERS, "no")
    yield across(ROUTERS, PEERING, "yes")
    yield down(ROUTERS, UDP, "no")
    yield across(UDP, CROSS, "yes")
    yield across(UDP, IPIP, "no")
    yield from (framed(box) for box in BOXES)
    yield "</svg>"


def drawn() -> str:
    """What should be in the file."""
    return "\n".join(parts()) + "\n"


if __name__ == "__main__":
    FILE.write_text(drawn())
