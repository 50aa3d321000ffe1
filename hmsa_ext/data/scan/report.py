"""A scan as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hmsa_ext.data.label_table import NO_CLASS, show_value
from hmsa_ext.data.scan.findings import AUTOMATIC, ERROR, Finding
from hmsa_ext.data.scan.look import SplitScan
from hmsa_ext.data.types import IGNORE_LABEL
from hmsa_ext.tables import text_table

FILES_SHOWN = 5
ROWS_SHOWN = 40


def as_text(name: str, root: str | Path, scans: Sequence[SplitScan], findings: Sequence[Finding]) -> str:
    """The printed report: files, stored values, classes, and last the findings with advice."""
    lines = [f"{name} in {root}"]
    for scan in scans:
        lines += ["", *_about_files(scan)]
    for colours in (False, True):
        lines += _stored_table(scans, colours=colours)
    lines += _class_table(scans)
    lines += [line for finding in findings for line in ("", *_finding(finding))]
    errors = sum(finding.severity == ERROR for finding in findings)
    verdict = f"{errors} error{'s' * (errors != 1)}: training would fail" if errors else "training can begin"
    return "\n".join([*lines, "", verdict])


def as_json(name: str, root: str | Path, scans: Sequence[SplitScan], findings: Sequence[Finding]) -> dict:
    """The same, complete, for ``json.dump``. Sizes are [height, width], values of colour masks are "#rrggbb"."""
    return {
        "data": name,
        "root": str(root),
        "would_fail": any(finding.severity == ERROR for finding in findings),
        "splits": {scan.split: _split_as_json(scan) for scan in scans},
        "findings": [vars(finding) for finding in findings],
    }


def _split_as_json(scan: SplitScan) -> dict:
    classes, pixels, images = scan.listing.classes, scan.classes, scan.images_with
    return {
        "images": len(scan.pairs),
        "lonely_images": [str(path) for path in scan.listing.lonely_images],
        "lonely_labels": [str(path) for path in scan.listing.lonely_labels],
        "sizes": [{"size": list(size), "images": count} for size, count in scan.sizes().most_common()],
        "image_kinds": dict(scan.kinds("image")),
        "label_kinds": dict(scan.kinds("label")),
        "stored": {
            show_value(value, colours=colours): {"pixels": found[0], "images": found[1]}
            for colours in (False, True)
            for value, found in scan.stored(colours=colours).items()
        },
        "classes": {
            class_name: {"pixels": int(pixels[number]), "images": int(images[number])}
            for number, class_name in enumerate(classes.names if classes is not None else ())
        },
        "ignored": {"pixels": int(pixels[IGNORE_LABEL]), "images": int(images[IGNORE_LABEL])},
    }


def _about_files(scan: SplitScan) -> Iterator[str]:
    listing = scan.listing
    lonely = ""
    if listing.lonely_images or listing.lonely_labels:
        lonely = f", without a partner {len(listing.lonely_images)} images and {len(listing.lonely_labels)} label maps"
    yield f"{scan.split}: {len(scan.pairs)} pairs{lonely}"
    sizes = scan.sizes()
    if sizes:
        ((height, width), count), area = sizes.most_common(1)[0], lambda size: size[0] * size[1]
        text = f"{width}x{height} in {count} images"
        if len(sizes) > 1:
            (low, high), (tall, wide) = min(sizes, key=area), max(sizes, key=area)
            text += f", the most frequent of {len(sizes)}; smallest {high}x{low}, largest {wide}x{tall}"
        yield f"  sizes       {text}"
    for what, title in (("image", "images"), ("label", "label maps")):
        kinds = ", ".join(f"{count} {kind}" for kind, count in scan.kinds(what).most_common())
        if kinds:
            yield f"  {title:<11} {kinds}"


def _stored_table(scans: Sequence[SplitScan], *, colours: bool) -> list[str]:
    stored = {scan.split: scan.stored(colours=colours) for scan in scans}
    values = sorted({value for found in stored.values() for value in found})
    if not values:
        return []
    totals = {split: sum(pixels for pixels, _ in found.values()) for split, found in stored.items()}
    rows = [
        [show_value(value, colours=colours), _meaning(scans, value, colours=colours)]
        + [cell for split, found in stored.items() for cell in _cells(*found.get(value, (0, 0)), totals[split])]
        for value in values[:ROWS_SHOWN]
    ]
    rest = [f"... and {len(values) - ROWS_SHOWN} more values"] if len(values) > ROWS_SHOWN else []
    return ["", *_table(["stored", "class"], scans, rows), *rest]


def _class_table(scans: Sequence[SplitScan]) -> list[str]:
    classes = next((scan.listing.classes for scan in scans if scan.listing.classes is not None), None)
    if classes is None or not any(scan.classes.any() for scan in scans) or _one_to_one(scans):
        return []
    rows = []
    for number, name in [*enumerate(classes.names), (IGNORE_LABEL, "(ignored)")]:
        row = [str(number), name]
        for scan in scans:
            row += _cells(int(scan.classes[number]), int(scan.images_with[number]), int(scan.classes.sum()))
        rows.append(row)
    filtered = any(scan.split == AUTOMATIC for scan in scans)
    # The table above counts all automatic labels: without a word the two columns would contradict each other.
    head = ["", "What counts in training, automatic labels after thresholds:"] if filtered else []
    return [*head, "", *_table(["number", "class"], scans, rows)]


def _one_to_one(scans: Sequence[SplitScan]) -> bool:
    """Whether a table of classes would repeat the table of stored values: each class is one value and occurs."""
    for scan in scans:
        labels, classes = scan.listing.labels, scan.listing.classes
        if labels is None or classes is None or labels is not labels.table:
            return False
        values = list(scan.stored(colours=labels.table.colours))
        numbers = [int(number) for number in labels.table.entries[values] if number < classes.num_classes]
        if sorted(numbers) != list(range(classes.num_classes)):
            return False
    return True


def _meaning(scans: Sequence[SplitScan], value: int, *, colours: bool) -> str:
    for scan in scans:
        labels, classes = scan.listing.labels, scan.listing.classes
        if labels is not None and classes is not None and labels.table.colours == colours:
            number = int(labels.table.entries[value])
            return {NO_CLASS: "no class", IGNORE_LABEL: "ignored"}.get(number) or classes.names[number]
    return ""


def _cells(pixels: int, images: int, total: int) -> list[str]:
    if images == 0:
        return ["-", "-"]
    share = 100 * pixels / max(total, 1)
    return [f"{share:.2f} %" if share >= 0.005 else f"{pixels} px", str(images)]


def _table(titles: list[str], scans: Sequence[SplitScan], rows: list[list[str]]) -> list[str]:
    heads = titles + [title for scan in scans for title in (f"{scan.split} pixels", "images")]
    return text_table(heads, rows, left=(1,)).splitlines()


def _finding(finding: Finding) -> Iterator[str]:
    yield f"{finding.severity}: {finding.text}"
    for file in finding.files[:FILES_SHOWN]:
        yield f"    {file}"
    if len(finding.files) > FILES_SHOWN:
        yield f"    ... and {len(finding.files) - FILES_SHOWN} more"
    for line in finding.advice.splitlines():
        yield f"  {line}"
