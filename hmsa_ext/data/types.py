"""The types that data sets, augmentation and loaders exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from hmsa_ext.errors import ArgumentValueError, HmsaError

IGNORE_LABEL = 255
LARGEST_ID = 65535  # label files have 8 or 16 bits


class DataError(HmsaError, ValueError):
    """Data that training cannot use. The text names the file, the value found and the value expected."""


@dataclass(frozen=True, eq=False)
class ClassTable:
    """Names and display colours of the classes, and the values that files store for them.

    names: one per class, in the order of the label values.
    colours: uint8 [C, 3], red, green, blue; kept as a read-only copy.
    ignore_label: the value of pixels that belong to no class, as data sets return it; always 255.
    ids: for each class the value, 0 to 65535, that label files of the data set store for it; the smallest one where
        several values mean the class. None: the files store colours, or it is not known. Tables that differ in nothing
        else are equal: the classes are the same, however files store them.
    """

    names: tuple[str, ...]
    colours: np.ndarray
    ignore_label: int = IGNORE_LABEL
    ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if not 0 < len(self.names) <= IGNORE_LABEL:
            raise ArgumentValueError(f"names: expected 1 to {IGNORE_LABEL} classes, got {len(self.names)}")
        if len(set(self.names)) != len(self.names):
            raise ArgumentValueError(f"names: expected each class once, got {list(self.names)}")
        colours = np.array(self.colours)
        if colours.shape != (len(self.names), 3) or colours.min() < 0 or colours.max() > 255:
            raise ArgumentValueError(
                f"colours: expected [{len(self.names)}, 3] values of 0..255, got shape {colours.shape}"
            )
        colours = colours.astype(np.uint8)
        colours.setflags(write=False)
        object.__setattr__(self, "colours", colours)
        if self.ignore_label != IGNORE_LABEL:
            raise ArgumentValueError(
                f"ignore_label: data sets return {IGNORE_LABEL} for ignored pixels, got {self.ignore_label}"
            )
        if self.ids is not None:
            object.__setattr__(self, "ids", tuple(int(value) for value in self.ids))
            fits = all(0 <= value <= LARGEST_ID for value in self.ids)
            if not fits or not len(set(self.ids)) == len(self.ids) == len(self.names):
                raise ArgumentValueError(
                    f"ids: expected a value of 0..{LARGEST_ID} of its own for each of {len(self.names)} classes, got "
                    f"{list(self.ids)}"
                )

    @property
    def num_classes(self) -> int:
        """How many classes there are, without the ignored value."""
        return len(self.names)

    def to_dict(self) -> dict[str, object]:
        """Names, colours and ids as plain lists, for JSON, YAML and checkpoints; :meth:`from_dict` reads them."""
        ids = None if self.ids is None else list(self.ids)
        return {"names": list(self.names), "colours": self.colours.tolist(), "ids": ids}

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> ClassTable:
        """The table that :meth:`to_dict` wrote. Raises ValueError where names or colours are missing or do not fit.

        Tables of earlier versions have no ids.
        """
        missing = {"names", "colours"} - content.keys()
        if missing:
            raise ArgumentValueError(f"classes: expected names and colours, got no {' and no '.join(sorted(missing))}")
        names, colours = content["names"], content["colours"]
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ArgumentValueError(f"names: expected a list of texts, got {names!r}")
        ids = content.get("ids")
        if ids is not None and (not isinstance(ids, list | tuple) or not all(isinstance(value, int) for value in ids)):
            raise ArgumentValueError(f"ids: expected a list of whole numbers, got {ids!r}")
        return cls(tuple(names), np.array(colours), ids=None if ids is None else tuple(ids))

    def numbers(self, what: str, names: Sequence[str]) -> list[int]:
        """Class numbers of the names; ``what`` names the option that they came with. Raises DataError."""
        unknown = [name for name in names if name not in self.names]
        if unknown:
            found = ", ".join(map(repr, unknown))
            raise DataError(f"{what}: no class {found}; expected some of {', '.join(self.names)}")
        return [self.names.index(name) for name in names]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ClassTable):
            return NotImplemented
        return self.names == other.names and np.array_equal(self.colours, other.colours)

    def __hash__(self) -> int:
        return hash(self.names)


@dataclass
class Sample:
    """One picture with its label map, both at the same size.

    image: uint8 [H, W, 3], red, green, blue.
    label: uint8 [H, W], class numbers; 255 = ignored.
    name: a file name without its ending.
    """

    image: np.ndarray
    label: np.ndarray
    name: str


@runtime_checkable
class Dataset(Protocol):
    """A sequence of samples with one table of classes.

    ``label(index)`` is the label map of an item alone, uint8 [H, W]: the image is not decoded for it.

    A data set may also have, and those on disk do:

    - ``files(index) -> tuple[Path, ...]``: every file that decides an item, the image first.
    - ``identity: str``: everything besides the content of these files that decides the labels (mapping of values,
      thresholds, number of classes), as a text that is the same in every run.
    - ``inspect(index) -> (label map or None, list[str])``: the label map, None where it cannot be used, and the
      problems of the item in words, found with less work than loading it takes. :func:`hmsa_ext.data.check` and
      :func:`hmsa_ext.data.build_index` use it where it exists.
    """

    classes: ClassTable

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def label(self, index: int) -> np.ndarray: ...


@dataclass
class Batch:
    """Crops on the device, made by :func:`hmsa_ext.data.cut` from the batches of a loader.

    images: float32 [B, 3, h, w], normalised (see :mod:`hmsa_ext.data.normalise`).
    labels: uint8 [B, h, w]; 255 = ignored.
    names: one per image.
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Batch:
        """The batch on another device. From pinned memory the copy runs beside the host."""
        images = self.images.to(device, non_blocking=non_blocking)
        return Batch(images, self.labels.to(device, non_blocking=non_blocking), self.names)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; called by ``torch.utils.data.DataLoader``."""
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.names)
