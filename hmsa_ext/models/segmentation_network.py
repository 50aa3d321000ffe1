"""What all networks share: passes over several scales, the attention between them, and the outputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.models.fusions import (
    Fusion,
    check_scales,
    explicit_attention,
    find_fusion,
    head_channels,
    training_scales,
)
from hmsa_ext.models.initialisation import initialise
from hmsa_ext.models.joined_maps import Features, as_tensor
from hmsa_ext.models.scale_attention import PUBLISHED_BOTTLENECK, ScaleAttentionHead, build_attention_head
from hmsa_ext.models.scale_outputs import ScaleOutputs
from hmsa_ext.models.scales import check_images, descending_scales, resize_images
from hmsa_ext.normalisation import FirstLook
from hmsa_ext.settings import SettingError


class SegmentationNetwork(nn.Module):
    """A network that runs at several scales: ``model(images, scales)`` -> :class:`ScaleOutputs`.

    A subclass builds its parts, calls :meth:`add_attention` once the channels of its features are known, and defines
    :meth:`forward_one_scale`. The attention head, where the fusion has one, is the child ``scale_attn``; else
    ``scale_attn`` is None.

    Args:
        fusion: a name of ``FUSIONS``, ``package.module:object``, or the object: see
            :func:`hmsa_ext.models.fusions.find_fusion`.
        train_scales: scales of the training; explicit attention is built for them. None: those of the fusion.
        attention_statistics: ``"all"`` or ``"used"``: see :meth:`forward`.

    Raises:
        ValueError: an argument that does not fit; the message names it.
    """

    def __init__(
        self,
        *,
        fusion: str | Fusion | Callable[..., Tensor] = "hierarchical",
        train_scales: Sequence[float] | None = None,
        attention_statistics: Literal["all", "used"] | str = "all",
    ) -> None:
        super().__init__()
        if attention_statistics not in ("all", "used"):
            raise ArgumentValueError(f'attention_statistics: expected "all" or "used", got {attention_statistics!r}')
        self.fusion = find_fusion(fusion)
        self.train_scales = training_scales(self.fusion, train_scales)
        self.attention_statistics = attention_statistics
        self.scale_attn: nn.Module | None = None
        self._first_look = FirstLook()

    def add_attention(
        self,
        feature_channels: int,
        attention_channels: int,
        *,
        head: str | Callable[..., nn.Module] = "scale",
        bottleneck: int = PUBLISHED_BOTTLENECK,
    ) -> None:
        """Builds ``scale_attn`` as the fusion needs it, on features of so many channels at each scale.

        A fusion without attention leaves it None, whatever the arguments are: they are of the network, which may have
        another fusion the next time.

        Raises :class:`hmsa_ext.settings.SettingError`, a ValueError, for a head that does not fit.
        """
        channels = head_channels(self.fusion, feature_channels, attention_channels, self.train_scales)
        if channels is None:
            return
        is_joint = self.fusion.attention == "joint"
        self.scale_attn = build_attention_head(head, *channels, bottleneck=bottleneck, sigmoid=not is_joint)

    def leave_attention(self, fusion: str | Fusion | Callable[..., Tensor]) -> None:
        """Changes to a fusion that has no attention; the head goes.

        Raises :class:`hmsa_ext.settings.SettingError`, a ValueError, for a fusion that has one.
        """
        found = find_fusion(fusion)
        if found.attention is not None:
            raise SettingError("fusion", fusion, "one without attention")
        self.fusion, self.train_scales = found, training_scales(found, None)
        self.scale_attn = None

    def initialise(self, modules: Iterable[nn.Module], predictions: Iterable[nn.Module]) -> None:
        """Draws the weights of these modules, and of an attention head of ours: see :func:`initialise`."""
        modules, predictions = list(modules), list(predictions)
        if isinstance(self.scale_attn, ScaleAttentionHead):
            modules.append(self.scale_attn)
            predictions.append(self.scale_attn.conv2)
        initialise(modules, predictions)

    @abstractmethod
    def forward_one_scale(self, images: Tensor) -> tuple[Tensor, Tensor | None, Features]:
        """One pass at one scale: images [B, 3, H, W] -> (logits, aux or None, features), all of one size.

        The features may be :class:`hmsa_ext.models.joined_maps.JoinedMaps`.
        """

    def logits_of_one_scale(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """As :meth:`forward_one_scale`, where nobody asks for the features; a network may then do with less memory."""
        return self.forward_one_scale(images)[:2]

    def forward(self, images: Tensor, scales: Sequence[float] | None = None) -> ScaleOutputs:
        """Outputs for ``images`` [B, 3, H, W] at each scale.

        At scale s the images are resized to ``floor(H * s), floor(W * s)`` (bilinear, ``align_corners=False``, no
        antialias). Under autocast logits and attention become float32, as published; otherwise they have the network's
        dtype.

        The passes run from the smallest scale to the largest, as published, because running statistics depend on the
        order. In the hierarchy the attention of the largest scale is part of no output, and evaluation does not compute
        it. In training the published network computes it, and the batch norms of the head thereby update their running
        statistics. Evaluation uses these statistics at that scale when a larger scale is added.
        ``attention_statistics="all"`` (default) does the same, and keeps nothing for backward. ``"used"`` leaves the
        largest scale out, which saves about a tenth of the forward pass.

        Args:
            images: normalised, floating point.
            scales: up to 8 different positive numbers in any order, 1.0 among them when there is more than one. None:
                those of the training.

        Raises:
            ValueError: scales that do not fit each other or the fusion; attention that does not fit the logits.
            InputError: images too small for a scale, or of a size that the network fails on. It is a ValueError.
            TypeError: images that are not floating point; network outputs that are not a tuple of tensors.
        """
        self._first_look(images)
        check_images(images)
        ordered = descending_scales(self.train_scales if scales is None else scales)
        check_scales(self.fusion, ordered[::-1], self.train_scales)
        logits: list[Tensor] = []
        attention: list[Tensor] = []
        aux: list[Tensor] = []
        all_features: list[Features] = []
        for scale in reversed(ordered):
            use = self._use_of_features(scale, ordered)
            if use is None:
                scale_logits, scale_aux = self.logits_of_one_scale(resize_images(images, scale))
            else:
                scale_logits, scale_aux, features = self.forward_one_scale(resize_images(images, scale))
                if use == "joint":
                    all_features.append(features)
                elif use == "attention":
                    attention.append(self._attend(features))
                else:
                    with torch.no_grad():
                        self._attend(features)
                del features  # the next scale needs the memory
            logits.append(_widen_under_autocast(scale_logits))
            if scale_aux is not None:
                aux.append(_widen_under_autocast(scale_aux))
        logits, attention = logits[::-1], attention[::-1]
        if all_features and self.scale_attn is not None:
            attention = explicit_attention(self.scale_attn, all_features[::-1], logits, ordered)
        for weights, of_scale in zip(attention, logits[1:], strict=bool(attention)):
            _check_attention(weights, of_scale)
        size = (images.shape[-2], images.shape[-1])
        return ScaleOutputs(logits, attention, aux[::-1] or None, ordered, size, self.fusion.combination)

    def _use_of_features(self, scale: float, scales: Sequence[float]) -> str | None:
        """What the features of a scale are for: ``"joint"`` or own ``"attention"``, ``"statistics"`` alone, or
        nothing. ``scales`` descend."""
        if len(scales) == 1 or self.scale_attn is None:
            return None
        if self.fusion.attention == "joint":
            return "joint"
        if scale != scales[0]:
            return "attention"
        return "statistics" if self.scale_attn.training and self.attention_statistics == "all" else None

    def _attend(self, features: Features) -> Tensor:
        assert self.scale_attn is not None, "asked for before"
        takes_joined = getattr(self.scale_attn, "takes_joined", False)
        return self.scale_attn(features if takes_joined else as_tensor(features))


def check_num_classes(num_classes: int) -> None:
    """Raises ValueError unless ``num_classes`` is a positive integer."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ArgumentValueError(f"num_classes: expected a positive integer, got {num_classes!r}")


def check_dropout(dropout: float) -> None:
    """Raises ValueError unless ``dropout`` is a probability below 1."""
    if not 0.0 <= dropout < 1.0:
        raise ArgumentValueError(f"dropout: expected a probability in [0, 1), got {dropout!r}")


def _check_attention(attention: object, logits: Tensor) -> None:
    if not isinstance(attention, Tensor) or attention.dim() != 4 or attention.shape[-2:] != logits.shape[-2:]:
        got = list(attention.shape) if isinstance(attention, Tensor) else type(attention).__name__
        raise ArgumentValueError(
            f"attention_head: expected [B, 1 or C, h, w] at the size of the logits {list(logits.shape)}, got {got}"
        )
    if attention.shape[1] not in (1, logits.shape[1]):
        raise ArgumentValueError(
            f"attention_channels: expected 1 or the {logits.shape[1]} classes of the network, got {attention.shape[1]}"
        )


def _widen_under_autocast(x: Tensor) -> Tensor:
    return x.float() if torch.is_autocast_enabled(x.device.type) else x
