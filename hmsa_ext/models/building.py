"""Building a network from its name, a factory or settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from hmsa_ext import parts
from hmsa_ext.models.fusions import Fusion, find_fusion, require_used, training_scales
from hmsa_ext.models.multi_scale import MultiScale
from hmsa_ext.models.networks import NETWORKS
from hmsa_ext.models.scale_attention import attention_width
from hmsa_ext.models.segmentation_network import SegmentationNetwork
from hmsa_ext.models.settings import ModelSettings
from hmsa_ext.models.trunks import Trunk
from hmsa_ext.settings import SettingError


def build(
    model: str | Callable[..., nn.Module] | ModelSettings,
    num_classes: int,
    *,
    trunk: Trunk | None = None,
    attention_channels: Literal["one", "classes"] | int = "one",
    attention_head: str | Callable[..., nn.Module] = "scale",
    dropout: float | None = None,
    attention_statistics: str = "all",
    fusion: str | Fusion | Callable[..., Tensor] = "hierarchical",
    train_scales: Sequence[float] | None = None,
) -> nn.Module:
    """Builds a network: ``network(images, scales=(0.5, 1.0))`` -> :class:`ScaleOutputs`.

    Images are normalised RGB, ``(x / 255 - mean) / std`` with the constants of :mod:`hmsa_ext.normalisation`; a network
    from another factory may expect other values.

    A factory is called with ``num_classes``, and by keyword with those of the arguments below that its signature has
    and that are given; ``attention_channels`` comes as a number. It returns either a module whose
    ``forward(images, scales=...)`` gives :class:`ScaleOutputs`, or a network that returns ``(logits, features)`` or
    ``(logits, aux, features)`` and has the attribute ``feature_channels``. The latter is wrapped by
    :class:`MultiScale`, with its attribute ``divisor`` where it has one.

    Args:
        model: a name of ``NAMES``, ``package.module:factory``, a factory, or :class:`ModelSettings`, which then say
            all but ``attention_statistics`` (their weights are not loaded: see :func:`load_weights`).
        num_classes: classes, the ignored label not counted.
        trunk: see :func:`build_trunk`; None: the network's own.
        attention_channels: ``"one"`` weight for all classes (published), or one for each of the ``"classes"``.
        attention_head: see :func:`build_attention_head`.
        dropout: of the features before the logits, in training; None: the network's own.
        attention_statistics: ``"all"`` or ``"used"``: see :meth:`hmsa_ext.models.SegmentationNetwork.forward`.
        fusion: how the scales are fused: see :func:`hmsa_ext.models.fusions.find_fusion`.
        train_scales: scales of the training, which explicit attention is built for; None: those of the fusion.

    Returns:
        The network, in training mode.

    Raises:
        hmsa_ext.settings.SettingError: no such network or factory, or an argument that the network does not take. It is
            a ValueError.
        ValueError: an argument of a value that does not fit.

    >>> build("hrnet_small_ocr", 5, attention_channels="classes").scale_attn.conv2.out_channels
    5
    """
    given: dict[str, tuple[Any, Any]] = {
        "trunk": (trunk, None),
        "attention_channels": (attention_channels, "one"),
        "attention_head": (attention_head, "scale"),
        "dropout": (dropout, None),
        "attention_statistics": (attention_statistics, "all"),
        "fusion": (fusion, "hierarchical"),
    }
    changed = {name: value for name, (value, default) in given.items() if value != default}
    if train_scales is not None:
        changed["train_scales"] = train_scales
    if isinstance(model, ModelSettings):
        for name, value in changed.items():
            if name != "attention_statistics":
                raise SettingError(name, value, "no such argument beside ModelSettings, which have it")
        return build(
            model.name,
            num_classes,
            trunk=model.trunk,
            attention_channels=model.attention_channels,
            attention_head=model.attention_head,
            dropout=model.dropout,
            attention_statistics=attention_statistics,
            fusion=model.fusion,
            train_scales=model.train_scales,
        )

    require_used(find_fusion(fusion), attention_channels, attention_head)
    factory = parts.find(model, NETWORKS, "model")
    if not callable(factory):
        raise SettingError("model", model, "a factory (num_classes) -> module")
    width = attention_width(attention_channels, num_classes)
    if width == 1:
        changed.pop("attention_channels", None)
    names, takes_any = parts.parameters(factory)
    taken = {name: value for name, value in changed.items() if takes_any or name in names}
    network = factory(num_classes, **(taken | ({"attention_channels": width} if "attention_channels" in taken else {})))
    called = parts.spelled(model)
    if not isinstance(network, nn.Module):
        raise SettingError("model", called, f"a factory that returns a module, not {type(network).__name__}")

    feature_channels = getattr(network, "feature_channels", None)
    names, takes_any = parts.parameters(network.forward)
    is_complete = "scales" in names or (takes_any and feature_channels is None)
    of_wrapper = {"attention_channels", "attention_head", "attention_statistics", "fusion", "train_scales"}
    # Of the fusions of ours only explicit attention is built for scales: a network without it need not know them.
    if "train_scales" in changed and not _is_built_for(find_fusion(fusion), changed["train_scales"]):
        changed.pop("train_scales")
    # A network of our base class that somebody else builds can still do without its attention.
    if "fusion" not in taken and isinstance(network, SegmentationNetwork) and find_fusion(fusion).attention is None:
        network.leave_attention(fusion)
        changed.pop("fusion", None)
    for name, value in changed.items():
        if name not in taken and (is_complete or name not in of_wrapper):
            raise SettingError(name, value, f"the default, since the network {called} does not take {name}")
    if is_complete:
        return network
    if not isinstance(feature_channels, int):
        raise SettingError(
            "model",
            called,
            "a module whose forward takes images and scales, or one that states feature_channels and is wrapped by "
            f"MultiScale; {type(network).__name__} is neither",
        )
    return MultiScale(
        network,
        feature_channels,
        attention_channels=width,
        attention_head=attention_head,
        attention_statistics=attention_statistics,
        divisor=getattr(network, "divisor", 1),
        fusion=fusion,
        train_scales=train_scales,
    )


def _is_built_for(fusion: Fusion, train_scales: Sequence[float]) -> bool:
    """Whether a network of the fusion differs for these scales from one for the scales of the fusion."""
    return fusion.attention == "joint" and training_scales(fusion, train_scales) != training_scales(fusion, None)
