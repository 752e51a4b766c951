"""The tables of `tortie lab status`. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tortie.lab import dns
from tortie.lab.cluster import LabStatus, RouterRow
from tortie.lab.controllers import ControllersState
from tortie.lab.podspec import not_honoured_line
from tortie.lab.readiness import READY
from tortie.model.k8s import Pod

_PHASE_STYLES = {"Running": "green", "Succeeded": "dim", "Failed": "red"}


def render(status: LabStatus) -> RenderableType:
    """Nodes, routers, then pods, then what deserves a line."""
    parts: list[RenderableType] = [_nodes(status)]
    if status.routers:
        parts.append(_routers(status.routers))
    own = [pod for pod in status.pods if pod.namespace == dns.NAMESPACE]
    shown = [pod for pod in status.pods if pod not in own or not pod.ready]
    if shown:
        parts.append(_pods(shown))
    if status.controllers is not None:
        parts.append(_controllers(status.controllers))
    if own:
        parts.append(_own(own))
    if not status.kubelet:
        again = "" if status.lab.name == "default" else f" --name {status.lab.name}"
        parts.append(Text(f'the lab\'s kubelet is not running: "tortie lab up{again}" starts it again', "bold red"))
    parts += _troubles(status)
    ignored = not_honoured_line(status.pods)
    if ignored:
        parts.append(Text(ignored, "dim"))
    return Group(*parts)


def _nodes(status: LabStatus) -> Table:
    table = Table(title=f"lab {status.lab.name}", title_justify="left", title_style="bold")
    own = ("network",) if any(row.network for row in status.nodes) else ()
    flannel = ("flanneld",) if any(row.flannel for row in status.nodes) else ()
    proxy = ("proxy",) if any(row.proxy for row in status.nodes) else ()
    of_agents = ("agent", *(() if flannel else ("BGP",))) if status.lab.has_agents else ()
    for heading in ("node", "address", *own, *flannel, *proxy, *of_agents, "pods"):
        table.add_column(heading, justify="right" if heading == "pods" else "left", overflow="fold")
    for row in status.nodes:
        ipv4, ipv6 = (str(interface.ip) for interface in (row.host.ipv4, row.host.ipv6))
        every = row.wanted | row.state.sessions.keys()
        bgp = _sessions(len(row.state.established), len(every))
        cells: list[str | Text] = [row.network] if own else []
        if row.flannel is not None:
            cells.append(_daemon(row.flannel_pid, row.flannel.answers, row.flannel.ready))
        if row.proxy is not None:
            cells.append(_daemon(row.proxy_pid, row.proxy.answers, row.proxy.ready))
        if of_agents:
            cells += [_daemon(row.pid, row.state.answers, row.state.ready), *([] if flannel else [bgp])]
        table.add_row(row.host.name, f"{ipv4}  {ipv6}", *cells, str(row.pods))
    return table


def _daemon(pid: int, answers: bool, ready: bool) -> Text:
    if not pid:
        return Text("not running", "red")
    if not answers:
        return Text(f"pid {pid}, does not answer", "red")
    return Text(f"pid {pid}, ready", "green") if ready else Text(f"pid {pid}, not ready", "yellow")


def _controllers(state: ControllersState) -> Text:
    """One line below the tables."""
    if not state.pid:
        return Text("controllers: not running", "red")
    said = f"controllers: pid {state.pid}"
    return Text(f"{said}, ready", "green") if state.ready else Text(f"{said}, not ready: {state.why}", "yellow")


def _own(pods: Sequence[Pod]) -> Text:
    """The cluster's own pods, in one line while all is well with them."""
    ready = sum(pod.ready for pod in pods)
    return Text(f"{dns.NAMESPACE}: {ready} of {len(pods)} pods ready", "green" if ready == len(pods) else "yellow")


def _troubles(status: LabStatus) -> Iterator[Text]:
    """What flannelds and proxies have to complain about."""
    for row in status.nodes:
        if row.flannel is not None and row.flannel_pid and row.flannel.why:
            yield Text(f"flanneld of {row.host.name}: {row.flannel.why}", "yellow")
        if row.proxy is not None and row.proxy_pid and row.proxy.why:
            yield Text(f"proxy of {row.host.name}: {row.proxy.why}", "yellow")


def _routers(rows: tuple[RouterRow, ...]) -> Table:
    table = Table(title="routers", title_justify="left", title_style="bold")
    for heading in ("router", "address", "AS", "daemon", "BGP"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        router = row.router
        addresses = "  ".join(address.partition("/")[0] for address in router.addresses[:2])
        state, style = (f"pid {row.pid}", "green") if row.pid else ("not running", "red")
        daemon = Text(f"{router.daemon}, {state}", style)
        bgp = _sessions(len(row.established & row.wanted), len(row.wanted))
        table.add_row(router.name, addresses, str(router.as_number), daemon, bgp)
    return table


def _sessions(established: int, total: int) -> Text:
    return Text(f"{established} of {total} up", "green" if established >= total else "yellow")


def _pods(pods: Sequence[Pod]) -> Table:
    """An address has a line of its own, and nothing has a column that is empty: people copy addresses, whole ones."""
    table = Table(title="pods", title_justify="left", title_style="bold")
    messages = {id(pod): message_of(pod) for pod in pods}
    message = ("message",) if any(messages.values()) else ()
    for heading in ("namespace", "name", "phase", "node", "addresses", *message):
        table.add_column(heading, overflow="fold")
    for pod in pods:
        phase = pod.status.phase or "Pending"
        ips = "\n".join(entry.ip for entry in pod.status.pod_ips)
        unready = phase == "Running" and not pod.ready
        shown = Text("Running, not ready", "yellow") if unready else Text(phase, _PHASE_STYLES.get(phase, "yellow"))
        said = [Text(messages[id(pod)])] if message else []
        table.add_row(pod.namespace, pod.name, shown, pod.spec.node_name or "-", ips or "-", *said)
    return table


def message_of(pod: Pod) -> str:
    """Why a pod does not run, or why it is not ready."""
    if pod.status.message or pod.status.phase != "Running":
        return pod.status.message
    return next((one.message for one in pod.status.conditions if one.type == READY and one.status != "True"), "")
