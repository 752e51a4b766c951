"""The client side of DHCP for pods: the codec (`wire`), how a lease goes on (`lease`), the daemon that keeps leases.

wire      bytes <-> messages, in IPv4 and UDP headers of our own      no sockets
options   what the configuration says is sent, and asked for          no sockets
lease     what to send when, and what an answer means                 no sockets, the clock is an argument
port      a packet socket on an interface of a pod
daemon    the process that does it for all pods of the node, and answers plugins
rpc       what plugin and daemon say to one another                   all that the plugin imports
"""
