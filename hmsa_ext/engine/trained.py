"""Trained models: network, weights and classes of a run folder or a file of weights. Their data need not be here."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hmsa_ext import models, parts, settings
from hmsa_ext.data import NAMES, ClassTable
from hmsa_ext.data.by_name import class_table
from hmsa_ext.data.palette import distinct_colours
from hmsa_ext.engine import checkpoint
from hmsa_ext.engine.checkpoint import CheckpointError
from hmsa_ext.engine.settings import unnamed_parts
from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.files import writable_folder
from hmsa_ext.models import ModelSettings, WeightError, WeightReport
from hmsa_ext.models.fusions import training_scales
from hmsa_ext.models.weight_files import SAFETENSORS, write_safetensors
from hmsa_ext.models.weights import compare_weights
from hmsa_ext.settings import SettingError

UNUSUAL = 251
"""A number of classes that no file is likely to have: what differs between a network of so many and a file, is its."""
KEPT = ("data", "long_edge", "eval_scales", "flip")
"""Settings that :func:`save_weights` keeps beside those of the network."""


@dataclass(frozen=True)
class TrainedModel:
    """A model with its weights.

    model: in training mode, on the CPU.
    path: the file that the weights are from.
    num_classes: of its logits.
    classes: names, colours and ids of the classes; "class 0", "class 1" ... where nothing says them.
    settings: of the run, by flat name; of a file of :func:`save_weights`, those that it kept. None: the file has none.
    image_size: typical (height, width) of the images in training, in pixels; None: unknown.
    digest: SHA-256 of the weights, in hexadecimal: the same whatever file holds them.
    network: the network and its parts.
    classes_known: whether the file or the caller said the classes.
    """

    model: nn.Module
    path: Path
    num_classes: int
    classes: ClassTable
    settings: Mapping[str, Any] | None
    image_size: tuple[int, int] | None
    digest: str
    network: ModelSettings
    classes_known: bool = True

    @property
    def class_names(self) -> tuple[str, ...]:
        """One per class, in the order of the labels."""
        return self.classes.names


def open_model(
    run_or_file: str | Path,
    network: str | Callable[..., nn.Module] | None = None,
    num_classes: int | None = None,
    classes: str | Sequence[str] | ClassTable | None = None,
    *,
    fusion: str | Callable[..., Tensor] | None = None,
) -> TrainedModel:
    """The model in a run folder (its last checkpoint), a checkpoint or a safetensors file.

    Files of ours say everything: runs, their checkpoints, and what :func:`save_weights` wrote. Of checkpoints the
    moving average of the weights is taken, where there is one. Colours that an older checkpoint lacks are those of the
    data set of its run where that has the same classes, else distinct ones.

    Args:
        run_or_file: a folder or a file.
        network: for files of another source: a name of ``hmsa_ext.models.NAMES``, ``package.module:factory`` or a
            factory; see :func:`hmsa_ext.models.build`. For a file of ours: another network than the one that it names,
            for example where that cannot be imported.
        num_classes: for files that do not say; unless given, it follows from the shapes of the weights.
        classes: for files that do not say: the name of a data set, names of classes, or a table. Unless given, they are
            called "class 0", "class 1" and so on.
        fusion: instead of that of the training: see :func:`hmsa_ext.models.fusions.find_fusion`. The weights of every
            network serve ``"single"``, ``"mean"``, ``"max"`` and the like; an attention needs its own.

    Raises:
        CheckpointError: no such file, not a file of weights, not one of ours without ``network``, a network that cannot
            be imported, a weight of the model that is not in the file, other classes than asked for.
        SettingError: no such network or data set, a factory of something else, a number of classes that does not fit
            or cannot be found. It is a ValueError, as CheckpointError is.
    """
    settings.require("num_classes", num_classes, num_classes is None or num_classes > 0, "a whole number above 0")
    path = checkpoint.find(run_or_file)
    content = checkpoint.load(path)
    if network is None:
        _require_own(content, path)
    own = content if _is_own(content) else {}
    config: Mapping[str, Any] = own.get("config", {})
    said = _said_classes(own, path)
    known = said is not None and own.get("classes_known", True)
    table = said
    if classes is not None:
        table = _asked_classes(classes)
        if said is not None and known and said.names != table.names:
            raise CheckpointError(
                f"checkpoint: {path} has {said.num_classes} classes ({', '.join(said.names)}), but classes asks for "
                f"{table.num_classes} ({', '.join(table.names)}); leave classes out, or open another model"
            )
        known = True
        if num_classes not in (None, table.num_classes):
            raise SettingError("num_classes", num_classes, f"{table.num_classes}, as classes has")
    if network is None and said is not None and num_classes not in (None, said.num_classes):
        raise CheckpointError(f"checkpoint: {path} has {said.num_classes} classes, --num-classes is {num_classes}")

    network_settings = _own_network(config, path) if network is None else _other_network(network)
    if fusion is not None and fusion != network_settings.fusion:
        trained = network_settings.train_scales if network is None else None
        network_settings = _with_fusion(network_settings, fusion, trained)
    count = num_classes or (
        table.num_classes if table is not None else _find_num_classes(network_settings, content, path)
    )
    model = _build(network_settings, count, path if network is None else None)
    try:
        report = models.load_weights(model, content, source=str(path))
    except WeightError as error:
        if network is None or "model" not in config:
            raise
        raise CheckpointError(
            f"checkpoint: {path} is of the network {config['model']}, as it says itself; leave network out\n{error}"
        ) from error
    if report.missing or report.mismatched:
        counts = _class_counts(report, count)
        hint = ""
        if fusion is not None and any(name.startswith("scale_attn.") for name in (*report.missing, *report.mismatched)):
            hint = f"; fusion {parts.spelled(fusion)} needs an attention that was trained for it"
        elif len(counts) == 1:
            hint = f"; its weights are of {counts.pop()} classes, not {count}: give other classes, or none"
        raise CheckpointError(f"checkpoint: {path} does not fit the model{hint}\n{report}")
    if table is None:
        table = numbered_classes(count)
    elif table.num_classes != count:  # the weights fit, since the network does not depend on the number
        raise SettingError("num_classes", count, f"{table.num_classes}, as {path} has")
    return TrainedModel(
        model, path, count, table, config or None, _said_size(own, path), weights_digest(model), network_settings,
        known,
    )  # fmt: skip


def save_weights(trained: TrainedModel, path: str | Path) -> None:
    """Writes the weights and what :func:`open_model` needs, as a safetensors file: a third of a checkpoint.

    Of the settings those of the network stay, the scales of the evaluation, the long edge and the name of the data set.
    A network without a name that can be imported is left out: opening the file then takes ``network``.

    Raises:
        ArgumentValueError: a name that does not end in .safetensors.
        OutputError: a file that cannot be written.
        WeightError: the package safetensors is missing.
    """
    path = Path(path).expanduser()
    if path.suffix != SAFETENSORS:
        raise ArgumentValueError(f"path: expected a name that ends in {SAFETENSORS}, got {path}")
    writable_folder(path.parent, "path")
    config: dict[str, Any] = {}
    if not unnamed_parts(trained.network):
        free = {option.name for option in settings.options(trained.network) if option.free}
        of_network = settings.to_dict(trained.network)
        config = {name: value for name, value in of_network.items() if name not in free}
        config |= {name: value for name, value in (trained.settings or {}).items() if name in KEPT}
    description = {
        "config": config,
        "class_names": list(trained.classes.names),
        "classes": trained.classes.to_dict(),
        "classes_known": trained.classes_known,
        "image_size": trained.image_size,
    }
    state = {name: value for name, value in trained.model.state_dict().items() if isinstance(value, Tensor)}
    write_safetensors(path, state, description)


def default_scales(trained: TrainedModel) -> tuple[float, ...]:
    """Scales of an evaluation or prediction that does not say which: those of the run, or those of its fusion.

    The model may have another fusion now. One scale alone, or scales that it does not take, then give way.
    """
    ran = trained.settings or {}
    scales = ran.get("eval_scales")
    if scales is not None:
        scales = tuple(scales)
        changed = trained.network.fusion != ran.get("fusion", checkpoint.IMPLIED["fusion"])
        if (changed and len(scales) == 1) or not trained.network.takes_eval_scales(scales):
            scales = None
    return trained.network.eval_scales(scales)


def numbered_classes(count: int) -> ClassTable:
    """The table of classes that have no names: "class 0", "class 1" ..., in distinct colours."""
    return ClassTable(tuple(f"class {number}" for number in range(count)), distinct_colours(count))


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of parameters and buffers: their names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {list(value.shape)};".encode())
            values = value.detach().cpu().contiguous().reshape(-1)
            digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _require_own(content: Mapping[str, Any], path: Path) -> None:
    hint = (
        "for a file of another source say which network it is: network, a name or package.module:factory "
        "(hmsa predict: --network NAME --classes DATA_SET; hmsa evaluate: --model NAME --num-classes N --data NAME) "
        f"({path})"
    )
    missing = {"state_dict", "config", "class_names"} - content.keys()
    if missing or not _is_own(content):
        what = f"no {', '.join(sorted(missing))}" if missing else "a config or class_names of another form"
        raise CheckpointError(f"checkpoint: {path} has {what}: it is not one of ours; {hint}")
    if "model" not in content["config"]:
        raise CheckpointError(f"checkpoint: {path} does not name its network; {hint}")


def _is_own(content: Mapping[str, Any]) -> bool:
    names = content.get("class_names")
    return (
        isinstance(content.get("state_dict"), Mapping)
        and isinstance(content.get("config"), Mapping)
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
    )


def _said_classes(own: Mapping[str, Any], path: Path) -> ClassTable | None:
    """The classes that a file of ours says."""
    if not own:
        return None
    try:
        if "classes" in own:
            return ClassTable.from_dict(own["classes"])
        names = tuple(own["class_names"])
        declared = class_table(str(own["config"].get("data")))
        if declared is not None and declared.names == names:
            return declared
        return ClassTable(names, distinct_colours(len(names)))
    except ArgumentValueError as error:
        raise CheckpointError(f"checkpoint: {path}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint: {path}: its classes cannot be read ({own.get('classes')!r:.80})") from error


def _said_size(own: Mapping[str, Any], path: Path) -> tuple[int, int] | None:
    """The size of the training images that a file of ours says."""
    size = own.get("image_size")
    if size is None:
        return None
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(isinstance(s, int) and s > 0 for s in size):
        raise CheckpointError(f"checkpoint: {path}: image_size is {size!r:.80}, expected [height, width] in pixels")
    return size[0], size[1]


def _asked_classes(classes: str | Sequence[str] | ClassTable) -> ClassTable:
    if isinstance(classes, ClassTable):
        return classes
    if isinstance(classes, str):
        table = class_table(classes)
        if table is None:
            known = ", ".join(name for name in NAMES if class_table(name) is not None)
            raise SettingError("classes", classes, f"one of {known}, names of classes, or a ClassTable")
        return table
    names = tuple(classes)
    if not names or not all(isinstance(name, str) for name in names):
        raise SettingError("classes", classes, "the name of a data set, names of classes, or a ClassTable")
    return ClassTable(names, distinct_colours(len(names)))


def _own_network(config: Mapping[str, Any], path: Path) -> ModelSettings:
    """The network of a run alone: its data may not be here."""
    names = {name for option in settings.options(ModelSettings()) for name in (option.name, *option.was)}
    try:
        return settings.replace(ModelSettings(), {name: value for name, value in config.items() if name in names})
    except SettingError as error:
        raise CheckpointError(_not_built(path, error)) from error


def _other_network(network: str | Callable[..., nn.Module]) -> ModelSettings:
    if isinstance(network, nn.Module):
        raise SettingError("network", type(network).__qualname__, "a factory (num_classes) -> module, not a module")
    parts.find(network, models.NETWORKS, "network")
    return ModelSettings(name=network)


def _with_fusion(
    network: ModelSettings, fusion: str | Callable[..., Tensor], trained: tuple[float, ...] | None
) -> ModelSettings:
    """The network with another fusion. An attention stays at the scales that it was trained at, where they are known.

    Scales that the fusion does not take are not kept: then the weights do not have its attention, and loading says so.
    """
    found = models.find_fusion(fusion)
    try:
        scales = training_scales(found, trained) if trained and found.attention is not None else None
    except SettingError:
        scales = None
    of_attention = {} if found.attention else {"attention_channels": "one", "attention_head": "scale"}
    return dataclasses.replace(network, fusion=fusion, scales=scales, **of_attention)


def _build(network: ModelSettings, num_classes: int, path: Path | None) -> nn.Module:
    """The network; ``path`` is the file that names it, None where the caller did."""
    try:
        return models.build(network, num_classes)
    except (SettingError, ImportError) as error:
        if path is None:
            if isinstance(error, SettingError) and error.name == "model":
                error.name = "network"  # the argument of open_model
            raise
        raise CheckpointError(_not_built(path, error)) from error


def _not_built(path: Path, error: Exception) -> str:
    return (
        f"checkpoint: the network of {path} cannot be built here: {error}; start in the folder of its module or put "
        "that into PYTHONPATH, or say which network it is: network, package.module:factory or a factory"
    )


def _find_num_classes(network: ModelSettings, content: Mapping[str, Any], path: Path) -> int:
    """The number of classes that the weights have, from what differs in a network of an unusual number."""
    probe = _build(network, UNUSUAL, None)
    counts = _class_counts(compare_weights(probe, content), UNUSUAL)
    if len(counts) == 1:
        return counts.pop()
    if not counts:
        models.load_weights(probe, content, source=str(path))  # raises where the weights are of another network
    found = f"they have {' or '.join(map(str, sorted(counts)))}" if counts else "they fit any number"
    raise SettingError(
        "num_classes", None, f"the number of classes, since the weights in {path} do not tell it: {found}"
    )


def _class_counts(report: WeightReport, built: int) -> set[int]:
    """Sizes in the file where the network, built with so many classes, has that many."""
    return {
        size
        for theirs, ours in report.mismatched.values()
        if len(theirs) == len(ours)
        for size, own in zip(theirs, ours, strict=True)
        if own == built != size
    }
