"""An external dataplane to test with: VPP's part, played by the kernel. A gRPC server that really connects pods.

    with GrpcDataplane("/tmp/cni-server.sock") as dataplane:     # netconf: {"type": "grpc", "socket": dataplane.target}
        ...
        dataplane.refuse = "out of interfaces"                   # from now on

A pod gets a veth, its addresses and the routes that the request names, and the node a route to the pod. All requests
are kept, the refused ones too. Needs grpcio, and root for those that it does not refuse.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_interface
from pathlib import Path
from types import TracebackType

import grpc

from tortie.base.addr import Net, host_net, parse_net
from tortie.base.errors import TortieError, Unavailable
from tortie.cni.cnidataplane import (
    ADD_REPLY,
    ADD_REQUEST,
    DEL_REPLY,
    DEL_REQUEST,
    SERVICE,
    AddReply,
    AddRequest,
    DelReply,
    DelRequest,
)
from tortie.dataplane.attachment import DEFAULT, Attachment, attach, detach
from tortie.kernel import links, routes
from tortie.kernel.netlink import Netlink

WORKERS = 8
"""Calls that are served at a time."""


class GrpcDataplane:
    """Serves on the Unix socket `path` while the block runs; the node's namespace is `host_netns` (None: our own).

    The attributes below may be changed at any time and hold for the requests that come after.
    """

    def __init__(self, path: str | Path, host_netns: str | None = None) -> None:
        self.path = Path(path)
        self.host_netns = host_netns
        self.requests: list[AddRequest | DelRequest] = []
        """What came, in order."""
        self.refuse: str | None = None
        """The message with which requests are refused; None: they are not."""
        self.delay = 0.0
        """Seconds before a request is looked at. Closing does not wait for them."""
        self.host_interface_name = ""
        """Instead of the desired name."""
        self.container_mac = ""
        """What is answered instead of the interface's, right or wrong."""
        self._host_ifnames: dict[tuple[str, str], str] = {}
        self._closing = threading.Event()
        self._server: grpc.Server | None = None

    @property
    def target(self) -> str:
        """What belongs into `dataplane_options.socket`."""
        return f"unix://{self.path.absolute()}"

    @property
    def adds(self) -> list[AddRequest]:
        return [request for request in self.requests if isinstance(request, AddRequest)]

    @property
    def dels(self) -> list[DelRequest]:
        return [request for request in self.requests if isinstance(request, DelRequest)]

    # --- the server -----------------------------------------------------------------------------------------------

    def __enter__(self) -> GrpcDataplane:
        self._closing.clear()
        server = grpc.server(ThreadPoolExecutor(WORKERS, thread_name_prefix="grpc-dataplane"))
        add = grpc.unary_unary_rpc_method_handler(self._add, ADD_REQUEST.unpack, ADD_REPLY.pack)
        delete = grpc.unary_unary_rpc_method_handler(self._delete, DEL_REQUEST.unpack, DEL_REPLY.pack)
        service = grpc.method_handlers_generic_handler(SERVICE, {"Add": add, "Del": delete})
        server.add_generic_rpc_handlers((service,))
        try:
            server.add_insecure_port(self.target)
        except RuntimeError as error:
            raise Unavailable(f"cannot listen on {self.path}: {error}") from None
        server.start()
        self._server = server
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends calls that are under way. The pods stay connected, as they do when VPP's agent ends."""
        assert self._server is not None
        ended = self._server.stop(grace=None)
        self._closing.set()
        ended.wait()
        self.path.unlink(missing_ok=True)

    def _add(self, request: AddRequest, context: grpc.ServicerContext) -> AddReply:
        self._look_at(request, context)
        if self.refuse is not None:
            return AddReply(error_message=self.refuse)
        name = self.host_interface_name or request.desired_host_interface_name
        try:
            mac = self._connect(request, name)
        except (TortieError, ValueError) as error:
            return AddReply(error_message=str(error))
        return AddReply(True, host_interface_name=name, container_mac=self.container_mac or mac)

    def _delete(self, request: DelRequest, context: grpc.ServicerContext) -> DelReply:
        self._look_at(request, context)
        if self.refuse is not None:
            return DelReply(error_message=self.refuse)
        pod = request.netns, request.interface_name
        try:
            detach(*pod, self._host_ifnames.get(pod, ""), self.host_netns)
        except TortieError as error:
            return DelReply(error_message=str(error))
        self._host_ifnames.pop(pod, None)
        return DelReply(True)

    def _look_at(self, request: AddRequest | DelRequest, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        if self._closing.wait(self.delay):
            context.abort(grpc.StatusCode.UNAVAILABLE, "the dataplane is ending")

    # --- the dataplane --------------------------------------------------------------------------------------------

    def _connect(self, request: AddRequest, host_ifname: str) -> str:
        """The MAC address in the pod. What was half made is taken away again."""
        attachment = Attachment(
            request.netns,
            request.interface_name,
            host_ifname,
            tuple(ip_interface(each.address).ip for each in request.container_ips),
            request.settings.mtu,
            ip_forwarding=request.settings.allow_ip_forwarding,
            host_netns=self.host_netns,
        )
        mac = attach(attachment)
        try:
            self._lead_out(attachment, [parse_net(route) for route in request.container_routes])
            self._lead_in(attachment)
        except TortieError:
            detach(request.netns, request.interface_name, host_ifname, self.host_netns)
            raise
        self._host_ifnames[request.netns, request.interface_name] = host_ifname
        return mac

    def _lead_out(self, attachment: Attachment, wanted: list[Net]) -> None:
        """The pod's routes: `attach` makes the default ones, which need not be wanted."""
        with Netlink(attachment.netns) as nl:
            index = links.link_index(nl, attachment.ifname)
            for gateway in attachment.gateways:
                for net in wanted:
                    if net.version == gateway.version:
                        routes.replace_route(nl, routes.Route(net, via=gateway, dev=index))
                default = DEFAULT[gateway.version]
                if default not in wanted:
                    routes.delete_route(nl, routes.Route(default, via=gateway, dev=index))

    def _lead_in(self, attachment: Attachment) -> None:
        with Netlink(self.host_netns) as nl:
            index = links.link_index(nl, attachment.host_ifname)
            for ip in attachment.ips:
                routes.replace_route(nl, routes.Route(host_net(ip), dev=index))
