"""Transactions by nft's library and by the program: the same kernel after both, the same refusals from both."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ns

from tortie.base.errors import KernelError
from tortie.kernel import libnftables, netns, nft
from tortie.kernel.nft import Session

pytestmark = pytest.mark.root

TABLE = """add table inet tortie
add chain inet tortie forward { type filter hook forward priority filter; policy accept; }
add chain inet tortie fw-a
add set inet tortie s4 { type ipv4_addr; flags interval; }
add map inet tortie from-workload { type ifname : verdict; }
add rule inet tortie forward iifname vmap @from-workload
add rule inet tortie fw-a ip saddr @s4 counter drop comment "pi-np/red/web:0"
add element inet tortie s4 { 10.0.0.0/8, 192.0.2.1 }
add element inet tortie from-workload { "calia" : goto fw-a }
"""
CHANGE = """flush chain inet tortie fw-a
add rule inet tortie fw-a ct state established,related counter return
delete element inet tortie from-workload { "calia" }
"""


@pytest.fixture(params=[True, False], ids=["library", "program"])
def in_process(request: pytest.FixtureRequest) -> bool:
    if request.param and libnftables.load() is None:
        pytest.skip(f"{libnftables.LIBRARY} is not installed")
    return bool(request.param)


def listed(ns: Ns) -> list[Any]:
    """The ruleset, without what differs between equal ones."""
    text = ns.run("nft", "-j", "list", "ruleset")
    items: list[Any] = json.loads(text, object_hook=lambda found: {k: v for k, v in found.items() if k != "handle"})[
        "nftables"
    ]
    return items[1:]  # the first tells of nft


def test_same_table_as_from_a_shell(make_ns: Callable[..., Ns], in_process: bool) -> None:
    ours, shell = make_ns("ours"), make_ns("shell")
    session = Session(ours.path, in_process=in_process)
    for script in (TABLE, CHANGE):
        session.apply(script)
        shell.run("nft", "-f", "-", stdin=script)
        assert listed(ours) == listed(shell)
        assert len(listed(ours)) > 5


def test_refused_as_a_whole_naming_the_line(ns: Ns, in_process: bool) -> None:
    session = Session(ns.path, in_process=in_process)
    session.apply(TABLE)
    before = listed(ns)
    with pytest.raises(KernelError, match=r"nft add rule inet tortie fw-a ip saddr @nosuch drop: .*No such file"):
        session.apply("add chain inet tortie new\nadd rule inet tortie fw-a ip saddr @nosuch drop\n")
    assert listed(ns) == before
    session.apply("add chain inet tortie new\n")  # and it goes on
    assert len(listed(ns)) == len(before) + 1


def test_what_others_change_in_between_is_seen(ns: Ns, in_process: bool) -> None:
    session = Session(ns.path, in_process=in_process)
    session.apply(TABLE)
    ns.run("nft", "delete", "table", "inet", "tortie")
    with pytest.raises(KernelError):
        session.apply(CHANGE)
    session.apply(TABLE)
    session.apply(CHANGE)


def test_namespace_of_the_calling_thread(ns: Ns, in_process: bool) -> None:
    with netns.entered(ns.path):
        session = Session(in_process=in_process)
        session.apply(TABLE)
    assert len(listed(ns)) > 5
    if in_process:  # the context stays where it was opened; a program is wherever the thread is
        session.apply("add chain inet tortie new\n")
        assert {"family": "inet", "table": "tortie", "name": "new"} in [item.get("chain") for item in listed(ns)]


def test_nothing_keeps_the_namespace(ns: Ns) -> None:
    gc.collect()  # what earlier tests have left
    session = Session(ns.path)
    session.apply(TABLE)
    before = len(os.listdir("/proc/self/fd"))
    del session
    gc.collect()
    held = 0 if libnftables.load() is None else 1
    assert len(os.listdir("/proc/self/fd")) == before - held


def test_nothing_is_printed(ns: Ns, in_process: bool, capfd: pytest.CaptureFixture[str]) -> None:
    session = Session(ns.path, in_process=in_process)
    session.apply(TABLE + "list ruleset\n")
    with pytest.raises(KernelError):
        session.apply("nonsense\n")
    assert capfd.readouterr() == ("", "")


def test_memory_of_many_transactions(ns: Ns) -> None:
    """A context that is kept open must not keep what it has done, nor what it has refused."""
    session = Session(ns.path)
    session.apply(f"{TABLE}add set inet tortie many {{ type ipv4_addr; }}\n")
    elements = ", ".join(f"172.16.0.{i}" for i in range(200))
    add, delete = (f"{verb} element inet tortie many {{ {elements} }}\n" for verb in ("add", "delete"))

    def resident_after(times: int) -> int:
        for _ in range(times):
            session.apply(add)
            session.apply(delete)
        with pytest.raises(KernelError):
            session.apply(delete)
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    warm = resident_after(50)
    assert resident_after(150) - warm < 1 << 20


def test_a_script_whose_writer_is_killed_is_done_whole_or_not_at_all(ns: Ns) -> None:
    """A pipe holds 64 KiB: lines of 64 bytes would be cut between two of them, where nft would take them for all."""
    lines = [f"add chain inet cut {'c' * 38}{number:06d}" for number in range(4096)]
    script = "add table inet cut".ljust(63) + "\n" + "".join(line.ljust(63) + "\n" for line in lines)
    reading, writing = os.pipe()
    writer = os.fork()
    if writer == 0:

        def stopped(pid: int) -> None:
            os.kill(pid, signal.SIGSTOP)
            os.write(writing, str(pid).encode())

        try:
            nft.apply(script, ns.path, stopped)
        finally:
            os._exit(0)
    pid = int(os.read(reading, 20))
    time.sleep(0.3)  # it has written what it can
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    os.kill(pid, signal.SIGCONT)
    file = os.pidfd_open(pid)
    assert select.select([file], [], [], 30)[0]
    for each in (file, reading, writing):
        os.close(each)
    assert ns.run("nft", "list", "chains").count("chain c") in (0, len(lines))
