"""Everything that is wrong with a data set, before training finds it: pairs, sizes, kinds of files, values, classes.

    hmsa data scan --data camvid --root CamVid
    hmsa data scan --data folder --root MINE --write-yaml MINE/dataset.yaml
    hmsa data scan --data folder --root MINE --split train --json scan.json
    hmsa data scan --data folder --root MINE --auto-labels AUTO           # the automatic labels, too

Exit status: 0 when training can begin, 1 when it would fail, 2 for a wrong use of the command.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from hmsa_ext import command_line
from hmsa_ext.data.by_name import NAMES, source_type
from hmsa_ext.data.commands import flags_of_others, older_version, required_data
from hmsa_ext.data.labelled_files import Listing
from hmsa_ext.data.scan.findings import AUTOMATIC, judge, suggested_description
from hmsa_ext.data.scan.look import scan_split
from hmsa_ext.data.scan.report import as_json, as_text
from hmsa_ext.data.settings import DataSettings
from hmsa_ext.data.types import DataError
from hmsa_ext.files import Output
from hmsa_ext.parts import object_name
from hmsa_ext.settings import POSITIVE, Metavar, Names, SettingError, require, validate

PROG = "hmsa data scan"


@dataclass(frozen=True)
class ScanSettings:
    """The splits to check, and files for the result."""

    data: DataSettings = field(default_factory=lambda: DataSettings.of("folder"))
    split: Names = ("train", "val")
    """Splits of the data set."""
    decode_images: bool = False
    """Decode every image. Without it the files of images are checked, but not decoded."""
    write_yaml: Annotated[str | None, Metavar("FILE")] = None
    """Write a dataset.yaml that fits the label maps to this file, for --data folder."""
    json: Annotated[str | None, Metavar("FILE")] = None
    """Write everything found to this file as JSON; "-" is standard output."""
    threads: Annotated[int | None, POSITIVE] = None
    """Files that are read at a time; default: one per core, at most 16."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        validate(self)
        require("split", self.split, self.split, "at least one split")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return command_line.run(_command, arguments)


def _command(arguments: list[str]) -> int:
    name = required_data(arguments, "scan")
    if not hasattr(source_type(name), "find"):
        on_disk = [other for other in NAMES if hasattr(source_type(other), "find")]
        raise SettingError("data", name, f"a data set on disk: one of {', '.join(on_disk)}")
    defaults = ScanSettings(DataSettings.of(name))
    description = (__doc__ or "").rstrip()
    older = {"version": older_version}
    chosen = command_line.parse(
        defaults, arguments, prog=PROG, description=description, older=older, elsewhere=flags_of_others(name)
    )
    return scan(chosen)


def scan(chosen: ScanSettings) -> int:
    """Checks the files and prints the result; returns 1 when training would fail, else 0.

    Raises DataError for a wrong split or a missing root, and OutputError. Problems of files are in the findings.
    """
    source, name = chosen.data.source, object_name(chosen.data.name)
    file = Output(chosen.json, "json") if chosen.json else None
    description = _new_file(chosen.write_yaml)
    splits = list(dict.fromkeys(chosen.split))
    listings = {split: chosen.data.find(split) for split in splits}
    if chosen.data.auto_labels is not None:
        listings[AUTOMATIC] = _automatic(chosen.data, listings[splits[0]])
    scans = [
        scan_split(split, listing, decode_images=chosen.decode_images, threads=chosen.threads, quiet=chosen.quiet)
        for split, listing in listings.items()
    ]
    findings = judge(name, scans)
    result = as_json(name, source.root, scans, findings)
    say = sys.stderr if chosen.json == "-" else sys.stdout
    print(as_text(name, source.root, scans, findings), file=say)
    if file is not None:
        file.write(json.dumps(result, indent=2) + "\n")
    if description is not None:
        suggested = suggested_description(scans)
        if not suggested:
            raise DataError("write_yaml: the label maps cannot be read, or store too many values to describe")
        description.write(suggested)
        print(f"wrote {chosen.write_yaml}: give the classes their names there", file=say)
    return int(result["would_fail"])


def _automatic(chosen: DataSettings, listing: Listing) -> Listing:
    """The images with automatic labels, for the classes of another listing. Raises DataError."""
    if listing.classes is None:
        listing.dataset()  # raises with what is wrong with the classes
    assert chosen.auto_labels is not None
    assert listing.classes is not None
    found = chosen.open_automatic(listing.classes, None if listing.labels is None else listing.labels.table)
    return Listing(
        Path(chosen.auto_labels), "", items=found.items, classes=found.classes, labels=found.labels, white=found.white
    )  # fmt: skip


def _new_file(name: str | None) -> Output | None:
    """A file to write that holds nothing yet: names that someone has put into a description are not replaced."""
    if name is None:
        return None
    require("write_yaml", name, not Path(name).expanduser().is_file(), "a file that does not exist yet")
    return Output(name, "write_yaml")
