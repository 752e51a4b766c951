"""What we may do on a cluster: asked of the cluster itself, before it is needed."""

from __future__ import annotations

import msgspec

from tortie.store.kube.api import Api

PATH = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


class _Status(msgspec.Struct, frozen=True):
    allowed: bool = False


class _Review(msgspec.Struct, frozen=True):
    status: _Status = _Status()


async def may(api: Api, verb: str, group: str, resource: str, namespace: str = "", name: str = "") -> bool:
    """Whether we may do it: `may(api, "patch", "", "nodes/status")`. No namespace means all, no name any of them.

    Raises Unavailable. Source: authorization.k8s.io/v1, SelfSubjectAccessReview.
    """
    plural, _, subresource = resource.partition("/")
    attributes = {"verb": verb, "group": group, "resource": plural, "subresource": subresource}
    attributes |= {"namespace": namespace, "name": name}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}},
    }
    answer = await api.request("POST", PATH, body=msgspec.json.encode(body))
    return msgspec.json.decode(answer, type=_Review).status.allowed
