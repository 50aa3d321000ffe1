"""Running a network on images of one size: padding to the multiples that it needs, and checks of its outputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hmsa_ext.errors import ArgumentTypeError, ArgumentValueError
from hmsa_ext.models.inputs import InputError
from hmsa_ext.models.joined_maps import Features, JoinedMaps, as_tensor

# Error messages of networks that cannot run at a size: skip connections of different sizes, and explicit checks.
_ABOUT_SIZES = re.compile(r"must match|divisible|multiple|n't match|greater than actual input size|size is too small")
_ABOUT_BATCH_NORM = "more than 1 value per channel"


def run_network(
    network: Callable[[Tensor], Any], images: Tensor, divisor: int = 1
) -> tuple[Tensor, Tensor | None, Features]:
    """Logits, auxiliary logits (or None) and features of ``images`` [B, 3, H, W], all of one height and width.

    With a ``divisor`` the network sees images whose sides are multiples of it: they are padded with 0 (in normalised
    images the mean colour; in convolutions, what lies beyond the border) at the right and at the bottom, by fewer than
    ``divisor`` pixels. With the network's stride s, which must divide ``divisor``, the outputs are cropped to their
    first ceil(H / s) rows and ceil(W / s) columns: those that show the images. Nothing is resampled.

    Args:
        network: returns ``(logits, features)`` or ``(logits, aux, features)``.
        images: normalised.
        divisor: a number that the network needs H and W to be multiples of; 1 pads nothing.

    Raises:
        InputError: the network failed on the size, or its stride does not divide ``divisor``.
        TypeError: the network returned something else.
        ValueError: the network returned tensors that do not fit each other.
    """
    if divisor == 1:
        return _checked(_call(network, images))
    height, width = images.shape[-2:]
    below, right = -height % divisor, -width % divisor
    if below or right:
        images = F.pad(images, (0, right, 0, below))
    logits, aux, features = _checked(_call(network, images))
    padded = images.shape[-2:]
    rows, columns = (
        _shown(side, of_padded, of_logits, divisor, padded, logits)
        for side, of_padded, of_logits in zip((height, width), padded, logits.shape[-2:], strict=True)
    )
    logits, features = logits[..., :rows, :columns], as_tensor(features)[..., :rows, :columns]
    return logits, None if aux is None else aux[..., :rows, :columns], features


def check_divisor(divisor: int) -> None:
    """Raises ValueError unless ``divisor`` is a positive integer."""
    if isinstance(divisor, bool) or not isinstance(divisor, int) or divisor < 1:
        raise ArgumentValueError(f"divisor: expected a positive integer, got {divisor!r}")


def _shown(side: int, of_padded: int, of_logits: int, divisor: int, padded: torch.Size, logits: Tensor) -> int:
    """Rows or columns of the logits that show the images."""
    stride = of_padded // of_logits
    if stride * of_logits != of_padded or divisor % stride:
        raise InputError(
            f"divisor: expected logits at a stride that divides {divisor}, got {list(logits.shape)} for images of "
            f"{padded[0]} x {padded[1]}"
        )
    return -(-side // stride)


def _call(network: Callable[[Tensor], Any], images: Tensor) -> Any:
    """The network's outputs; errors that the size of the images explains say so."""
    if torch.compiler.is_compiling():
        return network(images)
    try:
        return network(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        if isinstance(error, InputError):
            raise
        text = " ".join(str(error).split())
        count, _, height, width = images.shape
        if _ABOUT_BATCH_NORM in text:
            raise InputError(
                f"images: a batch of {count} with {height} x {width} pixels ends in a map of one pixel, and batch norm "
                "in training needs more than one value per channel; use a larger crop, scale or batch size"
            ) from error
        if _ABOUT_SIZES.search(text):
            raise InputError(
                f"network: failed on images of {height} x {width} pixels: {text}. If the network needs sides that are "
                "multiples of a number, state the number and images are padded: MultiScale(..., divisor=32), or "
                "trunk.divisor = 32"
            ) from error
        raise


def _checked(outputs: Any) -> tuple[Tensor, Tensor | None, Features]:
    if not isinstance(outputs, tuple | list) or len(outputs) not in (2, 3):
        got = f"{len(outputs)} values" if isinstance(outputs, tuple | list) else type(outputs).__name__
        raise ArgumentTypeError(
            f"network: expected it to return (logits, features) or (logits, aux, features), got {got}"
        )
    for value in outputs:
        if not isinstance(value, Tensor | JoinedMaps) or value.dim() != 4:
            got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentTypeError(f"network: expected it to return tensors [B, *, h, w], got {got}")
    logits, features = outputs[0], outputs[-1]
    aux = outputs[1] if len(outputs) == 3 else None
    if aux is not None and aux.shape != logits.shape:
        raise ArgumentValueError(f"network: aux {list(aux.shape)} differs from logits {list(logits.shape)}")
    if features.shape[-2:] != logits.shape[-2:]:
        raise ArgumentValueError(
            f"network: features {list(features.shape)} and logits {list(logits.shape)} must be of one height and width"
        )
    return logits, aux, features
