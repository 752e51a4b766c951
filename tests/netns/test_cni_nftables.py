"""nftables as the plugins use it: by the library, and by the program where there is no library."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from typing import Any

import pytest

from namespaces import Ns
from tortie.base.errors import KernelError
from tortie.cni import nftables
from tortie.kernel import libnftables
from tortie.kernel.netns import entered

pytestmark = pytest.mark.root

TABLE = """
add table inet t
add chain inet t c
add rule inet t c tcp dport 1 accept comment "one"
add rule inet t c tcp dport 2 accept comment "two"
add rule inet t c accept
"""


@pytest.fixture(params=["library", "program"])
def host(request: pytest.FixtureRequest, ns: Ns) -> Iterator[Ns]:
    """A namespace, which this thread is in. Without a library nothing but what `load` has found is another."""
    if request.param == "library" and libnftables.load() is None:
        pytest.skip(f"{libnftables.LIBRARY} is not installed")
    found = [libnftables.load()]
    libnftables._loaded[:] = found if request.param == "library" else [None]
    try:
        with entered(ns.path):
            yield ns
    finally:
        libnftables._loaded[:] = found
        nftables._contexts.clear()


def comments(ns: Ns) -> list[str]:
    listed = json.loads(ns.run("nft", "-j", "list", "ruleset"))["nftables"]
    return [each["rule"].get("comment", "") for each in listed if "rule" in each]


def test_transactions(host: Ns) -> None:
    nftables.apply(TABLE)
    assert comments(host) == ["one", "two", ""]
    there = nftables.list_table("inet", "t")
    assert [each["comment"] for each in nftables.rules(there) if "comment" in each] == ["one", "two"]
    assert all(isinstance(each["handle"], int) for each in nftables.rules(there))
    assert nftables.rules(nftables.list_chain("inet", "t", "c")) == nftables.rules(there)
    assert nftables.list_table("inet", "nobodys") == []
    assert nftables.list_chain("inet", "t", "nobodys") == []
    nftables.delete_by_comment("inet", "t", lambda comment: comment == "one")
    nftables.delete_by_comment("inet", "nobodys", lambda comment: True)
    assert comments(host) == ["two", ""]


@pytest.mark.parametrize(
    ("script", "line", "text"),
    [
        ("add rule inet t c blah\n", "nft add rule inet t c blah: ", "syntax error"),
        ("add rule inet nobodys c accept\n", "nft add rule inet nobodys c accept: ", "No such file or directory"),
        (
            "add chain inet t d\nadd rule inet t d jump nobodys\n",
            "nft add rule inet t d jump nobodys: ",
            "No such file",
        ),
    ],
)
def test_refused(host: Ns, script: str, line: str, text: str) -> None:
    nftables.apply(TABLE)
    with pytest.raises(KernelError) as why:
        nftables.apply(script)
    assert str(why.value).startswith(line)
    assert text in str(why.value)
    assert "\n" not in str(why.value)
    assert comments(host) == ["one", "two", ""], "all of it or nothing"


def test_decided_anew(host: Ns) -> None:
    """Somebody deletes the rule that was to be deleted, between the decision and the transaction."""
    nftables.apply(TABLE)
    seen: list[int] = []

    def decide(there: list[dict[str, Any]]) -> str:
        seen.append(len(nftables.rules(there)))
        script = nftables.deletions(there, bool)
        if len(seen) == 1:
            handle = nftables.rules(there)[0]["handle"]
            host.run("nft", "delete", "rule", "inet", "t", "c", "handle", str(handle))
        return script

    nftables.change("inet", "t", decide)
    assert (seen, comments(host)) == ([3, 2], [""])


def test_gives_up(host: Ns) -> None:
    nftables.apply(TABLE)
    tried: list[int] = []

    def decide(there: list[dict[str, Any]]) -> str:
        tried.append(1)
        return "delete rule inet t c handle 99\n"

    with pytest.raises(KernelError):
        nftables.change("inet", "t", decide)
    assert len(tried) == nftables.TRIES
    with pytest.raises(KernelError) as why:
        nftables.change("inet", "t", lambda there: (tried.append(1), "add rule inet t c blah\n")[1])
    assert (len(tried), why.value.errno) == (nftables.TRIES + 1, errno.EINVAL)


def test_table_of_ebtables(host: Ns) -> None:
    """Rules of xtables' own kind are listed, too, and do not stand in the way."""
    host.run(
        "nft", "add table bridge nat; add chain bridge nat PREROUTING { type filter hook prerouting priority -300; }"
    )
    host.run("ebtables-nft", "-t", "nat", "-A", "PREROUTING", "-i", "veth+", "-j", "ACCEPT", check=False)
    nftables.apply('add rule bridge nat PREROUTING iifname "x" accept comment "ours"\n')
    nftables.delete_by_comment("bridge", "nat", lambda comment: comment == "ours")
    assert "ours" not in comments(host)
