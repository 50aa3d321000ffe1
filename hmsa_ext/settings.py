"""Settings: frozen dataclasses that declare each option once, for Python, flags, help, checks and YAML files.

A package declares its own settings beside its code. The text under a field is its help, and the annotation says what
values it takes::

    @dataclass(frozen=True)
    class Sampling:
        '''Which crops make an epoch.'''

        kind: Annotated[Literal["class_uniform", "uniform"], Flag("sampling")] = "class_uniform"
        '''How the items of an epoch are chosen.'''
        share: Annotated[Share, Flag("sampling-share")] = 0.5
        '''Part of an epoch that is drawn by class.'''

        def __post_init__(self) -> None:
            validate(self)

Settings nest: a field whose value is a dataclass is a group. Every option has one flat name, which is its flag
(``--sampling-share``) and its key in YAML files (``sampling_share``): the name of the field, or that of its
:class:`Flag`. :func:`to_dict` and :func:`replace` translate between settings and flat names.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import importlib
import inspect
import itertools
import math
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union

from hmsa_ext.errors import HmsaError

Settings = TypeVar("Settings")


class SettingError(HmsaError, ValueError):
    """A setting that cannot be used. The message names the setting, what came and what was expected."""

    def __init__(self, name: str, got: object, expected: str) -> None:
        super().__init__(name, got, expected)
        self.name, self.got, self.expected = name, got, expected

    def __str__(self) -> str:
        return f"{self.name}: got {_shown(self.got)}, expected {self.expected}"


# ---- what an annotation may say ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flag:
    """The spelling of an option where its field is called otherwise; ``was``: older spellings, still understood."""

    name: str
    was: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """A condition on a value, and the words for what fulfils it. None always does where it is allowed."""

    holds: Callable[[Any], bool]
    expected: str


@dataclass(frozen=True)
class Spelling:
    """How values that are no single number or word are written: ``read`` takes text, or what YAML makes of it."""

    metavar: str
    read: Callable[[Any], Any]
    show: Callable[[Any], str]


@dataclass(frozen=True)
class Positional:
    """Marks an option that is given by its place on a command line, and how it is shown there.

    many: it takes all words that are no flags, and is a tuple of texts.
    """

    metavar: str
    many: bool = False


@dataclass(frozen=True)
class Metavar:
    """What stands for the value of an option in help texts, such as FILE; a number or TEXT by the type unless given."""

    name: str


class _Free:
    """See ``FREE``."""


FREE = _Free()
"""Marks settings that may differ when a run is resumed; none of them affects the numbers."""


def _numbers(value: object, kind: type, separators: str) -> tuple[Any, ...]:
    if isinstance(value, str):
        for separator in separators:
            value = value.replace(separator, ",")
        value = [part.strip() for part in value.split(",")]
    elif isinstance(value, int | float):
        value = [value]
    if not isinstance(value, list | tuple):
        raise ValueError
    return tuple(read_number(number, kind) for number in value)


def _read_size(value: object) -> tuple[int, int]:
    height, width = _numbers(value, int, "x")
    return height, width


def _read_range(value: object) -> tuple[float, float]:
    numbers = _numbers(value, float, "")
    low, high = numbers * 2 if len(numbers) == 1 else numbers  # one number is both ends
    return low, high


def _read_scales(value: object) -> tuple[float, ...]:
    return tuple(sorted(_numbers(value, float, "")))  # a set: the order in which scales are written never matters


def _read_names(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple) or not all(isinstance(part, str) for part in value):
        raise ValueError
    return tuple(value)


def read_by_name(value: object) -> dict[str, float]:
    """A number for each of some names, from "NAME:X,NAME:X" or a map. Raises ValueError; also for a name twice."""
    if isinstance(value, str):
        parts = [part.strip().rpartition(":") for part in value.split(",") if part.strip()]
        names = [name.strip() for name, _, _ in parts]
        if not all(name and colon for name, (_, colon, _) in zip(names, parts, strict=True)):
            raise ValueError
        if len({*names}) < len(names):  # which one is meant?
            raise ValueError
        value = dict(zip(names, (number for _, _, number in parts), strict=True))
    if not isinstance(value, Mapping):
        raise ValueError
    return {str(name): read_number(number, float) for name, number in value.items()}


def show_by_name(value: Mapping[str, float]) -> str:
    """What :func:`read_by_name` reads."""
    return ",".join(f"{name}:{x:g}" for name, x in value.items())


def _are_scales(scales: tuple[float, ...]) -> bool:
    positive = all(math.isfinite(scale) and scale > 0 for scale in scales)
    return (
        1 <= len(scales) <= 8 and positive and len(set(scales)) == len(scales) and (len(scales) == 1 or 1.0 in scales)
    )


def _join(values: Sequence[Any]) -> str:
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


Size = Annotated[
    tuple[int, int],
    Spelling("HxW", _read_size, lambda v: f"{v[0]}x{v[1]}"),
    Rule(lambda v: len(v) == 2 and min(v) > 0, "HxW in pixels, for example 128x256"),
]
"""(height, width) in pixels."""
Range = Annotated[tuple[float, float], Spelling("SMALLEST,LARGEST", _read_range, _join)]
"""(smallest, largest)."""
Scales = Annotated[
    tuple[float, ...],
    Spelling("X,X", _read_scales, _join),
    Rule(_are_scales, "1 to 8 different positive numbers, 1.0 among them when there are several"),
]
"""Scales, ascending."""
Names = Annotated[tuple[str, ...], Spelling("NAME,...", _read_names, _join)]
"""Names, separated by commas."""
Weights = Annotated[
    Mapping[str, float],
    Spelling("NAME:X,...", read_by_name, show_by_name),
    Rule(lambda v: all(0 <= x < math.inf for x in v.values()), "NAME:X,NAME:X with numbers not below 0"),
]
"""A number for each of some names."""

POSITIVE = Rule(lambda v: 0 < v < math.inf, "a number above 0")
NOT_NEGATIVE = Rule(lambda v: 0 <= v < math.inf, "a number not below 0")
BELOW_ONE = Rule(lambda v: 0 <= v < 1, "a number from 0 to below 1")
SEED = Rule(lambda v: 0 <= v < 2**63, "an integer from 0 to 2**63 - 1")
SHARE = Rule(lambda v: 0 <= v <= 1, "a number from 0 to 1")


# ---- what a dataclass declares ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """One option of some settings.

    name: flat, with underscores. path: names of the fields that lead to it. kind: its type, without None and
    annotations. help: the text under the field. value: what it has in the settings that were looked at.
    """

    name: str
    path: tuple[str, ...]
    kind: Any
    optional: bool
    help: str
    value: Any
    was: tuple[str, ...]
    spelling: Spelling | None
    rules: tuple[Rule, ...]
    free: bool
    positional: Positional | None = None
    metavar: str | None = None

    @property
    def flag(self) -> str:
        """As it is written on a command line, without the two dashes."""
        return self.name.replace("_", "-")

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it takes, where it takes words."""
        return typing.get_args(self.kind) if typing.get_origin(self.kind) is Literal else ()

    @property
    def expected(self) -> str:
        """What fits, in words."""
        if self.rules:
            return self.rules[-1].expected
        if self.spelling is not None:
            return self.spelling.metavar
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        plain: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        return plain.get(self.kind, "a value")

    def read(self, value: object) -> Any:
        """A value of this option from text or from YAML; raises :class:`SettingError`."""
        if self.optional and (value is None or value == ""):
            return None
        try:
            if self.spelling is not None:
                return self.spelling.read(value)
            if self.kind in (int, float):
                return read_number(value, self.kind)
        except (TypeError, ValueError):
            plain = "a whole number" if self.kind is int else "a number"
            raise SettingError(self.name, value, plain if self.spelling is None else self.expected) from None
        if self.kind is bool and not isinstance(value, bool):
            raise SettingError(self.name, value, "true or false")
        if self.kind is str and not isinstance(value, str):
            raise SettingError(self.name, value, "text")
        return value

    def show(self, value: object) -> str:
        """The value as it is written on a command line."""
        if value is None:
            return "none"
        return self.spelling.show(value) if self.spelling is not None else str(value)


def options(settings: object) -> list[Option]:
    """All options of some settings, those of nested ones included, in the order of their fields.

    Raises :class:`SettingError` where two have one name.
    """
    found = list(_walk(settings, ()))
    by_name: dict[str, Option] = {}
    for option in found:
        other = by_name.setdefault(option.name, option)
        if other is not option:
            places = " and ".join(".".join(one.path) for one in (other, option))
            raise SettingError(option.name, f"two options, {places}", "one of this name; rename that of the data set")
    return found


def groups(settings: object) -> list[tuple[str, str, list[Option]]]:
    """Title, description and options of each group of settings that has options of its own."""
    found = []
    for path, part in _parts(settings, ()):
        own = [option for option in options(part) if len(option.path) == 1]
        if own:
            own = [dataclasses.replace(option, path=(*path, *option.path)) for option in own]
            found.append((path[-1] if path else "", _first_paragraph(type(part)), own))
    return found


def validate(settings: object) -> None:
    """Checks every option against its annotation; raises :class:`SettingError`. For ``__post_init__``."""
    for field, declared in _declared(type(settings)):
        value = getattr(settings, field.name)
        if declared is None or (value is None and declared.optional):
            continue
        if declared.choices and value not in declared.choices:
            raise SettingError(field.name, value, f"one of {', '.join(declared.choices)}")
        for rule in declared.rules:
            try:
                holds = rule.holds(value)
            except TypeError:
                holds = False
            if not holds:
                raise SettingError(field.name, value, rule.expected)


def require(name: str, value: object, holds: object, expected: str) -> None:
    """Raises :class:`SettingError` unless the condition holds."""
    if not holds:
        raise SettingError(name, value, expected)


def to_dict(settings: object) -> dict[str, Any]:
    """The settings by flat name, as plain values that YAML and JSON have (tuples become lists)."""
    return {option.name: to_plain(option.value) for option in options(settings)}


def replace(settings: Settings, changes: Mapping[str, object]) -> Settings:
    """The settings with other values, by flat name, from text, YAML or Python.

    Raises :class:`SettingError` for names that do not exist, with the nearest one that does, and for values that do not
    fit. Older spellings are understood.
    """
    found = {option.name: option for option in options(settings)}
    older = {name: option for option in found.values() for name in option.was}
    values: dict[tuple[str, ...], Any] = {}
    for name, value in changes.items():
        option = found.get(name) or older.get(name)
        if option is None:
            close = difflib.get_close_matches(str(name), found, 1)
            raise UnknownSettingError(str(name), close[0] if close else None)
        values[option.path] = option.read(value)
    return _rebuilt(settings, values, {option.path: option.name for option in found.values()})


class UnknownSettingError(SettingError):
    """A name that is no setting."""

    def __init__(self, name: str, near: str | None) -> None:
        super().__init__(name, name, "a setting")
        self.near = near

    def __str__(self) -> str:
        return f"{self.name}: no such setting" + (f"; did you mean {self.near}?" if self.near else "")


def read_number(value: Any, kind: type) -> Any:
    """An int or a float from text or a number; raises ValueError for anything else, also for 1.5 as an int."""
    if isinstance(value, bool) or (kind is int and isinstance(value, float) and not value.is_integer()):
        raise ValueError
    return kind(value)


def load_object(name: str, what: str) -> Any:
    """The object that ``package.module:name`` means; modules of the working directory are found as well.

    Raises :class:`SettingError` that begins with ``what`` where there is no such module or name.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise SettingError(what, name, "package.module:name")
    with _importable_from_here():
        try:
            found = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and not f"{module_name}.".startswith(f"{error.name}."):
                raise  # the module is there, and misses another one
            there = f"there is no module {module_name}, installed or in {Path.cwd()}"
            raise SettingError(what, name, f"package.module:name, but {there}") from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise SettingError(what, name, f"a name in {module_name}, which has no {part!r}") from None
    return found


@functools.cache
def documentation(settings_type: type) -> dict[str, str]:
    """The text under each field of a dataclass, read from the source, or from ``metadata["help"]`` of the field."""
    texts = {f.name: f.metadata["help"] for f in dataclasses.fields(settings_type) if "help" in f.metadata}
    for base in reversed([c for c in settings_type.__mro__ if dataclasses.is_dataclass(c)]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError, SyntaxError, IndexError):
            continue
        for field, text in itertools.pairwise(getattr(body, "body", [])):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(field.target, ast.Name):
                value = text.value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    texts[field.target.id] = inspect.cleandoc(value.value)
    return texts


# ---- helpers ----------------------------------------------------------------------------------------------------


def _importable_from_here() -> Any:
    import contextlib
    import sys

    @contextlib.contextmanager
    def added() -> Iterator[None]:
        here = str(Path.cwd())
        sys.path.insert(0, here)  # a console script has its own folder there, not the working directory
        try:
            yield
        finally:
            sys.path.remove(here)

    return added()


def _is_settings(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _parts(settings: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, settings
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if _is_settings(value):
            yield from _parts(value, (*path, field.name))


def _walk(settings: Any, path: tuple[str, ...]) -> Iterator[Option]:
    for field, declared in _declared(type(settings)):
        value = getattr(settings, field.name)
        if _is_settings(value):
            yield from _walk(value, (*path, field.name))
        elif declared is not None:
            yield dataclasses.replace(declared, path=(*path, field.name), value=value)


@functools.cache
def _declared(settings_type: type) -> list[tuple[dataclasses.Field, Option | None]]:
    """Fields of a dataclass, each with the option that it declares; None for fields that are never options."""
    hints, texts = typing.get_type_hints(settings_type, include_extras=True), documentation(settings_type)
    return [
        (field, _declare(field, hints[field.name], texts.get(field.name, "")) if field.init else None)
        for field in dataclasses.fields(settings_type)
    ]


def _declare(field: dataclasses.Field, hint: Any, text: str) -> Option:
    marks: list[Any] = []
    optional = False
    while True:
        if typing.get_origin(hint) is Annotated:
            hint, *more = typing.get_args(hint)
            marks = [*more, *marks]
        elif typing.get_origin(hint) in (Union, UnionType) and type(None) in typing.get_args(hint):
            optional = True
            rest = [kind for kind in typing.get_args(hint) if kind is not type(None)]
            hint = rest[0] if len(rest) == 1 else Any
        else:
            break
    flag = next((mark for mark in reversed(marks) if isinstance(mark, Flag)), Flag(field.name))
    return Option(
        name=flag.name.replace("-", "_"),
        path=(field.name,),
        kind=hint,
        optional=optional,
        help=" ".join(text.split()),
        value=None,
        was=tuple(name.replace("-", "_") for name in flag.was),
        spelling=next((mark for mark in reversed(marks) if isinstance(mark, Spelling)), None),
        rules=tuple(mark for mark in marks if isinstance(mark, Rule)),
        free=any(isinstance(mark, _Free) for mark in marks),
        positional=next((mark for mark in marks if isinstance(mark, Positional)), None),
        metavar=next((mark.name for mark in marks if isinstance(mark, Metavar)), None),
    )


def _rebuilt(
    settings: Any,
    values: Mapping[tuple[str, ...], Any],
    names: Mapping[tuple[str, ...], str],
    path: tuple[str, ...] = (),
) -> Any:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        here, value = (*path, field.name), getattr(settings, field.name)
        if here in values:
            changes[field.name] = values[here]
        elif _is_settings(value) and any(other[: len(here)] == here for other in values):
            changes[field.name] = _rebuilt(value, values, names, here)
    if not changes:
        return settings
    try:
        return dataclasses.replace(settings, **changes)
    except SettingError as error:
        # A group names its own field; people know the flat name.
        error.name = names.get((*path, error.name), error.name)
        raise


def _first_paragraph(settings_type: type) -> str:
    text = inspect.getdoc(settings_type) or ""
    return "" if text.startswith(f"{settings_type.__name__}(") else text.partition("\n\n")[0]


def to_plain(value: Any) -> Any:
    """A value as YAML and JSON have it: tuples become lists, classes and functions their names."""
    if isinstance(value, tuple | list):
        return [to_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    name = f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', '')}"
    return name if not name.startswith(":") else str(value)


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else repr(value)
