"""Versions, what was built, devices, and which op has a kernel for which device.

    python -m hmsa_ext.info
    python -m hmsa_ext.info --json facts.json
    python -m hmsa_ext.info --models                   # the networks, their parameters and what a pass costs
    python -m hmsa_ext.info --memory                   # the memory that training and evaluation of each take

`hmsa info` is the same command.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

import hmsa_ext
from hmsa_ext import command_line
from hmsa_ext.files import Output
from hmsa_ext.models import NAMES
from hmsa_ext.models.catalogue import describe_all, trunk_weights
from hmsa_ext.ops import library
from hmsa_ext.parts import one_of
from hmsa_ext.settings import Metavar, Size, require, validate
from hmsa_ext.tables import text_table

# Flags of /proc/cpuinfo that make up each level of x86-64, as CPUs name them there.
_X86_LEVELS = {
    "x86-64-v2": {"cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2"},
    "x86-64-v3": {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}
# Columns of the table of kernels, and the dispatch keys that count for each.
_KERNELS = {
    "CPU": ("CPU",),
    "CUDA": ("CUDA",),
    "fake": ("Meta",),
    "autograd": ("Autograd", "AutogradCPU", "AutogradCUDA"),
    "autocast": ("AutocastCPU", "AutocastCUDA"),
    "vmap": ("FuncTorchBatched",),
}

CLASSES = 19
"""Of the networks that are listed."""


@dataclass(frozen=True)
class Info:
    """The file for the facts."""

    json: Annotated[str | None, Metavar("FILE")] = None
    """Write the same facts as JSON; - is standard output."""
    models: bool = False
    """List the networks that have names instead: parameters, FLOPs of a pass, where weights come from."""
    memory: bool = False
    """List the memory of these networks instead: of a training step by what is computed again in backward
    (--recompute of hmsa train), and of an evaluation. Nothing is computed; each network takes some seconds."""
    model: Annotated[str | None, one_of(NAMES), Metavar("NAME|MODULE:FACTORY")] = None
    """The one network that --memory tells of, in both kinds of arithmetic."""
    image_size: Size = (1024, 2048)
    """Of the image that --models counts a pass over, and of images and crops of --memory, in pixels."""

    def __post_init__(self) -> None:
        validate(self)
        require("memory", self.memory, not (self.memory and self.models), "one of --models and --memory")
        require("model", self.model, self.model is None or self.memory, "no value without --memory")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return command_line.run(_main, arguments)


def _main(arguments: list[str]) -> int:
    older = {"json": lambda value: None if value else ["--json", "-"]}  # it was a switch
    wanted = command_line.parse(Info(), arguments, prog="hmsa info", description=__doc__ or "", older=older)
    output = Output(wanted.json, "json") if wanted.json else None
    if wanted.memory:
        facts = collect_memory(wanted.image_size, NAMES if wanted.model is None else [wanted.model])
    else:
        facts = collect_models(wanted.image_size) if wanted.models else collect()
    if output is not None:
        output.write(json.dumps(facts, indent=2) + "\n")
    elif wanted.memory:
        print(memory_as_text(facts))
    else:
        print(models_as_text(facts) if wanted.models else as_text(facts))
    return 0


def collect_models(size: tuple[int, int]) -> dict[str, Any]:
    """The networks that have names, as plain data: see :class:`hmsa_ext.models.catalogue.Entry`."""
    say = command_line.progress_line()
    entries = describe_all(size=size, watch=say)
    say("")
    return {
        "size": list(size),
        "classes": CLASSES,
        "networks": [asdict(entry) for entry in entries],
        "trunks": trunk_weights(),
    }


def models_as_text(facts: dict[str, Any]) -> str:
    """The networks as a table, then the trunks."""
    height, width = facts["size"]
    rows = [
        (e["name"], e["trunk"], f"{e['parameters'] / 1e6:.2f} M", f"{e['flops'] / 1e9:.0f} G", str(e["stride"]))
        for e in facts["networks"]
    ]
    heads = ["network", "trunk", "parameters", f"FLOPs at {height}x{width}", "stride"]
    weights = _section("weights of networks (--weights)", {e["name"]: e["weights"] for e in facts["networks"]})
    return "\n\n".join(
        [
            text_table(heads, rows, left=(0, 1)),
            f"{facts['classes']} classes, one scale, forward; a multiplication and an addition count two. A scale s "
            "costs s * s of that, a training step about three times as much.",
            weights,
            _section(
                "trunks (--trunk) and their weights",
                {**facts["trunks"], "timm:NAME": "files with timm's names (with hmsa_ext[timm])"},
            ),
        ]
    )


def collect_memory(size: tuple[int, int], names: Sequence[str]) -> dict[str, Any]:
    """The memory of networks, as plain data, in bytes; one network in both kinds of arithmetic, several in float32.

    Peaks of training steps are without optimizer state and moving average, which depend on the parameters alone.
    """
    from hmsa_ext.engine.peak_table import MOST_CROPS, peaks_of_network  # not for the facts: it needs OpenCV

    say = command_line.progress_line()
    dtypes = ("float32", "bfloat16") if len(names) == 1 else ("float32",)
    found = [row for name in names for row in peaks_of_network(name, CLASSES, size, dtypes, watch=say)]
    say("")
    return {
        "size": list(size),
        "classes": CLASSES,
        "networks": [asdict(row) for row in found],
        "most_crops": MOST_CROPS,
    }


def memory_as_text(facts: dict[str, Any]) -> str:
    """The memory of networks as a table."""
    height, width = facts["size"]
    networks = facts["networks"]

    def gigabytes(size: int | None) -> str:
        return "-" if size is None else f"{size / 1e9:.2f}"

    rows = [
        (
            e["name"] + "*" * (e["crops"] > 1), e["dtype"], gigabytes(e["parameters"]),
            *(gigabytes(size) for size in e["training"].values()), gigabytes(e["evaluation"]),
        )
        for e in networks
    ]  # fmt: skip
    modes = list(networks[0]["training"])
    heads = ["GB", "arithmetic", "parameters", *(f"training, {mode}" for mode in modes), "evaluation"]
    first = networks[0]
    train_scales, eval_scales = (", ".join(f"{s:g}" for s in first[name]) for name in ("train_scales", "eval_scales"))
    notes = [
        f"Live tensors at the peak ({first['device']}), {facts['classes']} classes. Training: a step on one crop of "
        f"{height}x{width} at {train_scales}, by --recompute, with parameters and gradients, without optimizer state.",
        f"Evaluation: an image of {height}x{width} at {eval_scales}, with parameters.",
    ]
    if any(e["crops"] > 1 for e in networks):
        notes.append(f"* of {facts['most_crops']} crops: the network does not train on one.")
    notes.append("hmsa train --dry-run tells of a training with its own settings, by part.")
    return "\n\n".join([text_table(heads, rows, left=(0, 1)), "\n".join(notes)])


def collect() -> dict[str, Any]:
    """All facts as plain data: strings, numbers, lists and dicts, ready for JSON."""
    level = x86_level(_cpu_flags())
    opencv, wheels = _opencv()
    return {
        "versions": {
            "hmsa_ext": hmsa_ext.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": _version("numpy"),
            "cv2": opencv,
            "cuda of torch": torch.version.cuda,
        },
        "library": {"path": str(library.load()), **library.build_info()},
        "system": {
            "system": platform.platform(),
            "processor": _processor(),
            "instruction sets": level or platform.machine(),
            "row primitives": _row_primitives(),
            "processors": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory": _memory(),
        },
        "devices": [_describe_gpu(index) for index in range(torch.cuda.device_count())],
        "kernels": kernels(),
        "warnings": [text for text in (opencv_clash(wheels), _gpu_without_kernels()) if text],
    }


def as_text(facts: dict[str, Any]) -> str:
    """The facts as aligned text."""
    built = facts["library"]
    cuda = built["cuda"]
    library_rows = {
        "file": built["path"],
        "built for": f"torch >= {built['torch_target']}, {built['system']} (headers of torch {built['torch_headers']})",
        "compiler": built["compiler"],
        "flags": built["cxx_flags"],
        "CPU kernels": ", ".join(built["simd"]),
    }
    if cuda is None:
        library_rows["CUDA kernels"] = f"none: {built['no_cuda']}"
    else:
        library_rows |= {
            "CUDA kernels": f"machine code for {', '.join(cuda['archs'])}; PTX for {', '.join(cuda['ptx']) or 'none'}",
            "nvcc": cuda["nvcc"],
            "nvcc flags": cuda["flags"],
        }
    devices = {f"cuda:{index}": text for index, text in enumerate(facts["devices"])} or {"cuda": "none"}
    parts = [
        _section("versions", facts["versions"]),
        _section("library", library_rows),
        _section("system", facts["system"]),
        _section("devices", devices),
        _kernel_table(facts["kernels"]),
    ]
    parts += [f"warning: {text}" for text in facts["warnings"]]
    return "\n\n".join(parts)


def kernels() -> dict[str, dict[str, bool]]:
    """For each registered op of ours: what it has a kernel for, asked of torch's dispatcher."""
    library.load()
    names = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("hmsa::"))
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    names = [name for name in names if not has(name, "CompositeImplicitAutograd")]  # made of others: no kernels
    table = {name: {column: any(has(name, key) for key in keys) for column, keys in _KERNELS.items()} for name in names}
    if not library.has_cuda_kernels():  # then what is registered for CUDA only explains what is missing
        for row in table.values():
            row["CUDA"] = False
    return table


def x86_level(flags: Iterable[str]) -> str | None:
    """The highest level of x86-64 that a processor with these flags (names of /proc/cpuinfo) has; None for others."""
    have = set(flags)
    level = None
    for name, needed in _X86_LEVELS.items():
        if not needed <= have:
            break
        level = name
    return level


def opencv_clash(wheels: list[str]) -> str | None:
    """What to do where several of the wheels that provide ``cv2`` are installed, though it works; else None."""
    if len(wheels) < 2:
        return None
    return (
        f"{' and '.join(wheels)} are installed together. They share the folder cv2 and overwrite each other, so that "
        f"removing one breaks the other. Keep one: pip uninstall -y {' '.join(wheels)} && "
        "pip install opencv-python-headless"
    )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _opencv() -> tuple[str, list[str]]:
    """Version of OpenCV, or why it does not import, and the wheels that provide it."""
    try:
        from hmsa_ext.data.opencv import cv2, installed_wheels
    except ImportError as error:
        return str(error), []
    return cv2.__version__, installed_wheels()


def _processor() -> str:
    return next((value for key, value in _cpuinfo() if key == "model name"), platform.processor() or platform.machine())


def _cpu_flags() -> list[str]:
    return next((value.split() for key, value in _cpuinfo() if key == "flags"), [])


def _cpuinfo() -> list[tuple[str, str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]


def _row_primitives() -> str:
    """The instruction set that the library chose for its CPU kernels, or the error if HMSA_SIMD names a wrong one."""
    try:
        return torch.ops.hmsa._instruction_set()
    except RuntimeError as error:
        return str(error)


def _memory() -> str | None:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (AttributeError, ValueError, OSError):
        return None


def _describe_gpu(index: int) -> str:
    gpu = torch.cuda.get_device_properties(index)
    built = library.build_info()["cuda"]
    runs = built is not None and library.runs_on((gpu.major, gpu.minor), built["archs"], built["ptx"])
    return (
        f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}, {gpu.total_memory / 2**30:.1f} GiB, "
        f"{'our kernels run on it' if runs else 'no kernels of ours for it'}"
    )


def _gpu_without_kernels() -> str | None:
    for index in range(torch.cuda.device_count()):
        try:
            library.require_kernels(torch.device("cuda", index))
        except NotImplementedError as error:
            return str(error)
    return None


def _section(title: str, rows: dict[str, Any]) -> str:
    width = max(map(len, rows))
    return "\n".join(
        [title, *(f"  {name:<{width}}  {'none' if value is None else value}" for name, value in rows.items())]
    )


def _kernel_table(table: dict[str, dict[str, bool]]) -> str:
    width = max(map(len, table), default=0)
    lines = [f"{'kernels':<{width + 2}}  " + "  ".join(_KERNELS)]
    for name, row in table.items():
        cells = (f"{'yes' if has else '-':<{len(column)}}" for column, has in row.items())
        lines.append(f"  {name:<{width}}  {'  '.join(cells)}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
