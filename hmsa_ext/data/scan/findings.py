"""The judgement of a scan: errors that would stop training, faults that would spoil it, and advice for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hmsa_ext.data.files import WHITE
from hmsa_ext.data.label_table import MANY_COLOURS, show_value
from hmsa_ext.data.learnable import nothing_to_learn
from hmsa_ext.data.scan.look import SplitScan, files_with
from hmsa_ext.data.suggestion import BINARY, smoothed_values, suggest
from hmsa_ext.data.types import IGNORE_LABEL

ERROR, WARNING, NOTE = "error", "warning", "note"
AUTOMATIC = "automatic"
"""The name of the images with automatic labels among the splits."""
SMOOTHED = (
    "Many values in few pixels, between those of the classes, come from smoothed borders (antialiasing, or resizing "
    "with interpolation). Regenerate the label maps without smoothing, or resize them with nearest neighbour; do not "
    "name these values as classes."
)
_DARK = 1 << 14  # a quarter of the range of 16 bits
_NEVER_LISTED = 20  # classes named in one line


@dataclass
class Finding:
    """One result of a scan.

    severity: "error" when training would fail or learn nothing, "warning" when it would suffer, "note" otherwise.
    kind: one word, for JSON. text: the message. files: the files concerned. advice: how to mend them.
    """

    severity: str
    kind: str
    text: str
    files: list[str] = field(default_factory=list)
    advice: str = ""


def suggested_description(scans: Sequence[SplitScan]) -> str:
    """A dataset.yaml that would fit everything that the label maps store; empty when there is none."""
    pixels: Counter[int] = Counter()
    for scan in scans:
        pixels.update({value: count for value, (count, _) in scan.stored().items()})
    colours = {value for scan in scans for value in scan.stored(colours=True)}
    return suggest(pixels.keys() - smoothed_values(pixels), colours)


def judge(name: str, scans: Sequence[SplitScan]) -> list[Finding]:
    """All findings about the splits of a data set, errors first."""
    binary = _about_binary_masks(scans)
    undescribed = all(scan.listing.classes is None for scan in scans) and not binary
    suggested = suggested_description(scans) if undescribed else ""
    findings = _about_folders(scans, suggested) + [finding for scan in scans for finding in _about_files(scan)]
    findings += binary
    for scan in scans:
        findings += _about_values(name, scan) + _about_kinds(scan)
    if not binary:
        findings += _about_ignored(scans)
    findings += _about_classes(scans, binary=bool(binary)) + _about_copies(scans)
    order = (ERROR, WARNING, NOTE)
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def _about_folders(scans: Sequence[SplitScan], suggested: str) -> list[Finding]:
    """The problems of the listings; a problem of all splits (a missing description) once."""
    findings, said = [], set()
    for scan in scans:
        listing, layout = scan.listing, scan.listing.layout
        lonely = [str(path) for path in (*listing.lonely_images, *listing.lonely_labels)]
        for problem in listing.problems:
            if problem in said:
                continue
            said.add(problem)
            about_pairs = any(part in problem for part in ("no such folder", "without a", "is empty"))
            files = lonely if "without a" in problem else []
            advice = layout if about_pairs else ""
            if "has to name the classes" in problem and suggested:
                advice = f"This dataset.yaml would fit the label maps; --write-yaml FILE writes it:\n\n{suggested}"
            findings.append(Finding(ERROR, "folders", problem, files, advice))
            layout = "" if about_pairs else layout  # once for each split is enough
        if listing.advice:
            findings.append(Finding(NOTE, "folders", f"{scan.split}: a hint", [], "\n".join(listing.advice)))
    return findings


def _about_ignored(scans: Sequence[SplitScan]) -> list[Finding]:
    findings = []
    for scan in scans:
        labelled = [(pair, pair.classes) for pair in scan.pairs if pair.classes is not None]
        empty = [pair for pair, pixels in labelled if not pixels[:IGNORE_LABEL].any()]
        if labelled and len(empty) == len(labelled):
            stored = ", ".join(show_value(value) for value in list(scan.stored())[:10])
            text = f"{scan.split}: every pixel of every image is ignored"
            advice = f"The label maps store {stored}: are these the right files, and is the table of classes right?"
            findings.append(Finding(ERROR, "ignored", text, [], advice))
        elif empty:
            text = f"{scan.split}: images without a single labelled pixel: {len(empty)}"
            files = [str(pair.item.labels[0]) for pair in empty]
            remedy = "lower the thresholds" if scan.split == AUTOMATIC else "leave them out"
            findings.append(Finding(WARNING, "ignored", text, files, f"Nothing is learnt from them: {remedy}."))
    return findings


def _about_files(scan: SplitScan) -> list[Finding]:
    advice = {
        "image": (
            "images that cannot be read: {}",
            "Copy the files again, or leave them and their labels out.",
        ),
        "label": ("label maps that cannot be read: {}", "Copy the files again, or regenerate the label maps."),
        "format": (
            "files of a kind that is not read: {}",
            "The files are whole; convert them as each line says.",
        ),
        "lossy": (
            "label maps as JPEG or WebP, which alter labels at class borders: {}",
            "Regenerate the label maps and save them as PNG; converting these files does not restore the labels.",
        ),
        "colours": (
            "label maps in colours, where class numbers are expected: {}",
            "Store class numbers (8-bit greyscale or palette PNG). In a folder of your own, colours may stand for "
            "classes: masks: colours in dataset.yaml.",
        ),
        "sizes": (
            "label maps of another size than their image: {}",
            "Find the label map of that image, or resize it with nearest neighbour (no interpolation). Where the lines "
            "name an EXIF orientation, turn the pixels of the image and remove the tag (`mogrify -auto-orient`).",
        ),
    }
    findings = []
    for kind, (text, what_to_do) in advice.items():
        found = files_with(scan.pairs, kind)
        if found:
            text = f"{scan.split}: {text.format(len(found))}"
            findings.append(Finding(ERROR, kind, text, [line for _, line in found], what_to_do))
    return findings


def _about_values(name: str, scan: SplitScan) -> list[Finding]:
    findings = []
    colours = scan.stored(colours=True)
    table = scan.listing.labels.table if scan.listing.labels is not None else None
    found = files_with(scan.pairs, "values")
    if found and table is not None:
        shown = [show_value(int(value), colours=table.colours) for value in scan.wrong_values]
        some = ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")
        text = f"{scan.split}: label maps with values that are no class: {len(found)}; the values are {some}"
        findings.append(Finding(ERROR, "values", text, [line for _, line in found], _advise_on_values(name, scan)))
    if table is None and colours:
        many = "Too many colours for classes: are these the label maps?" if len(colours) > MANY_COLOURS else ""
        findings.append(Finding(NOTE, "colours", f"{scan.split}: label maps in colours", [], many))
    smoothed = smoothed_values({value: count for value, (count, _) in scan.stored().items()})
    if table is None and smoothed:
        findings.append(
            Finding(ERROR, "values", f"{scan.split}: {len(smoothed)} stored values in few pixels", [], SMOOTHED)
        )
    return findings


def _advise_on_values(name: str, scan: SplitScan) -> str:
    assert scan.listing.labels is not None  # only a table tells values that are no class
    table, wrong = scan.listing.labels.table, set(scan.wrong_values.tolist())
    stored = scan.stored(colours=table.colours)
    expected = f"Expected {table.expected}. "
    total = sum(count for count, _ in stored.values())
    share = sum(stored[value][0] for value in wrong if value in stored) / max(total, 1)
    classes = [value for value in stored if value not in wrong]
    between = table.colours or (bool(classes) and all(min(classes) < value < max(classes) for value in wrong))
    if len(wrong) >= 8 and share <= 0.2 and between:
        return f"{expected}{SMOOTHED}"
    if table.colours:
        return f"{expected}Add the colours to ids or to ignore in dataset.yaml."
    if wrong == {255} and set(stored) <= {0, 255}:
        return f"{expected}These are binary masks; with --data folder, say so in dataset.yaml:\n{BINARY.rstrip()}"
    if min(wrong) >= 1000:
        return f"{expected}Values like id * 1000 + number are instance ids: take the files of class ids instead."
    if name != "folder":
        return f"{expected}Are these the label maps of {name}? Others are read with --data folder and a dataset.yaml."
    count = scan.listing.classes.num_classes if scan.listing.classes is not None else 0
    if wrong == {count} and 0 not in stored:
        return f"{expected}The values count from 1, it seems: write names: {{1: ..., 2: ...}} in dataset.yaml."
    return f"{expected}Add the values to names, ids or ignore in dataset.yaml."


def _about_binary_masks(scans: Sequence[SplitScan]) -> list[Finding]:
    """Masks of 0 and 255 without a table of classes, or with one that ignores 255."""
    values = {value for scan in scans for value in scan.stored()}
    tables = [scan.listing.labels.table for scan in scans if scan.listing.labels is not None]
    if values != {0, 255} or any(table.entries[255] != IGNORE_LABEL for table in tables):
        return []
    text = "all label maps hold 0 and 255 alone: binary masks, not class numbers"
    if tables:
        text += "; 255 is ignored, and one class alone teaches nothing"
    return [Finding(ERROR, "binary", text, [], f"Say so in dataset.yaml:\n{BINARY.rstrip()}")]


def _about_kinds(scan: SplitScan) -> list[Finding]:
    """Kinds of files that other programs read differently, and how they are read here."""
    images = [pair.image for pair in scan.pairs if pair.image is not None]
    # Other findings are about label maps with errors, and the channels of label maps in colours are their values.
    labels = [pair.label for pair in scan.pairs if pair.label is not None and not pair.errors and not pair.colours]
    notes = (
        (
            "palette",
            "label maps with a palette, of which the indices are read",
            [header for header in labels if header.palette and header.format == "PNG"],
        ),
        (
            "depth",
            "label maps of 16 bits, whose values are read as they are",
            [header for header in labels if header.depth == 16],
        ),
        (
            "channels",
            "label maps with several equal channels, of which one is read (alpha is not)",
            [header for header in labels if header.channels > 1],
        ),
        ("depth", "images of 16 bits, reduced to 8", [header for header in images if header.depth == 16]),
        ("alpha", "images with alpha, which is left out", [header for header in images if header.alpha]),
        ("cmyk", "images in CMYK, which are converted to RGB", [header for header in images if header.cmyk]),
        (
            "bands",
            "images with a fourth band, which is left out",
            [header for header in images if header.channels == 4 and not header.alpha and not header.cmyk],
        ),
    )
    found = [Finding(NOTE, kind, f"{scan.split}: {text}: {len(found)}") for kind, text, found in notes if found]
    return found + _about_dark_images(scan) + _about_orientation(scan)


def _about_dark_images(scan: SplitScan) -> list[Finding]:
    """Images that store fewer bits in 16, such as 12: taken for 16 bits they are almost black."""
    largest = max((pair.largest for pair in scan.pairs if pair.largest is not None), default=0)
    if not 0 < largest < _DARK or scan.listing.white != WHITE:
        return []
    white = (1 << largest.bit_length()) - 1
    text = (
        f"{scan.split}: images of 16 bits whose largest value is {largest} of {WHITE}: they are read almost black, "
        f"0 to {largest * 255 // WHITE} of 255"
    )
    advice = (
        f"Where they hold {largest.bit_length()} bits, write white: {white} in dataset.yaml (--data folder), or save "
        "them with 8 bits."
    )
    files = [str(pair.item.image) for pair in scan.pairs if pair.largest is not None]
    return [Finding(WARNING, "dark", text, files, advice)]


def _about_orientation(scan: SplitScan) -> list[Finding]:
    turned = [pair for pair in scan.pairs if pair.image is not None and pair.image.orientation != 1]
    if not turned:
        return []
    tags = Counter(pair.image.orientation for pair in turned if pair.image is not None)
    shown = ", ".join(f"orientation {tag} in {count}" for tag, count in sorted(tags.items()))
    text = (
        f"{scan.split}: images whose EXIF tag turns them in viewers: {len(turned)} ({shown}); the tag is not followed, "
        "pixels are read as they are stored"
    )
    advice = (
        "Label maps that were drawn on the stored pixels fit. For label maps that were drawn on the turned picture, "
        "turn the pixels of the images and remove the tag (`mogrify -auto-orient`)."
    )
    return [Finding(WARNING, "orientation", text, [str(pair.item.image) for pair in turned], advice)]


def _about_classes(scans: Sequence[SplitScan], *, binary: bool) -> list[Finding]:
    known = [scan for scan in scans if scan.listing.classes is not None and scan.classes.any()]
    classes = known[0].listing.classes if known else None
    if classes is None:
        return []
    names = classes.names
    present = {scan.split: scan.classes[: len(names)] > 0 for scan in known}
    occurs = np.any(list(present.values()), axis=0)
    findings = []
    if occurs.any() and not binary:
        text, where = nothing_to_learn(classes, occurs), ""
        if not text and "train" in present and present["train"].any():
            text, where = nothing_to_learn(classes, present["train"]), "train: "
        if text:
            advice = "" if len(names) == 1 else "Are the stored values those of the class table?"
            findings.append(Finding(ERROR, "classes", where + text, [], advice))
    never = np.flatnonzero(~occurs)
    if len(never):
        text = f"classes that never occur ({len(never)} of {len(names)}): {_list(names, never)}"
        advice = (
            "Their IoU has no value, and the mean leaves them out, until a pixel is predicted as one of them. "
            "Then their IoU is 0."
        )
        findings.append(Finding(WARNING, "classes", text, [], advice))
    train = present.get("train")
    if train is not None and AUTOMATIC in present:  # training takes both
        train = train | present[AUTOMATIC]
    for split, there in present.items():
        if train is not None and (there & ~train).any():
            missing = np.flatnonzero(there & ~train)
            text = f"classes in {split}, but not in train: {_list(names, missing)}"
            findings.append(
                Finding(
                    WARNING,
                    "classes",
                    text,
                    [],
                    "They cannot be learnt and score 0: divide the images again.",
                )
            )
    return findings


def _about_copies(scans: Sequence[SplitScan]) -> list[Finding]:
    first: dict[bytes, tuple[str, Path]] = {}
    within, across = [], []
    for scan in scans:
        for pair in scan.pairs:
            here = (scan.split, pair.item.image)
            split, path = first.setdefault(pair.digest, here)
            # In a fold with all images in both splits the files themselves are the same: a finding as well.
            if pair.digest and (split, path) != here:
                (within if split == scan.split else across).append(f"{pair.item.image} is {path}")
    findings = []
    if across:
        text = f"images in two splits: {len(across)}"
        advice = "Scores on images that were trained on mean nothing: divide the images into splits again."
        findings.append(Finding(WARNING, "copies", text, across, advice))
    if within:
        text = f"images that are copies of another in the same split: {len(within)}"
        advice = "Remove the copies, unless they are to count more than others."
        findings.append(Finding(WARNING, "copies", text, within, advice))
    return findings


def _list(names: Sequence[str], numbers: np.ndarray) -> str:
    some = ", ".join(names[int(number)] for number in numbers[:_NEVER_LISTED])
    return some + (f" and {len(numbers) - _NEVER_LISTED} more" if len(numbers) > _NEVER_LISTED else "")
