"""`tortie ipam`: calicoctl's commands about addresses, and `explain`.

What is to be found and done is decided in `tortie.ipam`; `ipam_text` says how it is printed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tortie.base.errors import ConfigError, Conflict, Exists, NotFound, TortieError, Unavailable
from tortie.cli.choice import check_choice
from tortie.cli.datastore import Datastore, Lab, asked, written

if TYPE_CHECKING:
    from tortie.ipam.ledger import Ledger
    from tortie.ipam.report import Report, ReportFile
    from tortie.ipam.survey import Survey
    from tortie.model.ipam import IPPool
    from tortie.model.store import Store

app = typer.Typer(no_args_is_help=True, help="Addresses: who has which, what does not fit, and how to mend it.")

LOOK_AGAIN = 0.2
"""Seconds between the two looks of `check`, in which work that is under way goes on."""
ATTEMPTS = 20
"""How often a write is decided again."""

Address = Annotated[str, typer.Option("--ip", metavar="IP", help="One address.")]
Output = Annotated[str, typer.Option("-o", "--output", help="text or json.")]
Grace = Annotated[
    str, typer.Option("--leak-grace-period", metavar="DURATION", help="How old a leak must be to be released.")
]


@app.command()
def show(
    ip: Address = "",
    blocks: Annotated[bool, typer.Option("--show-blocks", help="A row for each block too.")] = False,
    borrowed: Annotated[
        bool, typer.Option("--show-borrowed", help="Addresses that nodes have from others' blocks.")
    ] = False,
    configuration: Annotated[bool, typer.Option("--show-configuration", help="The IPAM configuration.")] = False,
    output: Output = "text",
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Say how full pools and blocks are, or who has an address."""
    from tortie.base.addr import parse_ip
    from tortie.cli import ipam_text as text
    from tortie.ipam.pools import Reserved
    from tortie.ipam.usage import usage

    as_json = _is_json(output)
    address = parse_ip(ip) if ip else None
    now = asked(datastore, lab, _survey)
    if address is not None:
        held = next((each for each in now.allocations if each.ip == address), None)
        if as_json:
            _print_json({"ip": ip, "assigned": held is not None and not held.cooling, **_held(held)})
        else:
            print(text.address_text(address, held), end="")
    elif borrowed:
        if as_json:
            _print_json(text.borrowed_documents(now.allocations))
        else:
            print(text.borrowed_text(now.allocations), end="")
    elif configuration:
        rows = text.configuration_rows(now.config)
        if as_json:
            _print_json(dict(rows))
        else:
            print(text.boxed(("PROPERTY", "VALUE"), rows), end="")
    else:
        pools = usage(now.pools, now.blocks, Reserved.of(now.reservations))
        if as_json:
            _print_json(text.usage_documents(pools))
        else:
            print(text.usage_table(pools, blocks), end="")


def _held(held: Any) -> dict[str, Any]:
    if held is None:
        return {}
    return {
        "handle": held.handle,
        "attributes": dict(held.attrs),
        "alternateOwner": dict(held.alternate),
        "releasedAt": held.released_at,
    }


@app.command()
def explain(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", show_default=False)],
    grace: Grace = "15m",
    output: Output = "text",
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Say whose an address is, since when, from which block and pool, and whether it will be taken back."""
    from tortie.base.addr import parse_ip
    from tortie.base.duration import parse_duration
    from tortie.cli.ipam_text import explanation_text
    from tortie.ipam import explain as explanations

    as_json, ip, patience = _is_json(output), parse_ip(address), parse_duration(grace)
    found = explanations.explain(ip, asked(datastore, lab, _survey), patience)
    if as_json:
        facts = [{"about": label, "text": text} for label, text in found.facts]
        _print_json({"ip": str(found.ip), "state": found.state, "facts": facts})
    else:
        print(explanation_text(found), end="")


@app.command()
def check(
    all_ips: Annotated[bool, typer.Option("--show-all-ips", help="Print every address that is assigned.")] = False,
    problem_ips: Annotated[
        bool, typer.Option("--show-problem-ips", help="Print every problem with its cause.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option("-o", "--output", "--report", metavar="FILE", help="Keep what is found in a file.")
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended, while everybody works on.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --fix: only say what would be done.")] = False,
    grace: Grace = "15m",
    kubeconfig: Annotated[
        str, typer.Option("--kubeconfig", metavar="FILE", help="Not needed: accepted as calicoctl does.")
    ] = "",
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Find addresses, blocks, handles and endpoints that do not fit together. Exit status 0 whatever is found.

    The datastore is read twice, and what only one of the two looks has found was work under way.
    """
    from tortie.base.duration import parse_duration
    from tortie.cli.ipam_text import check_lines

    if dry_run and not fix:
        raise ConfigError("--dry-run says what --fix would do: give both")
    patience = parse_duration(grace)
    found = asked(datastore, lab, _look_twice)
    typer.echo("\n".join(check_lines(found, all_ips, problem_ips)))
    if report is not None:
        _write_report(found, report)
    if fix:
        asked(datastore, lab, lambda store: _fix(store, patience, dry_run))


async def _look_twice(store: Store) -> Report:
    import asyncio

    from tortie.ipam.report import report, settled

    first = report(await _survey(store))
    if not first.problems:
        return first
    await asyncio.sleep(LOOK_AGAIN)
    return settled(first, report(await _survey(store)))


def _write_report(found: Report, path: Path) -> None:
    import msgspec

    from tortie import __version__
    from tortie.ipam.report import to_file

    encoded = msgspec.json.format(msgspec.json.encode(to_file(found, __version__)), indent=2)
    try:
        path.write_bytes(encoded + b"\n")
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", str(path)) from None


async def _fix(store: Store, grace: timedelta, dry_run: bool) -> None:
    """Plans twice, since what is work under way is in one of the two plans only, and makes what both have."""
    import asyncio

    from tortie.ipam.mend import make
    from tortie.ipam.repair import repairs

    first = repairs(await _survey(store), grace)
    if first:
        await asyncio.sleep(LOOK_AGAIN)
    texts = set(map(str, first))
    plan = [repair for repair in repairs(await _survey(store), grace) if str(repair) in texts] if first else []
    typer.echo(f"\n{len(plan)} repairs{' (dry run)' if dry_run else ''}:" if plan else "\nThere is nothing to mend.")
    if dry_run:
        for repair in plan:
            typer.echo(f"  {repair}")
        return
    failed = False
    async for outcome in make(await _ledger(store), plan, _matches):
        typer.echo(f"  {outcome}")
        failed = failed or outcome.error is not None
    if failed:
        raise Unavailable("not everything could be mended: run it again")


@app.command()
def release(
    ip: Address = "",
    from_report: Annotated[
        list[Path] | None,
        typer.Option("--from-report", metavar="FILE", help="What `ipam check` found leaked; in all files if several."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Release what is in use, or without a locked datastore.")
    ] = False,
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Give back an address, or all that are leaked according to reports."""
    from tortie.base.addr import parse_ip
    from tortie.ipam.report import read_report

    if bool(ip) == bool(from_report):
        raise ConfigError("give either --ip or --from-report")
    if ip:
        address = parse_ip(ip)
        asked(datastore, lab, lambda store: _release_ip(store, address, force))
        typer.echo(f"Successfully released IP address {address}")
        return
    reports = {str(path): read_report(_read(path), str(path)) for path in from_report or ()}
    asked(datastore, lab, lambda store: _release_reported(store, reports, force))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", str(path)) from None


async def _release_ip(store: Store, ip: Any, force: bool) -> None:
    from tortie.ipam.block import Release
    from tortie.ipam.leak import Standing, verdict
    from tortie.ipam.release import release_ips

    now = await _survey(store)
    held = next((each for each in now.allocations if each.ip == ip and not each.cooling), None)
    if held is None:
        raise NotFound(f"IP address {ip} is not assigned")
    found = verdict(held, now)
    if found.standing is Standing.USED and not force:
        raise Conflict(f"{ip} is in use: {found.reason}; once released it goes to another pod too (--force does it)")
    released = await release_ips(await _ledger(store), [Release(ip) if force else held.release], _matches)
    if released.error is not None:
        raise released.error
    if released.not_allocated:
        raise NotFound(f"IP address {ip} is not assigned")


async def _release_reported(store: Store, reports: dict[str, ReportFile], force: bool) -> None:
    from tortie import __version__
    from tortie.ipam.release import release_apart
    from tortie.ipam.report import check_reports, common_handles, common_leaks

    for doubt in check_reports(reports, await _survey(store), __version__, force=force):
        typer.echo(f"tortie: warning: {doubt}", err=True)
    wanted = common_leaks(reports.values())
    typer.echo(f"Releasing {len(wanted)} old IPs...")
    released, failures = await release_apart(await _ledger(store), wanted, _matches)
    for each, error in failures:
        typer.echo(f"tortie: {each.ip}: {error}", err=True)
    typer.echo(f"Released {len(released.done) - len(released.not_allocated)} IPs successfully")
    done, skipped, errors = 0, 0, 0
    for handle in common_handles(reports.values()):
        try:
            deleted = await _delete_handle(store, handle)
        except TortieError as error:
            typer.echo(f"tortie: handle {handle.id}: {error}", err=True)
            errors += 1
        else:
            done, skipped = done + deleted, skipped + (not deleted)
    typer.echo(f"Released {done} handles; {skipped} skipped; {errors} errors.")
    if failures or errors:
        raise Unavailable("not everything could be released")


async def _delete_handle(store: Store, handle: Any) -> bool:
    """False when the handle is not what was reported."""
    from tortie.ipam.names import handle_name
    from tortie.model.ipam import IPAMHandle

    try:
        stored = await store.get(IPAMHandle, handle_name(handle.id))
        if (stored.metadata.resource_version, stored.metadata.uid) != (handle.revision, handle.uid):
            return False
        await store.delete(IPAMHandle, stored.name, revision=stored.metadata.resource_version)
    except (NotFound, Conflict):
        return False
    return True


@app.command()
def configure(
    strict_affinity: Annotated[
        str, typer.Option("--strictaffinity", metavar="true|false", help="Keep every node to its own blocks.")
    ] = "",
    max_blocks: Annotated[
        int | None, typer.Option("--max-blocks-per-host", "--maxblocks", min=0, help="Blocks per node; 0: 20.")
    ] = None,
    persistence: Annotated[
        str, typer.Option("--kubevirt-ip-persistence", metavar="Enabled|Disabled", help="Let VMs keep their addresses.")
    ] = "",
    cooldown: Annotated[
        int | None, typer.Option("--ip-cooldown-seconds", min=0, max=1200, help="How long a released address rests.")
    ] = None,
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Change the IPAM configuration; what is not given stays."""
    changes: dict[str, Any] = {}
    if strict_affinity:
        changes["strict_affinity"] = _one_of("--strictaffinity", strict_affinity, {"true": True, "false": False})
    if max_blocks is not None:
        changes["max_blocks_per_host"] = max_blocks
    if persistence:
        words = {"Enabled": "Enabled", "Disabled": "Disabled"}
        changes["kube_virt_vm_address_persistence"] = _one_of("--kubevirt-ip-persistence", persistence, words)
    if cooldown is not None:
        changes["ip_cooldown_seconds"] = cooldown
    if not changes:
        raise ConfigError("give at least one option to set")
    spec = written(datastore, lab, lambda store: _configure(store, changes))
    from tortie.cli.ipam_text import configuration_rows

    names = {"strict_affinity": 0, "max_blocks_per_host": 2, "kube_virt_vm_address_persistence": 3}
    rows = configuration_rows(spec)
    for name in changes:
        label, value = rows[names.get(name, 4)]
        typer.echo(f"Successfully set {label} to: {value}")


def _one_of(option: str, given: str, words: dict[str, Any]) -> Any:
    check_choice(given, words, option)
    return words[given]


async def _configure(store: Store, changes: dict[str, Any]) -> Any:
    from msgspec.structs import replace

    from tortie.model.document import check as check_document
    from tortie.model.ipam import IPAMConfig
    from tortie.model.meta import Metadata

    for _ in range(ATTEMPTS):
        try:
            old: IPAMConfig | None = await store.get(IPAMConfig, "default")
        except NotFound:
            old = None
        base = old or IPAMConfig(metadata=Metadata(name="default"))
        new = replace(base, spec=replace(base.spec, **changes))
        if new == old:
            return new.spec
        check_document(new)
        try:
            stored = await (store.create(new) if old is None else store.update(new))
        except (Conflict, Exists, NotFound):
            continue
        return stored.spec
    raise Conflict(f"the IPAM configuration was written by others {ATTEMPTS} times in a row; try again")


@app.command()
def split(
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="Into how many parts: a power of two.")],
    cidr: Annotated[str, typer.Option("--cidr", metavar="CIDR", help="The pool, by its network.")] = "",
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="The pool, by its name.")] = "",
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Put equal parts in a pool's place. Its blocks and addresses stay. The datastore must be locked."""
    old, new = asked(datastore, lab, lambda store: _split(store, number, cidr, name))
    typer.echo(f"Successfully split pool {old.name} ({old.spec.cidr}) into:")
    for part in new:
        typer.echo(f"  {part.name}  {part.spec.cidr}")


async def _split(store: Store, number: int, cidr: str, name: str) -> tuple[IPPool, Sequence[IPPool]]:
    """The parts are made before the whole is unmade, so that what was cut short is finished by the same command."""
    from tortie.ipam.split import named, parts
    from tortie.model.ipam import IPPool

    now = await _survey(store)
    pool = named(now.pools, name, cidr)
    new = parts(pool, number)
    if not now.locked:
        raise ConfigError("the datastore must be locked: tortie datastore migrate lock")
    for part in new:
        try:
            await store.create(part)
        except Exists:
            there = await store.get(IPPool, part.name)
            if there.spec != part.spec:
                raise Exists(f"there is a pool {part.name} already, with {there.spec.cidr}") from None
    await store.delete(IPPool, pool.name, revision=pool.metadata.resource_version)
    return pool, new


@app.command("migrate-host-local")
def migrate_host_local(
    node: Annotated[
        str, typer.Option("--node", metavar="NAME", envvar="KUBERNETES_NODE_NAME", help="The node of this machine.")
    ],
    data_dir: Annotated[
        Path, typer.Option("--data-dir", metavar="DIR", help="Where host-local keeps its addresses.")
    ] = Path("/var/lib/cni/networks/k8s-pod-network"),
    bin_dir: Annotated[
        Path, typer.Option("--bin-dir", metavar="DIR", help="Where the executables calico and host-local are.")
    ] = Path("/opt/cni/bin"),
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Take over the addresses that host-local has given to this node's pods. Locks the datastore meanwhile."""
    from tortie.cli.host_local import Places, migrate

    asked(datastore, lab, lambda store: migrate(store, node, Places(data_dir, bin_dir), typer.echo))


async def _survey(store: Store) -> Survey:
    from tortie.ipam.survey import survey

    return await survey(store, _now())


async def _ledger(store: Store) -> Ledger:
    from tortie.ipam.ledger import Ledger
    from tortie.ipam.survey import ipam_config

    return Ledger(store, _now, (await ipam_config(store)).ip_cooldown_seconds)


def _now() -> datetime:
    return datetime.now(UTC)


def _matches(selector: str, labels: Any) -> bool:
    from tortie.policy.selector import parse

    return parse(selector).matches(labels)


def _is_json(output: str) -> bool:
    check_choice(output, ("text", "json"), "--output")
    return output == "json"


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))
