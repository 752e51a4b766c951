"""The tests in `inside` are collected here, run in a guest, and reported as if they ran here.

Files of one group (`parts.SHARED`) share a guest, because to boot it and to start Python in it takes longer than most
tests; others have one of their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from parts import vm_group
from vm.guest import REPORTS, Guest, inside, obstacle

INSIDE = Path(__file__).parent / "inside"
_guests = pytest.StashKey[dict[str, Guest]]()


def is_inside(item: pytest.Item) -> bool:
    return INSIDE in item.path.parents


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of a guest waits for all of it; how long each may take is for the guest to say."""
    for item in items:
        if is_inside(item) and not inside():
            item.add_marker(pytest.mark.timeout(0))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if inside() or not is_inside(item):
        return None
    if why := obstacle():
        item.add_marker(pytest.mark.skip(reason=why))
        return None
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    guest = guest_of(item)
    for report in guest.reports(item.nodeid) or [unrun(item, guest)]:
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    item.session._setupstate.teardown_exact(nextitem)  # what the test before it has left for others of this directory
    return True


def guest_of(item: pytest.Item) -> Guest:
    """The guest of an item's group; with its first one it is booted, for all that are to run."""
    guests = item.config.stash.setdefault(_guests, {})
    group = vm_group(item.nodeid)
    if group not in guests:
        tests = [one.nodeid for one in item.session.items if vm_group(one.nodeid) == group]
        directory = item.config._tmp_path_factory.mktemp(group.rpartition("/")[2])  # type: ignore[attr-defined]
        guests[group] = Guest(tests, directory)
    return guests[group]


def unrun(item: pytest.Item, guest: Guest) -> pytest.TestReport:
    keywords = dict.fromkeys(item.keywords, 1)
    return pytest.TestReport(item.nodeid, item.location, keywords, "failed", guest.ending(), "call")


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    for guest in session.config.stash.get(_guests, {}).values():
        guest.close()
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the guest: what became of a test is written down for those outside."""
    if not inside():
        return
    with open(os.environ[REPORTS], "a") as file:
        print(json.dumps(report._to_json(), default=str), file=file)
