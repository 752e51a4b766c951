"""The documents that a simulation is made of, from files as people keep them: directories of manifests, what kustomize
and Helm print, what `kubectl get -o yaml` exports.

Objects of other software are skipped and counted. An object of a kind that we should know is never skipped: a policy
that silently is not there would make every answer wrong.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tortie.base.errors import ConfigError, suggest
from tortie.calc.simulate.workloads import Given, is_workload, placed, pod_of
from tortie.model import text
from tortie.model.document import read
from tortie.model.kinds import API_ALIASES, KINDS

SUFFIXES = (".yaml", ".yml", ".json")
STDIN, STDIN_NAME = Path("-"), "standard input"
NOT_OBJECTS = ("kustomization.yaml", "kustomization.yml")
"""Files beside manifests that are read by other programs and hold no object of a cluster."""

_KNOWN = frozenset((kind.KIND.api_version, kind.KIND.kind) for kind in KINDS)
_GROUPS = ("projectcalico.org/", "crd.projectcalico.org/", "networking.k8s.io/", "policy.networking.k8s.io/")
"""Where policies are."""


@dataclass(frozen=True, slots=True)
class Documents:
    """What was read. `skipped` counts the kinds that mean nothing to the network."""

    given: tuple[Given, ...]
    skipped: Mapping[str, int]


def read_all(paths: Iterable[str | Path]) -> Documents:
    """Every object of the files, and of the files in the directories and all below them; `-` is standard input.

    Raises an ExceptionGroup with a ConfigError for each document that is wrong.
    """
    given: list[Given] = []
    wrong: list[ConfigError] = []
    skipped: Counter[str] = Counter()
    for file, named in _files(paths):
        try:
            for source, document in _documents(file, named):
                try:
                    given.extend(_understood(document, source, skipped))
                except ConfigError as error:
                    wrong.append(error)
        except ConfigError as error:
            wrong.append(error)
    if wrong:
        raise ExceptionGroup("documents are wrong", wrong)
    return Documents(tuple(given), dict(sorted(skipped.items())))


def _files(paths: Iterable[str | Path]) -> Iterator[tuple[Path, bool]]:
    """Each file once, and whether it is one that somebody named."""
    seen: set[Path] = set()
    for file, named in _every_file(paths):
        if file == STDIN:
            yield file, named
        elif file.resolve() not in seen:
            seen.add(file.resolve())
            yield file, named


def _every_file(paths: Iterable[str | Path]) -> Iterator[tuple[Path, bool]]:
    for path in dict.fromkeys(map(Path, paths)):
        if path == STDIN:
            yield path, True
        elif path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
            if not files:
                raise ConfigError(f"holds no file that ends in {', '.join(SUFFIXES)}", str(path))
            yield from ((file, False) for file in files if file.name not in NOT_OBJECTS)
        elif path.exists():
            yield path, True
        else:
            raise ConfigError("there is no such file or directory", str(path))


def _documents(file: Path, named: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, document) for every document of a file, Lists taken apart.

    In a directory there are files of all sorts: what has neither apiVersion nor kind is a Helm chart's or an editor's.
    """
    name = STDIN_NAME if file == STDIN else str(file)
    try:
        data = sys.stdin.buffer.read() if file == STDIN else file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", name) from None
    try:
        for number, document in enumerate(text.load_all(data), 1):
            where = f"document {number}"
            for inner, one in _taken_apart(document):
                if not isinstance(one, dict):
                    raise ConfigError("is not an object with kind", where, inner)
                if named or "kind" in one or "apiVersion" in one:
                    yield ": ".join(part for part in (name, where, inner) if part), one
    except ConfigError as error:
        raise error.within(name) from None


def _taken_apart(document: Any) -> Iterator[tuple[str, Any]]:
    """The objects of a List, or the one object; items of a PodList may leave out what its kind says."""
    if isinstance(document, list):
        yield from ((f"[{i}]", item) for i, item in enumerate(document))
        return
    if not isinstance(document, dict) or not str(document.get("kind", "")).endswith("List"):
        yield from () if document is None else (("", document),)
        return
    implied = {}
    if document["kind"] != "List":
        implied = {"apiVersion": document.get("apiVersion"), "kind": document["kind"].removesuffix("List")}
    for i, item in enumerate(document.get("items") or ()):
        yield f"items[{i}]", {**implied, **item} if isinstance(item, dict) else item


def _understood(document: dict[str, Any], source: str, skipped: Counter[str]) -> Iterator[Given]:
    version, kind = document.get("apiVersion"), document.get("kind")
    if isinstance(version, str) and isinstance(kind, str) and version and kind:
        if is_workload(version, kind):
            yield Given(placed(pod_of(document, source)), source, kind)
            return
        if _foreign(version, kind):
            skipped[kind] += 1
            return
    yield Given(placed(read(document, source)), source)


def _foreign(version: str, kind: str) -> bool:
    """Whether an object is of no concern to us, and neither a policy that we do not know nor just misspelt."""
    if (API_ALIASES.get(version, version), kind) in _KNOWN:
        return False
    if not version.startswith(_GROUPS):
        return True
    near = {known for group, known in _KNOWN if group.startswith(_GROUPS)}
    return not kind.endswith("Policy") and not suggest(kind, near).startswith("did you mean")
