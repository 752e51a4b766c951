"""A kernel without flow tables, where somebody wants them. What they do where they are is tested on a stock kernel."""

from __future__ import annotations

import logging

import pytest

from namespaces import Ns
from tortie.calc.cluster import Cluster
from tortie.dataplane.converge import converge
from tortie.dataplane.stages.flow_tables import FlowTables
from tortie.kernel import nft
from tortie.kernel.features import has_flow_tables
from tortie.model.document import parse

pytestmark = pytest.mark.root

ENABLED = """
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default, annotations: {tortie.dev/flow-tables: Enabled}}
"""


def test_it_is_said_once_and_nothing_else_comes_of_it(ns: Ns, caplog: pytest.LogCaptureFixture) -> None:
    if has_flow_tables():
        pytest.skip("this kernel has flow tables")
    cluster = Cluster("node")
    cluster.put(parse(ENABLED)[0])
    stage = FlowTables(ns.path)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            stage.forget()
            assert converge([stage], cluster.state()) == []
    (said,) = caplog.messages
    assert said.endswith("this kernel has no flow tables (nft_flow_offload)")
    assert not any("table" in item for item in nft.list_json(["list", "tables"], ns.path))
