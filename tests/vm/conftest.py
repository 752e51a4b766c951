"""The tests in `inside` are collected here, run in a guest, and reported as if they ran here.

There is a guest for each process that shares the tests of the level (`parts.guests`), because to boot one and to start
Python in it takes longer than most tests. One that dies costs the test that it was at; another does the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from parts import guests
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
    """The guest of an item's part of the level; it is booted with the first one, for all of them."""
    booted = item.config.stash.setdefault(_guests, {})
    every = [one.nodeid for one in item.session.items]
    parts = guests(every, getattr(item.config, "workerinput", {}).get("workercount", 1))
    part = parts[file_of(item.nodeid)]
    if part not in booted or booted[part].leaves_some:
        tests = [test for test in every[every.index(item.nodeid) :] if parts.get(file_of(test)) == part]
        directory = item.config._tmp_path_factory.mktemp(part.rpartition("/")[2])  # type: ignore[attr-defined]
        booted[part] = Guest(tests, directory)
    return booted[part]


def file_of(test: str) -> str:
    return test.partition("::")[0]


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
