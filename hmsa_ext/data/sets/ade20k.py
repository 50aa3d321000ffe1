"""ADE20K in the form of the scene parsing challenge: 150 classes, stored as 1..150; 0 is everything else, ignored.

    ROOT/images/training/NAME.jpg      ROOT/annotations/training/NAME.png
    ROOT/images/validation/NAME.jpg    ROOT/annotations/validation/NAME.png

Submissions want the stored values: class number + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hmsa_ext.data.label_table import LabelTable
from hmsa_ext.data.labelled_files import LabelledFiles, Listing
from hmsa_ext.data.pairs import list_files, pair
from hmsa_ext.data.palette import distinct_colours
from hmsa_ext.data.source import Root, check, root_of
from hmsa_ext.data.types import IGNORE_LABEL, ClassTable

_NAMES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, table,
mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair, seat,
fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter,
sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop,
stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower,
chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land, bannister,
escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name,
microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray,
ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
"""
# The colours in circulation give several classes the same one; these do not.
_CLASS_NAMES = tuple(" ".join(_NAMES.split()).split(", "))
CLASSES = ClassTable(_CLASS_NAMES, distinct_colours(len(_CLASS_NAMES)), ids=tuple(range(1, len(_CLASS_NAMES) + 1)))
_FOLDERS = {"train": "training", "val": "validation"}


@dataclass(frozen=True)
class Ade20k:
    """ADE20K, scene parsing: 150 classes."""

    splits: ClassVar = ("train", "val")
    needs: ClassVar = "the folder that holds images and annotations (ADEChallengeData2016)"

    root: Root = None
    """Folder of the data set."""

    def __post_init__(self) -> None:
        check(self)

    def find(self, split: str) -> Listing:
        """One split and everything that is wrong with it."""
        root = root_of(self, split)
        folder = _FOLDERS[split]
        listing = Listing(
            root,
            f"Expected images {root}/images/{folder}/NAME.jpg and label maps {root}/annotations/{folder}/NAME.png",
            classes=CLASSES,
            labels=LabelTable(
                {0: IGNORE_LABEL, **{value + 1: value for value in range(CLASSES.num_classes)}},
                expected=f"1..{CLASSES.num_classes}, or 0 for ignored",
            ),
        )
        images = list_files(root / "images" / folder, (".jpg",), listing.problems)
        labels = list_files(root / "annotations" / folder, (".png",), listing.problems)
        pair(listing, root / "images" / folder, images, label=labels)
        return listing

    def open(self, split: str, *, length: int | None = None) -> LabelledFiles:
        """One split, or its first ``length`` images. Raises DataError with everything that is wrong."""
        return self.find(split).dataset(length=length)


SOURCE = Ade20k
