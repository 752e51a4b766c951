"""The tables of `tortie lab status`. Pure."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tortie.lab.cluster import LabStatus, NodeRow
from tortie.lab.podspec import not_honoured_line
from tortie.model.k8s import Pod

_PHASE_STYLES = {"Running": "green", "Succeeded": "dim", "Failed": "red"}


def render(status: LabStatus) -> RenderableType:
    """Nodes, then pods, then what deserves a line."""
    parts: list[RenderableType] = [_nodes(status)]
    if status.pods:
        parts.append(_pods(status.pods))
    if not status.kubelet:
        again = "" if status.lab.name == "default" else f" --name {status.lab.name}"
        parts.append(Text(f'the lab\'s kubelet is not running: "tortie lab up{again}" starts it again', "bold red"))
    ignored = not_honoured_line(status.pods)
    if ignored:
        parts.append(Text(ignored, "dim"))
    return Group(*parts)


def _nodes(status: LabStatus) -> Table:
    table = Table(title=f"lab {status.lab.name}", title_justify="left", title_style="bold")
    for heading in ("node", "address", "agent", "BGP", "pods"):
        table.add_column(heading, justify="right" if heading == "pods" else "left")
    wanted = 2 * (len(status.nodes) - 1)
    for row in status.nodes:
        ipv4, ipv6 = (str(interface.ip) for interface in (row.host.ipv4, row.host.ipv6))
        table.add_row(row.host.name, f"{ipv4}  {ipv6}", _agent(row), _sessions(row, wanted), str(row.pods))
    return table


def _agent(row: NodeRow) -> Text:
    if not row.pid:
        return Text("not running", "red")
    if not row.state.answers:
        return Text(f"pid {row.pid}, does not answer", "red")
    return Text(f"pid {row.pid}, ready", "green") if row.state.ready else Text(f"pid {row.pid}, not ready", "yellow")


def _sessions(row: NodeRow, wanted: int) -> Text:
    total = max(wanted, row.state.sessions)
    good = row.state.established >= total
    return Text(f"{row.state.established} of {total} up", "green" if good else "yellow")


def _pods(pods: tuple[Pod, ...]) -> Table:
    table = Table(title="pods", title_justify="left", title_style="bold")
    for heading in ("namespace", "name", "phase", "node", "addresses", "message"):
        table.add_column(heading, overflow="fold")
    for pod in pods:
        phase = pod.status.phase or "Pending"
        ips = "  ".join(entry.ip for entry in pod.status.pod_ips)
        shown = Text(phase, _PHASE_STYLES.get(phase, "yellow"))
        table.add_row(pod.namespace, pod.name, shown, pod.spec.node_name or "-", ips or "-", pod.status.message)
    return table
