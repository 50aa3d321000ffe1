"""Everything that decides a training run, as nested settings; :mod:`hmsa_ext.settings` says how they work.

Values come from, later wins: the defaults, the recipe of the data set, the run that is resumed, a YAML file, flags.
``crop`` and ``epochs`` that are None follow from the data when the run begins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from hmsa_ext import settings
from hmsa_ext.data import NAMES, Augment, DataError, DataSettings, Sampling, source_type
from hmsa_ext.data.settings import options_of_others, recipe
from hmsa_ext.data.training_set import require_use_of_extra
from hmsa_ext.engine.evaluation import EvaluationSettings
from hmsa_ext.files import write_text
from hmsa_ext.losses import LossSettings
from hmsa_ext.models import FUSIONS, ModelSettings
from hmsa_ext.settings import (
    BELOW_ONE,
    FREE,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    Metavar,
    SettingError,
    UnknownSettingError,
    validate,
)


@dataclass(frozen=True)
class Optimisation:
    """Optimizer, learning rate and length of the training."""

    batch_size: Annotated[int, POSITIVE] = 4
    """Crops per step and per process."""
    epochs: Annotated[int | None, POSITIVE] = None
    """Passes over the training images; follows from their number unless given."""
    iterations: Annotated[int | None, POSITIVE] = None
    """Length of the training in steps, instead of epochs."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """Optimizer."""
    lr: Annotated[float, POSITIVE] = 0.003
    """Base learning rate, for the batch over all processes together. The trainer never scales it."""
    momentum: Annotated[float, BELOW_ONE] = 0.9
    """Momentum of SGD; beta1 of AdamW."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.01
    """Weight decay, on all parameters as the published recipes have it."""
    poly_exponent: Annotated[float, NOT_NEGATIVE] = 1.0
    """Exponent p of the learning rate's decay (1 - step / steps) ** p, per step."""
    warmup: Annotated[int, NOT_NEGATIVE] = 30
    """Steps of linear warm-up of the learning rate."""
    ema: Annotated[float, BELOW_ONE] = 0.0
    """Decay per step of an exponential moving average of the weights, which evaluation then uses; 0: no average."""

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class Machine:
    """Device, arithmetic, processes and threads."""

    device: Annotated[str, FREE] = "auto"
    """Device: auto, cpu, cuda, cuda:1, ..."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic: float32, bfloat16 (autocast), or auto: bfloat16 on GPUs that are fast in it."""
    recompute: Annotated[Literal["none", "modules", "all"], FREE] = field(
        default="none",
        metadata={
            "help": "What backward computes again instead of keeping it: none, modules (of trunk and heads), or all "
            "(also blocks inside of them). Less memory, more time, the same gradients."
        },
    )
    workers: Annotated[int, NOT_NEGATIVE, FREE] = 0
    """Loader processes per training process; 0: the training process loads the data itself."""
    threads: Annotated[int, NOT_NEGATIVE, FREE] = 0
    """CPU threads of PyTorch; 0: PyTorch's own choice."""
    seed: Annotated[int, SEED] = 0
    """Seed of weights, data and dropout."""
    deterministic: bool = False
    """Ask PyTorch for deterministic GPU kernels (slower). On the CPU a run is repeatable without it."""

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class Records:
    """The folder of a run, and how often the run validates and saves."""

    output: Annotated[str | None, FREE, Metavar("FOLDER")] = None
    """Run folder; default: runs/DATA-MODEL-TIME."""
    eval_every: Annotated[int | None, NOT_NEGATIVE, FREE] = None
    """Validate every so many epochs (at the training scales) and keep the best; 0: only after the last one. Default:
    so often that a run has at most 20 validations."""
    checkpoint_seconds: Annotated[float, NOT_NEGATIVE, FREE] = 60.0
    """Write the last checkpoint at least this often, also inside an epoch."""
    max_minutes: Annotated[float, NOT_NEGATIVE, FREE] = 0.0
    """Stop cleanly after this many minutes of training (resuming continues); 0: no limit."""
    log_every: Annotated[int, POSITIVE, FREE] = 10
    """Steps between two records in metrics.jsonl."""

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides a training run."""

    data: DataSettings = field(default_factory=DataSettings)
    sampling: Sampling = field(default_factory=Sampling)
    crops: Augment = field(default_factory=Augment)
    model: ModelSettings = field(default_factory=ModelSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimisation: Optimisation = field(default_factory=Optimisation)
    machine: Machine = field(default_factory=Machine)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    records: Records = field(default_factory=Records)

    def __post_init__(self) -> None:
        require_use_of_extra(self.sampling, self.data.has_extra)
        if self.model.fusion in FUSIONS:  # objects are looked up when they are used
            self.model.eval_scales(self.evaluation.scales)

    @property
    def final_evaluation(self) -> EvaluationSettings:
        """The evaluation at the end, with the scales that it is at.

        Raises :class:`hmsa_ext.settings.SettingError` for scales that the fusion does not take.
        """
        return dataclasses.replace(self.evaluation, scales=self.model.eval_scales(self.evaluation.scales))

    @classmethod
    def of(cls, data: Any) -> TrainSettings:
        """The defaults for a data set (its name, or its settings), with its recipe."""
        chosen = data if isinstance(data, DataSettings) else DataSettings.of(data)
        return settings.replace(cls(data=chosen), recipe(chosen.name))

    @classmethod
    def read(cls, values: Mapping[str, Any], *, data: str | None = None) -> TrainSettings:
        """Settings from plain values by flat name, as :func:`hmsa_ext.settings.to_dict` gives them.

        ``data``: another data set than the one that the values name; its own options are then left out. Options of
        other data sets are passed over where they hold their defaults: older files have them all.

        Raises :class:`hmsa_ext.settings.SettingError` for names and values that do not fit.
        """
        values = dict(values)
        named = values.pop("data", None) or DataSettings().name
        moved = data is not None and data != named
        start = cls.of(data if data is not None and moved else named)
        values.pop("resume", None)  # checkpoints of the version before have it among the settings
        own = {name for option in settings.options(start) for name in (option.name, *option.was)}
        if moved:  # what is not known then is an option of the data set that was named
            of_source = {option.name for option in settings.options(start.data.source)}
            values = {name: value for name, value in values.items() if name in own - of_source}
        for option in _options_of_all_sets():
            for name in {option.name, *option.was} & values.keys():
                unset = values[name] is None and not option.optional  # there null stood for the default
                if unset or (name not in own and values[name] in (None, [], settings.to_plain(option.value))):
                    del values[name]
        try:
            return settings.replace(start, values)
        except UnknownSettingError as error:
            reason = options_of_others(start.data.name).get(error.name)
            if reason is None:
                raise
            raise DataError(f"{error.name}: {reason}") from None

    def save(self, path: Path) -> None:
        """Writes the settings as a YAML file that :func:`read_file` reads: all but the folder, which is of one run."""
        values = {name: value for name, value in settings.to_dict(self).items() if name != "output"}
        write_text(path, yaml.safe_dump(values, sort_keys=False))


def _options_of_all_sets() -> list[settings.Option]:
    """The options that the data sets of this package declare for themselves."""
    return [option for name in NAMES for option in settings.options(source_type(name)())]


RECIPES = Path(__file__).resolve().parents[1] / "recipes"
"""YAML files of settings that come along, one for each method of the paper and data set."""


def recipe_names() -> list[str]:
    """What ``--config`` takes beside files."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def read_recipe(name: str, argument: str) -> dict[str, Any]:
    """The plain values of a YAML file, or of a recipe that comes along; ``argument``: see :func:`read_file`."""
    if not Path(name).exists() and name in recipe_names():
        return read_file(RECIPES / f"{name}.yaml", argument)
    if not Path(name).is_file():
        expected = f"a YAML file of settings, such as the config.yaml of a run, or one of {', '.join(recipe_names())}"
        raise SettingError(argument, name, expected)
    return read_file(Path(name), argument)


def read_file(path: Path, argument: str) -> dict[str, Any]:
    """The plain values in a YAML file; ``argument`` is the option that named it, for the message."""
    if not path.is_file():
        raise SettingError(argument, str(path), "a YAML file of settings, such as the config.yaml of a run")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError(argument, str(path), f"a YAML file, but: {error}") from error
    if not isinstance(values, dict):
        raise SettingError(argument, str(path), f"lines of NAME: VALUE, but the file holds a {type(values).__name__}")
    return values


def differences(before: Mapping[str, Any], now: TrainSettings) -> dict[str, tuple[Any, Any]]:
    """Settings that may not differ on resume, and do: each with its value before and now."""
    found = {}
    for option in settings.options(now):
        value = settings.to_plain(option.value)
        known = next((name for name in (option.name, *option.was) if name in before), None)
        if not option.free and known is not None and before[known] != value:
            found[option.name] = before[known], value
    return found


def unnamed_parts(chosen: object) -> dict[str, str]:
    """Settings whose function or class cannot be imported by the name that files get: ``{setting: that name}``.

    Such are lambdas, functions in functions, objects that are called, and what a script or notebook defines itself.
    """
    found = {}
    for option in settings.options(chosen):
        if callable(option.value):
            name = str(settings.to_plain(option.value))
            try:
                named = not name.startswith("__main__:") and settings.load_object(name, option.name) is option.value
            except (SettingError, ImportError):
                named = False
            if not named:
                found[option.name] = name
    return found


def with_fitted(train: TrainSettings, *, crops: Augment, epochs: int | None) -> TrainSettings:
    """The settings, completed by those that follow from the data."""
    optimisation = dataclasses.replace(train.optimisation, epochs=epochs)
    return dataclasses.replace(train, crops=crops, optimisation=optimisation)
