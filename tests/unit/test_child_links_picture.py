"""The picture of the page about ipvlan and macvlan is what its program draws."""

from __future__ import annotations

import runpy
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "docs/pictures/child_links.py"


def test_the_picture_is_not_stale() -> None:
    found = runpy.run_path(str(PROGRAM))
    assert found["FILE"].read_text() == found["drawn"](), "run docs/pictures/child_links.py"
