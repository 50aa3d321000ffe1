"""Running one network at several scales (Tao, Sapra, Catanzaro 2020), whatever the network is."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmsa_ext.models.initialisation import initialise
from hmsa_ext.models.scale_attention import PUBLISHED_BOTTLENECK, ScaleAttentionHead
from hmsa_ext.models.scale_outputs import ScaleOutputs

MAX_SCALES = 8
DEFAULT_SCALES = (0.5, 1.0)


class MultiScale(nn.Module):
    """Makes any segmentation network hierarchical: ``model(images, scales)`` -> :class:`ScaleOutputs`.

    ``network(images)`` returns ``(logits, features)`` or ``(logits, aux, features)``, all [B, *, h, w] of one size, at
    any stride. A scale-attention head is put on ``features``. In ``state_dict()`` the two are ``network.*`` and
    ``scale_attn.*``.

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
        bottleneck: inner channels of the attention head (published: 256).
        attention_statistics: see :func:`forward_scales`.
    """

    def __init__(
        self,
        network: nn.Module,
        feature_channels: int,
        *,
        attention_channels: int = 1,
        bottleneck: int = PUBLISHED_BOTTLENECK,
        attention_statistics: str = "all",
    ) -> None:
        super().__init__()
        check_attention_statistics(attention_statistics)
        self.network = network
        self.scale_attn = ScaleAttentionHead(feature_channels, bottleneck=bottleneck, out_channels=attention_channels)
        self.attention_statistics = attention_statistics
        initialise(self.scale_attn, predictions=[self.scale_attn.conv2])

    def forward(self, images: Tensor, scales: Sequence[float] = DEFAULT_SCALES) -> ScaleOutputs:
        return forward_scales(self.network, self.scale_attn, images, scales, self.attention_statistics)


def forward_scales(
    network: Callable[[Tensor], Sequence[Tensor]],
    scale_attention: nn.Module,
    images: Tensor,
    scales: Sequence[float],
    attention_statistics: str = "all",
) -> ScaleOutputs:
    """Run ``network`` and ``scale_attention`` on ``images`` [B, 3, H, W] at each scale, smallest first.

    At scale s the images are resized to ``floor(H * s), floor(W * s)`` (bilinear, ``align_corners=False``, no
    antialias). ``scales`` come in any order. Logits and attention are float32 under autocast, as published (the maps
    are small, and their differences decide), else of the network's own dtype.

    The attention of the largest scale is part of no output. At evaluation it is not computed. In training the published
    network computes it all the same, which moves the running statistics of the head's batch norms: and those are what
    the head uses at that scale once a still larger one is added at evaluation. ``attention_statistics="all"`` (default)
    does as published, without keeping anything for backward; ``"used"`` leaves the largest scale out, which saves about
    a tenth of the forward pass. The passes run from the smallest scale to the largest, as published: running statistics
    depend on the order.

    Raises:
        ValueError: scales that are empty, more than 8, not finite and positive, given twice, or without 1.0 when there
            are several; images too small for a scale; network outputs that do not fit each other.
        TypeError: images that are not floating point; network outputs that are not a tuple of tensors.
    """
    _check_images(images)
    ordered = descending_scales(scales)
    size = (images.shape[-2], images.shape[-1])
    logits: list[Tensor] = []
    attention: list[Tensor] = []
    aux: list[Tensor] = []

    for scale in reversed(ordered):
        resized = _resize_images(images, size, scale)
        scale_logits, scale_aux, features = _unpack(network(resized))
        logits.append(_widen_under_autocast(scale_logits))
        if scale_aux is not None:
            aux.append(_widen_under_autocast(scale_aux))
        if scale != ordered[0]:
            attention.append(_attend(scale_attention, features, scale_logits))
        elif len(ordered) > 1 and scale_attention.training and attention_statistics == "all":
            with torch.no_grad():
                scale_attention(features)

    return ScaleOutputs(logits[::-1], attention[::-1], aux[::-1] if aux else None, ordered, size)


def descending_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """Check the scales of a forward pass and put them in descending order.

    >>> descending_scales([0.5, 2, 1])
    (2.0, 1.0, 0.5)
    """
    if not isinstance(scales, Sequence) or isinstance(scales, str):
        raise ValueError(f"scales: expected a sequence of numbers such as (0.5, 1.0), got {scales!r}")
    if not 1 <= len(scales) <= MAX_SCALES:
        raise ValueError(f"scales: expected 1 to {MAX_SCALES} of them, got {len(scales)}: {tuple(scales)}")
    ordered = tuple(sorted((float(s) for s in scales), reverse=True))
    if not all(math.isfinite(s) and s > 0 for s in ordered):
        raise ValueError(f"scales: expected finite numbers above 0, got {tuple(scales)}")
    if len(set(ordered)) != len(ordered):
        raise ValueError(f"scales: each may be given once, got {tuple(scales)}")
    if len(ordered) > 1 and 1.0 not in ordered:
        raise ValueError(f"scales: 1.0 must be among several scales, got {tuple(scales)}")
    return ordered


def check_attention_statistics(value: str) -> None:
    """Raise ValueError unless ``value`` is one of the two ways that :func:`forward_scales` describes."""
    if value not in ("all", "used"):
        raise ValueError(f'attention_statistics: expected "all" or "used", got {value!r}')


def _check_images(images: Tensor) -> None:
    if images.dim() != 4:
        raise ValueError(f"images: expected [B, 3, H, W], got a tensor of shape {list(images.shape)}")
    if not images.is_floating_point():
        raise TypeError(f"images: expected normalised floating point, got {images.dtype}")


def _resize_images(images: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    grid = (math.floor(size[0] * scale), math.floor(size[1] * scale))
    if min(grid) < 1:
        raise ValueError(f"scales: {scale} leaves nothing of images of {size[0]} x {size[1]}")
    if grid == size:
        return images
    return F.interpolate(images, grid, mode="bilinear", align_corners=False)


def _unpack(outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor | None, Tensor]:
    if not isinstance(outputs, (tuple, list)) or len(outputs) not in (2, 3):
        got = f"{len(outputs)} values" if isinstance(outputs, (tuple, list)) else type(outputs).__name__
        raise TypeError(f"network: expected it to return (logits, features) or (logits, aux, features), got {got}")
    for value in outputs:
        if not isinstance(value, Tensor) or value.dim() != 4:
            got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"network: expected it to return tensors [B, *, h, w], got {got}")
    logits, features = outputs[0], outputs[-1]
    aux = outputs[1] if len(outputs) == 3 else None
    if aux is not None and aux.shape != logits.shape:
        raise ValueError(f"network: aux {list(aux.shape)} differs from logits {list(logits.shape)}")
    return logits, aux, features


def _attend(scale_attention: nn.Module, features: Tensor, logits: Tensor) -> Tensor:
    expected = getattr(getattr(scale_attention, "conv0", None), "in_channels", features.shape[1])
    if features.shape[1] != expected:
        raise ValueError(
            f"network: it returned features of {features.shape[1]} channels {list(features.shape)}, "
            f"the attention head was built for feature_channels={expected}"
        )
    attention = scale_attention(features)
    if attention.shape[-2:] != logits.shape[-2:]:
        raise ValueError(
            f"network: features {list(features.shape)} and logits {list(logits.shape)} must be of one height and width"
        )
    if attention.shape[1] not in (1, logits.shape[1]):
        raise ValueError(
            f"attention_channels: expected 1 or the {logits.shape[1]} classes of the network, got {attention.shape[1]}"
        )
    return attention


def _widen_under_autocast(x: Tensor) -> Tensor:
    return x.float() if torch.is_autocast_enabled(x.device.type) else x
