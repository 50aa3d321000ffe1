"""From a trained model to the labels of any photo: :func:`load`, and the :class:`Predictor` that it gives."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, overload

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from hmsa_ext import ops
from hmsa_ext.data import ClassTable
from hmsa_ext.data.photos import Photo, as_photo
from hmsa_ext.engine import tiles
from hmsa_ext.engine.device import choose_device, choose_dtype, evaluation_mode, place
from hmsa_ext.engine.evaluation import ScaleSettings
from hmsa_ext.engine.memory import Footprint, Reading, allowed, reading
from hmsa_ext.engine.out_of_memory import LESS_TO_PREDICT, explained, shown_scales
from hmsa_ext.engine.passes import run, unmirrored
from hmsa_ext.engine.tiles import Blend
from hmsa_ext.engine.tiling import Around, Plan, Tiling
from hmsa_ext.engine.trained import TrainedModel, default_scales, open_model
from hmsa_ext.errors import ArgumentTypeError, ArgumentValueError, HmsaError
from hmsa_ext.models import InputError, ScaleOutputs
from hmsa_ext.models.fusions import check_scales, find_fusion
from hmsa_ext.models.scales import descending_scales
from hmsa_ext.normalisation import MEAN, STD
from hmsa_ext.prediction.prediction import Prediction
from hmsa_ext.prediction.settings import PredictionSettings
from hmsa_ext.settings import SettingError, options

WHITE = 65535
SIZES_DIFFER = 2.0
"""Factor beyond the sizes of the training from which a photo's size is worth a word."""


def load(
    path: str | os.PathLike[str],
    device: str = "auto",
    *,
    network: str | Callable[..., nn.Module] | None = None,
    num_classes: int | None = None,
    classes: str | Sequence[str] | ClassTable | None = None,
    fusion: str | Callable[..., Tensor] | None = None,
    dtype: str = "auto",
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
    resize_to: int | tuple[int, int] | None = None,
    tile: int | tuple[int, int] | None = None,
    overlap: float = 0.25,
    blend: Blend = "linear",
    memory: str | int | None = None,
) -> Predictor:
    """A predictor from a trained model; the data set of its training need not be there.

    Images need no preparation: the predictor normalises them, chooses the scales that the model was evaluated at, and
    cuts large ones into tiles that fit the memory.

    Args:
        path: a run folder (its last checkpoint), a checkpoint, a ``.safetensors`` file, or a published checkpoint.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...
        network: which network a published checkpoint is of, such as ``"hrnet_w48_ocr"``; files of our runs say so.
        num_classes: of such a file; found from its weights unless given.
        classes: of such a file: the name of a data set (``"cityscapes"``), names, or a table.
        fusion: how the scales are fused, instead of as in the training: see
            :func:`hmsa_ext.engine.trained.open_model`.
        dtype: ``float32``, ``bfloat16`` (autocast), or ``auto``: bfloat16 on GPUs that are fast in it.
        scales, flip: scales to combine, and whether to average in the mirrored photo; default: as the run evaluates.
        resize_to, tile, overlap, blend, memory: see :class:`hmsa_ext.prediction.settings.PredictionSettings`.

    Raises :class:`hmsa_ext.HmsaError` for a file that is no model, and for settings that do not fit.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"path: got {path!r:.60}, expected a run folder or a file of weights")
    trained = open_model(os.fspath(path), network, num_classes, classes, fusion=fusion)
    given: dict[str, Any] = {
        "resize_to": resize_to, "tile": tile, "overlap": overlap, "blend": blend, "memory": memory
    }  # fmt: skip
    settings = PredictionSettings()
    settings = dataclasses.replace(settings, **_read(settings, given))
    return Predictor(trained, device, dtype=dtype, scales=scales, flip=flip, settings=settings)


class PredictionError(HmsaError, RuntimeError):
    """A photo that cannot be predicted, for a reason that is not in the photo."""


class Predictor:
    """A trained model that takes photos as they are: :meth:`predict`.

    trained: the model and what is known of it. device, dtype, scales, flip: as for :func:`load`. waiting: share of the
    memory that is kept for photos which wait, see ``reserve``.

    >>> predictor = hmsa_ext.load("runs/NAME")  # doctest: +SKIP
    >>> predictor.predict("photo.jpg").save("labels.png")  # doctest: +SKIP
    """

    def __init__(
        self,
        trained: TrainedModel,
        device: str | torch.device = "auto",
        *,
        dtype: str = "auto",
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        settings: PredictionSettings | None = None,
        waiting: float = 0.0,
    ) -> None:
        self.trained, self.settings = trained, settings or PredictionSettings()
        self.device, self.device_reason = choose_device(str(device))
        if dtype not in ("auto", "float32", "bfloat16"):
            raise SettingError("dtype", dtype, "auto, float32 or bfloat16")
        self.dtype, self.dtype_reason = choose_dtype(dtype, self.device)
        ran = trained.settings or {}
        own_scales, own_flip = run_defaults(trained)
        self.scales = self._checked(own_scales if scales is None else scales)
        self.flip = own_flip if flip is None else flip
        self.model = place(trained.model, self.device, channels_last=bool(ran.get("channels_last", True))).eval()
        self.reserve = int(allowed(torch.device("cpu"), self.settings.memory) * waiting)
        """Bytes of the machine's memory that photos which wait for the network may take."""
        self._tiling = Tiling(self.model, self.device, self.settings, dtype=self.dtype)

    def __repr__(self) -> str:
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        return f"Predictor({self.trained.path}, {self.classes.num_classes} classes, scales {scales}, {self.device})"

    @property
    def classes(self) -> ClassTable:
        """Names and colours of the classes."""
        return self.trained.classes

    @overload
    def predict(self, image: list[Any], scales: Sequence[float] | None = ..., flip: bool | None = ..., *,
                logits: bool = ..., per_scale: bool = ..., white: int = ...) -> list[Prediction]: ...  # fmt: skip

    @overload
    def predict(self, image: Any, scales: Sequence[float] | None = ..., flip: bool | None = ..., *,
                logits: bool = ..., per_scale: bool = ..., white: int = ...) -> Prediction: ...  # fmt: skip

    def predict(
        self,
        image: Any,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        *,
        logits: bool = False,
        per_scale: bool = False,
        white: int = WHITE,
    ) -> Prediction | list[Prediction]:
        """Labels and confidence of a photo of any size, at its own size.

        Both come from the fused argmax, :func:`hmsa_ext.fuse_scales_argmax`: logits at the size of the photo exist only
        where they are asked for.

        Args:
            image: a path; a PIL image; an array uint8 or uint16 [H, W], [H, W, 1], [H, W, 3] (red, green, blue) or
                [H, W, 4]; a tensor [3, H, W], uint8 or floating point from 0 to 1; or a list of such. Files and PIL
                images are turned upright as their EXIF orientation says; transparency is left out.
            scales, flip: instead of those of the predictor.
            logits: keep the fused logits too, 4 bytes per class and pixel.
            per_scale: keep the labels of each scale alone, and its share in the result.
            white: the value of white in images of 16 bits, such as 4095 for 12 bits stored in 16.

        Returns:
            A :class:`hmsa_ext.prediction.Prediction`; of a list one for each, in order.

        Raises :class:`hmsa_ext.HmsaError` for an image that cannot be read or is too small for a scale.
        """
        if isinstance(image, list):
            return [self.predict(one, scales, flip, logits=logits, per_scale=per_scale, white=white) for one in image]
        photo = as_photo(image, white=white)
        return self.predict_photo(photo, scales, flip, logits=logits, per_scale=per_scale)

    def predict_photo(
        self,
        photo: Photo,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        *,
        logits: bool = False,
        per_scale: bool = False,
        tile_done: Callable[[int, int], None] | None = None,
    ) -> Prediction:
        """:meth:`predict` for a photo that was read already.

        tile_done: called with the number of the tile that is done, from 1, and the number of tiles.
        """
        ordered = self.scales if scales is None else self._checked(scales)
        mirrored = self.flip if flip is None else flip
        size = photo.pixels.shape[:2]
        if min(size) * ordered[0] < 1:  # also where the network sees it larger: its outputs are fused at this size
            raise InputError(
                f"image: {size[0]}x{size[1]} pixels leave nothing at scale {ordered[0]:g}; expected at least "
                f"{math.ceil(1 / ordered[0])} in height and width, or scales that are not below 1"
            )
        plan = self.plan(size, ordered, mirrored, logits=logits, per_scale=per_scale)
        found = _Results(size, self.classes.num_classes, ordered, logits=logits, per_scale=per_scale)
        what = f"predicting a photo of {plan} at {shown_scales(ordered, flip=mirrored)}"
        with explained(what, LESS_TO_PREDICT), evaluation_mode(self.model):
            array = np.ascontiguousarray(photo.pixels)
            array = array if array.flags.writeable else array.copy()  # PyTorch warns of arrays that it could write to
            pixels = torch.from_numpy(array).to(self.device, non_blocking=True)
            if plan.layout is None:
                outputs = self._run(_cut(pixels, (0, 0, *size), plan.size), ordered, mirrored)
                outputs = dataclasses.replace(outputs, aux=None, size=size)  # what is not read need not stay
                found.read(outputs, mirrored, 0, 0, size[0])
            else:
                self._predict_tiles(pixels, plan, ordered, mirrored, found, tile_done)
        undefined = np.isnan(found.confidence).mean()
        if undefined:
            raise PredictionError(
                f"network: its outputs are no numbers in {100 * undefined:.3g} % of the pixels: the weights are "
                "damaged or from a training that diverged, or bfloat16 is too coarse for them (dtype float32)"
            )
        return Prediction(
            labels=found.labels, confidence=found.confidence, classes=self.classes, image=photo.pixels,
            scales=ordered, flip=mirrored, name=photo.name, orientation=photo.orientation, notes=photo.notes,
            logits=found.logits, scale_labels=found.scale_labels, shares=found.shares,
        )  # fmt: skip

    def plan(
        self,
        size: tuple[int, int],
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        *,
        logits: bool = False,
        per_scale: bool = False,
        stated: bool = False,
    ) -> Plan:
        """How a photo of this (height, width) is predicted: the size for the network, the tiles, the memory.

        ``stated``: find out the memory of small photos too, which takes a second or three for a new network.

        Raises :class:`hmsa_ext.settings.SettingError` where the memory that is allowed is too little.
        """
        if not isinstance(size, tuple | list) or len(size) != 2 or not all(s >= 1 for s in size):
            raise ArgumentValueError(f"size: got {size!r:.60}, expected (height, width) in pixels")
        size = size[0], size[1]
        ordered = self.scales if scales is None else self._checked(scales)
        mirrored = self.flip if flip is None else flip
        number = self.classes.num_classes

        def reads(needs: Footprint) -> Reading:
            return reading(
                number, len(ordered), needs.attention_channels, flip=mirrored, logits=logits, per_scale=per_scale,
                builds_logits=needs.builds_logits,
            )  # fmt: skip

        kept_free = self.reserve if self.device.type == "cpu" else 0
        # Of the photo its pixels, and labels that nobody reads.
        around = Around(reads, held=4, reserve=kept_free, bands=True)
        return self._tiling.plan(
            size, ordered, mirrored, around, network_size=self._network_size(size), unstated=not stated
        )

    def size_note(self, size: tuple[int, int]) -> str:
        """A sentence where a photo of this (height, width) differs much from what the model was trained on, else "".

        A network knows its classes at the sizes that it saw. What counts is how long the sides are that the network
        gets, beside those of the training images and their random zoom.
        """
        trained = self.trained.image_size
        if trained is None:
            return ""
        seen = self._network_size(size)
        factor = (seen[0] * seen[1] / (trained[0] * trained[1])) ** 0.5
        ran = self.trained.settings or {}
        low, high = ran.get("scale_range") or (1.0, 1.0)
        if min(low, 1) / SIZES_DIFFER <= factor <= max(high, 1) * SIZES_DIFFER:
            return ""
        long_edge = max(trained)
        larger, faster = ("larger", " and faster") if factor > 1 else ("smaller", "")
        return (
            f"predicted at {seen[0]}x{seen[1]}, but the model was trained on images of about "
            f"{trained[0]}x{trained[1]}: if things look {larger} in the photos than there, "
            f"resize them to {long_edge} pixels (--resize-to, in Python resize_to): that predicts better{faster}"
        )

    def _checked(self, values: Sequence[float]) -> tuple[float, ...]:
        """Scales, ascending; raises where they do not fit each other or the fusion."""
        ordered = descending_scales(tuple(values) if isinstance(values, list) else values)[::-1]
        check_scales(find_fusion(self.trained.network.fusion), ordered, self.trained.network.train_scales)
        return ordered

    # ---- one photo ----------------------------------------------------------------------------------------------

    def _run(self, images: Tensor, scales: Sequence[float], flip: bool) -> ScaleOutputs:
        outputs = run(self.model, images, scales, self.device, dtype=self.dtype, flip=flip)
        if not isinstance(outputs, ScaleOutputs):
            raise PredictionError(
                f"network: it returned {type(outputs).__name__}, expected hmsa_ext.models.ScaleOutputs; wrap a network "
                "that returns (logits, features) by hmsa_ext.models.MultiScale"
            )
        return outputs

    def _predict_tiles(
        self, pixels: Tensor, plan: Plan, scales: Sequence[float], flip: bool, found: _Results,
        tile_done: Callable[[int, int], None] | None,
    ) -> None:  # fmt: skip
        assert plan.layout is not None
        layout, numbers = plan.layout, itertools.count(1)
        size = (pixels.shape[0], pixels.shape[1])
        resized = plan.size != size
        if resized:
            shrinks = plan.size[0] < size[0]
            there = cv2.resize(
                pixels.cpu().numpy(), plan.size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            )
            pixels = torch.from_numpy(there).to(self.device)

        def one(row: int, column: int, height: int, width: int) -> ScaleOutputs:
            tile = _cut(pixels, (row, column, row + height, column + width), (height, width))
            outputs = self._run(tile, scales, flip)
            if tile_done is not None:
                tile_done(next(numbers), len(layout))
            return outputs

        strides = self._tiling.footprint(scales, flip).strides
        assert strides is not None
        bands = tiles.blended(
            one, plan.layout, scales[::-1], strides, blend=self.settings.blend, flip=flip, whole=resized
        )  # fmt: skip
        for band in bands:
            if resized:
                found.read(dataclasses.replace(band.outputs, size=size), flip, 0, 0, size[0])
            else:
                found.read(band.outputs, flip, band.margin, band.first, band.last)
            del band  # its maps need not stay while the next tiles run

    def _network_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) at which the network sees a photo."""
        wanted = self.settings.resize_to
        if wanted is None:
            wanted = (self.trained.settings or {}).get("long_edge") or None
        if wanted is None:
            return size
        if isinstance(wanted, tuple):
            return wanted
        factor = wanted / max(size)
        return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


class _Results:
    """What is kept of a photo, filled band by band."""

    def __init__(
        self, size: tuple[int, int], num_classes: int, scales: Sequence[float], *, logits: bool, per_scale: bool
    ) -> None:
        kind = np.uint8 if num_classes <= 256 else np.int32
        self.size, self.num_classes = size, num_classes
        self.labels, self.confidence = np.empty(size, kind), np.empty(size, np.float32)
        self.logits = np.empty((num_classes, *size), np.float32) if logits else None
        self.scale_labels = {scale: np.empty(size, kind) for scale in scales} if per_scale else None
        self.shares: dict[float, np.ndarray] | None = {} if per_scale else None

    def read(self, outputs: ScaleOutputs, flip: bool, margin: int, first: int, last: int) -> None:
        """Reads rows ``first`` to ``last`` of the photo from outputs that begin ``margin`` rows above them."""
        views = 2 if flip else 1
        last = min(last, self.size[0])
        if last <= first:
            return

        def keep(target: np.ndarray, maps: Tensor) -> None:
            rows = maps[..., margin : margin + last - first, : self.size[1]]
            target[..., first:last, :] = rows.float().cpu().numpy() if maps.is_floating_point() else rows.cpu().numpy()

        if outputs.logits[0].shape[1] != self.num_classes:
            raise PredictionError(
                f"network: it gives {outputs.logits[0].shape[1]} classes, but num_classes is {self.num_classes}; say "
                "how many it has (num_classes), or which (classes)"
            )
        labels, confidence = outputs.argmax(views=views)
        keep(self.labels, labels[0])
        keep(self.confidence, confidence[0])
        if self.logits is not None:
            keep(self.logits, unmirrored(outputs.fuse(), flip=flip)[0])
        if self.scale_labels is not None and self.shares is not None:
            for index, scale in enumerate(outputs.scales):
                labels = outputs.single_scale_argmax(index, views=views, confidence=False)
                keep(self.scale_labels[scale], labels[0])
            for scale, maps in (outputs.shares() or {}).items():
                share = self.shares.setdefault(scale, np.empty(self.size, np.float32))
                keep(share, unmirrored(maps, flip=flip)[0, 0])


def _cut(pixels: Tensor, box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """A box of a photo [H, W, 3], resized and normalised as evaluation does it: float32 [1, 3, height, width]."""
    label = torch.zeros(1, dtype=torch.uint8, device=pixels.device).expand(pixels.shape[:2])
    images, _ = ops.sample_crop(
        [pixels], [label], torch.tensor([[0, *box]]), torch.zeros(1, dtype=torch.bool),
        torch.tensor([[1.0, 1.0, 1.0, 0.0]]), size, MEAN, STD, antialias=True,
    )  # fmt: skip
    return images


def run_defaults(trained: TrainedModel) -> tuple[tuple[float, ...], bool]:
    """Scales and mirroring of a prediction that does not say: those that the run is evaluated with."""
    return default_scales(trained), bool((trained.settings or {}).get("flip", ScaleSettings().flip))


def _read(settings: PredictionSettings, values: dict[str, Any]) -> dict[str, Any]:
    return {option.name: option.read(values[option.name]) for option in options(settings)}
