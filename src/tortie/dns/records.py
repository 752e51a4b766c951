"""What DNS says of one service: its records below its own name. Values in, values out.

    with ClusterIPs   NAME: A, AAAA    _PORT._PROTOCOL.NAME: SRV to NAME
    headless          NAME: A, AAAA    _PORT._PROTOCOL.NAME: SRV to each HOST.NAME    HOST.NAME: A, AAAA
    ExternalName      NAME: CNAME

HOST is an endpoint's hostname, else its address with dashes. Only ready endpoints count, all of them where the service
publishes not ready addresses.

Source: Kubernetes DNS-Based Service Discovery, version 1.1.0, sections 2.3 to 2.5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tortie.base.addr import IP, parse_ip
from tortie.base.errors import ConfigError
from tortie.model.service import EndpointSlice, Service, endpoint_ip

Labels = tuple[str, ...]
"""Of a name, the leftmost first, in small letters."""
Data = Mapping[str, tuple[str, ...]]
"""By type of record: what each of them holds, as a zone file has it."""

ADDRESS = {4: "A", 6: "AAAA"}
PRIORITY, WEIGHT = 0, 100  # of SRV records: all alike, as RFC 2782 has them chosen by weight
LABEL = re.compile(r"[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?\Z")


@dataclass(frozen=True, slots=True)
class Records:
    """`below` is what there is at names relative to the service's, () being its own. `pointers` are the names that
    belong to addresses, relative, too. `inner` are names at which nothing is, but below which something is."""

    below: Mapping[Labels, Data] = field(default_factory=dict)
    pointers: Mapping[IP, tuple[Labels, ...]] = field(default_factory=dict)
    inner: frozenset[Labels] = frozenset()


def is_headless(service: Service) -> bool:
    return service.spec.type != "ExternalName" and "None" in (service.spec.cluster_ip, *service.spec.cluster_ips)


def cluster_ips(service: Service) -> tuple[IP, ...]:
    """Of a service that is neither headless nor somewhere else; none while it has got none yet."""
    spec = service.spec
    if spec.type == "ExternalName" or is_headless(service):
        return ()
    texts = spec.cluster_ips or ((spec.cluster_ip,) if spec.cluster_ip else ())
    return tuple(dict.fromkeys(ip for text in texts if (ip := ip_of(text)) is not None))


def records(service: Service, slices: Iterable[EndpointSlice], name: str) -> Records | None:
    """Of a service whose own name is `name`, absolute and with the final dot. None where there is no such name: one
    that is headless has it only with ready endpoints, one that is elsewhere if elsewhere is a name."""
    if service.spec.type == "ExternalName":
        target = canonical(service.spec.external_name)
        return Records({(): {"CNAME": (target,)}}) if target else None
    return _headless(service, slices, name) if is_headless(service) else _with_address(service, name)


def canonical(text: str) -> str:
    """A host's name, absolute, with the final dot; "" for what is none, as an address."""
    labels = text.strip().lower().rstrip(".").split(".")
    fits = len(text) <= 253 and all(LABEL.match(label) for label in labels) and ip_of(".".join(labels)) is None
    return ".".join(labels) + "." if fits else ""


def _with_address(service: Service, name: str) -> Records:
    below: dict[Labels, dict[str, tuple[str, ...]]] = {(): addresses(cluster_ips(service))}
    for port in service.spec.ports:
        labels = _port_labels(port.name, port.protocol)
        if labels and cluster_ips(service):
            below[labels] = {"SRV": (f"{PRIORITY} {WEIGHT} {port.port} {name}",)}
    return Records(below, dict.fromkeys(cluster_ips(service), ((),)), _inner(below))


def _headless(service: Service, slices: Iterable[EndpointSlice], name: str) -> Records | None:
    hosts: dict[str, set[IP]] = {}
    targets: dict[Labels, set[tuple[int, str]]] = {}
    for each in slices:
        if each.version is None:
            continue
        ports = {(labels, port.port) for port in each.ports if (labels := _port_labels(port.name, port.protocol))}
        for host, ip in _hosts(each, everybody=service.spec.publish_not_ready_addresses):
            hosts.setdefault(host, set()).add(ip)
            for labels, number in ports:
                if number:
                    targets.setdefault(labels, set()).add((number, host))
    if not hosts:
        return None
    below: dict[Labels, dict[str, tuple[str, ...]]] = {(host,): addresses(ips) for host, ips in hosts.items()}
    below[()] = addresses({ip for ips in hosts.values() for ip in ips})
    for labels, found in targets.items():
        weight = max(1, WEIGHT // len(found))
        below[labels] = {"SRV": tuple(f"{PRIORITY} {weight} {port} {host}.{name}" for port, host in sorted(found))}
    pointers: dict[IP, list[Labels]] = {}
    for host in sorted(hosts):
        for ip in hosts[host]:
            pointers.setdefault(ip, []).append((host,))
    return Records(below, {ip: tuple(names) for ip, names in pointers.items()}, _inner(below))


def _hosts(one: EndpointSlice, *, everybody: bool) -> Iterator[tuple[str, IP]]:
    """Names and addresses of the endpoints that count. Nothing said about readiness is ready."""
    for endpoint in one.endpoints:
        if endpoint.conditions.ready is False and not everybody:
            continue
        hostname = endpoint.hostname.lower()
        for text in endpoint.addresses:
            if (ip := endpoint_ip(text, one.version)) is not None:
                yield hostname if LABEL.match(hostname) else dashed(ip), ip


def dashed(ip: IP) -> str:
    """An address as a label.

    >>> dashed(parse_ip("10.244.1.5")), dashed(parse_ip("fd00::1:5"))
    ('10-244-1-5', 'fd00--1-5')
    """
    return str(ip).replace(".", "-").replace(":", "-")


def undashed(label: str) -> IP | None:
    """The address of such a label; None for any other, also for one that has dots in it.

    >>> str(undashed("fd00--1-5")), undashed("web-1")
    ('fd00::1:5', None)
    """
    if "." in label or ":" in label:
        return None
    return ip_of(label.replace("-", ".")) or ip_of(label.replace("-", ":"))


def addresses(ips: Iterable[IP]) -> dict[str, tuple[str, ...]]:
    """A and AAAA records."""
    found: dict[str, list[str]] = {}
    for ip in sorted(ips, key=lambda ip: (ip.version, int(ip))):
        found.setdefault(ADDRESS[ip.version], []).append(str(ip))
    return {kind: tuple(texts) for kind, texts in found.items()}


def _port_labels(name: str, protocol: str) -> Labels:
    """Nothing for a port without a name, which has no SRV record."""
    label = f"_{name.lower()}"
    return (label, f"_{protocol.lower()}") if name and LABEL.match(label) else ()


def _inner(below: Mapping[Labels, object]) -> frozenset[Labels]:
    return frozenset(labels[at:] for labels in below for at in range(1, len(labels))) - below.keys()


def ip_of(text: str) -> IP | None:
    """None for what is no address."""
    try:
        return parse_ip(text)
    except ConfigError:
        return None
