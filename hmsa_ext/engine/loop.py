"""The training loop."""

import contextlib
import itertools
import math
import time

import torch
from torch import Tensor, nn

from hmsa_ext import data, losses
from hmsa_ext.data import Batch
from hmsa_ext.engine import distributed, schedule
from hmsa_ext.engine.device import arithmetic
from hmsa_ext.engine.evaluation import ATTENTION, evaluate
from hmsa_ext.engine.guards import LossWatch, stop_signals
from hmsa_ext.engine.logging import RunLog, duration, progress_bar, timed
from hmsa_ext.engine.run import Run


def train(run: Run) -> bool:
    """Trains from where ``run.progress`` stands; true when it came to the end, false when it was stopped before.

    The last checkpoint is written after every epoch, every ``checkpoint_seconds``, and when the run is stopped: by
    Ctrl-C, by SIGTERM or by ``max_minutes``. Continuing from it gives the same weights as never having stopped.
    """
    config, process, progress = run.config, run.process, run.progress
    criterion = losses.MultiScaleLoss(
        config.loss,
        config.aux_weight,
        config.scale_weight,
        ignore_index=run.val_set.classes.ignore_label,
        class_weight=_class_weight(run),
    )
    # With one scale the attention has no gradient, and without its loss the auxiliary head has little of its own.
    network = distributed.wrap(run.model, process, all_used=len(config.scales) > 1 and config.aux_weight > 0)
    network.train()
    watch = LossWatch(run.folder, process)
    log = RunLog(run.folder, process, steps=run.steps, step=progress.step, every=config.log_every)
    begin = saved = time.monotonic()
    seconds_before = progress.seconds
    per_epoch = run.batches_per_epoch
    epochs = math.ceil(run.steps / per_epoch)
    with contextlib.closing(log), stop_signals() as stop:
        left = epochs - progress.epoch
        batches = timed(run.training_batches(epoch=progress.epoch, first=progress.batch, epochs=left) if left else ())
        for epoch in range(progress.epoch, epochs):
            for decoded, waited in itertools.islice(batches, per_epoch - progress.batch):
                for text in decoded.warnings:
                    log.warn(text)
                batch = data.cut(decoded.to(process.device), channels_last=config.channels_last)
                rate = schedule.learning_rate(
                    progress.step, steps=run.steps, base=config.lr, exponent=config.poly_exponent, warmup=config.warmup
                )
                loss = _step(run, network, criterion, batch, rate, watch)
                progress.step += 1
                progress.batch += 1
                now = time.monotonic()
                progress.seconds = seconds_before + now - begin
                log.step(progress.step, epoch=epoch + 1, loss=loss, lr=rate, images=len(batch), data_seconds=waited)
                if progress.step == run.steps:
                    break
                late = bool(config.max_minutes) and now - begin > 60 * config.max_minutes
                stopping, due = distributed.any_process(
                    process, stop.asked or late, now - saved > config.checkpoint_seconds
                )
                if stopping or due:
                    watch.check()
                    with log.paused():
                        run.save()
                    saved = time.monotonic()
                if stopping:
                    log.say(f"stopped after step {progress.step} of {run.steps}; continue with --resume {run.folder}")
                    return False
            progress.epoch, progress.batch = epoch + 1, 0
            watch.check()
            with log.paused():
                run.agree_on_statistics()
                validate = epoch + 1 == epochs or (config.eval_every and (epoch + 1) % config.eval_every == 0)
                run.save(best=_validate(run, log) if validate else False)
            saved = time.monotonic()
        log.say(f"trained {run.steps} steps in {duration(progress.seconds)}")
    return True


def _class_weight(run: Run) -> Tensor | None:
    """What ``class_balance`` asks for, from the training labels: the same in every process and after every resume."""
    if run.config.loss != "ce" or not run.config.class_balance:
        return None
    weights = data.balanced_weights(run.training.index.frequencies, run.config.class_balance)
    return torch.from_numpy(weights).float().to(run.process.device)


def _step(run: Run, network: nn.Module, criterion: nn.Module, batch: Batch, rate: float, watch: LossWatch) -> Tensor:
    """One step of the optimizer at learning rate ``rate``; returns the loss, detached."""
    schedule.set_learning_rate(run.optimizer, rate)
    device = run.process.device
    with arithmetic(device, run.dtype):
        outputs = network(batch.images, scales=run.config.scales)
    loss = criterion(outputs, batch.labels)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    watch.see(loss, batch)
    run.optimizer.step()
    if run.average is not None:
        schedule.update_average(run.average, run.model, run.config.ema)
    return loss.detach()


def _validate(run: Run, log: RunLog) -> bool:
    """Evaluates at the training scales; true when the attention has never been better."""
    with run.averaged_weights():
        result = evaluate(
            run.model, run.validation_batches(), run.val_set.classes, run.config.scales, run.process,
            dtype=run.dtype, progress=progress_bar(run.process, "validation"),
        )  # fmt: skip
    miou = result.miou[ATTENTION]
    is_best = miou > run.progress.best
    run.progress.best = max(run.progress.best, miou)
    log.validation(run.progress.step, run.progress.epoch, result.miou, best=run.progress.best, seconds=result.seconds)
    return is_best
