"""The judgement of a scan: what would stop training, what would spoil it, and what to do about it, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hmsa_ext.data.label_table import show_value
from hmsa_ext.data.scan.look import SplitScan, files_with
from hmsa_ext.data.suggestion import suggest_for_colours
from hmsa_ext.data.types import IGNORE_LABEL

ERROR, WARNING, NOTE = "error", "warning", "note"
_BINARY = "names: [background, object]\nids: {0: background, 255: object}"
_NEVER_LISTED = 20  # classes named in one line


@dataclass
class Finding:
    """One thing to know.

    severity: "error" when training would fail or learn nothing, "warning" when it would suffer, "note" otherwise.
    kind: one word for programs; text: for people; files: those concerned; advice: what to do.
    """

    severity: str
    kind: str
    text: str
    files: list[str] = field(default_factory=list)
    advice: str = ""


def judge(name: str, scans: Sequence[SplitScan]) -> list[Finding]:
    """All findings about the splits of a data set, errors first."""
    findings = _about_folders(scans) + [finding for scan in scans for finding in _about_files(scan)]
    binary = _about_binary_masks(scans)
    findings += binary
    for scan in scans:
        findings += _about_values(name, scan) + _about_kinds(scan)
    if not binary:
        findings += _about_ignored(scans)
    findings += _about_classes(scans, binary=bool(binary)) + _about_copies(scans)
    order = (ERROR, WARNING, NOTE)
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def _about_folders(scans: Sequence[SplitScan]) -> list[Finding]:
    """What the listings found; what is the same in all splits (a missing description) once."""
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
            findings.append(Finding(ERROR, "folders", problem, files, layout if about_pairs else ""))
            layout = "" if about_pairs else layout  # once for each split is enough
        if listing.advice:
            findings.append(Finding(NOTE, "folders", f"{scan.split}: a hint", [], "\n".join(listing.advice)))
    return findings


def _about_ignored(scans: Sequence[SplitScan]) -> list[Finding]:
    findings = []
    for scan in scans:
        labelled = [pair for pair in scan.pairs if pair.classes is not None]
        empty = [pair for pair in labelled if not pair.classes[:IGNORE_LABEL].any()]
        if labelled and len(empty) == len(labelled):
            stored = ", ".join(show_value(value) for value in list(scan.stored())[:10])
            text = f"{scan.split}: every pixel of every image is ignored"
            advice = f"The label maps store {stored}: are these the right files, and is the table of classes right?"
            findings.append(Finding(ERROR, "ignored", text, [], advice))
        elif empty:
            text = f"{scan.split}: images without a single labelled pixel: {len(empty)}"
            files = [str(pair.item.labels[0]) for pair in empty]
            findings.append(Finding(WARNING, "ignored", text, files, "Nothing is learnt from them: leave them out."))
    return findings


def _about_files(scan: SplitScan) -> list[Finding]:
    advice = {
        "image": (
            "images that cannot be read: {}",
            "Copy the files anew, or leave them and their labels out.",
        ),
        "label": ("label maps that cannot be read: {}", "Copy the files anew, or make the label maps anew."),
        "lossy": (
            "label maps as JPEG or WebP, which changes values: {}",
            "Make the label maps anew and save them as PNG; converting these files does not bring the values back.",
        ),
        "colours": (
            "label maps in colours, where class numbers are expected: {}",
            "Store class numbers (8-bit greyscale or palette PNG). In a folder of your own, colours may stand for "
            "classes: masks: colours in dataset.yaml.",
        ),
        "sizes": (
            "label maps of another size than their image: {}",
            "Find the label map of that image, or resize it with nearest neighbour (no interpolation).",
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
    if found:
        shown = [show_value(int(value), colours=table.colours) for value in scan.wrong_values]
        some = ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")
        text = f"{scan.split}: label maps with values that are no class: {len(found)}; the values are {some}"
        findings.append(Finding(ERROR, "values", text, [line for _, line in found], _advise_on_values(name, scan)))
    if table is None and colours:
        suggested = suggest_for_colours(list(colours)) or "Too many colours for classes: are these the label maps?"
        text = f"{scan.split}: label maps in colours"
        findings.append(Finding(NOTE, "colours", text, [], f"A dataset.yaml that would fit:\n{suggested}"))
    return findings


def _advise_on_values(name: str, scan: SplitScan) -> str:
    table, wrong, stored = scan.listing.labels.table, set(scan.wrong_values.tolist()), scan.stored()
    expected = f"Expected {table.expected}. "
    if table.colours:
        return f"{expected}Add the colours to ids or to ignore in dataset.yaml."
    if wrong == {255} and set(stored) <= {0, 255}:
        return f"{expected}These are binary masks; with --data folder, say so in dataset.yaml:\n{_BINARY}"
    if min(wrong) >= 1000:
        return f"{expected}Values like id * 1000 + number are instance ids: take the files of class ids instead."
    if name != "folder":
        return f"{expected}Are these the label maps of {name}? Others are read with --data folder and a dataset.yaml."
    count = scan.listing.classes.num_classes if scan.listing.classes is not None else 0
    if wrong == {count} and 0 not in stored:
        return f"{expected}The values count from 1, it seems: write names: {{1: ..., 2: ...}} in dataset.yaml."
    return f"{expected}Add the values to names, ids or ignore in dataset.yaml."


def _about_binary_masks(scans: Sequence[SplitScan]) -> list[Finding]:
    """Masks of 0 and 255 where nothing says what 255 is, or where it is ignored, as it usually is."""
    values = {value for scan in scans for value in scan.stored()}
    tables = [scan.listing.labels.table for scan in scans if scan.listing.labels is not None]
    if values != {0, 255} or any(table.entries[255] != IGNORE_LABEL for table in tables):
        return []
    text = "all label maps hold 0 and 255 alone: binary masks, not class numbers"
    if tables:
        text += "; 255 is ignored, so that there is nothing to learn"
    return [Finding(ERROR, "binary", text, [], f"Say so in dataset.yaml:\n{_BINARY}")]


def _about_kinds(scan: SplitScan) -> list[Finding]:
    """Kinds of files that others stumble over, and what is made of them here."""
    images = [pair.image for pair in scan.pairs if pair.image is not None]
    # Of label maps with errors it is said already what is wrong; of those in colours the channels are what counts.
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
        ("alpha", "images with alpha, which is left out", [header for header in images if header.channels in (2, 4)]),
    )
    return [Finding(NOTE, kind, f"{scan.split}: {text}: {len(found)}") for kind, text, found in notes if found]


def _about_classes(scans: Sequence[SplitScan], *, binary: bool) -> list[Finding]:
    known = [scan for scan in scans if scan.listing.classes is not None and scan.classes.any()]
    if not known:
        return []
    names = known[0].listing.classes.names
    present = {scan.split: scan.classes[: len(names)] > 0 for scan in known}
    occurs = np.any(list(present.values()), axis=0)
    findings = []
    if len(names) > 1 and occurs.sum() == 1 and not binary:
        text = f"only one class occurs at all, {names[int(occurs.argmax())]}"
        findings.append(Finding(ERROR, "classes", text, [], "Are the stored values what the class table says?"))
    never = np.flatnonzero(~occurs)
    if len(never):
        text = f"classes that never occur ({len(never)} of {len(names)}): {_list(names, never)}"
        findings.append(Finding(WARNING, "classes", text, [], "Their IoU has no value, and the mean leaves them out."))
    train = present.get("train")
    for split, there in present.items():
        if split != "train" and train is not None and (there & ~train).any():
            missing = np.flatnonzero(there & ~train)
            text = f"classes in {split}, but not in train: {_list(names, missing)}"
            findings.append(Finding(WARNING, "classes", text, [], "They cannot be learnt and score 0: split anew."))
    return findings


def _about_copies(scans: Sequence[SplitScan]) -> list[Finding]:
    first: dict[bytes, tuple[str, Path]] = {}
    within, across = [], []
    for scan in scans:
        for pair in scan.pairs:
            here = (scan.split, pair.item.image)
            split, path = first.setdefault(pair.digest, here)
            # In a fold with everything in both splits the files themselves are the same: that is said as well.
            if pair.digest and (split, path) != here:
                (within if split == scan.split else across).append(f"{pair.item.image} is {path}")
    findings = []
    if across:
        text = f"images in two splits: {len(across)}"
        advice = "Scores on images that were trained on mean nothing: split anew."
        findings.append(Finding(WARNING, "copies", text, across, advice))
    if within:
        text = f"images that are copies of another in the same split: {len(within)}"
        advice = "Remove the copies, unless they are to count more than others."
        findings.append(Finding(WARNING, "copies", text, within, advice))
    return findings


def _list(names: Sequence[str], numbers: np.ndarray) -> str:
    some = ", ".join(names[number] for number in numbers[:_NEVER_LISTED])
    return some + (f" and {len(numbers) - _NEVER_LISTED} more" if len(numbers) > _NEVER_LISTED else "")
