"""The picture of the page about choosing a routing is what its program draws."""

from __future__ import annotations

import runpy
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "docs/pictures/choose_routing.py"


def test_the_picture_is_not_stale() -> None:
    found = runpy.run_path(str(PROGRAM))
    assert found["FILE"].read_text() == found["drawn"](), "run docs/pictures/choose_routing.py"
