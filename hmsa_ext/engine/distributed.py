"""One process or many: what torchrun started, seen as one :class:`Process` that the rest of the engine is handed.

Without torchrun every function here is the identity, so that the loop has no second path.
"""

import contextlib
import importlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hmsa_ext.engine.device import choose_device
from hmsa_ext.settings import SettingError


@dataclass(frozen=True)
class Process:
    """This process's place among those of the run.

    ``text_to_stderr``: what is printed goes to standard error, since standard output carries a result.
    """

    device: torch.device
    reason: str = ""
    rank: int = 0
    world_size: int = 1
    text_to_stderr: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0

    def print(self, *words: object) -> None:
        """Prints on the main process only."""
        if self.is_main:
            print(*words, file=sys.stderr if self.text_to_stderr else sys.stdout, flush=True)


@contextlib.contextmanager
def start(device: str = "auto", *, patience: timedelta | None = None) -> Iterator[Process]:
    """Joins the processes that torchrun started, if it did, and leaves them at the end.

    NCCL carries what lies on GPUs, Gloo what lies on the CPU. ``patience``: how long a process waits for another;
    PyTorch's own, half an hour, unless given.

    Raises :class:`hmsa_ext.settings.SettingError` for more processes on a machine than it has GPUs.
    """
    world_size, local_rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    if world_size > 1 and device.startswith("cuda:"):
        raise SettingError("device", device, f"auto, cpu or cuda, as there are {world_size} processes")
    chosen, reason = choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size == 1:
        yield Process(chosen, reason)
        return
    # Whatever imports this later (fake tensors do) would keep the group that is there then for ever, and its threads
    # would run into the end of the interpreter: a process in ten is aborted after its work is done.
    importlib.import_module("torch._dynamo")
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    device_id = chosen if chosen.type == "cuda" else None
    dist.init_process_group(backend, device_id=device_id, timeout=patience)
    try:
        yield Process(chosen, reason, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def wrap(model: nn.Module, process: Process, *, all_used: bool) -> nn.Module:
    """The model whose gradients are averaged over the processes; with one process the model itself.

    ``all_used``: every parameter takes part in every step, which saves DDP a search.
    """
    if process.world_size == 1:
        return model
    devices = [process.device] if process.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=devices, find_unused_parameters=not all_used)


def with_shared_statistics(model: nn.Module, process: Process) -> nn.Module:
    """The model with synchronized batch norm where that exists and matters: several processes with GPUs.

    One process, and processes on CPUs, keep the plain layers: nobody has to edit a configuration for them. So do layers
    derived from batch norm that compute something else: PyTorch's conversion would lose what they add. A module with
    such layers may convert itself, by a method ``with_shared_statistics()`` that returns the module.
    """
    if process.world_size == 1:
        return model
    if process.device.type == "cuda":
        kept: Counter[str] = Counter()
        model = _converted(model, kept)
        for kind, count in kept.items():
            process.print(f"batch norm: statistics per process in {count} layers {kind}, which cannot be converted")
        return model
    process.print("batch norm: statistics per process (synchronized batch norm needs GPUs)")
    return model


def _converted(module: nn.Module, kept: Counter[str]) -> nn.Module:
    """The module with synchronized batch norm; ``kept`` counts the layers by class that stay as they are."""
    own: Callable[[], nn.Module] | None = getattr(module, "with_shared_statistics", None)
    if own is not None:
        return own()
    if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
        if type(module).forward is _BatchNorm.forward:
            return nn.SyncBatchNorm.convert_sync_batchnorm(module)
        kept[type(module).__name__] += 1
    for name, child in module.named_children():
        module.add_module(name, _converted(child, kept))
    return module


def any_process(process: Process, *flags: bool) -> tuple[bool, ...]:
    """Each flag, true when it is true in any process, so that all processes decide alike.

    The flags travel through CPU memory: no process waits for its GPU.
    """
    if process.world_size == 1:
        return flags
    shared = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return tuple(bool(x) for x in shared)


def total(process: Process, values: Tensor) -> Tensor:
    """Sum over the processes, in the dtype it has: integers stay exact."""
    if process.world_size == 1:
        return values
    values = values.cpu()
    dist.all_reduce(values, dist.ReduceOp.SUM)
    return values


def gather(process: Process, value: Any) -> list[Any]:
    """The value of every process, in order of rank, in every process."""
    if process.world_size == 1:
        return [value]
    values: list[Any] = [None] * process.world_size
    dist.all_gather_object(values, value)
    return values


def wait_for_all(process: Process) -> None:
    """Returns when every process has come here."""
    gather(process, None)  # through CPU memory: no process waits for its GPU


@contextlib.contextmanager
def first_on_machine(process: Process) -> Iterator[None]:
    """Inside, one process of each machine goes first, and the others when it is done: they find what it left on disk.

    Also when it fails, so that all fail alike.
    """
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if not first:
        wait_for_all(process)
    try:
        yield
    finally:
        if first:
            wait_for_all(process)


def from_main(process: Process, value: Any) -> Any:
    """The main process's value, in every process."""
    if process.world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def copy_from_main(process: Process, tensors: Iterable[Tensor]) -> None:
    """Overwrites tensors, in place, by those of the main process."""
    if process.world_size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
