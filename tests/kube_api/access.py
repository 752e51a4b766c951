"""Who asks, and what they may: tokens and client certificates -> users; Roles and their bindings -> yes or no."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from kube_api.kinds import Kinds
from kube_api.statuses import Refusal, shown, unauthorized
from kube_api.storage import Storage

RBAC = "rbac.authorization.k8s.io"
ISSUER = "https://kubernetes.default.svc.cluster.local"
ADMIN_GROUP = "system:masters"


class User(NamedTuple):
    """Who asks. `extra` is what a TokenReview adds."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""


ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


class Attributes(NamedTuple):
    """What is asked. `path` instead of all else for what is no resource. `resource` with its subresource behind `/`."""

    verb: str
    group: str = ""
    resource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""


class Tokens:
    """Bearer tokens: fixed ones, and those of service accounts, which are signed by us and end."""

    def __init__(self, storage: Storage, kinds: Kinds) -> None:
        self.fixed: dict[str, User] = {}
        self.key = secrets.token_bytes(32)
        self.storage = storage
        self.kinds = kinds

    def revoke_all(self) -> None:
        """No token that was ever given out is good any more."""
        self.fixed.clear()
        self.key = secrets.token_bytes(32)

    def issue(
        self, namespace: str, name: str, uid: str, seconds: float, audiences: Iterable[str], pod: Any = None
    ) -> str:
        """A JWT (its signature is our own business: HS256) for a service account."""
        issued = int(time.time())
        bound = {"namespace": namespace, "serviceaccount": {"name": name, "uid": uid}}
        claims = {
            "aud": list(audiences) or [ISSUER],
            "exp": int(issued + seconds) if seconds >= 1 else issued + seconds,
            "iat": issued,
            "nbf": issued,
            "iss": ISSUER,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": bound | ({"pod": {"name": pod["name"], "uid": pod["uid"]}} if pod else {}),
            "sub": f"system:serviceaccount:{namespace}:{name}",
        }
        signed = f"{_packed({'alg': 'HS256', 'kid': 'double'})}.{_packed(claims)}"
        return f"{signed}.{self._signature(signed)}"

    def user(self, token: str) -> User:
        """Whose it is. Raises Refusal (401)."""
        if token in self.fixed:
            return self._authenticated(self.fixed[token])
        signed, _, signature = token.rpartition(".")
        if not hmac.compare_digest(signature, self._signature(signed)):
            raise unauthorized()
        claims = msgspec.json.decode(_unpacked(signed.partition(".")[2]))
        own = claims["kubernetes.io"]
        account = own["serviceaccount"]
        accounts = self.kinds.of("/serviceaccounts")
        assert accounts is not None
        record = self.storage.get(accounts, f"{own['namespace']}/{account['name']}")
        if (
            claims["exp"] <= time.time()
            or record is None
            or record.uid != account["uid"]
            or not self._pod_is_there(own)
        ):
            raise unauthorized()
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{own['namespace']}", "system:authenticated")
        return User(claims["sub"], groups, account["uid"])

    def _pod_is_there(self, own: Mapping[str, Any]) -> bool:
        if "pod" not in own:
            return True
        return own["pod"]["uid"] in self.storage.by_uid

    def _authenticated(self, user: User) -> User:
        return User(user.name, (*user.groups, "system:authenticated"), user.uid)

    def _signature(self, signed: str) -> str:
        digest = hmac.new(self.key, signed.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _packed(value: Any) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).rstrip(b"=").decode()


def _unpacked(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def of_certificate(certificate: Mapping[str, Any] | None) -> User | None:
    """CN is the name, each O a group."""
    if not certificate:
        return None
    parts = [pair for relative in certificate.get("subject", ()) for pair in relative]
    names = [value for key, value in parts if key == "commonName"]
    groups = tuple(value for key, value in parts if key == "organizationName")
    return User(names[0], (*groups, "system:authenticated")) if names else None


class Rules:
    """RBAC: the Roles and bindings that are in the storage, looked up anew after every change of them."""

    KINDS = ("clusterroles", "clusterrolebindings", "roles", "rolebindings")

    def __init__(self, storage: Storage, kinds: Kinds) -> None:
        self.storage = storage
        self.kinds = kinds
        self.read_at: tuple[int, ...] = ()
        self.objects: dict[str, list[dict[str, Any]]] = {}

    def allows(self, user: User, wanted: Attributes) -> bool:
        if ADMIN_GROUP in user.groups:
            return True
        self._refresh()
        for binding in self.objects["clusterrolebindings"]:
            if _speaks_of(binding, user, "") and self._grants(binding["roleRef"], "", wanted):
                return True
        if not wanted.namespace or wanted.path:
            return False
        return any(
            binding["metadata"]["namespace"] == wanted.namespace
            and _speaks_of(binding, user, wanted.namespace)
            and self._grants(binding["roleRef"], wanted.namespace, wanted)
            for binding in self.objects["rolebindings"]
        )

    def _refresh(self) -> None:
        tables = [self.storage.table(f"{RBAC}/{plural}") for plural in self.KINDS]
        ends = tuple(table.end for table in tables)
        if ends != self.read_at:
            self.read_at = ends
            for plural, table in zip(self.KINDS, tables, strict=True):
                self.objects[plural] = [msgspec.json.decode(record.body) for record in table.records.values()]

    def _grants(self, reference: Mapping[str, str], namespace: str, wanted: Attributes) -> bool:
        plural = "clusterroles" if reference["kind"] == "ClusterRole" else "roles"
        for role in self.objects[plural]:
            own = role["metadata"]
            if own["name"] == reference["name"] and (plural == "clusterroles" or own["namespace"] == namespace):
                return any(_covers(rule, wanted) for rule in self.rules_of(role))
        return False

    def rules_of(self, role: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Its own, or those of the roles that it aggregates."""
        selectors = (role.get("aggregationRule") or {}).get("clusterRoleSelectors")
        if not selectors:
            return list(role.get("rules") or ())
        return [
            rule
            for other in self.objects["clusterroles"]
            for selector in selectors
            if (selector.get("matchLabels") or {}).items() <= (other["metadata"].get("labels") or {}).items()
            for rule in other.get("rules") or ()
        ]


def _speaks_of(binding: Mapping[str, Any], user: User, namespace: str) -> bool:
    for subject in binding.get("subjects") or ():
        kind, name = subject.get("kind"), subject.get("name")
        if kind == "User" and name == user.name:
            return True
        if kind == "Group" and name in user.groups:
            return True
        home = subject.get("namespace") or namespace
        if kind == "ServiceAccount" and user.name == f"system:serviceaccount:{home}:{name}":
            return True
    return False


def _covers(rule: Mapping[str, Any], wanted: Attributes) -> bool:
    verbs = rule.get("verbs") or ()
    if "*" not in verbs and wanted.verb not in verbs:
        return False
    if wanted.path:
        return any(
            wanted.path == own or (own.endswith("*") and wanted.path.startswith(own[:-1]))
            for own in rule.get("nonResourceURLs") or ()
        )
    groups = rule.get("apiGroups") or ()
    if "*" not in groups and wanted.group not in groups:
        return False
    names = rule.get("resourceNames") or ()
    if names and wanted.name not in names:
        return False
    _, slash, subresource = wanted.resource.partition("/")
    resources = rule.get("resources") or ()
    return "*" in resources or wanted.resource in resources or bool(slash and f"*/{subresource}" in resources)


def refusal(user: User, wanted: Attributes) -> Refusal:
    """403 with Kubernetes' words."""
    if wanted.path:
        message = f'forbidden: User "{user.name}" cannot {wanted.verb} path "{wanted.path}"'
        return Refusal(403, "Forbidden", message, {})
    where = f'in the namespace "{wanted.namespace}"' if wanted.namespace else "at the cluster scope"
    plural = wanted.resource.partition("/")[0]
    what = shown(plural, wanted.group) + (f' "{wanted.name}"' if wanted.name else "")
    message = (
        f'{what} is forbidden: User "{user.name}" cannot {wanted.verb} resource "{wanted.resource}" in API group '
        f'"{wanted.group}" {where}'
    )
    details = {"name": wanted.name, "group": wanted.group, "kind": plural}
    return Refusal(403, "Forbidden", message, {key: value for key, value in details.items() if value})


def _role(name: str, *rules: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "ClusterRole", "metadata": {"name": name}, "rules": list(rules)}


def _bound(name: str, *groups: str) -> dict[str, Any]:
    subjects = [{"kind": "Group", "name": group} for group in groups]
    return {
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": name},
        "subjects": subjects,
    }


_ALL = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
_REVIEWS = ["selfsubjectaccessreviews", "selfsubjectrulesreviews"]
_PUBLIC = ["/healthz", "/livez", "/readyz", "/version", "/version/"]
_DISCOVERY = [*_PUBLIC, "/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*"]

BOOTSTRAP = (
    _role("cluster-admin", _ALL, {"nonResourceURLs": ["*"], "verbs": ["*"]}),
    _bound("cluster-admin", ADMIN_GROUP),
    _role(
        "system:basic-user",
        {"apiGroups": ["authorization.k8s.io"], "resources": _REVIEWS, "verbs": ["create"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"], "verbs": ["create"]},
    ),
    _bound("system:basic-user", "system:authenticated"),
    _role("system:discovery", {"nonResourceURLs": _DISCOVERY, "verbs": ["get"]}),
    _bound("system:discovery", "system:authenticated"),
    _role("system:public-info-viewer", {"nonResourceURLs": _PUBLIC, "verbs": ["get"]}),
    _bound("system:public-info-viewer", "system:authenticated", "system:unauthenticated"),
)
"""Roles and bindings that every cluster has, as far as the double needs them."""
