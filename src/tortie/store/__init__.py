"""Datastores: the only package that talks to one. Each module implements the `Store` protocol of `tortie.model.store`.

`memory` lives in this process, `sqlite` in a file that all processes of a machine share. Start with `open_store`.
"""

from __future__ import annotations

from pathlib import Path

from tortie.base.errors import ConfigError, NotSupported
from tortie.model.store import Store

__all__ = ["open_store"]


def open_store(where: str | Path) -> Store:
    """Open a datastore: `memory:`, `sqlite:PATH`, or a bare path of an SQLite file, which is made if it is missing.

    Raises ConfigError (one line) for what cannot be a datastore, NotSupported for one that this version cannot use.
    """
    text = str(where)
    if text == "memory:":
        from tortie.store.memory import MemoryStore

        return MemoryStore()
    scheme = text.partition(":")[0] if isinstance(where, str) and ":" in text.partition("/")[0] else ""
    if scheme in ("etcd", "etcdv3", "http", "https"):
        raise NotSupported(f'datastore "{text}": etcd is not supported by this version; use sqlite:PATH')
    if scheme in ("kubernetes", "k8s"):
        raise NotSupported(f'datastore "{text}": the Kubernetes API is not supported by this version; use sqlite:PATH')
    if scheme not in ("", "sqlite"):
        raise ConfigError(f'"{text}" is not a datastore; write sqlite:PATH, a path, or memory:')
    path = text.removeprefix("sqlite:")
    if path.startswith("//"):
        path = path.removeprefix("//")
    if not path:
        raise ConfigError("a datastore is needed; write sqlite:PATH, a path, or memory:")
    from tortie.store.sqlite import SqliteStore

    return SqliteStore(path)
