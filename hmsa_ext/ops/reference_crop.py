"""``sample_crop`` in plain PyTorch: slow, readable, and the truth that the kernels are tested against.

Everything is computed in float64 on the values 0..255 and rounded once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Luma and the two chroma axes of YIQ, by row, of a colour (red, green, blue).
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


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
    """Crops of uint8 images [H, W, 3] and label maps [H, W]: see :func:`hmsa_ext.sample_crop`."""
    device = images[0].device if images else boxes.device
    height, width = size
    crops = torch.empty((len(boxes), 3, height, width), dtype=torch.float64, device=device)
    targets = torch.empty((len(boxes), height, width), dtype=torch.uint8, device=device)
    fill = 255 * torch.tensor(mean, dtype=torch.float64, device=device).view(3, 1, 1)
    for n, (image, *box) in enumerate(boxes.tolist()):
        colours, inside, target = cut(images[image], labels[image], box, ignore_index)
        matrix, offset = colour_change(colours, inside, jitter[n].tolist())
        # Where nothing is inside both are 0, as outside: the margin's weight is all there is.
        value = resize(colours, (height, width), antialias)
        weight = resize(inside[None], (height, width), antialias)
        value = torch.einsum("ij,jyx->iyx", matrix, value) + weight * offset + (1 - weight) * fill
        target = nearest(target, (height, width))
        if flip[n]:
            value, target = value.flip(-1), target.flip(-1)
        if jitter[n].tolist() != [1, 1, 1, 0]:
            value = value.clamp(0, 255)
        if blur is not None and blur[n] > 0:
            value = gaussian_blur(value, blur[n].item())
        crops[n], targets[n] = value, target
    deviation = torch.tensor(std, dtype=torch.float64, device=device).view(3, 1, 1)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    normalised = torch.empty(crops.shape, dtype=dtype, device=device, memory_format=memory_format)
    return normalised.copy_((crops - fill) / (255 * deviation)), targets


def cut(image: Tensor, label: Tensor, box: Sequence[int], ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """The box as colours float64 [3, h, w], where it lies inside the image float64 [h, w] (else both are 0), and as
    labels uint8 [h, w]."""
    y0, x0, y1, x1 = box
    rows, columns = (torch.arange(*ends, device=image.device) for ends in ((y0, y1), (x0, x1)))
    height, width = label.shape
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    colours = image[rows][:, columns].permute(2, 0, 1).double() * inside
    target = torch.where(inside, label[rows][:, columns], ignore_index).to(torch.uint8)
    return colours, inside.double(), target


def resize(image: Tensor, size: Sequence[int], antialias: bool) -> Tensor:
    """Bilinear resize [C, H, W] -> [C, *size], the columns first.

    ``F.interpolate`` does the same at once, but in some versions of PyTorch (2.13) the antialiased result for a single
    column is wrong; for a single row it is right, so rows are resized as columns.
    """
    for out in reversed(size):
        image = F.interpolate(
            image[None].contiguous(),
            (image.shape[1], out),
            mode="bilinear",
            align_corners=False,
            antialias=antialias,
        )[0].mT
    return image


def nearest(label: Tensor, size: Sequence[int]) -> Tensor:
    """The pixel under the centre of each output pixel, in integers."""
    rows, columns = (
        (2 * torch.arange(out, device=label.device) + 1) * length // (2 * out)
        for out, length in zip(size, label.shape, strict=True)
    )
    return label[rows][:, columns]


def colour_change(colours: Tensor, inside: Tensor, jitter: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Brightness, contrast, saturation and hue as a matrix [3, 3] and an offset (the same for each channel).

    Brightness multiplies, contrast blends with the mean luma of the pixels inside, saturation blends with the luma of
    the pixel, hue turns the chroma plane of YIQ. All four are affine in the colour and commute.
    """
    brightness, contrast, saturation, turn = jitter
    yiq = torch.tensor(YIQ, dtype=torch.float64, device=colours.device)
    cosine, sine = saturation * math.cos(math.tau * turn), saturation * math.sin(math.tau * turn)
    turned = yiq.new_tensor([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    mean_luma = yiq[0] @ (colours * inside).sum((1, 2)) / inside.sum().clamp(min=1)
    matrix = brightness * contrast * (torch.linalg.inv(yiq) @ turned @ yiq)
    return matrix, brightness * (1 - contrast) * mean_luma


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """[C, H, W], with weights to 3 sigma; beyond the border the image is mirrored, its edge not repeated."""
    radius = math.ceil(3 * sigma)
    distance = torch.arange(-radius, radius + 1, device=image.device)
    weight = torch.exp(-(distance.double() ** 2) / (2 * sigma**2))
    weight = weight / weight.sum()
    for dim in (1, 2):
        length = image.shape[dim]
        period = max(2 * (length - 1), 1)
        # Position p and every p + k period show the same pixel, and so do p and -p.
        at = (torch.arange(length, device=image.device)[:, None] + distance).remainder(period)
        at = torch.minimum(at, period - at).clamp(max=length - 1)
        image = torch.einsum("...nk,k->...n", image.movedim(dim, -1)[..., at], weight).movedim(-1, dim)
    return image
