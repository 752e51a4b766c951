"""What `ipam check` finds, and the file in which it is kept until `ipam release --from-report` acts on it. Pure.

The file has the form of calicoctl's. A report is a memory, and what it says may have changed: addresses carry their
handle and sequence number, handles their revision, so that only what is still the same is released.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from tortie.base.addr import IP, parse_ip
from tortie.base.errors import ConfigError, Unavailable
from tortie.ipam import names, use
from tortie.ipam.allocation import Allocation, Key
from tortie.ipam.block import Release
from tortie.ipam.check import Finding, check
from tortie.ipam.leak import Standing, Verdict, verdict
from tortie.ipam.repair import held_by_handle
from tortie.ipam.survey import Survey
from tortie.model.ipam import IPAMHandle

Users = Mapping[IP, tuple[str, ...]]


class ReportedAllocation(msgspec.Struct, frozen=True, rename="camel"):
    """An address as the file has it."""

    ip: str
    handle: str = ""
    sequence_number: int | None = None
    pod: str = ""
    namespace: str = ""
    node: str = ""
    type: str = ""
    creation_timestamp: str = ""
    in_use: bool = False
    borrowed: bool = False
    cooling_down: bool = False
    owners: list[str] = []


class LeakedHandle(msgspec.Struct, frozen=True):
    """A handle that holds nothing, as it was."""

    id: str
    revision: str = ""
    uid: str = ""


class ReportFile(msgspec.Struct, frozen=True, kw_only=True):
    """The file."""

    version: str
    cluster_guid: str = msgspec.field(name="clusterGUID")
    datastore_locked: bool = msgspec.field(name="datastoreLocked")
    cluster_information_revision: str = msgspec.field(name="clusterInformationRevision")
    cluster_type: str = msgspec.field(name="clusterType")
    allocations: dict[str, list[ReportedAllocation]]
    leaked_handles: list[LeakedHandle] = msgspec.field(name="leakedHandles")


@dataclass(frozen=True)
class Report:
    """`leaked` are the addresses that no endpoint and no tunnel uses, whoever holds them, with what GC says of each."""

    survey: Survey
    leaked: tuple[tuple[Allocation, Verdict], ...]
    outside: Users
    missing: Users
    twice: Users
    idle_handles: tuple[IPAMHandle, ...]
    findings: tuple[Finding, ...]

    @property
    def problems(self) -> int:
        users = len(self.outside) + len(self.missing) + len(self.twice)
        return users + len(self.leaked) + len(self.idle_handles) + len(self.findings)


def report(survey: Survey) -> Report:
    """Everything that does not fit together."""
    used = use.users(survey)
    held = held_by_handle(survey)
    holding = {name for (name, _), count in held.items() if count}
    idle = tuple(handle for handle in survey.handles if names.handle_name(handle.spec.handle_id) not in holding)
    findings = check(survey.blocks, survey.handles, survey.affinities, survey.now)
    return Report(
        survey=survey,
        leaked=tuple(_leaked_in(survey, used)),
        outside=use.outside_pools(survey),
        missing=use.missing(survey),
        twice=use.twice(survey),
        idle_handles=idle,
        findings=tuple(each for each in findings if each.object not in idle),
    )


def _leaked_in(survey: Survey, used: Users) -> Iterator[tuple[Allocation, Verdict]]:
    """A virtual machine keeps its addresses while it does not run, and a node has some ready for pods to come."""
    for each in survey.allocations:
        if _unused(each, used):
            why = verdict(each, survey)
            if not ((each.of_machine or each.ready) and why.standing is Standing.USED):
                yield each, why


def _unused(each: Allocation, used: Users) -> bool:
    """Services cannot be looked up here, so what they hold is taken to be in use."""
    return not (each.ip in used or each.cooling or each.reserved or "service" in each.attrs)


def settled(first: Report, second: Report) -> Report:
    """What both of two looks have found: what one of them saw of work that was under way is left out."""
    leaked = {each.key for each, _ in first.leaked}
    idle = {handle.metadata.resource_version for handle in first.idle_handles}
    texts = set(map(str, first.findings))
    return replace(
        second,
        leaked=tuple((each, why) for each, why in second.leaked if each.key in leaked),
        outside={ip: who for ip, who in second.outside.items() if ip in first.outside},
        missing={ip: who for ip, who in second.missing.items() if ip in first.missing},
        twice={ip: who for ip, who in second.twice.items() if ip in first.twice},
        idle_handles=tuple(each for each in second.idle_handles if each.metadata.resource_version in idle),
        findings=tuple(each for each in second.findings if str(each) in texts),
    )


def to_file(found: Report, version: str) -> ReportFile:
    """The report to keep."""
    survey = found.survey
    used = use.users(survey)
    listed: dict[str, list[ReportedAllocation]] = {}
    leaked = {each.key for each, _ in found.leaked}
    for each in survey.allocations:
        listed.setdefault(str(each.ip), []).append(_reported(each, each.key not in leaked, used.get(each.ip, ())))
    information = survey.information
    return ReportFile(
        version=version,
        cluster_guid=information.spec.cluster_guid if information else "",
        datastore_locked=survey.locked,
        cluster_information_revision=information.metadata.resource_version if information else "",
        cluster_type=information.spec.cluster_type if information else "",
        allocations=listed,
        leaked_handles=[
            LeakedHandle(each.spec.handle_id, each.metadata.resource_version, each.metadata.uid)
            for each in found.idle_handles
        ],
    )


def _reported(each: Allocation, in_use: bool, owners: Sequence[str]) -> ReportedAllocation:
    return ReportedAllocation(
        ip=str(each.ip),
        handle=each.handle or "",
        sequence_number=each.sequence,
        pod=each.attrs.get("pod", ""),
        namespace=each.attrs.get("namespace", ""),
        node=each.node,
        type=each.attrs.get("type", ""),
        creation_timestamp=each.attrs.get("timestamp", ""),
        in_use=in_use,
        borrowed=each.borrowed,
        cooling_down=each.cooling,
        owners=list(owners),
    )


def read_report(text: bytes, source: str) -> ReportFile:
    """Raises ConfigError."""
    try:
        return msgspec.json.decode(text, type=ReportFile)
    except msgspec.DecodeError as error:
        raise ConfigError(f"is not a report of ipam check: {error}", source) from None


def check_reports(reports: Mapping[str, ReportFile], survey: Survey, version: str, *, force: bool) -> tuple[str, ...]:
    """Whether to act on reports. Raises ConfigError or Unavailable if not; returns what is only to be warned of."""
    information = survey.information
    guid = information.spec.cluster_guid if information else ""
    revision = information.metadata.resource_version if information else ""
    for source, each in reports.items():
        if each.cluster_guid != guid:
            raise ConfigError(f'is of the cluster with GUID "{each.cluster_guid}", this one has "{guid}"', source)
    if all(each.cluster_information_revision != revision for each in reports.values()):
        raise ConfigError(
            "no report was made since the datastore was locked or unlocked the last time: "
            "lock it, make one more report with tortie ipam check -o FILE, and give that one too"
        )
    doubts = [
        f"{source} was made by version {each.version}, this is {version}"
        for source, each in reports.items()
        if each.version != version
    ]
    if not survey.locked:
        doubts.append("the datastore is not locked: tortie datastore migrate lock")
    if doubts and not force:
        raise Unavailable(f"{'; '.join(doubts)}; --force goes on all the same")
    return tuple(doubts)


def common_leaks(reports: Iterable[ReportFile]) -> tuple[Release, ...]:
    """The addresses that are leaked in every report, by the same assignment."""
    every = [{_key(each) for each in _leaked(one)} for one in reports]
    common = set.intersection(*every) if every else set()
    ordered = sorted(common, key=lambda key: (key[0].version, int(key[0])))
    return tuple(Release(ip, handle, sequence) for ip, handle, sequence in ordered)


def _leaked(one: ReportFile) -> Iterator[ReportedAllocation]:
    for entries in one.allocations.values():
        yield from (each for each in entries if not each.in_use and not each.cooling_down)


def _key(each: ReportedAllocation) -> Key:
    return parse_ip(each.ip), each.handle or None, each.sequence_number


def common_handles(reports: Iterable[ReportFile]) -> tuple[LeakedHandle, ...]:
    """The handles that hold nothing in every report, unchanged from the one to the other."""
    every = [set(one.leaked_handles) for one in reports]
    common = set.intersection(*every) if every else set()
    return tuple(sorted(common, key=lambda each: each.id))
