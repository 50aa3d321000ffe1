"""The first line of a run: machine, card, driver, versions, commit, and what the library was built from.

    python -m bench.gpu_machine --write build/gpu/built_from.json

writes what bench/gpu.sh --build leaves beside the library: the commit and a hash of its sources.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

from bench.commands import command_parser

ROOT = Path(__file__).resolve().parents[1]
# What the compiled library depends on.
_SOURCES = ("csrc/core", "csrc/ops", "cmake", "CMakeLists.txt")
BUILT_FROM = "built_from.json"  # beside the package that was built beforehand


def main() -> None:
    parser = command_parser("python -m bench.gpu_machine", __doc__)
    parser.add_argument("--write", type=Path, required=True, metavar="FILE")
    file = parser.parse_args().write
    file.write_text(json.dumps({"commit": commit(), "sources": digest()}) + "\n", encoding="utf-8")


def facts() -> dict:
    """Everything that figures depend on. Raises ImportError where the library does not load."""
    import torch

    from bench import record
    from hmsa_ext.ops import library

    built = _built_from(library.library_path())
    machine = {
        "commit": commit() or built.get("commit"),
        "library": {
            **library.build_info(),
            "commit": built.get("commit"),
            # None where nothing was written down: the library was installed from these very sources.
            "built_from_these_sources": built["sources"] == digest() if built else None,
        },
        **record.machine(),
        "torch": torch.__version__,
        "cuda_of_torch": torch.version.cuda,
    }
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        machine["card"] = {
            "name": card.name,
            "capability": f"{card.major}.{card.minor}",
            "bytes": card.total_memory,
            "multiprocessors": card.multi_processor_count,
            "l2_bytes": getattr(card, "L2_cache_size", None),
            **_nvidia_smi("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit"),
        }
    return machine


def stem(dry: bool) -> str:
    """What names a machine in the names of files: its card, ``nvidia-h200``."""
    if dry:
        return "dry"
    import torch

    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-")


def commit() -> str | None:
    """The commit of the checkout, with a remark if it was changed since; HMSA_COMMIT where git does not know."""
    try:
        options = {"cwd": ROOT, "capture_output": True, "text": True, "check": True}
        name = subprocess.run(["git", "rev-parse", "HEAD"], **options).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain"], **options).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("HMSA_COMMIT") or None
    return f"{name} with changes" if changed else name


def digest() -> str:
    """A short hash of all sources of the library, by name and content."""
    found = hashlib.sha256()
    for path in sorted(file for part in _SOURCES for file in _files(ROOT / part)):
        found.update(f"{path.relative_to(ROOT)}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def _built_from(library: Path) -> dict:
    try:
        return json.loads((library.parents[1] / BUILT_FROM).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _nvidia_smi(*names: str) -> dict[str, str]:
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader", "--id=0"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(names, (value.strip() for value in answer.split(",")), strict=False))


if __name__ == "__main__":
    main()
