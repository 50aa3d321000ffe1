"""Generated street scenes: no download, the same pictures on every machine. See :mod:`hmsa_ext.data.synthetic`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from hmsa_ext.data.source import check, check_split
from hmsa_ext.data.synthetic import SIZE, SPLITS, Synthetic
from hmsa_ext.settings import NOT_NEGATIVE, Flag, Rule, Size

CLASSES = Synthetic.classes
_LARGE_ENOUGH = Rule(lambda size: len(size) == 2 and min(size) >= 64, "HxW of at least 64x64 pixels")


@dataclass(frozen=True)
class SyntheticScenes:
    """Generated street scenes with 11 classes."""

    splits: ClassVar = tuple(SPLITS)
    recipe: ClassVar = {
        "crop": (112, 224),
        "scale_range": (1.0, 2.5),
        "colour": 0.05,
        "epochs": 4,
        "warmup": 30,
        "eval_every": 2,
    }
    """Settings that fit these scenes, by flat name: two to six minutes on two CPU cores."""

    size: Annotated[Size, _LARGE_ENOUGH] = SIZE
    """Size HxW of the scenes in pixels."""
    seed: Annotated[int, NOT_NEGATIVE, Flag("scene-seed")] = 0
    """Seed of the scenes."""

    def __post_init__(self) -> None:
        check(self)

    def open(self, split: str, *, length: int | None = None) -> Synthetic:
        """One split of ``length`` scenes (600 for train and 60 for val unless given). Raises DataError."""
        check_split(self, split)
        return Synthetic(split, size=self.size, length=length, seed=self.seed)


SOURCE = SyntheticScenes
