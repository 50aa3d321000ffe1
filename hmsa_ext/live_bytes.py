"""How many bytes of tensors live at once, and which part of a network made them, for real and fake tensors."""

from __future__ import annotations

import bisect
import contextlib
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import Self

from hmsa_ext.fake_tensors import RememberingFakes, tensors_in


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that ops make while it is active: ``live`` now, ``peak`` at most.

    Storages that existed before are not counted, workspace that a kernel takes and returns inside one op is not seen,
    nor is anything that Inductor allocates. Fake tensors, which have no memory, count like those that they stand for.

    >>> with LiveBytes() as meter:
    ...     a = torch.zeros(1000)
    ...     b = a.view(10, 100) + 1
    ...     del a
    >>> meter.live, meter.peak
    (4000, 8000)
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: dict[int, int] = {}
        """Address and number of each storage that lives and is counted, or ignored. An address can come again."""
        self._number = 0
        self._fakes: RememberingFakes | None = None

    def __enter__(self) -> Self:
        self._fakes = RememberingFakes.active()
        if self._fakes is None:
            return super().__enter__()
        self._fakes.watchers.append(self._look)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._fakes is None:
            super().__exit__(*error)
        else:
            self._fakes.watchers.remove(self._look)

    def ignore(self, *tensors: Tensor) -> Self:
        """Do not count these, which exist already."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()._cdata] = -1
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._look(args, kwargs, result)
        return result

    def _look(self, args: Any, kwargs: Any, result: Any) -> None:
        """Counts the storages that the operation with these arguments has made."""
        if result is None or (args and result is args[0]):
            return
        given: set[int] | None = None
        for tensor in tensors_in((result,)):
            if tensor.layout != torch.strided:
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in self._known or storage.nbytes() == 0:
                continue
            if given is None:
                given = {
                    t.untyped_storage()._cdata
                    for t in tensors_in((args, tuple((kwargs or {}).values())))
                    if t.layout == torch.strided
                }
            if storage._cdata not in given:
                self._count(storage)

    def _count(self, storage: torch.UntypedStorage) -> int:
        """Counts a storage until it goes; returns its number."""
        key, size, number = storage._cdata, storage.nbytes(), self._number
        self._number += 1
        self._known[key] = number
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size)
        return number

    def _gone(self, key: int, size: int) -> None:
        del self._known[key]
        self.live -= size


@dataclass(frozen=True)
class Origin:
    """What made a storage.

    part: path of the module, as :meth:`torch.nn.Module.named_modules` has it ("" for the network itself), or what
        :meth:`LiveParts.part` or :meth:`LiveParts.count` called it.
    phase: "" for what the forward pass or something else made, "gradients" in backward, "recomputed" for what the
        forward pass made again in backward.
    """

    part: str
    phase: str = ""


class LiveParts(LiveBytes):
    """A :class:`LiveBytes` that also says which storages lived at the peak, and which module made each.

    In backward the module is that whose forward pass made the node of the autograd graph.

    >>> network = nn.Sequential(nn.Linear(10, 100), nn.ReLU())
    >>> with LiveParts(network) as meter:
    ...     y = network(torch.zeros(8, 10))
    >>> [(origin.part, size) for origin, size in meter.at_peak()]
    [('', 320), ('0', 3200), ('1', 3200)]
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network
        self._entered: list[Origin] = [Origin("")]
        self._nodes: tuple[list[int], list[str]] = ([], [])
        """Number of the first node of the autograd graph, and the part that made it and those after it."""
        self._thread = threading.get_ident()
        self._born: list[tuple[int, int, Origin]] = []
        """Of each storage, by its number: when it came, its bytes, what made it."""
        self._died: dict[int, int] = {}
        self._clock = 0
        self._peak_at = 0
        self._renamed: dict[int, Origin] = {}
        self._paths: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        # Hooks for all modules, not on each: a network may do something else where its modules have hooks.
        self._paths.update((module, path) for path, module in self._network.named_modules())
        self._hooks.append(register_module_forward_pre_hook(lambda module, _: self._enter_module(module)))
        self._hooks.append(
            register_module_forward_hook(lambda module, *_: self._leave_module(module), always_call=True)
        )
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is made inside belongs to a part of this name, unless a module makes it."""
        self._enter(name)
        try:
            yield
        finally:
            self._leave()

    def count(self, name: str, tensors: Iterable[Tensor]) -> None:
        """Counts the storages of tensors that exist as those of a part; those that are counted only get the name."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            number = self._known.get(storage._cdata)
            if number is None and storage.nbytes() > 0:
                number = self._count(storage)
            if number is not None and number >= 0:
                self._renamed[number] = Origin(name)

    @property
    def peak_origin(self) -> Origin:
        """What made the storage that brought about the peak."""
        number = next((n for n, (time, _, _) in enumerate(self._born) if time == self._peak_at), None)
        return Origin("") if number is None else self._born[number][2]

    def at_peak(self) -> list[tuple[Origin, int]]:
        """What made each storage that lived at the peak, and its bytes, in the order of time; the sum is ``peak``."""
        return [
            (self._renamed.get(number, origin), size)
            for number, (time, size, origin) in enumerate(self._born)
            if time <= self._peak_at < self._died.get(number, self._clock + 1)
        ]

    def _count(self, storage: torch.UntypedStorage) -> int:
        before = self.peak
        number = super()._count(storage)
        self._clock += 1
        self._born.append((self._clock, storage.nbytes(), self._origin()))
        if self.peak > before:
            self._peak_at = self._clock
        return number

    def _gone(self, key: int, size: int) -> None:
        self._clock += 1
        self._died[self._known[key]] = self._clock
        super()._gone(key, size)

    def _enter_module(self, module: nn.Module) -> None:
        if module in self._paths:
            self._enter(self._paths[module])

    def _leave_module(self, module: nn.Module) -> None:
        if module in self._paths:
            self._leave()

    def _enter(self, part: str) -> None:
        again = torch._C._current_autograd_node() is not None
        self._entered.append(Origin(part, "recomputed" if again else ""))
        self._mark(part)

    def _leave(self) -> None:
        self._entered.pop()
        self._mark(self._entered[-1].part)

    def _mark(self, part: str) -> None:
        """Nodes from here on belong to the part. Each thread counts its own nodes; those of one are known here."""
        if threading.get_ident() == self._thread:
            first, parts = self._nodes
            first.append(torch.autograd._get_sequence_nr())  # pyright: ignore[reportPrivateImportUsage]
            parts.append(part)

    def _origin(self) -> Origin:
        inner, node = self._entered[-1], torch._C._current_autograd_node()
        if inner.phase or node is None:
            return inner
        place = bisect.bisect_right(self._nodes[0], node._sequence_nr()) - 1
        # Nodes that sum up gradients have no number of their own. Backward has no gradients itself, but what is
        # computed again in it has.
        phase = "recomputed" if torch.is_grad_enabled() else "gradients"
        return Origin("" if place < 0 else self._nodes[1][place], phase)
