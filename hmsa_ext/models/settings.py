"""Settings of the network: which one, from which parts, and how it begins."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from hmsa_ext.models.networks import NAMES
from hmsa_ext.models.scale_attention import ATTENTION_HEADS
from hmsa_ext.models.trunks import TRUNK_PREFIXES, TRUNKS
from hmsa_ext.parts import Part, one_of
from hmsa_ext.settings import BELOW_ONE, FREE, Flag, Metavar, Rule, Scales, validate

WITH_ONE = Rule(lambda scales: 1.0 in scales, "up to 8 different positive numbers, 1.0 among them")


@dataclass(frozen=True)
class ModelSettings:
    """The network, its parts and its initial weights."""

    name: Annotated[Part, Flag("model"), one_of(NAMES)] = field(
        default="hrnet_small_ocr",
        metadata={
            "help": f"Network: {', '.join(NAMES)}, or package.module:factory, called with the number of classes."
        },
    )
    trunk: Annotated[Part | None, one_of(TRUNKS, TRUNK_PREFIXES)] = field(
        default=None,
        metadata={
            "help": f"Trunk instead of the network's own: {', '.join(TRUNKS)}, timm:NAME (any feature extractor of "
            "timm), or package.module:factory; the factory returns a module with out_channels and stride."
        },
    )
    attention_channels: Literal["one", "classes"] = "one"
    """Scale attention: "one" weight per pixel, shared by all classes (published), or one for each of the "classes"."""
    attention_head: Annotated[Part, one_of(ATTENTION_HEADS)] = field(
        default="scale",
        metadata={
            "help": f"Head that computes the scale attention: {', '.join(ATTENTION_HEADS)} (published), or "
            "package.module:factory, called with the channels of features and attention."
        },
    )
    dropout: Annotated[float | None, BELOW_ONE] = None
    """Dropout of the features before the logits, in training; default: the network's own (0.05, published)."""
    weights: Annotated[str | None, Metavar("FILE"), FREE] = None
    """Initial weights: a checkpoint (a published one, a trunk's), a safetensors file or a run folder; what does not fit
    is listed."""
    scales: Annotated[Scales, WITH_ONE] = (0.5, 1.0)
    """Scales of the images in training, separated by commas."""
    channels_last: bool = True
    """Keep images and weights in channels-last order, which convolutions are faster in."""

    def __post_init__(self) -> None:
        validate(self)
