"""Parts that a setting names: one of a table of ours, or ``package.module:factory`` of anybody's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar

from hmsa_ext.settings import Rule, SettingError, Spelling, load_object, options

Kind = TypeVar("Kind")


def _read(value: object) -> object:
    if not isinstance(value, str) and not callable(value):
        raise ValueError
    return value


def object_name(value: Any) -> str:
    """A function or class as files and command lines write its name: ``package.module:name``; texts as they are.

    >>> from pathlib import PurePath
    >>> object_name(PurePath)
    'pathlib:PurePath'
    """
    return value if isinstance(value, str) else f"{value.__module__}:{value.__qualname__}"


SPELLING = Spelling("NAME|MODULE:OBJECT", _read, object_name)
Part = Annotated[str | Callable[..., Any], SPELLING]
"""A name of a table, ``package.module:object``, or in Python the object itself."""


def one_of(names: Iterable[str]) -> Rule:
    """The rule for a :data:`Part` whose table has these names; objects are looked up when they are used."""
    names = tuple(names)
    return Rule(
        lambda part: (part in names or ":" in part) if isinstance(part, str) else callable(part), expected_of(names)
    )


def expected_of(names: Iterable[str]) -> str:
    """What fits, for messages."""
    return f"one of {', '.join(names)}, or package.module:object"


def find(part: str | Kind, table: Mapping[str, Kind], name: str) -> Kind:
    """The entry of ``table``, or the object that ``package.module:object`` means; an object stands for itself.

    Args:
        part: a name or an object.
        table: the objects that have names.
        name: of the setting, for messages.

    Raises:
        SettingError: no such name, module or object.
    """
    if not isinstance(part, str):
        return part
    if part in table:
        return table[part]
    if ":" not in part:
        raise SettingError(name, part, expected_of(table))
    return load_object(part, name)


def require_objects(settings: object) -> None:
    """Looks up every part of some settings that is named ``package.module:object``.

    Raises:
        SettingError: there is no such module or object.
    """
    for option in options(settings):
        if option.spelling is SPELLING and isinstance(option.value, str) and ":" in option.value:
            load_object(option.value, option.name)


def spelled(part: object) -> str:
    """The part as messages call it."""
    return part if isinstance(part, str) else getattr(part, "__qualname__", type(part).__qualname__)


def parameters(function: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """Names of the parameters that ``function`` takes by keyword, and whether it takes any others too."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-ins have none
        return frozenset(), False
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return (
        frozenset(parameter.name for parameter in found if parameter.kind in by_name),
        any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in found),
    )
