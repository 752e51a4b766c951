"""Who deletes a link waits until the kernel says that it is gone, and not for what it does afterwards."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from namespaces import Ns
from tortie.agent.links_gone import LinksGone
from tortie.base.errors import KernelError
from tortie.dataplane.attachment import detach
from tortie.kernel import events, links, netns
from tortie.kernel.netlink import Netlink

pytestmark = pytest.mark.root

PATIENCE = 10.0
MOMENT = 0.2


@asynccontextmanager
async def listening(gone: LinksGone) -> AsyncIterator[None]:
    """What the kernel announces is told, as the agent does it."""
    loop = asyncio.get_running_loop()
    with events.Monitor(groups=(events.Group.LINK,)) as monitor:
        loop.add_reader(monitor.fileno(), lambda: gone.heard(monitor.read()))
        try:
            yield
        finally:
            loop.remove_reader(monitor.fileno())


Found = Callable[[], None]


def deleting(ns: Ns, name: str, then: Callable[[], object]) -> Callable[[Found], None]:
    """Deletes a link; then the call takes its time."""

    def delete(found: Found) -> None:
        found()
        with Netlink(ns.path) as nl:
            links.delete_link(nl, name)
        then()

    return delete


@pytest.fixture
def node(ns: Ns) -> Ns:
    ns.ip("link", "add", "cali1", "type", "veth", "peer", "name", "peer1")
    return ns


def test_it_is_gone_before_the_call_returns(node: Ns) -> None:
    returns = threading.Event()

    async def main() -> None:
        gone = LinksGone()
        async with listening(gone), asyncio.timeout(PATIENCE):
            await gone.after("cali1", deleting(node, "cali1", lambda: returns.wait(PATIENCE)))
            assert not returns.is_set()
            assert links.index_here("cali1") == 0
            returns.set()

    with netns.entered(node.path):
        asyncio.run(main())


def test_where_nothing_is_heard_the_call_is_waited_for(node: Ns) -> None:
    returns = threading.Event()

    async def main() -> None:
        delete = deleting(node, "cali1", lambda: returns.wait(PATIENCE))
        waiting = asyncio.create_task(LinksGone().after("cali1", delete))
        await asyncio.sleep(MOMENT)
        assert not waiting.done()
        returns.set()
        async with asyncio.timeout(PATIENCE):
            await waiting

    with netns.entered(node.path):
        asyncio.run(main())


def test_what_fails_before_is_raised(node: Ns) -> None:
    def fails(found: Found) -> None:
        raise KernelError(1, "ip link delete cali1")

    async def main() -> None:
        gone = LinksGone()
        async with listening(gone):
            for name in ("cali1", "nobody"):
                with pytest.raises(KernelError):
                    await gone.after(name, fails)

    with netns.entered(node.path):
        asyncio.run(main())


def test_what_fails_afterwards_is_logged(node: Ns, caplog: pytest.LogCaptureFixture) -> None:
    goes_on = threading.Event()

    def fails() -> None:
        goes_on.wait(PATIENCE)
        raise KernelError(1, "ip link delete cali1")

    async def main() -> None:
        gone = LinksGone()
        async with listening(gone), asyncio.timeout(PATIENCE):
            await gone.after("cali1", deleting(node, "cali1", fails))
            goes_on.set()
            await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})

    with netns.entered(node.path), caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert "delete cali1: it went, and then: ip link delete cali1" in caplog.text


def test_another_link_that_goes_says_nothing(node: Ns) -> None:
    """Not even one that had the name before."""
    returns = threading.Event()

    async def main() -> None:
        gone = LinksGone()
        async with listening(gone), asyncio.timeout(PATIENCE):
            node.ip("link", "delete", "cali1")  # which is announced, and not read yet
            node.batch("link add cali1 type veth peer name peer1", "link add cali2 type veth peer name peer2")
            waiting = asyncio.create_task(
                gone.after("cali1", lambda found: found() or (returns.wait(PATIENCE) and None))
            )
            await asyncio.sleep(0)
            node.ip("link", "delete", "cali2")
            await asyncio.sleep(MOMENT)
            assert not waiting.done()
            returns.set()
            await waiting

    with netns.entered(node.path):
        asyncio.run(main())


def test_nobody_has_the_name_before_the_link_was_found(node: Ns) -> None:
    """Somebody else deletes it first: what is made under its name in the moment that the answer comes, stays."""
    begins = threading.Event()

    def slow(found: Found) -> None:
        begins.wait(PATIENCE)
        detach("", "", "cali1", node.path, found=found)

    async def main() -> None:
        gone = LinksGone()
        async with listening(gone), asyncio.timeout(PATIENCE):
            waiting = asyncio.create_task(gone.after("cali1", slow))
            await asyncio.sleep(0)
            node.ip("link", "delete", "cali1")
            await asyncio.sleep(MOMENT)
            assert not waiting.done()
            begins.set()
            await waiting
            node.ip("link", "add", "cali1", "type", "veth", "peer", "name", "peer1")
            await asyncio.sleep(MOMENT)
            assert links.index_here("cali1") != 0

    with netns.entered(node.path):
        asyncio.run(main())


def test_a_call_that_is_given_up_before_it_began_never_begins(node: Ns) -> None:
    """It waits for a thread; whoever has the name by then keeps his link."""
    free = threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, free.wait, PATIENCE)
        waiting = asyncio.create_task(LinksGone().after("cali1", deleting(node, "cali1", lambda: None)))
        await asyncio.sleep(MOMENT)
        waiting.cancel()
        await asyncio.wait([waiting])
        free.set()
        await busy
        await loop.run_in_executor(None, lambda: None)
        assert links.index_here("cali1") != 0

    with netns.entered(node.path):
        asyncio.run(main())


def test_what_comes_under_the_names_afterwards_stays(node: Ns) -> None:
    """A pod that is deleted and attached again, in the time that the kernel takes to tidy up."""

    def again() -> None:
        """The kernel has announced it, or soon will."""
        node.batch("link delete cali1", "link add cali1 type veth peer name peer1")

    detach(node.path, "peer1", "cali1", node.path, found=again)
    assert {link["ifname"] for link in node.json("link")} == {"lo", "cali1", "peer1"}
