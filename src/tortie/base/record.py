"""`dataclass` for programs whose start somebody waits for: records without what the standard library imports for them.

`record` and `field` are dataclasses.dataclass and dataclasses.field to the type checker and to whoever reads them. To
import `dataclasses` takes longer than to start Python, and it compiles code for each class; here all classes share it.

    @record(frozen=True, slots=True)          a value: compared and hashed by its fields, printed as it is written
    class Link:
        index: int
        info: Mapping[str, Any] = field(default_factory=dict, hash=False)

`dataclasses.replace`, `fields` and `asdict` take records, too: what these look at is made when they look.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass as record
    from dataclasses import field
    from typing import Any
else:

    def record(*, frozen: bool = False, slots: bool) -> Callable[[type], type]:
        """A decorator. Every record has slots; one that is not frozen has no hash."""
        if not slots:
            raise TypeError("a record has slots")
        return lambda cls: _made(cls, frozen)

    def field(**settings: Any) -> Any:
        """`default`, `default_factory`, `hash`, `repr` and `compare`, as dataclasses.field has them."""
        return _Field(**settings)


__all__ = ["field", "record"]

_MISSING = object()


class _Field:
    """How one field is treated."""

    __slots__ = ("compare", "default", "default_factory", "hash", "repr", "type")

    def __init__(
        self,
        *,
        default: Any = _MISSING,
        default_factory: Any = _MISSING,
        hash: bool | None = None,
        repr: bool = True,
        compare: bool = True,
    ) -> None:
        self.default = default
        self.default_factory = default_factory
        self.hash = compare if hash is None else hash
        self.repr = repr
        self.compare = compare
        self.type = ""


class _Shape:
    """What is known of a class of records: its fields by name, and how their slots are read and written."""

    __slots__ = (
        "checks",
        "compared",
        "count",
        "every",
        "fields",
        "frozen",
        "hashed",
        "rows",
        "setters",
        "shown",
        "twin",
    )

    def __init__(self, cls: type) -> None:
        self.fields: dict[str, _Field] = {}
        for base in reversed(cls.__mro__):
            for name, given in vars(base).get("_record_own", {}).items():
                self.fields[name] = one = given if isinstance(given, _Field) else _Field(default=given)
                one.type = base.__annotations__[name]
        self.frozen = issubclass(cls, _Frozen)
        self.checks = hasattr(cls, "__post_init__")
        self.count = len(self.fields)
        self.rows = [(name, one.default, one.default_factory) for name, one in self.fields.items()]
        slots = [(one, getattr(cls, name)) for name, one in self.fields.items()]
        self.setters = [slot.__set__ for _, slot in slots]
        self.every = [slot.__get__ for _, slot in slots]
        self.compared = [slot.__get__ for one, slot in slots if one.compare]
        self.hashed = [slot.__get__ for one, slot in slots if one.hash]
        self.shown = [(name, getattr(cls, name).__get__) for name, one in self.fields.items() if one.repr]
        self.twin: Any = None

    def fill(self, cls: str, given: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
        """The values of all fields, of those that were given and the defaults of the others. Raises TypeError."""
        values = list(given)
        for name, default, factory in self.rows[len(given) :]:
            if name in named:
                values.append(named.pop(name))
            elif default is not _MISSING:
                values.append(default)
            elif factory is not _MISSING:
                values.append(factory())
            else:
                raise TypeError(f"{cls}() misses the argument {name!r}")
        if named:
            raise TypeError(f"{cls}() has no argument {next(iter(named))!r}, or has it twice")
        if len(values) > self.count:
            raise TypeError(f"{cls}() takes {self.count} arguments, not {len(values)}")
        return values


class _WhenUsed:
    """The shape of a class, found out when its first record is made: a plugin uses few of the classes it imports."""

    def __get__(self, value: object, cls: type) -> _Shape:
        shape = _Shape(cls)
        cls._record_shape = shape  # type: ignore[attr-defined]
        return shape


class _Seen:
    """An attribute that `dataclasses` looks for on classes: that of a dataclass with the same fields."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, value: object, cls: type[_Record]) -> Any:
        shape = cls._record_shape
        if shape.twin is None:
            shape.twin = _twin(cls.__name__, shape)
        return getattr(shape.twin, self.name)


class _Record:
    """What all records have."""

    __slots__ = ()
    _record_shape: Any = _WhenUsed()
    __dataclass_fields__ = _Seen("__dataclass_fields__")
    __dataclass_params__ = _Seen("__dataclass_params__")

    def __init__(self, /, *given: Any, **named: Any) -> None:
        shape = self._record_shape
        values = given if len(given) == shape.count and not named else shape.fill(type(self).__name__, given, named)
        for put, value in zip(shape.setters, values):  # noqa: B905  # `fill` has counted them, and this is waited for
            put(self, value)
        if shape.checks:
            self.__post_init__()  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return (
            f"{type(self).__qualname__}({', '.join(f'{name}={get(self)!r}' for name, get in self._record_shape.shown)})"
        )

    def __eq__(self, other: object) -> Any:
        if type(other) is not type(self):
            return NotImplemented
        return all(get(self) == get(other) for get in self._record_shape.compared)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), tuple([get(self) for get in self._record_shape.every])


class _Frozen(_Record):
    """What those have that do not change."""

    __slots__ = ()

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple([get(self) for get in self._record_shape.hashed]))

    def __setattr__(self, name: str, value: object) -> None:
        _refuse(name)

    def __delattr__(self, name: str) -> None:
        _refuse(name)


def _refuse(name: str) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _made(cls: type, frozen: bool) -> type:
    """The class again, with slots and the methods of a record; those that it has itself stay."""
    body = dict(vars(cls))
    names = [name for name, words in cls.__annotations__.items() if not str(words).startswith("ClassVar")]
    body["_record_own"] = {name: body.pop(name, _MISSING) for name in names}
    body["_record_shape"] = _Record.__dict__["_record_shape"]
    body["__slots__"] = names
    body["__qualname__"] = cls.__qualname__
    for own in ("__dict__", "__weakref__"):  # what `type` makes for each class anew
        body.pop(own, None)
    common = _Frozen if frozen else _Record
    bases = tuple(common if base is object else base for base in cls.__bases__)
    inherited = [name for base in bases for name in getattr(base, "__match_args__", ())]
    body["__match_args__"] = tuple(dict.fromkeys((*inherited, *names)))
    return type(cls)(cls.__name__, bases, body)


def _twin(name: str, shape: _Shape) -> type:
    import dataclasses

    rows: list[tuple[str, Any, Any]] = []
    for key, one in shape.fields.items():
        settings: dict[str, Any] = {"hash": one.hash, "repr": one.repr, "compare": one.compare}
        for default in ("default", "default_factory"):
            if getattr(one, default) is not _MISSING:
                settings[default] = getattr(one, default)
        rows.append((key, one.type, dataclasses.field(**settings)))
    return dataclasses.make_dataclass(name, rows, frozen=shape.frozen)
