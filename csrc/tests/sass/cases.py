"""The emulator's cases, and chains of octaves: these have kernels of their own.

The emulator takes this module in place of its own of the same name, which stands behind it on the path.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import problems
import torch
from problems import Shape

from hmsa_ext.ops import reference

OCTAVES = Shape((2, 1, 0.5), (24, 136), 5)
OCTAVE_BELOW = Shape((1, 0.5), (24, 136), 24)
OCTAVE_ABOVE = Shape((2, 1), (20, 36), 3, batch=2, layout="nhwc")
LONE_QUARTER = Shape((1,), (12, 132), 5)  # for losses and predictions only
PARTS = Shape((1, 0.5), (96, 264), 9)  # of several blocks

path = next(
    path for folder in sys.path if (path := Path(folder) / "cases.py").is_file() and not path.samefile(__file__)
)
spec = importlib.util.spec_from_file_location("cases_of_the_emulator", path)
original = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = original
spec.loader.exec_module(original)
original_cases = original.all_cases


def all_cases(ops: list[str], quick: bool):
    yield from original_cases(ops, quick)
    shapes = [OCTAVES] if quick else [OCTAVES, OCTAVE_BELOW, OCTAVE_ABOVE]
    if not quick:
        shapes += [original.with_dtype(shape, dtype) for shape in shapes for dtype in ("f16", "bf16")]
    for op, make in (("fwd", original.forward), ("bwd", original.backward), ("rmi", original.rmi)):
        if op in ops:
            for shape in shapes:
                yield original.Case(op, str(shape), original.bind(make, shape))
    if "rmi" in ops and not quick:
        make = original.bind(original.rmi, OCTAVES, moments=False)
        yield original.Case("rmi", f"{OCTAVES} without moments", make)
    if "fwd" in ops:
        yield original.Case("fwd", f"{OCTAVES} inf and NaN", original.bind(original.forward, OCTAVES, special=True))
    if "ce" in ops:
        options = {"label_dtype": "int64", "weighted": True, "smoothing": 0.1}
        for shape in [OCTAVES] if quick else [OCTAVES, OCTAVE_BELOW, OCTAVE_ABOVE, LONE_QUARTER]:
            yield original.Case("ce", f"{shape} weighted", original.bind(original.cross_entropy, shape, **options))
    if "argmax" in ops:
        for shape in shapes if quick else [*shapes, LONE_QUARTER]:
            yield original.Case("argmax", str(shape), original.bind(original.argmax, shape))
        yield original.Case("argmax", f"{OCTAVES} inf and NaN", lambda: argmax_of_special_logits(OCTAVES))
        for shape in shapes if quick else [*shapes, LONE_QUARTER, PARTS]:
            for smooth in (False, True):
                title = f"{shape} labels alone, {'smooth' if smooth else 'random'}"
                yield original.Case("argmax", title, original.bind(labels_alone, shape, smooth=smooth))


def argmax_of_special_logits(shape: Shape):
    """Pixels with NaN have the label and the confidence of PyTorch; the other confidences are close."""
    chain = problems.Chain(shape, gradients=False)
    original.spoil(chain)
    (call,) = problems.argmax(chain)

    def compare(results):
        truth = original.Truth(chain)
        labels, confidence = reference.fuse_scales_argmax(*truth.chain, list(shape.size), **truth.options)
        is_nan = truth.fused().isnan().any(1)
        return [
            original.equality("labels of NaN", torch.where(is_nan, results[0].long(), 0), labels.long() * is_nan),
            original.agreement("confidence", results[1], confidence),
        ]

    return original.Problem(call.run, compare)


def labels_alone(shape: Shape, smooth: bool):
    """Labels alone are those beside a confidence."""
    chain = problems.Chain(shape, gradients=False)
    if smooth:
        problems.make_smooth(chain)
    alone, (both,) = problems.labels_call("labels", chain), problems.argmax(chain)

    def compare(results):
        return [original.equality("labels", results[0].long(), results[1].long())]

    return original.Problem(lambda: [alone.run()[0], both.run()[0]], compare)


def __getattr__(name: str):
    return getattr(original, name)
