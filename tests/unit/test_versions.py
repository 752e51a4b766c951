"""Commands and clusters of different versions (situation 56), and who tells a cluster that it is newer."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from tortie.agent.registration import ready
from tortie.calc.versions import CALICO_VERSION, mismatch, raised
from tortie.cli.datastore import initialise
from tortie.cli.main import main
from tortie.model.meta import Metadata
from tortie.model.node import ClusterInformation, ClusterInformationSpec
from tortie.store import open_store
from tortie.store.memory import MemoryStore


def information(version: str) -> ClusterInformation:
    return ClusterInformation(
        metadata=Metadata(name="default"), spec=ClusterInformationSpec(calico_version=version, datastore_ready=True)
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "differ"),
    [
        ("v3.34.0", "v3.33.0", True),
        ("v3.34.0", "v3.34.1", True),
        ("v3.34.0", "3.34.0", False),
        ("v3.34.0", "v3.34.0-dirty", False),
        ("v3.34.0", "", False),
        ("v3.34.0", "master", True),
    ],
)
def test_56_client_and_cluster(ours: str, theirs: str, differ: bool) -> None:
    said = mismatch(ours, information(theirs))
    assert (f"client version {ours}, cluster version {theirs}" in said) is differ
    assert mismatch(ours, None) == ""


def test_a_cluster_is_raised_never_lowered() -> None:
    newer = raised("v3.34.0", information("v3.33.9"))
    assert newer is not None
    assert newer.spec.calico_version == "v3.34.0"
    assert raised("v3.34.0", information("v3.34.0")) is None
    assert raised("v3.34.0", information("v4.0.0")) is None
    assert raised("v3.34.0", information("")) is not None


async def test_a_node_that_starts_raises_it() -> None:
    store = MemoryStore()
    await store.create(information("v3.1.0"))
    assert not await ready(store)
    assert (await store.get(ClusterInformation, "default")).spec.calico_version == CALICO_VERSION


async def write_version(file: Path, version: str) -> None:
    store = open_store(str(file))
    try:
        await initialise(store)
        there = await store.get(ClusterInformation, "default")
        await store.update(replace(there, spec=replace(there.spec, calico_version=version)))
    finally:
        await store.close()


async def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import asyncio

    file = tmp_path / "store.db"
    await write_version(file, "v3.1.0")

    async def run(*arguments: str) -> tuple[int, str, str]:
        status = await asyncio.to_thread(main, [*arguments, "--datastore", str(file)])
        return status, *capsys.readouterr()

    status, out, err = await run("get", "nodes")
    assert status == 1
    assert "cluster version v3.1.0" in err
    assert "--allow-version-mismatch" in err
    assert out == ""
    assert (await run("--allow-version-mismatch", "get", "nodes"))[0] == 0
    assert (await run("get", "nodes"))[0] == 1  # for one command only
    status, out, _ = await run("version")
    assert status == 0
    assert f"Client Version:    {CALICO_VERSION}" in out
    assert "Cluster Version:   v3.1.0" in out
    assert "Cluster Version" not in (await run("version", "--client"))[1]
