"""What every resource shares: metadata, how a kind is named, and how a value reports what is wrong with itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec
from msgspec import Meta, field

from tortie.base.addr import parse_ip, parse_net
from tortie.base.errors import ConfigError

Problem = tuple[str, str]
"""A field path relative to the value that reports it (`ports[0]`, or "" for the value itself), and what is wrong."""

Port = Annotated[int, Meta(ge=0, le=65535)]

# The names that Kubernetes allows: DNS-1123 subdomain and label, qualified label name, label value.
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
SHORT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?\Z")
LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?\Z")
DURATION = re.compile(r"[-+]?(0|(\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h))+\Z")
"""As Go writes durations: 90s, 1m30s, 500ms."""


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel", forbid_unknown_fields=True):
    """A piece of a resource. Field names in documents are the camelCase of ours unless said otherwise."""

    def problems(self) -> Iterator[Problem]:
        """What types alone cannot say. Only about this value's own fields: nested values speak for themselves."""
        return iter(())


class OwnerReference(Value, frozen=True, kw_only=True):
    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class Metadata(Value, frozen=True, kw_only=True):
    """Identity. `resource_version` is the store's revision as a decimal string, empty on input."""

    name: str = ""
    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    generation: int | None = None
    generate_name: str = ""
    owner_references: tuple[OwnerReference, ...] = ()
    finalizers: tuple[str, ...] = ()
    managed_fields: Any = None
    self_link: str = ""


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """How a kind is named everywhere: in documents, on the command line, in a datastore."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = False
    aliases: tuple[str, ...] = ()
    read_only: bool = False
    """True where users may look but not write (the command line refuses)."""

    @property
    def key(self) -> str:
        """Unique in a datastore: `ippools.projectcalico.org`, `pods`, `networkpolicies.networking.k8s.io`."""
        group = self.api_version.rpartition("/")[0]
        return f"{self.plural}.{group}" if group else self.plural


class Resource(Value, frozen=True, kw_only=True):
    """A thing with a name that a datastore keeps."""

    KIND: ClassVar[Kind]
    metadata: Metadata = Metadata()

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def namespace(self) -> str:
        return self.metadata.namespace

    @property
    def labels(self) -> dict[str, str]:
        return self.metadata.labels

    @property
    def title(self) -> str:
        """`IPPool default-pool`, `Pod red/a`: how a message names this object."""
        return title(self.KIND, self.metadata.name, self.metadata.namespace)


R = TypeVar("R", bound=Resource)


def title(kind: Kind, name: str, namespace: str = "") -> str:
    """How messages name an object that may not exist."""
    return f"{kind.kind} {namespace}/{name}" if kind.namespaced else f"{kind.kind} {name}"


def changed(resource: R, **metadata: Any) -> R:
    """The same resource with other metadata: `changed(pod, resource_version="")`."""
    return msgspec.structs.replace(resource, metadata=msgspec.structs.replace(resource.metadata, **metadata))


def duration_problem(path: str, text: str | None) -> Iterator[Problem]:
    """The problem of a field that may hold a duration, if it has one."""
    if text and not DURATION.match(text):
        yield path, f'"{text}" is not a duration such as 90s or 1m30s'


def cidr_problem(path: str, text: str) -> Iterator[Problem]:
    """The problem of a field that must hold a CIDR or an address, if it has one."""
    try:
        parse_net(text)
    except ConfigError as error:
        yield path, str(error)


def ip_problem(path: str, text: str, version: int | None = None) -> Iterator[Problem]:
    """The problem of a field that must hold an address (of an IP version, if one is given), if it has one."""
    try:
        found = parse_ip(text).version
    except ConfigError as error:
        yield path, str(error)
        return
    if version not in (None, found):
        yield path, f'"{text}" is not an IPv{version} address'
