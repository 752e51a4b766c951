"""What was found: how bad it is, where it stands, what is wrong and what would be right."""

from __future__ import annotations

from dataclasses import dataclass, field

from tortie.cni.validate.text import Document, Path, Place, folded

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """`error`: a plugin or a runtime refuses it, or it cannot do what it is for. `warning`: probably not meant.

    `line` and `column` are counted from 1; 0 for a finding about no line of the file. `path` is as in
    `plugins[0].ipam.subnet`.
    """

    severity: str
    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f":{self.line}:{self.column}" if self.line else ""
        return ": ".join(part for part in (f"{self.file}{place}", self.severity, self.path, self.message) if part)


@dataclass
class Report:
    """Takes findings about one file. What is missing is told at the place of what it is missing in."""

    file: str
    document: Document
    findings: list[Finding] = field(default_factory=list)

    def error(self, path: Path, message: str) -> None:
        self.findings.append(Finding(ERROR, self.file, *self._place(path), words(path), message))

    def warning(self, path: Path, message: str) -> None:
        self.findings.append(Finding(WARNING, self.file, *self._place(path), words(path), message))

    def _place(self, path: Path) -> Place:
        for length in range(len(path), 0, -1):
            place = self.document.places.get(folded(path[:length]))
            if place:
                return place
        return 1, 1


def words(path: Path) -> str:
    """A path as people write it.

    >>> words(("plugins", 0, "ipam", "ranges", 1, 0, "subnet"))
    'plugins[0].ipam.ranges[1][0].subnet'
    """
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
