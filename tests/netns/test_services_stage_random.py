"""The kernel takes what is rendered of random states, and has afterwards what a fresh start gives."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from conftest import Ns
from hypothesis import Phase, given, seed, settings

from service_states import kept, states
from tortie.calc.proxy.state import ProxyState
from tortie.dataplane.converge import converge
from tortie.dataplane.stages.services import Services
from tortie.render.proxy.chains import TABLE

pytestmark = pytest.mark.root


def listed(ns: Ns) -> dict[str, Any]:
    """Rules by chain, and elements by map, without what differs between equal tables; numbers of backends aside."""
    found: dict[str, Any] = {}
    for item in json.loads(ns.run("nft", "-j", "list", "table", *TABLE.split()))["nftables"]:
        if "rule" in item:
            found.setdefault(item["rule"]["chain"], []).append(bare(item["rule"]["expr"]))
        for word in ("map", "set"):
            if word in item:
                name = item[word]["name"]
                numbered = any(part in name for part in ("backends", "locals", "ids"))
                elements = [json.dumps(bare(one)) for one in item[word].get("elem", ())]
                found[name] = len(elements) if numbered else sorted(elements)
    return found


def bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: bare(one) for key, one in value.items() if key not in ("handle", "packets", "bytes")}
    return [bare(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("number", range(3))
def test_random_states(ns: Ns, make_ns: Any, number: int, caplog: pytest.LogCaptureFixture) -> None:
    other, stage = make_ns(), Services(ns.path)
    have = ProxyState()
    rng = random.Random(number)

    @seed(number)
    @settings(max_examples=15, deadline=None, database=None, phases=[Phase.generate])
    @given(states())
    def follow(state: ProxyState) -> None:
        nonlocal have, stage
        have = kept(state, have)
        if rng.random() < 0.2:
            stage = Services(ns.path)  # another life
        assert converge([stage], have) == []
        assert converge([Services(other.path)], None) == []
        assert converge([Services(other.path)], have) == []
        assert listed(ns) == listed(other)

    follow()
    assert "cannot be filled" not in caplog.text
