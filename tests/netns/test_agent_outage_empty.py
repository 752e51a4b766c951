"""An API server that comes back empty, and then as another cluster's: nothing is deleted here, nothing written there,
until somebody says that this is the cluster now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from agent_node import soon
from conftest import Ns
from kube_town import Town, reaches, town

from tortie.agent.client import tell

pytestmark = pytest.mark.root


def writes(place: Town, since: int) -> list[str]:
    return [f"{one.method} {one.path}" for one in list(place.cluster.api.log)[since:] if one.method != "GET"]


async def test_api_server_that_comes_back_empty(tmp_path: Path, make_ns: Callable[..., Ns]) -> None:
    with town(tmp_path, "--no-bgp") as place:
        place.node.start()
        web, client = (place.sandbox(place.cluster.pod(name), make_ns(name)) for name in ("web", "client"))
        await soon(lambda: place.status()["cni"]["pods"] == 2)
        for one in (web, client):
            await one.add()
        await soon(lambda: place.status()["cni"]["pending"] == 0)

        place.cluster.do(place.cluster.api.restart, keep=False)
        since = len(place.cluster.api.log)
        await soon(lambda: "the cluster does not know" in place.status()["datastore"]["why"])
        assert await reaches(client, web)
        place.cluster.furnish("f" * 32)
        await soon(lambda: "another cluster" in place.status()["datastore"]["disbelief"])
        assert await reaches(client, web)
        assert place.readiness()[0] == 503
        assert {web.host_ifname, client.host_ifname} <= place.node.dispatched()
        assert writes(place, since) == []

        socket = place.node.run_dir / "agent.sock"
        assert tell(socket, "/datastore/accept") == {"accepted": True}
        await soon(place.node.dispatched, lambda left: not left)
        await soon(lambda: place.status()["datastore"]["cluster"] == "f" * 32)
        assert tell(socket, "/datastore/accept") == {"accepted": False}
        for one in (web, client):
            await one.delete()
