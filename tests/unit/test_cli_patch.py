"""`tortie patch` and `tortie label`: what they leave behind, print, and end with; and how patches are merged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tortie.base.errors import ConfigError, Conflict, Exists, NotFound
from tortie.calc.admission import Objects, bootstrap
from tortie.cli.datastore import asked, initialise
from tortie.cli.edits import edited, target
from tortie.cli.label import admitted, labelled
from tortie.cli.label import read as read_labels
from tortie.cli.main import main
from tortie.cli.patch import patched
from tortie.cli.patch import read as read_patch
from tortie.model.document import dump, parse
from tortie.model.ipam import IPPool
from tortie.model.k8s import Namespace, Pod
from tortie.model.meta import Resource, changed
from tortie.model.node import Node
from tortie.model.policy import GlobalNetworkPolicy, NetworkSet
from tortie.model.service import Service
from tortie.model.strategic import merged, merged_lists
from tortie.store.memory import MemoryStore

CALICO = "apiVersion: projectcalico.org/v3\n"
POOL = CALICO + "kind: IPPool\nmetadata: {name: main}\nspec: {cidr: 10.244.0.0/16, natOutgoing: true}\n"
NODE = CALICO + "kind: Node\nmetadata: {name: n1, labels: {zone: x}}\nspec: {}\n"
SET = CALICO + "kind: NetworkSet\nmetadata: {name: web}\nspec: {nets: [192.0.2.0/24]}\n"
FELIX = CALICO + "kind: FelixConfiguration\nmetadata: {name: default}\n"
NO_NAT = '{"spec":{"natOutgoing":false}}'

Run = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A datastore with an object of each of the kinds above."""
    directory = tmp_path_factory.mktemp("prepared")
    (directory / "all.yaml").write_text("---\n".join((POOL, NODE, SET, FELIX)))
    assert main(["apply", "-f", str(directory / "all.yaml"), "--datastore", str(directory / "store.db")]) == 0
    return directory / "store.db"


@pytest.fixture
def run(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command over a copy of that datastore; what it printed, and its errors."""
    store = shutil.copy(prepared, tmp_path / "store.db")

    def command(*arguments: str, status: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        got = main([*arguments, "--datastore", str(store)])
        out, err = capsys.readouterr()
        assert got == status, err
        return out, err

    return command


def stored(tmp_path: Path, kind: type[Any], name: str, namespace: str = "") -> Any:
    return asked(str(tmp_path / "store.db"), "", lambda store: store.get(kind, name, namespace))


# --- patch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", ["strategic", "json", "merge"])
def test_52_every_type_of_patch_is_a_strategic_merge(run: Run, tmp_path: Path, type_: str) -> None:
    assert run("patch", "ippool", "main", "-p", NO_NAT, "-t", type_) == (
        "Successfully patched 1 'IPPool' resource\n",
        "",
    )
    spec = stored(tmp_path, IPPool, "main").spec
    assert (spec.nat_outgoing, spec.cidr, spec.node_selector) == (False, "10.244.0.0/16", "all()")


def test_a_patch_in_yaml_of_an_object_in_a_namespace(run: Run, tmp_path: Path) -> None:
    run("patch", "networkset/web", "-p", "{metadata: {labels: {a: b}}, spec: {nets: [198.51.100.0/24]}}")
    run("patch", "networksets", "web", "-n", "default", "--patch", "metadata:\n  annotations: {c: d}")
    found = stored(tmp_path, NetworkSet, "web", "default")
    assert (found.labels, found.metadata.annotations) == ({"a": "b"}, {"c": "d"})
    assert found.spec.nets == ("198.51.100.0/24",), "lists are replaced"


def test_a_patch_that_changes_nothing_writes_nothing(run: Run, tmp_path: Path) -> None:
    before = stored(tmp_path, IPPool, "main")
    run("patch", "ippool", "main", "-p", '{"spec": {"natOutgoing": true}, "metadata": {"uid": "mine"}}')
    assert stored(tmp_path, IPPool, "main") == before


def test_a_patch_for_another_revision_is_refused(run: Run, tmp_path: Path) -> None:
    revision = stored(tmp_path, IPPool, "main").metadata.resource_version
    text = f'{{"metadata": {{"resourceVersion": "{revision}"}}, "spec": {{"natOutgoing": %s}}}}'
    run("patch", "ippool", "main", "-p", text % "false")
    latest = stored(tmp_path, IPPool, "main").metadata.resource_version
    _, err = run("patch", "ippool", "main", "-p", text % "true", status=1)
    stale = f"resource version '{revision}' is out of date (latest: {latest})"
    assert err == f"tortie: update conflict: IPPool(main): {stale}\n"


def test_what_of_a_patch_nobody_acts_on_is_said(run: Run) -> None:
    out, err = run("patch", "felixconfig", "default", "-p", '{"spec": {"bpfEnabled": true}}')
    assert out == "Successfully patched 1 'FelixConfiguration' resource\n"
    assert err == "warning: felixconfiguration/default: spec: kept, but not acted on yet: bpfEnabled\n"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["ippool", "main"], 2, '--patch: is required: the fields that change, as {"spec": {"natOutgoing": false}}'),
        (["ippool", "main", "-p", "[{op: add}]"], 2,
         "--patch: is a list, as patches of RFC 6902 are: write the fields that change in a mapping"),
        (["ippool", "main", "-p", "x"], 2, '--patch: is "x", must be a mapping'),
        (["ippool", "main", "-p", "{a: 1}\n---\n{b: 2}"], 2, "--patch: has 2 documents, must be one"),
        (["ippool", "main", "-p", NO_NAT, "-t", "yaml"], 2, '--type: "yaml" is not one of strategic, json, merge'),
        (["ippol", "main", "-p", NO_NAT], 2, 'unknown kind "ippol", did you mean "ippool"?'),
        (["ippool", "-p", NO_NAT], 2, "give the name of the IPPool"),
        (["ippool/main", "b", "-p", NO_NAT], 2, '"ippool/main" names the object already: there is no place for "b"'),
        (["ippool", "main", "-n", "red", "-p", NO_NAT], 2, "IPPool is not namespaced"),
        (["ippool", "nope", "-p", NO_NAT], 1, "resource does not exist: IPPool(nope)"),
        (["ippool", "main", "-p", '{"spec": {"natOutgong": false}}'], 2,
         'IPPool main: spec.natOutgong: is not a known field, did you mean "natOutgoing"?'),
        (["ippool", "main", "-p", '{"spec": {"natOutgoing": "no"}}'], 2,
         'IPPool main: spec.natOutgoing: "no" must be true or false'),
        (["ippool", "main", "-p", '{"spec": {"cidr": null}}'], 2, "IPPool main: spec.cidr: is required"),
        (["ippool", "main", "-p", '{"spec": {"blockSize": 28}}'], 2,
         "IPPool main: spec.blockSize: cannot change from 26 to 28: create another pool"),
        (["ippool", "main", "-p", '{"metadata": {"name": "b"}}'], 2,
         'IPPool main: metadata.name: cannot change from "main" to "b"'),
        (["ippool", "main", "-p", '{"kind": "Node"}'], 2, 'IPPool main: kind: cannot change from "IPPool" to "Node"'),
        (["networkset", "web", "-p", '{"metadata": {"namespace": "kube-system"}}'], 2,
         'NetworkSet default/web: metadata.namespace: cannot change from "default" to "kube-system"'),
        (["clusterinfo", "default", "-p", '{"spec": {"datastoreReady": false}}'], 2,
         "ClusterInformation default: ClusterInformation is read-only: the network writes it, users look at it"),
    ],
)  # fmt: skip
def test_a_wrong_patch_is_one_line(run: Run, arguments: list[str], status: int, message: str) -> None:
    assert run("patch", *arguments, status=status) == ("", f"tortie: {message}\n")


def test_a_patch_that_is_no_yaml_says_where() -> None:
    with pytest.raises(ConfigError, match=r"^--patch: line 1, column 10: not valid YAML: "):
        read_patch('{"spec": ]}')


# --- how patches are merged ---------------------------------------------------------------------------------------

CONTAINERS = {"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]}


@pytest.mark.parametrize(
    ("kind", "before", "patch", "after"),
    [
        (IPPool, {"spec": {"a": 1, "b": {"c": 2}}}, {"spec": {"b": {"d": 3}}},
         {"spec": {"a": 1, "b": {"c": 2, "d": 3}}}),
        (IPPool, {"spec": {"a": 1, "b": 2}}, {"spec": {"b": None, "c": None}}, {"spec": {"a": 1}}),
        (IPPool, {}, {"spec": {"a": {"b": None, "c": 1}}}, {"spec": {"a": {"c": 1}}}),
        (IPPool, {"spec": 1}, {"spec": {"a": 2}}, {"spec": {"a": 2}}),
        (IPPool, {"spec": {"a": 1}}, {"spec": {"$patch": "replace", "b": 2}}, {"spec": {"b": 2}}),
        (IPPool, {"spec": {"a": 1}, "x": 1}, {"spec": {"$patch": "delete"}}, {"x": 1}),
        (GlobalNetworkPolicy, {"spec": {"ingress": [{"action": "Deny"}, {"action": "Pass"}]}},
         {"spec": {"ingress": [{"action": "Allow", "protocol": None}]}}, {"spec": {"ingress": [{"action": "Allow"}]}}),
        (IPPool, {"metadata": {"finalizers": ["a"]}}, {"metadata": {"finalizers": ["b", "a"]}},
         {"metadata": {"finalizers": ["a", "b"]}}),
        (IPPool, {"metadata": {"ownerReferences": [{"uid": "1", "name": "a"}]}},
         {"metadata": {"ownerReferences": [{"uid": "1", "name": "b"}, {"uid": "2"}]}},
         {"metadata": {"ownerReferences": [{"uid": "1", "name": "b"}, {"uid": "2"}]}}),
        (Pod, {"spec": CONTAINERS}, {"spec": {"containers": [{"name": "b", "image": "i"}, {"name": "c"}]}},
         {"spec": {"containers": [CONTAINERS["containers"][0], {"name": "b", "image": "i"}, {"name": "c"}]}}),
        (Pod, {"spec": CONTAINERS}, {"spec": {"containers": [{"name": "a", "env": [{"name": "X", "value": "2"}]}]}},
         {"spec": {"containers": [{"name": "a", "env": [{"name": "X", "value": "2"}]}, {"name": "b"}]}}),
        (Pod, {"spec": CONTAINERS}, {"spec": {"containers": [{"name": "a", "$patch": "delete"}]}},
         {"spec": {"containers": [{"name": "b"}]}}),
        (Pod, {"spec": CONTAINERS}, {"spec": {"containers": [{"$patch": "replace"}, {"name": "c"}]}},
         {"spec": {"containers": [{"name": "c"}]}}),
        (Service, {"spec": {"ports": [{"port": 80}, {"port": 443}]}}, {"spec": {"ports": [{"port": 80, "name": "w"}]}},
         {"spec": {"ports": [{"port": 80, "name": "w"}, {"port": 443}]}}),
    ],
)  # fmt: skip
def test_merging(kind: type[Resource], before: dict[str, Any], patch: dict[str, Any], after: dict[str, Any]) -> None:
    seen = repr((before, patch))
    assert merged(before, patch, merged_lists(kind)) == after
    assert repr((before, patch)) == seen, "what is given is not changed"


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"spec": {"$patch": "drop"}}, 'spec.$patch: "drop" is not one of merge, replace, delete'),
        ({"spec": {"$retainKeys": ["a"]}},
         "spec.$retainKeys: is not understood: of the directives there is only $patch"),
        ({"spec": {"containers": [{"image": "i"}]}},
         "spec.containers: an item has no name, by which it is known which one is meant"),
        ({"spec": {"containers": ["a"]}}, 'spec.containers: "a" where a mapping was expected'),
    ],
)  # fmt: skip
def test_what_cannot_be_merged(patch: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        merged({"spec": CONTAINERS}, patch, merged_lists(Pod))
    assert str(caught.value) == message


def test_an_empty_patch_of_any_object_changes_nothing() -> None:
    view = Objects(bootstrap("0" * 32))
    for one in [*parse("---\n".join((POOL, NODE))), *view.all(Namespace)]:
        complete = patched(one, {}, view)
        assert patched(complete, {}, view) == complete
        assert dump(complete)["metadata"]["name"] == one.name


# --- label --------------------------------------------------------------------------------------------------------


def test_53_another_value_needs_overwrite(run: Run, tmp_path: Path) -> None:
    assert run("label", "nodes", "n1", "rack=a")[0] == "Successfully set label rack on Node n1\n"
    assert run("label", "nodes", "n1", "rack=a")[0] == "Successfully set label rack on Node n1\n"
    _, err = run("label", "nodes", "n1", "rack=b", "new=1", status=1)
    assert err == 'tortie: Node n1 has the label "rack" already, it is "a": --overwrite changes it\n'
    assert stored(tmp_path, Node, "n1").labels == {"zone": "x", "rack": "a"}
    assert run("label", "nodes", "n1", "rack=b", "--overwrite")[0] == "Successfully updated label rack on Node n1\n"
    assert stored(tmp_path, Node, "n1").labels == {"zone": "x", "rack": "b"}


def test_labels_are_removed_in_calicos_way_and_in_kubectls(run: Run, tmp_path: Path) -> None:
    assert run("label", "node/n1", "a=1", "b=", "zone-")[0] == (
        "Successfully set label a on Node n1\nSuccessfully set label b on Node n1\n"
        "Successfully removed label zone from Node n1\n"
    )
    assert stored(tmp_path, Node, "n1").labels == {"a": "1", "b": ""}
    assert run("label", "node", "n1", "a", "b", "--remove")[0].count("removed") == 2
    assert stored(tmp_path, Node, "n1").labels == {}
    run("label", "networkset", "web", "-n", "default", "role=db")
    assert stored(tmp_path, NetworkSet, "web", "default").labels == {"role": "db"}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nodes"], 2, "give the name of the Node"),
        (["nodes", "n1"], 2, "no label is given: KEY=VALUE sets one, KEY- removes one"),
        (["nodes", "n1", "rack"], 2, '"rack" is neither KEY=VALUE, which sets a label, nor KEY-, which removes one'),
        (["nodes", "n1", "=a"], 2, '"=a" is neither KEY=VALUE, which sets a label, nor KEY-, which removes one'),
        (["nodes", "n1", "a=b", "--remove"], 2, '"a=b" has a value: with --remove give the label\'s name alone'),
        (["nodes", "n1", "a=b", "a-"], 2, 'the label "a" is given twice'),
        (["nodes", "n1", "a b=c"], 2, 'Node n1: metadata.labels[a b]: "a b" is not a label name'),
        (["nodes", "n1", "a=b c"], 2,
         'Node n1: metadata.labels[a]: "b c" is not a label value: at most 63 of letters, digits, "-_."'),
        (["nodes", "n1", "rack-"], 1, 'Node n1 has no label "rack" that could be removed'),
        (["nodes", "n2", "a=b"], 1, "resource does not exist: Node(n2)"),
        (["nodes", "n1", "-n", "red", "a=b"], 2, "Node is not namespaced"),
        (["ns", "default", "kubernetes.io/metadata.name-"], 2,
         "Namespace default: metadata.labels[kubernetes.io/metadata.name]: is kept by the datastore itself and cannot"
         " change"),
        (["clusterinfo", "default", "a=b"], 2,
         "ClusterInformation default: ClusterInformation is read-only: the network writes it, users look at it"),
    ],
)  # fmt: skip
def test_a_wrong_label_is_one_line(run: Run, arguments: list[str], status: int, message: str) -> None:
    assert run("label", *arguments, status=status) == ("", f"tortie: {message}\n")


def test_the_words_of_a_label_command() -> None:
    assert read_labels(["a=b=c", "d=", "e-", "f-g=h-"]) == {"a": "b=c", "d": "", "e": None, "f-g": "h-"}
    assert read_labels(["a", "b-"], remove=True) == {"a": None, "b": None}


def test_labels_are_decided_on_what_is_there() -> None:
    (node,) = parse(NODE)
    assert labelled(node, {"zone": None, "rack": "a"}, overwrite=False) == {"rack": "a"}
    assert node.labels == {"zone": "x"}, "what is given is not changed"
    with pytest.raises(Exists):
        labelled(node, {"zone": "y"}, overwrite=False)
    with pytest.raises(NotFound):
        labelled(node, {"rack": None}, overwrite=True)


# --- others write too ---------------------------------------------------------------------------------------------


class Busy(MemoryStore):
    """A datastore in which somebody else gives the object another label just before each of our first updates."""

    others = 0

    async def update(self, obj: Any) -> Any:
        if self.others:
            self.others -= 1
            theirs = await self.get(type(obj), obj.name, obj.namespace)
            await super().update(changed(theirs, labels={**theirs.labels, f"theirs{self.others}": "1"}))
        return await super().update(obj)


async def busy(others: int) -> Busy:
    store = Busy()
    await initialise(store)
    await store.create(parse(NODE)[0])
    store.others = others
    return store


@pytest.mark.parametrize("others", [1, 4])
async def test_an_edit_is_decided_again_when_somebody_else_was_faster(others: int) -> None:
    store, wanted = await busy(others), {"rack": "a"}
    which = target("node", "n1", "")
    await edited(store, which, lambda old, view: admitted(old, labelled(old, wanted, False), wanted, view))
    store.others = others
    await edited(store, which, lambda old, view: patched(old, {"metadata": {"labels": {"zone": None}}}, view))
    found = (await store.get(Node, "n1")).labels
    assert found == {"rack": "a", **{f"theirs{i}": "1" for i in range(others)}}


async def test_an_edit_that_others_always_outrun_is_given_up() -> None:
    store = await busy(5)
    with pytest.raises(Conflict, match="written by others 5 times meanwhile, try again"):
        await edited(store, target("node", "n1", ""), lambda old, view: patched(old, {"spec": {"wireguard": {}}}, view))
