"""Pairs of images and label files, by the parts of their names that are the same."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hmsa_ext.data.labelled_files import Item, Listing

SHOWN = 5


def list_files(
    folder: Path, suffixes: Sequence[str], problems: list[str], *, recursive: bool = False
) -> dict[str, Path]:
    """The files of a folder by their names without suffix.

    suffixes: endings of the names (".png", "_gtFine_labelIds.png"), in capitals or small letters.
    problems: what is wrong is added here: no such folder, two files of one name.
    recursive: also those in folders within; their names then contain the folders ("aachen/aachen_000000_000019").
    """
    if not folder.is_dir():
        problems.append(f"{folder}: no such folder")
        return {}
    found: dict[str, Path] = {}
    for path in _walk(folder) if recursive else sorted(folder.iterdir()):
        suffix = next((suffix for suffix in suffixes if path.name.lower().endswith(suffix.lower())), None)
        # A leading dot is what other systems leave behind when they copy a folder.
        if suffix is None or path.name.startswith("."):
            continue
        name = path.relative_to(folder).as_posix()[: -len(suffix)]
        if name in found:
            problems.append(f"{path.parent}: two files of one name, {found[name].name} and {path.name}")
        else:
            found[name] = path
    return found


def other_files(folder: Path, suffixes: Sequence[str]) -> str:
    """The problem of a folder that holds other files than those with the suffixes, in words; empty for an empty one."""
    kinds = Counter(path.suffix for path in _walk(folder) if not path.name.startswith("."))
    if not kinds:
        return ""
    shown = ", ".join(f"{count} {suffix or 'without an ending'}" for suffix, count in kinds.most_common())
    return f"{folder}: expected files that end with {', '.join(suffixes)}, got others alone: {shown}"


def pair(listing: Listing, where: Path | str, images: Mapping[str, Path], **labels: Mapping[str, Path]) -> None:
    """Puts the pairs into the listing, in the order of their names, and files without a partner into its problems.

    where: the folder that the problems name.
    images, labels: files by name, as ``list_files`` gives them. An item takes one file of each of the labels; the first
        are the label maps, the others accompany them and may be there for more images.
    """
    complete = [name for name in sorted(images) if all(name in files for files in labels.values())]
    listing.items += [Item(name, images[name], tuple(files[name] for files in labels.values())) for name in complete]
    maps = next(iter(labels.values()))
    if not images and not maps:
        if not listing.problems:
            listing.problems.append(f"{where}: the split is empty")
        return
    lines = []
    for what, files in labels.items():
        lonely = [images[name] for name in sorted(images) if name not in files]
        lines += _lonely(lonely, "image", what.replace("_", " "))
        listing.lonely_images += [path for path in lonely if path not in listing.lonely_images]
    listing.lonely_labels += [maps[name] for name in sorted(maps) if name not in images]
    lines += _lonely(listing.lonely_labels, "label", "image")
    if lines:
        listing.problems.append(f"{where}: {'; '.join(lines)}")


def first_folder(*folders: Path) -> Path:
    """The first that exists; the first of all where none does, so that its absence is reported."""
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def shorten_names(listing: Listing) -> None:
    """Names without folders, where they still tell all items apart."""
    short = [item.name.rpartition("/")[2] for item in listing.items]
    if len(set(short)) == len(short):
        listing.items = [replace(item, name=name) for item, name in zip(listing.items, short, strict=True)]


def _walk(folder: Path) -> list[Path]:
    return sorted(Path(parent, name) for parent, _, names in os.walk(folder, followlinks=True) for name in names)


def _lonely(files: list[Path], what: str, partner: str) -> list[str]:
    if not files:
        return []
    some = ", ".join(file.name for file in files[:SHOWN]) + (", ..." if len(files) > SHOWN else "")
    article = "an" if partner == "image" else "a"
    return [f"{len(files)} {what}{'s' * (len(files) > 1)} without {article} {partner}: {some}"]
