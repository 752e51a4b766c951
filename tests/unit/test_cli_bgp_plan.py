"""`tortie bgp plan` on files: what it prints, and how it ends."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from bgp_clusters import MESH, NO_MESH, block, config, node, peer, pool, secret
from tortie.cli.main import main
from tortie.model.document import dump
from tortie.model.meta import Resource, changed
from tortie.store import open_store

REFLECTOR = node(1, label="rr", routeReflectorClusterID="1.0.0.1")


def written(path: Path, *objects: Resource) -> str:
    path.write_text("---\n".join(json.dumps(dump(one)) + "\n" for one in objects))
    return str(path)


async def stored(path: Path, *objects: Resource) -> None:
    """Also what only the network writes."""
    store = open_store(path)
    try:
        for one in objects:
            await store.create(one)
    finally:
        await store.close()


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["bgp", "plan", *words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_manifests_are_compared_and_every_node_is_taken_to_have_pods(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = written(tmp_path / "before.yaml", *(node(i) for i in (1, 2, 3)), pool(), MESH)
    bare = replace(REFLECTOR, spec=replace(REFLECTOR.spec, bgp=replace(REFLECTOR.spec.bgp, ipv4_address="")))
    after = written(tmp_path / "after.yaml", bare, peer(), NO_MESH)
    status, out, err = planned(capsys, "--against", before, "-f", after)
    assert (status, err) == (0, "")
    assert "step 3  the net away" in out
    status, out, _ = planned(capsys, "--against", before, "-f", after, "-o", "json")
    document: dict[str, Any] = json.loads(out)
    assert status == 0
    assert [step["kind"] for step in document["steps"]] == ["net on", "change", "net off"]
    assert {"source": "n3", "owner": "n2", "version": 4, "tunnel": "", "from": "n1"} in document["after"]["learned"]


def test_what_cannot_be_kept_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two subnets: where the net does not reach."""
    before = written(tmp_path / "before.yaml", node(1), node(2, subnet=1), block(1), block(2), pool(), MESH, peer())
    after = written(tmp_path / "after.yaml", REFLECTOR)
    status, out, _ = planned(capsys, "--against", before, "-f", after)
    assert status == 1
    assert "LOST for seconds: n1 → n2, n2 → n1" in out
    assert out.endswith("no order of steps keeps every route: lost for seconds are n1 → n2, n2 → n1\n")


def test_what_is_gone_for_good_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No step loses it for a moment: there is no way back to it at all."""
    nodes = [thing for i in (1, 2) for thing in (node(i), block(i))]
    before = written(tmp_path / "before.yaml", *nodes, pool(), MESH)
    after = written(tmp_path / "after.yaml", NO_MESH)
    status, out, _ = planned(capsys, "--against", before, "-f", after)
    assert status == 1
    assert "  gone for good  n1 → n2, n2 → n1" in out
    assert out.splitlines()[-1].startswith("what is wanted leaves no way for n1 → n2, n2 → n1")
    status, out, _ = planned(capsys, "--against", before, "-f", after, "-o", "json")
    assert (status, [(way["source"], way["owner"]) for way in json.loads(out)["goneForGood"]]) == (
        1,
        [("n1", "n2"), ("n2", "n1")],
    )
    live = ("--datastore", str(tmp_path / "store.db"))
    asyncio.run(stored(tmp_path / "store.db", *nodes, pool(), MESH))
    status, _, err = planned(capsys, "-f", after, "--apply", *live)
    assert (status, err.startswith("tortie: nothing is changed: routes would be gone for good")) == (1, True)
    assert main(["get", "bgpconfig", "default", "-o", "json", *live]) == 0
    assert json.loads(capsys.readouterr().out)["spec"].get("nodeToNodeMeshEnabled") is not False


def test_pruning_needs_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = written(
        tmp_path / "before.yaml", node(1), node(2), pool(), MESH, peer("tor", peerIP="10.0.0.9", asNumber=1)
    )
    status, out, _ = planned(capsys, "--against", before, "--prune")
    assert status == 0
    assert "delete BGPPeer tor" in out
    assert "removed Global: n1 – 10.0.0.9, n2 – 10.0.0.9" in out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--against", "BEFORE"), "what is wanted? give -f FILE or a directory"),
        (("--against", "BEFORE", "-f", "BEFORE", "--apply"), "--apply changes what is live: leave --against away"),
        (("--against", "BEFORE", "-f", "BEFORE", "-o", "yaml"), '"yaml" is not one of text, json'),
        (("--against", "BEFORE", "-f", "/nowhere.yaml"), "/nowhere.yaml: cannot be read: No such file or directory"),
        (("--against", "BEFORE", "-f", "BEFORE"), "IPPool pool: is none of Secret, FelixConfiguration, Node"),
        (("--against", "BEFORE", "-f", "WRONG"), "Node n1: spec.bgp.routeReflectorClusterID"),
    ],
)
def test_mistakes_are_one_line(
    words: tuple[str, ...], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = written(tmp_path / "before.yaml", node(1), pool(), MESH)
    text = json.dumps(dump(changed(REFLECTOR, labels={}))).replace("1.0.0.1", "one")
    (tmp_path / "wrong.yaml").write_text(text)
    named = {"BEFORE": before, "WRONG": str(tmp_path / "wrong.yaml")}
    status, out, err = planned(capsys, *(named.get(word, word) for word in words))
    assert (status, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1


def test_a_password_changes_in_files_and_live(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every session is another with another password, which is in no line of what is printed."""
    live = ("--datastore", str(tmp_path / "datastore.db"))
    meshed = config(nodeMeshPassword={"secretKeyRef": {"name": "bgp", "key": "mesh"}})
    older, newer = (replace(secret(), string_data={"mesh": word}) for word in ("older", "newer"))
    before = written(tmp_path / "before.yaml", older, node(1), node(2), pool(), meshed)
    after = written(tmp_path / "after.yaml", newer)
    assert main(["apply", "-f", before, *live]) == 0
    capsys.readouterr()
    for where in (("--against", before), (*live, "--apply", "--wait", "0.01")):
        status, out, err = planned(capsys, "-f", after, *where)
        assert (status, err) == (0, "")
        assert "change Secret bgp" in out
        assert not any(word in out for word in ("older", "newer", *secret(a="older", b="newer").data.values()))
    same = written(tmp_path / "same.yaml", older)
    for words in (("-f", after, *live), ("-f", same, "--against", before)):
        assert planned(capsys, *words)[:2] == (0, "nothing to do: everything is as the documents say\n")
