"""Kernel settings under /proc/sys, named by path: `net/ipv4/conf/cali1/proxy_arp`.

Paths have slashes, so a link named `eth0.100` needs no care. Those under net/ are the calling thread's namespace's, or
that of `netns`.
"""

from __future__ import annotations

import errno

from tortie.base.errors import ConfigError, KernelError
from tortie.kernel.netns import entered

ROOT = "/proc/sys"


def read(path: str, *, netns: str | int | None = None) -> str:
    """The value, without the newline. Raises KernelError; ENOENT when this kernel or link does not have it."""
    file = _file(path)
    try:
        with entered(netns), open(file, encoding="utf-8") as lines:
            return lines.read().rstrip("\n")
    except OSError as why:
        raise _refused(why, f"sysctl {path}") from None


def write(path: str, value: str | int, *, netns: str | int | None = None) -> None:
    """Sets the value. Raises KernelError; ENOENT when kernel or link do not have it, EROFS in some containers."""
    file = _file(path)
    try:
        # Unbuffered: the kernel takes a value from one write(2), and says there, not on closing, what it thinks of it.
        with entered(netns), open(file, "wb", buffering=0) as setting:
            setting.write(f"{value}\n".encode())
    except OSError as why:
        raise _refused(why, f"sysctl -w {path}={value}") from None


def _file(path: str) -> str:
    parts = path.split("/")
    if len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
        raise ConfigError(f'"{path}" is not a sysctl such as net/ipv4/ip_forward')
    return f"{ROOT}/{path}"


def _refused(why: OSError, doing: str) -> KernelError:
    return why if isinstance(why, KernelError) else KernelError(why.errno or errno.EIO, doing)
