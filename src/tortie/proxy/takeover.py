"""Taking services over from kube-proxy, and giving them back, so that no connection is lost on the way.

    takeover   serve   our rules are put in, one step before kube-proxy's: new connections are ours from here on
               stop    kube-proxy ends: by the agent where it is a DaemonSet, else by the person, who is told how
               clean   its rules go; connections that it has translated live in connection tracking, and go on
    release    start   kube-proxy runs again, beside us
               leave   once its rules are there, ours go

What is to be done is a value, `plan`, whose steps print as what a person would type. Each is done again without harm:
a takeover that was interrupted is begun again with the same command.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tortie.base.errors import KernelError, NotFound, TortieError
from tortie.kernel import nft
from tortie.kernel.netns import entered
from tortie.proxy import daemon_set, kube_proxy, kube_rules
from tortie.proxy.daemon_set import DaemonSet
from tortie.proxy.kube_proxy import Asked, KubeProxy, found
from tortie.proxy.kube_rules import Table, Variant

OURS = "inet tortie-services"
PATIENCE = 60.0
"""Seconds for a DaemonSet to end, or to begin, on this node."""
LOOK = 1.0
"""Seconds between two looks."""
SETTLE = 5.0
"""Seconds that kube-proxy's rules are there before ours go: its chains come before all that is in them."""
SHOWN = 6
"""Lines of a transaction that a step prints of one kind; there may be thousands."""

Kind = Literal["serve", "stop", "table", "chains", "ipvs", "start", "leave"]
CLEANING: tuple[Kind, ...] = ("table", "chains", "ipvs")


@dataclass(frozen=True, slots=True)
class Step:
    """`key` says on what: the family of a table; variant, family and name of one of iptables. `by_person`: only they
    can do it."""

    kind: Kind
    commands: tuple[str, ...]
    why: str
    key: tuple[str, ...] = ()
    by_person: bool = False

    def __str__(self) -> str:
        return "\n".join((f"# {self.why}", *self.commands))


class Hands(Protocol):
    """What the agent does for a takeover."""

    @property
    def daemon_set(self) -> DaemonSet | None:
        """In a Kubernetes datastore."""
        ...

    async def serve(self, asked: Asked) -> None:
        """That is asked for from now on, also after a restart; done once the kernel has our rules ("on") or has none
        of them any more ("off"). Raises TortieError, above all where the configuration says the contrary."""
        ...


# --- deciding -----------------------------------------------------------------------------------------------------


def plan(
    here: Sequence[KubeProxy], tables: Iterable[Table] = (), *, deployed: bool = False, localnet: bool = False
) -> tuple[Step, ...]:
    """What leads from what was found to services of ours alone. `deployed`: as a DaemonSet that we can change."""
    return tuple(_plan(here, tables, deployed, localnet))


def _plan(here: Sequence[KubeProxy], tables: Iterable[Table], deployed: bool, localnet: bool) -> Iterator[Step]:
    yield Step(
        "serve",
        (f"nft -f tortie-services.nft  # table {OURS}, priority -101",),
        "our rules, one step before kube-proxy's (priority -100): every new connection is translated by ours",
    )
    for one in _running(here)[:1]:
        yield _stop(one, deployed)
    for one in here:
        if one.mode == "nftables":
            yield from _own_tables(one)
    for table in tables:
        if doing := kube_rules.removal(table, localnet=localnet):
            yield _chains(doing)
    yield from (_ipvs(one) for one in here if one.mode == "ipvs")


def _running(here: Iterable[KubeProxy]) -> list[KubeProxy]:
    return [one for one in here if one.runs]


def _stop(one: KubeProxy, deployed: bool) -> Step:
    program = one.program
    if deployed:
        why = "kube-proxy ends, on every node of the cluster: its DaemonSet stays, for a label that no node has"
        return Step("stop", (daemon_set.command(run=False),), why)
    if program is not None and program.unit != kube_proxy.POD and program.pid:
        if program.name != kube_proxy.NAME:
            why = f"{program.name} has a kube-proxy inside: it is to be started without it (k3s, rke2)"
            return Step("stop", (f"{program.name} ... --disable-kube-proxy",), why, by_person=True)
        end = f"systemctl disable --now {program.unit}" if program.unit else f"kill {program.pid}"
        return Step("stop", (end,), "kube-proxy ends, and is not started again", by_person=True)
    why = "kube-proxy ends, on every node of the cluster"
    return Step("stop", (daemon_set.command(run=False),), why, by_person=True)


def _own_tables(one: KubeProxy) -> Iterator[Step]:
    for family in kube_rules.FAMILIES:
        table = f"{family} {kube_proxy.NAME}"
        if f"nft table {table}" in one.evidence:
            why = f"kube-proxy's table {table}; established connections live in connection tracking, and go on"
            yield Step("table", (f"nft delete table {table}",), why, (family,))


def _chains(doing: kube_rules.Removal) -> Step:
    table = doing.table
    program = "nft -f -" if table.variant == "nft" else f"{kube_rules.LEGACY[table.family]}-restore --noflush"
    stays = f"; {', '.join(doing.stays)} stays, see docs/kube-proxy.md" if doing.stays else ""
    why = f"kube-proxy's chains ({len(doing.chains)}) in {table.title}, and the rules that jump to them{stays}"
    why = "; ".join((why, *doing.obstacles))
    commands = (f"{program} <<'END'", *_shown(doing.script().splitlines()), "END")
    return Step("chains", commands, why, (table.variant, table.family, table.name))


def _shown(lines: list[str]) -> Iterator[str]:
    """The first ones that flush, and the first ones that delete a chain, and how many more there are."""
    count: dict[str, int] = {}
    words = ("flush chain", "delete chain", "-F ", "-X ")
    for line in lines:
        kind = next((word for word in words if line.startswith(word)), "")
        count[kind] = count.get(kind, 0) + 1
        if not kind or count[kind] <= SHOWN:
            yield line
        if kind and count[kind] == SHOWN + 1:
            more = sum(other.startswith(kind) for other in lines) - SHOWN
            yield f"# ... {kind.strip()}: {more} more"


def _ipvs(one: KubeProxy) -> Step:
    lost = f"; IPVS' connections ({one.connections}) end with it" if one.connections else ""
    why = f"the device that has the services' addresses, and IPVS' services at them{lost}"
    commands = (
        f'ip -o addr show dev {kube_proxy.DEVICE} | awk \'{{sub("/.*", "", $4); print $4}}\' > addresses',
        "ipvsadm -S -n | grep -- ^-A | grep -wFf addresses | while read _ how where _; do ipvsadm -D $how $where; done",
        f"ip link delete {kube_proxy.DEVICE}",
    )
    return Step("ipvs", commands, why)


def needs_yes(here: Iterable[KubeProxy], steps: Iterable[Step]) -> tuple[str, ...]:
    """What a person has to agree to, as lines."""
    lines = [
        f"{one.connections} connections through IPVS are cut off: they are not in connection tracking as ours are"
        for one in here
        if one.connections
    ]
    if any(step.kind == "stop" and not step.by_person for step in steps):
        lines.append(
            "kube-proxy ends on every node of the cluster: `tortie services status` must say on at all of them first "
            "(--services on, or TORTIE_SERVICES=on in the manifest)"
        )
    return tuple(lines)


# --- one step -----------------------------------------------------------------------------------------------------


def carry_out(step: Step, netns: str | None = None) -> None:
    """A step that cleans; what is gone is gone. Others are for `Hands`. Blocks. Raises KernelError, NotSupported,
    Unavailable."""
    if step.kind == "table":
        family = step.key[0]
        with suppress(NotFound):
            nft.list_json(["-t", "list", "table", family, kube_proxy.NAME], netns)
            nft.apply(f"delete table {family} {kube_proxy.NAME}\n", netns)
    elif step.kind == "chains":
        variant: Variant = "nft" if step.key[0] == "nft" else "legacy"
        kube_rules.clear(variant, step.key[1], step.key[2], netns)
    elif step.kind == "ipvs":
        with entered(netns):
            _clear_ipvs()
    else:
        raise ValueError(f"{step.kind} is not for the kernel alone")


def _clear_ipvs() -> None:
    """IPVS' services at the device's addresses go where ipvsadm is there to do it. They do no harm without the device,
    for then nobody has these addresses, and ours come first at a node's own."""
    if shutil.which("ipvsadm") is not None:
        listed = _run(["ip", "-o", "addr", "show", "dev", kube_proxy.DEVICE], check=False)
        addresses = {line.split()[3].partition("/")[0] for line in listed.splitlines() if len(line.split()) > 3}
        for words in ipvs_deletions(_run(["ipvsadm", "-S", "-n"], check=False), addresses):
            _run(["ipvsadm", *words], check=False)
    if kube_proxy.has_device():
        _run(["ip", "link", "delete", kube_proxy.DEVICE])


def ipvs_deletions(saved: str, addresses: set[str]) -> Iterator[tuple[str, ...]]:
    """Of what `ipvsadm -S -n` prints, the words that delete the services at these addresses.

    >>> list(ipvs_deletions("-A -t 10.96.0.1:443 -s rr\\n-a -t 10.96.0.1:443 -r 10.0.0.1:6443 -m -w 1", {"10.96.0.1"}))
    [('-D', '-t', '10.96.0.1:443')]
    """
    for line in saved.splitlines():
        words = line.split()
        if len(words) > 2 and words[0] == "-A" and words[2].rpartition(":")[0].strip("[]") in addresses:
            yield "-D", words[1], words[2]


def _run(command: list[str], *, check: bool = True) -> str:
    """Raises KernelError."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=kube_rules.SECONDS, check=False)
    if check and done.returncode:
        raise KernelError(5, " ".join(command), (done.stderr.strip().splitlines() or ["no message"])[0])
    return done.stdout


# --- all of it ----------------------------------------------------------------------------------------------------


class Progress:
    """Steps and what became of each; `document` is the answer to who asked."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self.states: dict[Step, str] = dict.fromkeys(steps, "planned")
        self.needs: tuple[str, ...] = ()
        self.todo = ""
        self.done = False

    def failed(self, step: Step, why: object) -> None:
        self.states[step] = f"failed: {why}"
        self.todo = self.todo or f"{why}"

    def document(self) -> dict[str, Any]:
        return {
            "steps": [
                {"kind": one.kind, "commands": one.commands, "why": one.why, "byPerson": one.by_person, "state": state}
                for one, state in self.states.items()
            ],
            "needsYes": self.needs,
            "done": self.done,
            "todo": self.todo,
        }


async def take_over(
    hands: Hands, netns: str | None = None, *, yes: bool = False, only_plan: bool = False, patience: float = PATIENCE
) -> Mapping[str, Any]:
    """All that can be done now; the answer's "todo" says what is left for a person. Raises TortieError when nothing
    was done."""
    here, steps = await _planned(hands, netns)
    progress = Progress(steps)
    progress.needs = needs_yes(here, steps)
    if only_plan:
        return progress.document()
    if progress.needs and not yes:
        progress.todo = "nothing was done: say --yes to agree"
        return progress.document()
    await hands.serve("on")
    progress.states[steps[0]] = "done"
    if not await _stopped(hands, progress, netns, patience):
        return progress.document()
    await _clean(progress, netns)
    return progress.document()


async def _planned(hands: Hands, netns: str | None) -> tuple[tuple[KubeProxy, ...], tuple[Step, ...]]:
    here = await asyncio.to_thread(found, netns)
    tables = await asyncio.to_thread(kube_rules.tables, netns)
    localnet = await asyncio.to_thread(kube_rules.routes_localnet, netns)
    deployed = bool(_running(here)) and await _is_deployed(hands)
    return here, plan(here, tables, deployed=deployed, localnet=localnet)


async def _is_deployed(hands: Hands) -> bool:
    """Not where we may not ask: then the person is told what to type."""
    try:
        return hands.daemon_set is not None and await hands.daemon_set.there()
    except TortieError:
        return False


async def _stopped(hands: Hands, progress: Progress, netns: str | None, patience: float) -> bool:
    """Whether kube-proxy runs no more."""
    step = next((one for one in progress.states if one.kind == "stop"), None)
    if step is None:
        return True
    again = "then once more: tortie services takeover"
    if step.by_person:
        progress.states[step] = "yours"
        progress.todo = f"{step.commands[0]}; {again}"
        return False
    assert hands.daemon_set is not None
    try:
        await hands.daemon_set.stop()
    except TortieError as error:
        progress.failed(step, f"{error}; do it yourself: {step.commands[0]}; {again}")
        return False
    if not await _until(lambda here: not _running(here), netns, patience):
        progress.failed(step, f"kube-proxy still runs after {patience:g} s; look at its DaemonSet, {again}")
        return False
    progress.states[step] = "done"
    return True


async def _clean(progress: Progress, netns: str | None) -> None:
    for step in progress.states:
        if step.kind in CLEANING:
            try:
                await asyncio.to_thread(carry_out, step, netns)
                progress.states[step] = "done"
            except TortieError as error:
                progress.failed(step, error)
    left = await asyncio.to_thread(found, netns)
    progress.done = not left and not progress.todo
    if progress.done:
        progress.todo = "; ".join(await asyncio.to_thread(kube_rules.unseen, netns))
    elif left and not progress.todo:
        progress.todo = f"there is still: {', '.join(map(str, left))}; once more: tortie services takeover"


async def release(
    hands: Hands, netns: str | None = None, *, yes: bool = False, only_plan: bool = False, patience: float = PATIENCE
) -> Mapping[str, Any]:
    """Gives services back. Ours go only once kube-proxy's are there, or with `yes`. Answer, errors: as `take_over`."""
    here = await asyncio.to_thread(found, netns)
    back = _is_back(here)
    deployed = not back and await _is_deployed(hands)
    progress = Progress(release_plan(back=back, deployed=deployed))
    start = next((one for one in progress.states if one.kind == "start"), None)
    if only_plan:
        return progress.document()
    if start is not None and not yes and not await _started(hands, start, progress, netns, patience):
        return progress.document()
    await hands.serve("off")
    for step in progress.states:
        if step.kind == "leave" or not yes:
            progress.states[step] = "done"
    progress.done = True
    return progress.document()


def release_plan(*, back: bool, deployed: bool) -> tuple[Step, ...]:
    """`back`: kube-proxy runs, and its rules are there."""
    start = Step(
        "start",
        (daemon_set.command(run=True),) if deployed else ("systemctl enable --now kube-proxy",),
        "kube-proxy runs again, beside us: ours come first as long as they are there",
        by_person=not deployed,
    )
    why = "once kube-proxy's rules are there ours go; established connections live in connection tracking, and go on"
    leave = Step("leave", (f"nft delete table {OURS}",), why)
    return (leave,) if back else (start, leave)


def _is_back(here: Iterable[KubeProxy]) -> bool:
    return any(one.runs and one.has_rules for one in here)


async def _started(hands: Hands, start: Step, progress: Progress, netns: str | None, patience: float) -> bool:
    again = "then once more: tortie services release (--yes: ours go at once, whatever kube-proxy does)"
    if start.by_person:
        progress.states[start] = "yours"
        progress.todo = f"{start.commands[0]}, or however kube-proxy is started here; {again}"
        return False
    assert hands.daemon_set is not None
    try:
        await hands.daemon_set.start()
    except TortieError as error:
        progress.failed(start, f"{error}; do it yourself: {start.commands[0]}; {again}")
        return False
    if not await _until(_is_back, netns, patience):
        progress.failed(start, f"kube-proxy's rules are not there after {patience:g} s; {again}")
        return False
    await asyncio.sleep(SETTLE)
    return True


async def _until(holds: Callable[[tuple[KubeProxy, ...]], bool], netns: str | None, seconds: float) -> bool:
    """Whether what is found is so in time."""
    deadline = time.monotonic() + seconds
    while not holds(await asyncio.to_thread(found, netns)):
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(LOOK)
    return True
