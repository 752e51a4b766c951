"""Addresses that endpoints and nodes use, held against what IPAM says of them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tortie.base.addr import IP
from tortie.ipam.leak import why_dead
from tortie.ipam.pools import allocatable, pool_of
from tortie.ipam.survey import Survey
from tortie.model.workload import WorkloadEndpoint


def users(survey: Survey) -> Mapping[IP, tuple[str, ...]]:
    """Every address in use, with the names of what uses it."""
    found: dict[IP, list[str]] = {}
    for ip, endpoints in survey.users.items():
        found[ip] = [endpoint.title for endpoint in endpoints]
    for ip, node in survey.tunnels.items():
        found.setdefault(ip, []).append(f"tunnel of node {node}")
    return {ip: tuple(titles) for ip, titles in found.items()}


def outside_pools(survey: Survey) -> Mapping[IP, tuple[str, ...]]:
    """The addresses in use that no enabled pool has."""
    pools = [pool for pool in survey.pools if allocatable(pool)]
    return {ip: titles for ip, titles in users(survey).items() if pool_of(pools, ip) is None}


def missing(survey: Survey) -> Mapping[IP, tuple[str, ...]]:
    """The addresses in use that an enabled pool has and that are not assigned: the next pod may get them too."""
    held = {each.ip for each in survey.allocations if not each.cooling}
    outside = outside_pools(survey)
    return {ip: titles for ip, titles in users(survey).items() if ip not in held and ip not in outside}


def twice(survey: Survey) -> Mapping[IP, tuple[str, ...]]:
    """The addresses that several live endpoints have. A virtual machine that moves has two for a while."""
    found: dict[IP, tuple[str, ...]] = {}
    moving = {each.ip for each in survey.allocations if each.of_machine}
    for ip, endpoints in survey.users.items():
        if ip in moving:
            continue
        live = tuple(endpoint.title for endpoint in endpoints if why_dead(endpoint, survey) is None)
        if len(live) > 1:
            found[ip] = live
    return found


def unallocated(survey: Survey) -> Iterator[tuple[WorkloadEndpoint, IP]]:
    """The live endpoints of pods that have an address in a pool that is not assigned to anybody."""
    for ip in missing(survey):
        for endpoint in survey.users.get(ip, ()):
            if endpoint.spec.pod and endpoint.spec.container_id and why_dead(endpoint, survey) is None:
                yield endpoint, ip
