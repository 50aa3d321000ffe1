"""The normalisation of images that all networks of this package expect, and a check that images have it.

Networks see RGB images as ``(x / 255 - MEAN) / STD``, with x from 0 to 255. The values are those of ImageNet.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
"""Of red, green, blue, for values from 0 to 1."""
STD = (0.229, 0.224, 0.225)
"""Of red, green, blue, for values from 0 to 1."""
LARGEST = 10.0
"""Normalised images reach from -2.2 to 2.7; anything beyond this is another range."""


class FirstLook:
    """Looks at the first images that a network gets, and warns when they cannot be normalised.

    Later images are not looked at: on a GPU that would wait for the device in every step. Nothing is looked at where
    there are no values to read: on the meta device, in ``torch.compile``, ``torch.export`` and CUDA graphs.
    """

    def __init__(self) -> None:
        self._done = False

    def __call__(self, images: Tensor) -> None:
        # Asked first: a graph of torch.compile must not depend on whether images were looked at.
        if torch.compiler.is_compiling() or self._done or not _has_values(images):
            return
        self._done = True
        smallest, largest = (value.item() for value in torch.aminmax(images.detach()))
        if smallest == largest:  # a constant says nothing, and people try networks on zeros
            return
        if max(-smallest, largest) > LARGEST:
            found = "0 to 255"
        elif smallest >= 0 and largest <= 1:
            found = "0 to 1"
        else:
            return
        warnings.warn(
            f"images: values from {smallest:.3g} to {largest:.3g} look like {found}; expected RGB normalised as "
            "(x / 255 - mean) / std with hmsa_ext.normalisation.MEAN and STD",
            stacklevel=5,  # the line that called the network: forward and two frames of torch.nn.Module lie between
        )


def _has_values(images: Tensor) -> bool:
    if type(images) not in (Tensor, torch.nn.Parameter) or images.numel() == 0:
        return False
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]  (not in the stubs)
    if images.is_meta or functorch.is_functorch_wrapped_tensor(images):
        return False
    return not (images.is_cuda and torch.cuda.is_current_stream_capturing())
