"""The API server's double: what is written, refused and deleted, as a real server does it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from kube_api import KubeApi
from kube_api.plain import Plain, until

MAPS = "/api/v1/namespaces/default/configmaps"
PODS = "/api/v1/namespaces/default/pods"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"


@pytest.fixture
async def api() -> AsyncIterator[KubeApi]:
    async with KubeApi(bookmark_every=0.2) as api:
        yield api


@pytest.fixture
async def plain(api: KubeApi) -> AsyncIterator[Plain]:
    async with Plain(api.url) as plain:
        yield plain


def pod(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i:1"}], **spec}}


class TestWriting:
    async def test_creation_fills_in_and_every_write_raises_the_one_counter(self, plain: Plain) -> None:
        made = await plain.post(MAPS, {"metadata": {"name": "a"}, "data": {"x": "1"}})
        assert made.status == 201
        assert (made.body["kind"], made.body["apiVersion"]) == ("ConfigMap", "v1")
        metadata = made.body["metadata"]
        assert metadata["namespace"] == "default"
        assert metadata["uid"]
        assert metadata["creationTimestamp"].endswith("Z")
        first = int(metadata["resourceVersion"])
        other = await plain.post(LEASES, {"metadata": {"name": "l"}, "spec": {}})
        assert int(other.body["metadata"]["resourceVersion"]) == first + 1
        await plain.delete(f"{MAPS}/a")
        assert int((await plain.get(MAPS)).body["metadata"]["resourceVersion"]) == first + 2

    async def test_names_that_exist_and_names_that_are_none(self, plain: Plain) -> None:
        await plain.post(MAPS, {"metadata": {"name": "a"}})
        again = await plain.post(MAPS, {"metadata": {"name": "a"}})
        assert (again.status, again.body["reason"]) == (409, "AlreadyExists")
        assert again.message == 'configmaps "a" already exists'
        bad = await plain.post(MAPS, {"metadata": {"name": "A_b"}})
        assert (bad.status, bad.body["reason"]) == (422, "Invalid")
        assert bad.message.startswith(
            'ConfigMap "A_b" is invalid: metadata.name: Invalid value: "A_b": a lowercase RFC'
        )
        nameless = await plain.post(MAPS, {"metadata": {}})
        assert "metadata.name: Required value: name or generateName is required" in nameless.message
        generated = await plain.post(MAPS, {"metadata": {"generateName": "job-"}})
        assert len(generated.body["metadata"]["name"]) == len("job-") + 5

    async def test_labels_annotations_and_sizes_are_checked(self, plain: Plain) -> None:
        label = await plain.post(MAPS, {"metadata": {"name": "a", "labels": {"x": "no spaces"}}})
        assert label.status == 422
        number = await plain.post(MAPS, {"metadata": {"name": "a", "labels": {"x": 1}}})
        assert (number.status, number.body["reason"]) == (400, "BadRequest")
        assert (
            "cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string" in number.message
        )
        long = await plain.post(MAPS, {"metadata": {"name": "a", "annotations": {"x": "y" * 300_000}}})
        assert "metadata.annotations: Too long: may not be more than 262144 bytes" in long.message
        huge = await plain.post(MAPS, {"metadata": {"name": "a"}, "data": {"x": "y" * 4_000_000}})
        assert huge.status == 413

    async def test_the_namespace_must_be_there_and_the_one_of_the_path(self, plain: Plain) -> None:
        gone = await plain.post("/api/v1/namespaces/nope/configmaps", {"metadata": {"name": "a"}})
        assert (gone.status, gone.message) == (404, 'namespaces "nope" not found')
        other = await plain.post(MAPS, {"metadata": {"name": "a", "namespace": "kube-system"}})
        assert other.status == 400
        assert other.message == "the namespace of the provided object does not match the namespace sent on the request"

    async def test_a_put_of_an_outdated_revision_is_a_conflict(self, plain: Plain) -> None:
        first = (await plain.post(MAPS, {"metadata": {"name": "a"}, "data": {"x": "1"}})).body
        second = await plain.put(f"{MAPS}/a", first | {"data": {"x": "2"}})
        assert second.status == 200
        stale = await plain.put(f"{MAPS}/a", first | {"data": {"x": "3"}})
        assert (stale.status, stale.body["reason"]) == (409, "Conflict")
        assert stale.message == (
            'Operation cannot be fulfilled on configmaps "a": the object has been modified; please apply your changes '
            "to the latest version and try again"
        )
        del first["metadata"]["resourceVersion"]
        assert (await plain.put(f"{MAPS}/a", first | {"data": {"x": "4"}})).status == 200
        stranger = first | {"metadata": {"name": "a", "uid": "somebody-else"}}
        answer = await plain.put(f"{MAPS}/a", stranger)
        assert (answer.status, "Precondition failed: UID in precondition" in answer.message) == (409, True)
        assert (await plain.put(f"{MAPS}/nope", {"metadata": {"name": "nope"}})).status == 404
        assert (await plain.put(f"{MAPS}/a", {"metadata": {"name": "b"}})).status == 400

    async def test_a_write_that_changes_nothing_is_none(self, plain: Plain) -> None:
        first = (await plain.post(MAPS, {"metadata": {"name": "a"}, "data": {"x": "1"}})).body
        assert (await plain.put(f"{MAPS}/a", first)).body == first
        assert (await plain.patch(f"{MAPS}/a", {"data": {"x": "1"}})).body == first

    async def test_what_is_only_tried_is_not_kept(self, plain: Plain) -> None:
        tried = await plain.post(MAPS, {"metadata": {"name": "a"}}, dryRun="All")
        assert tried.status == 201
        assert (await plain.get(f"{MAPS}/a")).status == 404
        await plain.post(MAPS, {"metadata": {"name": "a"}})
        assert (await plain.delete(f"{MAPS}/a", dryRun="All")).status == 200
        assert (await plain.get(f"{MAPS}/a")).status == 200

    async def test_unknown_fields_go_or_are_refused(self, plain: Plain) -> None:
        body = pod("p") | {"nonsense": 1}
        strict = await plain.post(PODS, body, fieldValidation="Strict")
        assert (strict.status, 'strict decoding error: unknown field "nonsense"' in strict.message) == (400, True)
        warned = await plain.post(PODS, body, fieldValidation="Warn")
        assert warned.headers["Warning"] == '299 - "unknown field \\"nonsense\\""'
        assert "nonsense" not in warned.body

    async def test_values_of_the_wrong_type_are_not_read(self, plain: Plain) -> None:
        answer = await plain.post(PODS, pod("p", nodeName=7))
        assert answer.status == 400
        assert "cannot unmarshal number into Go struct field PodSpec.spec.nodeName of type string" in answer.message

    async def test_leases(self, plain: Plain) -> None:
        """PUT makes them, but needs a revision where there is one; times have microseconds, always."""
        made = await plain.put(f"{LEASES}/l", {"metadata": {"name": "l"}, "spec": {"leaseTransitions": 0}})
        assert made.status == 201
        blind = await plain.put(f"{LEASES}/l", {"metadata": {"name": "l"}, "spec": {"leaseTransitions": 1}})
        assert blind.status == 422
        assert blind.message == (
            'leases.coordination.k8s.io "l" is invalid: metadata.resourceVersion: Invalid value: 0x0: must be '
            "specified for an update"
        )
        short = await plain.patch(f"{LEASES}/l", {"spec": {"renewTime": "2026-01-01T00:00:00Z"}})
        assert short.status == 400
        micro = await plain.patch(f"{LEASES}/l", {"spec": {"renewTime": "2026-01-01T00:00:00.000000Z"}})
        assert micro.status == 200
        none = await plain.patch(f"{LEASES}/l", {"spec": {"leaseDurationSeconds": 0}})
        assert "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0" in none.message

    async def test_paths_that_are_none(self, plain: Plain) -> None:
        """404 in plain text for an unknown kind, a Status for an unknown object."""
        assert (await plain.get("/api/v1/nonsense")).body == "404 page not found\n"
        assert (await plain.get("/apis/nope.example.org/v1/foos")).status == 404
        gone = await plain.get(f"{MAPS}/nope")
        assert gone.body["details"] == {"name": "nope", "kind": "configmaps"}
        assert (await plain.post(f"{MAPS}/a", {"metadata": {"name": "a"}})).status == 405
        assert (await plain.ask("POST", MAPS, b"x", "text/plain")).status == 415


class TestStatus:
    async def test_two_paths_that_do_not_touch_each_other(self, plain: Plain) -> None:
        made = (await plain.post(PODS, pod("p") | {"status": {"phase": "Running"}})).body
        assert made["status"]["phase"] == "Pending"
        main = await plain.patch(f"{PODS}/p", {"status": {"phase": "Running"}, "metadata": {"labels": {"a": "b"}}})
        assert (main.body["status"]["phase"], main.body["metadata"]["labels"]) == ("Pending", {"a": "b"})
        change = {"status": {"phase": "Running"}, "spec": {"nodeName": "n"}, "metadata": {"annotations": {"k": "v"}}}
        status = await plain.patch(f"{PODS}/p/status", change)
        assert status.body["status"]["phase"] == "Running"
        assert "nodeName" not in status.body["spec"]
        assert status.body["metadata"]["annotations"] == {"k": "v"}, "built-in kinds take metadata on this path"

    async def test_a_pods_spec_does_not_change(self, plain: Plain) -> None:
        await plain.post(PODS, pod("p"))
        answer = await plain.patch(f"{PODS}/p", {"spec": {"hostNetwork": True}})
        assert (answer.status, "spec: Forbidden: pod updates may not change fields" in answer.message) == (422, True)
        image = {"spec": {"containers": [{"name": "c", "image": "i:2"}]}}
        assert (await plain.patch(f"{PODS}/p", image, "strategic-merge-patch+json")).status == 200
        bound = await plain.post(f"{PODS}/p/binding", {"metadata": {"name": "p"}, "target": {"name": "n1"}})
        assert bound.status == 201
        assert (await plain.get(f"{PODS}/p")).body["spec"]["nodeName"] == "n1"
        assert (await plain.post(f"{PODS}/p/binding", {"target": {"name": "n2"}})).status == 409

    async def test_generation_counts_the_spec_alone(self, plain: Plain) -> None:
        path = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies"
        made = (await plain.post(path, {"metadata": {"name": "np"}, "spec": {"podSelector": {}}})).body
        assert (made["metadata"]["generation"], made["spec"]["policyTypes"]) == (1, ["Ingress"])
        labelled = await plain.patch(f"{path}/np", {"metadata": {"labels": {"a": "b"}}})
        assert labelled.body["metadata"]["generation"] == 1
        changed = await plain.patch(f"{path}/np", {"spec": {"policyTypes": ["Egress"]}})
        assert changed.body["metadata"]["generation"] == 2


class TestPatches:
    async def test_merge_json_and_strategic(self, plain: Plain) -> None:
        await plain.post(MAPS, {"metadata": {"name": "a"}, "data": {"x": "1", "y": "2"}})
        merged = await plain.patch(f"{MAPS}/a", {"data": {"x": None, "z": "3"}})
        assert merged.body["data"] == {"y": "2", "z": "3"}
        steps = [{"op": "test", "path": "/data/y", "value": "2"}, {"op": "replace", "path": "/data/y", "value": "9"}]
        assert (await plain.patch(f"{MAPS}/a", steps, "json-patch+json")).body["data"]["y"] == "9"
        failed = await plain.patch(f"{MAPS}/a", steps, "json-patch+json")
        assert (failed.status, failed.body["reason"]) == (422, "Invalid")
        path = [{"op": "add", "path": "/metadata/annotations", "value": {}}]
        slash = [*path, {"op": "add", "path": "/metadata/annotations/a~1b", "value": "c"}]
        assert (await plain.patch(f"{MAPS}/a", slash, "json-patch+json")).body["metadata"]["annotations"] == {
            "a/b": "c"
        }

    async def test_strategic_merge_joins_lists_by_their_keys(self, api: KubeApi, plain: Plain) -> None:
        api.create(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": "n"},
                "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            }
        )
        condition = {"type": "NetworkUnavailable", "status": "False", "reason": "CalicoIsUp"}
        patch = {"status": {"conditions": [condition]}, "spec": {"taints": []}}
        answer = await plain.patch("/api/v1/nodes/n/status", patch, "strategic-merge-patch+json")
        assert [one["type"] for one in answer.body["status"]["conditions"]] == ["Ready", "NetworkUnavailable"]
        assert answer.body["spec"]["taints"], "the status path leaves the spec alone"
        taints = {"spec": {"taints": [{"key": "b", "effect": "NoExecute"}]}}
        answer = await plain.patch("/api/v1/nodes/n", taints, "strategic-merge-patch+json")
        assert [one["key"] for one in answer.body["spec"]["taints"]] == ["b"], "taints have no merge key"
        gone = {"status": {"conditions": [{"type": "Ready", "$patch": "delete"}]}}
        answer = await plain.patch("/api/v1/nodes/n/status", gone, "strategic-merge-patch+json")
        assert [one["type"] for one in answer.body["status"]["conditions"]] == ["NetworkUnavailable"]

    async def test_a_patch_may_demand_a_state_and_an_identity(self, plain: Plain) -> None:
        made = (await plain.post(MAPS, {"metadata": {"name": "a"}})).body
        old = made["metadata"]["resourceVersion"]
        await plain.patch(f"{MAPS}/a", {"data": {"x": "1"}})
        stale = await plain.patch(f"{MAPS}/a", {"metadata": {"resourceVersion": old}, "data": {"x": "2"}})
        assert stale.status == 409
        assert (await plain.patch(f"{MAPS}/a", {"metadata": {"uid": "other"}})).status == 409
        assert (await plain.patch(f"{MAPS}/a", {"metadata": {"uid": made["metadata"]["uid"]}})).status == 200
        assert (await plain.patch(f"{MAPS}/nope", {"data": {}})).status == 404

    async def test_server_side_apply(self, plain: Plain) -> None:
        def wanted(data: dict[str, str]) -> dict[str, Any]:
            return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data}

        async def apply(data: dict[str, str], **query: Any) -> Any:
            return await plain.patch(f"{MAPS}/a", wanted(data), "apply-patch+yaml", **query)

        assert (await apply({"x": "1"})).status == 422, "without fieldManager"
        assert (await apply({"x": "1", "y": "2"}, fieldManager="one")).status == 201
        assert (await apply({"z": "3"}, fieldManager="two")).body["data"] == {"x": "1", "y": "2", "z": "3"}
        refused = await apply({"x": "8"}, fieldManager="two")
        assert (refused.status, refused.body["reason"]) == (409, "Conflict")
        assert refused.message == 'Apply failed with 1 conflict: conflict with "one": .data.x'
        assert (await apply({"x": "8"}, fieldManager="two", force="true")).body["data"] == {"x": "8", "y": "2"}
        assert (await apply({}, fieldManager="one")).body["data"] == {"x": "8"}


class TestDeleting:
    async def test_preconditions(self, plain: Plain) -> None:
        made = (await plain.post(MAPS, {"metadata": {"name": "a"}})).body
        wrong = await plain.delete(f"{MAPS}/a", {"preconditions": {"uid": "other"}})
        assert (wrong.status, wrong.body["reason"]) == (409, "Conflict")
        stale = await plain.delete(f"{MAPS}/a", {"preconditions": {"resourceVersion": "1"}})
        assert stale.status == 409
        right = await plain.delete(f"{MAPS}/a", {"preconditions": {"uid": made["metadata"]["uid"]}})
        assert right.body["status"] == "Success"
        assert right.body["details"] == {"name": "a", "kind": "configmaps", "uid": made["metadata"]["uid"]}
        assert (await plain.delete(f"{MAPS}/a")).status == 404

    async def test_a_finalizer_holds_the_object(self, plain: Plain) -> None:
        await plain.post(MAPS, {"metadata": {"name": "a", "finalizers": ["example.org/hold"]}})
        marked = await plain.delete(f"{MAPS}/a")
        assert marked.body["metadata"]["deletionTimestamp"]
        assert (await plain.get(f"{MAPS}/a")).status == 200
        more = await plain.patch(f"{MAPS}/a", {"metadata": {"finalizers": ["example.org/hold", "example.org/more"]}})
        assert "no new finalizers can be added if the object is being deleted" in more.message
        await plain.patch(f"{MAPS}/a", {"metadata": {"finalizers": None}})
        assert (await plain.get(f"{MAPS}/a")).status == 404

    async def test_a_pod_that_runs_somewhere_has_a_grace_period(self, plain: Plain) -> None:
        await plain.post(PODS, pod("waiting"))
        await plain.delete(f"{PODS}/waiting")
        assert (await plain.get(f"{PODS}/waiting")).status == 404
        await plain.post(PODS, pod("running", nodeName="n"))
        marked = await plain.delete(f"{PODS}/running")
        assert (marked.status, marked.body["metadata"]["deletionGracePeriodSeconds"]) == (200, 30)
        assert (await plain.delete(f"{PODS}/running", {"gracePeriodSeconds": 0})).status == 200
        assert (await plain.get(f"{PODS}/running")).status == 404

    async def test_a_grace_period_ends_by_the_clock(self, api: KubeApi, plain: Plain) -> None:
        await plain.post(PODS, pod("p", nodeName="n", terminationGracePeriodSeconds=1))
        await plain.delete(f"{PODS}/p")
        assert (await plain.get(f"{PODS}/p")).status == 200
        await until(lambda: not api.list("pods"))

    async def test_dependents_follow_their_owner(self, api: KubeApi, plain: Plain) -> None:
        owner = (await plain.post(MAPS, {"metadata": {"name": "owner"}})).body["metadata"]
        reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["uid"]}
        for name in ("a", "b"):
            await plain.post(MAPS, {"metadata": {"name": name, "ownerReferences": [reference]}})
        await plain.delete(f"{MAPS}/owner")
        await until(lambda: not api.list("configmaps"))
        await plain.post(MAPS, {"metadata": {"name": "late", "ownerReferences": [reference]}})
        await until(lambda: not api.list("configmaps"))

    async def test_an_owner_may_wait_for_its_dependents_or_leave_them(self, api: KubeApi, plain: Plain) -> None:
        for policy, left in (("Foreground", set()), ("Orphan", {"child-orphan"})):
            owner = (await plain.post(MAPS, {"metadata": {"name": "owner"}})).body["metadata"]
            reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["uid"]}
            child = {"metadata": {"name": f"child-{policy.lower()}", "ownerReferences": [reference]}}
            assert (await plain.post(MAPS, child)).status == 201
            await plain.delete(f"{MAPS}/owner", {"propagationPolicy": policy})
            await until(lambda left=left: {one["metadata"]["name"] for one in api.list("configmaps")} == left)

    async def test_a_namespace_takes_its_contents_with_it(self, api: KubeApi, plain: Plain) -> None:
        await plain.post("/api/v1/namespaces", {"metadata": {"name": "shop"}})
        held = {"metadata": {"name": "a", "finalizers": ["example.org/hold"]}}
        await plain.post("/api/v1/namespaces/shop/configmaps", held)
        marked = await plain.delete("/api/v1/namespaces/shop")
        assert marked.body["status"]["phase"] == "Terminating"
        late = await plain.post("/api/v1/namespaces/shop/configmaps", {"metadata": {"name": "late"}})
        assert late.status == 403
        assert "because it is being terminated" in late.message
        assert late.body["details"]["causes"][0]["reason"] == "NamespaceTerminating"
        await until(lambda: "deletionTimestamp" in api.get("configmaps", "a", "shop")["metadata"])
        await plain.patch("/api/v1/namespaces/shop/configmaps/a", {"metadata": {"finalizers": None}})
        await until(lambda: "shop" not in {one["metadata"]["name"] for one in api.list("namespaces")})
        assert (await plain.delete("/api/v1/namespaces/default")).status == 403

    async def test_a_collection_by_selector(self, plain: Plain) -> None:
        for name, colour in (("a", "red"), ("b", "red"), ("c", "blue")):
            await plain.post(MAPS, {"metadata": {"name": name, "labels": {"colour": colour}}})
        assert (await plain.delete(MAPS, labelSelector="colour=red")).status == 200
        assert [one["metadata"]["name"] for one in (await plain.get(MAPS)).body["items"]] == ["c"]

    async def test_eviction_asks_the_budget(self, api: KubeApi, plain: Plain) -> None:
        await plain.post(PODS, pod("p") | {"metadata": {"name": "p", "labels": {"app": "web"}}})
        budget = {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}},
        }
        api.create(budget)
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}}
        refused = await plain.post(f"{PODS}/p/eviction", eviction)
        assert refused.status == 429
        assert "violate the pod's disruption budget" in refused.message
        api.delete("poddisruptionbudgets", "web", "default")
        assert (await plain.post(f"{PODS}/p/eviction", eviction)).status == 201
        assert (await plain.get(f"{PODS}/p")).status == 404
