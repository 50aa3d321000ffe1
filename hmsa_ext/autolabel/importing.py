"""Takes back what people corrected in the folder that hmsa autolabel export wrote.

    hmsa autolabel import OUT --review FOLDER
    hmsa autolabel import OUT --review FOLDER --annotations corrected.json     # the file has another name
    hmsa autolabel import OUT --review FOLDER --annotations UNPACKED           # CVAT's masks lie elsewhere
    hmsa autolabel import OUT --review FOLDER --confirm                        # every pixel was looked at

A pixel that has another class than the exported one is corrected: training takes the class, whatever the thresholds.
The other pixels stay automatic labels. With --confirm all pixels of the images that came back count as corrected.

Images that did not come back, or came back without any label, are left alone and named. Nothing is written unless
everything can be read. A second import of the same files changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from hmsa_ext import command_line
from hmsa_ext.autolabel.exporting import ReviewedLabels
from hmsa_ext.data.automatic.manifest import read_manifest
from hmsa_ext.data.automatic.review.changes import Change, take_back
from hmsa_ext.data.automatic.review.exchange import read_review
from hmsa_ext.data.automatic.review.export import open_returned
from hmsa_ext.settings import Metavar, validate

PROG = "hmsa autolabel import"
NAMED = 10
"""Images that are named where many did not come back."""


@dataclass(frozen=True)
class Import:
    """What to import."""

    labels: ReviewedLabels = field(default_factory=ReviewedLabels)
    annotations: Annotated[str | None, Metavar("PATH")] = None
    """What the tool wrote, where it is not in the place of what was exported: the JSON file of COCO's format, the
    folder with labelmap.txt of CVAT's."""
    confirm: bool = False
    """The labels of the images that came back are right as a whole: all their pixels count as corrected."""

    def __post_init__(self) -> None:
        validate(self)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return command_line.run(_command, arguments)


def _command(arguments: list[str]) -> int:
    import_review(command_line.parse(Import(), arguments, prog=PROG, description=__doc__ or ""))
    return 0


def import_review(settings: Import) -> list[Change]:
    """Imports as the settings say, and prints what changed. Raises DataError and OutputError."""
    labels, folder = settings.labels.folders("import")
    manifest = read_manifest(labels)
    review = read_review(folder, manifest)
    returned = open_returned(review, Path(settings.annotations).expanduser() if settings.annotations else None)
    changes = take_back(manifest, review, returned, confirm=settings.confirm)
    total: Counter[tuple[int, int]] = Counter()
    for change in changes:
        if change.emptied:
            print(f"{change.place}: came back without any label; left alone")
            continue
        total.update({(old, new): count for old, new, count in change.moves})
        what = f": {change.describe(manifest.classes)}" if change.moves else ""
        also = f"; {change.corrected} count as corrected" if change.corrected != change.pixels else ""
        print(f"{change.place}: {_pixels(change.pixels)} changed{what}{also}")
    back = {change.place for change in changes}
    missing = [place for place in review.images if place not in back]
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        print(f"did not come back, left alone: {', '.join(missing[:NAMED])}{more}")
    moves = tuple((old, new, count) for (old, new), count in total.most_common())
    whole = Change("", moves, sum(change.corrected for change in changes))
    of = f"{sum(change.pixels > 0 for change in changes)} of {len(changes)} images"
    print(
        f"{_pixels(whole.pixels)} changed in {of}{': ' if moves else ''}{whole.describe(manifest.classes)}; "
        f"{whole.corrected} count as corrected"
    )
    return changes


def _pixels(count: int) -> str:
    return f"{count} pixel{'' if count == 1 else 's'}"
