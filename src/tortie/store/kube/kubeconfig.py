"""kubeconfig files: reading them, merging several, and choosing a context.

    KUBECONFIG=a:b ──read──► File, File ──merge──► File ──choose──► Context, Cluster, User

Merged as kubectl does: whichever file names a cluster, user, context or current-context first, wins, as a whole. Paths
in a file are relative to the folder it is in. What we do not know of is ignored, as kubectl does.
Source: Kubernetes' "Organizing Cluster Access Using kubeconfig Files", and client-go's types of clientcmd/api/v1.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import field

from tortie.base.errors import ConfigError, suggest
from tortie.model.text import load_all

T = TypeVar("T")
Named = TypeVar("Named", "NamedCluster", "NamedUser", "NamedContext")

LARGEST = 16 << 20
"""Bytes of a kubeconfig."""
EXEC_EXTENSION = "client.authentication.k8s.io/exec"
"""The extension of a cluster that is handed to exec plugins."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    def __repr__(self) -> str:
        """Of any part: a credential may be in it, or in what it has."""
        return f"{type(self).__name__}(...)"


class Extension(_Part, frozen=True, kw_only=True):
    name: str = ""
    extension: Any = None


class Cluster(_Part, frozen=True, kw_only=True):
    server: str = ""
    tls_server_name: str = ""
    insecure_skip_tls_verify: bool = False
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    proxy_url: str = ""
    disable_compression: bool = False
    extensions: list[Extension] | None = None

    @property
    def for_plugins(self) -> Any:
        """What the cluster's author wants exec plugins to know; None: nothing."""
        return next((one.extension for one in self.extensions or () if one.name == EXEC_EXTENSION), None)


class ExecVariable(_Part, frozen=True, kw_only=True):
    name: str
    value: str = ""


class Exec(_Part, frozen=True, kw_only=True, rename="camel"):
    """A program that prints credentials. A command with a slash is relative to its file's folder."""

    api_version: str = ""
    command: str = ""
    args: list[str] | None = None
    env: list[ExecVariable] | None = None
    install_hint: str = ""
    provide_cluster_info: bool = False
    interactive_mode: str = ""


class User(_Part, frozen=True, kw_only=True):
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    token: str = ""
    token_file: str = field(name="tokenFile", default="")
    impersonate: str = field(name="as", default="")
    impersonate_uid: str = field(name="as-uid", default="")
    impersonate_groups: list[str] | None = field(name="as-groups", default=None)
    impersonate_extra: dict[str, list[str]] | None = field(name="as-user-extra", default=None)
    username: str = ""
    password: str = ""
    auth_provider: Any = None
    exec: Exec | None = None


class Context(_Part, frozen=True, kw_only=True):
    cluster: str = ""
    user: str = ""
    namespace: str = ""


class NamedCluster(_Part, frozen=True, kw_only=True):
    name: str
    cluster: Cluster = Cluster()


class NamedUser(_Part, frozen=True, kw_only=True):
    name: str
    user: User = User()


class NamedContext(_Part, frozen=True, kw_only=True):
    name: str
    context: Context = Context()


class _Document(_Part, frozen=True, kw_only=True):
    kind: str = "Config"
    api_version: str = field(name="apiVersion", default="v1")
    current_context: str = ""
    clusters: list[NamedCluster] | None = None
    users: list[NamedUser] | None = None
    contexts: list[NamedContext] | None = None


class File(_Part, frozen=True, kw_only=True):
    """One kubeconfig, or several merged. Values of the dictionaries know their file: (its name, the entry)."""

    current_context: str = ""
    clusters: dict[str, tuple[str, Cluster]] = {}
    users: dict[str, tuple[str, User]] = {}
    contexts: dict[str, tuple[str, Context]] = {}

    @property
    def empty(self) -> bool:
        return not (self.clusters or self.users or self.contexts or self.current_context)


class Choice(_Part, frozen=True, kw_only=True):
    """What a context stands for, paths made absolute. `where` names file and context in messages."""

    where: str
    cluster: Cluster
    cluster_where: str
    user: User
    user_where: str
    namespace: str


def paths(text: str) -> tuple[Path, ...]:
    """`a:b` as KUBECONFIG has it, without what is empty or said twice."""
    return tuple(dict.fromkeys(Path(part) for part in text.split(os.pathsep) if part))


def read(files: Sequence[Path]) -> File:
    """All of them, merged. One file must be there; of several, those that are not are passed over, as by kubectl.

    Raises ConfigError naming the file.
    """
    found = []
    for path in files:
        try:
            with open(path, "rb") as stream:
                text = stream.read(LARGEST + 1)
        except FileNotFoundError:
            if len(files) == 1:
                raise ConfigError("there is no such kubeconfig", str(path)) from None
            continue
        except OSError as error:
            raise ConfigError(f"cannot be read: {os.strerror(error.errno or 0)}", str(path)) from None
        if len(text) > LARGEST:
            raise ConfigError(f"is larger than {LARGEST >> 20} MiB: not a kubeconfig", str(path))
        found.append(parse(text, str(path), path.absolute().parent))
    if not found:
        raise ConfigError(f"none of these files is there: {', '.join(map(str, files))}", "kubeconfig")
    return merge(found)


def parse(text: str | bytes, name: str, folder: Path) -> File:
    """A kubeconfig's text. `name` is for messages, `folder` where its relative paths begin. Raises ConfigError."""
    try:
        documents = [each for each in load_all(text) if each is not None]
    except ConfigError as error:
        raise error.within(name) from None
    if len(documents) > 1:
        raise ConfigError("has several documents, a kubeconfig is one", name)
    try:
        document = msgspec.convert(_without_nulls(documents[0] if documents else {}), _Document)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at ")
        raise ConfigError(problem, name, path.strip("`").removeprefix("$.")) from None
    if document.kind != "Config" or document.api_version != "v1":
        raise ConfigError(f'is "{document.kind}" of "{document.api_version}", a kubeconfig is Config of v1', name)
    return File(
        current_context=document.current_context,
        clusters={
            one.name: (name, _anchored(one.cluster, folder, "certificate_authority"))
            for one in _once(document.clusters, name, "clusters")
        },
        users={one.name: (name, _anchored_user(one.user, folder)) for one in _once(document.users, name, "users")},
        contexts={one.name: (name, one.context) for one in _once(document.contexts, name, "contexts")},
    )


def merge(files: Iterable[File]) -> File:
    """One of all: whoever says a thing first, wins."""
    whole = File()
    for file in files:
        whole = File(
            current_context=whole.current_context or file.current_context,
            clusters=file.clusters | whole.clusters,
            users=file.users | whole.users,
            contexts=file.contexts | whole.contexts,
        )
    return whole


def choose(file: File, context: str, name: str) -> Choice:
    """The context that is asked for, or the current one, or the only one. `name` is the file's, or the files'.

    Raises ConfigError: no such context, or it names what is not there.
    """
    wanted = context or file.current_context or (next(iter(file.contexts)) if len(file.contexts) == 1 else "")
    if not wanted:
        known = f"one of {', '.join(sorted(file.contexts))}" if file.contexts else "there are no contexts"
        raise ConfigError(f"no context is chosen: set current-context or K8S_CURRENT_CONTEXT ({known})", name)
    if wanted not in file.contexts:
        raise ConfigError(f'there is no context "{wanted}"{_hint(wanted, file.contexts)}', name)
    source, chosen = file.contexts[wanted]
    where = f'context "{wanted}"'
    if chosen.cluster not in file.clusters:
        hint = _hint(chosen.cluster, file.clusters)
        raise ConfigError(f'there is no cluster "{chosen.cluster}"{hint}', source, where, "cluster")
    if chosen.user and chosen.user not in file.users:
        raise ConfigError(f'there is no user "{chosen.user}"{_hint(chosen.user, file.users)}', source, where, "user")
    cluster_source, cluster = file.clusters[chosen.cluster]
    user_source, user = file.users.get(chosen.user, (source, User()))
    return Choice(
        where=f"{source}: {where}",
        cluster=cluster,
        cluster_where=f'{cluster_source}: cluster "{chosen.cluster}"',
        user=user,
        user_where=f'{user_source}: user "{chosen.user}"',
        namespace=chosen.namespace,
    )


def decoded(text: str, *where: str) -> bytes:
    """Of a `...-data` field. Raises ConfigError, which does not quote it."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError("is not base64", *where) from None


def encoded(content: bytes) -> str:
    """As a `...-data` field has it."""
    return base64.b64encode(content).decode()


def _hint(word: str, known: Iterable[str]) -> str:
    text = suggest(word, known)
    return f": {text}" if text else ""


def _once(entries: Sequence[Named] | None, name: str, where: str) -> Iterator[Named]:
    seen: set[str] = set()
    for entry in entries or ():
        if entry.name in seen:
            raise ConfigError(f'"{entry.name}" is there twice', name, where)
        seen.add(entry.name)
        yield entry


def _anchored(value: T, folder: Path, *fields: str) -> T:
    """The same with absolute paths."""
    paths = {name: str(folder / text) for name in fields if (text := getattr(value, name))}
    return msgspec.structs.replace(value, **paths)  # type: ignore[type-var]


def _anchored_user(user: User, folder: Path) -> User:
    plugin = user.exec
    if plugin is not None and "/" in plugin.command:
        plugin = msgspec.structs.replace(plugin, command=str(folder / plugin.command))
    user = msgspec.structs.replace(user, exec=plugin)
    return _anchored(user, folder, "client_certificate", "client_key", "token_file")


def _without_nulls(value: Any) -> Any:
    """`kubectl config` writes null for what is not set."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value
