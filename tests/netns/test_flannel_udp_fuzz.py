"""The udp backend's proxy on a million packets, many of them broken: it does what packet.py says, and nothing else.

Its program is built with the address and undefined behaviour sanitizers where the compiler has them, and is run on a
file of packets from both sides; every datagram, packet, ICMP message and counter that comes of them is compared.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from flannel_packets import (
    DETAILS,
    DROPS,
    HOSTS,
    LOCAL,
    TO,
    Answer,
    Batch,
    Maker,
    dump_batches,
    meant,
    repaired,
    replayed,
    tcp,
    udp,
)
from tortie.base.errors import NotSupported
from tortie.flannel.udp import build
from tortie.flannel.udp.packet import NEEDS_CSUM, PLAIN, VNET, ones_sum

PACKETS = 1_000_000
AT_ONCE = 25_000
SEED = int(os.environ.get("TORTIE_FUZZ_SEED", "20"))
"""Another one makes other packets."""
SANITIZED = ("-std=gnu11", "-O1", "-g", "-pthread", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("proxy")
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    try:
        made = build.build(directory, flags=SANITIZED)
        next(replayed(made, dump_batches([Batch([])]), directory))
    except (NotSupported, AssertionError) as error:
        print(f"without sanitizers: {error}")
        made = build.build(directory)
    return made


def agree(batch: Batch, made: Answer) -> bool:
    wanted = meant(batch)
    assert made.sent == wanted.sent, batch
    assert dict(made.written) == dict(wanted.written), batch
    assert made.told == wanted.told, batch
    assert made.counted == wanted.counted, batch
    return True


def one(program: Path, directory: Path, *records: tuple[str, bytes, int, bytes]) -> Answer:
    batch = Batch(list(records))
    (made,) = replayed(program, dump_batches([batch]), directory)
    assert agree(batch, made)
    return made


def test_a_million_packets_are_treated_as_they_are_meant_to_be(program: Path, tmp_path: Path) -> None:
    maker, done, seen = Maker(SEED), 0, Counter[str]()
    while done < PACKETS:
        batches = []
        until = done + AT_ONCE
        while done < until:
            batches.append(maker.batch())
            done += batches[-1].packets
        answers = list(replayed(program, dump_batches(batches), tmp_path))
        assert len(answers) == len(batches)
        for batch, made in zip(batches, answers, strict=True):
            agree(batch, made)
            seen.update(made.counted, sent=len(made.sent), told=len(made.told), written=len(made.written))
    print(dict(seen))
    rare = {name: count for name, count in seen.items() if count < PACKETS / 1000}
    assert not rare, "kinds of packets that hardly occurred"
    assert set(seen) == DROPS | {"sent", "told", "written"}


def test_more_pieces_than_there_is_room_for_at_once(program: Path, tmp_path: Path) -> None:
    """65,000 bytes in pieces of one byte; two nodes in turn, packet by packet."""
    large = tcp(bytes(60_000), LOCAL.packed, TO[0])
    made = one(program, tmp_path, ("L", bytes(4), 0, VNET.pack(NEEDS_CSUM, 1, 40, 1, 20, 16) + large))
    assert len(made.sent) == 60_000
    turns = [("L", bytes(4), 0, PLAIN + udp(b"x", LOCAL.packed, TO[n % 2])) for n in range(1000)]
    assert len(one(program, tmp_path, *turns).sent) == 1000


def test_a_checksum_of_zero_is_written_as_ones(program: Path, tmp_path: Path) -> None:
    """RFC 768: zero says that there is none. One of 65,536 payloads has it."""
    source = LOCAL.packed
    payload = next(p for n in range(1 << 16) if udp(p := n.to_bytes(2, "big"), source, TO[0])[26:28] == b"\xff\xff")
    packet = udp(payload, source, TO[0])
    whole = VNET.pack(NEEDS_CSUM, 5, 28, 2, 20, 6) + packet
    partial = ones_sum(packet[12:20] + b"\0\x11\0\x0a").to_bytes(2, "big")
    left = VNET.pack(NEEDS_CSUM, 0, 0, 0, 20, 6) + packet[:26] + partial + packet[28:]
    made = one(program, tmp_path, ("L", bytes(4), 0, whole), ("L", bytes(4), 0, left))
    assert [sent[26:28] for _, _, sent in made.sent] == [b"\xff\xff"] * 2


@pytest.mark.parametrize(("size", "count"), [(1400, 150), (10, 300)])
def test_more_of_a_connection_than_one_packet_may_stand_for(
    program: Path, tmp_path: Path, size: int, count: int
) -> None:
    """65,535 bytes, or 64 packets."""
    pieces = [
        tcp(bytes(size), TO[0], LOCAL.packed, sequence=1 + size * number, ident=number) for number in range(count)
    ]
    at_once = 60_000 // len(pieces[0])
    records = [("A", HOSTS[0], len(pieces[0]), b"".join(pieces[at : at + at_once])) for at in range(0, count, at_once)]
    (written,) = one(program, tmp_path, *records).written.values()
    assert len(written) == count
    source, target = tmp_path / "given", tmp_path / "made"
    assert source.stat().st_size > target.stat().st_size + (count // 2) * 40, "they were put together"


def test_a_detail_in_which_one_packet_differs_stays(program: Path, tmp_path: Path) -> None:
    """Packets that are put together come out as they were, whatever bit of the second of three is another one."""
    batches = []
    for make in (tcp, udp):
        for at in DETAILS:
            for bit in range(8):
                more = [{"sequence": 1 + 40 * n} if make is tcp else {} for n in range(3)]
                pieces = [make(bytes(40), TO[0], LOCAL.packed, ident=n, **each) for n, each in enumerate(more)]
                changed = bytearray(pieces[1])
                changed[at] ^= 1 << bit
                pieces[1] = repaired(bytes(changed))
                batches.append(Batch([("A", HOSTS[0], len(pieces[0]), b"".join(pieces))], 3))
    for batch, made in zip(batches, replayed(program, dump_batches(batches), tmp_path), strict=True):
        agree(batch, made)


def test_packets_of_many_connections_in_turn(program: Path, tmp_path: Path) -> None:
    """More than there are trains: order within each is kept."""
    pieces = [
        tcp(b"y" * 100, TO[0], LOCAL.packed, sequence=1 + 100 * turn, ident=turn, ports=bytes((9, port, 1, 1)))
        for turn in range(3)
        for port in range(20)
    ]
    made = one(program, tmp_path, ("A", HOSTS[0], len(pieces[0]), b"".join(pieces)))
    assert sorted(len(packets) for packets in made.written.values()) == [3] * 20
