"""Every annotation that is read has its page in the book."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tortie.calc import annotations, qos

PAGES = Path(__file__).parents[2] / "docs" / "annotations"
INDEX = (PAGES / "index.md").read_text()
NAMES = sorted(
    value.removeprefix(annotations.PREFIX)
    for value in vars(annotations).values()
    if isinstance(value, str) and value.startswith(annotations.PREFIX) and value != annotations.PREFIX
)


@pytest.mark.parametrize("name", NAMES)
def test_annotation_has_a_page_that_shows_it(name: str) -> None:
    (row,) = (line for line in INDEX.splitlines() if f"{name}`" in line)
    (page,) = re.findall(r"\]\(([\w./-]+\.md)\)", row)
    text = (PAGES / page).read_text()
    assert name in text
    assert "```console" in text


def test_limits_have_a_page_that_names_each() -> None:
    assert qos.QOS in INDEX
    text = (PAGES.parent / "qos.md").read_text()
    for limit in ("Bandwidth", "Burst", "Peakrate", "Minburst", "PacketRate", "PacketBurst", "MaxConnections"):
        assert re.search(rf"gress{limit}\b", text), limit
    assert "dscp" in text
