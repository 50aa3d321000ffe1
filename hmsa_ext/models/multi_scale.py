"""Running any network at several scales (Tao, Sapra, Catanzaro 2020)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.models.fusions import Fusion
from hmsa_ext.models.joined_maps import Features
from hmsa_ext.models.one_scale import check_divisor, run_network
from hmsa_ext.models.scale_attention import PUBLISHED_BOTTLENECK
from hmsa_ext.models.segmentation_network import SegmentationNetwork


class MultiScale(SegmentationNetwork):
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

    >>> import torch
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
        attention_statistics: see :meth:`hmsa_ext.models.SegmentationNetwork.forward`.
        divisor: a number that the network needs the height and width of its images to be multiples of.
        fusion, train_scales: see :class:`hmsa_ext.models.SegmentationNetwork`.

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
        fusion: str | Fusion | Callable[..., Tensor] = "hierarchical",
        train_scales: Sequence[float] | None = None,
    ) -> None:
        super().__init__(fusion=fusion, train_scales=train_scales, attention_statistics=attention_statistics)
        check_divisor(divisor)
        self.network = network
        self.feature_channels = feature_channels
        self.divisor = divisor
        self.add_attention(feature_channels, attention_channels, head=attention_head, bottleneck=bottleneck)
        self.initialise([], [])

    def forward_one_scale(self, images: Tensor) -> tuple[Tensor, Tensor | None, Features]:
        """The network alone: images [B, 3, H, W] -> (logits, aux or None, features) at the stride of the network."""
        logits, aux, features = run_network(self.network, images, self.divisor)
        if features.shape[1] != self.feature_channels:
            raise ArgumentValueError(
                f"network: it returned features of {features.shape[1]} channels {list(features.shape)}, "
                f"the attention head was built for feature_channels={self.feature_channels}"
            )
        return logits, aux, features
