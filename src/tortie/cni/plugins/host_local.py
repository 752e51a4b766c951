"""host-local: addresses from ranges of this host, kept in a directory of files, one for each address.

    <dataDir>/<network>/10.1.2.2              whose it is: `<container>\\r\\n<interface>`
                        last_reserved_ip.0    where to go on from in range set 0
                        lock                  held (flock) by whoever reads or writes here
                        .boot                 ours: under which boot of the machine the last ADD was

Fields of `ipam` (cni/ranges.py reads the ranges): `ranges`, or `subnet`, `rangeStart`, `rangeEnd`, `gateway` for one;
`routes`, `dataDir`, `resolvConf`, and `reclaim` (ours, true): whether what was reserved before the machine was rebooted
is free again. The files are those of Go's host-local, which may use the directory at the same time. Allocating costs by
what is reserved, never by how large a range is.

Source: plugins/ipam/host-local of the CNI reference plugins.
"""

from __future__ import annotations

import errno
import os
import stat
from fcntl import LOCK_EX, flock

from tortie.cni.attachments import valid_attachments
from tortie.cni.ipam import failed, read_resolv_conf, reason, routes, section, wished
from tortie.cni.plugin import Plugin, Undo
from tortie.cni.ranges import Range, RangeSet, next_free, range_of, read_sets, shown
from tortie.cni.result import Address, Dns, Result
from tortie.cni.span import Ip, ip, ip_or_cidr, is_ip
from tortie.cni.spec import Call, CniError, Code, load_args, member, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any

DATA_DIR = "/var/lib/cni/networks"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
BOOT_MARK = b"boot "
LOCAL = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "jfs", "overlay", "tmpfs", "ramfs")
"""File systems that no other machine writes to: only there does a reboot of this one tell anything."""
NOBODY = b"?"
LONGEST = 4096
"""How much of a file is read: identifiers of containers and names of interfaces are far shorter."""


# --- what is asked for --------------------------------------------------------------------------------------------


def requested(call: Call) -> list[Ip]:
    """The addresses asked for by name: CNI_ARGS, then `args.cni.ips`, then `runtimeConfig.ips`. Raises CniError."""
    found: list[Ip] = []
    text = load_args(call.args_text, ("IP",)).get("IP", "")
    if text:
        try:
            found.append(ip_or_cidr(text)[0])
        except ValueError:
            why = f"error parsing value of pair {quote(f'IP={text}')}: invalid IP address {text}"
            raise failed(f"ARGS: {why}") from None
    for text in (each for some in wished(call) for each in some):
        try:
            found.append(ip_or_cidr(text)[0])
        except ValueError:
            raise failed(f"invalid IP address {text}") from None
    return list(dict.fromkeys(found))


# --- the directory ------------------------------------------------------------------------------------------------


class Directory:
    """A network's directory, locked. Every error of the file system is a CniError that says what was being done."""

    __slots__ = ("lock", "path")

    def __init__(self, path: str, lock: int) -> None:
        self.path = path
        self.lock = lock

    def __enter__(self) -> Directory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.lock)

    def names(self) -> list[str]:
        """The addresses that have a file."""
        return [name for name in self._listed() if is_ip(name)]

    def owners(self) -> dict[str, bytes]:
        """Whose the addresses are: the content of their files, b"" for a file that says nothing.

        Such a file is what a plugin left that was killed between making and writing it: nobody writes here now, the
        lock is ours. What is no file, and what cannot be read, is somebody's, but of nobody we know.
        """
        return {name: self.owner(name) for name in self.names()}

    def owner(self, name: str) -> bytes:
        return self._read(name, NOBODY).strip(b" \t\r\n\v\f\0")

    def _listed(self) -> list[str]:
        try:
            return os.listdir(self.path)
        except OSError as error:
            raise _io("list", self.path, error) from None

    def _read(self, name: str, instead: bytes) -> bytes:
        """`instead` when there is nothing that can be read. O_NONBLOCK: a pipe must not stop us."""
        try:
            fd = os.open(f"{self.path}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return instead
        try:
            return os.read(fd, LONGEST) or (b"" if stat.S_ISREG(os.fstat(fd).st_mode) else instead)
        except OSError:
            return instead
        finally:
            os.close(fd)

    def reserve(self, address: str, owner: bytes) -> bool:
        """Makes the address's file; False if there is one with an owner. Nothing is left when it cannot be written."""
        path = f"{self.path}/{address}"
        for _ in range(2):
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                break
            except FileExistsError:
                if self.owner(address):
                    return False
                self.remove(address)
            except OSError as error:
                raise _io("create", path, error) from None
        else:
            return False
        self._fill(fd, path, owner, keep=False)
        return True

    def last_reserved(self, index: int) -> Ip | None:
        try:
            return ip(self._read(f"last_reserved_ip.{index}", b"").decode("ascii", "replace"))
        except ValueError:
            return None

    def remember(self, index: int, address: str) -> None:
        """Where the next search in this range set goes on from."""
        self._write(f"last_reserved_ip.{index}", address.encode())

    def _write(self, name: str, content: bytes) -> None:
        path = f"{self.path}/{name}"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _io("write", path, error) from None
        self._fill(fd, path, content, keep=True)

    def _fill(self, fd: int, path: str, content: bytes, *, keep: bool) -> None:
        try:
            if os.write(fd, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not keep:
                os.unlink(path)
            raise _io("write", path, error) from None
        finally:
            os.close(fd)

    def remove(self, name: str) -> None:
        """Makes the address free. One that is free already is."""
        try:
            os.unlink(f"{self.path}/{name}")
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _io("remove", f"{self.path}/{name}", error) from None

    def owned_by(self, container: str, ifname: str) -> list[str]:
        """The addresses of an attachment; of files that name no interface, as were written long ago, if no others."""
        owners = self.owners()
        for wanted in (_owner(container, ifname), container.encode()):
            found = [name for name, owner in owners.items() if owner == wanted]
            if found:
                return found
        return []

    # A reboot takes all containers with it, and nobody calls DEL for them.

    def forget_former_boot(self) -> None:
        """Makes free what was reserved before the machine was rebooted.

        Only what is older than the last ADD under the former boot, and than this boot: Go's host-local may have been
        here first, and writes no `.boot`. On a file system that other machines share nothing is made free.
        """
        this, before = _boot(), self._read(".boot", b"")
        if this and before != this and before.startswith(BOOT_MARK) and self._is_local():
            latest = min(self._modified(".boot"), _boot_began())
            for name in self.names():
                if self._modified(name) <= latest:
                    self.remove(name)

    def note_boot(self) -> None:
        """Remembers that until now addresses were reserved under this boot. Nothing depends on its being possible."""
        this = _boot()
        try:
            if self._read(".boot", b"") == this:
                os.utime(f"{self.path}/.boot")
            else:
                self._write(".boot", this)
        except (CniError, OSError):
            pass

    def _modified(self, name: str) -> int:
        """In nanoseconds since 1970."""
        try:
            return os.lstat(f"{self.path}/{name}").st_mtime_ns
        except OSError:
            return 1 << 63

    def _is_local(self) -> bool:
        """Of the mount that the lock is on: the device of a file is not always that of its mount (btrfs)."""
        try:
            with open(f"/proc/self/fdinfo/{self.lock}", encoding="ascii") as file:
                mount = next(line.split()[1] for line in file if line.startswith("mnt_id:"))
            with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
                words = next(line.split() for line in file if line.startswith(f"{mount} "))
            return words[words.index("-") + 1] in LOCAL  # proc(5): behind optional fields and a hyphen
        except (OSError, StopIteration, ValueError):
            return False


def _owner(container: str, ifname: str) -> bytes:
    return f"{container}\r\n{ifname}".encode("utf-8", "surrogateescape").strip()


def _boot() -> bytes:
    """What `.boot` holds under this boot, b"" if the kernel does not say which it is."""
    try:
        with open(BOOT_ID, "rb") as file:
            return BOOT_MARK + file.readline().strip()
    except OSError:
        return b""


def _boot_began() -> int:
    """When the machine was booted, as far as its clock is right: in nanoseconds since 1970."""
    import time

    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _io(doing: str, path: str, error: OSError) -> CniError:
    return CniError(Code.IO_FAILURE, f"cannot {doing} {path}: {reason(error)}")


def directory_of(call: Call, ipam: Mapping[str, Any]) -> str:
    return f"{member(ipam, 'dataDir', str, '') or DATA_DIR}/{call.network}"


def opened(path: str) -> Directory:
    """The directory, made if it is not there, once nobody else is in it. Raises CniError."""
    try:
        os.makedirs(path, mode=0o755, exist_ok=True)
    except OSError as error:
        raise CniError(Code.IO_FAILURE, f"mkdir {path}: {reason(error)}") from None
    try:
        lock = os.open(f"{path}/lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o750)
        flock(lock, LOCK_EX)
    except OSError as error:
        raise _io("lock", f"{path}/lock", error) from None
    return Directory(path, lock)


# --- the verbs ----------------------------------------------------------------------------------------------------


def add(call: Call) -> Result:
    ipam = section(call)
    wishes = requested(call)
    sets = read_sets(call, ipam)
    through = routes(ipam)
    resolv_conf = member(ipam, "resolvConf", str, "")
    dns = read_resolv_conf(resolv_conf) if resolv_conf else Dns()
    reclaim = member(ipam, "reclaim", bool, True)
    ips: list[Address] = []
    with opened(directory_of(call, ipam)) as held, Undo() as undo:
        if reclaim:
            held.forget_former_boot()
        for i, ranges in enumerate(sets):
            wish = next((each for each in wishes if range_of(ranges, each)), None)
            try:
                one, address = allocate(held, call, i, ranges, wish)
                undo.then(held.remove, str(address))
                held.remember(i, str(address))
            except CniError as error:
                raise CniError(error.code, f"failed to allocate for range {i}: {error.msg}") from None
            ips.append(one.give(address))
            if wish is not None:
                wishes.remove(wish)
        if wishes:
            raise failed(f"failed to allocate all requested IPs: {' '.join(map(str, wishes))}")
        if reclaim:
            held.note_boot()
    return Result(ips=tuple(ips), routes=through, dns=dns)


def allocate(held: Directory, call: Call, index: int, ranges: RangeSet, wish: Ip | None) -> tuple[Range, Ip]:
    """Reserves one address of a set: the one wished for, else the next free one. Raises CniError."""
    owner = _owner(call.container_id, call.ifname)
    if wish is not None:
        one = range_of(ranges, wish)
        assert one is not None
        if wish == one.gateway:
            raise failed(f"requested ip {wish} is subnet's gateway")
        if not held.reserve(str(wish), owner):
            raise failed(f"requested IP address {wish} is not available in range set {shown(ranges)}")
        return one, wish
    owners = held.owners()
    for name, whose in owners.items():
        if whose in (owner, call.container_id.encode()) and range_of(ranges, ip(name)):
            raise failed(f"{name} has been allocated to {call.container_id}, duplicate allocation is not allowed")
    taken = {name for name, whose in owners.items() if whose}
    while found := next_free(ranges, taken, held.last_reserved(index)):
        if held.reserve(str(found[1]), owner):
            return found
        taken.add(str(found[1]))  # what has its name and is no address of ours, as a link to nowhere
    raise failed(f"no IP addresses available in range set: {shown(ranges)}")


def delete(call: Call) -> None:
    """Whatever else is in the configuration, and wrong: only where the files are matters."""
    path = directory_of(call, section(call))
    if os.path.isdir(path):
        with opened(path) as held:
            for name in held.owned_by(call.container_id, call.ifname):
                held.remove(name)


def check(call: Call) -> None:
    path = directory_of(call, section(call))
    if os.path.isdir(path):
        with opened(path) as held:
            if held.owned_by(call.container_id, call.ifname):
                return
    raise failed(f"host-local: Failed to find address added by container {call.container_id}")


def gc(call: Call) -> None:
    """Frees the addresses of all attachments but those listed, and those that a killed plugin left with no owner."""
    path = directory_of(call, section(call))
    attached = valid_attachments(call)
    valid = {_owner(*each) for each in attached} | {container.encode() for container, _ in attached}
    if os.path.isdir(path):
        with opened(path) as held:
            for name, owner in held.owners().items():
                if owner not in valid and owner != NOBODY:
                    held.remove(name)


def status(call: Call) -> None:
    """An ADD needs an address of every set, and room to write it down."""
    ipam = section(call)
    sets = read_sets(call, ipam)
    try:
        with opened(directory_of(call, ipam)) as held:
            if member(ipam, "reclaim", bool, True):
                held.forget_former_boot()
            room = os.statvfs(held.path)
            taken = [ip(name) for name, owner in held.owners().items() if owner]
    except CniError as error:
        raise CniError(Code.NOT_AVAILABLE, error.msg) from None
    if room.f_bavail == 0 or (room.f_files and room.f_favail == 0):
        raise CniError(Code.NOT_AVAILABLE, f"cannot write to {held.path}: no space left on device")
    for ranges in sets:
        used = sum(1 for each in taken if (one := range_of(ranges, each)) and each != one.gateway)
        if used >= sum(each.room for each in ranges):
            raise CniError(Code.NOT_AVAILABLE, f"no IP addresses available in range set: {shown(ranges)}")


PLUGIN = Plugin("host-local", add, delete, check, gc, status)
