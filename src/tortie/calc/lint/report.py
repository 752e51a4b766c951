"""What is probably not meant in a set of policies: rules that nothing reaches, selectors that find nothing, surprises.

    Simulation ─► Scene: policies with their places, labels of all that there is ─► checks ─► findings, by place

A check is a generator of findings. It may miss something; what it says about order is true whatever pods there are,
what it says about matches is true of the pods at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tortie.calc.lint.findings import Finding
from tortie.calc.lint.isolation import isolation
from tortie.calc.lint.matches import matches
from tortie.calc.lint.order import order, ties
from tortie.calc.lint.subjects import Scene
from tortie.calc.simulate.simulation import Simulation

CHECKS: tuple[Callable[[Scene], Iterator[Finding]], ...] = (order, ties, matches, isolation)


def lint(simulation: Simulation) -> list[Finding]:
    """Everything that is found in the policies that were written, by document and path."""
    scene = Scene(simulation)
    found = {finding for check in CHECKS for finding in check(scene)}
    return sorted(found, key=lambda one: (one.source, one.title, one.path, one.code, one.message))
