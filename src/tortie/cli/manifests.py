"""The documents that `-f` names: files, directories, standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tortie.base.errors import ConfigError
from tortie.model.document import load_documents, read
from tortie.model.meta import Resource, changed

SUFFIXES = (".yaml", ".yml", ".json")
STDIN = "standard input"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A document as a value, and the file that it is from."""

    resource: Resource
    source: str


def manifests(
    names: Sequence[str], recursive: bool = False, namespace: str = "", skip_empty: bool = False
) -> list[Manifest]:
    """Every document that the names lead to, in order, in `namespace` where one is needed and not given.

    Raises an ExceptionGroup with a ConfigError for each document that is wrong, and a ConfigError if there is none,
    which `skip_empty` takes for nothing to do.
    """
    if not names:
        raise ConfigError("nothing to read: give -f FILE, a directory, or - for standard input")
    found: list[Manifest] = []
    wrong: list[ConfigError] = []
    for name in names:
        for source, data in texts(name, recursive):
            try:
                documents = load_documents(data, source)
            except ConfigError as error:
                wrong.append(error)
                continue
            for document in documents:
                try:
                    found.append(Manifest(_placed(read(document, source), source, namespace), source))
                except ConfigError as error:
                    wrong.append(error)
    if wrong:
        raise ExceptionGroup("documents are wrong", wrong)
    if not found and not skip_empty:
        where = ", ".join(STDIN if name == "-" else f"file {name}" for name in names)
        raise ConfigError(f"no resources specified in {where}")
    return found


def _placed(resource: Resource, source: str, namespace: str) -> Resource:
    """The object in its namespace: its own, the one of the command, or `default`."""
    if not resource.KIND.namespaced:
        return resource
    if namespace and resource.namespace and namespace != resource.namespace:
        problem = f"resource namespace does not match client namespace. {resource.namespace} != {namespace}"
        raise ConfigError(problem, source, resource.title, "metadata.namespace")
    return changed(resource, namespace=resource.namespace or namespace or "default")


def texts(name: str, recursive: bool) -> Iterator[tuple[str, bytes]]:
    """Every file that a name leads to, with what is in it. Raises ConfigError for one that cannot be read."""
    if name == "-":
        yield STDIN, sys.stdin.buffer.read()
        return
    path = Path(name)
    for file in _files(path, recursive) if path.is_dir() else (path,):
        try:
            yield str(file), file.read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", str(file)) from None


def _files(directory: Path, recursive: bool) -> list[Path]:
    found = directory.rglob("*") if recursive else directory.iterdir()
    return sorted(file for file in found if file.suffix in SUFFIXES and file.is_file())
