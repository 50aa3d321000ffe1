"""How sure the teacher is of its automatic labels, where it is right, and which thresholds keep a precision.

    hmsa autolabel report OUT                                      # pixels that pass at each threshold, doubtful images
    hmsa autolabel report OUT --plot report.png --json report.json
    hmsa autolabel report OUT --truth CamVid/trainannot --truth-ignored 11 --precision 0.95
    hmsa autolabel report OUT --truth gtFine/val --truth-suffix _gtFine_labelIds --truth-ignored others
    hmsa autolabel report OUT --truth OUT/corrected --truth-ignored 254      # where people corrected them

The truth of OUT/labels/PLACE.png is TRUTH/PLACE.png. Its files store the numbers that the label files store. Images
without a true label file are left out of the comparison. Corrections by people do not count as the teacher's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from hmsa_ext import command_line
from hmsa_ext.autolabel import advice as thresholds
from hmsa_ext.autolabel import report_plot, report_text
from hmsa_ext.autolabel.advice import Advice
from hmsa_ext.autolabel.calibration import (
    THRESHOLDS,
    Agreement,
    at_or_above,
    calibration,
    compare,
    images_with,
    medians,
    verdict,
)
from hmsa_ext.data.automatic.corrections import corrected_file
from hmsa_ext.data.automatic.manifest import Manifest, read_manifest
from hmsa_ext.data.automatic.trust import Trust
from hmsa_ext.data.label_table import LabelTable
from hmsa_ext.data.types import IGNORE_LABEL, LARGEST_ID, DataError
from hmsa_ext.files import Output
from hmsa_ext.settings import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Flag,
    Metavar,
    Positional,
    Rule,
    Spelling,
    read_number,
    require,
    validate,
)

PROG = "hmsa autolabel report"
OTHERS = "others"
PRECISION = 0.95
NAMED = 5
"""Missing files that an error names."""
_CITYSCAPES_IMAGES = "_leftImg8bit"


def _read_ignored(value: Any) -> tuple[int, ...] | str:
    if value == OTHERS:
        return OTHERS
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    return tuple(read_number(part, int) for part in ([value] if isinstance(value, int) else value))


def _show_ignored(value: tuple[int, ...] | str) -> str:
    return value if isinstance(value, str) else ",".join(map(str, value))


Ignored = Annotated[
    tuple[int, ...] | Literal["others"],
    Spelling("V,V|others", _read_ignored, _show_ignored),
    Rule(lambda v: v == OTHERS or all(0 <= x <= LARGEST_ID for x in v), f"numbers of 0..{LARGEST_ID}, or {OTHERS}"),
]


@dataclass(frozen=True, eq=False)
class Report:
    """What is known of a folder of automatic labels.

    corrected: how many of its images people corrected.
    agreement: beside the truth; None where none was given.
    truth: the folder of the truth, as text.
    least_pixels: figures of fewer pixels are not shown in words, and give no threshold.
    """

    manifest: Manifest
    corrected: int
    advice: Advice
    agreement: Agreement | None = None
    truth: str | None = None
    least_pixels: int = 100

    def passing(self, share: float) -> np.ndarray:
        """Pixels of each class with this probability or a higher one: int64 [K]."""
        level = Trust(min_probability=share).thresholds(self.manifest.classes, None)
        return at_or_above(self.manifest.histogram)[np.arange(len(level)), level]

    def by_probability(self) -> list[str]:
        """All places, the least sure image first."""
        records = self.manifest.records
        return sorted(records, key=lambda place: (records[place].probability, place))

    def text(self, most: int = 10) -> str:
        """Tables and sentences. most: how many of the least and of the most sure images to name."""
        return report_text.as_text(self, most)

    def to_dict(self, most: int | None = None) -> dict[str, Any]:
        """Everything as plain values, for JSON; figures of no pixels are None. most: as in :meth:`text`; None: all."""
        manifest, order = self.manifest, self.by_probability()
        most = len(order) if most is None else most
        histogram, ids = manifest.histogram, manifest.classes.ids
        having = images_with(manifest)
        passing = {f"{share:g}": self.passing(share).tolist() for share in THRESHOLDS}
        median = _plain(medians(histogram))
        return {
            "folder": str(manifest.folder),
            "made": dict(manifest.made),
            "images": len(order),
            "corrected": self.corrected,
            "pixels": int(histogram.sum()),
            "classes": [
                {
                    "name": name, "id": None if ids is None else ids[k], "pixels": int(histogram[k].sum()),
                    "images": int(having[k]), "median_probability": median[k],
                    "passing": {share: counts[k] for share, counts in passing.items()},
                }
                for k, name in enumerate(manifest.classes.names)
            ],
            "histogram": histogram.tolist(),
            "agreement": None if self.agreement is None else self._agreement(self.agreement),
            "advice": {
                "precision": self.advice.precision, "class_threshold": dict(self.advice.thresholds),
                "drop_classes": dict(self.advice.dropped), "flags": self.advice.flags(),
                "kept": self.advice.kept.tolist(),
            },
            "least_sure": [self._image(place) for place in order[:most]],
            "most_sure": [self._image(place) for place in order[::-1][:most]],
        }  # fmt: skip

    def _image(self, place: str) -> dict[str, Any]:
        record = self.manifest.records[place]
        return {"place": place, "image": record.image, "probability": record.probability}

    def _agreement(self, agreement: Agreement) -> dict[str, Any]:
        classes, whole = (
            calibration(labelled, right)
            for labelled, right in (
                (agreement.labelled, agreement.right),
                (agreement.labelled.sum(0), agreement.right.sum(0)),
            )
        )
        return {
            "truth": self.truth,
            "images": agreement.images,
            "pixels": int(agreement.labelled.sum()),
            "right": int(agreement.right.sum()),
            "precision": _plain(agreement.precision()),
            "recall": _plain(agreement.recall()),
            "iou": _plain(agreement.iou()),
            "calibration_error": _plain(whole.error),
            "excess": _plain(whole.excess),
            "verdict": verdict(float(whole.error), float(whole.excess)) if agreement.labelled.any() else None,
            "bins": [
                {"pixels": int(pixels), "precision": precision, "probability": probability}
                for pixels, precision, probability in zip(
                    whole.pixels, _plain(whole.precision), _plain(whole.probability), strict=True
                )
            ],
            "class_calibration_error": _plain(classes.error),
            "class_excess": _plain(classes.excess),
            "class_bins": {
                "pixels": classes.pixels.tolist(),
                "precision": _plain(classes.precision),
                "probability": _plain(classes.probability),
            },
            "confusion": agreement.confusion.tolist(),
            "unlabelled": agreement.unlabelled.tolist(),
        }


def report(
    folder: str | Path,
    truth: str | Path | None = None,
    *,
    truth_suffix: str = "",
    truth_ignored: Sequence[int] | str = (),
    precision: float | None = None,
    least_pixels: int = 100,
    threads: int | None = None,
    quiet: bool = True,
) -> Report:
    """The report on a folder of automatic labels.

    Args:
        folder: with a manifest, as ``hmsa autolabel`` writes it.
        truth: a folder with true label files in the same tree. Their values are those of the automatic ones.
        truth_suffix: stands between the name of the image and ``.png`` in the names of the true label files.
        truth_ignored: further values of the truth that stand for no class; "others": all that are no class.
        precision: that the advised thresholds keep, only with ``truth``; 0.95 unless given.
        least_pixels: that a threshold has to have above it.
        threads: files that are read at a time; one per core, at most 16, unless given.
        quiet: show no progress.

    Raises DataError where labels are missing or damaged, and where they and the truth do not fit together;
    :class:`hmsa_ext.settings.SettingError` for a precision outside 0 to 1, and for what is said about a truth that is
    not given.

    >>> found = report("out", "truth", precision=0.9)  # doctest: +SKIP
    >>> print(found.text())  # doctest: +SKIP
    >>> found.advice.trust  # doctest: +SKIP
    """
    require("precision", precision, precision is None or 0 <= precision <= 1, SHARE.expected)
    require("least_pixels", least_pixels, least_pixels > 0, POSITIVE.expected)
    about_truth = {"truth_suffix": truth_suffix, "truth_ignored": truth_ignored, "precision": precision}
    for name, value in about_truth.items():
        require(name, value, truth is not None or value in ("", (), None), "no value without truth")
    manifest = read_manifest(folder)
    _check_files(manifest)
    corrected = sum(corrected_file(manifest.folder, place).is_file() for place in manifest.records)
    if truth is None:
        return Report(manifest, corrected, thresholds.for_median(manifest), least_pixels=least_pixels)
    table = truth_table(manifest, truth_ignored)
    files = truth_files(manifest, Path(truth).expanduser(), truth_suffix)
    agreement = compare(manifest, files, table, threads=threads, quiet=quiet)
    advice = thresholds.for_precision(manifest, agreement, PRECISION if precision is None else precision, least_pixels)
    return Report(manifest, corrected, advice, agreement, str(truth), least_pixels)


def truth_table(manifest: Manifest, ignored: Sequence[int] | str) -> LabelTable:
    """The meaning of the values in true label files. Raises SettingError for ignored values that are classes."""
    ids = manifest.classes.ids or ()
    values = {value: number for number, value in enumerate(ids)}
    if isinstance(ignored, str):
        return LabelTable(dict.fromkeys(range(LARGEST_ID + 1), IGNORE_LABEL) | values, expected="any value")
    classes = [f"{value} ({manifest.classes.names[values[value]]})" for value in ignored if value in values]
    require("truth_ignored", tuple(ignored), not classes, f"values that are no class, unlike {', '.join(classes)}")
    others = dict.fromkeys((manifest.ignored, *ignored), IGNORE_LABEL)
    expected = (
        f"the values of {len(ids)} classes that the manifest lists, or {_show_ignored(tuple(others))} for no class; "
        "--truth-ignored names other values of no class"
    )
    return LabelTable({**others, **values}, expected=expected)


def truth_files(manifest: Manifest, folder: Path, suffix: str) -> dict[str, Path]:
    """The true label files that exist, by place. Raises DataError where there is no folder or no file.

    In the layout of Cityscapes the truth has no ``_leftImg8bit`` in its names; corrections by people have it.
    """
    if not folder.is_dir():
        raise DataError(f"truth: no folder {folder}; expected one with true label files")

    def file(place: str) -> Path:
        name = place.removesuffix(_CITYSCAPES_IMAGES) if manifest.layout == "cityscapes" else place
        return folder / f"{name}{suffix}.png"

    found = {
        place: path
        for place in manifest.records
        for path in [next(filter(Path.is_file, (file(place), folder / f"{place}{suffix}.png")), None)]
        if path is not None
    }
    if not found:
        example = f", such as {file(next(iter(manifest.records)))}" if manifest.records else ""
        raise DataError(
            f"truth: none of the {len(manifest.records)} labelled images has a file in {folder}{example}; "
            "--truth-suffix is what stands before .png in their names"
        )
    return found


def _check_files(manifest: Manifest) -> None:
    missing = [
        path
        for place in manifest.records
        for path in (manifest.label_file(place), manifest.probability_file(place))
        if not path.is_file()
    ]
    if missing:
        names = ", ".join(map(str, missing[:NAMED])) + (f", and {len(missing) - NAMED} more" * (len(missing) > NAMED))
        raise DataError(
            f"{manifest.folder}: files that the manifest lists are missing: {names}. hmsa autolabel makes them again"
        )


def _plain(figures: np.ndarray) -> Any:
    """Numbers as JSON has them: None for NaN."""
    rounded = np.asarray(figures.round(6), object)
    rounded[np.isnan(figures)] = None
    return rounded.tolist()


# ---- the command ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReportSettings:
    """Automatic labels, true ones if there are some, and files for the figures."""

    folder: Annotated[str | None, Positional("OUT")] = None
    """Folder of automatic labels."""
    truth: Annotated[str | None, Metavar("FOLDER")] = None
    """Folder of true label files for some or all of the images, in the same tree."""
    truth_suffix: str | None = None
    """What stands before .png in the names of true label files, after the name of the image, such as _L."""
    truth_ignored: Ignored = ()
    """Further values of true label files that stand for no class, such as 11; "others": all that are no class."""
    precision: Annotated[float | None, SHARE] = None
    """Advise thresholds above which so large a part of the pixels is right; needs --truth. Default: 0.95."""
    least_pixels: Annotated[int, POSITIVE] = 100
    """Advise only thresholds that so many pixels with truth pass."""
    most: Annotated[int, NOT_NEGATIVE] = 10
    """How many of the least and of the most sure images to name."""
    plot: Annotated[str | None, Metavar("FILE"), Flag("plot", was=("picture",))] = None
    """Draw the shares into this PNG."""
    json: Annotated[str | None, Metavar("FILE")] = None
    """Write all figures to this file as JSON; "-" is standard output, and the text then goes to standard error."""
    threads: Annotated[int | None, POSITIVE] = None
    """Files that are read at a time; default: one per core, at most 16."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        validate(self)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return command_line.run(_command, arguments)


def _command(arguments: list[str]) -> int:
    run(command_line.parse(ReportSettings(), arguments, prog=PROG, description=(__doc__ or "").rstrip()))
    return 0


def run(chosen: ReportSettings) -> Report:
    """Prints the report, and writes plot and JSON. Raises DataError, SettingError and OutputError."""
    require("folder", chosen.folder, chosen.folder is not None, "a folder of automatic labels")
    said = {"truth_suffix": chosen.truth_suffix, "truth_ignored": chosen.truth_ignored, "precision": chosen.precision}
    about_truth = [name for name, value in said.items() if value not in ("", (), None)]
    require("truth", chosen.truth, chosen.truth or not about_truth, f"a folder, for {' and '.join(about_truth)}")
    plot = Output(chosen.plot, "plot") if chosen.plot else None
    file = Output(chosen.json, "json") if chosen.json else None
    found = report(
        chosen.folder or "", chosen.truth, truth_suffix=chosen.truth_suffix or "", truth_ignored=chosen.truth_ignored,
        precision=chosen.precision, least_pixels=chosen.least_pixels, threads=chosen.threads, quiet=chosen.quiet,
    )  # fmt: skip
    say = sys.stderr if chosen.json == "-" else sys.stdout
    print(found.text(chosen.most), file=say)
    if plot is not None:
        plot.write(report_plot.as_png(found))
        print(f"\ndrew {chosen.plot}", file=say)
    if file is not None:
        file.write(json.dumps(found.to_dict(chosen.most), indent=1, ensure_ascii=False) + "\n")
    return found
