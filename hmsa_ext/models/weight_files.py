"""Files of weights: PyTorch archives and safetensors, read without running code from them."""

from __future__ import annotations

import importlib
import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmsa_ext.errors import HmsaError
from hmsa_ext.files import replacing

LAST = "last.pt"
"""The checkpoint that a run folder stands for."""
SAFETENSORS = ".safetensors"
DESCRIPTION = "hmsa_ext"
"""The entry in the metadata of a safetensors file that says, as JSON, what the weights are of."""


class WeightError(HmsaError, ValueError):
    """A file of weights that cannot be used, or not as strictly as was asked."""


class WeightFileNotFoundError(WeightError, FileNotFoundError):
    """There is no such file."""

    def __str__(self) -> str:
        return str(self.args[0])


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint file, or of the last checkpoint of a run folder, on the CPU.

    Only tensors, plain values and NumPy scalars are read; nothing in the file is executed. Of a safetensors file the
    tensors are under ``"state_dict"``, and beside it is what :func:`write_safetensors` was told about them.

    Raises:
        WeightError: the file is no checkpoint, is damaged, or holds something else than a dictionary of such values; a
            safetensors file where the package safetensors is missing. Where there is no such file it is a
            FileNotFoundError too.
    """
    path = file_of(path)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise WeightError(f"{path}: cannot be read: {error.strerror or error}") from error
    _require_content(path, start)
    if path.suffix == SAFETENSORS or _begins_as_safetensors(start):
        return _read_safetensors(path)
    _require_archive(path, start)
    try:
        with torch.serialization.safe_globals(_harmless_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PyTorch warns of is an error below, or no matter
            content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch.load raises almost anything for damaged files
        raise WeightError(f"{path}: {_reason(error, path, start)}") from error
    if not isinstance(content, Mapping):
        raise WeightError(f"{path}: expected a dictionary of weights, got {type(content).__name__}")
    return dict(content)


def write_safetensors(path: Path, state: Mapping[str, Tensor], description: Mapping[str, object]) -> None:
    """Writes tensors of any device and memory format, and what they are of (plain values), as one safetensors file.

    Raises :class:`WeightError` where the package safetensors is missing.
    """
    _require_safetensors(str(path))
    # Tensors that share memory, such as tied weights, are refused by the format: each gets its own.
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    content = importlib.import_module("safetensors.torch").save(copies, {DESCRIPTION: json.dumps(description)})
    with replacing(path) as file:
        file.write(content)


def file_of(path: str | Path) -> Path:
    """The file that a file name or a run folder means."""
    path = Path(path)
    if path.is_dir():
        if not (path / LAST).is_file():
            raise WeightFileNotFoundError(f"weights: no {LAST} in the folder {path}; expected a run folder or a file")
        return path / LAST
    if not path.exists():
        raise WeightFileNotFoundError(f"weights: no such file: {path}")
    return path


_NOT_A_CHECKPOINT = "not a checkpoint that can be read with weights_only=True"


def _require_content(path: Path, start: bytes) -> None:
    """Raises for files that are often found where a checkpoint should be."""
    if not start:
        raise WeightError(f"{path}: not a checkpoint: the file is empty")
    if start.startswith(b"version https://git-lfs"):
        raise WeightError(
            f"{path}: not a checkpoint but a Git LFS pointer to it; fetch the file itself with: git lfs pull"
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise WeightError(
            f"{path}: not a checkpoint but a web page; the download went to a page that asks for something, such as a "
            "login or a confirmation"
        )


def _require_archive(path: Path, start: bytes) -> None:
    # A zip archive (since PyTorch 1.6), a pickle (before) or a tar archive (long before).
    is_archive = start.startswith((b"PK\x03\x04", b"\x80")) or re.match(rb"[\w./-]+\0", start)
    if not is_archive:
        raise WeightError(
            f"{path}: {_NOT_A_CHECKPOINT} (neither an archive nor a pickle: it begins with {start[:16]!r})"
        )


def _begins_as_safetensors(start: bytes) -> bool:
    """Whether a file begins with the length of its header, at most 100 MB by the format, and then with JSON."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= 100_000_000


def _require_safetensors(file: str) -> None:
    try:
        importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise WeightError(f"{file}: safetensors files need the package safetensors: pip install safetensors") from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    _require_safetensors(str(path))
    package = importlib.import_module("safetensors")
    try:
        with package.safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
            text = (file.metadata() or {}).get(DESCRIPTION, "{}")
    except (package.SafetensorError, OSError) as error:
        raise WeightError(
            f"{path}: not a safetensors file, or a damaged one ({error}), at {path.stat().st_size} bytes; copy or "
            "download it again"
        ) from error
    try:
        description = json.loads(text)
    except ValueError:
        description = None
    if not isinstance(description, dict):
        raise WeightError(f"{path}: expected a JSON object under {DESCRIPTION} in its metadata, got {text!r:.60}")
    return description | {"state_dict": tensors}


def _reason(error: Exception, path: Path, start: bytes) -> str:
    """The message for a file that looked like a checkpoint; without PyTorch's advice to load it unsafely."""
    text = str(error)
    refused = re.search(r"GLOBAL ([\w.]+)|Trying to (?:call|instantiate) class ([\w.]+)", text)
    if refused:
        return (
            f"{_NOT_A_CHECKPOINT}: it holds a {refused[1] or refused[2]}, and reading that would run code from the "
            "file. If you trust the file, load it with PyTorch yourself, and save its tensors alone: "
            "torch.save(model.state_dict(), FILE)"
        )
    if "TorchScript" in text:
        return f"{_NOT_A_CHECKPOINT}: it is a TorchScript program; save the state_dict() of torch.jit.load(FILE)"
    if _is_damaged(path) if start.startswith(b"PK") else isinstance(error, EOFError | OSError) or "EOF" in text:
        return f"the file is damaged or cut off, at {path.stat().st_size} bytes; copy or download it again"
    advice = re.search("weights.only", text, re.IGNORECASE)
    return f"{_NOT_A_CHECKPOINT} ({type(error).__name__}{'' if advice else ': ' + ' '.join(text.split())})"


def _is_damaged(archive: Path) -> bool:
    try:
        with zipfile.ZipFile(archive) as content:
            return content.testzip() is not None
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, zlib.error):
        return True


def _harmless_globals() -> list:
    """NumPy scalars: published checkpoints keep their mIoU as one, beside the weights."""
    scalar = np.float64(0).__reduce__()[0]
    return [
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),  # the name that files of NumPy 1 have
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(name)) for name in ("float64", "float32", "int64")),
    ]
