"""`tortie cluster diags`: what somebody who helps from afar wants to know of a cluster, in one file. No secrets.

datastore: every object but Secrets, what does not fit in IPAM ─┐
lab: what each node's agent says, logs ─────────────────────────┼─► redact ─► calico-diagnostics-TIME.tar.gz
Kubernetes: logs and descriptions of our pods, by kubectl ──────┘
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tortie.base.errors import ConfigError, TortieError
from tortie.cli.datastore import LABS, UNAUTHORIZED, Datastore, Lab, asked_anyway, locate, place_of
from tortie.cli.stopping import stopped_as_by_interrupt

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from tortie.cli.tarball import Tarball
    from tortie.model.store import Store

app = typer.Typer(no_args_is_help=True, help="The cluster as a whole.")

SECONDS = 60.0
"""For one kubectl."""
OURS = ("kube-system", "calico-system", "tigera-operator", "calico-apiserver")
"""Namespaces whose pods may be ours or Calico's."""
LABELS = ("k8s-app=calico-node", "k8s-app=calico-kube-controllers", "k8s-app=tortie-node", "k8s-app=tortie-controllers")
QUESTIONS = ("node", "status", "health", "addresses", "mtu", "counters", "denials")
AGENT_SECONDS = 10.0


@app.callback()
def _cluster() -> None:
    """The cluster as a whole."""


@app.command()
def diags(
    since: Annotated[
        str, typer.Option("--since", metavar="DURATION", help="Logs not older than this, as 5s, 2m.")
    ] = "",
    max_logs: Annotated[int, typer.Option("--max-logs", min=0, help="Of how many pods of a kind logs are taken.")] = 5,
    max_parallelism: Annotated[int, typer.Option("--max-parallelism", min=1, help="Questions at a time.")] = 10,
    focus_nodes: Annotated[
        str, typer.Option("--focus-nodes", metavar="NODE,...", help="Nodes whose pods come first.")
    ] = "",
    skip_temp_dir_cleanup: Annotated[
        bool, typer.Option("--skip-temp-dir-cleanup", help="Not needed: there is no such directory.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The file; else one in the working directory.")
    ] = None,
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Collect what tells how a cluster is: its objects, what does not fit, agents' answers, logs. No secrets."""
    from concurrent.futures import ThreadPoolExecutor

    from tortie.base.duration import parse_duration
    from tortie.cli.tarball import Tarball

    if since:
        try:
            parse_duration(since)
        except ConfigError as error:
            raise error.within("--since") from None
    focus = tuple(filter(None, focus_nodes.split(",")))
    where = locate(datastore, lab)
    title = f"calico-diagnostics-{datetime.now(UTC):%Y%m%d_%H%M%S}"
    with stopped_as_by_interrupt(), Tarball(output or Path(f"{title}.tar.gz"), title) as tar:
        typer.echo("Collecting cluster diagnostics")
        _add_objects(tar, datastore, lab)
        with ThreadPoolExecutor(max_parallelism) as threads:
            _add_lab(tar, threads, where, focus, max_logs)
            _add_kubernetes(tar, threads, where, since, focus, max_logs)
    typer.echo(f"Diagnostics saved to {tar.path}")


def _add_objects(tar: Tarball, datastore: str, lab: str) -> None:
    """A file for each kind, and what `ipam check` says. A datastore that does not answer is a line in the file."""
    from tortie.cli.ipam_text import check_lines
    from tortie.ipam.report import report
    from tortie.ipam.survey import survey
    from tortie.model.document import dump_yaml
    from tortie.model.kinds import KINDS
    from tortie.model.secret import Secret

    async def read(store: Store) -> None:
        answers = False
        for kind in KINDS:
            if kind is Secret:
                continue
            try:
                listed = (await store.list(kind)).items
            except TortieError as error:
                if not (answers or str(error).startswith(UNAUTHORIZED)):
                    raise  # it is away: each of the others would be waited for, too
                tar.add(f"objects/{kind.KIND.key}.error", f"{error}\n")
            else:
                answers = True
                tar.add(f"objects/{kind.KIND.key}.yaml", dump_yaml(*listed) if listed else "")
        found = report(await survey(store, datetime.now(UTC)))
        tar.add("ipam-check.txt", "\n".join(check_lines(found, False, True)) + "\n")

    typer.echo("Collecting objects of the datastore")
    try:
        asked_anyway(datastore, lab, read)
    except TortieError as error:
        typer.echo(f"tortie: {error}", err=True)
        tar.add("objects.error", f"{error}\n")


def first(nodes: Sequence[str], focus: Sequence[str], most: int) -> list[str]:
    """Those to look at: nodes in focus before others, `most` of them, or more if more are in focus.

    >>> first(["a", "b", "c"], ["c"], 2), first(["a", "b"], ["b", "a"], 1)
    (['c', 'a'], ['b', 'a'])
    """
    focused = [node for node in focus if node in nodes]
    others = [node for node in nodes if node not in focused]
    return focused + others[: max(0, most - len(focused))]


# --- a lab --------------------------------------------------------------------------------------------------------


def _add_lab(tar: Tarball, threads: ThreadPoolExecutor, where: str, focus: Sequence[str], most: int) -> None:
    """If the datastore is a lab's: what its agents say, and the ends of their logs."""
    from tortie.agent.client import ask
    from tortie.cli.node import sockets

    path = Path(where.removeprefix("sqlite:"))
    if path.parent.parent != LABS:
        return
    places = sockets(path.parent.name)
    typer.echo(f"Collecting answers of {len(places)} agents")

    def answer(asked: tuple[str, str]) -> str:
        node, question = asked
        try:
            return json.dumps(ask(places[node], f"/{question}", AGENT_SECONDS), indent=2, ensure_ascii=False) + "\n"
        except TortieError as error:
            return f"{error}\n"

    every = [(node, question) for node in places for question in QUESTIONS]
    for (node, question), text in zip(every, threads.map(answer, every), strict=True):
        tar.add(f"nodes/{node}/{question}.json", text)
    for node in first(list(places), focus, most):
        run_dir = places[node].parent
        tar.add_files(f"nodes/{node}", sorted((*run_dir.glob("*.log"), *run_dir.glob("*.conf"))))


# --- Kubernetes ---------------------------------------------------------------------------------------------------


def _add_kubernetes(
    tar: Tarball, threads: ThreadPoolExecutor, where: str, since: str, focus: Sequence[str], most: int
) -> None:
    """If the datastore is Kubernetes', or names one: what kubectl tells of nodes, our pods and their logs."""
    meant = place_of(where)
    if not (meant.backend == "kubernetes" or meant.kubernetes_too):
        return
    file, context = meant.config.kubeconfig, meant.config.k8s_current_context
    kubectl = ["kubectl", *(["--kubeconfig", file] if file else []), *(["--context", context] if context else [])]
    typer.echo("Collecting what kubectl tells")
    asked = {
        "version.txt": ["version"],
        "nodes.txt": ["get", "nodes", "-o", "wide"],
        "nodes.yaml": ["get", "nodes", "-o", "yaml"],
        "pods.txt": ["get", "pods", "--all-namespaces", "-o", "wide"],
        "events.txt": ["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"],
        "daemonsets.yaml": ["get", "daemonsets", "-n", OURS[0], "-o", "yaml"],
        "deployments.yaml": ["get", "deployments", "-n", OURS[0], "-o", "yaml"],
    }
    for name, text in zip(asked, threads.map(lambda one: _kubectl([*kubectl, *one]), asked.values()), strict=True):
        tar.add(f"kubernetes/{name}", text)
    pods = [pod for label in LABELS for pod in _pods(kubectl, label, focus, most)]
    logs = [[*kubectl, *_logs(namespace, name, since)] for namespace, name in pods]
    for (namespace, name), text in zip(pods, threads.map(_kubectl, logs), strict=True):
        tar.add(f"kubernetes/logs/{namespace}/{name}.txt", text)


def _pods(kubectl: Sequence[str], label: str, focus: Sequence[str], most: int) -> list[tuple[str, str]]:
    """Namespaces and names of the pods with a label whose logs are taken."""
    form = "jsonpath={range .items[*]}{.metadata.namespace} {.metadata.name} {.spec.nodeName}{'\\n'}{end}"
    text = _kubectl([*kubectl, "get", "pods", "--all-namespaces", "-l", label, "-o", form])
    rows = [row for row in map(str.split, text.splitlines()) if len(row) == 3 and row[0] in OURS]
    nodes = first(list(dict.fromkeys(row[2] for row in rows)), focus, most)
    return [(row[0], row[1]) for node in nodes for row in rows if row[2] == node]


def _logs(namespace: str, pod: str, since: str) -> list[str]:
    from tortie.cli.tarball import MOST_OF_A_FILE

    asked = ["logs", "-n", namespace, pod, "--all-containers", "--timestamps", f"--limit-bytes={MOST_OF_A_FILE}"]
    return [*asked, *([f"--since={since}"] if since else [])]


def _kubectl(command: Sequence[str]) -> str:
    """What it prints, or why it does not. Blocks."""
    import subprocess

    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
            env=dict(os.environ),
        )
    except subprocess.TimeoutExpired:
        return f"not done in {SECONDS:g} s\n"
    except OSError as error:
        return f"{command[0]} cannot be run: {error.strerror}\n"
    return done.stdout + (f"{done.stderr}\nexit status {done.returncode}\n" if done.returncode else "")
