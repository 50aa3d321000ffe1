"""Running any network at several scales (Tao, Sapra, Catanzaro 2020)."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmsa_ext.errors import ArgumentTypeError, ArgumentValueError
from hmsa_ext.models.initialisation import initialise
from hmsa_ext.models.inputs import InputError
from hmsa_ext.models.one_scale import check_divisor, run_network
from hmsa_ext.models.scale_attention import PUBLISHED_BOTTLENECK, ScaleAttentionHead, build_attention_head
from hmsa_ext.models.scale_outputs import ScaleOutputs
from hmsa_ext.normalisation import FirstLook

MAX_SCALES = 8
DEFAULT_SCALES = (0.5, 1.0)


class MultiScale(nn.Module):
    """Makes any segmentation network hierarchical: ``model(images, scales)`` -> :class:`ScaleOutputs`.

    ``network(images)`` returns ``(logits, features)`` or ``(logits, aux, features)``, all [B, *, h, w] of one size, at
    any stride. A scale-attention head is put on ``features``. In ``state_dict()`` the two are ``network.*`` and
    ``scale_attn.*``.

    Images are normalised as the network expects it; for networks pretrained on ImageNet that is RGB,
    ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`.

    The network has to accept images of ``floor(H * s) x floor(W * s)`` pixels for every scale s. With ``divisor=n`` it
    has to accept multiples of n only: the image of each scale is padded with 0 at the right and at the bottom, and the
    outputs are cropped to the rows and columns that show the image. The network's stride must divide n. Batch norms
    of the network see the padding in training. See :func:`hmsa_ext.models.one_scale.run_network`.

    >>> class Toy(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.features, self.logits = nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.Conv2d(8, 5, 1)
    ...     def forward(self, images):
    ...         features = self.features(images)
    ...         return self.logits(features), features
    >>> model = MultiScale(Toy(), feature_channels=8, bottleneck=8).eval()
    >>> model(torch.zeros(1, 3, 32, 48), scales=(0.5, 1.0, 2.0)).fuse().shape
    torch.Size([1, 5, 32, 48])

    Args:
        network: the network; its weights are left as they are.
        feature_channels: channels of the features it returns.
        attention_channels: 1 (one weight for all classes, published) or the number of classes.
        attention_head: see :func:`hmsa_ext.models.build_attention_head`.
        bottleneck: inner channels of the attention head (published: 256).
        attention_statistics: see :func:`forward_scales`.
        divisor: a number that the network needs the height and width of its images to be multiples of.

    Raises:
        ValueError: an argument that does not fit; the message names it.
    """

    def __init__(
        self,
        network: nn.Module,
        feature_channels: int,
        *,
        attention_channels: int = 1,
        attention_head: str | Callable[..., nn.Module] = "scale",
        bottleneck: int = PUBLISHED_BOTTLENECK,
        attention_statistics: str = "all",
        divisor: int = 1,
    ) -> None:
        super().__init__()
        check_attention_statistics(attention_statistics)
        check_divisor(divisor)
        self.network = network
        self.scale_attn = build_attention_head(
            attention_head, feature_channels, attention_channels, bottleneck=bottleneck
        )
        self.feature_channels = feature_channels
        self.attention_statistics = attention_statistics
        self.divisor = divisor
        self._first_look = FirstLook()
        if isinstance(self.scale_attn, ScaleAttentionHead):
            initialise([self.scale_attn], predictions=[self.scale_attn.conv2])

    def forward(self, images: Tensor, scales: Sequence[float] = DEFAULT_SCALES) -> ScaleOutputs:
        self._first_look(images)
        return forward_scales(self.forward_one_scale, self.scale_attn, images, scales, self.attention_statistics)

    def forward_one_scale(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """The network alone: images [B, 3, H, W] -> (logits, aux or None, features) at the stride of the network."""
        logits, aux, features = run_network(self.network, images, self.divisor)
        if features.shape[1] != self.feature_channels:
            raise ArgumentValueError(
                f"network: it returned features of {features.shape[1]} channels {list(features.shape)}, "
                f"the attention head was built for feature_channels={self.feature_channels}"
            )
        return logits, aux, features


def forward_scales(
    network: Callable[[Tensor], tuple[Tensor, Tensor | None, Tensor]],
    scale_attention: nn.Module,
    images: Tensor,
    scales: Sequence[float],
    attention_statistics: str = "all",
) -> ScaleOutputs:
    """Runs ``network`` and ``scale_attention`` on ``images`` [B, 3, H, W] at each scale, smallest first.

    At scale s the images are resized to ``floor(H * s), floor(W * s)`` (bilinear, ``align_corners=False``, no
    antialias). Under autocast logits and attention become float32, as published; otherwise they have the network's
    dtype.

    The attention of the largest scale is part of no output, and evaluation does not compute it. In training the
    published network computes it, and the batch norms of the head thereby update their running statistics. Evaluation
    uses these statistics at that scale when a larger scale is added. ``attention_statistics="all"`` (default) does the
    same, and keeps nothing for backward. ``"used"`` leaves the largest scale out, which saves about a tenth of the
    forward pass. The passes run from the smallest scale to the largest, as published, because running statistics depend
    on the order.

    Args:
        network: images [B, 3, h, w] -> (logits, aux or None, features), as :func:`run_network` returns them.
        scale_attention: features -> attention [B, 1 or C, h, w] in [0, 1].
        images: normalised, floating point.
        scales: up to 8 different positive numbers in any order, 1.0 among them when there is more than one.
        attention_statistics: ``"all"`` or ``"used"``.

    Raises:
        ValueError: scales that do not fit; attention that does not fit the logits.
        InputError: images too small for a scale, or of a size that the network fails on. It is a ValueError.
        TypeError: images that are not floating point; network outputs that are not a tuple of tensors.
    """
    _check_images(images)
    ordered = descending_scales(scales)
    largest = ordered[0]
    size = (images.shape[-2], images.shape[-1])
    logits: list[Tensor] = []
    attention: list[Tensor] = []
    aux: list[Tensor] = []

    for scale in reversed(ordered):
        resized = _resize_images(images, size, scale)
        scale_logits, scale_aux, features = network(resized)
        logits.append(_widen_under_autocast(scale_logits))
        if scale_aux is not None:
            aux.append(_widen_under_autocast(scale_aux))
        if scale != largest:
            attention.append(_attend(scale_attention, features, scale_logits))
        elif attention and scale_attention.training and attention_statistics == "all":
            with torch.no_grad():
                scale_attention(features)

    return ScaleOutputs(logits[::-1], attention[::-1], aux[::-1] if aux else None, ordered, size)


def descending_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """The scales of a forward pass, checked, in descending order.

    Raises:
        ValueError: scales that are empty, more than 8, not finite and positive, given twice, or without 1.0 when there
            are several.

    >>> descending_scales([0.5, 2, 1])
    (2.0, 1.0, 0.5)
    """
    if not isinstance(scales, Sequence) or isinstance(scales, str):
        raise ArgumentValueError(f"scales: expected a sequence of numbers such as (0.5, 1.0), got {scales!r}")
    if not 1 <= len(scales) <= MAX_SCALES:
        raise ArgumentValueError(f"scales: expected 1 to {MAX_SCALES} of them, got {len(scales)}: {tuple(scales)}")
    ordered = tuple(sorted((float(s) for s in scales), reverse=True))
    if not all(math.isfinite(s) and s > 0 for s in ordered):
        raise ArgumentValueError(f"scales: expected finite numbers above 0, got {tuple(scales)}")
    if len(set(ordered)) != len(ordered):
        raise ArgumentValueError(f"scales: each may be given once, got {tuple(scales)}")
    if len(ordered) > 1 and 1.0 not in ordered:
        raise ArgumentValueError(f"scales: 1.0 must be among several scales, got {tuple(scales)}")
    return ordered


def check_attention_statistics(value: str) -> None:
    """Raises ValueError unless ``value`` is one of the two ways that :func:`forward_scales` describes."""
    if value not in ("all", "used"):
        raise ArgumentValueError(f'attention_statistics: expected "all" or "used", got {value!r}')


def _check_images(images: Tensor) -> None:
    if images.dim() != 4:
        raise ArgumentValueError(f"images: expected [B, 3, H, W], got a tensor of shape {list(images.shape)}")
    if not images.is_floating_point():
        raise ArgumentTypeError(f"images: expected normalised floating point, got {images.dtype}")


def _resize_images(images: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    grid = (math.floor(size[0] * scale), math.floor(size[1] * scale))
    if min(grid) < 1:
        raise InputError(f"scales: {scale} leaves nothing of images of {size[0]} x {size[1]}")
    if grid == size:
        return images
    return F.interpolate(images, grid, mode="bilinear", align_corners=False)


def _attend(scale_attention: nn.Module, features: Tensor, logits: Tensor) -> Tensor:
    attention = scale_attention(features)
    if attention.dim() != 4 or attention.shape[-2:] != logits.shape[-2:]:
        raise ArgumentValueError(
            f"attention_head: expected [B, 1 or C, h, w] at the size of the logits {list(logits.shape)}, got "
            f"{list(attention.shape)}"
        )
    if attention.shape[1] not in (1, logits.shape[1]):
        raise ArgumentValueError(
            f"attention_channels: expected 1 or the {logits.shape[1]} classes of the network, got {attention.shape[1]}"
        )
    return attention


def _widen_under_autocast(x: Tensor) -> Tensor:
    return x.float() if torch.is_autocast_enabled(x.device.type) else x
