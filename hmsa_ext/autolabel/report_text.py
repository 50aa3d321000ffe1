"""The report on automatic labels in words and tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from hmsa_ext.autolabel.calibration import (
    BINS,
    THRESHOLDS,
    Agreement,
    Calibration,
    at_or_above,
    calibration,
    images_with,
    medians,
    ratio,
    verdict,
)
from hmsa_ext.data.automatic.manifest import LEVELS
from hmsa_ext.data.automatic.trust import Trust
from hmsa_ext.tables import text_table

if TYPE_CHECKING:
    from hmsa_ext.autolabel.report import Report

NOTHING = "-"
CLASSES_SHOWN = 8
UNSURE = 0.5
"""Medians below this are warned of."""


def as_text(found: Report, most: int) -> str:
    """The whole report. most: how many of the least and of the most sure images to name."""
    manifest, agreement = found.manifest, found.agreement
    count = len(manifest.records)
    lines = [f"{manifest.folder}: {_images(count)}, {found.corrected} of them corrected by people"]
    if not count:
        return "\n".join([*lines, "nothing is labelled yet"])
    lines += ["", "Pixels with a probability of at least ..., in % of the class", "", _passing(found)]
    if agreement is not None:
        lines += ["", *_agreement(found, agreement)]
    lines += ["", *_advice(found)]
    order = found.by_probability()
    for title, places in (("Least sure images", order[:most]), ("Most sure images", order[::-1][:most])):
        if places:
            rows = [[f"{manifest.records[place].probability:.4f}", place] for place in places]
            lines += ["", title, "", text_table(["mean probability", "image"], rows, left=(1,))]
    return "\n".join(lines)


def _passing(found: Report) -> str:
    manifest = found.manifest
    pixels, images = manifest.histogram.sum(1), images_with(manifest)
    passing = [found.passing(share) for share in THRESHOLDS]
    median = medians(np.vstack([manifest.histogram, manifest.histogram.sum(0)]))

    def row(name: str, own: int, count: int, middle: float, above: Iterable[int]) -> list[str]:
        shares = (_percent(part / own if own else np.nan) for part in above)
        share = _percent(own / max(pixels.sum(), 1), 2)
        return [name, str(own), share, str(count), f"{middle:.2f}" if own else NOTHING, *shares]

    rows = [
        row(name, int(pixels[k]), int(images[k]), median[k], [counts[k] for counts in passing])
        for k, name in enumerate(manifest.classes.names)
    ]
    rows.append(
        row("all classes", int(pixels.sum()), len(manifest.records), median[-1], [counts.sum() for counts in passing])
    )
    heads = ["class", "pixels", "share %", "images", "median", *(f"{share:g}" for share in THRESHOLDS)]
    return text_table(heads, rows, rules=(len(rows) - 1,))


def _agreement(found: Report, agreement: Agreement) -> Iterable[str]:
    of_class = calibration(agreement.labelled, agreement.right)
    whole = calibration(agreement.labelled.sum(0), agreement.right.sum(0))
    yield (
        f"Compared with {found.truth}: {_images(agreement.images)} of {len(found.manifest.records)}, "
        f"{agreement.labelled.sum()} pixels with an automatic and a true class, corrections left out"
    )
    yield ""
    yield _classes(found, agreement, of_class, whole)
    yield ""
    yield _sentence(agreement, whole)
    yield from _by_class(found, of_class)
    yield (
        "over: mean probability less precision. ECE: expected calibration error, over ten bins of probability. "
        "IoU of all classes: the mean."
    )
    yield ""
    yield f"Precision in % by probability; {NOTHING}: fewer than {found.least_pixels} pixels"
    yield ""
    yield _bins(found, of_class, whole)
    yield ""
    yield "One threshold for all classes"
    yield ""
    yield _one_threshold(found, agreement)


def _classes(found: Report, agreement: Agreement, of_class: Calibration, whole: Calibration) -> str:
    precision, recall, iou = agreement.precision(), agreement.recall(), agreement.iou()
    pixels = agreement.labelled.sum(1)

    def row(name: str, own: int, figures: Iterable[float], of: Calibration, k: int | tuple[()]) -> list[str]:
        error, excess = float(of.error[k]), float(of.excess[k])
        calibrated = (
            [f"{excess:+.3f}", f"{error:.3f}", verdict(error, excess)] if own >= found.least_pixels else [NOTHING] * 3
        )
        return [name, str(own), *(_percent(figure) for figure in figures), *calibrated]

    rows = [
        row(name, int(pixels[k]), (precision[k], recall[k], iou[k]), of_class, k)
        for k, name in enumerate(found.manifest.classes.names)
    ]
    true = agreement.confusion.sum() + agreement.unlabelled.sum()
    right = agreement.right.sum()
    mean = float(np.nanmean(iou)) if not np.isnan(iou).all() else np.nan
    rows.append(
        row("all classes", int(pixels.sum()), (_share(right, pixels.sum()), _share(right, true), mean), whole, ())
    )
    heads = ["class", "pixels", "precision %", "recall %", "IoU %", "over", "ECE", "the teacher is"]
    return text_table(heads, rows, left=(0, 7), rules=(len(rows) - 1,))


def _sentence(agreement: Agreement, whole: Calibration) -> str:
    if not agreement.labelled.any():
        return "No pixel has both an automatic and a true class: nothing can be said of the teacher."
    error, excess = float(whole.error), float(whole.excess)
    is_ = verdict(error, excess)
    if is_ == "calibrated":
        return f"The teacher is calibrated: probability and precision differ by {error:.3f} on average (ECE)."
    if is_ == "uneven":
        return (
            f"The teacher is uneven: its probabilities are too high in some bins and too low in others, by {error:.3f} "
            f"on average (ECE), and by {excess:+.3f} in all."
        )
    side = "above" if excess > 0 else "below"
    return f"The teacher is {is_}: its mean probability is {abs(excess):.3f} {side} its precision (ECE {error:.3f})."


def _by_class(found: Report, of_class: Calibration) -> Iterable[str]:
    """The classes that the teacher is wrong about: what is calibrated as a whole need not be so in its parts."""
    names = found.manifest.classes.names
    for side, sign in (("over-confident", 1), ("under-confident", -1)):
        wrong = [
            k
            for k in np.flatnonzero(of_class.pixels.sum(1) >= found.least_pixels)
            if verdict(float(of_class.error[k]), float(of_class.excess[k])) == side
        ]
        wrong.sort(key=lambda k: -sign * of_class.excess[k])
        if wrong:
            shown = ", ".join(f"{names[k]} ({of_class.excess[k]:+.3f})" for k in wrong[:CLASSES_SHOWN])
            more = f", and {len(wrong) - CLASSES_SHOWN} more" if len(wrong) > CLASSES_SHOWN else ""
            yield f"It is {side} about {shown}{more}."


def _bins(found: Report, of_class: Calibration, whole: Calibration) -> str:
    shown = [part for part in range(BINS) if whole.pixels[part]]

    def row(name: str, pixels: np.ndarray, figures: np.ndarray) -> list[str]:
        return [name, *(_percent(figures[p]) if pixels[p] >= found.least_pixels else NOTHING for p in shown)]

    rows = [row(name, of_class.pixels[k], of_class.precision[k]) for k, name in enumerate(found.manifest.classes.names)]
    rows.append(row("all classes", whole.pixels, whole.precision))
    rows.append(row("mean probability", whole.pixels, whole.probability))
    rows.append(["pixels", *(str(whole.pixels[p]) for p in shown)])
    heads = ["class", *(f"{part / BINS:g}-{(part + 1) / BINS:g}" for part in shown)]
    return text_table(heads, rows, rules=(len(rows) - 3,))


def _one_threshold(found: Report, agreement: Agreement) -> str:
    """What a single --min-probability keeps, and how right that is: all pixels, and the worst class."""
    classes, total = found.manifest.classes, max(int(found.manifest.histogram.sum()), 1)
    rows = []
    for share in (0.0, *THRESHOLDS):
        level = int(Trust(min_probability=share).thresholds(classes, None)[0])
        count, right = (at_or_above(counts)[:, level] for counts in (agreement.labelled, agreement.right))
        of_class = np.where(count >= found.least_pixels, ratio(right, count), np.nan)
        worst = NOTHING
        if not np.isnan(of_class).all():
            number = int(np.nanargmin(of_class))
            worst = f"{classes.names[number]} {_percent(of_class[number])}"
        kept = found.passing(share).sum() / total
        rows.append([f"{share:g}", _percent(kept), _percent(_share(right.sum(), count.sum())), worst])
    return text_table(["--min-probability", "keeps %", "precision %", "least precise class %"], rows, left=(3,))


def _advice(found: Report) -> Iterable[str]:
    advice, histogram = found.advice, found.manifest.histogram
    flags = advice.flags()
    if not flags:
        return
    if advice.precision is None:
        yield "Advice without truth: the median probability of each class, at most 0.9. It keeps no stated precision."
        unsure = [name for name, threshold in advice.thresholds.items() if threshold < UNSURE]
        if unsure:
            yield (
                f"Half of the pixels of {', '.join(unsure)} are below {UNSURE:g}: the teacher is not sure of them, and "
                "compare with true labels before you train on them."
            )
    else:
        yield (
            f"Advice: thresholds above which {100 * advice.precision:g} % of the pixels of each class were right on "
            f"the compared images. Every higher threshold keeps that, too, down to {found.least_pixels} pixels."
        )
    yield ""
    yield _thresholds(found)
    yield ""
    kept, total = int(advice.kept.sum()), max(int(histogram.sum()), 1)
    yield f"That keeps {kept} of {total} pixels ({_percent(kept / total)} %) for training:"
    yield ""
    yield from (f"    {line}" for line in flags.splitlines())


def _thresholds(found: Report) -> str:
    advice, agreement, pixels = found.advice, found.agreement, found.manifest.histogram.sum(1)
    rows = []
    for k, name in enumerate(found.manifest.classes.names):
        if name in advice.dropped:
            row = [name, NOTHING, "0.0", NOTHING, f"dropped: {advice.dropped[name]}"]
        elif name in advice.thresholds:
            precise = NOTHING
            if agreement is not None and advice.levels[k] < LEVELS:
                count, right = (at_or_above(c[k])[advice.levels[k]] for c in (agreement.labelled, agreement.right))
                precise = _percent(_share(right, count))
            row = [name, f"{advice.thresholds[name]:g}", _percent(advice.kept[k] / pixels[k]), precise, ""]
        else:
            continue
        rows.append(row if agreement is not None else row[:3])
    heads = ["class", "threshold", "keeps %", "precision %", ""]
    return text_table(heads if agreement is not None else heads[:3], rows, left=(0, 4))


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def _share(part: int | np.ndarray, whole: int | np.ndarray) -> float:
    return float(ratio(np.asarray(part), np.asarray(whole)))


def _percent(share: float | np.ndarray, digits: int = 1) -> str:
    """Rounded, but never to 100 what is less."""
    value = 100 * float(share)
    if np.isnan(value):
        return NOTHING
    text = f"{value:.{digits}f}"
    return text if value >= 100 or float(text) < 100 else f"{100 - 10**-digits:.{digits}f}"
