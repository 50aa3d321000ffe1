"""Parts that a setting names: one of a table of ours, or ``package.module:factory`` of anybody's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from hmsa_ext.settings import Rule, SettingError, Spelling, load_object, options

Kind = TypeVar("Kind")


def _read(value: object) -> object:
    if not isinstance(value, str) and not callable(value):
        raise ValueError
    return value


def object_name(value: Any) -> str:
    """A function or class as files and command lines write its name: ``package.module:name``; texts as they are.

    An object that is called, such as a ``functools.partial``, has no name of its own: it is written as its class.

    >>> from pathlib import PurePath
    >>> object_name(PurePath)
    'pathlib:PurePath'
    """
    if isinstance(value, str):
        return value
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}:{named.__qualname__}"


SPELLING = Spelling("NAME|MODULE:OBJECT", _read, object_name)
Part = Annotated[str | Callable[..., Any], SPELLING]
"""A name of a table, ``package.module:object``, or in Python the object itself."""


Prefixes = Mapping[str, Callable[[str], Any]]
"""What a setting's names with a certain beginning mean, as ``timm:resnet18``: a function of what is after the colon."""


@dataclass(frozen=True)
class PartRule(Rule):
    """The rule for a part, with the prefixes that its setting has."""

    prefixes: Prefixes = field(default_factory=dict, compare=False)


def one_of(names: Iterable[str], prefixes: Prefixes | None = None) -> Rule:
    """The rule for a :data:`Part` whose table has these names; objects are looked up when they are used."""
    names, prefixes = tuple(names), prefixes or {}
    return PartRule(
        lambda part: (part in names or ":" in part) if isinstance(part, str) else callable(part),
        expected_of(names, prefixes),
        prefixes=prefixes,
    )


def expected_of(names: Iterable[str], prefixes: Iterable[str] = ()) -> str:
    """What fits, for messages."""
    known = [*names, *(f"{prefix}:NAME" for prefix in prefixes)]
    return f"one of {', '.join(known)}, or package.module:object"


def find(part: str | Kind, table: Mapping[str, Kind], name: str, prefixes: Prefixes | None = None) -> Kind:
    """The entry of ``table``, or the object that ``package.module:object`` means; an object stands for itself.

    Args:
        part: a name or an object.
        table: the objects that have names.
        name: of the setting, for messages.
        prefixes: what names with these beginnings mean, instead of an object of a module.

    Raises:
        SettingError: no such name, module or object.
    """
    prefixes = prefixes or {}
    if not isinstance(part, str):
        return part
    if part in table:
        return table[part]
    if ":" not in part:
        raise SettingError(name, part, expected_of(table, prefixes))
    return _object(part, name, prefixes)


def require_objects(settings: object) -> None:
    """Looks up every part of some settings whose name has a colon.

    Raises:
        SettingError: there is no such module or object, or nothing of the name that follows a prefix.
    """
    for option in options(settings):
        if option.spelling is SPELLING and isinstance(option.value, str) and ":" in option.value:
            prefixes = next((rule.prefixes for rule in option.rules if isinstance(rule, PartRule)), {})
            _object(option.value, option.name, prefixes)


def _object(part: str, name: str, prefixes: Prefixes) -> Any:
    prefix, _, rest = part.partition(":")
    return prefixes[prefix](rest) if prefix in prefixes else load_object(part, name)


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
