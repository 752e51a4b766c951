"""rtnetlink: the wire format without a socket (`codec`, `tables`), and the socket that carries it (`socket`).

Imported on the path of every pod start: nothing here imports more than the C parts of `struct` and `socket`.
"""

from tortie.kernel.netlink.socket import Netlink, Request

__all__ = ["Netlink", "Request"]
