"""The declaration of a data set: a frozen dataclass whose fields are its options.

A data set on disk is one module in :mod:`hmsa_ext.data.sets`::

    @dataclass(frozen=True)
    class Mine:
        '''Where it is from, and its folders.'''

        splits: ClassVar = ("train", "val")
        needs: ClassVar = "the folder that holds images and masks"

        root: Root = None
        '''Folder of the data set.'''

        def __post_init__(self) -> None:
            check(self)

        def find(self, split: str) -> Listing:
            root = root_of(self, split)
            ...

        def open(self, split: str, *, length: int | None = None) -> Dataset:
            return self.find(split).dataset(length=length)

    SOURCE = Mine

The name of the module is the name of the data set. Functions and classes of other packages do as well: see
:func:`hmsa_ext.data.build`.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from hmsa_ext import settings
from hmsa_ext.data.types import DataError, Dataset, Sample
from hmsa_ext.settings import FREE, Metavar

Root = Annotated[str | None, Metavar("PATH"), FREE]
"""The folder of a data set. :func:`check` makes it absolute."""


@runtime_checkable
class Source(Protocol):
    """The options of a data set. ``open`` reads one split, or its first ``length`` images; it raises DataError."""

    splits: ClassVar[tuple[str, ...]]

    def open(self, split: str, *, length: int | None = None) -> Dataset: ...


def reads_automatic(source: Any) -> bool:
    """Whether ``find`` and ``open`` of a data set take a :class:`hmsa_ext.data.automatic.trust.Trust`."""
    return getattr(source, "reads_automatic", False)


def check(source: Any) -> None:
    """For ``__post_init__``: checks the options against their annotations and makes ``root`` absolute.

    A relative root counts from the current folder. Raises :class:`hmsa_ext.settings.SettingError`.
    """
    root = getattr(source, "root", None)
    if root is not None:
        object.__setattr__(source, "root", str(Path(root).expanduser().absolute()))
    settings.validate(source)


def check_split(source: Any, split: str) -> None:
    """Raises DataError for a split that the data set does not have."""
    if source.splits and split not in source.splits:
        raise DataError(f"split: expected one of {list(source.splits)}, got {split!r}")


def root_of(source: Any, split: str) -> Path:
    """The folder of a data set on disk. Raises DataError when there is none, and for a split that does not exist."""
    if source.root is None:
        raise DataError(f"root: {name_of(type(source))} needs {source.needs}; got none")
    check_split(source, split)
    return Path(source.root)


def name_of(kind: type) -> str:
    """The name of a data set, given the class of its options."""
    return kind.__module__.rpartition(".")[2] if kind.__module__.startswith("hmsa_ext.") else kind.__qualname__


def source_of_function(function: Callable[..., Dataset]) -> type:
    """Options of a function ``function(split, **options) -> Dataset``: its parameters, with annotation and default.

    A parameter without a default has to be given before a split is opened. A parameter ``length`` gets the number of
    images; without one the first images are taken. Classes of data sets are such functions as well.

    Raises :class:`hmsa_ext.settings.SettingError` for parameters that are no options: positional ones and ``*args``.
    """
    name = getattr(function, "__qualname__", repr(function))
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # some built-ins have no signature
        parameters = []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if (
        not parameters
        or parameters[0].kind not in positional
        or any(parameter.kind not in named for parameter in parameters[1:])
    ):
        raise settings.SettingError("data", name, "a function of (split, **options) whose options have names")
    rest = [parameter for parameter in parameters[1:] if parameter.name != "length"]
    annotated = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(annotated, include_extras=True)
    fields, required = [], []
    for parameter in rest:
        if parameter.default is inspect.Parameter.empty:
            required.append(parameter.name)
            fields.append((parameter.name, hints.get(parameter.name, str) | None, dataclasses.field(default=None)))
        else:
            default = parameter.default
            hint = hints.get(parameter.name, Any if default is None else type(default))
            fields.append((parameter.name, hint, dataclasses.field(default_factory=lambda default=default: default)))
    takes_length = len(rest) < len(parameters) - 1

    def open_split(self: Any, split: str, *, length: int | None = None) -> Dataset:
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        missing = [option for option in required if options[option] is None]
        if missing:
            raise DataError(f"{missing[0]}: {name} needs a value; got none")
        dataset = function(split, **options, **({"length": length} if takes_length else {}))
        if not isinstance(dataset, Dataset):
            raise DataError(f"data: {name}({split!r}) gave {dataset!r:.60}; expected a Dataset (see hmsa_ext.data)")
        return dataset if length is None or takes_length else First(dataset, length)

    namespace = {
        "splits": (),
        "open": open_split,
        "function": staticmethod(function),
        "__post_init__": check,
        "__doc__": inspect.getdoc(function) or f"Options of {name}.",
        "__module__": function.__module__,
        "__qualname__": name,
    }
    return dataclasses.make_dataclass(function.__name__, fields, namespace=namespace, frozen=True)


class First:
    """The first ``length`` images of a data set. Raises DataError for a length below 1."""

    def __init__(self, dataset: Dataset, length: int) -> None:
        if length < 1:
            raise DataError(f"length: expected at least 1 image, got {length}")
        self.dataset, self.length, self.classes = dataset, min(length, len(dataset)), dataset.classes
        for name in ("files", "identity", "inspect"):  # the optional parts of a data set
            if hasattr(dataset, name):
                setattr(self, name, getattr(dataset, name))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(f"index: expected 0..{self.length - 1}, got {index}")
        return self.dataset[index]

    def label(self, index: int) -> np.ndarray:
        """The label map of one image."""
        return self.dataset.label(index)


def unknown_option(kind: type, given: Sequence[str]) -> str | None:
    """The first of the given names that is no option of the data set."""
    known = {field.name for field in dataclasses.fields(kind) if field.init}
    return next((name for name in given if name not in known), None)
