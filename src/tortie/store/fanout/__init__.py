"""The datastore by way of a fan-out server (`tortie fanout`), for agents of large clusters.

    wire.py     what is said on a connection: frames and messages, no sockets
    tls.py      whose certificate counts, for both sides
    address.py  where servers are
    link.py     one connection, as the client has it
    servers.py  one connection after the other, to one of several servers
    client.py   a `Store`: lists and watches by way of a server, all else directly

The server is `tortie.fanout`.
"""
