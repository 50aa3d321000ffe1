"""What a command line names, files, folders, patterns, lists, videos and streams, as items of work with their places.

Everything is looked up before any work begins: what is missing, and two sources that would be written to one file, are
errors at once.
"""

from __future__ import annotations

import collections
import glob
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TextIO
from urllib.parse import urlsplit

from hmsa_ext.data.files import IMAGE_SUFFIXES
from hmsa_ext.data.photos import count_pages
from hmsa_ext.data.types import DataError
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.files import OutputError
from hmsa_ext.settings import Rule, Spelling, read_number

# Pictures that are not read, which phones and cameras make. In a folder they are items all the same: reading them fails
# by name, and nobody believes that they were predicted.
FOREIGN_SUFFIXES = (
    ".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2",
)  # fmt: skip
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")

Kind = Literal["photo", "video", "stream"]

_ADDRESS = re.compile(r"(rtsps?|https?)://", re.IGNORECASE)
_CAMERA = re.compile(r"camera:(\d+)")
_PASSWORD = re.compile(r"(?<=://)[^/@]*@")
_MOST_NAMED = 10  # in one message


@dataclass(frozen=True)
class Item:
    """One photo, page, video or stream.

    path: the file; the address of a stream; ``camera:0`` for a camera.
    place: where its results go below the output folder, without an ending: ``cityA/0001``, or ``scan-page-2`` for a
        page of a file with several. Endings are appended to it, not replaced: ``frame_0.5`` is a whole name.
    kind: what it is.
    page: of a TIFF file, from 0.
    """

    path: str
    place: PurePosixPath
    kind: Kind
    page: int = 0

    @property
    def shown(self) -> str:
        """The path as messages show it: an address without its user and password."""
        return without_password(self.path)


def find_sources(names: Sequence[str], *, output: Path, stdin: TextIO | None = None) -> list[Item]:
    """The items that some names stand for, in the order of the names; those of a folder or pattern are sorted.

    A name is one of these:

    - a file: a video by its ending, any other is a photo. Its place is its stem.
    - a folder: all files in it with the ending of a picture or video, also in folders in it, and links are followed.
      Pictures that cannot be read, such as HEIC, are among them where there are others; trying it names them.
      Hidden files and folders are left out. Places are the tree below it.
    - a pattern that the shell did not expand, such as ``"photos/**/*.png"``. Places are the tree below its fixed part.
    - ``@FILE``: a list of names, one a line; blank lines and lines that begin with # are passed over. Relative names
      count from the folder of the list. Places are the tree below the deepest folder that all its entries share.
    - ``-``: the same list on standard input; relative names count from the current folder.
    - ``rtsp://...``, ``http://...`` or ``https://...``: a stream. ``camera:0``: a camera.

    A file that is named several times, also through links, counts once. The output folder is left out of folders and
    patterns, so that a second run does not take up the results of the first.

    output: the folder of the results. stdin: standard input unless given.

    Raises :class:`hmsa_ext.data.DataError` for names that do not exist, for folders, patterns and lists with nothing to
    do, and for two items of one place; :class:`hmsa_ext.files.OutputError` where results would lie among the sources.
    """
    if not names:
        raise ArgumentValueError("sources: got none, expected files, folders, patterns, @LIST, - or addresses")
    search = _Search(os.path.realpath(Path(output).expanduser()))
    entries = [entry for name in names for entry in search.named(name, stdin or sys.stdin)]
    search.refuse_missing()
    by_file = _by_file(item for entry in entries for item in entry.items())
    _refuse_own_files(by_file, search.output)
    items = list(by_file.values())
    _refuse_shared_places(items, Path(search.output))
    return items


def shard(items: list[Item], index: int, count: int) -> list[Item]:
    """Every count-th item from the index-th, from 0: one of ``count`` parts that together are all items."""
    if not 0 <= index < count:
        raise ArgumentValueError(f"index: got {index} of {count}, expected 0 to {count - 1}")
    return items[index::count]


def without_password(path: str) -> str:
    """An address without its user and password, for messages; a path of a file as it is."""
    return _PASSWORD.sub("", path) if _ADDRESS.match(path) else path


def _read_shard(value: Any) -> tuple[int, int]:
    part, parts = (read_number(number, int) for number in (value.split("/") if isinstance(value, str) else value))
    return part, parts


Shard = Annotated[
    tuple[int, int],
    Spelling("K/N", _read_shard, lambda v: f"{v[0]}/{v[1]}"),
    Rule(lambda v: len(v) == 2 and 1 <= v[0] <= v[1], "K/N with K from 1 to N, for example 3/8"),
]
"""(K, N): the K-th of N parts, from 1."""


# ---- from names to files ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """A file or stream. folder: the place is the tree below it; empty for streams."""

    path: str
    folder: str
    kind: Kind

    def items(self) -> list[Item]:
        if self.kind == "stream":
            return [Item(self.path, _place_of_stream(self.path), "stream")]
        place = PurePosixPath(Path(os.path.relpath(self.path, self.folder)).as_posix())
        if place.suffix.lower() not in FOREIGN_SUFFIXES:  # these often lie beside a JPEG of their name
            place = place.with_suffix("")
        pages = _pages(self.path) if self.kind == "photo" else 1
        if pages == 1:
            return [Item(self.path, place, self.kind)]
        return [Item(self.path, place.with_name(f"{place.name}-page-{k + 1}"), "photo", k) for k in range(pages)]


class _Search:
    """Expands names. output: the real path of the output folder. missing: the names that stand for nothing."""

    def __init__(self, output: str) -> None:
        self.output = output
        self.missing: list[str] = []

    def named(self, name: str, stdin: TextIO | None) -> list[_Entry]:
        if name == "-":
            if stdin is None:
                raise DataError("sources: standard input is closed; expected names of files on it, one a line")
            return self._listed(stdin.read(), "standard input", "")
        if name.startswith("@"):
            path = os.path.expanduser(name[1:])
            # Relative names in a pipe, such as <(find .), count from where the command runs.
            return self._listed(_read_list(path), path, os.path.dirname(path) if os.path.isfile(path) else "")
        return self._expanded(name, "", "")

    def refuse_missing(self) -> None:
        if self.missing:
            more = len(self.missing) - _MOST_NAMED
            rest = f", and {more} more" if more > 0 else ""
            raise DataError(f"sources: not found: {', '.join(self.missing[:_MOST_NAMED])}{rest}")

    def _listed(self, text: str, title: str, folder: str) -> list[_Entry]:
        if "\0" in text:
            raise DataError(f"sources: {title} is no list: expected text in UTF-8, one name a line")
        found: list[_Entry] = []
        count = 0
        for number, line in enumerate(text.splitlines(), 1):
            name = line.strip()
            if name and not name.startswith("#"):
                found += self._expanded(name, folder, f" (line {number} of {title})")
                count += 1
        if not count:
            raise DataError(f"sources: {title} names nothing; expected one name a line")
        try:
            common = os.path.commonpath([entry.folder for entry in found if entry.folder])
        except ValueError:  # no files, or files on several drives
            return found
        return [_Entry(entry.path, common if entry.folder else "", entry.kind) for entry in found]

    def _expanded(self, name: str, folder: str, where: str) -> list[_Entry]:
        """The entries of one name. where: the line that it comes from, for messages."""
        if _ADDRESS.match(name) or _CAMERA.fullmatch(name):
            return [_Entry(name, "", "stream")]
        path = os.path.join(folder, os.path.expanduser(name))
        if os.path.isfile(path):
            return [_Entry(path, os.path.dirname(os.path.abspath(path)), _kind(path) or "photo")]
        if os.path.isdir(path):
            return self._walked(path, where)
        if glob.has_magic(name):
            return self._matching(os.path.expanduser(name), folder, where)
        advice = ""
        if name.lower().startswith("camera"):
            advice = " (a camera is camera:0, camera:1, ...)"
        elif os.path.exists(path):
            advice = " (no regular file or folder)"
        self.missing.append(f"{name or repr(name)}{where}{advice}")
        return []

    def _walked(self, folder: str, where: str) -> list[_Entry]:
        self._refuse_output(folder, where)
        return self._wanted(self._files([folder]), os.path.abspath(folder), f"the folder {folder}{where}")

    def _matching(self, pattern: str, folder: str, where: str) -> list[_Entry]:
        fixed = os.path.join(folder, _fixed_part(pattern))
        self._refuse_output(fixed, where)
        names = glob.glob(pattern, root_dir=folder or None, recursive=True)
        matches = [path for path in (os.path.join(folder, name) for name in names) if not self._is_output(path)]
        if not matches:
            self.missing.append(f"{pattern}{where} (a pattern that nothing matches)")
            return []
        folders = [path for path in matches if os.path.isdir(path)]
        files = [path for path in matches if not os.path.isdir(path)] + self._files(folders)
        return self._wanted(files, os.path.abspath(fixed), f"the pattern {pattern}{where}")

    def _refuse_output(self, folder: str, where: str) -> None:
        if os.path.realpath(folder) == self.output:
            raise OutputError(
                f"output: {folder} is the folder of the sources, too{where}; expected another one, so that no "
                f"result replaces a source or becomes one"
            )

    def _files(self, roots: list[str]) -> list[str]:
        """The files in some folders and in the folders in them; hidden ones are left out."""
        found: list[str] = []
        seen: set[str] = set()
        folders = [path for path in roots if not os.path.islink(path)]
        links = [path for path in roots if os.path.islink(path)]
        while folders or links:  # what links lead to may also be there without them, and is then named so
            current = folders.pop() if folders else links.pop()
            real = os.path.realpath(current)
            if real in seen or real == self.output:
                continue
            seen.add(real)
            try:
                with os.scandir(current) as there:
                    visible = [entry for entry in there if not entry.name.startswith(".")]
            except OSError as error:
                raise DataError(f"{current}: the folder cannot be read: {error.strerror or error}") from error
            for entry in visible:
                is_link = entry.is_symlink()
                # A link to itself is neither for os.path; the entry would raise an error.
                if os.path.isdir(entry.path) if is_link else entry.is_dir():
                    (links if is_link else folders).append(entry.path)
                elif (is_link and not os.path.exists(entry.path)) or entry.is_file():
                    found.append(entry.path)  # a link that leads nowhere stays: reading it fails later, by its name
        return found

    def _is_output(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real == self.output or real.startswith(os.path.join(self.output, ""))

    def _wanted(self, files: list[str], folder: str, title: str) -> list[_Entry]:
        """The entries of the files with the ending of a picture or video."""
        found = [_Entry(path, folder, kind) for path in files if (kind := _kind(path)) is not None]
        if found:
            found += [_Entry(path, folder, "photo") for path in files if _suffix(path) in FOREIGN_SUFFIXES]
        else:
            endings = collections.Counter(os.path.splitext(path)[1].lower() or "without an ending" for path in files)
            most = sorted(endings.items(), key=lambda pair: (-pair[1], pair[0]))[:_MOST_NAMED]
            there = ", ".join(f"{count} {ending}" for ending, count in most)
            raise DataError(
                f"sources: no picture or video in {title}; looked for {' '.join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))}, "
                f"found {there or 'no files'} (hidden files and the output folder do not count)"
            )
        return sorted(found, key=lambda entry: Path(entry.path).parts)


def _fixed_part(pattern: str) -> str:
    """The folder above the first part of a pattern that has a wildcard."""
    parts = Path(pattern).parts
    first = next(k for k, part in enumerate(parts) if glob.has_magic(part))
    return os.path.join(*parts[:first]) if first else os.curdir


def _read_list(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            return file.read()
    except OSError as error:
        raise DataError(f"sources: the list {path} cannot be read: {error.strerror or error}") from error


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _kind(path: str) -> Kind | None:
    ending = _suffix(path)
    if ending in VIDEO_SUFFIXES:
        return "video"
    return "photo" if ending in IMAGE_SUFFIXES else None


def _pages(path: str) -> int:
    """How many items a photo is; a file whose header cannot be read is one, and reading it fails by its name."""
    if os.path.splitext(path)[1].lower() not in (".tif", ".tiff"):
        return 1
    try:
        return max(1, count_pages(path))
    except DataError:
        return 1


def _place_of_stream(address: str) -> PurePosixPath:
    if _CAMERA.fullmatch(address):
        return PurePosixPath(address.replace(":", "-"))
    try:
        parts = urlsplit(address)
        host = parts.hostname or "stream"
    except ValueError as error:
        raise DataError(f"sources: {without_password(address)} is no address: {error}") from error
    name = host + os.path.splitext(parts.path.rstrip("/"))[0]
    return PurePosixPath(re.sub(r"[^A-Za-z0-9._-]+", "-", name))


# ---- what must not be -------------------------------------------------------------------------------------------


def _by_file(items: Iterable[Item]) -> dict[tuple[str, int], Item]:
    """The items by the real path of their file and by page; of several, that with fewest links in its path."""
    found: dict[tuple[str, int], tuple[int, Item]] = {}
    folders: dict[str, tuple[str, int]] = {}  # following the links of each whole path anew takes long for many files
    for item in items:
        key, links = item.path, 0
        if item.kind != "stream":
            folder, name = os.path.split(item.path)
            if folder not in folders:
                above = Path(os.path.abspath(folder))
                folders[folder] = os.path.realpath(folder), sum(map(os.path.islink, (above, *above.parents)))
            real, links = folders[folder]
            is_link = os.path.islink(item.path)
            key, links = os.path.realpath(item.path) if is_link else os.path.join(real, name), links + is_link
        best = found.get((key, item.page))
        if best is None or links < best[0]:
            found[key, item.page] = links, item
    return {key: item for key, (_, item) in found.items()}


def _refuse_own_files(by_file: dict[tuple[str, int], Item], output: str) -> None:
    for (path, _), item in by_file.items():
        if item.kind != "stream" and os.path.splitext(path)[0] == os.path.join(output, item.place):
            raise OutputError(
                f"output: the results of {item.path} would lie beside it in {output}, and could replace it; "
                f"expected another folder"
            )


def _refuse_shared_places(items: list[Item], output: Path) -> None:
    exact: dict[str, Item] = {}
    folded: dict[str, Item] = {}
    pairs: list[tuple[Item, Item]] = []
    only_case: list[tuple[Item, Item]] = []
    for item in items:
        place = str(item.place)
        if place in exact:
            pairs.append((exact[place], item))
        elif place.casefold() in folded:
            only_case.append((folded[place.casefold()], item))
        exact.setdefault(place, item)
        folded.setdefault(place.casefold(), item)
    reason = ""
    if not pairs and only_case and not _tells_case_apart(output):
        pairs, reason = only_case, ", since its file system does not tell capital letters from small ones"
    if pairs:
        first, second = pairs[0]
        more = f" ({len(pairs) - 1} more such pairs)" if len(pairs) > 1 else ""
        raise DataError(
            f"sources: the results of {first.shown} and {second.shown} would be the same files, "
            f"{output / second.place}{reason}{more}; rename one of them, or run them into two output folders"
        )


def _tells_case_apart(folder: Path) -> bool:
    """Whether ``a`` and ``A`` are two files in a folder, or in the nearest one above it that exists."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.NamedTemporaryFile(prefix=".hmsa_case_", dir=folder) as file:
            name = Path(file.name)
            return not name.with_name(name.name.upper()).exists()
    except OSError:  # nothing can be written there, which is said elsewhere
        return True
