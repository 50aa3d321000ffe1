"""One memory meter and one FLOP count for all competitors."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable

import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that ops make while it is active: ``live`` now, ``peak`` at most.

    Storages that existed before are not counted, workspace that a kernel takes and returns inside one op is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def ignore(self, *tensors: Tensor) -> LiveBytes:
        """Do not count these, which exist already."""
        for tensor in tensors:
            self._known.add(tensor.untyped_storage()._cdata)
        return self

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self._watch(tensor.untyped_storage())
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known or storage.nbytes() == 0:
            return
        self._known.add(key)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, storage.nbytes())

    def _gone(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.live -= nbytes


def saved_bytes(function: Callable[[], object], inputs: list[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of ``function()``, beyond its inputs."""
    storages: dict[int, int] = {}
    given = {t.untyped_storage().data_ptr() for t in inputs}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    total = sum(storages.values())
    del result
    return total


# ---- FLOPs ------------------------------------------------------------------------------------------------------

aten = torch.ops.aten


def _elements(per_element: int) -> Callable[..., int]:
    def count(*args, out_shape=None, **kwargs) -> int:
        return per_element * math.prod(out_shape)

    return count


def _of_first_input(per_element: int) -> Callable[..., int]:
    def count(shape, *args, out_shape=None, **kwargs) -> int:
        return per_element * math.prod(shape)

    return count


# PyTorch's own counter knows matrix products and convolutions only. Bilinear: four products and three sums for every
# output; its adjoint: four products and four sums for every output's gradient.
FORMULAS = {
    aten.upsample_bilinear2d: _elements(7),
    aten.upsample_bilinear2d_backward: _of_first_input(8),
    aten.mul: _elements(1),
    aten.add: _elements(1),
    aten.sub: _elements(1),
    aten.rsub: _elements(1),
    aten.div: _elements(1),
    aten.neg: _elements(1),
    aten.exp: _elements(1),
    aten.sum: _of_first_input(1),
    aten.mean: _of_first_input(1),
    aten._softmax: _elements(4),
    aten._log_softmax: _elements(4),
    aten._log_softmax_backward_data: _elements(4),
    aten.index_put: _of_first_input(1),
    aten._unsafe_index_put: _of_first_input(1),
}


def count_flops(function: Callable[[], object]) -> int:
    """Floating-point operations of ``function()`` by one mapping for every competitor, ours included."""
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        function()
    return counter.get_total_flops()


class CountingBackend:
    """A backend for torch.compile that runs, op by op, the graphs that Inductor would be given, and counts them.

    (A dispatch mode around a compiled function sees nothing: the counting has to be inside.)
    """

    def __init__(self) -> None:
        self.flops = 0

    def compile(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        backend = aot_autograd(
            fw_compiler=self._graph,
            bw_compiler=self._graph,
            decompositions=select_decomp_table(),
            partition_fn=min_cut_rematerialization_partition,
        )
        return torch.compile(function, fullgraph=True, backend=backend)

    def _graph(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        def run(*args):
            results = []
            self.flops += count_flops(lambda: results.extend(graph(*args)))
            return results

        return make_boxed_func(run)
