"""Draws topology-*.svg: the maps of the built-in topologies as they are asked for, without any lab.

.venv/bin/python docs/pictures/topologies.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tortie.lab.blueprint import built_in, load
from tortie.lab.chart import Chart, chart
from tortie.lab.map_svg import render
from tortie.lab.objects import initial_objects
from tortie.lab.sessions import wanted_by
from tortie.lab.topology import laid_out

FOLDER = Path(__file__).parent


def drawn(name: str) -> Chart:
    """The map of a built-in topology."""
    blueprint = load(name)
    lab = laid_out("picture", blueprint)
    wanted = wanted_by(lab, initial_objects(lab, "0" * 32))
    return replace(chart(lab, wanted, wanted.sessions()), name=name)


def pictures() -> dict[Path, str]:
    """Every file, and what should be in it."""
    return {FOLDER / f"topology-{name}.svg": render(drawn(name)) for name in built_in()}


if __name__ == "__main__":
    for path, text in pictures().items():
        path.write_text(text)
