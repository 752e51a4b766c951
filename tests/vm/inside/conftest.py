"""Fixtures of the tests in a guest."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from namespaces import make_ns, ns

__all__ = ["make_ns", "ns"]


@pytest.fixture(scope="module", autouse=True)
def no_tunnel_in_every_namespace() -> Iterator[None]:
    """Once ipip is loaded, each new namespace has a tunl0, which the next file does not expect."""
    yield
    if Path("/sys/module/ipip").exists():
        subprocess.run(["modprobe", "-r", "ipip"], check=True, timeout=60)
