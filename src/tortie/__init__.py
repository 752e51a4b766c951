"""Tortie: Calico's kind of network for Kubernetes and plain Linux hosts, in Python."""

__version__ = "0.1.0"
