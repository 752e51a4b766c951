"""Who may send tunnel packets to this node: the other nodes, and those of FelixConfiguration's externalNodesList.

What is inside has its own source and is not looked at before it is unpacked; so a stranger's is dropped. VXLAN is not
tracked: its packets are the parts of many connections, and outside they belong together by nothing. Any of this is
there only where a pool travels so, the settings ask for the tunnel, or one of both did: the device goes later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tortie.base.addr import Net, collapse, host_net
from tortie.calc.state import DesiredState, TunnelDevice
from tortie.render.denials import DROPPED
from tortie.render.match import FAMILY, comment, denial
from tortie.render.members import ADDRESS, element
from tortie.render.ruleset import Chain, Set
from tortie.render.sources import WORKLOADS

Tunnel = tuple[str, int]
"""`VXLAN` or `IPIP`, and the IP version outside."""


def tunnels(state: DesiredState) -> tuple[Tunnel, ...]:
    """How packets of pods travel between nodes, or may still be travelling."""
    pools = {(pool.tunnel, pool.net.version) for pool in state.pools if pool.tunnel}
    return tuple(sorted(pools | state.overlay.asked))


def tunnel_sets(used: Iterable[Tunnel], state: DesiredState) -> dict[str, Set]:
    """Whom to take tunnel packets from, by IP version."""
    sets: dict[str, Set] = {}
    for version in {version for _, version in used}:
        nets: list[Net] = [host_net(ip) for ip in state.hosts if ip.version == version]
        nets += [net for net in state.settings.external_nodes if net.version == version]
        spec = f"type {ADDRESS[version]}; flags interval;"
        sets[f"tunnels{version}"] = Set(spec, frozenset(map(element, collapse(nets))))
    return sets


def untracked_lines(used: Iterable[Tunnel], port: int) -> Iterator[str]:
    """The port comes first: most packets are of TCP, and go on after one look."""
    for version in (version for name, version in used if name == "VXLAN"):
        yield f"udp dport {port} meta nfproto ipv{version} iifname != {WORKLOADS} notrack"


def passing_lines(used: Iterable[Tunnel], port: int) -> Iterator[str]:
    """For a hook behind that of `inbound_lines`, which has counted and dropped: these packets are not its business."""
    for name, version in used:
        yield f"{_packet(name, port)} {FAMILY[version]} saddr @tunnels{version} accept"


def inbound_lines(used: Iterable[Tunnel], port: int) -> Iterator[str]:
    for name, version in used:
        packet = _packet(name, port)
        yield f"{packet} {FAMILY[version]} saddr @tunnels{version} counter accept {comment(f'{name} from a node')}"
        yield f"{packet} meta nfproto ipv{version} {denial(f'{name} from no node', DROPPED)}"


def outbound_lines(used: Iterable[Tunnel], port: int) -> Iterator[str]:
    for name, version in used:
        to = f"{FAMILY[version]} daddr @tunnels{version}"
        yield f"{_packet(name, port)} {to} counter accept {comment(f'{name} to a node')}"


def source_chain(devices: Iterable[TunnelDevice]) -> dict[str, Chain]:
    """What a process of this node sends into a tunnel from the node's own address gets the tunnel's: the answer to
    another would come back outside, past the tunnel."""
    lines = tuple(
        f'oifname "{device.name}" {FAMILY[device.local.version]} saddr {device.local}'
        f" counter masquerade {comment('to a tunnel: the tunnel address')}"
        for device in devices
        if device.address is not None
    )
    return (
        {"tunnel-source": Chain(lines, "type nat hook postrouting priority srcnat + 11; policy accept;")}
        if lines
        else {}
    )


def _packet(tunnel: str, port: int) -> str:
    return f"udp dport {port}" if tunnel == "VXLAN" else "meta l4proto 4"
