"""Loading weights: published checkpoints, ImageNet trunks, our own files; with a report of every entry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from hmsa_ext.models.weight_files import WeightError, file_of, read_checkpoint

# Wrappers leave these before every name: data parallelism, torch.compile, and the HRNet repository's own trainer.
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.")
# Where a network that came alone (an ImageNet trunk, a network before it was wrapped) sits in our models.
PLACES = ("", "backbone.", "network.")
# Under one of these keys a checkpoint keeps its weights, beside the optimizer and so on. Published files and ours have
# the first, those of many other programs the second.
STATE_KEYS = ("state_dict", "model")
# Under this key our runs keep the moving average of the weights, or None.
AVERAGE_KEY = "average"
NAMES_SHOWN = 8

# The rule of load_weights: shares of parameters (counted in numbers, not in tensors).
OF_MODEL, OF_CHILD, CHILD_OF_MODEL = 0.5, 0.9, 0.1


@dataclass(frozen=True)
class WeightReport:
    """Every entry of model and file, and what :func:`load_weights` did with it; ``str()`` gives a summary."""

    loaded: list[str] = field(default_factory=list)
    """Entries of the model that now hold the file's values."""
    missing: list[str] = field(default_factory=list)
    """Entries of the model that the file does not have; they keep the values they had."""
    unexpected: list[str] = field(default_factory=list)
    """Entries of the file, by the file's own names, that the model does not have."""
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """Entries in both, of another shape (file's, model's); they keep the values they had."""
    source: str = "weights"
    """The file, or "state dict"."""

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
    model: nn.Module,
    path_or_dict: str | Path | Mapping[str, object],
    *,
    strict: bool = False,
    source: str | None = None,
) -> WeightReport:
    """Copies weights from a checkpoint into ``model``, as far as names and shapes agree, and reports the rest.

    The checkpoint may be a bare state dict, or hold one under ``"state_dict"`` (published files and our runs) or
    ``"model"``, with whatever else beside it. Of our runs the moving average of the weights is taken where there is
    one; the report's ``source`` says so. The prefixes that wrappers leave (``module.``, ``model.``, ``_orig_mod.``) are
    taken off where needed. Weights of a trunk alone go to ``backbone``, those of a wrapped network alone to
    ``network``; an ImageNet trunk's classifier is then reported as unexpected. Where the model, its ``backbone`` or its
    ``network`` has a method ``weight_name``, names that the model does not have are looked up by it: ``weight_name``
    takes a name of a file and gives the module's own name of that entry, or None. So files of torchvision's ResNets
    load.

    Weights of another architecture agree in a few names by chance. So at least half of the model's parameters must
    receive values, or nine tenths of the parameters of one top-level child (``backbone``, ``network``, ...) that holds
    at least a tenth of the model's or is its ``backbone``. ``scale_attn``, which is alike in many models, does not
    count. A file for another number of classes, or a trunk alone, is enough.

    Files are read with ``weights_only=True`` on the CPU: nothing in them is executed. The model is changed only when
    nothing raises.

    >>> from hmsa_ext.models import hrnet_small_ocr
    >>> source, target = hrnet_small_ocr(num_classes=8), hrnet_small_ocr(num_classes=11)
    >>> report = load_weights(target, source.state_dict())
    >>> sorted(report.mismatched)[:2]
    ['ocr.aux_head.2.bias', 'ocr.aux_head.2.weight']

    Args:
        model: any module.
        path_or_dict: a file (of PyTorch or safetensors), a run folder (its ``last.pt``), or the content of a file.
        strict: raise unless file and model have exactly the same entries and shapes.
        source: what messages call the content of a file; default: "state dict".

    Returns:
        The names of all entries of file and model, by what became of them.

    Raises:
        WeightError: not a file of weights; weights that cannot be copied; too few parameters that fit; or any deviation
            with ``strict``. Where there is no such file it is a FileNotFoundError too.
    """
    report, found, entries = _match(model, path_or_dict, source)
    parameters = {name: value.numel() for name, value in model.named_parameters()}
    if not any(name in found for name in parameters):
        raise WeightError(_nothing_fits(report, entries, model.state_dict()))
    if strict and not report.complete:
        raise WeightError(f"strict loading failed, nothing was changed\n{report}")
    _require_enough(report, parameters)
    model.load_state_dict(found, strict=False)
    return report


def compare_weights(model: nn.Module, path_or_dict: str | Path | Mapping[str, object]) -> WeightReport:
    """The report that :func:`load_weights` would give; the model stays as it is, however little fits.

    Raises :class:`WeightError` for what is no file of weights.
    """
    return _match(model, path_or_dict, None)[0]


def _match(
    model: nn.Module, path_or_dict: str | Path | Mapping[str, object], source: str | None
) -> tuple[WeightReport, dict[str, Tensor], dict[str, object]]:
    """What fits where: the report, the values by the model's names, and the entries of the file."""
    if isinstance(path_or_dict, Mapping):
        source, content = source or "state dict", path_or_dict
    else:
        path = file_of(path_or_dict)
        source, content = source or str(path), read_checkpoint(path)
    entries, is_average = _state_dict(content, source)
    if is_average:
        source += " (moving average of the weights)"
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    own = {_without_wrappers(name): name for name in state}
    translations = _translations(model)
    shapes = {name: tuple(value.shape) for name, value in state.items()}

    found: dict[str, Tensor] = {}
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    unexpected: list[str] = []
    for name, value in entries.items():
        target = next((own[candidate] for candidate in _candidates(name, translations) if candidate in own), None)
        if target is None or not isinstance(value, Tensor) or target in found or target in mismatched:
            unexpected.append(name)
        elif tuple(value.shape) != shapes[target]:
            mismatched[target] = (tuple(value.shape), shapes[target])
        else:
            _require_copyable(name, value, state[target], source)
            found[target] = value

    missing = [name for name in shapes if name not in found and name not in mismatched]
    report = WeightReport([name for name in shapes if name in found], missing, unexpected, mismatched, source)
    return report, found, entries


def _state_dict(content: Mapping[str, object], source: str) -> tuple[dict[str, object], bool]:
    """The weights by name, and whether they are the moving average of a run."""
    average = content.get(AVERAGE_KEY)
    is_average = isinstance(average, Mapping) and isinstance(content.get(STATE_KEYS[0]), Mapping)
    keys = (AVERAGE_KEY,) if is_average else STATE_KEYS
    weights = next((found for found in map(content.get, keys) if isinstance(found, Mapping)), content)
    if not any(isinstance(value, Tensor) for value in weights.values()):
        raise WeightError(
            f"{source}: no weights in it; expected tensors by name, or such a dictionary under "
            f"{' or '.join(map(repr, STATE_KEYS))}; its keys: {_shortened(weights) or 'none'}"
        )
    return {str(name): value for name, value in weights.items()}, is_average


def _require_copyable(name: str, value: Tensor, own: Tensor, source: str) -> None:
    """Raises where copying would fail, or lose a part of the values, after other entries were copied."""
    for what, mine in (("the file's", value), ("the model's", own)):
        if mine.is_meta:
            raise WeightError(f"{source}: {what} {name} is on the meta device and has no values; nothing was changed")
    if value.layout != own.layout or value.is_quantized != own.is_quantized:
        raise WeightError(f"{source}: {name}: expected {_kind(own)}, got {_kind(value)}; nothing was changed")
    if value.is_complex() and not own.is_complex():
        raise WeightError(f"{source}: {name}: expected real numbers, got {value.dtype}; nothing was changed")


def _kind(value: Tensor) -> str:
    return "a quantized tensor" if value.is_quantized else f"layout {value.layout}"


def _require_enough(report: WeightReport, parameters: Mapping[str, int]) -> None:
    """Raises unless the rule of :func:`load_weights` holds. ``parameters``: how many numbers each of them has."""
    loaded = set(report.loaded)
    total: Counter[str] = Counter()
    filled: Counter[str] = Counter()
    for name, count in parameters.items():
        child = _without_wrappers(name).partition(".")[0]
        if child != "scale_attn":
            total[child] += count
            filled[child] += count if name in loaded else 0
    everything = total.total()
    # A trunk is a network of its own, however small beside its heads: nine tenths of it do not agree by chance.
    large = [child for child in total if child == "backbone" or total[child] >= CHILD_OF_MODEL * everything]
    if filled.total() >= OF_MODEL * everything or any(filled[c] >= OF_CHILD * total[c] for c in large):
        return
    shares = ", ".join(f"{child} {100 * filled[child] / total[child]:.1f} %" for child in large)
    raise WeightError(
        f"{report.source}: the weights are of another network, nothing was changed: they fit "
        f"{100 * filled.total() / everything:.1f} % of the model's parameters ({shares}), expected "
        f"{100 * OF_MODEL:g} % or {100 * OF_CHILD:g} % of one large child or the backbone\n"
        + "\n".join(str(report).splitlines()[1:])
    )


def _translations(model: nn.Module) -> list[tuple[str, Callable[[str], str | None]]]:
    """The methods ``weight_name`` of the model and of its children in PLACES, each with its place."""
    for wrapped in ("module", "_orig_mod"):
        inner = getattr(model, wrapped, None)
        if isinstance(inner, nn.Module):
            return _translations(inner)
    found = []
    for place in PLACES:
        method = getattr(getattr(model, place[:-1], None) if place else model, "weight_name", None)
        if callable(method):
            found.append((place, method))
    return found


def _candidates(name: str, translations: Iterable[tuple[str, Callable[[str], str | None]]]) -> Iterable[str]:
    """Names that an entry of a file may have in the model: first the name itself, then with ever fewer prefixes."""
    while True:
        for place in PLACES:
            yield place + name
        for place, weight_name in translations:
            translated = weight_name(name)
            if translated is not None:
                yield place + translated
        prefix = next((p for p in WRAPPER_PREFIXES if name.startswith(p)), None)
        if prefix is None:
            return
        name = name[len(prefix) :]


def _without_wrappers(name: str) -> str:
    """The name without the prefixes of DistributedDataParallel and torch.compile."""
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
