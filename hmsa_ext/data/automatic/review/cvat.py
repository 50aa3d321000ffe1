"""CVAT's "Segmentation mask 1.1", which is Pascal VOC's layout with a table of colours.

    FOLDER/labelmap.txt                          name:r,g,b:: of each class; "background" first
    FOLDER/JPEGImages/NAME.jpg
    FOLDER/SegmentationClass/NAME.png            the colours of the classes; black for no class
    FOLDER/SegmentationObject/NAME.png           one object for each class
    FOLDER/ImageSets/Segmentation/default.txt    the names

What is known of CVAT, from its documentation and source: it reads a zip of these folders (images may be in it). Without
SegmentationObject it takes the background for one more mask; with it, pixels of object 0 are not annotated. The option
"Convert masks to polygons" of its import has to be off, or the borders move. The classes of a project need the names in
labelmap.txt; their colours there may be others, since an export brings its own labelmap.txt. Masks may come back as RGB
or palette pictures; in greyscale ones the value of a pixel is a line of labelmap.txt, from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from hmsa_ext.data.automatic.review.exchange import Review
from hmsa_ext.data.files import check_whole, read_bytes, read_colours, read_label
from hmsa_ext.data.label_table import describe_values
from hmsa_ext.data.opencv import cv2
from hmsa_ext.data.palette import distinct_colours
from hmsa_ext.data.types import IGNORE_LABEL, ClassTable, DataError
from hmsa_ext.files import replacing, write_text

IMAGES, MASKS, OBJECTS = "JPEGImages", "SegmentationClass", "SegmentationObject"
LISTS = Path("ImageSets") / "Segmentation"
LABEL_MAP = "labelmap.txt"
BLACK = (0, 0, 0)
_BACKGROUNDS = ("background", "unlabelled", "no class")
"""Names for pixels of no class; the first one that no class has."""
_UNKNOWN = 254


def mask_colours(classes: ClassTable) -> np.ndarray:
    """A colour for each class, uint8 [K, 3], all different and none black; its own one where that is so.

    >>> import numpy as np
    >>> mask_colours(ClassTable(("a", "b", "c"), np.array([[9, 9, 9], [0, 0, 0], [9, 9, 9]])))[0].tolist()
    [9, 9, 9]
    """
    chosen: list[tuple[int, ...] | None] = []
    for colour in map(tuple, classes.colours.tolist()):
        chosen.append(None if colour == BLACK or colour in chosen else colour)
    spare = (colour for colour in map(tuple, distinct_colours(256).tolist()) if colour not in chosen)
    return np.array([next(spare) if colour is None else colour for colour in chosen], np.uint8)


class Writer:
    """Writes the masks of images; :meth:`finish` writes the lists.

    Raises DataError for names of classes that labelmap.txt cannot hold.
    """

    def __init__(self, folder: Path, classes: ClassTable) -> None:
        for name in classes.names:
            if ":" in name or "\n" in name or name.startswith("#") or name != name.strip() or not name:
                raise DataError(
                    f"format: cvat separates names by colons and takes # for a comment; a class is called {name!r}, "
                    "expected another name, or --format coco"
                )
        self.folder, self.classes, self.images = folder, classes, folder / IMAGES
        colours = np.zeros((256, 3), np.uint8)
        colours[: classes.num_classes] = mask_colours(classes)
        self._colours = colours
        objects = np.zeros((256, 3), np.uint8)
        objects[: classes.num_classes] = _voc_colours()[1 : classes.num_classes + 1]
        self._objects = objects
        self._stems: list[str] = []

    def add(self, file: str, label: np.ndarray) -> None:
        """The label map of an image, class numbers and 255 for no class, uint8 [H, W]. Raises OSError."""
        stem = Path(file).stem
        for folder, colours in ((MASKS, self._colours), (OBJECTS, self._objects)):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
            written, data = cv2.imencode(".png", np.ascontiguousarray(colours[label][..., ::-1]))
            assert written
            with replacing(self.folder / folder / f"{stem}.png") as out:
                out.write(data.tobytes())
        self._stems.append(stem)

    def finish(self) -> None:
        """Writes labelmap.txt and the list of the images. Raises OSError."""
        colours = self._colours[: self.classes.num_classes].tolist()
        free = next(name for name in _BACKGROUNDS if name not in self.classes.names)
        rows = [(free, BLACK), *zip(self.classes.names, colours, strict=True)]
        lines = ["# label:color_rgb:parts:actions", *(f"{name}:{r},{g},{b}::" for name, (r, g, b) in rows)]
        write_text(self.folder / LABEL_MAP, "\n".join(lines) + "\n")
        (self.folder / LISTS).mkdir(parents=True, exist_ok=True)
        write_text(self.folder / LISTS / "default.txt", "".join(f"{stem}\n" for stem in self._stems))


def _voc_colours() -> np.ndarray:
    """Pascal VOC's colours of numbers, uint8 [256, 3]: every third bit of a number, the lowest first, from the top."""
    numbers = np.arange(256)
    bits = (numbers[:, None] >> np.arange(9)) & 1
    colours = np.zeros((256, 3), int)
    for bit in range(9):
        colours[:, bit % 3] |= bits[:, bit] << (7 - bit // 3)
    return colours.astype(np.uint8)


class Masks:
    """What came back in a folder.

    places: those of the images that have a mask, and are in a list where there are lists; in the order of the review.

    Raises DataError where there are no masks, for images that were not exported, and for a labelmap.txt that cannot be
    read.
    """

    def __init__(self, folder: Path, review: Review) -> None:
        self._review = review
        names, colours = _read_label_map(folder / LABEL_MAP)
        # By line of labelmap.txt, for greyscale masks.
        self._numbers = np.full(256, _UNKNOWN, np.uint8)
        for line, name in enumerate(names[:256]):
            self._numbers[line] = _number(name, colours[line], review.classes)
        self._colours = np.array([r << 16 | g << 8 | b for r, g, b in colours], np.int64)
        self._names = names
        places = review.by_stem()
        self._files: dict[str, Path] = {}
        for file in sorted((folder / MASKS).rglob("*.png")):
            place = places.get(file.stem)
            if place is None:
                raise DataError(f"{file}: no image of this name was exported; expected one of those in {IMAGES}")
            if place in self._files:
                raise DataError(f"{file}: there are two masks of this image, also {self._files[place]}")
            self._files[place] = file
        if not self._files:
            raise DataError(f"{folder / MASKS}: expected the masks of the images, PNG, got none")
        listed = _listed(folder / LISTS, places)
        self.places = [place for place in review.images if place in self._files and (not listed or place in listed)]

    def read(self, place: str) -> np.ndarray:
        """The label map of a place: class numbers, 255 for no class, uint8 [H, W]. Raises DataError."""
        file, size = self._files[place], self._review.images[place].size
        header = check_whole(file, read_bytes(file))
        if header.size != size:
            got = f"{header.width}x{header.height}"
            raise DataError(f"{file}: {got} pixels, exported were {size[1]}x{size[0]}")
        if header.channels == 1 and not header.palette:
            stored = read_label(file)
            lines = self._numbers
            label = np.full(size, _UNKNOWN, np.uint8)
            label[stored < 256] = lines[stored[stored < 256]]
            self._refuse(file, stored, label, colours=False)
            return label
        stored = read_colours(file)
        values, inverse = np.unique(stored, return_inverse=True)
        numbers = np.full(len(values), _UNKNOWN, np.uint8)
        numbers[values == 0] = IGNORE_LABEL
        for line, colour in enumerate(self._colours.tolist()):
            numbers[values == colour] = _number(self._names[line], _triple(colour), self._review.classes)
        label = numbers[inverse.reshape(size)]
        self._refuse(file, stored, label, colours=True)
        return label

    def _refuse(self, file: Path, stored: np.ndarray, label: np.ndarray, *, colours: bool) -> None:
        wrong = label == _UNKNOWN
        if wrong.any():
            values, counts = np.unique(stored[wrong], return_counts=True)
            what = "colours" if colours else "lines"
            raise DataError(
                f"{file}: values that are no class: {describe_values(values, counts, colours=colours)}. "
                f"Expected {what} of {LABEL_MAP} with the names {', '.join(self._review.classes)}"
            )


def _triple(colour: int) -> tuple[int, int, int]:
    return colour >> 16, colour >> 8 & 255, colour & 255


def _number(name: str, colour: Sequence[int], classes: tuple[str, ...]) -> int:
    """The class number of a line of labelmap.txt: 255 for the background, 254 for what is no class."""
    if name in classes:
        return classes.index(name)
    return IGNORE_LABEL if name in _BACKGROUNDS or tuple(colour) == BLACK else _UNKNOWN


def _read_label_map(file: Path) -> tuple[list[str], list[tuple[int, ...]]]:
    names, colours = [], []
    for line in _lines(file):
        if line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        try:
            colour = tuple(int(value) for value in rest.partition(":")[0].split(","))
        except ValueError:
            colour = ()
        if len(colour) != 3 or not all(0 <= value < 256 for value in colour):
            raise DataError(f"{file}: expected lines name:r,g,b:: with numbers 0..255, got {line!r}")
        if name in names or colour in colours:
            raise DataError(f"{file}: expected each name and each colour once, got {line!r} again")
        names.append(name)
        colours.append(colour)
    return names, colours


def _lines(file: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error


def _listed(folder: Path, places: dict[str, str]) -> set[str]:
    """The places in the lists of a folder. Raises DataError for images that were not exported."""
    found = set()
    for file in sorted(folder.glob("*.txt")):
        for name in _lines(file):
            place = places.get(PurePosixPath(name).name)
            if place is None:
                raise DataError(f"{file}: the image {name} was not exported; expected one of those in {IMAGES}")
            found.add(place)
    return found
