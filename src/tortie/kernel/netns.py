"""Network namespaces: named ones as `ip netns` keeps them, and doing things inside another one.

A name is a file in /run/netns onto which the namespace is mounted; that keeps it alive without a process. Which
namespace a thread is in is the thread's own affair: nothing here ever leaves the calling thread elsewhere than it was.
"""

from __future__ import annotations

import errno
import os
import sys
from fcntl import LOCK_EX, flock, ioctl

from tortie.base.errors import ConfigError, Exists, KernelError, NotFound

TYPE_CHECKING = False  # as in netlink.codec
if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

DIRECTORY = "/run/netns"
OWN = "/proc/thread-self/ns/net"

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h: the CLONE_NEW* flag of a namespace's descriptor
_MS_BIND, _MS_REC, _MS_SHARED = 1 << 12, 1 << 14, 1 << 20  # linux/mount.h
_MNT_DETACH = 2  # sys/mount.h


# --- system calls that Python 3.11 lacks --------------------------------------------------------------------------


_loaded: dict[str, Any] = {}
"""What of libc was used once: `libc`, and the function `setns`."""


def _libc() -> ctypes.CDLL:
    import ctypes  # 8 ms that most callers do not need

    if "libc" not in _loaded:
        _loaded["libc"] = ctypes.CDLL(None, use_errno=True)
    libc: ctypes.CDLL = _loaded["libc"]
    return libc


def _call(name: str, *arguments: int | bytes | None) -> None:
    """A libc function that answers -1 and errno. Raises OSError."""
    import ctypes

    words = [ctypes.c_ulong(word) if isinstance(word, int) else word for word in arguments]
    if getattr(_libc(), name)(*words) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def set_ns(fd: int, kind: int = _CLONE_NEWNET) -> None:
    """setns(2) of the calling thread. Raises OSError. Whoever wants to come back uses `entered`."""
    if sys.version_info >= (3, 12):
        os.setns(fd, kind)
    else:
        _setns_of_libc(fd, kind)


def _setns_of_libc(fd: int, kind: int) -> None:
    """Plugins come here, so it does without `ctypes`, whose C part has all that it takes."""
    import _ctypes

    if "setns" not in _loaded:

        class Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
            _type_ = "i"

        class Function(_ctypes.CFuncPtr):
            _flags_ = 0x1 | 0x8  # FUNCFLAG_CDECL, FUNCFLAG_USE_ERRNO
            _restype_ = Int

        _loaded["setns"] = Function(_ctypes.dlsym(_ctypes.dlopen(None, 0), "setns"))  # type: ignore[arg-type]
    if _loaded["setns"](fd, kind) == -1:
        code = _ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _mount(source: str, target: str, flags: int) -> None:
    _call("mount", os.fsencode(source), os.fsencode(target), b"none", flags, None)


def _magic(fd: int) -> int:
    """The kind of file system a descriptor is on: statfs(2) f_type, its first field on every Linux."""
    import ctypes

    room = (ctypes.c_long * 64)()  # struct statfs has 120 bytes
    _libc().fstatfs(fd, ctypes.byref(room))
    return int(room[0]) & 0xFFFFFFFF


# --- one namespace ------------------------------------------------------------------------------------------------


def open_ns(path: str) -> int:
    """A descriptor of the network namespace at `path`; the caller closes it.

    Raises NotFound when there is nothing, ConfigError when it is something else.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO there must not stop us
    except (FileNotFoundError, ProcessLookupError):
        raise NotFound(f'network namespace "{path}" does not exist') from None
    except OSError as why:
        raise KernelError(why.errno or errno.EIO, f"open {path}") from None
    try:
        kind = ioctl(fd, _NS_GET_NSTYPE)
    except OSError:
        magic = _magic(fd)
        os.close(fd)
        raise ConfigError(f'unknown FS magic on "{path}": {magic:x}') from None
    if kind != _CLONE_NEWNET:
        os.close(fd)
        raise ConfigError(f'"{path}" is a namespace, but not a network namespace')
    return fd


class entered:
    """The calling thread is in the namespace (path or descriptor) inside the `with`, and back outside, come what may.

    Only this thread: sockets it opens, links it lists and /proc/sys/net are the namespace's. Do not `await` inside.
    None is where the thread is already.
    """

    __slots__ = ("_home", "_where")

    def __init__(self, where: str | int | None) -> None:
        self._where = where
        self._home = -1

    def __enter__(self) -> None:
        if self._where is None:
            return
        home = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(self._where)
        except BaseException:
            os.close(home)
            raise
        self._home = home

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._home < 0:
            return
        try:
            set_ns(self._home)  # with CAP_SYS_ADMIN, without which we had not come here, this cannot fail
        finally:
            os.close(self._home)
            self._home = -1


def _enter(where: str | int) -> None:
    fd = open_ns(where) if isinstance(where, str) else where
    try:
        set_ns(fd)
    except OSError as why:
        raise KernelError(why.errno or errno.EIO, f"enter network namespace {where}") from None
    finally:
        if isinstance(where, str):
            os.close(fd)


def inode(path: str = OWN) -> int:
    """What identifies a network namespace among all that exist: two paths of one namespace have the same."""
    fd = open_ns(path)
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def is_same_as_self(path: str) -> bool:
    """Whether `path` is the namespace the calling thread is in; no, if there is nothing there."""
    try:
        return os.path.samestat(os.stat(path), os.stat(OWN))
    except OSError:
        return False


def pids_in(path: str) -> list[int]:
    """The processes in a network namespace, in ascending order."""
    wanted = inode(path)
    found: list[int] = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                theirs = os.stat(f"/proc/{entry}/ns/net").st_ino
            except OSError:  # gone meanwhile, or a kernel thread of which we may not know
                continue
            if theirs == wanted:
                found.append(int(entry))
    return sorted(found)


# --- named namespaces ---------------------------------------------------------------------------------------------


def path(name: str) -> str:
    """Where a named namespace is, whether it exists or not. Raises ConfigError for what cannot be a name."""
    if not name or name in (".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > 255:
        raise ConfigError(f'"{name}" cannot be the name of a network namespace')
    return f"{DIRECTORY}/{name}"


def list_names() -> list[str]:
    """The names there are, sorted."""
    try:
        return sorted(os.listdir(DIRECTORY))
    except FileNotFoundError:
        return []


def create(name: str) -> str:
    """`ip netns add NAME`; its path. Loopback is down. Raises Exists."""
    target = path(name)
    doing = f"ip netns add {name}"
    try:
        _share_directory()
        os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    except FileExistsError:
        raise Exists(f"{doing}: {target} exists") from None
    except OSError as why:
        raise KernelError(why.errno or errno.EIO, doing) from None

    def unshare_and_mount() -> None:
        _call("unshare", _CLONE_NEWNET)
        _mount(OWN, target, _MS_BIND)

    try:
        _in_thread_of_its_own(unshare_and_mount)
    except OSError as why:
        os.unlink(target)
        raise KernelError(why.errno or errno.EIO, doing) from None
    return target


def delete(name: str) -> None:
    """`ip netns delete NAME`. What does not exist is deleted. Processes inside keep the namespace, without its name."""
    target = path(name)
    try:
        _call("umount2", os.fsencode(target), _MNT_DETACH)
    except OSError as why:
        if why.errno not in (errno.ENOENT, errno.EINVAL):  # EINVAL: nothing is mounted there
            raise KernelError(why.errno or errno.EIO, f"ip netns delete {name}") from None
    try:
        os.unlink(target)
    except FileNotFoundError:
        pass
    except OSError as why:
        raise KernelError(why.errno or errno.EIO, f"ip netns delete {name}") from None


def apart(action: Callable[[], None]) -> None:
    """Runs it in a fresh namespace without a name, which goes with everything in it when it is done."""

    def unshare_and_act() -> None:
        _call("unshare", _CLONE_NEWNET)
        action()

    _in_thread_of_its_own(unshare_and_act)


def _share_directory() -> None:
    """Makes /run/netns a shared mount, as `ip netns add` does, so that names come and go in every mount namespace.

    Under a lock, as `ip` does it too, or two at once would mount it twice.
    """
    os.makedirs(DIRECTORY, mode=0o755, exist_ok=True)
    fd = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flock(fd, LOCK_EX)
        try:
            _mount("", DIRECTORY, _MS_SHARED | _MS_REC)
        except OSError as why:
            if why.errno != errno.EINVAL:  # EINVAL: not a mount point yet
                raise
            _mount(DIRECTORY, DIRECTORY, _MS_BIND | _MS_REC)
            _mount("", DIRECTORY, _MS_SHARED | _MS_REC)
    finally:
        os.close(fd)


def _in_thread_of_its_own(action: Callable[[], None]) -> None:
    """Runs it in a thread that ends with it, taking along whatever namespace it is in by then."""
    import threading  # 5 ms, as above

    failures: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as why:
            failures.append(why)

    thread = threading.Thread(target=run, name="new-netns")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
