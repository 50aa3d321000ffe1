"""What a predictor gives for one photo."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from hmsa_ext.data import ClassTable, colourise
from hmsa_ext.data.photos import as_stored
from hmsa_ext.engine import overlay as drawn
from hmsa_ext.engine.legend import with_legend
from hmsa_ext.engine.pictures import shares_page
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.files import OutputError, replacing
from hmsa_ext.prediction.marks import encode_jpeg, encode_png
from hmsa_ext.prediction.settings import KINDS

Kind = Literal["labels", "colours", "overlay", "confidence", "attention"]
SHOWN_IN_NOTEBOOKS = 1024
"""Pixels along the longer side of the picture that a notebook shows."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """Labels of one photo, at the size of the photo.

    ``save`` writes them, ``overlay`` draws them. In a notebook a prediction shows itself as its overlay.
    """

    labels: np.ndarray
    """Class number of each pixel: uint8 [H, W], int32 for more than 256 classes."""
    confidence: np.ndarray
    """Softmax probability of that class: float32 [H, W]."""
    classes: ClassTable
    """Names and colours of the classes, in the order of their numbers."""
    image: np.ndarray
    """The photo, uint8 RGB [H, W, 3], upright."""
    scales: tuple[float, ...]
    """Scales that were combined, ascending."""
    flip: bool
    """Whether the mirrored photo was averaged in."""
    name: str = ""
    """File name of the photo; empty for arrays."""
    orientation: int = 1
    """EXIF orientation of the file; the photo and all results are turned upright."""
    notes: tuple[str, ...] = ()
    """What was done to the photo, in words."""
    logits: np.ndarray | None = None
    """Fused logits, float32 [C, H, W], where they were asked for."""
    scale_labels: Mapping[float, np.ndarray] | None = None
    """Class numbers [H, W] that each scale alone gives, by scale, where they were asked for."""
    shares: Mapping[float, np.ndarray] | None = None
    """Share of each scale in the fused logits, float32 [H, W], by scale, where they were asked for. They sum to 1."""

    def __repr__(self) -> str:
        height, width = self.labels.shape
        found = ", ".join(f"{name} {share:.0%}" for name, share in list(self.areas().items())[:3])
        return f"Prediction({self.name or 'array'}, {height}x{width}, {found})"

    def areas(self) -> dict[str, float]:
        """Share of the pixels of each class that occurs, by name, largest first."""
        counts = np.bincount(self.labels.reshape(-1), minlength=self.classes.num_classes)
        order = np.argsort(-counts, kind="stable")
        return {self.classes.names[c]: float(counts[c] / self.labels.size) for c in order if counts[c]}

    def ids(self) -> np.ndarray:
        """The values that label files of the data set store for the classes; class numbers where none are known.

        uint8 [H, W], or uint16 where a value is above 255.
        """
        if self.classes.ids is None:
            return self.labels if self.labels.dtype == np.uint8 else self.labels.astype(np.uint16)
        kind = np.uint8 if max(self.classes.ids) < 256 else np.uint16
        return np.array(self.classes.ids, kind)[self.labels]

    def colours(self) -> np.ndarray:
        """The labels in the colours of their classes: uint8 RGB [H, W, 3]."""
        return colourise(self.labels, self.classes)

    def overlay(self, opacity: float = 0.5, *, legend: bool = False) -> np.ndarray:
        """The photo under the colours of its labels: uint8 RGB [H, W, 3].

        opacity: 0 shows the photo alone, 1 the colours alone. legend: a strip below with the names of the classes.

        Raises ValueError for an opacity outside 0 to 1.
        """
        if not 0 <= opacity <= 1:
            raise ArgumentValueError(f"opacity: expected a number from 0 to 1, got {opacity!r}")
        picture = drawn.overlay(self.image, self.labels, self.classes.colours, opacity)
        return with_legend(picture, self.classes, self.labels) if legend else picture

    def probabilities(self) -> np.ndarray:
        """The confidence in bytes, ``floor(255 p)``, 0 where it is no number: uint8 [H, W]."""
        return np.nan_to_num(self.confidence * np.float32(255)).astype(np.uint8)

    def attention(self) -> np.ndarray:
        """A page: the photo, the prediction over it, the share of each scale, the legend. uint8 RGB.

        Raises ValueError without the shares: ``predict(image, per_scale=True)`` has them.
        """
        if self.shares is None:
            raise ArgumentValueError(
                "attention: this prediction has no shares of its scales; expected one of predict(image, per_scale=True)"
            )
        return shares_page(self.image, self.labels, dict(self.shares), self.classes, self.name, self.confidence)

    def save(
        self,
        path: str | os.PathLike[str],
        kind: Kind = "labels",
        *,
        ids: bool = False,
        opacity: float = 0.5,
        legend: bool = False,
    ) -> Path:
        """Writes one of the pictures as PNG, or as JPEG where the name ends so. Returns the path.

        Args:
            path: the file; folders are made, an old file is replaced.
            kind: ``labels`` (numbers, PNG only), ``colours``, ``overlay``, ``confidence`` (grey, PNG only) or
                ``attention`` (a page).
            ids: write the data set's own values instead of class numbers: see :meth:`ids`.
            opacity, legend: of the overlay.

        Raises :class:`hmsa_ext.HmsaError` for a kind or ending that does not fit, and for a file that cannot be
        written.
        """
        path = Path(path).expanduser()
        content = self.encoded(kind, path.suffix, ids=ids, opacity=opacity, legend=legend)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                file.write(content)
        except OSError as error:
            raise OutputError(f"path: {path} cannot be written: {error.strerror or error}") from error
        return path

    def encoded(
        self,
        kind: Kind,
        suffix: str,
        *,
        mark: str = "",
        ids: bool = False,
        opacity: float = 0.5,
        legend: bool = False,
    ) -> bytes:
        """The file that :meth:`save` writes. suffix: ``.png`` or ``.jpg``. mark: see ``hmsa_ext.prediction.marks``."""
        lossy = suffix.lower() in (".jpg", ".jpeg")
        allowed = (".png",) if kind in ("labels", "confidence") else (".png", ".jpg", ".jpeg")
        if kind not in KINDS:
            raise ArgumentValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
        if suffix.lower() not in allowed:
            raise ArgumentValueError(f"path: expected {kind} as {' or '.join(allowed)}, got {suffix or 'no ending'!r}")
        picture = self._picture(kind, ids=ids, opacity=opacity, legend=legend)
        return encode_jpeg(picture, mark) if lossy else encode_png(picture, mark)

    def _picture(self, kind: Kind, *, ids: bool, opacity: float, legend: bool) -> np.ndarray:
        if kind == "labels":
            if ids:
                return self.ids()
            return self.labels if self.labels.dtype == np.uint8 else self.labels.astype(np.uint16)
        if kind == "overlay":
            return self.overlay(opacity, legend=legend)
        return {"colours": self.colours, "confidence": self.probabilities, "attention": self.attention}[kind]()

    def stored(self) -> Prediction:
        """The prediction for the pixels as the file stores them, for label maps that go with the file itself.

        Data sets of images and label maps never follow the EXIF orientation. Where the file has one, everything is
        turned back; else this is the prediction as it is.
        """
        if self.orientation == 1:
            return self

        def turned(array: np.ndarray) -> np.ndarray:
            return as_stored(array, self.orientation)

        def each(maps: Mapping[float, np.ndarray] | None) -> Mapping[float, np.ndarray] | None:
            return None if maps is None else {scale: turned(array) for scale, array in maps.items()}

        logits = None if self.logits is None else np.stack([turned(plane) for plane in self.logits])
        return replace(
            self, labels=turned(self.labels), confidence=turned(self.confidence), image=turned(self.image),
            orientation=1, logits=logits, scale_labels=each(self.scale_labels), shares=each(self.shares),
        )  # fmt: skip

    def _repr_png_(self) -> bytes:
        shrink = min(1.0, SHOWN_IN_NOTEBOOKS / max(self.labels.shape))
        size = [max(1, math.floor(side * shrink)) for side in reversed(self.labels.shape)]
        image = cv2.resize(self.image, size, interpolation=cv2.INTER_AREA)
        labels = cv2.resize(self.labels.astype(np.uint16), size, interpolation=cv2.INTER_NEAREST)
        picture = drawn.overlay(image, labels, self.classes.colours)
        return encode_png(with_legend(picture, self.classes, self.labels))
