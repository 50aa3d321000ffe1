"""``hmsa::sample_crop``: the public Python function, the public op and the declaration of the private one.

The public op is a composite over ``hmsa::_sample_crop``, which ``csrc/ops/sample_crop.cpp`` defines and which takes the
name of a dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hmsa_ext.ops import arguments, library, reference_crop, registration
from hmsa_ext.ops.schema import Arguments, signature

_NAME = "sample_crop"
_SIDE_LIMIT = 1 << 24
_DTYPES = ("float32", "float16", "bfloat16")


def sample_crop(
    images: Sequence[Tensor],
    labels: Sequence[Tensor],
    boxes: Tensor,
    flip: Tensor,
    jitter: Tensor,
    size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    blur: Tensor | None = None,
    ignore_index: int = 255,
    antialias: bool = False,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> tuple[Tensor, Tensor]:
    """Cut boxes out of images and label maps: resized, mirrored, recoloured, blurred, normalised, in one pass.

    Only pixels of the boxes are read. For each box:

    1. It is cut out of the image, which goes on without end in the colour ``255 * mean`` and the label
       ``ignore_index``, and resized to ``size`` by itself: the image as ``F.interpolate(box, size, mode="bilinear",
       antialias=antialias)``, the labels by the pixel under each centre.
    2. It is mirrored left-right where ``flip`` says so.
    3. Colours change; those outside the image stay. With Y the matrix of YIQ, T the turn of its chroma plane, scaled by
       the saturation, and l the mean luma of the pixels of the box that lie in the image::

           v' = brightness * (contrast * inv(Y) T Y v + (1 - contrast) * l),   clamped to 0..255

    4. The image is blurred by a Gaussian out to 3 sigma, its border mirrored without repeating the edge.
    5. ``(v / 255 - mean) / std``.

    Args:
        images: uint8 [H_i, W_i, 3] of any sizes, as decoders give them; any strides, read as they are.
        labels: uint8 [H_i, W_i], one for each image. All are on one device, and so is the result.
        boxes: int64 [N, 5]: image, y0, x0, y1, x1 (end excluded); may reach outside the image, or lie there wholly.
            This and the next two, and ``blur``, are CPU tensors whatever the device of the images: they are checked at
            once, and no GPU has to be waited for.
        flip: bool [N].
        jitter: float32 [N, 4]: factors of brightness, contrast and saturation (0 to 100), and the turn of the hue in
            whole turns; (1, 1, 1, 0) changes nothing.
        size: (height, width) of the crops; integers, which may be symbolic.
        mean, std: three numbers each, for red, green and blue on 0..1.
        blur: float32 [N], sigma in pixels of the crop, up to 4; 0 is none.
        ignore_index: label outside the image, 0 to 255.
        antialias: widen the filter where a box is reduced, so that each of its pixels counts.
        dtype: of the images that are returned: float32, float16 or bfloat16. Everything is computed in float32.
        channels_last: memory format of the images that are returned.

    Returns:
        Images [N, 3, height, width] and labels uint8 [N, height, width]. The same bits whatever the number of threads.
        Between CPU and CUDA the labels are equal, float32 pixels to about 1.1e-6 (float16 and bfloat16 ones to a last
        place): sums of products are rounded differently.

    Raises:
        TypeError: for lists or tensors that are none, and a size whose sides are no integers.
        RuntimeError: for anything else that does not fit. Every message names the argument, what came and what was
            expected.

    >>> image, label = torch.zeros(60, 80, 3, dtype=torch.uint8), torch.zeros(60, 80, dtype=torch.uint8)
    >>> crop = sample_crop([image], [label], torch.tensor([[0, -4, 8, 28, 72]]), torch.tensor([True]),
    ...                    torch.tensor([[1.2, 0.9, 1.0, 0.1]]), (32, 64), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    >>> [list(part.shape) for part in crop]
    [[1, 3, 32, 64], [1, 32, 64]]
    """
    images = arguments.tensors(_NAME, "images", images, (torch.uint8,), "[H, W, 3]")
    labels = arguments.tensors(_NAME, "labels", labels, (torch.uint8,), "[H, W]")
    for name, table in (("boxes", boxes), ("flip", flip), ("jitter", jitter), ("blur", blur)):
        if not isinstance(table, Tensor) and (table is not None or name != "blur"):
            raise arguments.ArgumentTypeError(f"{_NAME}: {name} is a {type(table).__name__}; expected a tensor")
    function = reference_crop.sample_crop
    if not images or library.has_kernels(_NAME, images[0].device):
        function = _call_private  # what the public op does, less a way through the dispatcher
    return function(
        images=images,
        labels=labels,
        boxes=boxes,
        flip=flip,
        jitter=jitter,
        size=arguments.sides(_NAME, "size", size),
        mean=arguments.numbers(_NAME, "mean", mean),
        std=arguments.numbers(_NAME, "std", std),
        blur=blur,
        ignore_index=ignore_index,
        antialias=antialias,
        dtype=dtype,
        channels_last=channels_last,
    )


# ---- the public op ----------------------------------------------------------------------------------------------


def _call_private(**given) -> tuple[Tensor, Tensor]:
    """The private op's results for the arguments of the public op."""
    for name in ("jitter", "blur"):
        if given[name] is not None and given[name].requires_grad:
            raise RuntimeError(f"{_NAME}: {name} requires a gradient, but the op has none; expected {name}.detach()")
    given["dtype"] = str(given["dtype"]).removeprefix("torch.")
    return _op(*[given[name] for name in _ORDER])


def _composite(*args, **kwargs) -> tuple[Tensor, Tensor]:
    a = signature(_NAME).bind(args, kwargs)
    if not isinstance(a.dtype, torch.dtype):
        a.dtype = torch.float32  # the default, which the schema has as a number
    return _call_private(**vars(a))


# ---- declarations -----------------------------------------------------------------------------------------------

_BOXES = "[N, 5]: image, y0, x0, y1, x1"
_TABLES = (
    ("boxes", torch.int64, 5),
    ("flip", torch.bool, None),
    ("jitter", torch.float32, 4),
    ("blur", torch.float32, None),
)


def _check_images(a: Arguments) -> None:
    expect, shape_of = arguments.expect, arguments.shape_of
    expect(
        [len(a.images) == len(a.labels)],
        lambda: (
            f"{_NAME}: images has {len(a.images)} entries, labels {len(a.labels)}; expected a label map for each image"
        ),
    )
    for i, (image, labels) in enumerate(zip(a.images, a.labels, strict=True)):
        shape = shape_of(image)
        arguments.tensor(_NAME, f"images[{i}]", image, (torch.uint8,), "[H, W, 3]")
        fits = image.dim() == 3 and image.shape[2] == 3
        expect(
            [fits, *(side >= 1 for side in image.shape[:2])],
            lambda i=i, shape=shape: f"{_NAME}: images[{i}] has shape {shape}; expected [H, W, 3]",
        )
        expect(
            [side < _SIDE_LIMIT for side in image.shape[:2]],
            lambda i=i, shape=shape: f"{_NAME}: images[{i}] has shape {shape}; expected sides below {_SIDE_LIMIT}",
        )
        arguments.tensor(_NAME, f"labels[{i}]", labels, (torch.uint8,), "[H, W]")
        same = [labels.dim() == 2, *(one == other for one, other in zip(labels.shape, image.shape[:2], strict=False))]
        expect(
            same,
            lambda i=i, labels=labels, image=image: (
                f"{_NAME}: labels[{i}] has shape {shape_of(labels)}; expected [{image.shape[0]}, {image.shape[1]}] "
                f"as images[{i}] has it"
            ),
        )
        for name, tensor in (("images", image), ("labels", labels)):
            expect(
                [tensor.device == a.images[0].device],
                lambda i=i, name=name, tensor=tensor: (
                    f"{_NAME}: {name}[{i}] is on {tensor.device}, images[0] on {a.images[0].device}; "
                    "expected one device"
                ),
            )


def _check_output(a: Arguments) -> None:
    expect, number = arguments.expect, arguments.number
    expect([len(a.size) == 2], lambda: f"{_NAME}: size has {len(a.size)} entries; expected (height, width)")
    expect(
        [condition for side in a.size for condition in (side >= 1, side < _SIDE_LIMIT)],
        lambda: f"{_NAME}: size is ({a.size[0]}, {a.size[1]}); expected sides from 1 to below {_SIDE_LIMIT}",
    )
    expect(
        [0 <= a.ignore_index <= 255],
        lambda: f"{_NAME}: ignore_index is {a.ignore_index}; expected 0 to 255, as labels are uint8",
    )
    expect([a.dtype in _DTYPES], lambda: f"{_NAME}: dtype is {a.dtype}; expected float32, float16 or bfloat16")
    for name, values in (("mean", a.mean), ("std", a.std)):
        expect(
            [len(values) == 3],
            lambda name=name, values=values: (
                f"{_NAME}: {name} has {len(values)} entries; expected one for each of 3 channels"
            ),
        )
    expect(
        [0 <= value <= 1 for value in a.mean],
        lambda: (
            f"{_NAME}: mean is [{', '.join(map(number, a.mean))}]; expected numbers from 0 to 1, of values from 0 to 1"
        ),
    )
    expect(
        [value > 0 and math.isfinite(value) for value in a.std],
        lambda: f"{_NAME}: std is [{', '.join(map(number, a.std))}]; expected positive numbers, of values from 0 to 1",
    )


def _check_tables(a: Arguments) -> None:
    count = a.boxes.shape[0] if a.boxes.dim() else 0
    of_each = f"[{count}], one for each of boxes"
    shapes = {"boxes": _BOXES, "flip": of_each, "blur": of_each}
    shapes["jitter"] = f"[{count}, 4], for each of boxes brightness, contrast, saturation and hue"
    for name, dtype, columns in _TABLES:
        table = getattr(a, name)
        if table is None:
            continue
        arguments.tensor(_NAME, name, table, (dtype,), shapes[name])
        fits = table.dim() == 1 if columns is None else table.dim() == 2 and table.shape[1] == columns
        arguments.expect(
            [fits, table.dim() == 0 or table.shape[0] == count],
            lambda name=name, table=table: (
                f"{_NAME}: {name} has shape {arguments.shape_of(table)}; expected {shapes[name]}"
            ),
        )
        arguments.expect(
            [table.device.type == "cpu"],
            lambda name=name, table=table: (
                f"{_NAME}: {name} is on {table.device}; expected a CPU tensor wherever the images are: "
                "reading it elsewhere would wait for that device"
            ),
        )


def _fake(a: Arguments) -> tuple[Tensor, Tensor]:
    _check_images(a)
    _check_output(a)
    _check_tables(a)
    like = a.images[0] if a.images else a.boxes
    count, (height, width) = a.boxes.shape[0], a.size
    crops = torch.empty(
        (count, 3, height, width),
        dtype=getattr(torch, a.dtype),
        device=like.device,
        memory_format=torch.channels_last if a.channels_last else torch.contiguous_format,
    )
    return crops, like.new_empty((count, height, width), dtype=torch.uint8)


_op = registration.declare("_sample_crop", fake=_fake)
_ORDER = signature("_sample_crop").names
registration.define(
    "sample_crop(Tensor[] images, Tensor[] labels, Tensor boxes, Tensor flip, Tensor jitter, SymInt[2] size, "
    "float[] mean, float[] std, *, Tensor? blur=None, int ignore_index=255, bool antialias=False, "
    "ScalarType dtype=float, bool channels_last=False) -> (Tensor images, Tensor labels)",
    _composite,
    doc=sample_crop.__doc__,
)
