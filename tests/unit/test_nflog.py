"""NFLOG's messages: bytes by hand from the kernel's headers, and garbage."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.kernel import nflog
from tortie.kernel.nflog import Logged, binding, decode


def bytes_of(text: str) -> bytes:
    """Hexadecimal bytes; what follows a # is for the reader."""
    return bytes.fromhex("".join(line.partition("#")[0] for line in text.splitlines()))


def little(length: int, number: int) -> bytes:
    return struct.pack("=HH", length, number)


def test_what_is_asked_of_the_kernel() -> None:
    assert binding(86) == b"".join(
        (
            bytes_of("00 00 0056                 # nfgenmsg: family, version, the group in network order"),
            *(little(5, 1), bytes_of("01 000000")),  # NFULNL_CFG_CMD_BIND
            *(little(10, 2), bytes_of("00000080 02 00 0000")),  # copy 128 bytes of each packet: NFULNL_COPY_PACKET
            *(little(8, 3), bytes_of("00008000")),  # 32 KiB
            *(little(8, 4), bytes_of("0000000a")),  # 100 ms
            *(little(8, 5), bytes_of("00000040")),  # 64 messages
            *(little(6, 6), bytes_of("0001 0000")),  # NFULNL_CFG_F_SEQ
        )
    )


HEAD = bytes_of("02 00 0056")
PACKET = little(8, 1) + bytes_of("0800 02 00")  # IPv4, NF_INET_FORWARD
MARK = little(8, 2) + bytes_of("f1234567")


def test_a_message_by_hand() -> None:
    message = b"".join(
        (
            *(HEAD, PACKET, little(6, 10), b"x\0\0\0", MARK),  # with a prefix, which nobody reads
            *(little(20, 3), struct.pack(">QQ", 1700000000, 250000)),
            *(little(8, 4), bytes_of("00000007"), little(8, 5), bytes_of("00000009")),
            *(little(9, 9), b"Ehead\0\0\0"),
            *(little(8, 12), bytes_of("0000002a")),
        )
    )
    assert decode(message) == (42, Logged("forward", 0xF1234567, 7, 9, b"Ehead", 1700000000.25))


def test_a_message_says_only_what_there_is() -> None:
    assert decode(HEAD) == (0, Logged("", 0, 0, 0, b"", None))
    assert decode(HEAD + little(8, 1) + bytes_of("0800 63 00"))[1].hook == ""


@pytest.mark.parametrize("message", [b"", HEAD[:3], HEAD + b"\x01", HEAD + little(4, 2), HEAD + little(90, 2)])
def test_a_message_that_is_cut_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match="bytes"):
        decode(message)


@given(st.binary(max_size=200))
def test_garbage_is_read_or_refused(message: bytes) -> None:
    try:
        number, logged = decode(message)
    except ValueError:
        return
    assert 0 <= number < 1 << 32
    assert logged.hook in ("", *nflog.HOOKS)
