"""nft's own library in this process: a transaction takes 1 ms where starting `nft` for it takes 6.

Most of those are the start of a process, and, when something is deleted, the kernel's waiting at the end of it: closing
a socket to nf_tables waits until what was deleted is free. So a context, which has the socket, is kept open.
Source: libnftables(3). The library runs nft's language; whether it is there is the machine's affair, see `load`.
"""

from __future__ import annotations

import ctypes
import weakref

LIBRARY = "libnftables.so.1"
DEFAULT = 0  # NFT_CTX_DEFAULT (nftables/libnftables.h)
HANDLES_AND_JSON = 1 << 3 | 1 << 4  # NFT_CTX_OUTPUT_HANDLE, NFT_CTX_OUTPUT_JSON

_loaded: list[ctypes.CDLL | None] = []


class Context:
    """Runs scripts in the network namespace that the calling thread is in when this is made.

    For one thread at a time. It lets go of the namespace when it is collected.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._context = library.nft_ctx_new(DEFAULT)
        if not self._context:
            raise MemoryError("nft_ctx_new")
        library.nft_ctx_buffer_output(self._context)  # else it writes to our standard output and error
        library.nft_ctx_buffer_error(self._context)
        # Not at the end of the process: another thread may be in the middle of `run`.
        weakref.finalize(self, library.nft_ctx_free, self._context).atexit = False

    def run(self, script: str) -> bool:
        """One transaction: all of it or nothing. False when it was refused; its words for that name no line."""
        complaint = self.refusal(script)
        if complaint is None:
            return True
        import logging  # takes longer to import than a transaction takes

        logging.getLogger(__name__).debug("%s refuses a transaction: %s", LIBRARY, complaint)
        return False

    def refusal(self, script: str) -> str | None:
        """The same, with the library's words for why it was refused; None when it was not."""
        if self._library.nft_run_cmd_from_buffer(self._context, script.encode()) == 0:
            return None
        complaint: bytes = self._library.nft_ctx_get_error_buffer(self._context)  # asking also empties the buffer
        return complaint.decode(errors="replace").strip()

    def listing(self, words: str) -> tuple[bytes, str | None]:
        """What `nft -j -a WORDS` prints, and why it was refused, if it was."""
        self._library.nft_ctx_output_set_flags(self._context, HANDLES_AND_JSON)
        complaint = self.refusal(words)
        said: bytes = self._library.nft_ctx_get_output_buffer(self._context)  # asking also empties the buffer
        self._library.nft_ctx_output_set_flags(self._context, 0)
        return said, complaint


def load() -> ctypes.CDLL | None:
    """The library, or None where it is not installed."""
    if not _loaded:
        _loaded.append(_load())
    return _loaded[0]


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_new.restype = ctypes.c_void_p
    for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_ctx_output_set_flags.restype = None
    for name in ("nft_ctx_get_error_buffer", "nft_ctx_get_output_buffer"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_char_p
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.nft_run_cmd_from_buffer.restype = ctypes.c_int
    return library
