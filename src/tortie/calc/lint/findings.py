"""What a linter can find, by code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tortie.calc.lint.subjects import Subject

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")

CODES: dict[str, tuple[Severity, str]] = {
    "TL001": ("warning", "a rule that no packet reaches"),
    "TL002": ("warning", "a policy that selects nothing"),
    "TL003": ("warning", "a rule whose selector matches nothing"),
    "TL004": ("warning", "a policy that only logs, and thereby isolates"),
    "TL005": ("warning", "a policy that changes nothing, for an earlier one has decided"),
    "TL006": ("warning", "two policies whose names decide which comes first, and it matters"),
    "TL007": ("error", "a tier that does not exist"),
    "TL008": ("warning", "a port name that no pod declares"),
    "TL009": ("warning", "a direction that is closed without a rule about it"),
    "TL010": ("error", "rules in a direction that the policy is not about"),
    "TL011": ("info", "all() where anybody may be meant"),
    "TL012": ("warning", "a service that does not exist, or has nothing behind it"),
    "TL013": ("warning", "addresses of pods, written down"),
    "TL014": ("warning", "pods that may send, but not ask for names"),
    "TL015": ("info", "two peers where one with both conditions may be meant"),
    "TL016": ("error", "a selector that contradicts itself"),
    "TL017": ("warning", "an object that is written twice"),
    "TL018": ("info", "a part of an object that nobody acts on"),
}
"""Code -> severity, and what it is about."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in a document that probably is not what its author wants."""

    code: str
    severity: Severity
    source: str
    title: str
    path: str
    message: str
    hint: str = ""

    @property
    def where(self) -> str:
        return ": ".join(part for part in (self.source, self.title, self.path) if part)


def about(code: str, subject: Subject, path: str, message: str, hint: str = "") -> Finding:
    """A finding in a policy."""
    return Finding(code, CODES[code][0], subject.source, subject.resource.title, path, message, hint)
