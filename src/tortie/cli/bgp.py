"""`tortie bgp`: who tells whom which routes, and how to change that."""

from __future__ import annotations

import typer

from tortie.cli import bgp_plan, bgp_routes

app = typer.Typer(no_args_is_help=True, help="Routes between nodes: where they come from, and how to change that.")


@app.callback()
def _bgp() -> None:
    """Routes between nodes: where they come from, and how to change that."""


app.command("routes")(bgp_routes.routes)
app.command("plan")(bgp_plan.plan)
