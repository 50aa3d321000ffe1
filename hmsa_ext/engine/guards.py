"""What keeps a run from being lost: a watch on the loss, and stop signals that wait for the end of a step."""

import contextlib
import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hmsa_ext.data import Batch
from hmsa_ext.engine import checkpoint
from hmsa_ext.engine.distributed import Process
from hmsa_ext.errors import HmsaError


class TrainingError(HmsaError, RuntimeError):
    """A run that cannot go on; the message says why, and what was kept."""

    local = True
    """Only the process that raises it knows of it, and so has to say it."""


class LossWatch:
    """Stops a run whose loss is no longer finite, and keeps the batch that did it.

    On the CPU a loss is looked at before the weights change. On a GPU that would make it wait, so that a loss is
    looked at one step later, when it has long been computed; nothing is saved meanwhile.
    """

    def __init__(self, folder: Path, process: Process) -> None:
        self._folder, self._process = folder, process
        self._pending: tuple[Tensor, Batch] | None = None

    def see(self, loss: Tensor, batch: Batch) -> None:
        """Takes the loss of a batch; raises :class:`TrainingError` for it or for the one before."""
        self.check()
        self._pending = loss.detach(), batch
        if loss.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Looks at the loss that was not looked at yet, if there is one."""
        if self._pending is None:
            return
        (loss, batch), self._pending = self._pending, None
        value = loss.item()
        if math.isfinite(value):
            return
        file = self._folder / f"bad_batch_rank{self._process.rank}.pt"
        content = {"images": batch.images.cpu(), "labels": batch.labels.cpu(), "names": list(batch.names)}
        checkpoint.save(file, content)
        raise TrainingError(
            f"the loss is {value} for the batch of {', '.join(batch.names)}. The batch is in {file}, weights of before "
            f"in {self._folder / checkpoint.LAST}. A lower lr or a longer warmup may help"
        )


@dataclass
class StopRequest:
    """Whether a signal asked the run to stop, and which."""

    number: int = 0

    @property
    def asked(self) -> bool:
        """Whether one did."""
        return self.number != 0


@contextlib.contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turns the first Ctrl-C or SIGTERM into a request. A second signal has its default effect."""
    request = StopRequest()
    before: dict[int, Any] = {}

    def ask(number: int, frame: object) -> None:
        request.number = number
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    # Python allows handlers in the main thread only; elsewhere signals are the caller's business.
    with contextlib.suppress(ValueError):
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    try:
        yield request
    finally:
        restore()
