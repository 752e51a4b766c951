"""Policy of real pods: it is there with the first packet, and follows the labels of the pod."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

import pytest
from agent_node import (
    RED,
    applied,
    endpoints,
    ips,
    soon,
    udp,
)
from agent_pods import MakeSandbox

from tortie.model.k8s import Pod
from tortie.model.meta import changed
from tortie.model.store import Store

pytestmark = pytest.mark.root


DENY_QUIET = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: quiet, namespace: red}
spec: {selector: "speaks == 'no'", types: [Egress], egress: []}
"""


def received(sock: Any, seconds: float) -> int:
    """How many datagrams come in the given time."""
    sock.settimeout(seconds)
    count = 0
    with suppress(TimeoutError):
        while True:
            sock.recv(100)
            count += 1
            sock.settimeout(0.1)
    return count


async def test_label_that_changes_changes_the_policy(sandbox: MakeSandbox, store: Store) -> None:
    async with applied(store, DENY_QUIET):
        speaker, listener = await sandbox("speaker", labels={"speaks": "yes"}), await sandbox("listener")
        await speaker.add()
        v4, _ = ips(await listener.add())
        with udp(speaker.ns) as out, udp(listener.ns, v4, 5000) as into:

            def heard() -> bool:
                for _ in range(3):
                    out.sendto(b"hello", (v4, 5000))
                return received(into, 0.1) > 0

            await soon(lambda: asyncio.to_thread(heard), what="it speaks")
            for value, silent in (("no", True), ("yes", False)):
                old = await store.get(Pod, "speaker", RED)
                await store.update(changed(old, labels={"speaks": value}))
                await soon(lambda: asyncio.to_thread(heard), lambda is_heard, silent=silent: is_heard is not silent)
                assert (await endpoints(store))["speaker"].labels["speaks"] == value


@pytest.mark.parametrize("speaks", ["no", "yes"])
async def test_policy_holds_from_the_first_packet(sandbox: MakeSandbox, store: Store, speaks: str) -> None:
    """The pod sends as fast as it can from before it has an interface."""
    async with applied(store, DENY_QUIET):
        listener = await sandbox("hears")
        v4, _ = ips(await listener.add())
        flooder = await sandbox("floods", labels={"speaks": speaks})
        stop = threading.Event()
        sent = 0

        def flood() -> None:
            nonlocal sent
            with udp(flooder.ns) as out:
                while not stop.is_set():
                    with suppress(OSError):  # there is no route yet
                        out.sendto(b"hello", (v4, 5000))
                        sent += 1

        with udp(listener.ns, v4, 5000) as into:
            thread = threading.Thread(target=flood)
            thread.start()
            try:
                await flooder.add()
                await asyncio.sleep(0.2)
            finally:
                stop.set()
                thread.join()
            count = await asyncio.to_thread(received, into, 0.2)
        assert sent > 100
        assert (count > 0) is (speaks == "yes")
