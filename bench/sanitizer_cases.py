"""Every op, forward and backward, on small odd shapes on the GPU: what bench/gpu.sh runs under compute-sanitizer.

    compute-sanitizer --tool memcheck python bench/sanitizer_cases.py

Results are compared with the plain PyTorch formulation as well, the RMI loss with the CPU's kernels; the sanitizer's
own findings make it exit non-zero.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

import hmsa_ext
from hmsa_ext.losses.rmi import rmi_loss
from hmsa_ext.ops import reference, reference_crop

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
    for cases in (
        fuse_scales_cases,
        cross_entropy_cases,
        argmax_cases,
        rmi_cases,
        confusion_matrix_cases,
        tile_centroids_cases,
        class_uniform_cases,
        sample_crop_cases,
    ):
        for name, got, wanted in cases():
            wanted = wanted.to(got.device)
            worst = (got.float() - wanted.float()).abs().max().item() / max(wanted.float().abs().max().item(), 1e-6)
            if not worst <= TOLERANCE[got.dtype]:
                print(f"{name}: relative error {worst:.3g}", file=sys.stderr)
                return 1
            count += 1
    torch.cuda.synchronize()
    print(f"{count} results agree with plain PyTorch, or with the kernels of the CPU")
    return 0


@dataclasses.dataclass
class Problem:
    """Inputs of a chain of scales."""

    logits: list[Tensor]
    attention: list[Tensor]
    scales: tuple[float, ...]
    size: tuple[int, int]
    name: str

    @property
    def classes(self) -> int:
        return self.logits[0].shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.logits[0].dtype

    def leaves(self, as_reference: bool = False) -> list[Tensor]:
        """Logits, then attention, as leaves of a graph of their own; for the reference in float32."""
        inputs = [x.detach().clone(memory_format=torch.preserve_format) for x in [*self.logits, *self.attention]]
        return [(x.float() if as_reference else x).requires_grad_() for x in inputs]

    def split(self, leaves: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return leaves[: len(self.scales)], leaves[len(self.scales) :]


def problems(batch: int = 2) -> Iterator[Problem]:
    generator = torch.Generator("cuda").manual_seed(0)
    for scales, size, stride, classes in SHAPES:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for channels_last in (False, True):
                for attention_channels in (1, classes):
                    logits, attention = [], []
                    for index, scale in enumerate(scales):
                        h, w = (max(side // stride, 1) for side in reference.grid_size(size, scale))
                        shape = (batch, classes, h, w)
                        logits.append(torch.randn(shape, generator=generator, device="cuda", dtype=dtype))
                        if index > 0:
                            shape = (batch, attention_channels, h, w)
                            attention.append(torch.rand(shape, generator=generator, device="cuda", dtype=dtype))
                    if channels_last:
                        logits = [x.to(memory_format=torch.channels_last) for x in logits]
                        attention = [x.to(memory_format=torch.channels_last) for x in attention]
                    name = f"{scales} {size} {dtype} {classes} classes, attention {attention_channels}"
                    name += ", channels_last" if channels_last else ""
                    yield Problem(logits, attention, scales, size, name)


def fuse_scales_cases() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Output and gradients of ``fuse_scales`` beside the reference's, for a gradient that depends on the position."""
    for problem in problems():

        def outputs(fuse, leaves: list[Tensor], problem: Problem = problem) -> list[Tensor]:
            fused = fuse(*problem.split(leaves), problem.scales, problem.size)
            upstream = torch.linspace(-1, 1, fused.numel(), device="cuda").view(fused.shape).to(fused.dtype)
            return [fused.detach(), *torch.autograd.grad(fused, leaves, upstream)]

        got = outputs(hmsa_ext.fuse_scales, problem.leaves())
        wanted = outputs(reference.fuse_scales, problem.leaves(as_reference=True))
        for index, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
            yield f"fuse_scales {problem.name} result {index}", mine, theirs


def cross_entropy_cases() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Loss and gradients of ``fuse_scales_cross_entropy`` beside those of the reference."""
    generator = torch.Generator("cuda").manual_seed(1)
    for number, problem in enumerate(problems()):
        weight = torch.rand(problem.classes, generator=generator, device="cuda") + 0.5 if number % 2 else None
        options = {"weight": weight, "label_smoothing": 0.1 * (number % 3), "reduction": ("mean", "sum")[number % 2]}
        target = random_labels(problem, generator)

        def outputs(cross_entropy, leaves: list[Tensor], problem=problem, target=target, options=options):
            loss = cross_entropy(*problem.split(leaves), problem.scales, target, **options)
            return [loss.detach(), *torch.autograd.grad(loss, leaves)]

        got = outputs(hmsa_ext.fuse_scales_cross_entropy, problem.leaves())
        wanted = outputs(reference.fuse_scales_cross_entropy, problem.leaves(as_reference=True))
        for index, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
            yield f"fuse_scales_cross_entropy {problem.name} result {index}", mine, theirs


def argmax_cases() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Confidences of ``fuse_scales_argmax`` beside the reference's, and the softmax at the labels that it chose."""
    for number, problem in enumerate(problems(batch=4)):
        inputs = (problem.logits, problem.attention, problem.scales, problem.size)
        views = 1 + number % 2
        labels, confidence = hmsa_ext.fuse_scales_argmax(*inputs, views=views)
        name = f"fuse_scales_argmax {problem.name}, views {views}"
        yield f"{name} confidence", confidence, reference.fuse_scales_argmax(*inputs, views=views)[1]
        if views == 1:
            as_float = ([x.float() for x in problem.logits], [x.float() for x in problem.attention])
            softmax = reference.fuse_scales(*as_float, problem.scales, problem.size).softmax(1)
            yield f"{name} labels", confidence, softmax.gather(1, labels[:, None].long())[:, 0]


def rmi_cases() -> Iterator[tuple[str, Tensor, Tensor]]:
    """The RMI loss and its gradients beside those of the CPU."""
    generator = torch.Generator("cuda").manual_seed(2)
    for problem in problems():
        if problem.classes > 20 or problem.dtype != torch.float32 or min(problem.size) < 8:
            continue
        target = random_labels(problem, generator)

        def outputs(leaves: list[Tensor], target: Tensor, problem: Problem = problem) -> list[Tensor]:
            loss = rmi_loss(*problem.split(leaves), problem.scales, target)
            return [loss.detach(), *torch.autograd.grad(loss, leaves)]

        got = outputs(problem.leaves(), target)
        wanted = outputs([x.detach().cpu().requires_grad_() for x in problem.leaves()], target.cpu())
        for index, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
            yield f"rmi_loss {problem.name} result {index}", mine, theirs


def confusion_matrix_cases() -> Iterator[tuple[str, Tensor, Tensor]]:
    generator = torch.Generator("cuda").manual_seed(3)
    for classes in (1, 19, 110, 111, 200):
        for shape in ((1, 1, 1), (2, 37, 50), (1, 130, 129), (70001,)):
            for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
                prediction = torch.randint(0, classes, shape, generator=generator, device="cuda").to(dtype)
                target = torch.randint(0, classes, shape, generator=generator, device="cuda")
                target[torch.rand(shape, generator=generator, device="cuda") < 0.2] = 255
                target[..., ::7] = classes  # no class
                got = hmsa_ext.confusion_matrix(prediction, target, classes)
                wanted = reference.confusion_matrix(prediction, target, classes)
                yield from equal_cases(f"confusion_matrix {classes} classes {shape} {dtype}", got, wanted)


def tile_centroids_cases() -> Iterator[tuple[str, Tensor, Tensor]]:
    generator = torch.Generator("cuda").manual_seed(4)
    for classes in (1, 19, 256):
        for shape in ((1, 1, 1), (2, 37, 50), (1, 130, 129), (1, 300, 33)):
            labels = torch.randint(0, 256, shape, generator=generator, device="cuda").byte() % 25
            for tile in (1, 16, 33, 128, 5000):
                if tile == 1 and classes == 256:
                    continue  # minutes under the sanitizer
                for layout, given in (("rows", labels), ("columns", labels.mT.contiguous().mT)):
                    got = hmsa_ext.ops.class_tile_centroids(given, tile, classes)
                    wanted = hmsa_ext.ops.class_tile_centroids(labels.cpu(), tile, classes)
                    name = f"class_tile_centroids {classes} classes {shape} tile {tile} by {layout}"
                    yield from equal_cases(name, got, wanted)


def class_uniform_cases() -> Iterator[tuple[str, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    for classes, images, centroids, items in ((1, 1, 1, 3), (19, 7, 300, 40), (150, 40, 2000, 100)):
        sizes = torch.randint(1, 400, (images, 2), generator=generator)
        c = torch.randint(0, classes, (centroids,), generator=generator).sort().values
        image = torch.randint(0, images, (centroids,), generator=generator)
        points = (torch.rand((centroids, 2), generator=generator) * sizes[image]).long()
        tables = [torch.cat([c[:, None], image[:, None], points], 1), torch.full((1 + classes,), items), sizes]
        tables[1][1:][torch.bincount(c, minlength=classes) == 0] = 0
        for attempt, long_edge in ((0, 0), (3, 500)):
            keywords = {"scale": (0.5, 2.0), "uniform_images": images, "seed": 1, "epoch": 2, "first": 1}
            keywords |= {"count": int(tables[1].sum()) - 1, "attempt": attempt, "long_edge": long_edge}
            got = hmsa_ext.ops.draw_class_uniform_boxes(*(x.cuda() for x in tables), (64, 96), **keywords)
            wanted = hmsa_ext.ops.draw_class_uniform_boxes(*tables, (64, 96), **keywords)
            yield from equal_cases(f"draw_class_uniform_boxes {classes} classes, attempt {attempt}", got, wanted)


def equal_cases(name: str, got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Results that must be equal: a single difference becomes an excess over the tolerance, whatever the values."""
    for index, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
        theirs = theirs.to(mine.device)
        differ = ((mine != theirs) & ~((mine != mine) & (theirs != theirs))).float().sum()  # NaN is NaN
        yield f"{name} result {index}", 1 + differ, torch.ones_like(differ)


def sample_crop_cases() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Boxes in, across and outside of images that are as small as one pixel; more crops than a launch takes."""
    generator = torch.Generator().manual_seed(4)

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    for size in ((1, 1), (7, 1), (33, 70), (64, 32)):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for channels_last in (False, True):
                shapes = [(1, 1), (37, 50), (90, 21)]
                images = [torch.randint(0, 256, (*s, 3), generator=generator, dtype=torch.uint8) for s in shapes]
                labels = [torch.randint(0, 19, s, generator=generator, dtype=torch.uint8) for s in shapes]
                boxes = []
                for n in range(41):
                    height, width = shapes[n % 3]
                    y, x = whole(-height, height), whole(-width, width)
                    boxes.append([n % 3, y, x, y + whole(1, 2 * height), x + whole(1, 2 * width)])
                jitter = torch.rand(41, 4, generator=generator) + torch.tensor([0.5, 0.5, 0.5, -0.5])
                jitter[::4] = torch.tensor([1.0, 1.0, 1.0, 0.0])
                flip = torch.rand(41, generator=generator) < 0.5
                blur = 4 * torch.rand(41, generator=generator) * (torch.rand(41, generator=generator) < 0.5)
                images, labels = ([x.cuda() for x in some] for some in (images, labels))
                inputs = (images, labels, torch.tensor(boxes), flip, jitter, size, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
                options = {"blur": blur, "antialias": channels_last, "channels_last": channels_last}
                got = hmsa_ext.sample_crop(*inputs, **options, dtype=dtype)
                wanted = reference_crop.sample_crop(*inputs, **options)
                name = f"sample_crop {size} {dtype}{', channels_last' if channels_last else ''}"
                yield f"{name} images", got[0], wanted[0]
                differ = (got[1] != wanted[1]).float().sum()
                yield f"{name} labels", 1 + differ, torch.ones_like(differ)


def random_labels(problem: Problem, generator: torch.Generator) -> Tensor:
    """Labels for a problem, a fifth of them ignored."""
    shape = (problem.logits[0].shape[0], *problem.size)
    labels = torch.randint(0, problem.classes, shape, generator=generator, device="cuda")
    labels[torch.rand(shape, generator=generator, device="cuda") < 0.2] = 255
    return labels


if __name__ == "__main__":
    sys.exit(main())
