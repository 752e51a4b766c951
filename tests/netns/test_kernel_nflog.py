"""A log group of the kernel, with real packets."""

from __future__ import annotations

import os
import select
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Ns

from tortie.base.errors import KernelError, Unavailable
from tortie.calc.cluster import Cluster
from tortie.dataplane.converge import converge
from tortie.dataplane.stages.nft import Nft
from tortie.kernel import headers, netns, nft
from tortie.kernel.headers import Headers
from tortie.kernel.nflog import Logged, Lost, Reader
from tortie.render.denials import PROBE, denial_chains
from tortie.render.match import denial
from tortie.render.ruleset import Chain, Ruleset, transaction

pytestmark = pytest.mark.root

GROUP = 1086
NUMBER = 0xF1234567
RULES = f"""
add table inet t
add chain inet t o {{ type filter hook output priority 0; }}
add chain inet t i {{ type filter hook input priority 0; }}
add rule inet t o udp dport 9 meta mark set {NUMBER:#x} log group {GROUP} snaplen 128 drop
add rule inet t i udp dport 10 log group {GROUP} snaplen 40 drop
"""


@pytest.fixture
def ns(make_ns: Callable[..., Ns]) -> Ns:
    ns = make_ns("log")
    ns.ip("link", "set", "lo", "up")
    nft.apply(RULES, ns.path)
    return ns


@pytest.fixture
def reader(ns: Ns) -> Iterator[Reader]:
    with Reader(GROUP, ns.path) as reader:
        yield reader


def send(ns: Ns, port: int, times: int = 1, address: str = "127.0.0.1", size: int = 5) -> int:
    """From one socket; its port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with netns.entered(ns.path), socket.socket(family, socket.SOCK_DGRAM) as out:
        for _ in range(times):
            try:
                out.sendto(b"x" * size, (address, port))
            except PermissionError:  # as the sender's own output hook says
                continue
        return int(out.getsockname()[1])


def told(reader: Reader, count: int) -> list[Logged | Lost]:
    found: list[Logged | Lost] = []
    deadline = time.monotonic() + 10
    while len(found) < count:
        assert time.monotonic() < deadline, f"only {found}"
        select.select([reader], [], [], 1)
        found += reader.read()
    return found


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_packet_is_told_with_its_mark(ns: Ns, reader: Reader, address: str) -> None:
    port = send(ns, 9, 2, address)
    one, other = told(reader, 2)
    assert isinstance(one, Logged)
    assert isinstance(other, Logged)
    assert (one.hook, one.mark, one.indev, one.outdev) == ("output", NUMBER, 0, 1)
    ip = headers.read(one.payload).source
    assert str(ip) == address
    assert headers.read(one.payload) == headers.read(other.payload) == Headers(ip, ip, 17, (port, 9))


def test_no_more_of_a_packet_is_told_than_the_rule_says(ns: Ns, reader: Reader) -> None:
    send(ns, 10, size=500)
    (one,) = told(reader, 1)
    assert isinstance(one, Logged)
    assert (one.hook, one.mark, one.indev, len(one.payload)) == ("input", 0, 1, 40)
    assert one.time is None or abs(one.time - time.time()) < 60


def test_what_does_not_fit_is_counted(ns: Ns) -> None:
    """Nobody reads, until the buffer is full."""
    with Reader(GROUP, ns.path) as reader:
        send(ns, 9, 40_000)
        time_left = time.monotonic() + 10
        found: list[Logged | Lost] = []
        while not any(isinstance(one, Lost) for one in found):
            assert time.monotonic() < time_left
            send(ns, 9)  # the first to arrive again says how many did not
            select.select([reader], [], [], 0.2)
            found += reader.read()
        lost = sum(one.count for one in found if isinstance(one, Lost))
        arrived = sum(isinstance(one, Logged) for one in found)
        assert lost > 1000
        assert lost + arrived > 40_000


def test_a_group_has_one_listener(ns: Ns, reader: Reader) -> None:
    with pytest.raises(Unavailable, match=f"another program listens to netfilter's log group {GROUP}"):
        Reader(GROUP, ns.path)
    Reader(GROUP + 1, ns.path).close()
    reader.close()
    Reader(GROUP, ns.path).close()


def test_whether_the_kernel_would_take_a_log_group(ns: Ns) -> None:
    before = ns.run("nft", "list", "ruleset")
    assert nft.takes(PROBE, ns.path)
    assert not nft.takes(PROBE.replace("log group", "log groupings"), ns.path)
    assert not nft.takes(PROBE.replace("told", "t", 1), ns.path)
    assert ns.run("nft", "list", "ruleset") == before


def test_where_the_kernel_has_no_log_group_policy_is_as_ever(
    ns: Ns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An nft that takes nothing when it is only to say whether it would."""
    real = shutil.which("nft")
    (tmp_path / "nft").write_text(f'#!/bin/sh\n[ "$1" = --check ] && exit 1\nexec {real} "$@"\n')
    (tmp_path / "nft").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    stage = Nft(ns.path)
    assert converge([stage], Cluster("n1").state()) == []
    table = ns.run("nft", "list", "table", "inet", "tortie")
    assert "log group" not in table
    assert "goto dropped" in table
    assert stage.ruleset is not None
    assert stage.ruleset.chains["denied"].rules == ("drop",)


@pytest.mark.parametrize("action", ["Drop", "Reject"])
def test_each_chain_stands_where_packets_end(ns: Ns, action: str) -> None:
    """nft itself says which verdicts a hook allows; all of them take the log rule."""
    chains = denial_chains(action)
    for chain, hooks in (
        ("dropped", ("prerouting", "input", "forward", "output", "postrouting")),
        ("denied", ("input", "forward", "output")),
        ("refused", ("input", "forward", "output")),
    ):
        for hook in hooks:
            base = Chain((f"meta l4proto 6 {denial(hook, chain)}",), f"type filter hook {hook} priority 0;")
            nft.apply(transaction(Ruleset({**chains, hook: base}), None, "inet u"), ns.path)
    base = Chain((denial("x", "refused"),), "type filter hook postrouting priority 0;")
    with pytest.raises(KernelError):
        nft.apply(transaction(Ruleset({**chains, "h": base}), None, "inet u"), ns.path)
