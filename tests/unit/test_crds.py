"""The definitions that an API server is given: it takes them, they let in what is right, and keep out what is not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tortie.model.document import dump, load_documents, parse
from tortie.model.ipam import AllocationAttribute, IPAMBlock, IPAMBlockSpec
from tortie.model.kinds import KINDS
from tortie.model.meta import Metadata, Resource
from tortie.render.crds import GROUP, crd, crds, group_version
from tortie.render.crds import KINDS as CRD_KINDS
from tortie.render.schema import ANYTHING, INT_OR_STRING, faults, schema

ROOT = Path(__file__).parents[2]
UPSTREAM = (
    *("bgpconfigurations", "bgpfilters", "bgppeers", "blockaffinities", "caliconodestatuses", "clusterinformations"),
    *("felixconfigurations", "globalnetworkpolicies", "globalnetworksets", "hostendpoints"),
    *("ipamblocks", "ipamconfigs", "ipamhandles", "ippools"),
    *("ipreservations", "kubecontrollersconfigurations", "networkpolicies", "networksets"),
    *("stagedglobalnetworkpolicies", "stagedkubernetesnetworkpolicies", "stagednetworkpolicies", "tiers"),
)
"""The plural names of Calico's crd.projectcalico.org."""
BY_KIND = {kind: crd(kind) for kind in CRD_KINDS}


def version(kind: type[Resource]) -> dict[str, Any]:
    (found,) = BY_KIND[kind]["spec"]["versions"]
    return dict(found)


def body(kind: type[Resource]) -> dict[str, Any]:
    return dict(version(kind)["schema"]["openAPIV3Schema"])


def misfits(value: Any, expected: dict[str, Any], path: str = "") -> Iterator[str]:
    """What an API server says of a value: the validation of apiextensions.k8s.io/v1, as far as our schemas go."""
    if value is None:
        if not expected.get("nullable") and not (expected.get(ANYTHING) and "type" not in expected):
            yield f"{path}: null"
        return
    if expected.get(INT_OR_STRING):
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield f"{path}: neither integer nor string"
        return
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
    kind = expected.get("type")
    if kind and (not isinstance(value, types[kind]) or (kind != "boolean" and isinstance(value, bool))):
        yield f"{path}: not {kind}"
        return
    if "enum" in expected and value not in expected["enum"]:
        yield f"{path}: {value} not in enum"
    if ("minimum" in expected and value < expected["minimum"]) or (
        "maximum" in expected and value > expected["maximum"]
    ):
        yield f"{path}: {value} out of range"
    if len(value) > expected.get("maxItems", 1 << 60) if isinstance(value, list) else False:
        yield f"{path}: too many"
    if isinstance(value, dict):
        yield from (f"{path}.{name}: required" for name in expected.get("required", ()) if name not in value)
        for name, inner in value.items():
            if name in expected.get("properties", {}):
                yield from misfits(inner, expected["properties"][name], f"{path}.{name}")
            elif isinstance(expected.get("additionalProperties"), dict):
                yield from misfits(inner, expected["additionalProperties"], f"{path}.{name}")
            elif "properties" in expected and not expected.get(ANYTHING) and path:
                yield f"{path}.{name}: unknown"
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from misfits(inner, expected["items"], f"{path}[{i}]")


def fits(kind: type[Resource], document: dict[str, Any]) -> list[str]:
    return list(misfits({key: value for key, value in document.items() if key != "metadata"}, body(kind)))


def test_all_of_upstreams_are_there_and_one_of_kubernetes() -> None:
    assert [one["metadata"]["name"] for one in crds()] == [
        *(f"{plural}.{GROUP}" for plural in UPSTREAM),
        "clusternetworkpolicies.policy.networking.k8s.io",
    ]


def test_every_kind_that_kubernetes_does_not_keep_itself_has_one() -> None:
    own = {"WorkloadEndpoint", "Node", "Profile"}  # Pods, Nodes, and Namespaces with ServiceAccounts
    calicos = {kind for kind in KINDS if kind.KIND.api_version == "projectcalico.org/v3" and kind.KIND.kind not in own}
    assert calicos <= set(CRD_KINDS)


@pytest.mark.parametrize("kind", CRD_KINDS, ids=lambda kind: kind.KIND.plural)
def test_a_definition_keeps_the_rules_of_an_api_server(kind: type[Resource]) -> None:
    spec, names = BY_KIND[kind]["spec"], BY_KIND[kind]["spec"]["names"]
    assert list(faults(body(kind))) == []
    assert body(kind)["type"] == "object"
    assert body(kind)["properties"]["metadata"] == {"type": "object"}
    assert BY_KIND[kind]["metadata"]["name"] == f"{names['plural']}.{spec['group']}"
    assert names["kind"] == kind.KIND.kind
    assert names["singular"] == names["kind"].lower()
    assert spec["scope"] == ("Namespaced" if kind.KIND.namespaced else "Cluster")
    assert (spec["group"], version(kind)["name"]) == group_version(kind)
    assert ("status" in version(kind).get("subresources", {})) == ("status" in body(kind)["properties"])
    for column in version(kind).get("additionalPrinterColumns", ()):
        first, *rest = column["jsonPath"].strip(".").split(".")
        assert rest[0] in body(kind)["properties"][first]["properties"], column
    if spec["group"].endswith(".k8s.io"):
        assert BY_KIND[kind]["metadata"]["annotations"]["api-approved.kubernetes.io"].startswith("https://")


def test_what_is_not_structural_is_found() -> None:
    assert list(faults({"type": "object", "properties": {"a": {}}})) == [".a: has no type"]
    assert list(faults({"type": "array"}))
    assert list(faults({"$ref": "x"}))
    assert list(faults({"type": "string", ANYTHING: True}))
    assert list(faults({"type": "object", "required": ["a"]}))
    assert not list(faults({INT_OR_STRING: True}))


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of ours in examples/ and on the pages of docs/."""
    for file in sorted((ROOT / "examples").rglob("*.yaml")):
        if file.parent.name != "topologies":
            for document in load_documents(file.read_text(), file.name):
                yield str(file.relative_to(ROOT)), document
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for block in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            for document in load_documents(block, page.name):
                yield str(page.relative_to(ROOT)), document


def test_every_example_fits() -> None:
    kinds = {kind.KIND.kind: kind for kind in CRD_KINDS}
    checked = set()
    wrong = []
    for where, document in documents():
        kind = kinds.get(str(document.get("kind")))
        group = str(document.get("apiVersion", "")).partition("/")[0]
        if kind is not None and group in ("projectcalico.org", GROUP, "policy.networking.k8s.io"):
            checked.add(kind)
            wrong += [f"{where}: {document['metadata']['name']}{problem}" for problem in fits(kind, document)]
    assert not wrong
    assert len(checked) >= 10


def test_what_the_store_writes_fits() -> None:
    block = IPAMBlock(
        metadata=Metadata(name="b"),
        spec=IPAMBlockSpec(
            cidr="10.0.0.0/30",
            affinity="host:n",
            allocations=(None, 0, None, None),
            unallocated=(0, 2, 3),
            attributes=(AllocationAttribute(handle_id="h", secondary={"node": "n"}),),
            sequence_number_for_allocation={"1": 5},
        ),
    )
    assert fits(IPAMBlock, dump(block)) == []


CALICOS = {
    "IPPool": "{spec: {cidr: 10.0.0.0/16, ipipMode: Never, vxlanMode: Always, blockSize: 26, natOutgoing: true,"
    " allowedUses: [Workload, Tunnel], assignmentMode: Automatic, aFieldOfTheNextVersion: {a: 1}}}",
    "IPAMBlock": "{spec: {cidr: 10.0.0.0/30, affinity: null, strictAffinity: false, deleted: false, sequenceNumber: 7,"
    " allocations: [null, 0, null, null], unallocated: [0, 2, 3], attributes: [{handle_id: h, secondary: {node: n},"
    " more: 1}]}}",
    "BlockAffinity": '{spec: {cidr: 10.0.0.0/26, deleted: "false", node: n, state: confirmed, type: host}}',
    "FelixConfiguration": "{spec: {defaultEndpointToHostAction: ACCEPT, bpfEnabled: false, logSeverityScreen: Info,"
    " routeTableRanges: [{min: 1, max: 5}], failsafeInboundHostPorts: [{protocol: tcp, port: 22}], newOne: [1]}}",
    "ClusterInformation": "{spec: {clusterGUID: abc, clusterType: 'k8s,bgp', calicoVersion: v3.30.0,"
    " datastoreReady: true, cnxVersion: v1}}",
    "KubeControllersConfiguration": "{spec: {controllers: {node: {reconcilerPeriod: 5m0s, syncLabels: Enabled},"
    " policy: {reconcilerPeriod: 5m0s}}, healthChecks: Enabled}, status: {runningConfig: {controllers: {}}}}",
    "BGPConfiguration": "{spec: {asNumber: 64512, serviceClusterIPs: [{cidr: 10.96.0.0/12}], listenPort: 179}}",
    "NetworkPolicy": "{spec: {order: 10, selector: all(), ingress: [{action: Allow, protocol: 6,"
    " destination: {ports: [80, '90:95', http]}}]}}",
    "Tier": "{spec: {order: 100.5, defaultAction: Pass}}",
}
"""As they are in a cluster's datastore."""


@pytest.mark.parametrize("kind", CALICOS)
def test_objects_that_calico_wrote_are_taken(kind: str) -> None:
    (found,) = load_documents(CALICOS[kind])
    assert fits(next(one for one in CRD_KINDS if one.KIND.kind == kind), found) == []


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
    [
        ("IPPool", "{spec: {}}", ".spec.cidr: required"),
        ("IPPool", "{spec: {cidr: 10.0.0.0/16, vxlanMode: always}}", ".spec.vxlanMode: always not in enum"),
        ("IPPool", "{spec: {cidr: 10.0.0.0/16, blockSize: '26'}}", ".spec.blockSize: not integer"),
        ("BGPConfiguration", "{spec: {listenPort: 70000}}", ".spec.listenPort: 70000 out of range"),
        ("NetworkPolicy", "{spec: {ingres: []}}", ".spec.ingres: unknown"),
        ("GlobalNetworkPolicy", "{spec: {egress: [{protocol: TCP}]}}", ".spec.egress[0].action: required"),
        ("NetworkPolicy", "{spec: {ingress: [{action: Alow}]}}", ".spec.ingress[0].action: Alow not in enum"),
        ("NetworkSet", "{spec: {net: [10.0.0.0/8]}}", ".spec.net: unknown"),
        ("IPAMConfig", "{spec: {ipCooldownSeconds: 1201}}", ".spec.ipCooldownSeconds: 1201 out of range"),
    ],
)
def test_mistakes_are_refused_at_once(kind: str, text: str, problem: str) -> None:
    (found,) = load_documents(text)
    assert fits(next(one for one in CRD_KINDS if one.KIND.kind == kind), found) == [problem]


def test_our_own_objects_come_back_as_they_were() -> None:
    """Nothing that a document says is pruned: each field that our types know is in the schema, or kept unnamed."""
    text = (ROOT / "examples/recipes/4-tiers.yaml").read_text()
    for resource in parse(text):
        assert fits(type(resource), dump(resource)) == []


def test_schemas_of_types() -> None:
    class Inner(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
        """Short."""

        a_b: int
        c: str | None = None

    assert schema(Inner) == {
        "type": "object",
        "description": "Short.",
        "properties": {"aB": {"type": "integer", "format": "int64"}, "c": {"type": "string"}},
        "required": ["aB"],
    }
    assert schema(int | str | None) == {INT_OR_STRING: True}
    assert schema(tuple[int | None, ...])["items"] == {"type": "integer", "format": "int64", "nullable": True}
    assert schema(dict[str, bool]) == {"type": "object", "additionalProperties": {"type": "boolean"}}
    assert schema(Any) == {ANYTHING: True}
    assert schema(Inner, open_=True)[ANYTHING] is True
