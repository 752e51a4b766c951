"""What a request asks for, read from its method, path and query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from kube_api.access import Attributes
from kube_api.selectors import fields
from kube_api.statuses import Refusal
from kube_api.watches import flag

_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True)
class Call:
    """A request for a resource. `verb` as RBAC names it. Empty `namespace`: all, or none."""

    verb: str
    group: str
    version: str
    plural: str
    namespace: str = ""
    name: str = ""
    sub: str = ""

    def attributes(self, query: Mapping[str, str]) -> Attributes:
        name = self.name
        if self.verb in ("list", "watch", "deletecollection") and query.get("fieldSelector"):
            try:
                chosen = fields(query["fieldSelector"])
            except Refusal:
                chosen = ()
            name = next((one.value for one in chosen if one.path == "metadata.name" and one.equal), "")
        resource = f"{self.plural}/{self.sub}" if self.sub else self.plural
        namespace = self.name if self.plural == "namespaces" and not self.group else self.namespace
        return Attributes(self.verb, self.group, resource, namespace, name)


def call(method: str, path: str, query: Mapping[str, str]) -> Call | None:
    """None: the path is that of no resource (discovery, health ...). `path` as it was sent, still quoted."""
    parts = [unquote(one) for one in path.strip("/").split("/")]
    if parts[0] == "api" and len(parts) > 2:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    own = len(rest) > 2 and rest[2] in ("status", "finalize") and len(rest) == 3
    if rest[0] == "namespaces" and len(rest) > 2 and not own:
        namespace, rest = rest[1], rest[2:]
    if len(rest) > 3 or not all(rest):
        return None
    plural, name, sub = (*rest, "", "", "")[:3]
    verb = _VERBS.get("GET" if method == "HEAD" else method, "")
    if not name:
        if verb == "get":
            verb = "watch" if flag(query, "watch") else "list"
        elif verb == "delete":
            verb = "deletecollection"
    return Call(verb, group, version, plural, namespace, name, sub)
