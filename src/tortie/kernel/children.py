"""The links that are made on top of one link (ipvlan, macvlan), in whatever network namespace they are by now.

The kernel does not tell a parent's children once they are in other namespaces, so these are looked through: all that a
mount or a process of this machine holds, the calling thread's own first.
"""

from __future__ import annotations

import os

from tortie.base.errors import KernelError, TortieError
from tortie.kernel import addresses, links, netns
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import NSID, RTM_GETNSID, RTM_NEWNSID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_FIRST = "net:["
"""What the root of a mounted network namespace begins with, in mountinfo, and what its link in /proc says."""


def children(nl: Netlink, parent: int, kind: str, *, elsewhere: bool = True) -> Iterator[links.Link]:
    """Those of a kind on the link with this index, one namespace after the other.

    `nl` is of the thread's namespace, if it is to be looked `elsewhere`, too. What goes meanwhile is passed over.
    """
    for link, _ in _found(nl, parent, kind, elsewhere):
        yield link


def held(nl: Netlink, parent: int, kind: str) -> set[str]:
    """The addresses of all these children, without prefix lengths."""
    found: set[str] = set()
    for link, there in _found(nl, parent, kind):
        found.update(each.ip.partition("/")[0] for each in addresses.list_addresses(there, link.index))
    return found


def _found(nl: Netlink, parent: int, kind: str, elsewhere: bool = True) -> Iterator[tuple[links.Link, Netlink]]:
    for link in links.list_links(nl, kind=kind):
        if link.parent == parent and link.peer_netns is None:
            yield link, nl
    if not elsewhere:
        return
    home = os.open(netns.OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        own = os.fstat(home).st_ino
        for path in _others(own):
            try:
                yield from _within(path, home, parent, kind)
            except TortieError:
                continue  # it went, or is none of ours to look into
    finally:
        os.close(home)


def _within(path: str, home: int, parent: int, kind: str) -> Iterator[tuple[links.Link, Netlink]]:
    fd = netns.open_ns(path)
    try:
        with Netlink(fd) as there:
            candidates = [each for each in links.list_links(there, kind=kind) if each.parent == parent]
            ours = _number(there, home) if candidates else None
            for link in candidates:
                if link.peer_netns is not None and link.peer_netns == ours:
                    yield link, there
    finally:
        os.close(fd)


def _number(there: Netlink, home: int) -> int | None:
    """What the other namespace calls ours; None when it knows no name for it, having no link to here."""
    for message in there.request(RTM_GETNSID, 0, NSID.pack({"fd": home}), "ip netns list-id"):
        if message.type == RTM_NEWNSID:
            number = NSID.unpack(message.payload).get("nsid", -1)
            return number if number >= 0 else None
    return None


def _others(own: int) -> Iterator[str]:
    """A path of each namespace but the one with this inode."""
    seen = {str(own)}
    for inode, path in (*_mounted(), *_of_processes()):
        if inode not in seen:
            seen.add(inode)
            yield path


def _mounted() -> Iterator[tuple[str, str]]:
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            words = line.split(" ", 5)  # id, parent, device, root, where (proc(5))
            if words[3].startswith(_FIRST):
                yield words[3][len(_FIRST) : -1], _plain(words[4])


def _of_processes() -> Iterator[tuple[str, str]]:
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            path = f"/proc/{entry}/ns/net"
            try:
                name = os.readlink(path)
            except OSError:
                continue  # gone meanwhile, or a kernel thread
            yield name[len(_FIRST) : -1], path


def _plain(path: str) -> str:
    """A path of mountinfo, which writes blanks and backslashes as octal numbers."""
    first, *rest = path.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


class Alone:
    """`with Alone():` keeps out all others in the same namespace that say so, too: plugins that make children.

    It is a lock on the namespace itself, which needs no file of ours and goes with the process.
    """

    __slots__ = ("_fd",)

    def __enter__(self) -> None:
        from fcntl import LOCK_EX, flock

        self._fd = os.open(netns.OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            flock(self._fd, LOCK_EX)
        except OSError as why:
            os.close(self._fd)
            raise KernelError(why.errno or 0, f"flock {netns.OWN}") from None

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
