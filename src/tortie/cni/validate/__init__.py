"""What is wrong in network configurations, told before anything is attached: pure, texts in, findings out.

    text ──text.parse──► values and where each stands ──fields.walk(tables)──► keys, types, ranges    one field alone
                                                      ──plugins, addresses───► what contradicts       one plugin
                                                      ──chain────────────────► what cannot follow     one network
    several files ─────────────────────────────────────nodes─────────────────► ranges that overlap    several nodes

`tables` has a table for each type of plugin: its fields with JSON type, range and default.
"""

from __future__ import annotations

from tortie.cni.validate.findings import ERROR, WARNING, Finding
from tortie.cni.validate.network import Machine, validate

__all__ = ["ERROR", "WARNING", "Finding", "Machine", "validate"]
