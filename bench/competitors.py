"""The ways to compute each op that are held against each other, and the memory floor under all of them."""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import hmsa_ext
from bench import published_rmi, runtimes, trained_logits
from bench.cases import OPS, Case
from hmsa_ext.ops import reference

# What every way of computing an op takes: logits, attention, labels, scales, size. Results: a tensor or several.
Function = Callable[..., Any]
# In the order in which they take turns; each op has some of them. "floor" is no competitor: what moving the bytes
# costs, and nothing else.
NAMES = ("numpy", "eager", "compile", "onnxruntime", "xla", "hmsa")
# These compute where the tensors are in the memory of the CPU, and forward alone.
ON_CPU = ("numpy", *runtimes.PACKAGES)
COPIED = 1 << 28  # bytes: past every cache


@dataclasses.dataclass
class Inputs:
    logits: list[Tensor]
    attention: list[Tensor]
    labels: list[Tensor]  # of a loss the target; of the confusion matrix the prediction and the target
    grad: Tensor | None  # of the result, where that is no scalar

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.logits, *self.attention]

    @property
    def all(self) -> list[Tensor]:
        return [*self.leaves, *self.labels, *([] if self.grad is None else [self.grad])]


def make_inputs(case: Case, device: torch.device | str = "cpu") -> Inputs:
    """Logits and attention with gradients wanted, labels, and the gradient of a result that is a map."""
    generator = torch.Generator().manual_seed(0)
    memory_format = torch.channels_last if case.channels_last else torch.contiguous_format

    def place(tensor: Tensor) -> Tensor:
        return tensor.to(device, case.torch_dtype).contiguous(memory_format=memory_format)

    def labels(dtype: torch.dtype, ignored: float = 0.0) -> Tensor:
        made = torch.randint(0, case.classes, (case.batch, *case.size), generator=generator, dtype=dtype)
        made[torch.rand(made.shape, generator=generator) < ignored] = 255
        return made.to(device)

    if case.op == "confusion_matrix":
        return Inputs([], [], [labels(torch.uint8), labels(torch.uint8, 0.1)], None)
    logits, attention = [], []
    if case.trained:
        logits, attention = ([place(x).requires_grad_() for x in maps] for maps in trained_logits.load(case.scales))
    for i, scale in enumerate(() if case.trained else case.scales):
        head = [-(-side // case.stride) for side in reference.grid_size(case.size, scale)]
        logits.append(place(torch.randn(case.batch, case.classes, *head, generator=generator)).requires_grad_())
        if i > 0:
            channels = case.classes if case.class_wise else 1
            attention.append(place(torch.rand(case.batch, channels, *head, generator=generator)).requires_grad_())
    grad = place(torch.randn(case.output_shape, generator=generator)) if case.op == "fuse_scales" else None
    # int64, which F.cross_entropy takes without a conversion: ours would rather have uint8.
    target = [labels(torch.int64, 0.1)] if OPS[case.op].takes_target else []
    return Inputs(logits, attention, target, grad)


# ---- the ops ----------------------------------------------------------------------------------------------------


def _eager_fuse(logits, attention, labels, scales, size):
    return reference.fuse_scales(logits, attention, scales, size)


def _fuse(logits, attention, labels, scales, size):
    return torch.ops.hmsa.fuse_scales(logits, attention, scales, size)


def _eager_cross_entropy(logits, attention, labels, scales, size):
    return F.cross_entropy(reference.fuse_scales(logits, attention, scales, size), labels[0], ignore_index=255)


def _cross_entropy(logits, attention, labels, scales, size):
    return torch.ops.hmsa.fuse_scales_cross_entropy(logits, attention, scales, labels[0])


def _eager_argmax(logits, attention, labels, scales, size):
    confidence, prediction = F.softmax(reference.fuse_scales(logits, attention, scales, size), 1).max(1)
    return prediction, confidence


def _argmax(logits, attention, labels, scales, size):
    return torch.ops.hmsa.fuse_scales_argmax(logits, attention, scales, size)


def _eager_labels(logits, attention, labels, scales, size):
    return reference.fuse_scales(logits, attention, scales, size).argmax(1)


def _labels(logits, attention, labels, scales, size):
    return hmsa_ext.fuse_scales_argmax(logits, attention, scales, size, confidence=False)


def _eager_rmi(logits, attention, labels, scales, size):
    return published_rmi.rmi_loss(reference.fuse_scales(logits, attention, scales, size), labels[0])


def _rmi(logits, attention, labels, scales, size):
    return hmsa_ext.losses.rmi_loss(logits, attention, scales, labels[0])


def _numpy_confusion_matrix(logits, attention, labels, scales, size):
    """``np.bincount`` of the masked maps, as evaluation scripts have it."""
    prediction, target = (x.numpy() for x in labels)
    mask = target < LABELLED_CLASSES
    bins = LABELLED_CLASSES * target[mask].astype(int) + prediction[mask]
    return np.bincount(bins, minlength=LABELLED_CLASSES**2).reshape(LABELLED_CLASSES, LABELLED_CLASSES)


def _eager_confusion_matrix(logits, attention, labels, scales, size):
    prediction, target = labels
    return reference.confusion_matrix(prediction, target, LABELLED_CLASSES)


def _confusion_matrix(logits, attention, labels, scales, size):
    return torch.ops.hmsa.confusion_matrix(*labels, LABELLED_CLASSES)


LABELLED_CLASSES = 19  # of the confusion matrices: labels alone do not say
_FUNCTIONS: dict[str, dict[str, Function]] = {
    "fuse_scales": {"eager": _eager_fuse, "hmsa": _fuse},
    "cross_entropy": {"eager": _eager_cross_entropy, "hmsa": _cross_entropy},
    "argmax": {"eager": _eager_argmax, "hmsa": _argmax},
    "labels": {"eager": _eager_labels, "hmsa": _labels},
    "rmi": {"eager": _eager_rmi, "hmsa": _rmi},
    "confusion_matrix": {
        "numpy": _numpy_confusion_matrix,
        "eager": _eager_confusion_matrix,
        "hmsa": _confusion_matrix,
    },
}


def names(op: str, device: str, direction: str = "forward") -> tuple[str, ...]:
    """The competitors of an op, as far as they are installed: :func:`left_out` tells of the others."""
    return tuple(name for name in _known(op, device, direction) if not _missing(name))


def left_out(device: str) -> list[str]:
    """A line for each competitor that would take part if it were installed."""
    known = dict.fromkeys(name for op in OPS for name in _known(op, device, "forward") if _missing(name))
    return [f"{name}: left out, since {' and '.join(_missing(name))} is not installed" for name in known]


def _known(op: str, device: str, direction: str) -> list[str]:
    known = {"compile", *_FUNCTIONS[op], *(runtimes.PACKAGES if op in runtimes.OPS else ())}
    elsewhere = () if device == "cpu" and direction == "forward" else ON_CPU
    return [name for name in NAMES if name in known and name not in elsewhere]


def _missing(name: str) -> list[str]:
    return runtimes.missing(name) if name in runtimes.PACKAGES else []


def build(name: str, op: str = "fuse_scales", backend: str = "inductor") -> Function:
    """One of :func:`names`. ``compile`` is by Inductor as it comes, unless another backend is asked for."""
    if name in runtimes.PACKAGES:
        return runtimes.build(name, op)
    if name == "compile":
        torch._dynamo.reset()  # a second shape in one process would otherwise be compiled for shapes that change
        return torch.compile(_FUNCTIONS[op]["eager"], fullgraph=True, backend=backend)
    return _FUNCTIONS[op][name]


def call(function: Function, case: Case, inputs: Inputs) -> Any:
    return function(inputs.logits, inputs.attention, inputs.labels, list(case.scales), list(case.size))


def runner(function: Function, case: Case, direction: str, inputs: Inputs) -> Callable[[], None]:
    """One call as a user makes it, its results freed at the end."""

    def forward():
        with torch.no_grad():
            call(function, case, inputs)

    def forward_backward():
        torch.autograd.grad(call(function, case, inputs), inputs.leaves, inputs.grad)

    return forward if direction == "forward" else forward_backward


# ---- the floor --------------------------------------------------------------------------------------------------


def moved_bytes(case: Case, direction: str) -> int:
    """Bytes of every input and every result, each once; backward reads the inputs again, and writes their gradients."""
    pixels = case.batch * case.size[0] * case.size[1]
    if case.op == "confusion_matrix":
        return 2 * pixels
    heads = [[-(-side // case.stride) for side in reference.grid_size(case.size, scale)] for scale in case.scales]
    cells = [h * w for h, w in heads]
    attention = (case.classes if case.class_wise else 1) * sum(cells[1:])
    inputs = case.batch * (case.classes * sum(cells) + attention) * case.torch_dtype.itemsize
    labels = 8 * pixels if OPS[case.op].takes_target else 0
    predicted = (1 if case.classes <= 256 else 4) * pixels
    result = {"fuse_scales": case.output_bytes, "labels": predicted, "argmax": predicted + 4 * pixels}
    forward = inputs + labels + result.get(case.op, 0)
    grad = case.output_bytes if case.op == "fuse_scales" else 0
    return forward if direction == "forward" else forward + grad + labels + 2 * inputs


def floor(
    case: Case, direction: str, memory: str, device: torch.device | str = "cpu"
) -> tuple[Callable[[], object], float]:
    """What to time, and what of that time is the floor.

    Of ``fuse_scales``, whose result is most of the bytes. Forward: one copy of the output into warm memory; cold: the
    first touch of a fresh output, in huge pages where the system has them. Backward adds one read of a gradient of that
    size. Of the other ops: as long as a copy takes, at the speed of a large one, to move as many bytes as the op must.
    """
    if case.op != "fuse_scales":
        source = torch.rand(COPIED // 4, device=device)
        copy = torch.zeros_like(source)
        return lambda: copy.copy_(source), moved_bytes(case, direction) / (2 * COPIED)
    return _floor_of_output(case, direction, memory, device), 1.0


def _floor_of_output(case: Case, direction: str, memory: str, device: torch.device | str) -> Callable[[], None]:
    # Moved as float32 whatever the dtype: the bytes count, not PyTorch's arithmetic in half precision.
    count = -(-case.output_bytes // 4)
    source = torch.rand(count, device=device)
    output = torch.zeros_like(source) if memory == "warm" else None

    def forward():
        if output is not None:
            output.copy_(source)
            return
        # Private: huge pages of shared memory are another setting of the system, and mostly off.
        fresh = mmap.mmap(-1, 4 * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            fresh.madvise(mmap.MADV_HUGEPAGE)
        torch.frombuffer(fresh, dtype=torch.float32).fill_(1.0)

    def forward_backward():
        forward()
        source.sum()

    return forward if direction == "forward" else forward_backward
