"""All there is to know of one address: who has it, where it comes from, and whether it will be taken back. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from tortie.base.addr import IP, host_net
from tortie.base.errors import ConfigError
from tortie.ipam.allocation import Allocation
from tortie.ipam.block import moment, stamp
from tortie.ipam.leak import GRACE, Standing, Verdict, held_ready, leaks, reclaimable, verdict, why_dead
from tortie.ipam.owner import Owner
from tortie.ipam.pools import Reserved, allocatable, pool_of
from tortie.ipam.survey import Survey, pod_ips
from tortie.model.ipam import IPAMBlock


@dataclass(frozen=True, slots=True)
class Explanation:
    """`facts` are pairs of what is told (pod, endpoint, handle, since, ...) and what there is to say of it."""

    ip: IP
    state: str
    facts: tuple[tuple[str, str], ...]


STATES = {
    Standing.USED: "in use",
    Standing.LEAKED: "leaked: assigned, but nobody uses it",
    Standing.UNKNOWN: "assigned",
    Standing.RESERVED: "reserved by Windows",
    Standing.COOLING: "released, cooling down",
}
READY = "held ready for a pod to come"


def explain(ip: IP, survey: Survey, grace: timedelta = GRACE) -> Explanation:
    """What a survey says of an address."""
    held = next((each for each in survey.allocations if each.ip == ip), None)
    if held is None:
        return Explanation(ip, _unassigned(ip, survey), (*_users(ip, survey), *_place(ip, survey)))
    found = verdict(held, survey)
    facts = (
        *_owner(held, survey),
        *_users(ip, survey),
        *_handle(held, survey),
        *_since(held, survey.now),
        *_place(ip, survey),
        ("reclaimed", _fate(held, found, survey, grace)),
    )
    return Explanation(ip, READY if held_ready(held, survey) else STATES[found.standing], facts)


def _unassigned(ip: IP, survey: Survey) -> str:
    if ip in survey.users or ip in survey.tunnels:
        return "in use, but not assigned in IPAM"
    if Reserved.of(survey.reservations).around(host_net(ip)) is not None:
        return "not assigned: an IPReservation keeps it back"
    return "not assigned"


def _owner(held: Allocation, survey: Survey) -> Iterator[tuple[str, str]]:
    if held.pod is not None:
        yield "pod", f"{'/'.join(held.pod)}, {_pod(held.pod, survey)}"
    if held.node:
        yield "node", held.node + ("" if held.node in survey.node_names else ", which is gone")
    if held.alternate:
        pod = f"{held.alternate.get('namespace', '')}/{held.alternate.get('pod', '')}"
        yield "moves to", f"{pod} on {held.alternate.get('node') or 'a node that is not noted'}"
    told = {"pod", "namespace", "node", "timestamp"}
    others = [f"{key}={value}" for key, value in sorted(held.attrs.items()) if key not in told]
    if others:
        yield "attributes", ", ".join(others)


def _pod(name: tuple[str, str], survey: Survey) -> str:
    pod = survey.pods_by_name.get(name)
    if pod is None:
        return "which is gone"
    where = f" on {pod.spec.node_name}" if pod.spec.node_name else ""
    try:
        ips = ", ".join(map(str, pod_ips(pod))) or "no address yet"
    except ConfigError:
        ips = "an address that cannot be read"
    return f"{pod.status.phase or 'Pending'}{where}, reports {ips}"


def _users(ip: IP, survey: Survey) -> Iterator[tuple[str, str]]:
    for endpoint in survey.users.get(ip, ()):
        dead = why_dead(endpoint, survey)
        container = f", container {endpoint.spec.container_id}" if endpoint.spec.container_id else ""
        yield "endpoint", f"{endpoint.namespace}/{endpoint.name}{container}" + (f", but {dead}" if dead else "")
    if ip in survey.tunnels:
        yield "tunnel", f"of node {survey.tunnels[ip]}"


def _handle(held: Allocation, survey: Survey) -> Iterator[tuple[str, str]]:
    if held.handle:
        others = [str(each.ip) for each in survey.by_handle.get(held.handle_key, ()) if each.ip != held.ip]
        known = any(handle.name == held.handle_key for handle in survey.handles)
        also = f", which holds {', '.join(others)} too" if others else ""
        yield "handle", held.handle + also + ("" if known or held.reserved else ", of which there is no IPAMHandle")


def _since(held: Allocation, now: datetime) -> Iterator[tuple[str, str]]:
    since = held.since
    if since is not None:
        yield "since", f"{stamp(since)}, {ago(now - since)} ago"


def _place(ip: IP, survey: Survey) -> Iterator[tuple[str, str]]:
    block = next((block for block in survey.blocks if ip in block.spec.net), None)
    yield "block", "none yet" if block is None else _block(block, survey)
    pool = pool_of(survey.pools, ip)
    if pool is None:
        yield "pool", "none"
    else:
        yield "pool", f"{pool.name}, {pool.spec.cidr}" + ("" if allocatable(pool) else ", disabled")


def _block(block: IPAMBlock, survey: Survey) -> str:
    spec = block.spec
    if not spec.affinity:
        return f"{spec.cidr}, nobody's"
    claims = [each for each in survey.affinities if each.spec.cidr == spec.cidr]
    state = next((each.spec.state or "confirmed" for each in claims if str(Owner.of(each)) == spec.affinity), "missing")
    return f"{spec.cidr} of {spec.affinity}, affinity {state}"


def _fate(held: Allocation, found: Verdict, survey: Survey, grace: timedelta) -> str:
    """Whether, when and why the address becomes free."""
    if held.released_at:
        free = moment(held.released_at) + timedelta(seconds=survey.config.ip_cooldown_seconds)
        return f"yes, from {stamp(free)} on: {found.reason}"
    if not found.leaked:
        return f"no: {found.reason}"
    if held not in reclaimable(survey, leaks(survey).values(), lambda each, why: True):
        return f"no: {found.reason}, but its handle holds an address that is in use"
    if survey.locked:
        return f"not now: {found.reason}, but the datastore is locked"
    if found.node_gone:
        return f"yes, at once: {found.reason}"
    if not grace:
        return f"no: {found.reason}, but leaks are not collected (the grace period is 0)"
    return f"yes, once it has been seen for {ago(max(grace, found.least))}: {found.reason}"


def ago(span: timedelta) -> str:
    """A span as a person would say it.

    >>> ago(timedelta(minutes=15)), ago(timedelta(hours=49))
    ('15 minutes', '2 days')
    """
    seconds = int(span.total_seconds())
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 2 * size or seconds == size:
            count = seconds // size
            return f"{count} {unit}" + ("s" if count != 1 else "")
    return f"{seconds} second" + ("s" if seconds != 1 else "")
