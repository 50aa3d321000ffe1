"""Where the classes of a data set are: sizes, pixel counts and tile centroids of every label map.

The index is made once by reading every label map, in parallel. It is kept in a cache folder: one compact file per data
set and tile, with size and time of every file that it was made from. Only changed files are read again. The build also
checks the data, and refuses faults that would stop training hours later: label values that are no class, sizes that
differ, files that cannot be read.

The cache folder is ``$HMSA_CACHE``, else ``hmsa_ext`` in ``$XDG_CACHE_HOME`` or ``~/.cache``; it may be deleted at any
time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hmsa_ext import ops
from hmsa_ext.data.check import inspect_item, problem_report
from hmsa_ext.data.progress import reader_threads, report
from hmsa_ext.data.types import ClassTable, DataError, Dataset
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.files import replacing

FORMAT = 1  # of the file; raised whenever its content or the way it is made changes


@dataclass(frozen=True, eq=False)
class ClassIndex:
    """Sizes, pixel counts and centroids of the label maps of a data set of I images and K classes.

    tile: side of the square tiles in pixels; those at the right and bottom edge may be smaller.
    classes: the class table.
    sizes: int64 [I, 2], height and width.
    pixels: int64 [I, K], pixels of each class in each image; the rest of height * width is ignored.
    centroids: int64 [M, 4] = class, image, y, x, sorted by class: for each tile and each class in it, the mean place of
        its pixels, rounded down to a pixel. It need not be a pixel of the class.
    problems: texts by image. Images with problems have size 0 and no pixels.
    """

    tile: int
    classes: ClassTable
    sizes: np.ndarray
    pixels: np.ndarray
    centroids: np.ndarray
    problems: dict[int, list[str]]

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def usable(self) -> np.ndarray:
        """Numbers of the images without problems, int64, ascending."""
        return np.flatnonzero(self.sizes[:, 0] > 0)

    @property
    def frequencies(self) -> np.ndarray:
        """Share of each class among all labelled pixels: float64 [K], sum 1; zeros where nothing is labelled."""
        pixels = self.pixels.sum(0)
        return pixels / max(pixels.sum(), 1)


def joined(first: ClassIndex, second: ClassIndex) -> ClassIndex:
    """The index of two data sets of the same classes and tile, one behind the other."""
    added = second.centroids.copy()
    added[:, 1] += len(first)
    centroids = np.concatenate([first.centroids, added])
    return ClassIndex(
        first.tile,
        first.classes,
        np.concatenate([first.sizes, second.sizes]),
        np.concatenate([first.pixels, second.pixels]),
        np.ascontiguousarray(centroids[np.argsort(centroids[:, 0], kind="stable")]),
        {**first.problems, **{len(first) + number: texts for number, texts in second.problems.items()}},
    )


def build_index(
    dataset: Dataset,
    *,
    tile: int,
    cache: str | Path | None = None,
    skip_damaged: bool = False,
    threads: int | None = None,
    quiet: bool = False,
) -> ClassIndex:
    """The index of a data set, from the cache as far as its files did not change since.

    tile: side of the tiles in pixels (see :func:`hmsa_ext.ops.class_tile_centroids`).
    cache: folder of the cache; None keeps nothing. Data sets without ``files`` (generated ones) are never cached.
        Several processes may ask at once: one builds, the others wait and read.
    skip_damaged: leave images with problems out, with a warning that names them, instead of raising.
    threads: see :func:`hmsa_ext.data.progress.reader_threads`.
    quiet: no progress, no warnings.

    Raises DataError that lists the problems, and for an empty data set; ValueError for a tile below 1.
    """
    if tile < 1:
        raise ArgumentValueError(f"tile: expected at least 1 pixel, got {tile}")
    if len(dataset) == 0:
        raise DataError("the data set is empty: expected at least 1 image")
    builder = _Builder(dataset, tile, reader_threads(threads), quiet)
    files = getattr(dataset, "files", None)
    if cache is None or files is None:
        index = builder.build(_Rows(len(dataset)))
    else:
        stamps = _Stamps.of([files(i) for i in range(len(dataset))])
        index = _build_with_cache(builder, stamps, Path(cache).expanduser(), quiet)
    if index.problems:
        text = problem_report([line for lines in index.problems.values() for line in lines], len(dataset))
        if not skip_damaged or len(index.usable) == 0:
            raise DataError(text)
        if not quiet:
            print(f"left out {len(index.problems)} of {len(dataset)} images: {text}", file=sys.stderr)
    return index


def cache_folder() -> Path:
    """The folder of indices unless another one is given."""
    own = os.environ.get("HMSA_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hmsa_ext"


class _Rows:
    """The known facts of each image; a size of 0 means none."""

    def __init__(self, length: int) -> None:
        self.sizes = np.zeros((length, 2), np.int64)
        self.pixels: list[np.ndarray | None] = [None] * length
        self.centroids: list[np.ndarray | None] = [None] * length

    def missing(self) -> list[int]:
        return [i for i, pixels in enumerate(self.pixels) if pixels is None]


class _Builder:
    """Reads the label maps that a set of rows lacks."""

    def __init__(self, dataset: Dataset, tile: int, threads: int, quiet: bool) -> None:
        self.dataset, self.tile, self.threads, self.quiet = dataset, tile, threads, quiet
        self.classes = dataset.classes

    def build(self, rows: _Rows) -> ClassIndex:
        """Completes the rows and joins them to an index."""
        missing, problems, start = rows.missing(), {}, time.monotonic()
        with ThreadPoolExecutor(self.threads) as pool:
            results = report(pool.map(self.read, missing), len(missing), what="reading label maps", quiet=self.quiet)
            for i, (found, size, pixels, centroids) in zip(missing, results, strict=True):
                if found:
                    problems[i] = found
                else:
                    rows.sizes[i], rows.pixels[i], rows.centroids[i] = size, pixels, centroids
        if missing and not self.quiet:
            print(f"read {len(missing)} label maps in {time.monotonic() - start:.1f} s", file=sys.stderr)
        return self.join(rows, problems)

    def read(self, i: int) -> tuple[list[str], tuple[int, int], np.ndarray, np.ndarray]:
        """Problems of one image, size, pixels [K] and centroids [m, 3] = class, y, x."""
        label, problems = inspect_item(self.dataset, i)
        if label is None:
            return problems, (0, 0), np.empty(0, np.int64), np.empty((0, 3), np.int64)
        counts, centres = ops.class_tile_centroids(torch.from_numpy(label)[None], self.tile, self.classes.num_classes)
        counts, centres = counts.numpy()[0], centres.numpy()[0]
        row, column, number = np.nonzero(counts)
        place = centres[row, column, number].astype(np.int64)  # rounded down: inside the tile, as means are
        return problems, label.shape, counts.sum((0, 1)), np.column_stack([number, place])

    def join(self, rows: _Rows, problems: dict[int, list[str]]) -> ClassIndex:
        nothing = np.zeros(self.classes.num_classes, np.int64)
        pixels = np.stack([nothing if row is None else row for row in rows.pixels])
        parts = [
            np.column_stack([part[:, 0], np.full(len(part), i), part[:, 1:]])
            for i, part in enumerate(rows.centroids)
            if part is not None
        ]
        centroids = np.concatenate([*parts, np.empty((0, 4), np.int64)])
        centroids = np.ascontiguousarray(centroids[np.argsort(centroids[:, 0], kind="stable")])
        return ClassIndex(self.tile, self.classes, rows.sizes, pixels, centroids, problems)


@dataclass(frozen=True, eq=False)
class _Stamps:
    """The files behind each image, and size and time of each: int64 [I, F, 2], -1 for a file that is not there."""

    names: list[str]  # one line per image
    values: np.ndarray

    @staticmethod
    def of(files: Sequence[Sequence[Path]]) -> _Stamps:
        most = max(len(paths) for paths in files)
        values = np.full((len(files), most, 2), -1, np.int64)
        for i, paths in enumerate(files):
            for k, path in enumerate(paths):
                with contextlib.suppress(OSError):
                    found = path.stat()
                    values[i, k] = found.st_size, found.st_mtime_ns
        return _Stamps(["\t".join(str(path.absolute()) for path in paths) for paths in files], values)


def _build_with_cache(builder: _Builder, stamps: _Stamps, cache: Path, quiet: bool) -> ClassIndex:
    identity = "\n".join(
        [f"format {FORMAT}, tile {builder.tile}", getattr(builder.dataset, "identity", ""), *builder.classes.names]
    )
    key = hashlib.blake2b(
        "\n".join([identity, *stamps.names]).encode(errors="surrogateescape"), digest_size=12
    ).hexdigest()
    path = cache / f"{key}.index.npz"
    rows, trouble = _Rows(len(stamps.names)), None
    with contextlib.ExitStack() as stack:
        # The cache is optional; without it the index is rebuilt.
        try:
            cache.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(path.with_suffix(".lock")))
            rows = _load(path, stamps, builder)
        except OSError as error:
            trouble = error
        complete = not rows.missing()
        index = builder.build(rows)
        if not complete and trouble is None:
            try:
                _store(path, stamps, rows)
            except OSError as error:
                trouble = error
    if trouble is not None and not quiet:
        print(f"the index of the label maps cannot be kept in {cache}: {trouble}", file=sys.stderr)
    return index


def _load(path: Path, stamps: _Stamps, builder: _Builder) -> _Rows:
    """The rows in the file whose files are as they were; none when there is no such file or it is not whole."""
    length = len(stamps.names)
    rows = _Rows(length)
    try:
        with np.load(path, allow_pickle=False) as content:
            stored, sizes = content["stamps"], content["sizes"]
            pixels, centroids, ends = content["pixels"], content["centroids"], content["ends"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return rows
    fits = stored.shape == stamps.values.shape and sizes.shape == (length, 2) and ends.shape == (length,)
    if not fits or pixels.shape != (length, builder.classes.num_classes) or centroids.shape != (ends[-1], 3):
        return rows
    for i in np.flatnonzero((stored == stamps.values).all((1, 2)) & (sizes[:, 0] > 0)):
        rows.sizes[i], rows.pixels[i] = sizes[i], pixels[i]
        rows.centroids[i] = centroids[ends[i - 1] if i else 0 : ends[i]].astype(np.int64)
    return rows


def _store(path: Path, stamps: _Stamps, rows: _Rows) -> None:
    empty = np.empty((0, 3), np.int64)
    parts = [empty if part is None else part for part in rows.centroids]
    width = next((len(row) for row in rows.pixels if row is not None), 0)
    if width == 0:
        return  # nothing could be read
    with replacing(path) as file:
        np.savez_compressed(
            file,
            stamps=stamps.values,
            sizes=rows.sizes,
            pixels=np.stack([np.zeros(width, np.int64) if row is None else row for row in rows.pixels]),
            centroids=np.concatenate(parts).astype(np.int32),
            ends=np.cumsum([len(part) for part in parts]),
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time is inside, of all that see the file. On file systems without locks several may be: files
    are replaced whole, so that work is done twice and nothing breaks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with path.open("w") as file:
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file releases the lock
