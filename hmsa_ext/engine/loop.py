"""The training loop."""

import contextlib
import itertools
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hmsa_ext import data
from hmsa_ext.data import Batch
from hmsa_ext.data.progress import duration
from hmsa_ext.engine import distributed, pictures, schedule
from hmsa_ext.engine.evaluation import evaluate
from hmsa_ext.engine.guards import LossWatch, stop_signals
from hmsa_ext.engine.logging import RunLog, progress_bar, timed
from hmsa_ext.engine.metrics import Loss, build_metrics
from hmsa_ext.engine.out_of_memory import explained, shown_images, shown_scales
from hmsa_ext.engine.run import Run
from hmsa_ext.engine.step import forward_backward
from hmsa_ext.models.fusions import find_fusion

MOST_PICTURES = 2
"""Drawn for TensorBoard after each validation."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended. ``signal``: the number of the signal that stopped it, 0 where none did."""

    finished: bool
    signal: int = 0


def train(run: Run) -> Outcome:
    """Trains from where ``run.progress`` stands to the end, or until the run is stopped.

    The last checkpoint is written after every epoch, every ``checkpoint_seconds``, and when the run is stopped: by
    Ctrl-C, by SIGTERM or by ``max_minutes``. Continuing from it gives the same weights as never having stopped.
    """
    settings, process, progress = run.settings, run.process, run.progress
    optimisation, records = settings.optimisation, settings.records
    criterion = build_criterion(run)
    # With one scale an attention has no gradient, and without its loss the auxiliary head has little of its own.
    attends = len(settings.model.train_scales) > 1 or find_fusion(settings.model.fusion).attention is None
    network = distributed.wrap(run.model, process, all_used=attends and settings.loss.aux_weight > 0)
    network.train()
    watch = LossWatch(run.folder, process)
    log = RunLog(run.folder, process, steps=run.steps, step=progress.step, every=records.log_every)
    if run.log:
        log.load_state(run.log)
    begin = saved = time.monotonic()
    seconds_before = progress.seconds
    per_epoch = run.batches_per_epoch
    epochs, every = math.ceil(run.steps / per_epoch), run.eval_every
    with contextlib.closing(log), stop_signals() as stop:
        left = epochs - progress.epoch
        batches = timed(run.training_batches(epoch=progress.epoch, first=progress.batch, epochs=left) if left else ())
        for epoch in range(progress.epoch, epochs):
            for decoded, waited in itertools.islice(batches, per_epoch - progress.batch):
                for text in decoded.warnings:
                    log.warn(text)
                batch = data.cut(decoded.to(process.device), channels_last=settings.model.channels_last)
                batch = settings.crops.change(batch)
                rate = schedule.learning_rate(
                    progress.step, steps=run.steps, base=optimisation.lr, exponent=optimisation.poly_exponent,
                    warmup=optimisation.warmup,
                )  # fmt: skip
                with explained(_shown_step(run, batch), _less_to_train(run, batch)):
                    loss = _step(run, network, criterion, batch, rate, watch)
                progress.step += 1
                progress.batch += 1
                now = time.monotonic()
                progress.seconds = seconds_before + now - begin
                log.step(progress.step, epoch=epoch + 1, loss=loss, lr=rate, images=len(batch), data_seconds=waited)
                if progress.step == run.steps:
                    break
                late = bool(records.max_minutes) and now - begin > 60 * records.max_minutes
                stopping, due = distributed.any_process(
                    process, stop.asked or late, now - saved > records.checkpoint_seconds
                )
                if stopping or due:
                    watch.check()
                    with log.paused():
                        run.log = log.state()
                        run.save()
                    saved = time.monotonic()
                if stopping:
                    log.say(f"stopped after step {progress.step} of {run.steps}; continue with --resume {run.folder}")
                    return Outcome(False, stop.number)
            progress.epoch, progress.batch = epoch + 1, 0
            watch.check()
            with log.paused():
                run.agree_on_statistics()
                validate = epoch + 1 == epochs or (every > 0 and (epoch + 1) % every == 0)
                run.log = log.state()
                run.save(best=_validate(run, criterion, log) if validate else False)
            saved = time.monotonic()
        log.say(f"trained {run.steps} steps in {duration(progress.seconds)}")
    return Outcome(True)


def build_criterion(run: Run) -> nn.Module:
    """The training loss that the settings ask for; class weights come from the training labels."""
    loss, weight = run.settings.loss, None
    if loss.weighs_classes:
        weights = data.balanced_weights(run.training.index.frequencies, loss.class_balance)
        weight = torch.from_numpy(weights).float().to(run.process.device)
    return loss.criterion(run.val_set.classes.ignore_label, weight)


def _step(run: Run, network: nn.Module, criterion: nn.Module, batch: Batch, rate: float, watch: LossWatch) -> Tensor:
    """One step of the optimizer at learning rate ``rate``; returns the loss, detached."""
    schedule.set_learning_rate(run.optimizer, rate)
    loss = forward_backward(
        network, criterion, run.optimizer, batch.images, batch.labels, run.settings.model.train_scales, dtype=run.dtype
    )
    watch.see(loss, batch)
    run.optimizer.step()
    if run.average is not None:
        schedule.update_average(run.average, run.model, run.settings.optimisation.ema)
    return loss


def _shown_step(run: Run, batch: Batch) -> str:
    crops = shown_images(len(batch), batch.images.shape[-2:], "crop")
    return f"a training step on {crops} at {shown_scales(run.settings.model.train_scales)}"


def _less_to_train(run: Run, batch: Batch) -> str:
    """The settings of a training that take less memory than those that it has."""
    settings, (height, width) = run.settings, batch.images.shape[-2:]
    stronger = {"none": "--recompute modules or --recompute all, ", "modules": "--recompute all, ", "all": ""}
    more = stronger[settings.machine.recompute]
    fewer = f"a --batch-size below {len(batch)}, " if len(batch) > 1 else ""
    dtype = ", --dtype bfloat16" if run.dtype == torch.float32 else ""
    return (
        f"take {more}{fewer}a --crop below {height}x{width}{dtype}; --dry-run of the same command shows the memory of "
        "each part"
    )


def _validate(run: Run, criterion: nn.Module, log: RunLog) -> bool:
    """Evaluates at the training scales; true when the fusion has never been better."""
    train, process, classes = run.settings, run.process, run.val_set.classes
    with run.averaged_weights():
        result = evaluate(
            run.model, run.validation_batches(), classes, train.model.train_scales, process, dtype=run.dtype,
            tiles=train.evaluation.tiles,
            metrics=[Loss(criterion, classes), *build_metrics(train.evaluation.metrics, classes)],
            progress=progress_bar(process, "validation"),
        )  # fmt: skip
        count = min(train.evaluation.pictures, MOST_PICTURES)
        log.pictures(run.progress.step, pictures.pages(
            run.model, run.val_set, count, train.model.train_scales, process.device, dtype=run.dtype,
            long_edge=train.crops.long_edge, tiles=train.evaluation.tiles,
        ))  # fmt: skip
    miou = result.miou[result.way]
    is_best = miou > run.progress.best
    run.progress.best = max(run.progress.best, miou)
    log.validation(
        run.progress.step, run.progress.epoch, result.miou, best=run.progress.best, seconds=result.seconds,
        more=result.scalars(),
    )  # fmt: skip
    return is_best
