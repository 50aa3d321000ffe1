"""Fake tensors for steps of many operations: what an operation gives for tensors of some sizes is found once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._library.utils import is_builtin
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Shortcut = Callable[[Any, Any], Any]
"""Gives the result of an operation for its positional and named arguments."""

_DEVICE = torch.ops.prim.device.default
_PLAIN = {bool, int, float, str, type(None), torch.dtype, torch.device, torch.memory_format, torch.layout}
"""Types of arguments that are compared as they are."""
_NEW: Any = object()


class RememberingFakes(FakeTensorMode):
    """A mode of fake tensors that remembers the result of each operation by the sizes of its arguments.

    Results are those of :class:`torch._subclasses.fake_tensor.FakeTensorMode`. Its own cache looks at much that does
    not come up in networks, and takes several times as long.

    watchers: are called with (positional arguments, named arguments, result) after each operation. That costs less
    than a mode of their own.

    >>> with RememberingFakes():
    ...     x = torch.zeros(2, 3) + torch.ones(3)
    >>> x.shape
    torch.Size([2, 3])
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.watchers: list[Callable[[Any, Any, Any], object]] = []
        self._shortcuts: dict[tuple[Any, ...], Shortcut | None] = {}
        self._view: dict[Any, Shortcut | None] = {}
        self._state: dict[torch.device, dict[str, Any]] = {}

    @staticmethod
    def active() -> RememberingFakes | None:
        """The mode inside of which this is called."""
        modes = _get_current_dispatch_mode_stack()
        return next((mode for mode in reversed(modes) if isinstance(mode, RememberingFakes)), None)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing here is compiled, and the guard against it takes as long as a shortcut.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:  # asked for several times in each operation
            return torch.device("meta") if args[0].fake_mode.in_kernel_invocation else args[0].fake_device
        kwargs = kwargs or {}
        shortcut, key = self._views(func, args), None
        if shortcut is None:
            key = self._key(func, args, kwargs)
            shortcut = None if key is None else self._shortcuts.get(key, _NEW)
        if shortcut is None or shortcut is _NEW:
            watchers, self.watchers = self.watchers, []  # what the operation consists of is not looked at
            try:
                result = super().__torch_dispatch__(func, types, args, kwargs)
            finally:
                self.watchers = watchers
            if key is not None and shortcut is _NEW:
                self._shortcuts[key] = self._shortcut(func, args, kwargs, result)
        else:
            result = shortcut(args, kwargs)
        for watch in self.watchers:
            watch(args, kwargs, result)
        return result

    def _views(self, func: Any, args: Any) -> Shortcut | None:
        """The shortcut of an operation whose results are views, whatever its other arguments are. It has no others."""
        if func not in self._view:
            simple = is_builtin(func) and func.is_view and not _is_composite(func)
            self._view[func] = _View(self, func) if simple and torch.Tag.inplace_view not in func.tags else None
        view = self._view[func]
        return view if view is not None and args and self._is_sized(args[0]) else None

    def _is_sized(self, x: Any) -> bool:
        """Whether this is a fake tensor of this mode that is nothing but its sizes."""
        return type(x) is FakeTensor and x.fake_mode is self and x.constant is None and x.layout == torch.strided

    def _key(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, ...] | None:
        """All that the result depends on; None where that cannot be told."""
        key = [func, torch.is_inference_mode_enabled(), torch.get_default_dtype()]
        known = self._describe(key, args) and (not kwargs or self._describe(key, kwargs.items()))
        return tuple(key) if known else None

    def _describe(self, key: list[Any], values: Iterable[Any]) -> bool:
        for value in values:
            kind = type(value)
            if kind is FakeTensor:
                if not self._is_sized(value):
                    return False
                # Nothing but a view depends on the place in the memory.
                key += (value.shape, value.stride(), value.dtype, value.fake_device, value.requires_grad)
            elif kind in _PLAIN:
                key += (kind, value)  # 1, 1.0 and True are equal
            elif kind is list or kind is tuple:
                key += (kind, len(value))
                if not self._describe(key, value):
                    return False
            else:
                return False
        return True

    def _shortcut(self, func: Any, args: Any, kwargs: Any, result: Any) -> Shortcut | None:
        """A way to the same result for other tensors of these sizes; None where there is none."""
        if not is_builtin(func) or torch.Tag.inplace_view in func.tags:
            return None
        if result is None:
            return lambda args, kwargs: None
        for place, value in enumerate(args):
            if result is value:
                return lambda args, kwargs: args[place]
        kind = list if isinstance(result, list) else tuple if isinstance(result, tuple) else None
        outputs: Any = (result,) if kind is None else result
        if func._schema.is_mutable or not all(x is None or _is_plain(x) for x in outputs):
            return None
        given = {x.untyped_storage()._cdata for x in tensors_in((args, tuple(kwargs.values())))}
        made = [x.untyped_storage()._cdata for x in outputs if x is not None]
        if kind is None and args and self._is_sized(args[0]) and _is_composite(func) and given.issuperset(made):
            return _View(self, func)  # such as a reshape
        if given.isdisjoint(made) and len(made) == len(set(made)) and all(x is None or _is_whole(x) for x in outputs):
            return _Fresh(self, outputs, kind)
        return None

    def wrap(self, tensor: Tensor, device: torch.device) -> FakeTensor:
        """A fake tensor on a device, made of a tensor without memory."""
        # To copy what else it consists of takes less than to make it.
        fake = Tensor._make_subclass(FakeTensor, tensor, dispatch_device=True, device_for_backend_keys=device)
        torch._C._set_throw_on_mutable_data_ptr(fake)
        if device not in self._state:
            self._state[device] = vars(FakeTensor(self, tensor, device))
        vars(fake).update(self._state[device])
        return fake


class _Fresh:
    """Makes tensors with memory of their own, or a list or tuple of them."""

    def __init__(self, mode: RememberingFakes, outputs: Any, kind: Any) -> None:
        self._mode, self._kind = mode, kind
        self._like = [None if x is None else (x.shape, x.stride(), x.dtype, x.fake_device) for x in outputs]

    def __call__(self, args: Any, kwargs: Any) -> Any:
        made = []
        for like in self._like:
            if like is None:
                made.append(None)
            else:
                shape, stride, dtype, device = like
                tensor = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
                made.append(self._mode.wrap(tensor, device))
        return made[0] if self._kind is None else self._kind(made)


class _View:
    """Makes tensors in the memory of the first argument."""

    def __init__(self, mode: RememberingFakes, func: Any) -> None:
        self._mode, self._func = mode, func

    def __call__(self, args: Any, kwargs: Any) -> Any:
        with in_kernel_invocation_manager(self._mode):
            made = self._func(*args, **kwargs)
        device = args[0].fake_device
        if isinstance(made, Tensor):
            return self._mode.wrap(made, device)
        return [self._mode.wrap(x, device) for x in made]


def _is_composite(func: Any) -> bool:
    """Whether the operation consists of others for each device, so that it makes a view or not as these do."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _is_plain(x: Any) -> bool:
    """Whether this is a fake tensor that its sizes describe."""
    if type(x) is not FakeTensor or x.constant is not None or x.layout != torch.strided or x.requires_grad:
        return False
    return not (x.is_conj() or x.is_neg())


def _is_whole(x: Tensor) -> bool:
    """Whether the memory of a tensor is that of one which is made with its sizes."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else -1
    return x.storage_offset() == 0 and x.untyped_storage().nbytes() == (last + 1) * x.element_size()


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments or results of an operation, and in its lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
