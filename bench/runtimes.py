"""The chain of scales by ONNX Runtime and by XLA, on the CPU: what runtimes that compile graphs make of a few ops.

Both compute what :func:`hmsa_ext.ops.reference.fuse_scales` does, forward, from the same memory, with as many threads
as PyTorch has. ONNX Runtime is given Resize, Mul, Add and ArgMax nodes, as an exported network ends with. XLA is given
each resize as a gather of two rows and two columns, which it fuses with what follows; ``jax.image.resize``, a product
with dense matrices, gives the same numbers and took eight times as long.

``pip install "hmsa_ext[bench]"`` installs them. Nothing else here needs them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmsa_ext.ops import reference

PACKAGES = {"onnxruntime": ("onnxruntime", "onnx"), "xla": ("jax",)}
OPS = ("fuse_scales", "labels")  # that there is a graph for


def missing(name: str) -> list[str]:
    """Packages that a runtime needs and that are not installed."""
    return [package for package in PACKAGES[name] if importlib.util.find_spec(package) is None]


def build(name: str, op: str) -> Callable[..., Any]:
    """A function of logits, attention, labels, scales and size, as the other competitors are."""
    make = {"onnxruntime": _session, "xla": _jitted}[name]

    def run(logits, attention, labels, scales, size):
        maps = [tensor.detach() for tensor in (*logits, *attention)]
        shapes = tuple(tuple(tensor.shape) for tensor in maps)
        return make(op, shapes, tuple(scales), tuple(size), torch.get_num_threads())(maps)

    return run


def tensors(result: Any) -> list[Tensor]:
    """What a runtime returned."""
    return [torch.from_numpy(np.array(array)) for array in result]


def _label_dtype(classes: int) -> str:
    return "uint8" if classes <= 256 else "int32"


# ---- ONNX Runtime ------------------------------------------------------------------------------------------------


class _Graph:
    """Nodes of a model in the order in which they are computed."""

    def __init__(self) -> None:
        self.nodes: list = []
        self.constants: list = []

    def node(self, kind: str, *inputs: str, **attributes) -> str:
        onnx = importlib.import_module("onnx")

        output = f"value{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, values: np.ndarray) -> str:
        onnx = importlib.import_module("onnx")

        name = f"constant{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(values, name))
        return name

    def resize(self, name: str, channels: int, old: Sequence[int], new: Sequence[int], batch: int) -> str:
        if tuple(old) == tuple(new):
            return name
        sizes = self.constant(np.array([batch, channels, *new], np.int64))
        return self.node("Resize", name, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")


@functools.lru_cache(maxsize=1)
def _session(op: str, shapes: tuple, scales: tuple, size: tuple, threads: int) -> Callable[[list[Tensor]], Any]:
    onnx = importlib.import_module("onnx")
    onnxruntime = importlib.import_module("onnxruntime")

    model = _model(op, shapes, scales, size)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda maps: session.run(None, {f"map{i}": tensor.numpy() for i, tensor in enumerate(maps)})


def _model(op: str, shapes: tuple, scales: tuple, size: tuple) -> Any:
    onnx = importlib.import_module("onnx")

    graph, count = _Graph(), len(scales)
    batch, classes = shapes[0][:2]
    grid = reference.grid_size(size, scales[0])
    fused, fused_size = graph.resize("map0", classes, shapes[0][2:], grid, batch), grid
    for i in range(1, count):
        grid, attention = reference.grid_size(size, scales[i]), count + i - 1
        channels = shapes[attention][1]
        z = graph.resize(f"map{i}", classes, shapes[i][2:], grid, batch)
        a = graph.resize(f"map{attention}", channels, shapes[attention][2:], grid, batch)
        z, rest = graph.node("Mul", a, z), a
        if scales[i] >= 1:
            fused, fused_size = graph.resize(fused, classes, fused_size, grid, batch), grid
        else:
            z, rest = graph.resize(z, classes, grid, size, batch), graph.resize(a, channels, grid, size, batch)
        rest = graph.node("Sub", graph.constant(np.ones((), np.float32)), rest)
        fused = graph.node("Add", z, graph.node("Mul", rest, fused))
    result = graph.resize(fused, classes, fused_size, size, batch)
    kind, shape = onnx.TensorProto.FLOAT, [batch, classes, *size]
    if op == "labels":
        kind, shape = getattr(onnx.TensorProto, _label_dtype(classes).upper()), [batch, *size]
        result = graph.node("Cast", graph.node("ArgMax", result, axis=1, keepdims=0), to=kind)
    maps = [
        onnx.helper.make_tensor_value_info(f"map{i}", onnx.TensorProto.FLOAT, shape) for i, shape in enumerate(shapes)
    ]
    results = [onnx.helper.make_tensor_value_info(result, kind, shape)]
    made = onnx.helper.make_graph(graph.nodes, "chain", maps, results, graph.constants)
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=10)


# ---- XLA ---------------------------------------------------------------------------------------------------------


def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each output the two inputs and the weight of the second (align_corners=False)."""
    source = np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0)
    first = np.minimum(source.astype(np.int32), old - 1)
    return first, np.minimum(first + 1, old - 1), (source - first).astype(np.float32)


def _resize(maps: Any, size: Sequence[int]) -> Any:
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    top, bottom, down = _taps(maps.shape[2], size[0])
    left, right, across = _taps(maps.shape[3], size[1])
    rows = maps[:, :, top] * (1 - down[:, None]) + maps[:, :, bottom] * down[:, None]
    return rows[..., left] * (1 - across) + rows[..., right] * across


@functools.lru_cache(maxsize=1)
def _jitted(op: str, shapes: tuple, scales: tuple, size: tuple, threads: int) -> Callable[[list[Tensor]], Any]:
    jax = importlib.import_module("jax")

    count = len(scales)

    def chain(*maps):
        fused = _resize(maps[0], reference.grid_size(size, scales[0]))
        for z, a, scale in zip(maps[1:count], maps[count:], scales[1:], strict=True):
            grid = reference.grid_size(size, scale)
            z, a = _resize(z, grid), _resize(a, grid)
            if scale >= 1:
                fused = a * z + (1 - a) * _resize(fused, grid)
            else:
                fused = _resize(a * z, size) + (1 - _resize(a, size)) * fused
        fused = _resize(fused, size)
        return fused if op == "fuse_scales" else fused.argmax(1).astype(_label_dtype(shapes[0][1]))

    function = jax.jit(chain)
    cpu = jax.devices("cpu")[0]

    def run(maps):
        # The memory of the tensors, where it is aligned as XLA wants it.
        with jax.default_device(cpu):
            return [function(*(jax.dlpack.from_dlpack(tensor) for tensor in maps)).block_until_ready()]

    return run
