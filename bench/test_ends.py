"""The ops that end the chain: cross-entropy, RMI, prediction, confusion matrix, measured like ``fuse_scales``.

    pytest bench/test_ends.py --benchmark-json ends.json && python -m bench.table ends.json

1024x2048, 19 classes, heads at stride 4, float32; and 150 classes at 512x512 in batches of 8 from one scale. Against
plain PyTorch, which makes the full-resolution logits, and torch.compile of that; the RMI loss against the published
formulation and torch.compile of it, the confusion matrix against ``np.bincount`` as well, labels alone of one scale
against ONNX Runtime and XLA, too (bench/runtimes.py). The floor is what a copy needs to move as many bytes as the
inputs and results have, each once, at the speed that a large copy has in the same run.
"""

from __future__ import annotations

from bench import competitors
from bench.test_fuse_scales import measure


def test_end(benchmark, crew, case, direction):
    # Processes that keep freed memory would together keep more than a small machine has; results here are small anyway.
    names = competitors.names(case.op, crew.device, direction)
    measure(benchmark, crew, case, direction, names, seconds=20, rounds=(3, 11), memories=crew.memories[:1])
