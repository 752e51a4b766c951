"""Addresses of load balancers on the wire: one elected node answers for each by ARP (IPv4) or neighbour discovery."""
