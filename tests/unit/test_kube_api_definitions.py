"""The API server's double: kinds that CustomResourceDefinitions make, and their schemas."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kube_api import KubeApi
from kube_api.plain import Plain

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
POOLS = "/apis/crd.example.org/v1/pools"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "required": ["cidr"],
            "properties": {
                "cidr": {"type": "string", "pattern": "^[0-9a-f.:/]+$", "maxLength": 43},
                "mode": {"type": "string", "enum": ["Always", "Never"], "default": "Never"},
                "size": {"type": "integer", "minimum": 20, "maximum": 32},
                "port": {"x-kubernetes-int-or-string": True},
                "uses": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                "maybe": {"type": "string", "nullable": True},
                "weights": {"type": "object", "additionalProperties": {"type": "integer"}},
            },
        },
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    },
}


def definition(schema: dict[str, Any] = SCHEMA, **names: Any) -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "pools.crd.example.org"},
        "spec": {
            "group": "crd.example.org",
            "scope": "Cluster",
            "names": {"plural": "pools", "kind": "Pool", **names},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": copy.deepcopy(schema)},
                }
            ],
        },
    }


def pool(name: str = "p", **spec: Any) -> dict[str, Any]:
    own = {"cidr": "10.0.0.0/8"} | spec
    return {"apiVersion": "crd.example.org/v1", "kind": "Pool", "metadata": {"name": name}, "spec": own}


@pytest.fixture
async def plain() -> AsyncIterator[Plain]:
    async with KubeApi() as api, Plain(api.url) as plain:
        assert (await plain.post(CRDS, definition())).status == 201
        yield plain


async def test_the_kind_is_served_at_once_and_goes_with_its_definition(plain: Plain) -> None:
    crd = (await plain.get(f"{CRDS}/pools.crd.example.org")).body
    conditions = {one["type"]: one["status"] for one in crd["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}
    assert crd["status"]["acceptedNames"]["listKind"] == "PoolList"
    resources = (await plain.get("/apis/crd.example.org/v1")).body["resources"]
    assert [one["name"] for one in resources] == ["pools", "pools/status"]
    assert (await plain.post(POOLS, pool())).status == 201
    async with plain.watch(POOLS) as events:
        assert (await anext(events))[0] == "ADDED"
        await plain.delete(f"{CRDS}/pools.crd.example.org")
        assert [kind async for kind, _ in events] == ["DELETED"], "the objects go, then the watch ends"
    assert (await plain.get(POOLS)).body == "404 page not found\n"
    assert (await plain.get("/apis/crd.example.org/v1")).status == 404


async def test_items_of_lists_name_their_kind(plain: Plain) -> None:
    await plain.post(POOLS, pool())
    listing = (await plain.get(POOLS)).body
    assert (listing["kind"], listing["items"][0]["kind"]) == ("PoolList", "Pool")


async def test_defaults_and_unknown_fields(plain: Plain) -> None:
    made = await plain.post(POOLS, pool(nonsense=1, open={"any": [1]}, mode=None))
    assert made.body["spec"] == {"cidr": "10.0.0.0/8", "mode": "Never", "open": {"any": [1]}}
    assert made.headers["Warning"] == '299 - "unknown field \\"spec.nonsense\\""'
    strict = await plain.post(POOLS, pool("q", nonsense=1), fieldValidation="Strict")
    assert (strict.status, 'unknown field "spec.nonsense"' in strict.message) == (400, True)
    assert "Warning" not in (await plain.post(POOLS, pool("q", nonsense=1), fieldValidation="Ignore")).headers


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"cidr": 7}, 'spec.cidr: Invalid value: "integer": spec.cidr in body must be of type string: "integer"'),
        ({"cidr": "x!"}, "spec.cidr in body should match '^[0-9a-f.:/]+$'"),
        ({"mode": "Maybe"}, 'spec.mode: Unsupported value: "Maybe": supported values: "Always", "Never"'),
        ({"size": 19}, "spec.size in body should be greater than or equal to 20"),
        ({"size": 33}, "spec.size in body should be less than or equal to 32"),
        ({"port": True}, "spec.port in body must be of type integer,string"),
        ({"uses": ["a", "a"]}, 'spec.uses[1]: Duplicate value: "a"'),
        ({"cidr": None}, 'spec.cidr: Invalid value: "null"'),
        ({"weights": {"a": "b"}}, "spec.weights.a in body must be of type integer"),
        ({"cidr": "1" * 44}, "spec.cidr: Too long: may not be more than 43 bytes"),
    ],
)
async def test_what_the_schema_refuses(plain: Plain, spec: dict[str, Any], said: str) -> None:
    answer = await plain.post(POOLS, pool(**spec))
    assert (answer.status, answer.body["reason"]) == (422, "Invalid")
    assert answer.message.startswith('Pool.crd.example.org "p" is invalid: ')
    assert said in answer.message


async def test_what_is_required_and_what_may_be_null(plain: Plain) -> None:
    body = pool()
    del body["spec"]["cidr"]
    assert "spec.cidr: Required value" in (await plain.post(POOLS, body)).message
    assert (await plain.post(POOLS, pool(maybe=None, port="http"))).body["spec"]["maybe"] is None
    del body["kind"]
    assert (await plain.post(POOLS, body)).status == 400


async def test_an_update_needs_a_revision(plain: Plain) -> None:
    made = (await plain.post(POOLS, pool())).body
    blind = await plain.put(f"{POOLS}/p", pool(size=24))
    assert blind.status == 422
    assert "metadata.resourceVersion: Invalid value: 0x0: must be specified for an update" in blind.message
    changed = await plain.put(f"{POOLS}/p", made | {"spec": {"cidr": "10.0.0.0/8", "mode": "Never", "size": 24}})
    assert (changed.status, changed.body["metadata"]["generation"]) == (200, 2)
    assert (await plain.put(f"{POOLS}/p", made)).status == 409
    strategic = await plain.patch(f"{POOLS}/p", {"spec": {"size": 25}}, "strategic-merge-patch+json")
    assert strategic.status == 415
    assert (await plain.put(f"{POOLS}/q", pool("q"))).status == 404


async def test_the_status_has_a_path_of_its_own(plain: Plain) -> None:
    made = (await plain.post(POOLS, pool() | {"status": {"a": 1}})).body
    assert "status" not in made
    change = made | {"status": {"a": 2}, "spec": {"cidr": "11.0.0.0/8"}}
    change["metadata"] = change["metadata"] | {"labels": {"x": "y"}}
    status = (await plain.put(f"{POOLS}/p/status", change)).body
    assert (status["status"], status["spec"]["cidr"]) == ({"a": 2}, "10.0.0.0/8")
    assert "labels" not in status["metadata"], "of custom resources this path takes nothing else"
    assert status["metadata"]["generation"] == 1
    main = (await plain.patch(f"{POOLS}/p", {"status": {"a": 3}, "spec": {"size": 20}})).body
    assert (main["status"], main["spec"]["size"]) == ({"a": 2}, 20)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": {}}, "properties[x].type: Required value: must not be empty for specified object fields"),
        ({"x": {"type": "array"}}, "properties[x].items: Required value"),
        ({"x": {"$ref": "#/y", "type": "object"}}, "$ref is not supported"),
        (
            {"x": {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": True}},
            "additionalProperties: Forbidden",
        ),
        ({"x": {"type": "string", "anyOf": [{"type": "string"}]}}, "anyOf[0].type: Forbidden: must be empty"),
        ({"x": {"type": "object", "x-kubernetes-preserve-unknown-fields": False}}, "must be true or undefined"),
    ],
)
async def test_schemas_that_are_not_structural(plain: Plain, change: dict[str, Any], said: str) -> None:
    schema = copy.deepcopy(SCHEMA)
    schema["properties"]["spec"]["properties"] = change
    answer = await plain.put(f"{CRDS}/pools.crd.example.org", definition(schema) | {"metadata": {"name": "x"}})
    assert answer.status == 400, "the name in the body is another"
    crd = definition(schema)
    crd["metadata"]["name"] = "others.crd.example.org"
    crd["spec"]["names"] |= {"plural": "others"}
    refused = await plain.post(CRDS, crd)
    assert refused.status == 422
    assert said in refused.message


async def test_definitions_that_are_wrong(plain: Plain) -> None:
    crd = definition()
    crd["metadata"]["name"] = "pool.crd.example.org"
    assert 'must be spec.names.plural+"."+spec.group' in (await plain.post(CRDS, crd)).message
    crd = definition()
    crd["spec"]["group"] = "policy.networking.k8s.io"
    crd["metadata"]["name"] = "pools.policy.networking.k8s.io"
    assert "api-approved.kubernetes.io" in (await plain.post(CRDS, crd)).message
    crd = definition()
    crd["spec"]["versions"][0]["storage"] = False
    del crd["spec"]["versions"][0]["schema"]
    message = (await plain.post(CRDS, crd)).message
    assert "must have exactly one version marked as storage version" in message
    assert "schemas are required" in message
