"""What may be created and is kept nowhere: reviews of access, tokens of service accounts."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kube_api.access import Attributes, User
from kube_api.kinds import Kind
from kube_api.objects import now
from kube_api.paths import Call
from kube_api.statuses import Refusal, invalid, invalid_value

if TYPE_CHECKING:
    from kube_api.server import KubeApi

Review = Callable[["KubeApi", User, Call, dict[str, Any]], dict[str, Any]]


def _attributes(spec: dict[str, Any]) -> Attributes:
    resource = spec.get("resourceAttributes")
    if resource is None:
        other = spec.get("nonResourceAttributes") or {}
        return Attributes(other.get("verb", ""), path=other.get("path", ""))
    sub = resource.get("subresource", "")
    plural = resource.get("resource", "")
    return Attributes(
        resource.get("verb", ""),
        resource.get("group", ""),
        f"{plural}/{sub}" if sub else plural,
        resource.get("namespace", ""),
        resource.get("name", ""),
    )


def _verdict(api: KubeApi, user: User, spec: dict[str, Any]) -> dict[str, Any]:
    allowed = not api.rbac or api.rules.allows(user, _attributes(spec))
    return {"allowed": allowed, "reason": "RBAC: allowed by a binding"} if allowed else {"allowed": False}


def self_access(api: KubeApi, user: User, call: Call, obj: dict[str, Any]) -> dict[str, Any]:
    return obj | {"status": _verdict(api, user, obj.get("spec") or {})}


def access(api: KubeApi, user: User, call: Call, obj: dict[str, Any]) -> dict[str, Any]:
    spec = obj.get("spec") or {}
    return obj | {"status": _verdict(api, User(spec.get("user", ""), tuple(spec.get("groups") or ())), spec)}


def whoami(api: KubeApi, user: User, call: Call, obj: dict[str, Any]) -> dict[str, Any]:
    return obj | {"status": {"userInfo": _info(user)}}


def token_review(api: KubeApi, user: User, call: Call, obj: dict[str, Any]) -> dict[str, Any]:
    try:
        found = api.tokens.user((obj.get("spec") or {}).get("token", ""))
    except Refusal:
        return obj | {"status": {"authenticated": False, "error": "invalid bearer token"}}
    return obj | {"status": {"authenticated": True, "user": _info(found)}}


def _info(user: User) -> dict[str, Any]:
    found: dict[str, Any] = {"username": user.name, "groups": list(user.groups)}
    return found | ({"uid": user.uid} if user.uid else {})


def token_request(api: KubeApi, user: User, call: Call, obj: dict[str, Any]) -> dict[str, Any]:
    """A token of a service account. Raises Refusal: 404, 422."""
    record = api.objects.get(api._kind("serviceaccounts"), call.namespace, call.name)
    spec = obj.get("spec") or {}
    seconds = spec.get("expirationSeconds") or 3600
    if seconds < api.shortest_token:
        cause = invalid_value("spec.expirationSeconds", str(seconds), "may not specify a duration less than 10 minutes")
        raise invalid("authentication.k8s.io", "TokenRequest", "", [cause])
    bound = spec.get("boundObjectRef")
    if bound and bound.get("kind") == "Pod":
        pod = api.objects.get(api._kind("pods"), call.namespace, bound.get("name", ""))
        bound = {"name": pod.name, "uid": pod.uid}
    token = api.tokens.issue(call.namespace, call.name, record.uid, seconds, spec.get("audiences") or (), bound)
    end = datetime.fromtimestamp(datetime.now(UTC).timestamp() + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": call.name, "namespace": call.namespace, "creationTimestamp": now()},
        "spec": {**spec, "expirationSeconds": seconds},
        "status": {"token": token, "expirationTimestamp": end},
    }


REVIEWS: dict[tuple[str, str, str], Review] = {
    ("authorization.k8s.io", "selfsubjectaccessreviews", ""): self_access,
    ("authorization.k8s.io", "subjectaccessreviews", ""): access,
    ("authentication.k8s.io", "selfsubjectreviews", ""): whoami,
    ("authentication.k8s.io", "tokenreviews", ""): token_review,
    ("", "serviceaccounts", "token"): token_request,
}


def stamped(kind: Kind, objects: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Objects with what the server gives them; the ones that are passed are not changed."""
    moment = now()
    for obj in objects:
        metadata = {"uid": str(uuid.uuid4()), "creationTimestamp": moment} | obj["metadata"]
        if kind.namespaced:
            metadata.setdefault("namespace", "default")
        if kind.generation:
            metadata.setdefault("generation", 1)
        yield obj | {"metadata": metadata}
