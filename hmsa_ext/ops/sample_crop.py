"""``hmsa::sample_crop``: the public op, the form for people and fake tensors.

The public op is a composite over ``hmsa::_sample_crop``, which csrc/ops defines and which takes the name of a dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hmsa_ext.ops import dispatch, reference_crop

_NAME = "sample_crop"
_op = torch.ops.hmsa._sample_crop.default


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
            once, and nothing waits for a GPU.
        flip: bool [N].
        jitter: float32 [N, 4]: factors of brightness, contrast and saturation (0 to 100), and the turn of the hue in
            whole turns; (1, 1, 1, 0) changes nothing.
        size: (height, width) of the crops.
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
        RuntimeError: for whatever does not fit; it names the argument, what came and what was expected.

    >>> image, label = torch.zeros(60, 80, 3, dtype=torch.uint8), torch.zeros(60, 80, dtype=torch.uint8)
    >>> crop = sample_crop([image], [label], torch.tensor([[0, -4, 8, 28, 72]]), torch.tensor([True]),
    ...                    torch.tensor([[1.2, 0.9, 1.0, 0.1]]), (32, 64), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    >>> [list(part.shape) for part in crop]
    [[1, 3, 32, 64], [1, 32, 64]]
    """
    function = reference_crop.sample_crop
    if not images or dispatch.has_kernels(_NAME, images[0].device):
        function = _composite  # what the public op does, less a way through the dispatcher
    return function(
        list(images),
        list(labels),
        boxes,
        flip,
        jitter,
        [int(side) for side in size],
        [float(value) for value in mean],
        [float(value) for value in std],
        blur=blur,
        ignore_index=ignore_index,
        antialias=antialias,
        dtype=dtype,
        channels_last=channels_last,
    )


# ---- the public op ----------------------------------------------------------------------------------------------

# Registrations live as long as the Library object.
_library = torch.library.Library("hmsa", "FRAGMENT")
_library.define(
    "sample_crop(Tensor[] images, Tensor[] labels, Tensor boxes, Tensor flip, Tensor jitter, SymInt[2] size, "
    "float[] mean, float[] std, *, Tensor? blur=None, int ignore_index=255, bool antialias=False, "
    "ScalarType dtype=float, bool channels_last=False) -> (Tensor images, Tensor labels)"
)


def _composite(
    images,
    labels,
    boxes,
    flip,
    jitter,
    size,
    mean,
    std,
    *,
    blur=None,
    ignore_index=255,
    antialias=False,
    dtype=torch.float32,
    channels_last=False,
):
    for name, tensor in (("jitter", jitter), ("blur", blur)):
        if tensor is not None and tensor.requires_grad:
            raise RuntimeError(f"{_NAME}: {name} requires a gradient, but the op has none; expected {name}.detach()")
    dtype = str(dtype).removeprefix("torch.")
    options = (blur, ignore_index, antialias, dtype, channels_last)
    return _op(images, labels, boxes, flip, jitter, size, mean, std, *options)


_library.impl("sample_crop", _composite, "CompositeImplicitAutograd")


# ---- fake tensors -----------------------------------------------------------------------------------------------


@torch.library.register_fake("hmsa::_sample_crop")
def _fake(images, labels, boxes, flip, jitter, size, mean, std, blur, ignore_index, antialias, dtype, channels_last):
    like = images[0] if images else boxes
    count, (height, width) = boxes.shape[0], size
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    crops = torch.empty(
        (count, 3, height, width), dtype=getattr(torch, dtype), device=like.device, memory_format=memory_format
    )
    return crops, like.new_empty((count, height, width), dtype=torch.uint8)
