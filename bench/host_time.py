"""What a call of each op costs the host: microseconds on problems so small that the kernels hardly count.

    python -m bench.host_time                       # prints a table
    python -m bench.host_time --json host_time.json
    python -m bench.host_time --only cross_entropy --rounds 200

``op`` is ``torch.ops.hmsa.*`` on inputs that need no gradient, ``function`` the public Python function, ``recorded``
the same on inputs that need gradients, and ``backward`` that and then ``torch.autograd.grad`` with a given gradient.
Each figure is the median over the rounds of the mean of some calls, on one thread, in time of the processor: other
processes do not count. A GPU's kernels can start no faster than this.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import hmsa_ext
from bench import record
from bench.commands import aligned, command_parser
from hmsa_ext import ops
from hmsa_ext.files import write_text

CALLS = 20  # in a round
KINDS = ("op", "function", "recorded", "backward")
SIZE, CLASSES, SCALES = (8, 8), 2, [1.0, 0.5]


def chain_inputs(requires_grad: bool) -> tuple[list[torch.Tensor], list[torch.Tensor], list[float]]:
    """Logits, attention and scales of one image of 8 x 8 pixels, heads at stride 4."""
    generator = torch.Generator().manual_seed(0)

    def head(channels: int, side: int) -> torch.Tensor:
        return torch.rand(1, channels, side, side, generator=generator).requires_grad_(requires_grad)

    return [head(CLASSES, 2), head(CLASSES, 1)], [head(1, 1)], SCALES


def differentiable(op: Callable, function: Callable, *arguments) -> dict[str, Callable[[], object]]:
    """All kinds of calls of an op on a chain of scales; ``arguments`` follow the scales."""
    plain, recorded = chain_inputs(False), chain_inputs(True)
    inputs = [*recorded[0], *recorded[1]]
    results = function(*recorded, *arguments)
    results = results if isinstance(results, tuple) else (results,)
    indices = [i for i, result in enumerate(results) if result.requires_grad]
    gradients = [torch.ones_like(results[i]) for i in indices]

    def backward() -> None:
        results = function(*recorded, *arguments)
        results = results if isinstance(results, tuple) else (results,)
        torch.autograd.grad([results[i] for i in indices], inputs, gradients)

    return {
        "op": lambda: op(*plain, *arguments),
        "function": lambda: function(*plain, *arguments),
        "recorded": lambda: function(*recorded, *arguments),
        "backward": backward,
    }


def calls() -> dict[str, dict[str, Callable[[], object]]]:
    """For each op the kinds of calls that it has."""
    hmsa = torch.ops.hmsa
    chain, target = chain_inputs(False), torch.zeros(1, *SIZE, dtype=torch.uint8)
    centroids, counts = torch.tensor([[0, 0, 1, 1]]), torch.tensor([1, 1])
    draw = (centroids, counts, torch.tensor([[8, 8]]), SIZE)
    draw_options = {"scale": (1.0, 1.0), "uniform_images": 1, "seed": 0, "epoch": 0, "first": 0, "count": 1}
    crop = ([torch.zeros(8, 8, 3, dtype=torch.uint8)], [target[0]], torch.tensor([[0, 0, 0, 2, 2]]))
    crop += (torch.tensor([False]), torch.tensor([[1.0, 1.0, 1.0, 0.0]]), (2, 2), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    return {
        "fuse_scales": differentiable(hmsa.fuse_scales, hmsa_ext.fuse_scales, SIZE),
        "fuse_scales_cross_entropy": differentiable(
            hmsa.fuse_scales_cross_entropy, hmsa_ext.fuse_scales_cross_entropy, target
        ),
        "fuse_scales_rmi": differentiable(
            lambda *arguments: hmsa._fuse_scales_rmi(*arguments, 255, True, False), ops.fuse_scales_rmi, target
        ),
        "fuse_scales_argmax": {
            "op": lambda: hmsa.fuse_scales_argmax(*chain, SIZE),
            "function": lambda: hmsa_ext.fuse_scales_argmax(*chain, SIZE),
        },
        "confusion_matrix": {
            "op": lambda: hmsa.confusion_matrix(target, target, CLASSES),
            "function": lambda: hmsa_ext.confusion_matrix(target, target, CLASSES),
        },
        "class_tile_centroids": {
            "op": lambda: hmsa.class_tile_centroids(target, 8, CLASSES),
            "function": lambda: ops.class_tile_centroids(target, 8, CLASSES),
        },
        "draw_class_uniform_boxes": {
            "op": lambda: hmsa.draw_class_uniform_boxes(*draw, **draw_options),
            "function": lambda: ops.draw_class_uniform_boxes(*draw, **draw_options),
        },
        "sample_crop": {
            "op": lambda: hmsa.sample_crop(*crop),
            "function": lambda: hmsa_ext.sample_crop(*crop),
        },
    }


def microseconds(functions: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median time of a call of each; they take turns, so that a slow moment meets them all."""
    times: list[list[float]] = [[] for _ in functions]
    for round_ in range(-2, rounds):  # the first ones warm up
        for function, of_function in zip(functions, times, strict=True):
            begin = time.process_time_ns()
            for _ in range(CALLS):
                function()
            if round_ >= 0:
                of_function.append((time.process_time_ns() - begin) / CALLS / 1e3)
    return [statistics.median(of_function) for of_function in times]


def measure(rounds: int, only: str = "") -> dict[str, dict[str, float]]:
    """Microseconds of each kind of call of each op whose name contains ``only``."""
    chosen = {name: kinds for name, kinds in calls().items() if only in name}
    functions = [function for kinds in chosen.values() for function in kinds.values()]
    figures = iter(microseconds(functions, rounds))
    return {name: {kind: round(next(figures), 1) for kind in kinds} for name, kinds in chosen.items()}


def table(figures: dict[str, dict[str, float]]) -> str:
    """One row for each op."""
    rows = [["microseconds of a call", *KINDS]]
    for name, kinds in figures.items():
        rows.append([name, *(f"{kinds[kind]:.1f}" if kind in kinds else "" for kind in KINDS)])
    return aligned(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = command_parser("python -m bench.host_time", __doc__)
    parser.add_argument("--rounds", type=int, default=100, help="[%(default)s]")
    parser.add_argument("--only", default="", metavar="TEXT", help="ops whose name contains it")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"argument --rounds: expected at least 1, got {options.rounds}")
    if not any(options.only in name for name in calls()):
        parser.error(f"argument --only: expected a part of one of {', '.join(calls())}, got {options.only!r}")
    if options.json and not Path(options.json).resolve().parent.is_dir():
        parser.error(f"argument --json: there is no folder for {options.json}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        figures = measure(options.rounds, options.only)
        machine = record.machine()
    finally:
        torch.set_num_threads(threads)
    print(table(figures))
    if options.json:
        write_text(Path(options.json), json.dumps({"machine": machine, "microseconds": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
