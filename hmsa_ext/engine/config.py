"""The configuration of a training run: one dataclass, and the command line that is generated from it.

A value comes from, later wins: the default below, the run that ``--resume`` names, the file that ``--config`` names,
the flag. The text under each field is its help on the command line.
"""

import argparse
import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from hmsa_ext import data, models
from hmsa_ext.files import write_text


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the setting, what was got and what was expected."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run. The defaults are the main job: two to six minutes on two CPU cores."""

    data: str = "synthetic"
    """Data set: "synthetic" (generated street scenes), one in its published layout, or "folder": images and masks."""
    root: str | None = None
    """Folder of the data set; not used by "synthetic"."""
    description: str | None = None
    """YAML file with the classes of "folder"; default: dataset.yaml in the root."""
    fold: int = 0
    """Which division into training and validation images: cityscapes 0 to 3 (3: all images in both), kitti."""
    version: str | None = None
    """Labels of mapillary: v1.2 or v2.0; default: what the folder has."""
    size: tuple[int, int] | None = None
    """Image size HxW of "synthetic"; default: the data set's own."""
    length: int | None = None
    """Only so many training images, which make an epoch; default: all."""
    val_length: int | None = None
    """Only so many validation images; default: all."""
    extra: Literal["none", "coarse", "autolabelled"] = "none"
    """Further training images of cityscapes (train_extra), with these labels, for the classes of --extra-classes."""
    extra_classes: tuple[str, ...] = ()
    """Classes whose crops also come from the extra images, separated by commas."""
    min_probability: float = 0.5
    """Pixels of an automatic label below this probability are ignored (in the paper 0.9)."""
    coarse_classes: tuple[str, ...] = ()
    """Classes whose coarsely labelled pixels are added to automatic labels that have the class (truck,bus,train)."""
    region_of_interest: bool = False
    """Ignore the margins of automatic labels: all but rows 15 to 839 and columns 14 to 2029."""
    damaged: Literal["stop", "skip"] = "stop"
    """What a training image that cannot be read does: "stop" the run, or "skip" to another one, with a warning."""
    cache: str | None = None
    """Folder for the index of the label maps, or "none"; default: hmsa_ext in the user's cache folder."""

    sampling: Literal["class_uniform", "rare_class", "uniform"] = "class_uniform"
    """Which crops make an epoch: shared evenly among the classes, by their rarity, or every image once."""
    sampling_share: float = 0.5
    """Part of an epoch that is drawn by class; the rest are images at random."""
    sampling_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    """Factors of single classes, such as Bicyclist:2,Sky:0; 1 for all others."""
    sampling_temperature: float = 0.01
    """Temperature of "rare_class": the smaller, the more the rarest classes get."""
    sampling_tile: int = 0
    """Side in pixels of the tiles whose class centroids crops are drawn around; 0: 1/4 of the crop's smaller side."""
    sampling_epochs: int | None = None
    """Sample by class (and from the extra images) in the first so many epochs only; default: in all."""

    crop: tuple[int, int] = (112, 224)
    """Training crop HxW in pixels."""
    scale_range: tuple[float, float] = (1.0, 2.5)
    """Random zoom of a training image before the crop, smallest,largest."""
    long_edge: int = 0
    """Resize images to this many pixels along their longer side first, also in evaluation; 0: as they are."""
    mirror: bool = True
    """Mirror half of the training crops."""
    colour: float = 0.05
    """Colour jitter of training crops: brightness, contrast, saturation by 1 +- this, hue by +- this many turns."""
    blur: tuple[float, float] = (0.0, 0.0)
    """Sigma of the Gaussian blur of a training crop in pixels, smallest,largest (published: 0.15,1.3); 0 is none."""

    model: str = "hrnet_small_ocr"
    """Network: hrnet_small_ocr, hrnet_w18_ocr, hrnet_w32_ocr or hrnet_w48_ocr."""
    weights: str | None = None
    """Checkpoint to take the initial weights from (also a published one, or a trunk); what did not fit is listed."""
    scales: tuple[float, ...] = (0.5, 1.0)
    """Scales of the images in training, separated by commas."""
    eval_scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Scales of the final evaluation."""
    loss: Literal["ce", "rmi"] = "ce"
    """Main loss: "ce" (cross-entropy) or "rmi" (region mutual information)."""
    aux_weight: float = 0.4
    """Weight of the loss of the auxiliary (OCR region) logits."""
    scale_weight: float = 0.05
    """Weight of the loss of each scale's own logits, which supervises every scale for itself."""
    class_balance: float = 0.25
    """Class weights 1 / frequency ** this in the cross-entropy: 0 none, 1 makes all classes equal; "rmi" has none."""

    batch_size: int = 4
    """Crops per step and per process."""
    epochs: int = 4
    """Passes over the training images."""
    iterations: int | None = None
    """Length of the training in steps instead of epochs."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """Optimizer: "sgd" or "adamw"."""
    lr: float = 0.003
    """Base learning rate, for the batch over all processes together; it is not scaled for you."""
    momentum: float = 0.9
    """Momentum of SGD; beta1 of AdamW."""
    weight_decay: float = 0.01
    """Weight decay, on all parameters as the published recipes have it."""
    poly_exponent: float = 1.0
    """Exponent p of the learning rate's decay (1 - step / steps) ** p, per step."""
    warmup: int = 30
    """Steps of linear warm-up of the learning rate."""
    ema: float = 0.0
    """Decay per step of an exponential moving average of the weights, then used for evaluation; 0 switches it off."""

    seed: int = 0
    """Seed of weights, data and dropout."""
    deterministic: bool = False
    """Ask PyTorch for deterministic GPU kernels (slower). On the CPU a run is repeatable without it."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, ..."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic: float32, bfloat16 (autocast), or auto: bfloat16 on GPUs that are fast in it."""
    channels_last: bool = True
    """Keep images and weights in channels-last order, which convolutions are faster in."""
    workers: int = 0
    """Loader processes per training process; 0 prepares the data in the training process."""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves its own choice."""

    output: str | None = None
    """Run folder; default: runs/DATA-MODEL-TIME."""
    resume: str | None = None
    """Run folder to continue exactly where its last checkpoint stands, with its own settings."""
    eval_every: int = 2
    """Validate every so many epochs (at the training scales) and keep the best; 0: only after the last."""
    checkpoint_seconds: float = 60.0
    """Write the last checkpoint at least this often, also inside an epoch."""
    max_minutes: float = 0.0
    """Stop cleanly after this many minutes of training (resume continues); 0: no limit."""
    log_every: int = 10
    """Steps between two records in metrics.jsonl."""
    pictures: int = 4
    """Validation images to draw at the end."""

    def __post_init__(self) -> None:
        for name, choices in _choices().items():
            _require(name, getattr(self, name), getattr(self, name) in choices, f"one of {', '.join(choices)}")
        for name, (test, expected) in _RULES.items():
            value = getattr(self, name)
            if value is not None:
                _require(name, value, test(value), expected)
        if self.data != "synthetic":
            _require("root", self.root, self.root is not None, f"the folder of the {self.data} data (--root PATH)")
        if self.extra != "none":
            _require("extra", self.extra, self.data == "cityscapes", f"none, since the data is {self.data}")
        _require(
            "extra_classes", self.extra_classes, bool(self.extra_classes) == (self.extra != "none"),
            "the classes that --extra is for" if self.extra != "none" else "none without --extra",
        )  # fmt: skip
        automatic = self.extra == "autolabelled"
        for name in ("coarse_classes", "region_of_interest"):
            value = getattr(self, name)
            _require(name, value, automatic or not value, "nothing without --extra autolabelled")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain YAML types (tuples become lists), for files."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    def save(self, path: Path) -> None:
        """Writes the settings as a YAML file that ``--config`` reads: all but the folder, which belongs to one run."""
        settings = {name: value for name, value in self.to_dict().items() if name not in ("output", "resume")}
        write_text(path, yaml.safe_dump(settings, sort_keys=False))


# What a resumed run may change: nothing of the computation.
FREE_ON_RESUME = (
    *("device", "workers", "threads", "output", "resume", "eval_every", "checkpoint_seconds"),
    *("max_minutes", "log_every", "pictures", "eval_scales", "root", "description", "cache", "weights"),
)


def parse_command_line(arguments: Sequence[str] | None = None, *, prog: str, description: str) -> TrainConfig:
    """Configuration from a command line (``None``: that of this process); exits with a message on a bad one.

    Raises :class:`ConfigError` for values that :class:`TrainConfig` refuses.
    """
    parser = _parser(prog, description)
    given = vars(parser.parse_args(arguments))
    config_file = given.pop("config", None)
    settings: dict[str, Any] = {}
    resume = given.get("resume")
    if resume:
        settings |= read_settings(Path(resume) / "config.yaml", argument="resume")
        settings["output"] = resume
        if "output" in given and Path(given["output"]) != Path(resume):
            raise ConfigError(f"output: got {given['output']} with --resume {resume}, expected no --output")
    changes = (read_settings(Path(config_file), argument="config") if config_file else {}) | given
    if resume:
        _require_same_computation(settings, changes)
    return from_settings(settings | changes)


def from_settings(settings: Mapping[str, Any]) -> TrainConfig:
    """A configuration from plain values (text, YAML); unknown names and values of a wrong type raise."""
    fields = {f.name: f for f in dataclasses.fields(TrainConfig)}
    for name in settings:
        if name not in fields:
            close = difflib.get_close_matches(name, fields, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"{name}: no such setting{hint} (see python -m hmsa_ext.train --help)")
    return TrainConfig(**{name: _convert(name, value) for name, value in settings.items()})


def read_settings(path: Path, *, argument: str) -> dict[str, Any]:
    """The settings in a YAML file; ``argument`` is the flag that named it, for the message."""
    if not path.is_file():
        raise ConfigError(f"{argument}: no file {path}; expected a run's config.yaml or a YAML file of settings")
    try:
        settings = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{argument}: {path} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{argument}: got a {type(settings).__name__} in {path}, expected lines of NAME: VALUE")
    return settings


def parse_scales(value: str | Sequence[float] | float, name: str = "scales") -> tuple[float, ...]:
    """Scales from ``"0.5,1,2"`` or a list: sorted, distinct, positive, 1.0 among them when there are several."""
    scales = _convert_numbers(name, value, float)
    _require(name, scales, _are_scales(scales), _SCALES[1])
    return tuple(sorted(scales))


def field_documentation() -> dict[str, str]:
    """The text under each field of :class:`TrainConfig`, read from the source; empty where there is no source."""
    try:
        source = textwrap.dedent(inspect.getsource(TrainConfig))
    except OSError:
        return {}
    body = ast.parse(source).body[0].body
    texts = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            texts[field.target.id] = text.value.value
    return texts


def _are_scales(s: tuple[float, ...]) -> bool:
    positive = all(math.isfinite(x) and x > 0 for x in s)
    return 1 <= len(s) <= 8 and positive and len(set(s)) == len(s) and (len(s) == 1 or 1.0 in s)


def _are_scales_with_one(s: tuple[float, ...]) -> bool:
    return _are_scales(s) and 1.0 in s


def _is_size(v: tuple[int, int]) -> bool:
    return len(v) == 2 and min(v) > 0


def _is_range(v: tuple[float, float]) -> bool:
    return len(v) == 2 and 0 < v[0] <= v[1] < math.inf


def _is_blur(v: tuple[float, float]) -> bool:
    return len(v) == 2 and 0 <= v[0] <= v[1] <= data.MOST_BLUR


def _are_weights(v: Mapping[str, float]) -> bool:
    return all(0 <= weight < math.inf for weight in v.values())


_SCALES = (_are_scales, "1 to 8 different positive numbers, 1.0 among them when there are several")
_POSITIVE = (lambda v: 0 < v < math.inf, "a number above 0")
_NOT_NEGATIVE = (lambda v: 0 <= v < math.inf, "a number not below 0")
_BELOW_ONE = (lambda v: 0 <= v < 1, "a number from 0 to below 1")
_SHARE = (lambda v: 0 <= v <= 1, "a number from 0 to 1")
_SIZE = (_is_size, "HxW in pixels, for example 128x256")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "data": (lambda v: v in data.NAMES, f"one of {', '.join(data.NAMES)}"),
    "model": (lambda v: v in models.NAMES, f"one of {', '.join(models.NAMES)}"),
    "crop": _SIZE,
    "size": _SIZE,
    "length": _POSITIVE,
    "val_length": _POSITIVE,
    "scale_range": (_is_range, "SMALLEST,LARGEST, both above 0"),
    "colour": (lambda v: 0 <= v <= 0.5, "a number from 0 to 0.5"),
    "blur": (_is_blur, f"SMALLEST,LARGEST from 0 to {data.MOST_BLUR:g}"),
    "fold": (lambda v: 0 <= v <= 9, "a whole number from 0 to 9"),
    "min_probability": _SHARE,
    "sampling_share": _SHARE,
    "sampling_weights": (_are_weights, "NAME:X,NAME:X with numbers not below 0"),
    "sampling_temperature": _POSITIVE,
    "sampling_tile": _NOT_NEGATIVE,
    "sampling_epochs": _NOT_NEGATIVE,
    "long_edge": _NOT_NEGATIVE,
    "scales": (_are_scales_with_one, "up to 8 different positive numbers, 1.0 among them"),
    "eval_scales": _SCALES,
    "aux_weight": _NOT_NEGATIVE,
    "scale_weight": _NOT_NEGATIVE,
    "class_balance": _NOT_NEGATIVE,
    "batch_size": _POSITIVE,
    "epochs": _POSITIVE,
    "iterations": _POSITIVE,
    "lr": _POSITIVE,
    "momentum": _BELOW_ONE,
    "weight_decay": _NOT_NEGATIVE,
    "poly_exponent": _NOT_NEGATIVE,
    "warmup": _NOT_NEGATIVE,
    "ema": _BELOW_ONE,
    "seed": (lambda v: 0 <= v < 2**63, "an integer from 0 to 2**63 - 1"),
    "workers": _NOT_NEGATIVE,
    "threads": _NOT_NEGATIVE,
    "eval_every": _NOT_NEGATIVE,
    "checkpoint_seconds": _NOT_NEGATIVE,
    "max_minutes": _NOT_NEGATIVE,
    "log_every": _POSITIVE,
    "pictures": _NOT_NEGATIVE,
}

_GROUPS = {  # the first field of each group on the help page
    "data": "data",
    "sampling": "sampling",
    "crop": "augmentation",
    "model": "model and loss",
    "batch_size": "optimization",
    "seed": "machine",
    "output": "run",
}


def _metavar(name: str) -> str:
    if name in _choices():
        return "|".join(_choices()[name])
    if name in ("crop", "size"):
        return "HxW"
    if name == "sampling_weights":
        return "NAME:X,..."
    if name in ("extra_classes", "coarse_classes"):
        return "NAME,..."
    kinds = {int: "N", float: "X", str: "TEXT"}
    kind = next(k for k in (typing.get_args(_types()[name]) or (_types()[name],)) if k is not type(None))
    return "X,X" if typing.get_origin(_types()[name]) is tuple else kinds[kind]


def _require(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ConfigError(f"{name}: got {_shown(value)}, expected {expected}")


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else repr(value)


def _require_same_computation(before: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Raises when a resumed run would compute something else than the run it continues."""
    known = [name for name in changes if name in before and name not in FREE_ON_RESUME]
    changed = [name for name in known if _convert(name, changes[name]) != _convert(name, before[name])]
    if changed:
        lines = "\n".join(f"  {n}: got {_shown(changes[n])}, the run has {_shown(before[n])}" for n in changed)
        raise ConfigError(
            f"resume: a run is continued exactly as it was begun, but these settings differ:\n{lines}\n"
            "Leave them out, or begin a new run from the weights with --weights RUN/last.pt."
        )


@functools.cache
def _types() -> dict[str, Any]:
    return typing.get_type_hints(TrainConfig)


@functools.cache
def _choices() -> dict[str, tuple[str, ...]]:
    return {n: typing.get_args(t) for n, t in _types().items() if typing.get_origin(t) is Literal}


def _convert(name: str, value: Any) -> Any:
    """The value of a field from text or from YAML."""
    kind = _types()[name]
    optional = type(None) in typing.get_args(kind)
    if optional:
        if value is None or value == "":
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_origin(kind) is dict:
        return _convert_weights(name, value)
    if typing.get_origin(kind) is tuple:
        number = typing.get_args(kind)[0]
        if number is str:
            return _convert_names(name, value)
        numbers = _convert_numbers(name, value, number)
        if typing.get_args(kind) == (float, float) and len(numbers) == 1:
            return numbers * 2  # one number is both ends of a range
        # Scales are a set: the order in which they are written never matters.
        return tuple(sorted(numbers)) if name.endswith("scales") else numbers
    if kind is bool:
        _require(name, value, isinstance(value, bool), "true or false")
        return value
    if kind in (int, float):
        return _convert_number(name, value, kind)
    _require(name, value, isinstance(value, str), "text")
    return value


def _convert_numbers(name: str, value: Any, number: type) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = value.replace("x", ",").split(",")
    elif isinstance(value, (int, float)):
        value = [value]
    _require(name, value, isinstance(value, (list, tuple)), "numbers separated by commas")
    return tuple(_convert_number(name, v, number) for v in value)


def _convert_names(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    is_list = isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value)
    _require(name, value, is_list, "names separated by commas")
    return tuple(value)


def _convert_weights(name: str, value: Any) -> dict[str, float]:
    expected = "NAME:X,NAME:X"
    if isinstance(value, str):
        try:
            pairs = [part.strip().rpartition(":") for part in value.split(",") if part.strip()]
            if not all(part and colon for part, colon, _ in pairs):
                raise ValueError
            value = {part.strip(): float(number) for part, _, number in pairs}
        except ValueError:
            raise ConfigError(f"{name}: got {value!r}, expected {expected}") from None
    _require(name, value, isinstance(value, Mapping), expected)
    return {str(key): _convert_number(name, number, float) for key, number in value.items()}


def _convert_number(name: str, value: Any, number: type) -> Any:
    expected = "a whole number" if number is int else "a number"
    try:
        if isinstance(value, bool) or (number is int and isinstance(value, float) and not value.is_integer()):
            raise ValueError
        return number(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: got {value!r}, expected {expected}") from None


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    """Flags from the fields. Nothing has a default here, so that what was given can be told from what was not."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help="YAML file of settings")
    documentation, group = field_documentation(), None
    for field in dataclasses.fields(TrainConfig):
        if field.name in _GROUPS:
            group = parser.add_argument_group(_GROUPS[field.name])
        default = None if field.default is dataclasses.MISSING or field.default == () else field.default
        text = documentation.get(field.name, "")
        if default is not None:
            shown = (
                ("x" if field.name == "crop" else ",").join(map(str, default))
                if isinstance(default, tuple)
                else default
            )
            text = f"{text} [{shown}]"
        flag, options = f"--{field.name.replace('_', '-')}", {"default": argparse.SUPPRESS, "help": text}
        if isinstance(default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        else:
            group.add_argument(flag, metavar=_metavar(field.name), **options)
    return parser
