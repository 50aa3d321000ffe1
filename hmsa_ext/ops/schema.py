"""The arguments of an op by name, as the schema in ``csrc/ops/<op>.cpp`` has them.

An op's schema is the one list of its arguments. What PyTorch calls for an op (fake kernel, vmap, FLOPs ...) gets them
by position, without those at the end that equal their default; here they get their names back.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload


class Arguments(SimpleNamespace):
    """The arguments of one call of an op, each an attribute of its own name. They may be replaced before a call."""


@dataclass(frozen=True)
class Signature:
    """Names and defaults of the arguments of an op, and the names of its results."""

    overload: OpOverload
    names: tuple[str, ...]
    defaults: tuple[Any, ...]
    """One for each of ``names``; None where an argument has to be given."""
    positional: int
    """The first arguments, so many, are positional; the others are given by name."""
    results: tuple[str, ...]
    options: dict[str, Any]
    """Names and defaults of the arguments that are given by name."""

    def values(self, args: tuple, kwargs: dict[str, Any]) -> tuple:
        """All arguments in the order of ``names``."""
        count = len(args)
        if count == len(self.names):
            return args
        rest = zip(self.names[count:], self.defaults[count:], strict=True)
        return *args, *(kwargs.get(name, default) for name, default in rest)

    def bind(self, args: tuple, kwargs: dict[str, Any]) -> Arguments:
        """All arguments by name."""
        return Arguments(**dict(zip(self.names, self.values(args, kwargs), strict=True)))

    def call(self, arguments: Arguments) -> Any:
        """The op's results for these arguments."""
        values = vars(arguments)
        given = [values[name] for name in self.names[: self.positional]]
        return self.overload(*given, **{name: values[name] for name in self.names[self.positional :]})


@functools.cache
def signature(op: str) -> Signature:
    """That of ``hmsa::<op>``."""
    overload = getattr(torch.ops.hmsa, op).default
    arguments = overload._schema.arguments
    return Signature(
        overload,
        tuple(argument.name for argument in arguments),
        tuple(argument.default_value for argument in arguments),
        sum(not argument.kwarg_only for argument in arguments),
        tuple(result.name for result in overload._schema.returns),
        {argument.name: argument.default_value for argument in arguments if argument.kwarg_only},
    )


def tensors(arguments: Sequence) -> Iterator[Tensor]:
    """The tensors among the arguments of an op, and in the lists among them."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list):
            yield from (entry for entry in argument if isinstance(entry, Tensor))
