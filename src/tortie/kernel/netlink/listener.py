"""A netlink socket that is only listened to.

For `loop.add_reader(listener.fileno(), ...)`: when it is readable, `read()` of who inherits gives what there is.
"""

from __future__ import annotations

import _socket as socket  # as in codec
import errno
import select
from collections.abc import Iterator
from typing import Self

from tortie.base.errors import KernelError

DATAGRAM = 1 << 16
"""Bytes that one may have."""
PER_READ = 256
"""Datagrams, so that one read does not keep an event loop for long."""


class Listener:
    """Listens until it is closed."""

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def waits(self) -> bool:
        """Whether there is anything to read, or to be told of what was lost."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def _waiting(self, doing: str, most: int = PER_READ) -> Iterator[tuple[bytes, int, bool]]:
        """The datagrams that wait, at most so many; never waits itself. With each the port of its sender, which is 0 of
        the kernel, and whether something was lost: of it, or of those before it. Raises KernelError with `doing`."""
        for _ in range(most):
            try:
                data, _, flags, (port, _) = self._socket.recvmsg(DATAGRAM)
            except BlockingIOError:
                return
            except OSError as why:
                if why.errno != errno.ENOBUFS:
                    raise KernelError(why.errno or errno.EIO, doing) from None
                yield b"", 0, True
            else:
                yield data, port, bool(flags & socket.MSG_TRUNC)
