"""`tortie migrate`: what a cluster that another network runs would become, and the steps that lead there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tortie.base.errors import ConfigError
from tortie.cli.choice import check_choice

if TYPE_CHECKING:
    from tortie.calc.migrate import Evidence, Migration

SOURCES = ("calico", "flannel")

From = Annotated[str, typer.Option("--from", metavar="calico|flannel", help="What runs the cluster's network now.")]
Plan = Annotated[bool, typer.Option("--plan", help="Print the plan; nothing is done.")]
Files = Annotated[
    list[str] | None,
    typer.Option("-f", "--filename", metavar="FILE|DIR|-", help="What kubectl get -o yaml printed; repeatable."),
]
Kubeconfig = Annotated[str, typer.Option("--kubeconfig", metavar="FILE", help="Ask the cluster itself (calico).")]
Pool = Annotated[str, typer.Option("--pool", metavar="CIDR", help="With --from flannel: the new pods' network.")]
Output = Annotated[str, typer.Option("-o", "--output", help="text or json.")]


def migrate(
    source: From = "",
    plan: Plan = False,
    filename: Files = None,
    kubeconfig: Kubeconfig = "",
    pool: Pool = "",
    output: Output = "text",
) -> None:
    """Say what a cluster of Calico's or Flannel's would become, what differs, the steps, and the way back.

    Exit status 1 when something has to be settled first."""
    _check(source, plan, filename, kubeconfig, pool, output)
    found = _planned(source, _live(kubeconfig) if kubeconfig else _read(filename or []), pool)
    typer.echo(json.dumps(found.as_json(), indent=2, ensure_ascii=False) if output == "json" else str(found))
    if not found.possible:
        raise typer.Exit(1)


def _check(source: str, plan: bool, filename: list[str] | None, kubeconfig: str, pool: str, output: str) -> None:
    if not source:
        raise ConfigError("say what the cluster has now: --from calico or --from flannel")
    check_choice(source, SOURCES, "--from")
    if not plan:
        raise ConfigError("the steps are yours to take: say --plan to have them printed")
    check_choice(output, ("text", "json"), "--output")
    if pool and source != "flannel":
        raise ConfigError("goes with --from flannel; pools of Calico stay as they are", "--pool")
    if bool(filename) == bool(kubeconfig):
        raise ConfigError("give -f with files of objects, or --kubeconfig")
    if kubeconfig and source == "flannel":
        raise ConfigError("Flannel's configuration is in a ConfigMap: kubectl get ... -o yaml, then -f", "--kubeconfig")


def _planned(source: str, evidence: Evidence, pool: str) -> Migration:
    from tortie.calc.migrate import calico, flannel

    return calico(evidence) if source == "calico" else flannel(evidence, pool)


def _read(names: list[str]) -> Evidence:
    from tortie.calc.migrate import gathered

    return gathered(_documents(names))


def _documents(names: list[str]) -> Iterator[dict[str, Any]]:
    from tortie.cli.manifests import texts
    from tortie.model.document import load_documents

    for name in names:
        for source, data in texts(name, recursive=True):
            yield from load_documents(data, source)


def _live(kubeconfig: str) -> Evidence:
    """Of the cluster itself: what our own datastore reads there."""
    import asyncio

    from tortie.calc.migrate import Evidence
    from tortie.model.k8s import K8sNetworkPolicy, K8sNode, Pod
    from tortie.model.meta import Resource
    from tortie.render.crds import KINDS
    from tortie.store import open_store

    if not Path(kubeconfig).is_file():
        raise ConfigError(f"there is no file {kubeconfig}", "--kubeconfig")

    async def ask() -> tuple[Resource, ...]:
        store = open_store(f"kubernetes:{kubeconfig}")
        try:
            kinds: tuple[type[Resource], ...] = (*KINDS, K8sNode, Pod, K8sNetworkPolicy)
            return tuple([one for kind in kinds for one in (await store.list(kind)).items])
        finally:
            await store.close()

    return Evidence(asyncio.run(ask()))
