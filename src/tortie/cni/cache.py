"""What a runtime remembers of each attachment it made, in libcni's files, so that either can delete the other's.

    <directory>/results/<network>-<container>-<interface>     {"kind": "cniCacheV1", "config": <base64>, "result": ...}

The parts of a name are checked before they come here (`spec.check_*`), so a name never leaves the directory.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tortie.cni.spec import CniError, compact_json, member, read_json

KIND = "cniCacheV1"  # libcni/api.go writes no other
DEFAULT_DIRECTORY = Path("/var/lib/cni")


@dataclass(frozen=True, slots=True)
class Attachment:
    """One interface of one container in one network. `capability_args` are values offered to plugins by capability."""

    network: str
    container_id: str
    ifname: str
    netns: str = ""
    args: Mapping[str, str] = field(default_factory=dict)
    capability_args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """What GC knows an attachment by inside its network."""
        return self.container_id, self.ifname


@dataclass(frozen=True, slots=True)
class Entry:
    """An attachment with the configuration it was made from and the last plugin's result."""

    attachment: Attachment
    config: bytes
    result: Mapping[str, Any] | None


class Cache:
    """The files. Nothing is kept in memory: the runtime may be another process each time."""

    def __init__(self, directory: Path = DEFAULT_DIRECTORY) -> None:
        self.results = directory / "results"

    def path(self, attachment: Attachment) -> Path:
        return self.results / f"{attachment.network}-{attachment.container_id}-{attachment.ifname}"

    def put(self, entry: Entry) -> None:
        """Replace the entry at once and whole. Raises OSError."""
        self.results.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp makes the file 0600; the leading dot keeps it from looking like an entry.
        handle, temporary = tempfile.mkstemp(dir=self.results, prefix=".")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(_encode(entry))
            os.replace(temporary, self.path(entry.attachment))
        except BaseException:
            os.unlink(temporary)
            raise

    def get(self, attachment: Attachment) -> Entry | None:
        """The entry, or None when there is none. Raises ValueError when it is not one."""
        try:
            return _decode(self.path(attachment).read_bytes(), attachment)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(f"{self.path(attachment)}: {error.strerror}") from None

    def drop(self, attachment: Attachment) -> None:
        self.path(attachment).unlink(missing_ok=True)

    def of_network(self, network: str) -> Iterator[Entry]:
        """The network's entries in order of file names. Files that are no entries are passed over, as libcni does."""
        for path in sorted(self.results.glob(f"{network}-*")):
            try:
                entry = _decode(path.read_bytes(), None)
            except (OSError, ValueError):
                continue
            if entry.attachment.network == network:  # and not that of a network "<network>-x"
                yield entry


def _encode(entry: Entry) -> str:
    attachment = entry.attachment
    doc: dict[str, Any] = {
        "kind": KIND,
        "containerId": attachment.container_id,
        "config": base64.b64encode(entry.config).decode(),
        "ifName": attachment.ifname,
        "networkName": attachment.network,
    }
    optional = {
        "netns": attachment.netns,
        "cniArgs": [list(pair) for pair in attachment.args.items()],
        "capabilityArgs": dict(attachment.capability_args),
        "result": entry.result,
    }
    return compact_json(doc | {key: value for key, value in optional.items() if value})


def _decode(data: bytes, asked: Attachment | None) -> Entry:
    """`asked` is what the file's name says, needed for the oldest format, which holds the result and nothing else."""
    doc = read_json(data)
    if not isinstance(doc, dict):
        raise ValueError("a cached result must be a JSON object")
    if "kind" not in doc:
        if asked is None:
            raise ValueError("a cached result without its attachment")
        return Entry(asked, b"{}", doc)
    if doc["kind"] != KIND:
        raise ValueError(f'a cached result of kind "{doc["kind"]}"; only {KIND} is known')
    try:
        return _entry(doc)
    except (CniError, TypeError, ValueError) as error:
        raise ValueError(f"not a cached result: {error}") from None


def _entry(doc: Mapping[str, Any]) -> Entry:
    attachment = Attachment(
        network=member(doc, "networkName", str, ""),
        container_id=member(doc, "containerId", str, ""),
        ifname=member(doc, "ifName", str, ""),
        netns=member(doc, "netns", str, ""),
        args=dict(member(doc, "cniArgs", list, [])),
        capability_args=member(doc, "capabilityArgs", dict, {}),
    )
    config = base64.b64decode(member(doc, "config", str, ""), validate=True)
    return Entry(attachment, config, member(doc, "result", dict, {}) or None)
