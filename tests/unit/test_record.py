"""Records against dataclasses: the same values, texts, comparisons and refusals."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.base.record import field, record


@record(frozen=True, slots=True)
class Point:
    """A place."""

    x: int
    y: int = 2
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)
    note: str = field(default="", repr=False, compare=False)
    origin: ClassVar[int] = 0

    @property
    def far(self) -> int:
        return self.x + self.y


@dataclasses.dataclass(frozen=True, slots=True)
class Twin:
    x: int
    y: int = 2
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    note: str = dataclasses.field(default="", repr=False, compare=False)
    origin: ClassVar[int] = 0


@record(frozen=True, slots=True)
class Place(Point):
    """One with a name, and a default of its own."""

    y: int = 3
    name: str = ""


@record(slots=True)
class Open:
    x: int
    seen: list[int] = field(default_factory=list)


@record(frozen=True, slots=True)
class Checked:
    x: int

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("negative")

    def __str__(self) -> str:
        return f"x {self.x}"


values = st.fixed_dictionaries(
    {"x": st.integers(0, 2)},
    optional={
        "y": st.integers(1, 3),
        "tags": st.dictionaries(st.sampled_from("ab"), st.sampled_from("cd")),
        "note": st.sampled_from("nm"),
    },
)


@given(values, values)
def test_the_same_as_a_dataclass(one: dict[str, Any], other: dict[str, Any]) -> None:
    ours, theirs = (Point(**one), Point(**other)), (Twin(**one), Twin(**other))
    assert repr(ours[0]) == repr(theirs[0]).replace("Twin", "Point")
    assert (ours[0] == ours[1]) is (theirs[0] == theirs[1])
    assert hash(ours[0]) == hash(theirs[0])
    assert dataclasses.asdict(ours[0]) == dataclasses.asdict(theirs[0])
    assert dataclasses.replace(ours[0], y=7) == Point(**{**one, "y": 7})
    assert [each.name for each in dataclasses.fields(ours[0])] == [each.name for each in dataclasses.fields(theirs[0])]
    assert copy.deepcopy(ours[0]) == ours[0] == pickle.loads(pickle.dumps(ours[0])) == copy.copy(ours[0])


def test_positions_names_and_patterns() -> None:
    assert Point(1, 5) == Point(y=5, x=1)
    assert Point(1).far == 3
    assert Point.origin == 0
    assert Point.__doc__ == "A place."
    match Point(1, 2):
        case Point(x, y):
            assert (x, y) == (1, 2)
    assert Point(1) != (1, 2, {}, "")
    assert Point(1).tags is not Point(1).tags


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Point, "misses the argument 'x'"),
        (lambda: Point(1, 2, {}, "", 5), "takes 4 arguments, not 5"),
        (lambda: Point(1, z=2), "has no argument 'z', or has it twice"),
        (lambda: Point(1, x=2), "has no argument 'x', or has it twice"),
    ],
)
def test_wrong_arguments(make: Callable[[], object], why: str) -> None:
    with pytest.raises(TypeError, match=why):
        make()


def test_frozen_ones_stay_as_they_are() -> None:
    point: Any = Point(1)
    for change in (lambda: setattr(point, "x", 2), lambda: delattr(point, "x"), lambda: setattr(point, "z", 2)):
        with pytest.raises(dataclasses.FrozenInstanceError, match=r"cannot assign to field '[xz]'"):
            change()
    assert not hasattr(point, "__dict__")
    with pytest.raises(TypeError, match="unhashable"):
        hash(Open(1))
    changing = Open(1)
    changing.x = 2
    assert changing == Open(2)


def test_fields_of_a_base() -> None:
    place = Place(1, name="home")
    assert repr(place) == "Place(x=1, y=3, tags={}, name='home')"
    assert Place.__match_args__ == ("x", "y", "tags", "note", "name")
    assert Place(1, 5) == Place(x=1, y=5)
    assert place.far == 4
    assert place != Point(1, 3)
    assert dataclasses.replace(place, x=2).name == "home"


def test_a_record_looks_at_its_values() -> None:
    with pytest.raises(ValueError, match="negative"):
        Checked(-1)
    assert f"{Checked(1)}" == "x 1"


def test_a_record_has_slots() -> None:
    with pytest.raises(TypeError, match="a record has slots"):
        record(frozen=True, slots=False)
