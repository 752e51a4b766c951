"""What in policies is probably not meant: `lint` and its findings, each with a code.

subjects     the policies, with the place of every rule in its document
matches      selectors, named ports and services that find nothing
order        rules that can never match, policies in each other's shadow, ties
isolation    what isolates by surprise
"""

from __future__ import annotations

from tortie.calc.lint.findings import CODES, SEVERITIES, Finding, Severity
from tortie.calc.lint.report import lint

__all__ = ["CODES", "SEVERITIES", "Finding", "Severity", "lint"]
