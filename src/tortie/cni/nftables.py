"""nftables for the plugins: whole transactions in, what is there out, in the namespace that the plugin runs in.

Through nft's library in this process: 8 ms for a transaction and a listing, 4 of them to import ctypes, where starting
`nft` for both takes 20 and more. Without the library the program does it.

    change("inet", "cni_x", lambda there: deletions(there, lambda comment: comment == mine) + script)
"""

from __future__ import annotations

import errno
import os

from tortie.base.errors import KernelError, NotFound, NotSupported
from tortie.cni.spec import read_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from tortie.kernel.libnftables import Context

    Listed = list[dict[str, Any]]

TRIES = 5
"""How often `change` decides anew when somebody else changed the table meanwhile."""

COMMENT_BYTES = 128
"""The longest comment of a rule that nft takes: NFTNL_UDATA_COMMENT_MAXLEN (libnftnl)."""

_contexts: dict[int, Context] = {}
"""By namespace (its inode). Kept open: closing one waits until the kernel has freed what was deleted through it."""


def apply(script: str) -> None:
    """Runs one transaction: all of it or nothing. Raises KernelError in nft's words, NotSupported without nft."""
    context = _context()
    complaint = None if context is None else context.refusal(script)
    if context is not None and complaint is None:
        return
    from tortie.kernel import nft

    try:
        nft.apply(script)  # what the library refuses, the program refuses, too, and says where
    except NotSupported:
        if complaint is None:
            raise
        raise _refused(complaint, "nft -f -") from None


def list_table(family: str, table: str) -> Listed:
    """What `nft -j list table` shows, as `{"rule": {...}}` and the like with their handles; [] when there is no table.

    Raises KernelError, NotSupported.
    """
    return _list(("list", "table", family, table))


def list_chain(family: str, table: str, chain: str) -> Listed:
    """The same for one chain of a table."""
    return _list(("list", "chain", family, table, chain))


def rules(listed: Listed) -> Listed:
    """The rules among what was listed, each with `chain`, `handle`, `expr` and perhaps `comment`."""
    return [item["rule"] for item in listed if "rule" in item]


def deletions(listed: Listed, matches: Callable[[str], bool]) -> str:
    """The lines that delete the rules whose comment matches."""
    return "".join(
        f"delete rule {rule['family']} {rule['table']} {rule['chain']} handle {rule['handle']}\n"
        for rule in rules(listed)
        if "comment" in rule and matches(rule["comment"])
    )


def delete_by_comment(family: str, table: str, matches: Callable[[str], bool]) -> None:
    """Deletes the rules of a table whose comment matches. A table that is not there has none."""
    change(family, table, lambda there: deletions(there, matches))


def change(family: str, table: str, decide: Callable[[Listed], str]) -> None:
    """Applies what is decided on a listing of the table, and decides anew if that is no longer what is there.

    An empty script changes nothing. Raises KernelError, NotSupported.
    """
    for tried in range(TRIES):
        script = decide(list_table(family, table))
        if not script:
            return
        try:
            return apply(script)
        except KernelError as why:
            if tried == TRIES - 1 or not _is_gone(why):
                raise


def quoted(text: str) -> str:
    """A comment or a name of an interface as nft reads it: in quotes, without quotes inside, at most 128 bytes."""
    bare = text.replace('"', "").replace("\n", " ").encode()[:COMMENT_BYTES]
    return f'"{bare.decode(errors="ignore")}"'


def _context() -> Context | None:
    """None where the library is not installed."""
    from tortie.kernel import libnftables

    library = libnftables.load()
    if library is None:
        return None
    namespace = os.stat("/proc/thread-self/ns/net").st_ino
    if namespace not in _contexts:
        _contexts[namespace] = libnftables.Context(library)
    return _contexts[namespace]


def _list(words: Sequence[str]) -> Listed:
    context = _context()
    if context is None:
        from tortie.kernel import nft

        try:
            return nft.list_json(words)
        except NotFound:
            return []
    said, complaint = context.listing(" ".join(words))
    if complaint is None:
        try:
            listed: Listed = read_json(said)["nftables"] if said.strip() else []
        except ValueError:
            raise KernelError(errno.EPROTO, f"nft {' '.join(words)}", "its JSON cannot be read") from None
        return listed
    why = _refused(complaint, f"nft {' '.join(words)}")
    if why.errno == errno.ENOENT:
        return []
    raise why


def _refused(complaint: str, doing: str) -> KernelError:
    """nft's complaint in its own words. The line that it shows is always the first one, whatever it is about."""
    first = complaint.partition("\n")[0]
    text = first.partition("Error: ")[2] or first or "no message"
    code = next((each for each in (errno.ENOENT, errno.EPERM) if os.strerror(each) in text), errno.EINVAL)
    return KernelError(code, doing, text)


def _is_gone(why: KernelError) -> bool:
    """Whether something that a transaction names is gone, or was just being changed."""
    return any(os.strerror(each) in str(why) for each in (errno.ENOENT, errno.EBUSY, errno.EINTR))
