"""iptables' own programs, for rules that only they see."""

from __future__ import annotations

import errno
import subprocess

from tortie.base.errors import KernelError, NotSupported


def run(command: list[str], given: str = "", seconds: float = 120.0) -> str:
    """What a program prints. Raises KernelError, also after so many seconds, and NotSupported where it is not there."""
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=seconds, check=False)
    except FileNotFoundError:
        raise NotSupported(f"{command[0]} is not installed: apt-get install iptables, or reboot the node") from None
    except subprocess.TimeoutExpired:
        raise KernelError(errno.ETIMEDOUT, " ".join(command)) from None
    if done.returncode != 0:
        raise KernelError(errno.EIO, " ".join(command), (done.stderr.strip().splitlines() or ["no message"])[0])
    return done.stdout
