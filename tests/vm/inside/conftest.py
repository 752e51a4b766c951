"""Fixtures of the tests in a guest."""

from namespaces import make_ns, ns

__all__ = ["make_ns", "ns"]
