"""The output of a run in progress: ``metrics.jsonl``, TensorBoard files, and progress on the console.

``metrics.jsonl`` has one JSON object a line. ``kind`` is ``train`` or ``validation``; null stands for a value that is
not finite. A ``train`` record holds means over the ``steps`` steps that end with ``step``. A ``validation`` record
holds ``miou_<way>``, ``iou/<class>`` of the fusion, and the other numbers of :meth:`EvaluationResult.scalars`, such
as ``loss``. TensorBoard has the same names behind ``train/`` and ``validation/``, and the pictures.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hmsa_ext.data.progress import duration
from hmsa_ext.engine import distributed
from hmsa_ext.engine.distributed import Process
from hmsa_ext.files import replacing

METRICS = "metrics.jsonl"
SECONDS_BETWEEN_LINES = 10.0


class RunLog:
    """Records of a run. Every process has one, since means are taken over all; only the main one writes and prints.

    ``step`` is the number of steps done before (0, or what a resumed run starts from): later records, which a
    killed run wrote after its last checkpoint, are dropped. A checkpoint between two records holds :meth:`state`, and
    :meth:`load_state` continues from it: the next mean is then over the same steps as without the interruption.
    """

    def __init__(self, folder: Path, process: Process, *, steps: int, step: int = 0, every: int = 10) -> None:
        self._process, self._steps, self._every = process, steps, every
        self._loss = torch.zeros((), dtype=torch.float64, device=process.device)
        self._count = self._images = 0
        self._data_seconds = 0.0
        self._since = self._printed = time.perf_counter()
        self._paused_at: float | None = None
        self._first = True
        self._file = self._board = self._bar = None
        if process.is_main:
            self._file = _open_metrics(folder / METRICS, step)
            self._board = _tensorboard(folder, step, process)
            if sys.stderr.isatty():
                self._bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True, smoothing=0.1)

    def step(self, step: int, *, epoch: int, loss: Tensor, lr: float, images: int, data_seconds: float) -> None:
        """Counts a step (``step`` steps are now done); every so many writes a record. Reads ``loss`` only then."""
        self._loss += loss.detach()
        self._count += 1
        self._images += images
        self._data_seconds += data_seconds
        if self._bar is not None:
            self._bar.update()
        if step % self._every == 0 or step == self._steps:
            self._record(step, epoch, lr)

    def validation(
        self,
        step: int,
        epoch: int,
        miou: Mapping[str, float],
        *,
        best: float,
        seconds: float,
        more: Mapping[str, float] | None = None,
    ) -> None:
        """Writes the result of a validation; its time does not count as step time.

        more: further numbers by name, such as :meth:`EvaluationResult.scalars`. The console shows ``loss``, and each
            ``iou/<class>`` where there are two classes: their mean alone hides a class that is never found.
        """
        more = dict(more or {})
        values = {f"miou_{way}": x for way, x in miou.items()} | more
        self._write({"kind": "validation", "step": step, "epoch": epoch, **values, "seconds": round(seconds, 3)})
        self._scalars("validation", values, step)
        shown = "  ".join(f"{way} {100 * x:.2f}" for way, x in miou.items())
        by_class = {name.removeprefix("iou/"): x for name, x in more.items() if name.startswith("iou/")}
        if len(by_class) == 2:
            shown += "  IoU " + "  ".join(f"{name} {100 * x:.2f}" for name, x in by_class.items())
        if "loss" in more:
            shown += f"  loss {more['loss']:.4f}"
        best_shown = f"best {list(miou)[-1]} {100 * best:.2f}" if math.isfinite(best) else "no mIoU so far"
        self.say(f"validation after epoch {epoch}: mIoU {shown}  ({best_shown}, {seconds:.1f} s)")

    def pictures(self, step: int, pages: Iterable[tuple[str, np.ndarray]]) -> None:
        """Gives pages, uint8 RGB [H, W, 3] with their names, to TensorBoard; takes none of them where there is none.

        For :func:`hmsa_ext.engine.pictures.pages`, which draws a page when it is taken. Only the main process draws.
        """
        if self._board is not None:
            for name, page in pages:
                self._board.add_image(f"pictures/{name}", page, step, dataformats="HWC")

    def state(self) -> dict[str, Any]:
        """What was counted since the last record, summed over the processes: plain numbers, for a checkpoint.

        Every process calls this. What the main process gets is for all: its ``seconds`` are those of its own steps.
        """
        now = time.perf_counter() if self._paused_at is None else self._paused_at
        sums = torch.tensor([float(self._loss), float(self._images), self._data_seconds], dtype=torch.float64)
        loss, images, data_seconds = distributed.total(self._process, sums).tolist()
        seconds = now - self._since
        return {
            "loss": loss, "steps": self._count, "images": int(images), "data_seconds": data_seconds, "seconds": seconds,
        }  # fmt: skip

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues from what :meth:`state` gave, before the first step; an empty state (of an older checkpoint)
        changes nothing. Every process calls this."""
        if not state:
            return
        processes = self._process.world_size
        self._count = int(state["steps"])
        self._data_seconds = state["data_seconds"] / processes
        self._since -= state["seconds"]
        # The loss and the images are sums over the processes: one of them takes all, the next sum has them once.
        if self._process.is_main:
            self._loss.fill_(state["loss"])
        self._images = state["images"] / processes

    def say(self, text: str) -> None:
        """Prints a line, above the progress bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        else:
            self._process.print(text)

    def warn(self, text: str) -> None:
        """Prints a line on standard error, whichever process it is: files differ from one to the other."""
        if self._process.world_size > 1:
            text = f"process {self._process.rank}: {text}"
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside does not count as step time."""
        self._paused_at = begin = time.perf_counter()
        try:
            yield
        finally:
            self._paused_at = None
            self._since += time.perf_counter() - begin

    def close(self) -> None:
        """Closes the files."""
        for sink in (self._file, self._board, self._bar):
            if sink is not None:
                sink.close()

    def _record(self, step: int, epoch: int, lr: float) -> None:
        loss = (distributed.total(self._process, self._loss) / (self._count * self._process.world_size)).item()
        seconds = time.perf_counter() - self._since  # after .item(), which waits for the GPU
        values = {
            "loss": loss,
            "lr": lr,
            "data_seconds": self._data_seconds / self._count,
            "step_seconds": seconds / self._count,
            "images_per_second": self._images * self._process.world_size / seconds,
            "memory_gib": memory_gib(self._process.device),
        }
        eta = (self._steps - step) * values["step_seconds"]
        self._write({"kind": "train", "step": step, "epoch": epoch, "steps": self._count, **values})
        self._scalars("train", values, step)
        line = (
            f"loss {loss:.4f}  lr {lr:.2e}  data {1e3 * values['data_seconds']:.0f} ms  "
            f"step {1e3 * values['step_seconds']:.0f} ms  {values['images_per_second']:.1f} img/s  "
            f"mem {values['memory_gib']:.2f} GiB"
        )
        now = time.perf_counter()
        if self._bar is not None:
            self._bar.set_postfix_str(line)
        elif self._first or step == self._steps or now - self._printed >= SECONDS_BETWEEN_LINES:
            self._process.print(f"epoch {epoch}  step {step}/{self._steps}  {line}  eta {duration(eta)}")
            self._printed, self._first = now, False
        self._loss.zero_()
        self._count = self._images = 0
        self._data_seconds, self._since = 0.0, now

    def _write(self, record: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps({name: _plain(value) for name, value in record.items()}) + "\n")
            self._file.flush()

    def _scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)


def timed(items: Iterable[Any]) -> Iterator[tuple[Any, float]]:
    """The items, each with the seconds that were spent waiting for it."""
    iterator = iter(items)
    while True:
        begin = time.perf_counter()
        try:
            item = next(iterator)
        except StopIteration:
            return
        yield item, time.perf_counter() - begin


def progress_bar(process: Process, description: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """A wrapper that shows progress through a loader on a terminal, and nothing elsewhere."""

    def show(items: Iterable[Any]) -> Iterable[Any]:
        quiet = not process.is_main or not sys.stderr.isatty()
        return tqdm(items, desc=description, unit="image", leave=False, dynamic_ncols=True, disable=quiet)

    return show


def memory_gib(device: torch.device) -> float:
    """Peak memory so far: of PyTorch's tensors on a GPU, of the whole process (resident) on the CPU; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``. Lines that are none are left out: a killed run, or a disk, left them.

    Every record has a whole number ``step`` and a text ``kind``. Raises OSError for a file that cannot be read.
    """
    return [record for _, record in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line.decode())
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("kind"), str):
            step = record.get("step")
            if type(step) is int and 0 <= step < 2**63:
                yield line, record


def _open_metrics(path: Path, step: int) -> Any:
    kept = [line for line, record in _lines(path) if record["step"] <= step] if path.exists() else []
    with replacing(path) as file:
        file.write(b"".join(line + b"\n" for line in kept))
    return path.open("a", encoding="utf-8")


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _tensorboard(folder: Path, step: int, process: Process) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        process.print("TensorBoard files: none, since tensorboard is not installed (pip install tensorboard)")
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
