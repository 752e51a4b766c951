"""What the udp backend is made of, besides its decisions: a TUN device, and a proxy between it and a UDP socket.

    daemon ─ proxy.py ──stdin: tables; counters──► proxy (C): TUN device ◄─► UDP socket ◄─► the proxies of other nodes
               │ tun.py: the device, which stays when nobody reads it
               └ build.py: the program, compiled before or now

`packet.py` is what the proxy does with a packet, in Python: the C sources are held against it in tests.
"""
