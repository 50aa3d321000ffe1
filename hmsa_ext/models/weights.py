"""Loading weights: published checkpoints, ImageNet trunks, our own files; and saying exactly what came of it."""

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

# Wrappers leave these before every name: data parallelism, torch.compile, and the HRNet repository's own trainer.
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.")
# Where a network that came alone (an ImageNet trunk, a network before it was wrapped) sits in our models.
PLACES = ("", "backbone.", "network.")
# Under these keys a checkpoint keeps its weights, beside the optimizer and so on: published files, and ours.
STATE_KEYS = ("state_dict", "model")
NAMES_SHOWN = 8


class WeightError(ValueError):
    """A file of weights that cannot be used, or not as strictly as was asked."""


@dataclass(frozen=True)
class WeightReport:
    """What :func:`load_weights` did, by name. ``str()`` of it is meant for people."""

    loaded: list[str] = field(default_factory=list)
    """Entries of the model that now hold the file's values."""
    missing: list[str] = field(default_factory=list)
    """Entries of the model that the file does not have; they keep the values they had."""
    unexpected: list[str] = field(default_factory=list)
    """Entries of the file, by the file's own names, that the model does not have."""
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """Entries in both, of another shape (file's, model's); they keep the values they had."""
    source: str = "weights"
    """Where they came from."""

    @property
    def complete(self) -> bool:
        """Whether file and model have exactly the same entries."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        lines = [f"{self.source}: loaded {len(self.loaded)} of the model's {total} entries"]
        shapes = [f"{name} (file {list(a)}, model {list(b)})" for name, (a, b) in self.mismatched.items()]
        for title, names in (
            ("missing in the file", self.missing),
            ("unknown to the model", self.unexpected),
            ("of another shape", shapes),
        ):
            if names:
                lines.append(f"  {len(names)} {title}: {_shortened(names)}")
        return "\n".join(lines)


def load_weights(
    model: nn.Module, path_or_dict: str | Path | Mapping[str, object], *, strict: bool = False
) -> WeightReport:
    """Copy weights from a checkpoint into ``model``, as far as names and shapes agree, and report the rest.

    The checkpoint may be a bare state dict, or hold one under ``"state_dict"`` (published files) or ``"model"`` (ours),
    with whatever else beside it. The prefixes that wrappers leave (``module.``, ``model.``, ``_orig_mod.``) are taken
    off where needed. Weights of a trunk alone go to ``backbone``, those of a wrapped network alone to ``network``; an
    ImageNet trunk's classifier is then reported as unexpected. Files are read with ``weights_only=True`` on the CPU:
    nothing in them is executed. The model is changed only when nothing raises.

    >>> from hmsa_ext.models import hrnet_small_ocr
    >>> source, target = hrnet_small_ocr(num_classes=8), hrnet_small_ocr(num_classes=11)
    >>> report = load_weights(target, source.state_dict())
    >>> sorted(report.mismatched)[:2]
    ['ocr.aux_head.2.bias', 'ocr.aux_head.2.weight']

    Args:
        model: any module.
        path_or_dict: file, or what ``torch.load`` gave.
        strict: raise unless file and model have exactly the same entries and shapes.

    Raises:
        FileNotFoundError: no such file.
        WeightError: not a file of weights; not one parameter fits; or any deviation with ``strict``.
    """
    source, content = _read(path_or_dict)
    entries = _state_dict(content, source)
    own = {_without_wrappers(name): name for name in model.state_dict()}
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}

    found: dict[str, Tensor] = {}
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    unexpected: list[str] = []
    for name, value in entries.items():
        target = next((own[candidate] for candidate in _candidates(name) if candidate in own), None)
        if target is None or not isinstance(value, Tensor) or target in found or target in mismatched:
            unexpected.append(name)
        elif tuple(value.shape) != shapes[target]:
            mismatched[target] = (tuple(value.shape), shapes[target])
        else:
            found[target] = value

    missing = [name for name in shapes if name not in found and name not in mismatched]
    report = WeightReport([name for name in shapes if name in found], missing, unexpected, mismatched, source)
    if not any(name in found for name, _ in model.named_parameters()):
        raise WeightError(_nothing_fits(report, entries, shapes))
    if strict and not report.complete:
        raise WeightError(f"strict loading failed, nothing was changed\n{report}")
    model.load_state_dict(found, strict=False)
    return report


def _read(path_or_dict: str | Path | Mapping[str, object]) -> tuple[str, object]:
    if isinstance(path_or_dict, Mapping):
        return "state dict", path_or_dict
    path = Path(path_or_dict)
    if not path.is_file():
        raise FileNotFoundError(f"weights: no such file: {path}")
    try:
        with torch.serialization.safe_globals(_harmless_globals()):
            return str(path), torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise WeightError(
            f"{path}: not a checkpoint that can be read with weights_only=True "
            f"({type(error).__name__}: {reason[0] if reason else 'no reason given'})"
        ) from error


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


def _state_dict(content: object, source: str) -> Mapping[str, object]:
    if not isinstance(content, Mapping):
        raise WeightError(f"{source}: expected a dictionary of weights, got {type(content).__name__}")
    for key in STATE_KEYS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not any(isinstance(value, Tensor) for value in content.values()):
        raise WeightError(
            f"{source}: no weights in it; expected tensors by name, or such a dictionary under "
            f"{' or '.join(map(repr, STATE_KEYS))}; its keys: {_shortened(content) or 'none'}"
        )
    return {str(name): value for name, value in content.items()}


def _candidates(name: str) -> Iterable[str]:
    """Names that an entry of a file may have in the model: as it stands first, then with ever more prefixes gone."""
    while True:
        for place in PLACES:
            yield place + name
        prefix = next((p for p in WRAPPER_PREFIXES if name.startswith(p)), None)
        if prefix is None:
            return
        name = name[len(prefix) :]


def _without_wrappers(name: str) -> str:
    """The name without what DistributedDataParallel and torch.compile put before it, should the model be wrapped."""
    while name.startswith(("module.", "_orig_mod.")):
        name = name.split(".", 1)[1]
    return name


def _nothing_fits(report: WeightReport, entries: Mapping[str, object], shapes: Mapping[str, object]) -> str:
    lines = [
        f"{report.source}: not one parameter fits this model, nothing was changed",
        f"  names in the file: {_shortened(entries)}",
        f"  names in the model: {_shortened(shapes)}",
    ]
    if report.mismatched:
        lines.append(str(report).splitlines()[-1])
    return "\n".join(lines)


def _shortened(names: Iterable[str]) -> str:
    names = list(map(str, names))
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
