"""Policy on real packets: what the verdict says is what the rendered rules say is what the kernel does, and the rule
that they name is the one that counts.

Datastores are generated, hundreds per run, and so are connections: see `policy_worlds`, `packet_rounds`. `make prove`
does more of the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from packet_rounds import play
from town import Town, built_town

from policy_places import SEED, Chance
from tortie.dataplane.interfaces import host_interfaces
from tortie.dataplane.stages.nft import intact
from tortie.render.nft import NftRenderer

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    yield from built_town()


COMBINATIONS, BATCHES = 26, 8


@pytest.mark.parametrize("batch", range(BATCHES))
def test_the_kernel_does_what_the_verdict_and_the_tracer_say(town: Town, batch: int) -> None:
    """208 datastores, each reached from the one before, sometimes as after a restart; ten new connections in each."""
    print(f"TORTIE_SEED={SEED}")
    arrived = probes = 0
    for number in range(COMBINATIONS):
        played = play(town, Chance(f"{SEED} {batch} {number}"))
        if played.problem:
            pytest.fail(f"TORTIE_SEED={SEED}, batch {batch}, combination {number}\n\n{played.problem}")
        arrived, probes = arrived + played.arrived, probes + played.probes
    assert COMBINATIONS < arrived < probes - COMBINATIONS, f"the draw is lopsided: {arrived} of {probes} arrive"
    ruleset = NftRenderer().render(town.cluster.state(), host_interfaces(town.node.netns))
    assert intact(ruleset, town.node.netns)
