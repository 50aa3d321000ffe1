"""The cases of the benchmarks: the headline, a table over shapes that shows cliffs, the ops that end the chain."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

HEADLINE_SIZE = (1024, 2048)
DIRECTIONS = ("forward", "forward+backward")


@dataclasses.dataclass(frozen=True)
class Op:
    """An op that is measured: the function that users call, and what it takes and gives."""

    function: str
    differentiable: bool = True
    takes_target: bool = False


# By the names that cases have for them.
OPS = {
    "fuse_scales": Op("fuse_scales"),
    "cross_entropy": Op("fuse_scales_cross_entropy", takes_target=True),
    "argmax": Op("fuse_scales_argmax", differentiable=False),
    "labels": Op("fuse_scales_argmax", differentiable=False),  # without the confidence
    "rmi": Op("rmi_loss", takes_target=True),
    "confusion_matrix": Op("confusion_matrix", differentiable=False),
}


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    size: tuple[int, int]
    scales: tuple[float, ...] = (1.0, 0.5)
    classes: int = 19
    batch: int = 1
    stride: int = 4  # of the heads
    dtype: str = "float32"
    class_wise: bool = False
    channels_last: bool = False
    op: str = "fuse_scales"  # one of OPS
    trained: bool = False  # logits and attention of bench/trained_logits.py, for times that depend on the values

    @property
    def directions(self) -> tuple[str, ...]:
        return DIRECTIONS if OPS[self.op].differentiable else DIRECTIONS[:1]

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.classes, *self.size)

    @property
    def output_elements(self) -> int:
        return self.batch * self.classes * self.size[0] * self.size[1]

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def output_bytes(self) -> int:
        return self.output_elements * self.torch_dtype.itemsize

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict) -> Case:
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
        return cls(**values)


def headline(size: tuple[int, int] = HEADLINE_SIZE) -> list[Case]:
    return [Case("two scales", size), Case("three scales", size, scales=(2.0, 1.0, 0.5))]


def shapes(size: tuple[int, int] = HEADLINE_SIZE) -> list[Case]:
    """Each differs from the first in one thing (four scales and a lone one in what there is to compute as well)."""
    half = (size[0] // 2, size[1] // 2)
    return [
        Case("two scales", half),
        Case("65 classes", half, classes=65),
        Case("150 classes", half, classes=150),
        Case("batch 8", (size[0] // 4, size[1] // 4), batch=8),
        Case("class-wise attention", half, class_wise=True),
        Case("odd size", (size[0] - 1, size[1] - 1)),
        Case("channels_last", half, channels_last=True),
        Case("bfloat16", half, dtype="bfloat16"),
        Case("float16", half, dtype="float16"),
        Case("bfloat16, channels_last", half, dtype="bfloat16", channels_last=True),
        Case("four scales", half, scales=(2.0, 1.5, 1.0, 0.5)),
        Case("one scale", half, scales=(1.0,)),
        Case("one scale, 0.5", half, scales=(0.5,)),
    ]


def ends(size: tuple[int, int] = HEADLINE_SIZE) -> list[Case]:
    """The chain ended where it is used: losses, predictions and their counting."""
    three = (2.0, 1.0, 0.5)
    trained = [
        Case("two scales, trained", size, op="cross_entropy", trained=True),
        Case("labels only, trained", size, scales=three, op="labels", trained=True),
    ]
    return [
        Case("two scales", size, op="cross_entropy"),
        Case("three scales", size, scales=three, op="cross_entropy"),
        Case(
            "one scale, 150 classes",
            (size[0] // 2, size[1] // 4),
            scales=(1.0,),
            classes=150,
            batch=8,
            op="cross_entropy",
        ),
        Case("three scales", size, scales=three, op="argmax"),
        Case("labels only, random", size, scales=three, op="labels"),
        Case("one scale", size, scales=(1.0,), op="argmax"),
        Case("one scale, labels only", size, scales=(1.0,), op="labels"),
        Case("two scales", size, op="rmi"),
        Case("19 classes", size, scales=(1.0,), op="confusion_matrix"),
        *(trained if size == HEADLINE_SIZE else []),  # there are no others
    ]


def parse_size(text: str) -> tuple[int, int]:
    """``"256x512"`` -> ``(256, 512)``."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and min(int(height), int(width)) >= 16):
        raise ValueError(f"got the size '{text}'; expected HEIGHTxWIDTH, both at least 16, such as 256x512")
    return int(height), int(width)


def parse_rounds(text: str) -> int:
    """``"3"`` -> 3."""
    if not text.isdigit():
        raise ValueError(f"got '{text}' rounds; expected 0 or more")
    return int(text)
