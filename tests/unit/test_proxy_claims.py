"""Which service has a frontend, after any claims: the oldest of those that ask; and who must hear of a change."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tortie.base.addr import parse_ip
from tortie.calc.proxy.claims import Claims
from tortie.calc.proxy.state import Frontend, ServiceKey

ONE, TWO = Frontend(4, parse_ip("10.96.0.1"), 6, 80), Frontend(4, None, 6, 30080)
KEYS = [("red", name) for name in "abcd"]

Wish = tuple[str, frozenset[Frontend]]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(KEYS), st.sampled_from(["2024", "2025"]), st.frozensets(st.sampled_from([ONE, TWO]))
    ),
    max_size=20,
)  # fmt: skip


def holders(wishes: dict[ServiceKey, Wish]) -> dict[Frontend, ServiceKey]:
    found: dict[Frontend, ServiceKey] = {}
    for frontend in (ONE, TWO):
        asking = [(created, key) for key, (created, frontends) in wishes.items() if frontend in frontends]
        if asking:
            found[frontend] = min(asking)[1]
    return found


@settings(max_examples=300, deadline=None, database=None)
@given(STEPS)
def test_the_oldest_has_it_and_all_that_it_matters_to_are_told(
    steps: list[tuple[ServiceKey, str, frozenset[Frontend]]],
) -> None:
    claims, wishes = Claims(), dict[ServiceKey, Wish]()
    for key, created, frontends in steps:
        before = holders(wishes)
        wishes[key] = created, frontends
        touched = claims.claim(key, created, frontends)
        after = holders(wishes)
        assert {each: claims.holder(each) for each in (ONE, TWO)} == {each: after.get(each) for each in (ONE, TWO)}
        changed = {each for each in (ONE, TWO) if before.get(each) != after.get(each)}
        assert touched >= {other for other, wish in wishes.items() if other != key and wish[1] & changed}
        assert key not in touched
    for key in KEYS:
        claims.claim(key, "", ())
    assert claims.__dict__ == Claims().__dict__  # nothing stays of who went
