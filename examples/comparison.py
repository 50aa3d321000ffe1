"""Shared by the examples: options, a batch, and two ways to a loss or a prediction held against each other."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor


def parse_options(description: str | None) -> argparse.Namespace:
    """``classes``, ``size`` (height, width), ``batch`` and ``device`` from the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--size", type=_size, default=(512, 512), metavar="HxW", help="of the images [512x512]")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) > 0 and int(width) > 0):
        raise argparse.ArgumentTypeError(f"got '{text}'; expected HEIGHTxWIDTH, such as 512x512")
    return int(height), int(width)


def make_batch(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Random images [B, 3, H, W] and labels [B, H, W] int64, of which the upper eighth is 255: to be ignored."""
    height, width = options.size
    images = torch.rand(options.batch, 3, height, width, device=options.device)
    target = torch.randint(0, options.classes, (options.batch, height, width), device=options.device)
    target[:, : height // 8] = 255
    return images, target


def compare_losses(before: Callable[[], Tensor], after: Callable[[], Tensor], leaves: list[Tensor]) -> None:
    """Prints both; raises AssertionError unless losses and gradients of ``leaves`` agree."""
    pairs = [(loss, *torch.autograd.grad(loss, leaves)) for loss in (before(), after())]
    for theirs, ours in zip(*pairs, strict=True):
        assert (theirs - ours).abs().max() <= 1e-4 * theirs.abs().max(), "the results differ"
    print(f"loss {pairs[0][0].item():.6f} before, {pairs[1][0].item():.6f} after; the gradients agree")
    for name, loss in (("before", before), ("after", after)):
        milliseconds = _milliseconds(lambda loss=loss: torch.autograd.grad(loss(), leaves), leaves[0].device)
        print(f"  {name:<8} {milliseconds:8.1f} ms forward and backward, {_saved_megabytes(loss):8.1f} MB kept between")


def compare_predictions(before: Callable[[], Tensor], after: Callable[[], Tensor]) -> None:
    """Prints both; raises AssertionError where more labels differ than rounding explains."""
    with torch.no_grad():
        theirs, ours = before(), after()
        agreement = (theirs == ours).float().mean().item()
        assert agreement > 0.999, f"only {100 * agreement:.2f} % of the labels agree"
        print(f"labels: {100 * agreement:.4f} % agree")
        for name, predict in (("before", before), ("after", after)):
            print(f"  {name:<8} {_milliseconds(predict, ours.device):8.1f} ms")


def _milliseconds(function: Callable[[], object], device: torch.device, rounds: int = 7) -> float:
    times = []
    for _ in range(rounds + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times[1:])


def _saved_megabytes(function: Callable[[], Tensor]) -> float:
    """What autograd keeps for the backward pass, inputs included."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(storages.values()) / 1e6
