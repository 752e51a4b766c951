"""What the udp backend's proxy would be if it were simply written: asyncio, one packet at a time. A peer in benchmarks.

python -m bench.naive_udp DEVICE SOCKET SUBNET=NODE...      descriptors: a TUN device, a UDP socket
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from ipaddress import IPv4Address, IPv4Network

PORT = 8285


def passed_on(packet: bytearray) -> bool:
    """One hop less; the checksum of the header is that of RFC 1141."""
    if packet[8] <= 1:
        return False
    packet[8] -= 1
    total = (packet[10] << 8 | packet[11]) + 0x100
    total = (total & 0xFFFF) + (total >> 16)
    packet[10], packet[11] = total >> 8, total & 0xFF
    return True


async def serve(device: int, udp: socket.socket, ways: dict[int, tuple[str, int]]) -> None:
    """Subnets are of 24 bits: a dictionary finds them."""
    loop = asyncio.get_running_loop()

    def leave() -> None:
        packet = bytearray(os.read(device, 65536))
        to = ways.get(int.from_bytes(packet[16:19], "big"))
        if to is not None and packet[0] >> 4 == 4 and passed_on(packet):
            udp.sendto(packet, to)

    def arrive() -> None:
        packet = bytearray(udp.recv(65536))
        if len(packet) >= 20 and packet[0] >> 4 == 4 and passed_on(packet):
            os.write(device, packet)

    loop.add_reader(device, leave)
    loop.add_reader(udp.fileno(), arrive)
    await asyncio.Event().wait()


def main() -> None:
    device, descriptor, *words = sys.argv[1:]
    pairs = (word.split("=") for word in words)
    ways = {int(IPv4Network(net).network_address) >> 8: (str(IPv4Address(node)), PORT) for net, node in pairs}
    with socket.socket(fileno=int(descriptor)) as udp:
        udp.setblocking(False)
        asyncio.run(serve(int(device), udp, ways))


if __name__ == "__main__":
    main()
