"""Data sets by name: the list of names, the options of each data set, and the function that opens any of them."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from typing import Any

from hmsa_ext.data import sets
from hmsa_ext.data.automatic.trust import Trust
from hmsa_ext.data.source import name_of, reads_automatic, source_of_function, unknown_option
from hmsa_ext.data.types import ClassTable, DataError, Dataset
from hmsa_ext.parts import expected_of
from hmsa_ext.settings import SettingError, load_object

NAMES: tuple[str, ...] = tuple(sorted(module.name for module in pkgutil.iter_modules(sets.__path__)))
"""The data sets of this package: the modules in :mod:`hmsa_ext.data.sets`."""


def build(source: Any, split: str, *, length: int | None = None, **options: Any) -> Dataset:
    """One split of a data set.

    source: a name in ``NAMES``; ``"package.module:factory"``; or the factory itself. A factory is a dataclass with
        ``open`` (see :mod:`hmsa_ext.data.source`), or a function or class called as ``factory(split, **options)`` that
        returns a :class:`hmsa_ext.data.Dataset`.
    split: "train" or "val"; some data sets have more, see ``source_type(name).splits``.
    length: only the first so many images; the number of scenes of "synthetic".
    options: those that the data set declares; ``help(source_type(name))`` lists them. Data sets with automatic labels
        take the fields of :class:`hmsa_ext.data.automatic.trust.Trust` as well.

    Raises DataError for anything that is not there or does not fit, and for options that the data set does not have.

    >>> len(build("synthetic", "val", size=(64, 128), length=3))
    3
    """
    trust = {field.name: options.pop(field.name) for field in dataclasses.fields(Trust) if field.name in options}
    try:
        kind = source_type(source)
        unknown = unknown_option(kind, list(options))
        if unknown is not None:
            raise DataError(f"{unknown}: {name_of(kind)} has no such option; got {options[unknown]!r}")
        declared = kind(**options)
        if not reads_automatic(declared):
            Trust(**trust).require_used(False)
            return declared.open(split, length=length)
        return declared.open(split, length=length, trust=Trust(**trust))
    except SettingError as error:
        raise DataError(str(error)) from error


def class_table(name: str) -> ClassTable | None:
    """The classes of a data set of this package; None where its own files say them, and for any other name.

    >>> class_table("camvid").names[:2], class_table("folder")
    (('Sky', 'Building'), None)
    """
    if name not in NAMES:
        return None
    return getattr(importlib.import_module(f"hmsa_ext.data.sets.{name}"), "CLASSES", None)


def source_type(source: Any) -> Any:
    """The dataclass that declares the options of a data set, given its name, ``package.module:factory`` or factory.

    Raises :class:`hmsa_ext.settings.SettingError` when there is no such data set.
    """
    if isinstance(source, str):
        if source in NAMES:
            return importlib.import_module(f"hmsa_ext.data.sets.{source}").SOURCE
        if ":" not in source:
            raise SettingError("data", source, expected_of(NAMES))
        source = load_object(source, "data")
    if inspect.isclass(source) and dataclasses.is_dataclass(source) and hasattr(source, "open"):
        return source
    if not callable(source):
        raise SettingError("data", source, "a dataclass with open(), or a function or class that makes a data set")
    return _source_of_function(source)


_source_of_function = functools.cache(source_of_function)  # the same class each time, so that options compare equal
