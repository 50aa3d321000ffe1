"""One FLOP count for all competitors: the same mapping for every op, ours and torch.compile's included."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from functorch.compile import (
    make_boxed_func,  # pyright: ignore[reportPrivateImportUsage]  (its public place)
    min_cut_rematerialization_partition,
)
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from torch.utils.flop_counter import FlopCounterMode

from bench import competitors
from bench.cases import Case


def of_competitor(name: str, case: Case, direction: str) -> int:
    """Floating-point operations of one call. Only shapes count, so nothing is computed: the inputs are meta tensors."""
    if case.op == "confusion_matrix":  # counts are integers
        return 0
    inputs = competitors.make_inputs(case, "meta")
    if name != "compile":
        return count_flops(competitors.runner(competitors.build(name, case.op), case, direction, inputs))
    torch._dynamo.reset()
    counting = CountingBackend()
    eager = competitors.build("eager", case.op)
    competitors.runner(counting.compile(eager), case, direction, inputs)()
    torch._dynamo.reset()
    return counting.flops


aten = torch.ops.aten


def _elements(per_element: int) -> Callable[..., int]:
    def count(*args, out_shape: Sequence[int], **kwargs) -> int:
        return per_element * math.prod(out_shape)

    return count


def _of_first_input(per_element: int) -> Callable[..., int]:
    def count(shape: Sequence[int], *args, **kwargs) -> int:
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
    aten.log: _elements(1),
    aten.log1p: _elements(1),
    aten.sigmoid: _elements(4),
    aten.sigmoid_backward: _elements(3),
    aten.binary_cross_entropy_with_logits: _of_first_input(8),
    aten.avg_pool2d: _elements(17),
    aten.avg_pool2d_backward: _of_first_input(17),
    aten.index_put: _of_first_input(1),
    aten._unsafe_index_put: _of_first_input(1),
}


def count_flops(function: Callable[[], object]) -> int:
    """Floating-point operations of ``function()`` by the one mapping."""
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        function()
    return counter.get_total_flops()


class CountingBackend:
    """A backend for torch.compile that runs, op by op, the graphs that Inductor would be given, and counts them.

    (A dispatch mode around a compiled function sees nothing: the counting has to be inside.)
    """

    def __init__(self) -> None:
        self.flops = 0

    def compile(self, function: Callable[..., object]) -> Callable[..., object]:
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
            self.flops += count_flops(lambda: results.extend(_WithEffects(graph).run(*args)))
            return results

        return make_boxed_func(run)


class _WithEffects(torch.fx.Interpreter):
    """Runs a graph. Ops that are kept in order, such as the check of a matrix that was inverted, have a wrapper there,
    which a dispatch mode cannot take: they are called without it."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is not torch.ops.higher_order.with_effects:
            return super().call_function(target, args, kwargs)
        token, op, *rest = args
        result = op(*rest, **kwargs)
        return (token, *result) if isinstance(result, tuple) else (token, result)
