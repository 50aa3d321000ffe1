"""The emulator's problems, and labels alone: of random logits, and of logits like those of a trained network.

The emulator takes this module in place of its own of the same name, which stands behind it on the path. Which planes a
kernel of labels fuses depends on the logits, and differs from block to block: count many blocks (``--samples 40``).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

path = next(
    path for folder in sys.path if (path := Path(folder) / "problems.py").is_file() and not path.samefile(__file__)
)
spec = importlib.util.spec_from_file_location("problems_of_the_emulator", path)
original = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = original
spec.loader.exec_module(original)

TRAINED = Path("runs/trained_logits.pt")  # what bench/trained_logits.py has made, if it has


def labels_alone(chain: original.Chain) -> list[original.Call]:
    shape = chain.shape
    calls = [labels_call("labels", chain)]
    if chain.touched:
        trained = original.Chain(shape, gradients=False)
        if not load_trained(trained):
            make_smooth(trained)
        calls.append(labels_call("labels, as trained", trained))
    return calls


def labels_call(title: str, chain: original.Chain) -> original.Call:
    def run():
        size = chain.shape.size
        return [original.ops.fuse_scales_argmax(*chain.arguments, size, confidence=False, **chain.options)]

    return original.Call(title, run, chain.inputs, chain.shape.elements)


def load_trained(chain: original.Chain) -> bool:
    """Whether there were logits of a trained network in the chain's shape."""
    shape = chain.shape
    if not TRAINED.exists() or not set(shape.scales) <= {2, 1, 0.5} or shape.batch != 1 or shape.class_wise:
        return False
    found = torch.load(TRAINED, weights_only=True)
    logits = dict(zip((2, 1, 0.5), found["logits"], strict=True))
    attention = dict(zip((1, 0.5), found["attention"], strict=True))
    maps = [logits[scale] for scale in shape.scales] + [attention[scale] for scale in shape.scales[1:]]
    if any(mine.shape != other.shape for mine, other in zip(chain.inputs, maps, strict=True)):
        return False
    for mine, other in zip(chain.inputs, maps, strict=True):
        mine.copy_(other)
    return True


def make_smooth(chain: original.Chain) -> None:
    """A few hundred regions of one class each, a few classes that come next in each of them, and little noise."""
    shape, random = chain.shape, chain.random
    sides = [max(2, side // 128) for side in shape.size]
    coarse = torch.randn(shape.batch, shape.classes, *sides, generator=random) * 4
    for scale, logits in zip(shape.scales, chain.logits, strict=True):
        smooth = F.interpolate(coarse, shape.head(scale), mode="bilinear", align_corners=False)
        logits.copy_(smooth + 0.3 * torch.randn(smooth.shape, generator=random))


original.CALLS["argmax"] = lambda chain: [*original.argmax(chain), *labels_alone(chain)]


def __getattr__(name: str):
    return getattr(original, name)
