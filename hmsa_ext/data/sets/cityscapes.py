"""Cityscapes: 34 stored ids of which 19 are classes; fine, coarse and automatic labels; the folds cv0 to cv3.

Both layouts are taken, per folder (NAME = CITY_SEQUENCE_FRAME):

    ROOT/leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png
    ROOT/leftImg8bit_trainvaltest/leftImg8bit/... and ROOT/leftImg8bit_trainextra/leftImg8bit/...
    ROOT/gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png      or ROOT/gtFine_trainvaltest/gtFine/...
    ROOT/gtCoarse/SPLIT/CITY/NAME_gtCoarse_labelIds.png  or ROOT/gtCoarse/gtCoarse/...
    ROOT/autolabelled/SPLIT/CITY/NAME_leftImg8bit.png, ..._leftImg8bit_prob.png

Where a split has no ``_labelIds.png``, ``_labelTrainIds.png`` are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np

from hmsa_ext.data.automatic.corrections import FOLDER as CORRECTED
from hmsa_ext.data.automatic.corrections import corrected_file
from hmsa_ext.data.automatic.corrections import label_table as corrections_table
from hmsa_ext.data.automatic.manifest import Manifest, manifest_files, read_manifest
from hmsa_ext.data.automatic.reader import AutoLabels, Coarse, Corrected, count_pairs
from hmsa_ext.data.automatic.trust import MEDIAN, Trust
from hmsa_ext.data.label_table import LabelTable
from hmsa_ext.data.labelled_files import LabelledFiles, Listing
from hmsa_ext.data.pairs import first_folder, list_files, pair, shorten_names
from hmsa_ext.data.source import Root, check, root_of
from hmsa_ext.data.types import IGNORE_LABEL, ClassTable, DataError
from hmsa_ext.settings import Names, Rule, SettingError, Spelling, require


class Label(NamedTuple):
    """A row of the official table. ``train_id`` is the class number, 255 for ignored."""

    name: str
    id: int
    train_id: int
    category: str
    has_instances: bool
    colour: tuple[int, int, int]


LABELS = (
    Label("unlabeled", 0, 255, "void", False, (0, 0, 0)),
    Label("ego vehicle", 1, 255, "void", False, (0, 0, 0)),
    Label("rectification border", 2, 255, "void", False, (0, 0, 0)),
    Label("out of roi", 3, 255, "void", False, (0, 0, 0)),
    Label("static", 4, 255, "void", False, (0, 0, 0)),
    Label("dynamic", 5, 255, "void", False, (111, 74, 0)),
    Label("ground", 6, 255, "void", False, (81, 0, 81)),
    Label("road", 7, 0, "flat", False, (128, 64, 128)),
    Label("sidewalk", 8, 1, "flat", False, (244, 35, 232)),
    Label("parking", 9, 255, "flat", False, (250, 170, 160)),
    Label("rail track", 10, 255, "flat", False, (230, 150, 140)),
    Label("building", 11, 2, "construction", False, (70, 70, 70)),
    Label("wall", 12, 3, "construction", False, (102, 102, 156)),
    Label("fence", 13, 4, "construction", False, (190, 153, 153)),
    Label("guard rail", 14, 255, "construction", False, (180, 165, 180)),
    Label("bridge", 15, 255, "construction", False, (150, 100, 100)),
    Label("tunnel", 16, 255, "construction", False, (150, 120, 90)),
    Label("pole", 17, 5, "object", False, (153, 153, 153)),
    Label("polegroup", 18, 255, "object", False, (153, 153, 153)),
    Label("traffic light", 19, 6, "object", False, (250, 170, 30)),
    Label("traffic sign", 20, 7, "object", False, (220, 220, 0)),
    Label("vegetation", 21, 8, "nature", False, (107, 142, 35)),
    Label("terrain", 22, 9, "nature", False, (152, 251, 152)),
    Label("sky", 23, 10, "sky", False, (70, 130, 180)),
    Label("person", 24, 11, "human", True, (220, 20, 60)),
    Label("rider", 25, 12, "human", True, (255, 0, 0)),
    Label("car", 26, 13, "vehicle", True, (0, 0, 142)),
    Label("truck", 27, 14, "vehicle", True, (0, 0, 70)),
    Label("bus", 28, 15, "vehicle", True, (0, 60, 100)),
    Label("caravan", 29, 255, "vehicle", True, (0, 0, 90)),
    Label("trailer", 30, 255, "vehicle", True, (0, 0, 110)),
    Label("train", 31, 16, "vehicle", True, (0, 80, 100)),
    Label("motorcycle", 32, 17, "vehicle", True, (0, 0, 230)),
    Label("bicycle", 33, 18, "vehicle", True, (119, 11, 32)),
    Label("license plate", -1, 255, "vehicle", False, (0, 0, 142)),
)

_EVALUATED = sorted((label for label in LABELS if label.train_id != IGNORE_LABEL), key=lambda label: label.train_id)
CLASSES = ClassTable(
    tuple(label.name for label in _EVALUATED),
    np.array([label.colour for label in _EVALUATED], np.uint8),
    ids=tuple(label.id for label in _EVALUATED),
)
CLASSES_AS_TRAIN_IDS = replace(CLASSES, ids=tuple(label.train_id for label in _EVALUATED))

# uint8 [256], for submissions: the id of each train id; the ignored ones are "unlabeled".
IDS = np.zeros(256, np.uint8)
IDS[: len(_EVALUATED)] = [label.id for label in _EVALUATED]

FOLD = Rule(lambda fold: fold in range(4), "0, 1, 2 or 3")
REGION_OF_INTEREST = (slice(15, 840), slice(14, 2030))  # rows and columns that automatic labels are good for

_IMAGES = "_leftImg8bit.png"
_IMAGE_FOLDERS = ("leftImg8bit", "leftImg8bit_trainvaltest/leftImg8bit", "leftImg8bit_trainextra/leftImg8bit")
# Folders and endings of the label files of each kind.
_KINDS = {
    "fine": (("gtFine", "gtFine_trainvaltest/gtFine"), "_gtFine_labelIds.png"),
    "coarse": (("gtCoarse", "gtCoarse/gtCoarse"), "_gtCoarse_labelIds.png"),
    "autolabelled": (("autolabelled", "refinement_final", "refinement_final_v0"), _IMAGES),
}


def id_table() -> LabelTable:
    """Ids to classes. The id -1 is 255 in a byte."""
    return LabelTable(
        {label.id % 256: label.train_id for label in LABELS}, expected="Cityscapes ids 0..33, or 255 for -1"
    )


def train_id_table() -> LabelTable:
    """Train ids to classes: themselves, and 255."""
    classes = {value: value for value in (*range(CLASSES.num_classes), IGNORE_LABEL)}
    return LabelTable(classes, expected=f"train ids 0..{CLASSES.num_classes - 1}, or {IGNORE_LABEL} for ignored")


def _read_classes(value: object) -> tuple[str, ...]:
    """Names of classes, or their numbers, as text, a list or one number."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        raise ValueError
    return tuple(str(part).strip() for part in parts if str(part).strip())


@dataclass(frozen=True)
class Cityscapes:
    """Cityscapes: 19 classes; fine, coarse and automatic labels.

    With ``extra``, :meth:`open` of "train_extra" gives the extra images with these labels, and training takes crops of
    the sampling's ``extra_classes`` from them.
    """

    splits: ClassVar = ("train", "val", "train_extra")
    needs: ClassVar = "the folder that holds leftImg8bit and gtFine (or the folders of the archives)"

    root: Root = None
    """Folder of the data set."""
    fold: Annotated[int, FOLD] = 0
    """Division of the cities into train and val: 0 is the official one, 1 and 2 move the window of val (published as
    cv1, cv2), 3 has all cities in both."""
    labels: Literal["fine", "coarse", "autolabelled"] = "fine"
    """Labels of train and val."""
    extra: Literal["none", "coarse", "autolabelled"] = "none"
    """Further training images (train_extra) with these labels, for the classes of --extra-classes."""
    coarse_classes: Annotated[Names, Spelling("NAME,...", _read_classes, ",".join)] = ()
    """Where an automatic label map has one of these classes, set the pixels that have it in the coarse label map as
    well; names or train ids (published: truck,bus,train)."""
    region_of_interest: bool = False
    """Ignore the margins of automatic labels: all but rows 15 to 839 and columns 14 to 2029."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "coarse_classes", _read_classes(self.coarse_classes))
        check(self)
        own = {"coarse_classes": (), "region_of_interest": False}
        for name, default in own.items():
            value = getattr(self, name)
            expected = "no value without autolabelled labels or extra"
            require(name, value, self.reads_automatic or value == default, expected)
        self._coarse_numbers()

    @property
    def reads_automatic(self) -> bool:
        """Whether some of the labels are automatic: ``find`` and ``open`` then take a :class:`Trust`."""
        return "autolabelled" in (self.labels, self.extra)

    @property
    def extra_split(self) -> str | None:
        """The split that training takes further images from."""
        return None if self.extra == "none" else "train_extra"

    def find(self, split: str, *, trust: Trust | None = None) -> Listing:
        """One split and everything that is wrong with it. trust: which pixels of automatic labels count.

        The cities of val, then those of train, each in the order of their names, make one row of n; in folds 1 and 2
        val is the window of as many cities as val has that begins at fold * n // 3. (The published code takes the
        cities of val in the order of the file system.) "train_extra" is the same in every fold.
        """
        root, fold = root_of(self, split), self.fold
        labels = self.extra if split == "train_extra" else self.labels
        if labels == "none":
            raise DataError("extra: train_extra has no fine labels; expected 'coarse' or 'autolabelled', got 'none'")
        folders, suffix = _KINDS[labels]
        listing = Listing(
            root,
            f"Expected images {root}/leftImg8bit/{split}/CITY/NAME{_IMAGES} and label maps "
            f"{root}/{folders[0]}/{split}/CITY/NAME{suffix}; the folders of the archives are taken too, as "
            f"{root}/{folders[-1]}/{split}",
            classes=CLASSES,
            labels=id_table(),
        )
        parts = ("val", "train") if fold and split != "train_extra" else (split,)
        images = [_list(root, _IMAGE_FOLDERS, (part,), _IMAGES, listing.problems) for part in parts]
        files = {"label": _list(root, folders, parts, suffix, listing.problems)}
        if labels == "autolabelled":
            trust = trust or Trust()
            if trust.needs_probabilities:
                files["probability_map"] = _list(root, folders, parts, "_leftImg8bit_prob.png", [])
            uses_coarse = bool(self.coarse_classes) or trust.coarse_use != "none"
            if uses_coarse:
                files["coarse_label"] = _list(root, _KINDS["coarse"][0], parts, _KINDS["coarse"][1], [])
            # People's corrections of automatic labels lie beside the cities, and are called as the labels are.
            files["label"] = {name: path for name, path in files["label"].items() if _city(name) != CORRECTED}
            made = _manifest(files["label"], [root / folder for folder in folders], parts)
            if made is not None:
                files["corrections"] = _corrections(files["label"], made)
            listing.labels = AutoLabels(
                id_table(),
                CLASSES,
                trust,
                histogram=_histogram(files, made) if trust.class_threshold == MEDIAN else None,
                coarse=Coarse(id_table(), tuple(self._coarse_numbers())) if uses_coarse else None,
                corrected=None if made is None else Corrected(corrections_table(made), made.untouched),
                region=REGION_OF_INTEREST if self.region_of_interest else None,
            )
        elif not files["label"]:
            files["label"] = _list(root, folders, parts, suffix.replace("labelIds", "labelTrainIds"), [])
            if files["label"]:
                listing.classes, listing.labels = CLASSES_AS_TRAIN_IDS, train_id_table()
        dropped = _dropped_cities(images, split, fold)
        kept = {what: _without(found, dropped) for what, found in files.items()}
        where = first_folder(*(root / folder / split for folder in _IMAGE_FOLDERS))
        pair(listing, where, _without({**images[0], **images[-1]}, dropped), **kept)
        shorten_names(listing)
        return listing

    def open(self, split: str, *, length: int | None = None, trust: Trust | None = None) -> LabelledFiles:
        """One split, or its first ``length`` images. Raises DataError with everything that is wrong."""
        return self.find(split, trust=trust).dataset(length=length)

    def _coarse_numbers(self) -> list[int]:
        numbers = []
        for name in self.coarse_classes:
            if name.isdecimal() and int(name) in range(CLASSES.num_classes):
                numbers.append(int(name))
            elif name in CLASSES.names:
                numbers.append(CLASSES.names.index(name))
            else:
                expected = f"classes or train ids 0..{CLASSES.num_classes - 1}; the classes are "
                raise SettingError("coarse_classes", name, expected + ", ".join(CLASSES.names))
        return numbers


SOURCE = Cityscapes


def _list(
    root: Path, folders: Sequence[str], parts: Sequence[str], suffix: str, problems: list[str]
) -> dict[str, Path]:
    """The files of the published splits ``parts``, by CITY/NAME; each split in whichever of the folders holds it."""
    found: dict[str, Path] = {}
    for part in parts:
        folder = first_folder(*(root / folder / part for folder in folders))
        found |= list_files(folder, (suffix,), problems, recursive=True)
    return found


def _manifest(labels: dict[str, Path], folders: Sequence[Path], parts: Sequence[str]) -> Manifest | None:
    """The manifest of the automatic labels, beside the cities or above; None for labels of others, which have none."""
    places = [place for folder in folders for place in (*(folder / part for part in parts), folder)]
    where = next((place for place in places if manifest_files(place)), None)
    if where is None:
        corrections = next((place / CORRECTED for place in places if (place / CORRECTED).is_dir()), None)
        if corrections is not None:
            raise DataError(f"{corrections}: corrections without a manifest beside them, which says what they mean")
    if where is None or not labels:
        return None
    outside = next((path for path in labels.values() if where not in path.parents), None)
    if outside is not None:
        raise DataError(f"{outside}: this label is outside {where}, where the manifest is; expected one for all")
    made = read_manifest(where)
    if made.classes != CLASSES or made.classes.ids != CLASSES.ids:
        raise DataError(f"{where}: the manifest is of other classes or numbers than those of Cityscapes")
    return made


def _corrections(labels: dict[str, Path], made: Manifest) -> dict[str, Path]:
    places = {name: path.relative_to(made.folder).with_suffix("").as_posix() for name, path in labels.items()}
    return {name: corrected_file(made.folder, place) for name, place in places.items()}


def _histogram(files: dict[str, dict[str, Path]], made: Manifest | None) -> np.ndarray:
    """Pixels by class and stored probability: of the manifest, or counted, which takes as long as reading all files."""
    if made is not None:
        return made.histogram
    names = files["label"].keys() & files["probability_map"].keys()
    pairs = [(files["label"][name], files["probability_map"][name]) for name in sorted(names)]
    counts = count_pairs(pairs, id_table(), CLASSES.num_classes)
    return sum(counts, np.zeros((CLASSES.num_classes, 256), np.int64))


def _city(name: str) -> str:
    return name.partition("/")[0]


def _dropped_cities(images: list[dict[str, Path]], split: str, fold: int) -> set[str]:
    """The cities that a fold has listed and does not take; images of val and of train, in folds 1 and 2."""
    if fold in (0, 3) or split == "train_extra":
        return set()
    val, train = (sorted({_city(name) for name in files}) for files in images)
    row, first = val + train, fold * (len(val) + len(train)) // 3
    window = set(row[first : first + len(val)])
    return set(row) - window if split == "val" else window


def _without(files: dict[str, Path], cities: set[str]) -> dict[str, Path]:
    return {name: path for name, path in files.items() if _city(name) not in cities}
