"""Network namespaces, and what is said to those who may not make any."""

from __future__ import annotations

import os

import pytest

from namespaces import Ns, make_ns, ns

__all__ = ["Ns", "make_ns", "ns"]

pytest.register_assert_rewrite("agent_node")  # so that what its assertions compare is shown


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `root` say why they did not run, instead of failing, when the user may not change the kernel."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root: makes network namespaces"))
