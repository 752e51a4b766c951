"""What flanneld's iptables rules leave: they go with what jumps to them, and nothing else of iptables is touched."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from flannel_daemons import Town
from flannel_nodes import Wire
from namespaces import Ns
from tortie.flannel.leftovers import clear, legacy_removal, removal
from tortie.kernel.netns import entered

pytestmark = pytest.mark.root

VARIANTS = ("iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy")


def network(program: str) -> str:
    return "fd00:10::/48" if program.startswith("ip6") else "10.244.0.0/16"


def multicast(program: str) -> str:
    return "ff00::/8" if program.startswith("ip6") else "224.0.0.0/4"


def rules(program: str) -> list[str]:
    """What flanneld puts there, in the order of its commands."""
    masq, forward = '-m comment --comment "flanneld masq"', '-m comment --comment "flanneld forward"'
    net = network(program)
    return [
        "-t nat -N FLANNEL-POSTRTG",
        f"-t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masq} -j RETURN",
        f"-t nat -A FLANNEL-POSTRTG -s {net} ! -d {multicast(program)} {masq} -j MASQUERADE --random-fully",
        f"-t nat -A FLANNEL-POSTRTG ! -s {net} -d {net} {masq} -j MASQUERADE --random-fully",
        f"-t nat -A POSTROUTING {masq} -j FLANNEL-POSTRTG",
        "-t filter -N FLANNEL-FWD",
        f"-t filter -A FLANNEL-FWD -s {net} {forward} -j ACCEPT",
        f"-t filter -A FLANNEL-FWD -d {net} {forward} -j ACCEPT",
        f"-t filter -A FORWARD {forward} -j FLANNEL-FWD",
    ]


STRANGERS = (
    "-t nat -N FLANNEL-POSTRTG-2",
    "-t nat -A FLANNEL-POSTRTG-2 -j RETURN",
    "-t nat -A POSTROUTING -j FLANNEL-POSTRTG-2",
    '-t nat -A POSTROUTING -m comment --comment "-j FLANNEL-POSTRTG" -j RETURN',
    "-t nat -N KUBE-POSTROUTING",
    "-t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
    "-t nat -A POSTROUTING -j KUBE-POSTROUTING",
    "-t filter -N DOCKER-USER",
    "-t filter -A FORWARD -j DOCKER-USER",
    "-t filter -A FORWARD -i eth0 -p tcp --dport 22 -j ACCEPT",
)


def write(ns: Ns, program: str, commands: list[str] | tuple[str, ...]) -> None:
    ns.run("sh", "-ec", "\n".join(f"{program} -w {command}" for command in commands))


def saved(ns: Ns, program: str) -> str:
    """Without comments and counts."""
    text = ns.run(f"{program}-save")
    return re.sub(r"\[\d+:\d+\]", "", "".join(line for line in text.splitlines(True) if not line.startswith("#")))


@pytest.fixture(params=VARIANTS)
def program(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    if shutil.which(found) is None:
        pytest.skip(f"{found} is not installed")
    return found


@pytest.fixture
def there(ns: Ns, program: str) -> Ns:
    """With strangers' rules; the programs of this variant work here."""
    write(ns, program, STRANGERS)
    return ns


def test_they_go_and_others_stay(there: Ns, program: str) -> None:
    before = saved(there, program)
    write(there, program, rules(program))
    assert saved(there, program) != before
    assert clear(there.path) == ()
    assert saved(there, program) == before


def test_they_go_from_the_middle_and_from_where_else_they_are_jumped_to(there: Ns, program: str) -> None:
    before = saved(there, program)
    write(there, program, [*rules(program), "-t nat -I POSTROUTING -j FLANNEL-POSTRTG"])
    write(there, program, ["-t filter -I FORWARD -i eth0 -j FLANNEL-FWD", "-t filter -I DOCKER-USER -j FLANNEL-FWD"])
    assert clear(there.path) == ()
    assert saved(there, program) == before


def test_where_all_else_is_dropped_the_chain_that_lets_pods_through_stays(there: Ns, program: str) -> None:
    write(there, program, ["-t filter -P FORWARD DROP"])
    without = saved(there, program)
    write(there, program, rules(program)[5:])
    kept = saved(there, program)
    write(there, program, rules(program)[:5])
    assert clear(there.path) == ()
    assert saved(there, program) == kept
    write(there, program, ["-t filter -P FORWARD ACCEPT"])
    assert clear(there.path) == ()
    assert saved(there, program) == without.replace("FORWARD DROP", "FORWARD ACCEPT")


def test_nothing_of_it_is_changed_again(there: Ns, program: str) -> None:
    write(there, program, rules(program))
    assert clear(there.path) == ()
    handles = there.run("nft", "-a", "list", "ruleset")
    assert clear(there.path) == ()
    assert there.run("nft", "-a", "list", "ruleset") == handles


def test_a_machine_without_iptables_is_left_without(ns: Ns) -> None:
    assert clear(ns.path) == ()
    assert ns.run("nft", "list", "ruleset") == ""
    assert ns.run("cat", "/proc/net/ip_tables_names", check=False).strip() == ""


def test_it_acts_on_the_namespace_of_its_thread(there: Ns, make_ns: Callable[..., Ns], program: str) -> None:
    before = saved(there, program)
    write(there, program, rules(program))
    with entered(make_ns().path):
        assert clear() == ()
    assert saved(there, program) != before
    with entered(there.path):
        assert clear() == ()
    assert saved(there, program) == before


@pytest.fixture
def without_programs(tmp_path: Path) -> Path:
    """A directory for $PATH in which there is nft, and nothing of iptables."""
    for name in ("nft", "nsenter"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    return tmp_path


@pytest.mark.parametrize("program", ["iptables-legacy"], indirect=True)
def test_missing_programs_are_said_and_the_rest_is_done(there: Ns, without_programs: Path, program: str) -> None:
    before = saved(there, program)
    write(there, "iptables-nft", rules("iptables-nft"))
    write(there, program, rules(program))
    code = "from tortie.flannel.leftovers import clear\nprint('\\n'.join(clear()))"
    said = there.run("env", f"PATH={without_programs}", sys.executable, "-c", code)
    assert said.splitlines() == [
        f"{chain}, a chain of an earlier flanneld in iptables' {table}, is still there: "
        "iptables-legacy-save is not installed: apt-get install iptables, or reboot the node"
        for table, chain in (("nat", "FLANNEL-POSTRTG"), ("filter", "FLANNEL-FWD"))
    ]
    assert "FLANNEL" not in there.run("nft", "list", "ruleset")
    assert clear(there.path) == ()
    assert saved(there, program) == before


def test_situation_122_a_daemon_takes_over(make_ns: Callable[..., Ns], tmp_path: Path) -> None:
    """Ours are there before the others go, which is when it is ready."""
    with closing(Town(Wire(make_ns), tmp_path)) as town:
        one = town.node(1, "-ip-masq")
        ns = one.node.ns
        before = {program: (write(ns, program, STRANGERS), saved(ns, program))[1] for program in VARIANTS}
        for program in VARIANTS:
            write(ns, program, rules(program))
        one.start().until_ready()
        assert {program: saved(ns, program) for program in VARIANTS} == before
        assert "masquerade" in ns.run("nft", "list", "table", "ip", "flannel-ipv4")


# --- what is decided, without a kernel ----------------------------------------------------------------------------


def test_nothing_to_remove_is_no_transaction() -> None:
    chain = {"family": "ip", "table": "nat", "name": "POSTROUTING", "handle": 1, "hook": "postrouting"}
    assert removal([{"chain": chain}], "FLANNEL-POSTRTG") == ""
    assert legacy_removal("*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n", "nat", "FLANNEL-POSTRTG") == ""
