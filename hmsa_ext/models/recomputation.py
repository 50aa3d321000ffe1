"""Computing parts of a network again in backward instead of keeping what lies between their layers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from hmsa_ext.errors import HmsaError
from hmsa_ext.settings import SettingError

MODES = {
    "none": "keep everything",
    "modules": "recompute each module of the trunk and each part of the heads",
    "all": "the same, and inside of them each block",
}
"""What :func:`recompute` takes, with a line for help texts."""

Network = TypeVar("Network", bound=nn.Module)
Result = TypeVar("Result")


class RecomputeError(HmsaError, RuntimeError):
    """A module that would not give the same a second time."""


def recompute(model: Network, mode: str) -> Network:
    """Sets what is computed again in backward, and returns the model.

    A part that is recomputed keeps its inputs for backward and nothing else. Its gradients are those of the plain
    network up to rounding: dropout drops the same, and running statistics of batch norm are updated once. Without
    gradients, as in evaluation, nothing changes. Parameters, their names and ``state_dict()`` stay as they are.

    The parts are modules: those that a module names itself (``recompute_parts(mode)``, see :func:`run_part`), and else
    the innermost ones of several layers, such as the blocks of a ResNet.

    Args:
        model: any network; changed in place.
        mode: ``"none"``, ``"modules"``, or ``"all"``: also the blocks inside of each part, so that a part that is
            recomputed does not keep all of its own maps at once.

    Raises:
        hmsa_ext.settings.SettingError: another mode. It is a ValueError.

    >>> from hmsa_ext import models
    >>> model = recompute(models.build("hrnet_small_ocr", 11), "modules")
    """
    if not isinstance(mode, str) or mode not in MODES:
        raise SettingError("recompute", mode, ", ".join(MODES))
    for module in model.modules():
        if isinstance(module, _Recomputed):
            _set_class(module, module.plain_class)
        if getattr(module, "recomputes", None) in MODES:
            module.__dict__["recomputes"] = mode
    if mode != "none":
        for child in model.children():
            for part in _parts(child, mode):
                _change(part)
    return model


def run_part(owner: nn.Module, function: Callable[..., Result], *inputs: Any) -> Result:
    """``function(*inputs)``, a method of ``owner`` that runs some of its layers, as one part of the network.

    A module whose parts are no modules has the attribute ``recomputes = "none"``, which :func:`recompute` sets to its
    mode, and calls this. Its method ``recompute_parts(mode)`` gives a list of those of its submodules that are parts as
    well.
    """
    if owner.recomputes == "none" or not torch.is_grad_enabled():
        return function(*inputs)
    return _checkpoint(owner, function, *inputs)


def is_recomputed(module: nn.Module) -> bool:
    """Whether :func:`recompute` has chosen this module."""
    return isinstance(module, _Recomputed)


def plain_type(module: nn.Module) -> type[nn.Module]:
    """The class of a module, without what :func:`recompute` made of it."""
    return module.plain_class if isinstance(module, _Recomputed) else type(module)


def _parts(module: nn.Module, mode: str) -> Iterator[nn.Module]:
    own: Callable[[str], list[nn.Module]] | None = getattr(module, "recompute_parts", None)
    if own is not None:
        for part in own(mode):
            yield part
            if mode == "all":
                for child in part.children():
                    yield from _parts(child, mode)
    elif _holds_blocks(module):
        for child in module.children():
            yield from _parts(child, mode)
    elif any(True for _ in module.children()) and any(p.dim() > 1 for p in module.parameters()):
        # Without a convolution there is nothing to gain: the input that is kept is as large as what is not.
        yield module


def _holds_blocks(module: nn.Module) -> bool:
    """Whether there is a list or sequence of modules that have layers themselves, at any depth, or a bare list."""
    containers = [m for m in module.modules() if isinstance(m, nn.Sequential | nn.ModuleList | nn.ModuleDict)]
    nested = any(True for m in containers for child in m.children() for _ in child.children())
    return nested or isinstance(module, nn.ModuleList | nn.ModuleDict)


def _change(module: nn.Module) -> None:
    if not isinstance(module, _Recomputed):
        _set_class(module, _recomputed_class(type(module)))


def _set_class(module: nn.Module, kind: type[nn.Module]) -> None:
    module.__class__ = kind


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _recomputed_class(plain: type[nn.Module]) -> type[nn.Module]:
    if plain not in _CLASSES:
        names = {"plain_class": plain, "__module__": plain.__module__, "__qualname__": plain.__qualname__}
        _CLASSES[plain] = type(plain.__name__, (_Recomputed, plain), names)
    return _CLASSES[plain]


def _blank(plain: type[nn.Module]) -> nn.Module:
    """A recomputed module without state, for copies and files, which then give it one."""
    kind = _recomputed_class(plain)
    return kind.__new__(kind)


class _Recomputed(nn.Module):
    """What :func:`recompute` puts before the class of a module. The names of the class are those of before."""

    plain_class: type[nn.Module]

    def forward(self, *args: Any, **options: Any) -> Any:
        plain = super().forward
        if not torch.is_grad_enabled():
            return plain(*args, **options)
        return _checkpoint(self, plain, *args, **options)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (self.plain_class,), self.__dict__


def _checkpoint(part: nn.Module, function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    # What a list holds has to be seen: else a part inside of another one would keep it beyond the first pass.
    leaves, structure = pytree.tree_flatten((inputs, options))

    def run(*values: Any) -> Any:
        inputs, options = pytree.tree_unflatten(values, structure)
        return function(*inputs, **options)

    if torch.compiler.is_compiling():  # the compiler itself keeps what a pass writes from being written twice
        return checkpoint(run, *leaves, use_reentrant=False)
    with _unchanged_state(part):
        return checkpoint(run, *leaves, use_reentrant=False, context_fn=functools.partial(_contexts, part))


def _contexts(part: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Of the first pass, and of the second one."""
    return contextlib.nullcontext(), _Again(part)


class _Again:
    """Inside, norms write their running statistics to copies: the first pass has updated those that count.

    It can be entered again: of a graph that is kept, each backward is one more pass.
    """

    def __init__(self, part: nn.Module) -> None:
        self._norms = [module for module in part.modules() if isinstance(module, _NormBase)]
        self._kept: list[list[dict[str, Any]]] = []

    def __enter__(self) -> None:
        self._kept.append([dict(module._buffers) for module in self._norms])
        for module in self._norms:
            module._buffers.update({name: None if x is None else x.clone() for name, x in module._buffers.items()})

    def __exit__(self, *_: object) -> None:
        for module, buffers in zip(self._norms, self._kept.pop(), strict=True):
            module._buffers.update(buffers)


@contextlib.contextmanager
def _unchanged_state(part: nn.Module) -> Iterator[None]:
    """Raises :class:`RecomputeError` where a layer other than a norm writes to its buffers: it would do so twice."""
    buffers = [
        (module, buffer, tensor, tensor._version)
        for module in part.modules()
        if not isinstance(module, _NormBase)
        for buffer, tensor in module.named_buffers(recurse=False)
    ]
    yield
    for module, name, tensor, version in buffers:
        if module._buffers.get(name) is not tensor or tensor._version != version:
            raise RecomputeError(
                f"recompute: {type(module).__name__} writes to its buffer {name} in forward, and would do so again in "
                'backward; expected modules whose only changing buffers are those of norms (use recompute "none")'
            )
