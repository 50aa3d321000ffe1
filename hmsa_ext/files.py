"""Writing files so that a crash never leaves half of one, and so that no work is lost because a file cannot be written.

A command takes the name of a file to write as an :class:`Output`, which is checked before the work begins.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hmsa_ext.errors import HmsaError


class OutputError(HmsaError, OSError):
    """A file or folder that cannot be written; the message names the option and the path."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to; it becomes ``path`` when the block ends well, and leaves the old one as it was if not.

    The content goes to a temporary name in the same folder, to the disk (fsync), and only then gets its name. A link
    stays a link: the file that it points to is replaced.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the rename itself must reach the disk too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Replaces ``path`` by a file of this text."""
    with replacing(path) as file:
        file.write(text.encode())


class Output:
    """A file that a command writes when its work is done.

    ``-`` is standard output. What exists and is no regular file (a pipe, a terminal, ``/dev/null``) is written as it
    is; a link is followed; any other file is replaced whole.

    Args:
        name: the file, as the user gave it.
        option: the option that it came with, for error messages.
        parents: make the folders that it lies in.

    Raises :class:`OutputError`, before the work, where such a file could not be written.
    """

    def __init__(self, name: str | os.PathLike[str], option: str, *, parents: bool = False) -> None:
        self.name, self.option = os.fspath(name), option
        self.path = Path(self.name).expanduser()
        if self.name == "-":
            return
        if self.path.is_dir():
            raise OutputError(f"{option}: {self.name} is a folder; expected a file")
        if self._is_special():
            if not os.access(self.path, os.W_OK):
                raise OutputError(f"{option}: {self.name} cannot be written")
            return
        folder = self.path.resolve().parent
        if parents:
            writable_folder(folder, option)
        if not folder.is_dir():
            raise OutputError(f"{option}: no folder {self.path.parent}; expected a file in one that exists")
        _try_writing(folder, option, self.name)

    def write(self, content: bytes | str) -> None:
        """Writes the file. Raises :class:`OutputError`."""
        data = content.encode() if isinstance(content, str) else content
        try:
            if self.name == "-":
                sys.stdout.flush()
                sys.stdout.buffer.write(data)
                sys.stdout.flush()
            elif self._is_special():
                with self.path.open("wb") as file:
                    file.write(data)
            else:
                with replacing(self.path) as file:
                    file.write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"{self.option}: {self.name} cannot be written: {error.strerror or error}") from error

    def _is_special(self) -> bool:
        return self.path.exists() and not self.path.is_file()


def writable_folder(name: str | os.PathLike[str], option: str) -> Path:
    """The folder, made if it is not there, after a file was written in it and removed. Raises :class:`OutputError`."""
    path = Path(name).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise OutputError(f"{option}: {name} is a file, or lies in one; expected a folder") from None
    except OSError as error:
        raise OutputError(f"{option}: the folder {name} cannot be made: {error.strerror or error}") from error
    _try_writing(path, option, os.fspath(name))
    return path


def _try_writing(folder: Path, option: str, name: str) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"?")
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(
            f"{option}: {name} cannot be written, since no file can be made in {folder}: {reason}"
        ) from error
