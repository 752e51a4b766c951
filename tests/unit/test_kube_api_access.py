"""The API server's double: who asks and what they may; TLS; discovery."""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import yaml

from kube_api import KubeApi
from kube_api.plain import Plain, until

PODS = "/api/v1/namespaces/default/pods"
SSAR = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
RBAC = "rbac.authorization.k8s.io"


@pytest.fixture
async def api() -> AsyncIterator[KubeApi]:
    async with KubeApi(rbac=True, shortest_token=1) as api:
        yield api


def role(api: KubeApi, name: str, *rules: dict[str, Any], namespace: str = "") -> None:
    kind = "Role" if namespace else "ClusterRole"
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    api.create({"apiVersion": f"{RBAC}/v1", "kind": kind, "metadata": metadata, "rules": list(rules)})


def bind(api: KubeApi, name: str, subject: dict[str, str], *, namespace: str = "", kind: str = "ClusterRole") -> None:
    metadata = {"name": f"{name}-{subject['name']}"} | ({"namespace": namespace} if namespace else {})
    api.create(
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "RoleBinding" if namespace else "ClusterRoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": RBAC, "kind": kind, "name": name},
            "subjects": [subject],
        }
    )


def pod(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}


async def test_who_is_not_known_and_who_may_not(api: KubeApi) -> None:
    async with (
        Plain(api.url, "nonsense") as nobody,
        Plain(api.url) as anonymous,
        Plain(api.url, api.user("ann")) as ann,
    ):
        refused = await nobody.get(PODS)
        assert (refused.status, refused.body["reason"], refused.message) == (401, "Unauthorized", "Unauthorized")
        refused = await anonymous.get(PODS)
        assert (refused.status, refused.body["reason"]) == (403, "Forbidden")
        assert refused.message == (
            'pods is forbidden: User "system:anonymous" cannot list resource "pods" in API group "" in the namespace '
            '"default"'
        )
        assert (await anonymous.get("/healthz")).status == 200
        assert (await anonymous.get("/apis")).message == ('forbidden: User "system:anonymous" cannot get path "/apis"')
        assert (await ann.get("/apis")).status == 200
        refused = await ann.get("/apis/networking.k8s.io/v1/networkpolicies")
        assert refused.message == (
            'networkpolicies.networking.k8s.io is forbidden: User "ann" cannot list resource "networkpolicies" in API '
            'group "networking.k8s.io" at the cluster scope'
        )


async def test_rules_name_verbs_subresources_and_objects(api: KubeApi) -> None:
    role(
        api,
        "net",
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["own"], "verbs": ["get", "list"]},
    )
    bind(api, "net", {"kind": "Group", "name": "agents"})
    api.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}})
    api.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "own"}})
    async with Plain(api.url, api.user("a", ["agents"])) as agent:
        assert (await agent.get("/api/v1/nodes")).status == 200
        assert (await agent.patch("/api/v1/nodes/n/status", {"metadata": {"annotations": {"a": "b"}}})).status == 200
        refused = await agent.patch("/api/v1/nodes/n", {"metadata": {"annotations": {"a": "c"}}})
        assert refused.message == (
            'nodes "n" is forbidden: User "a" cannot patch resource "nodes" in API group "" at the cluster scope'
        )
        maps = "/api/v1/namespaces/default/configmaps"
        assert (await agent.get(f"{maps}/own")).status == 200
        assert (await agent.get(f"{maps}/other")).status == 403
        assert (await agent.get(maps)).status == 403
        assert (await agent.get(maps, fieldSelector="metadata.name=own")).status == 200
        async with agent.watch("/api/v1/nodes") as events:
            assert (await anext(events))[0] == "ADDED"
        assert (await agent.delete("/api/v1/nodes/n")).status == 403


async def test_bindings_of_a_namespace_reach_no_further(api: KubeApi) -> None:
    role(api, "reader", {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}, namespace="default")
    bind(api, "reader", {"kind": "User", "name": "ann"}, namespace="default", kind="Role")
    async with Plain(api.url, api.user("ann")) as ann:
        assert (await ann.get(PODS)).status == 200
        assert (await ann.get("/api/v1/namespaces/kube-system/pods")).status == 403
        assert (await ann.get("/api/v1/pods")).status == 403
        api.delete("rolebindings", "reader-ann", "default")
        assert (await ann.get(PODS)).status == 403, "at once"


async def test_a_put_that_creates_must_be_allowed_to(api: KubeApi) -> None:
    leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
    rule = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["update", "patch"]}
    role(api, "renewer", rule)
    bind(api, "renewer", {"kind": "User", "name": "ann"})
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": {}}
    async with Plain(api.url, api.user("ann")) as ann:
        refused = await ann.put(f"{leases}/l", lease)
        assert (refused.status, "cannot create resource" in refused.message) == (403, True)
        assert (await ann.patch(f"{leases}/l", lease, "apply-patch+yaml", fieldManager="ann")).status == 403
        api.create(lease)
        assert (await ann.patch(f"{leases}/l", lease, "apply-patch+yaml", fieldManager="ann")).status == 200


async def test_reviews_say_what_would_be_allowed(api: KubeApi) -> None:
    role(api, "reader", {"apiGroups": [""], "resources": ["pods", "pods/status"], "verbs": ["list"]})
    bind(api, "reader", {"kind": "User", "name": "ann"})

    def review(**attributes: str) -> dict[str, Any]:
        return {"spec": {"resourceAttributes": attributes}}

    async with Plain(api.url, api.user("ann")) as ann:
        yes = await ann.post(SSAR, review(verb="list", resource="pods"))
        assert (yes.status, yes.body["status"]["allowed"]) == (201, True)
        assert (await ann.post(SSAR, review(verb="get", resource="pods"))).body["status"] == {"allowed": False}
        sub = review(verb="list", resource="pods", subresource="status")
        assert (await ann.post(SSAR, sub)).body["status"]["allowed"]
        who = await ann.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", {})
        assert who.body["status"]["userInfo"]["username"] == "ann"


async def test_tokens_of_service_accounts(api: KubeApi) -> None:
    api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "bot", "namespace": "default"}})
    role(api, "reader", {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]})
    bind(api, "reader", {"kind": "ServiceAccount", "name": "bot", "namespace": "default"})
    path = "/api/v1/namespaces/default/serviceaccounts/bot/token"
    async with Plain(api.url, api.admin_token) as admin:
        assert (await admin.post(path, {"spec": {"expirationSeconds": 0.5}})).status == 422
        made = await admin.post(path, {"spec": {"expirationSeconds": 1}})
        assert made.status == 201
    token = made.body["status"]["token"]
    claims = token.split(".")[1]
    found = msgspec.json.decode(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    assert found["sub"] == "system:serviceaccount:default:bot"
    async with Plain(api.url, token) as bot, Plain(api.url, token[:-2]) as forged:
        assert (await bot.get(PODS)).status == 200
        assert (await forged.get(PODS)).status == 401
        await asyncio.sleep(max(0.0, found["exp"] - time.time()) + 0.01)
        assert (await bot.get(PODS)).status == 401
    async with Plain(api.url, api.service_account_token("default", "bot")) as bot:
        assert (await bot.get(PODS)).status == 200
        api.delete("serviceaccounts", "bot", "default")
        assert (await bot.get(PODS)).status == 401


async def test_tokens_are_revoked(api: KubeApi) -> None:
    token = api.user("ann")
    async with Plain(api.url, token) as ann, Plain(api.url, api.admin_token) as admin:
        assert (await ann.get("/version")).status == 200
        api.revoke()
        assert (await ann.get("/version")).status == 401
        assert (await admin.get(PODS)).status == 200


async def test_tls_and_client_certificates(tmp_path: Any) -> None:
    async with KubeApi(tls=True, rbac=True) as api:
        assert api.authority is not None
        kubeconfig = yaml.safe_load(api.kubeconfig(tmp_path / "kubeconfig").read_text())
        assert kubeconfig["clusters"][0]["cluster"]["server"] == api.url
        role(api, "reader", {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]})
        bind(api, "reader", {"kind": "Group", "name": "readers"})
        context = ssl.create_default_context(cafile=kubeconfig["clusters"][0]["cluster"]["certificate-authority"])
        async with Plain(api.url, context=context) as anonymous:
            assert (await anonymous.get(PODS)).status == 403
        context.load_cert_chain(*api.authority.client("ann", ["readers"]))
        async with Plain(api.url, context=context) as ann:
            assert (await ann.get(PODS)).status == 200
        assert api.log[-1].user == "ann"
        directory = api.authority.directory
        assert all(key.stat().st_mode & 0o077 == 0 for key in directory.glob("*.key"))
    await until(lambda: not directory.exists())


async def test_discovery(api: KubeApi) -> None:
    async with Plain(api.url, api.admin_token) as admin:
        assert (await admin.get("/api")).body["versions"] == ["v1"]
        groups = (await admin.get("/apis")).body["groups"]
        assert {"apps", "networking.k8s.io", "apiextensions.k8s.io"} <= {one["name"] for one in groups}
        pods = {one["name"]: one for one in (await admin.get("/api/v1")).body["resources"]}
        assert pods["pods"]["shortNames"] == ["po"]
        assert pods["pods/eviction"]["kind"] == "Eviction"
        assert (await admin.get("/apis/nope.example.org")).body == "404 page not found\n"
        assert (await admin.get("/version")).body["gitVersion"].startswith("v1.")


async def test_who_may_speak_for_others(api: KubeApi) -> None:
    role(api, "reader", {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]})
    bind(api, "reader", {"kind": "ServiceAccount", "name": "bot", "namespace": "default"})
    bot = {"Impersonate-User": "system:serviceaccount:default:bot"}
    async with Plain(api.url, api.admin_token) as admin, Plain(api.url, api.user("ann")) as ann:
        async with admin.session.get(PODS, headers=bot) as answer:
            assert answer.status == 200
        assert api.log[-1].user == bot["Impersonate-User"]
        async with admin.session.get("/api/v1/nodes", headers=bot) as answer:
            assert answer.status == 403
        async with ann.session.get(PODS, headers=bot) as answer:
            assert (answer.status, "cannot impersonate" in await answer.text()) == (403, True)
