"""Every op, forward and backward, on small odd shapes on the GPU: what bench/gpu.sh runs under compute-sanitizer.

    compute-sanitizer --tool memcheck python bench/sanitizer_cases.py

Results are compared with the plain PyTorch formulation as well; the sanitizer's own findings make it exit non-zero.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

import hmsa_ext
from hmsa_ext.ops import reference

# (scales, size, heads' stride, classes): odd sizes, up and down, a lone scale, maps of one pixel, more than one block;
# widths and classes that 16-byte accesses divide, and that they do not, in both memory formats.
SHAPES = [
    ((1.0,), (17, 23), 4, 5),
    ((1.0, 0.5), (37, 53), 4, 5),
    ((2.0, 1.0, 0.5), (33, 41), 8, 5),
    ((1.5, 1.0, 0.75, 0.25), (29, 70), 1, 5),
    ((1.0, 0.5), (4, 4), 8, 5),
    ((1.0, 0.5), (19, 129), 4, 19),
    ((2.0, 1.0, 0.5), (40, 96), 4, 16),
    ((0.5,), (35, 3), 1, 3),
    ((1.0, 0.5), (21, 45), 4, 150),
]
# Half types differ from the reference by the rounding of its intermediate maps, which the kernels keep in float32.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def main() -> int:
    if not torch.cuda.is_available():
        print("no GPU", file=sys.stderr)
        return 2
    count = 0
    for name, got, wanted in fuse_scales_cases():
        worst = (got.float() - wanted.float()).abs().max().item() / max(wanted.float().abs().max().item(), 1e-6)
        if not worst <= TOLERANCE[got.dtype]:
            print(f"{name}: relative error {worst:.3g}", file=sys.stderr)
            return 1
        count += 1
    torch.cuda.synchronize()
    print(f"{count} results agree with plain PyTorch")
    return 0


def fuse_scales_cases() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Output and gradients of ``fuse_scales`` beside those of the reference."""
    generator = torch.Generator("cuda").manual_seed(0)
    for scales, size, stride, classes in SHAPES:
        for dtype in TOLERANCE:
            for channels_last in (False, True):
                for attention_channels in (1, classes):
                    logits, attention = [], []
                    for index, scale in enumerate(scales):
                        h, w = (max(side // stride, 1) for side in reference.grid_size(size, scale))
                        logits.append(torch.randn(2, classes, h, w, generator=generator, device="cuda", dtype=dtype))
                        if index > 0:
                            shape = (2, attention_channels, h, w)
                            attention.append(torch.rand(shape, generator=generator, device="cuda", dtype=dtype))
                    inputs = [*logits, *attention]
                    if channels_last:
                        inputs = [x.to(memory_format=torch.channels_last) for x in inputs]
                    case = f"fuse_scales {scales} {size} {dtype} {classes} classes, attention {attention_channels}"
                    case += ", channels_last" if channels_last else ""
                    got = outputs(hmsa_ext.fuse_scales, inputs, scales, size)
                    wanted = outputs(reference.fuse_scales, [x.float() for x in inputs], scales, size)
                    for index, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
                        yield f"{case} result {index}", mine, theirs


def outputs(fuse, inputs: list[Tensor], scales: tuple[float, ...], size: tuple[int, int]) -> list[Tensor]:
    """Fused logits, then the gradient of each input, for an upstream gradient that depends on the position."""
    leaves = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    fused = fuse(leaves[: len(scales)], leaves[len(scales) :], scales, size)
    upstream = torch.linspace(-1, 1, fused.numel(), device="cuda").view(fused.shape).to(fused.dtype)
    return [fused.detach(), *torch.autograd.grad(fused, leaves, upstream)]


if __name__ == "__main__":
    sys.exit(main())
