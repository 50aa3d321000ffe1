"""What a run says while it works: ``metrics.jsonl``, TensorBoard files, and progress on the console."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from hmsa_ext.engine import distributed
from hmsa_ext.engine.distributed import Process
from hmsa_ext.files import write_text

METRICS = "metrics.jsonl"
SECONDS_BETWEEN_LINES = 10.0


class RunLog:
    """Records of a run. Every process has one, since means are taken over all; only the main one writes and prints.

    ``step`` is the number of steps done before (0, or what a resumed run starts from): later records, which a
    killed run wrote after its last checkpoint, are dropped.
    """

    def __init__(self, folder: Path, process: Process, *, steps: int, step: int = 0, every: int = 10) -> None:
        self._process, self._steps, self._every = process, steps, every
        self._loss = torch.zeros((), dtype=torch.float64, device=process.device)
        self._count = self._images = 0
        self._data_seconds = 0.0
        self._since = self._printed = time.perf_counter()
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

    def validation(self, step: int, epoch: int, miou: dict[str, float], *, best: float, seconds: float) -> None:
        """Writes the result of a validation; its time does not count as step time."""
        values = {f"miou_{way}": x for way, x in miou.items()}
        self._write({"kind": "validation", "step": step, "epoch": epoch, **values, "seconds": round(seconds, 3)})
        self._scalars("validation", values, step)
        shown = "  ".join(f"{way} {100 * x:.2f}" for way, x in miou.items())
        self.say(f"validation after epoch {epoch}: mIoU {shown}  (best attention {100 * best:.2f}, {seconds:.1f} s)")

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
        begin = time.perf_counter()
        yield
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
        self._write({"kind": "train", "step": step, "epoch": epoch, **values})
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
            self._file.write(json.dumps({k: None if v != v else v for k, v in record.items()}) + "\n")
            self._file.flush()

    def _scalars(self, group: str, values: dict[str, float], step: int) -> None:
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


def duration(seconds: float) -> str:
    """Seconds as ``41s``, ``4m10s`` or ``2h05m``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def _open_metrics(path: Path, step: int) -> Any:
    kept = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                pass  # the line that was being written when the run was killed
    write_text(path, "".join(kept))
    return path.open("a")


def _tensorboard(folder: Path, step: int, process: Process) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        process.print("TensorBoard files: none, since tensorboard is not installed (pip install tensorboard)")
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
