"""The command ``python -m hmsa_ext.data scan``: everything that is wrong with a data set, before training finds it.

    python -m hmsa_ext.data scan --data camvid --root CamVid
    python -m hmsa_ext.data scan --data folder --root MINE --split train --json scan.json

Exit status: 0 when training can begin, 1 when it would fail, 2 for a wrong use of the command.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hmsa_ext.data import by_name
from hmsa_ext.data.scan.findings import judge
from hmsa_ext.data.scan.look import scan_split
from hmsa_ext.data.scan.report import as_json, as_text
from hmsa_ext.data.types import DataError
from hmsa_ext.files import write_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = _parser().parse_args(arguments)
    if options.threads is not None and options.threads < 1:
        return _complain(f"threads: expected at least 1, got {options.threads}")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        return _complain(f"json: no folder {options.json.parent}; expected a file in one that exists")
    root = Path(options.root).expanduser()
    chosen = {name: getattr(options, name) for name in by_name.OPTIONS}
    splits = list(dict.fromkeys(options.split or ("train", "val")))
    try:
        listings = [by_name.find(options.data, split, root=root, **chosen) for split in splits]
        scans = [
            scan_split(
                split, listing, decode_images=options.decode_images, threads=options.threads, quiet=options.quiet
            )
            for split, listing in zip(splits, listings, strict=True)
        ]
        findings = judge(options.data, scans)
        print(as_text(options.data, root, scans, findings))
        result = as_json(options.data, root, scans, findings)
        if options.json is not None:
            write_text(options.json, json.dumps(result, indent=2) + "\n")
    except (DataError, OSError) as error:  # of names and options: what is wrong with files is in the findings
        return _complain(error)
    return int(result["would_fail"])


def _complain(error: object) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """The options of :func:`hmsa_ext.data.build` for data sets on disk, with its defaults."""
    add, defaults = parser.add_argument, by_name.OPTIONS
    add("--fold", type=int, default=defaults["fold"], help="fold of cityscapes (0..3) and kitti (0..9) [0]")
    add("--version", choices=("1.2", "2.0"), default=defaults["version"], help="of mapillary [1.2]")
    add("--labels", default=defaults["labels"], help="of cityscapes: fine, coarse or autolabelled [fine]")
    add("--min-probability", type=float, default=defaults["min_probability"], help="of automatic labels [0.5]")
    add("--coarse-classes", type=_numbers, default=defaults["coarse_classes"], metavar="N,N", help="see cityscapes")
    add("--region-of-interest", action="store_true", help="ignore the margins of automatic labels")
    add("--description", type=Path, metavar="YAML", help="of folder [ROOT/dataset.yaml]")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hmsa_ext.data scan",
        description="Look at every file of a data set: pairs, sizes, kinds of files, stored values, classes.",
        epilog="Exit status: 0 when training can begin, 1 when it would fail, 2 for wrong use.",
    )
    add = parser.add_argument
    add("--data", required=True, choices=[name for name in by_name.NAMES if name != "synthetic"], help="data set")
    add("--root", required=True, metavar="PATH", help="its folder")
    add("--split", action="append", metavar="NAME", help="train, val, ...; may be given again [train and val]")
    add_data_options(parser)
    add("--decode-images", action="store_true", help="decode every image (else they are only looked through)")
    add("--json", type=Path, metavar="FILE", help="write everything found to this file")
    add("--threads", type=int, metavar="N", help="[one per core, at most 16]")
    add("--quiet", action="store_true", help="no progress")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, as 14,15,16, got {text!r}") from error
