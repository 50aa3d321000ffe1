"""Shared by the public functions: checks of arguments, options of the losses, and the documentation of both.

The checks here are of what the ops cannot see: objects that are no tensors, sizes that are no integers, options that
were not chosen. Shapes, dtypes and values are checked by the ops themselves, and by the fake kernels with
:func:`expect`, in the same words.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

import torch
from torch import Tensor

from hmsa_ext.errors import ArgumentTypeError, ArgumentValueError

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGER = (torch.uint8, torch.int16, torch.int32, torch.int64)
IGNORED = 255
"""``ignore_index`` where none is chosen."""
_F = TypeVar("_F", bound=Callable)


# ---- options of the losses --------------------------------------------------------------------------------------


class LossOptions(TypedDict, total=False):
    """Options of every loss on a chain of scales."""

    ignore_index: int | None
    align_corners: bool


class CrossEntropyOptions(LossOptions, total=False):
    """Options of the cross-entropy, whatever is made of its pixels."""

    weight: Tensor | None
    label_smoothing: float


LOSS_DEFAULTS: LossOptions = {"ignore_index": None, "align_corners": False}
CROSS_ENTROPY_DEFAULTS: CrossEntropyOptions = {
    "weight": None,
    "ignore_index": None,
    "label_smoothing": 0.0,
    "align_corners": False,
}


def filled(op: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """All options: those given, and the defaults of the others. Raises TypeError for one that there is not."""
    complete = {**defaults, **options}
    if len(complete) > len(defaults):
        unknown = next(name for name in options if name not in defaults)
        raise ArgumentTypeError(f"{op}: got {unknown!r}; expected options among {', '.join(defaults)}")
    return complete


# ---- checks -----------------------------------------------------------------------------------------------------


def tensor(op: str, name: str, value: Any, dtypes: Sequence[torch.dtype], shape: str) -> None:
    """Raise TypeError unless ``value`` is a tensor, RuntimeError unless its dtype is one of ``dtypes``."""
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"{op}: {name} is {_kind(value)}; expected a tensor {shape}")
    if value.dtype not in dtypes:
        raise RuntimeError(f"{op}: {name} is {dtype_name(value)}; expected {listed(dtypes)}")


def tensors(op: str, name: str, values: Iterable[Tensor], dtypes: Sequence[torch.dtype], shape: str) -> list[Tensor]:
    """The list of these tensors, each checked as by :func:`tensor`."""
    if type(values) is not list and (isinstance(values, Tensor) or not isinstance(values, Iterable)):
        raise ArgumentTypeError(f"{op}: {name} is {_kind(values)}; expected a list of tensors {shape}")
    values = list(values)
    for i, value in enumerate(values):
        if not isinstance(value, Tensor) or value.dtype not in dtypes:
            tensor(op, f"{name}[{i}]", value, dtypes, shape)
    return values


def sides(op: str, name: str, size: Sequence[int]) -> list[int]:
    """Height and width, which may be symbolic. Raises TypeError for anything but integers; nothing is rounded."""
    try:
        return [side if type(side) is int or isinstance(side, torch.SymInt) else operator.index(side) for side in size]
    except TypeError:
        raise ArgumentTypeError(f"{op}: {name} is {size!r}; expected two integers, (height, width)") from None


def numbers(op: str, name: str, values: Iterable[float]) -> list[float]:
    """A list of floats. Raises TypeError for anything else."""
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):
        raise ArgumentTypeError(f"{op}: {name} is {values!r}; expected a list of numbers") from None


def flag(op: str, name: str, value: bool) -> bool:
    """True or False. Raises TypeError for anything else, which would be taken for one of them."""
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{op}: {name} is {value!r}; expected True or False")
    return value


def ignored(op: str, ignore_index: int | None, classes: int) -> int:
    """The label to ignore: 255 where none is chosen. Raises ValueError if that is a class."""
    if ignore_index is None and classes > IGNORED:
        raise ArgumentValueError(
            f"{op}: ignore_index was not given, and its default {IGNORED} is one of the {classes} classes; "
            f"expected a choice: a label that is no class, such as -100, or {IGNORED} to ignore that class"
        )
    return chosen(ignore_index)


def chosen(ignore_index: int | None) -> int:
    """The label to ignore, of a function that calls one that checks it: 255 where none is chosen."""
    return IGNORED if ignore_index is None else ignore_index


def is_valid(labels: Tensor, ignore_index: int) -> Tensor:
    """Where labels are not ``ignore_index``, compared as integers without end: no uint8 label is 256 or -100."""
    limits = torch.iinfo(labels.dtype)
    if limits.min <= ignore_index <= limits.max:
        return labels != ignore_index
    return torch.ones_like(labels, dtype=torch.bool)


def expect(conditions: Sequence[bool | torch.SymBool], text: Callable[[], str]) -> None:
    """For fake kernels: raise RuntimeError unless all conditions hold, or may hold for some values of symbolic sizes.

    Nothing is decided about symbolic sizes, so that a graph stays valid for all of them: the kernels check the rest.
    """
    if not all(map(_may_hold, conditions)):
        raise RuntimeError(text())


def _may_hold(condition: bool | torch.SymBool) -> bool:
    if not isinstance(condition, torch.SymBool):
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import statically_known_false  # imports sympy

    return not statically_known_false(condition)


# ---- words ------------------------------------------------------------------------------------------------------


def dtype_name(value: Tensor) -> str:
    """``float32`` and so on."""
    return str(value.dtype).removeprefix("torch.")


def shape_of(value: Tensor) -> str:
    """``[2, 3]`` and so on."""
    return str(list(value.shape))


def listed(dtypes: Sequence[torch.dtype]) -> str:
    """``uint8, int16 or int32`` and so on."""
    *most, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
    return f"{', '.join(most)} or {last}" if most else last


def number(value: float) -> str:
    """As C++ prints a number: six digits."""
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


# ---- documentation ----------------------------------------------------------------------------------------------

_SHARED = {
    "chain": """\
logits: one [B, C, h_s, w_s] per scale, at the head's own resolution; float32, float16, bfloat16 or float64.
attention: one [B, 1 or C, h_s, w_s] per scale but the largest, in the order of ``scales``, in [0, 1].
scales: up to 8 different positive numbers in any order, 1.0 among them when there is more than one.""",
    "size": "size: (H, W) of the image at scale 1.0, in pixels; integers, which may be symbolic.",
    "align_corners": "align_corners: as in ``torch.nn.functional.interpolate``.",
    "target": "target: [B, H, W] labels at the size of the image; uint8, int16, int32 or int64, read as they are.",
    "weight": "weight: [C], a factor for each class, of any floating dtype; it gets no gradient.",
    "ignore_index": """\
ignore_index: label of the pixels that do not count, 255 by default (``F.cross_entropy`` has -100). With
    more than 255 classes there is no default.""",
    "label_smoothing": "label_smoothing: in [0, 1].",
    "errors": """\
ValueError: for no logits, scales given twice, lists of different lengths, or an ``ignore_index`` that was
    not chosen and is a class.
TypeError: for anything but lists of tensors, tensors and integers in their places.
RuntimeError: for anything else that does not fit. Every message names the argument, what came and what was
    expected.""",
}


def documented(defaults: Mapping[str, Any] | None = None) -> Callable[[_F], _F]:
    """Complete a public function: ``{chain}`` and so on in its docstring become the text of the shared arguments.

    ``defaults`` are those of its ``**options``, which ``inspect.signature`` and ``help`` then show one by one.
    The function is returned as it came: nothing is called in between.
    """

    def complete(function: _F) -> _F:
        lines = []
        for line in inspect.cleandoc(function.__doc__ or "").splitlines():
            text = line.strip()
            shared = _SHARED.get(text[1:-1]) if text.startswith("{") and text.endswith("}") else None
            indent = line[: len(line) - len(line.lstrip())]
            lines += [line] if shared is None else [indent + part for part in shared.splitlines()]
        function.__doc__ = "\n".join(lines)
        if defaults is not None:
            function.__signature__ = _spelt_out(function, defaults)  # type: ignore[attr-defined]
        return function

    return complete


def _spelt_out(function: Callable, defaults: Mapping[str, Any]) -> inspect.Signature:
    own = inspect.signature(function)
    kinds = {**LossOptions.__annotations__, **CrossEntropyOptions.__annotations__}
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=getattr(kinds[name], "__forward_arg__", kinds[name]),
        )
        for name, default in defaults.items()
    ]
    kept = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    return own.replace(parameters=[*kept, *options])
