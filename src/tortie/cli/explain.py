"""`tortie explain`: what happens to a connection and which rule decides, with that rule's counter from the kernel."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tortie.base.errors import ConfigError, NotFound
from tortie.cli.choice import check_choice
from tortie.cli.datastore import Datastore, Lab, asked, locate, place_of
from tortie.cli.explain_kernel import Kernel, Read, kernel_of
from tortie.cli.explain_probe import Probed, probed
from tortie.cli.explain_show import as_json, show

if TYPE_CHECKING:
    from tortie.calc.cluster import Cluster
    from tortie.calc.explain import Explainer, Explanation, Party
    from tortie.model.meta import Resource

DIFFERS = 3
"""Exit status when the kernel differs from the prediction."""
ICMP = ("icmp", "icmpv6", "1", "58")
USUAL_PORT = "80"
PATIENCE, PAUSE = 1.5, 0.2
"""Seconds until agents should have followed a change of a moment ago, and between two looks."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, as it was typed."""

    source: str
    destination: str
    port: str
    protocol: str
    source_port: int
    icmp: tuple[int, int] | None
    versions: tuple[int, ...]


def explain(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="NAMESPACE/POD, a node, an address, or a lab's outside.")
    ],
    destination: Annotated[
        str,
        typer.Argument(
            metavar="DESTINATION", help="The same, svc/NAMESPACE/NAME[:PORT], netset/NAMESPACE/NAME or gns/NAME."
        ),
    ],
    port: Annotated[
        str, typer.Option("--port", help="Destination port: a number, or a name that the pod gives; 80 if not given.")
    ] = "",
    protocol: Annotated[str, typer.Option("--protocol", help="tcp, udp, icmp, sctp, udplite, or a number.")] = "tcp",
    source_port: Annotated[int, typer.Option("--source-port", min=0, max=65535, help="Source port.")] = 40000,
    icmp_type: Annotated[
        int | None, typer.Option("--icmp-type", min=0, max=255, help="With icmp; an echo request if not given.")
    ] = None,
    icmp_code: Annotated[int, typer.Option("--icmp-code", min=0, max=255, help="With --icmp-type.")] = 0,
    four: Annotated[bool, typer.Option("-4", help="IPv4 only.")] = False,
    six: Annotated[bool, typer.Option("-6", help="IPv6 only.")] = False,
    rules: Annotated[bool, typer.Option("--rules", help="Show the kernel's rules in full.")] = False,
    probe: Annotated[bool, typer.Option("--probe", help="In a lab: send a real packet, and compare.")] = False,
    output: Annotated[str, typer.Option("-o", "--output", help="text or json.")] = "text",
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Say whether a connection is allowed, and which tier, policy and rule decide.

    Exit status 0 whatever the answer is; 3 when a kernel differs from it.
    """
    check_choice(output, ("text", "json"), "--output")
    versions = tuple(version for version, only in ((4, four), (6, six)) if only) or (4, 6)
    if icmp_type is not None and protocol.lower() not in ICMP:
        raise ConfigError(f"is for icmp, not for {protocol}", "--icmp-type")
    if port and protocol.lower() in ICMP:
        raise ConfigError(f"is for protocols that have ports, not for {protocol}", "--port")
    icmp = (icmp_type, icmp_code) if icmp_type is not None else None
    question = Question(source, destination, port or USUAL_PORT, protocol, source_port, icmp, versions)
    found, kernel, read = _answered(question, datastore, lab)
    probes: list[Probed] = []
    if probe:
        probes = probed(found, lab, rejecting=read.explainer.state.settings.deny == "Reject")
        kernel = kernel_of(found, read, lab)  # the counters have moved
    if output == "json":
        beside: Sequence[Probed | None] = probes or [None] * len(found)
        typer.echo(json.dumps([as_json(one, kernel, sent) for one, sent in zip(found, beside, strict=True)], indent=2))
    else:
        show(found, kernel, probes, rules=rules)
    if kernel.differences or any(sent.differences for sent in probes):
        raise typer.Exit(DIFFERS)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A cluster as it is in a datastore at one moment; `revisions` say which, by kind."""

    cluster: Cluster
    explainer: Explainer
    revisions: Mapping[str, int]


def _answered(question: Question, datastore: str, lab: str) -> tuple[list[Explanation], Kernel, Read]:
    """The explanations, what the kernels have, and from what they follow. Agents may be a moment behind a change, or by
    now ahead of what was read: what differs is looked at again, and read again, before it is believed."""
    deadline = time.monotonic() + PATIENCE
    while True:
        loaded = asked(datastore, lab, _load)
        found = explained(question, loaded.explainer)
        nodes = {step.node for one in found for step in one.steps if step.node}
        settings = {node: loaded.cluster.settings_of(node) for node in nodes}
        read = Read(str(place_of(locate(datastore, lab))), loaded.explainer, settings, loaded.revisions)
        for _ in range(2):
            kernel = kernel_of(found, read, lab)
            if not kernel.differences or time.monotonic() > deadline:
                return found, kernel, read
            time.sleep(PAUSE)


async def load(store: Any) -> Explainer:
    """The whole cluster as it is in a datastore now."""
    return (await _load(store)).explainer


async def _load(store: Any) -> Loaded:
    from tortie.calc.cluster import INPUTS, Cluster
    from tortie.calc.explain import Explainer
    from tortie.model.k8s import K8sNode

    cluster = Cluster(None)
    revisions: dict[str, int] = {}
    everything: list[Resource] = []
    for kind in INPUTS:
        for item in (await store.list(kind)).items:
            cluster.put(item)
            everything.append(item)
            revision = int(item.metadata.resource_version or 0)
            revisions[kind.KIND.key] = max(revision, revisions.get(kind.KIND.key, 0))
    everything += (await store.list(K8sNode)).items  # pod CIDRs: no input of a node's, which is told where pods are
    return Loaded(cluster, Explainer(cluster, everything), revisions)


def explained(question: Question, explainer: Explainer) -> list[Explanation]:
    """One for each party that is meant and each IP version that both ends have. Raises NotFound, ConfigError."""
    named = not question.port.isdecimal()
    number = 0 if named else int(question.port)
    if not 0 <= number <= 65535:
        raise ConfigError(f"{number} is not from 0 to 65535", "--port")
    found: list[Explanation] = []
    for source in _ends(explainer, question.source, question.protocol, 0):
        asked_for = _with_port(question) if named else question.destination
        for to in _ends(explainer, asked_for, question.protocol, number, source):
            port = explainer.port(to, question.protocol, question.port) if named and not to.service else number
            for version in explainer.versions(source, to):
                if version in question.versions:
                    one = explainer.explain(
                        source, to, question.protocol, port, version,
                        source_port=question.source_port, icmp=question.icmp,
                    )  # fmt: skip
                    found.append(one)
    if not found:
        raise ConfigError(f"{question.source} and {question.destination} have no addresses of the same IP version")
    return found


def _with_port(question: Question) -> str:
    """A service's port has a name of the service's, not of a pod's."""
    plain = question.destination.startswith("svc/") and ":" not in question.destination
    return f"{question.destination}:{question.port}" if plain else question.destination


def _ends(explainer: Explainer, text: str, protocol: str, port: int, source: Party | None = None) -> list[Party]:
    """Who is meant by those who ask from `source`, `outside` being that of a lab unless a pod is called so. Raises
    NotFound, ConfigError."""
    from tortie.calc.explain import Party
    from tortie.lab.topology import OUTSIDE, topology

    try:
        return explainer.parties(text, protocol, port, source)
    except NotFound:
        if text != OUTSIDE:
            raise
    host = topology().outside
    return [Party(OUTSIDE, (host.ipv4.ip, host.ipv6.ip))]
