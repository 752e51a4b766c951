"""tools/left: what a command leaves in the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

LEFT = Path(__file__).parents[2] / "tools" / "left"


def test_what_the_kernel_has_is_looked_at(tmp_path: Path) -> None:
    """In a network namespace and a mount namespace of its own, which end with the command."""
    inner = "ip link add tt0 type veth peer name tt1; ip rule add table 7; nft add table ip tt"
    inner += f"; mount -t tmpfs t {tmp_path}"
    words = ["unshare", "--net", "--mount", sys.executable, str(LEFT), "--", "sh", "-c", inner]
    environment = os.environ | {"LEFT_PATIENCE": "0"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    said = set(done.stderr.splitlines())
    links = {f"  ip -brief link: {name}" for name in ("tt0@tt1", "tt1@tt0")}
    assert links | {"  nft list tables: table ip tt", f"  mounted: {tmp_path}"} <= said
    assert any(line.startswith("  ip rule: ") and line.endswith("lookup 7") for line in said)
