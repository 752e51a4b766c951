"""What the kernel announces of a tunnel's forwarding entries, and what that says of them."""

from __future__ import annotations

import pytest

from tortie.kernel.live_neighbours import FLOODED, Entry, is_echo, key
from tortie.kernel.neighbours import Forwarding, Neighbour

MAC, OTHER = "66:2d:bf:44:a6:8b", "66:2d:bf:44:a6:8c"
THERE: dict[tuple[int, str, str], Entry] = {
    key(entry): entry
    for entry in (
        Forwarding(3, MAC, "192.0.2.2"),
        Forwarding(3, FLOODED, "192.0.2.2"),
        Neighbour(3, "10.65.2.1", MAC),
    )
}


@pytest.mark.parametrize("entry", [Forwarding(3, MAC), Forwarding(3, FLOODED)], ids=["one", "flooded"])
def test_what_is_told_again_without_its_destination(entry: Forwarding) -> None:
    assert is_echo(entry, THERE)


@pytest.mark.parametrize(
    "entry",
    [
        Forwarding(3, OTHER),
        Forwarding(3, MAC, "192.0.2.3"),
        Forwarding(3, MAC, master=True),
        Neighbour(3, "10.65.2.1", OTHER),
    ],
    ids=["unknown", "another destination", "of a bridge", "a neighbour"],
)
def test_what_is_news(entry: Entry) -> None:
    assert not is_echo(entry, THERE)


def test_without_a_destination_known_there_is_none_to_keep() -> None:
    assert not is_echo(Forwarding(3, MAC), {key(Forwarding(3, MAC)): Forwarding(3, MAC)})
