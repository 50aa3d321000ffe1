"""Evaluates a model at several scales: IoU per class, mIoU and pixel accuracy, for the attention and its rivals.

    python -m hmsa_ext.evaluate runs/NAME                                 # its last checkpoint, on its own data
    python -m hmsa_ext.evaluate runs/NAME/best.pt --scales 0.5,1,2 --flip --pictures pictures
    python -m hmsa_ext.evaluate FILE.pth --model hrnet_w48_ocr --num-classes 11 --data camvid --root PATH
    torchrun --nproc-per-node 8 -m hmsa_ext.evaluate runs/NAME            # every image once, over all GPUs

The columns: each scale alone, the mean of the logits of all scales, the hierarchical attention; all from the same pass.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hmsa_ext import data, models
from hmsa_ext.data import Dataset
from hmsa_ext.engine import checkpoint, distributed, evaluation, pictures
from hmsa_ext.engine.checkpoint import CheckpointError
from hmsa_ext.engine.config import ConfigError, TrainConfig, from_settings, parse_scales
from hmsa_ext.engine.device import choose_dtype, memory_format
from hmsa_ext.engine.logging import duration, progress_bar
from hmsa_ext.engine.run import dataset_options, versions
from hmsa_ext.files import write_text
from hmsa_ext.train import USER_ERRORS, complain


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        with distributed.start(options.device) as process:
            evaluate(options, process)
    except USER_ERRORS as error:
        return complain(error)
    return 0


def evaluate(options: argparse.Namespace, process: distributed.Process) -> evaluation.EvaluationResult:
    """Does what the options say; every process returns the same result."""
    for name in ("long_edge", "workers"):
        value = getattr(options, name)
        if value is not None and value < 0:
            raise ConfigError(f"{name}: got {value}, expected a number not below 0")
    if options.threads:
        torch.set_num_threads(options.threads)
    dtype, reason = choose_dtype(options.dtype, process.device)
    process.print(f"device {process.reason}\ndtype  {reason}")
    trained = open_model(options.checkpoint, options.model, options.num_classes)
    model = trained.model.to(process.device, memory_format=memory_format(trained.config.channels_last))
    scales = parse_scales(options.scales) if options.scales else trained.config.eval_scales
    dataset = open_data(options, trained)
    long_edge = trained.config.long_edge if options.long_edge is None else options.long_edge
    loader = data.evaluation_loader(
        dataset, rank=process.rank, world_size=process.world_size, workers=options.workers, long_edge=long_edge
    )
    batches = data.Cropped(loader, process.device)
    result = evaluation.evaluate(
        model, batches, dataset.classes, scales, process,
        dtype=dtype, flip=options.flip, progress=progress_bar(process, "evaluation"),
    )  # fmt: skip
    process.print(f"\n{evaluation.table(result)}\n")
    process.print(f"evaluated {result.images} images in {duration(result.seconds)}")
    if process.is_main and options.pictures:
        folder = Path(options.pictures)
        files = pictures.draw(
            model, dataset, options.picture_count, scales, folder, process.device, dtype=dtype, flip=options.flip,
            long_edge=long_edge,
        )  # fmt: skip
        print(f"drew {len(files)} pictures in {folder}")
    if process.is_main and options.output:
        file = Path(options.output)
        file.parent.mkdir(parents=True, exist_ok=True)
        content = result.to_dict() | {"checkpoint": str(trained.path), "versions": versions()}
        write_text(file, json.dumps(content, indent=2) + "\n")
    return result


@dataclass(frozen=True)
class TrainedModel:
    """A model with its weights. ``class_names`` is None when the file does not say; ``config`` then has defaults."""

    model: nn.Module
    path: Path
    num_classes: int
    class_names: tuple[str, ...] | None
    config: TrainConfig


def open_model(run_or_file: str, name: str | None = None, num_classes: int | None = None) -> TrainedModel:
    """The model in a run folder or checkpoint; ``name`` and ``num_classes`` are needed for files that do not say.

    Of our own checkpoints the moving average of the weights is taken, where there is one. Raises
    :class:`CheckpointError` unless every weight of the model is in the file.
    """
    path = checkpoint.find(run_or_file)
    if name is not None:
        if name not in models.NAMES:
            raise ConfigError(f"model: got {name!r}, expected one of {', '.join(models.NAMES)}")
        if num_classes is None:
            raise ConfigError("num-classes: got none, expected the number of the checkpoint's classes beside --model")
        model, weights, class_names, config = models.build(name, num_classes), path, None, TrainConfig()
    else:
        content = _own_checkpoint(path)
        class_names = tuple(content["class_names"])
        if num_classes not in (None, len(class_names)):
            raise CheckpointError(f"checkpoint: {path} has {len(class_names)} classes, --num-classes is {num_classes}")
        num_classes, config = len(class_names), from_settings(content["config"])
        model = models.build(config.model, num_classes)
        weights = content["average"] or content["state_dict"]
    report = models.load_weights(model, weights)
    if report.missing or report.mismatched:
        raise CheckpointError(f"checkpoint: {path} does not fit the model\n{report}")
    return TrainedModel(model, path, num_classes, class_names, config)


def open_data(options: argparse.Namespace, trained: TrainedModel) -> Dataset:
    """The data set to evaluate on: that of the options, else of the run; raises when its classes are others."""
    config = trained.config
    name = options.data or config.data
    own = name == config.data
    length = options.length or ((config.length if options.split == "train" else config.val_length) if own else None)
    settings = dataset_options(config) if own else {}
    given = {name: getattr(options, name) for name in ("root", "fold", "version", "description")}
    settings |= {name: value for name, value in given.items() if value is not None}
    dataset = data.build(name, options.split, length=length, **settings)
    if trained.class_names is not None:
        checkpoint.require_classes({"class_names": trained.class_names}, dataset.classes.names, trained.path)
    if trained.num_classes != dataset.classes.num_classes:
        raise CheckpointError(
            f"checkpoint: {trained.path} has {trained.num_classes} classes, but {name} has "
            f"{dataset.classes.num_classes} ({', '.join(dataset.classes.names)})"
        )
    data.check(dataset)
    return dataset


def _own_checkpoint(path: Path) -> dict:
    hint = f"for a file of another source say which network it is: --model NAME --num-classes N --data NAME ({path})"
    try:
        content = checkpoint.load(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}\n{hint}") from error
    missing = {"state_dict", "average", "config", "class_names"} - content.keys()
    if missing:
        raise CheckpointError(f"checkpoint: {path} has no {', '.join(sorted(missing))}: it is not one of ours; {hint}")
    return content


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hmsa_ext.evaluate", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("checkpoint", metavar="RUN_OR_CHECKPOINT", help="run folder (its last checkpoint), or a checkpoint file")
    add("--scales", help="scales, separated by commas [those of the run's final evaluation, else 0.5,1.0,2.0]")
    add("--flip", action="store_true", help="average with the logits of the mirrored image")
    add("--data", choices=data.NAMES, help="data set [that of the run]")
    add("--root", help="folder of the data set [that of the run]")
    add("--description", metavar="FILE", help="YAML file with the classes of data 'folder' [that of the run]")
    add("--fold", type=int, metavar="N", help="division into training and validation images [that of the run]")
    add("--version", help="labels of mapillary, v1.2 or v2.0 [that of the run]")
    add("--split", default="val", help="part of the data set [%(default)s]")
    add("--long-edge", type=int, metavar="N", help="resize images to this longer side first; 0: none [as in the run]")
    add("--length", type=int, metavar="N", help="number of images [as in the run]")
    add("--model", help="network, for checkpoints that are not from a run of ours")
    add("--num-classes", type=int, help="classes of such a checkpoint")
    add("--output", metavar="FILE", help="write the result as JSON")
    add("--pictures", metavar="DIR", help="draw some images into this folder")
    add("--picture-count", type=int, default=8, metavar="N", help="how many images to draw [%(default)s]")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... [%(default)s]")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="arithmetic [%(default)s]")
    add("--workers", type=int, default=0, help="loader processes [%(default)s]")
    add("--threads", type=int, default=0, help="CPU threads of PyTorch; 0 leaves its own choice [%(default)s]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
