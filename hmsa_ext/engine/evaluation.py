"""Evaluates a model at several scales: the attention, the mean of the logits and each scale alone, from one pass."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hmsa_ext.data import Batch, ClassTable
from hmsa_ext.engine import distributed
from hmsa_ext.engine.device import arithmetic, evaluation_mode
from hmsa_ext.engine.distributed import Process
from hmsa_ext.engine.metrics import Scores
from hmsa_ext.models import ScaleOutputs
from hmsa_ext.ops import confusion_matrix

ATTENTION, MEAN = "attention", "mean"


class EvaluationError(ValueError):
    """Data or predictions that cannot be scored."""


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of every way to read one pass of a model: ``"0.5"``, ``"1.0"``, ..., ``"mean"``, ``"attention"``."""

    scores: dict[str, Scores]
    class_names: tuple[str, ...]
    scales: tuple[float, ...]
    flip: bool
    images: int
    seconds: float

    @property
    def miou(self) -> dict[str, float]:
        """Mean IoU of each way."""
        return {way: scores.miou for way, scores in self.scores.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None where a class is absent."""

        def plain(x: float) -> float | None:
            return x if x == x else None

        return {
            "miou": {way: plain(x) for way, x in self.miou.items()},
            "iou": {
                way: {name: plain(x) for name, x in zip(self.class_names, scores.iou, strict=True)}
                for way, scores in self.scores.items()
            },
            "pixel_accuracy": {way: plain(scores.pixel_accuracy) for way, scores in self.scores.items()},
            "classes": list(self.class_names),
            "scales": list(self.scales),
            "flip": self.flip,
            "images": self.images,
            "evaluation_seconds": round(self.seconds, 3),
        }


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    classes: ClassTable,
    scales: Sequence[float],
    process: Process,
    *,
    dtype: torch.dtype = torch.float32,
    flip: bool = False,
    progress: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
) -> EvaluationResult:
    """Scores ``model`` at ``scales`` on ``batches``, which together, over all processes, are every image once.

    The confusion matrices are summed over the processes in int64: every process returns the same result. With
    ``flip`` the logits of the mirrored image, mirrored back, are averaged in. Raises :class:`EvaluationError` at
    the end when there were labels that are neither a class nor ignored.
    """
    begin, images = time.perf_counter(), 0
    scales = tuple(sorted(scales))
    ways = [*(f"{s}" for s in scales), MEAN, ATTENTION]
    k = classes.num_classes
    counts = torch.zeros(len(ways), k, k, dtype=torch.int64, device=process.device)
    invalid = torch.zeros((), dtype=torch.int64, device=process.device)
    with evaluation_mode(model):
        for batch in progress(batches):
            target = batch.labels.to(process.device, non_blocking=True)
            outputs = run(model, batch.images, scales, process.device, dtype=dtype, flip=flip)
            for i, labels in enumerate(readings(outputs, flip=flip)):
                c, v = confusion_matrix(labels, target, k, ignore_index=classes.ignore_label)
                counts[i] += c
                invalid += v
            images += len(batch.names)
    *counts_list, invalid, images = (
        *distributed.total(process, counts).cpu(),
        *distributed.total(process, torch.stack([invalid.cpu(), torch.tensor(images)])).tolist(),
    )
    if invalid:
        raise EvaluationError(
            f"labels: {invalid // len(ways)} pixels of {images} images are neither one of {k} classes nor the ignored "
            f"{classes.ignore_label}; python -m hmsa_ext.data scan names the files"
        )
    scores = {way: Scores(c) for way, c in zip(ways, counts_list, strict=True)}
    return EvaluationResult(scores, tuple(classes.names), scales, flip, images, time.perf_counter() - begin)


def run(
    model: nn.Module,
    images: Tensor,
    scales: Sequence[float],
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    flip: bool = False,
) -> ScaleOutputs:
    """The model's outputs for ``images`` [B, 3, H, W]; with ``flip`` for 2B images, the second half mirrored ones."""
    images = images.to(device, non_blocking=True)
    if flip:
        images = torch.cat([images, images.flip(-1)])
    with arithmetic(device, dtype):
        return model(images, scales=scales)


def readings(outputs: ScaleOutputs, *, flip: bool = False) -> Iterator[Tensor]:
    """Labels [B, H, W] of each scale alone (ascending), of the mean of their logits and of the attention.

    One after the other; logits at full resolution do not come about (but see :meth:`ScaleOutputs.mean_argmax`).
    With ``flip``, as in :func:`run`, the logits of an image and of its mirror image are averaged.
    """
    views = 2 if flip else 1
    for index in reversed(range(len(outputs.scales))):
        yield outputs.single_scale_argmax(index, views=views)[0]
    yield outputs.mean_argmax(views=views)[0]
    yield outputs.argmax(views=views)[0]


def unmirrored(maps: Tensor, *, flip: bool = True) -> Tensor:
    """Mean of the maps of images and of their mirror images: [2B, C, H, W] -> [B, C, H, W]."""
    if not flip:
        return maps
    straight, mirrored = maps.chunk(2)
    return (straight + mirrored.flip(-1)) / 2


def table(result: EvaluationResult) -> str:
    """IoU per class in percent, one column per scale, then the mean of the logits and the attention."""
    ways = list(result.scores)
    heads = [f"scale {w}" if w not in (MEAN, ATTENTION) else w for w in ways]
    columns = [result.scores[w] for w in ways]
    rows = [
        *((name, [s.iou[c] for s in columns]) for c, name in enumerate(result.class_names)),
        ("mIoU", [s.miou for s in columns]),
        ("pixel accuracy", [s.pixel_accuracy for s in columns]),
    ]
    width = max(len("IoU in %"), *(len(name) for name, _ in rows))
    lines = ["  ".join([f"{'IoU in %':<{width}}", *(f"{head:>10}" for head in heads)])]
    rule = "-" * len(lines[0])
    lines.append(rule)
    for name, values in rows:
        if name == "mIoU":
            lines.append(rule)
        shown = (f"{100 * x:10.2f}" if x == x else f"{'absent':>10}" for x in values)
        lines.append("  ".join([f"{name:<{width}}", *shown]))
    return "\n".join(lines)
