"""What every op of the package registers in the same way."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hmsa_ext.ops import library

_AUTOCAST_KEYS = ("AutocastCPU", "AutocastCUDA", "AutocastXPU")
_autocast_set = functools.reduce(
    lambda keys, key: keys | torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)),
    _AUTOCAST_KEYS[1:],
    torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _AUTOCAST_KEYS[0])),
)
# Registrations live as long as the Library objects.
_library = torch.library.Library("hmsa", "IMPL")


@functools.cache
def _say_once(op: str, device_type: str) -> None:
    warnings.warn(f"hmsa_ext has no {op} kernel for {device_type}: running it in plain PyTorch", stacklevel=4)


def has_kernels(op: str, device: torch.device) -> bool:
    """Whether the library computes ``op`` on ``device``. On CUDA it must (else NotImplementedError says how to build
    it); devices that we have no kernels for get False, and one warning."""
    if device.type in ("cpu", "meta"):
        return True
    if device.type == "cuda":
        library.require_kernels(device)
        return True
    _say_once(op, device.type)
    return False


def explain_missing_cuda(op: str) -> None:
    """In a CPU-only build, make the raw op say so when a CUDA tensor arrives."""
    if library.has_cuda_kernels():
        return

    def refuse(*args, **kwargs):
        library.require_kernels(torch.device("cuda"))

    _library.impl(op, refuse, "CUDA")


def register_autocast(op: str, function: Callable) -> None:
    """Run ``function`` instead of ``op`` under autocast, with autocast switched off inside."""

    @functools.wraps(function)
    def without_autocast(*args, **kwargs):
        with torch._C._ExcludeDispatchKeyGuard(_autocast_set):
            return function(*args, **kwargs)

    for key in _AUTOCAST_KEYS:
        _library.impl(op, without_autocast, key)


def promote(*lists: Sequence[Tensor]) -> list[list[Tensor]]:
    """Cast the tensors of all lists to the widest floating dtype among them."""
    dtypes = {tensor.dtype for tensors in lists for tensor in tensors}
    floating = [dtype for dtype in dtypes if dtype.is_floating_point]
    if len(dtypes) < 2 or not floating:
        return [list(tensors) for tensors in lists]
    widest = functools.reduce(torch.promote_types, floating)
    return [[tensor.to(widest) for tensor in tensors] for tensors in lists]


def fold(tensors: Sequence[Tensor], in_dims: Sequence[int | None] | None, batch_size: int) -> list[Tensor]:
    """For vmap: make the mapped dimension of every tensor part of its batch; repeat tensors that have none."""
    folded = []
    for tensor, dim in zip(tensors, in_dims or [None] * len(tensors), strict=True):
        tensor = tensor.movedim(dim, 0) if dim is not None else tensor.expand(batch_size, *tensor.shape)
        folded.append(tensor.flatten(0, 1))
    return folded
