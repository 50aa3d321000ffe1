"""Which device and which arithmetic a run uses, and why: the reason is printed."""

import contextlib
from collections.abc import Iterator

import torch

from hmsa_ext.settings import SettingError

NO_CUDA, NO_GPU = "this PyTorch is built without CUDA", "no GPU is visible"


def choose_device(wanted: str = "auto", local_rank: int = 0) -> tuple[torch.device, str]:
    """Device for ``wanted`` ("auto", "cpu", "cuda", "cuda:1", ...) and the reason for it, as text.

    With several processes on one machine, "auto" and "cuda" take the GPU of the process's local rank.
    """
    gpus = torch.cuda.device_count()
    if wanted == "auto":
        if gpus == 0:
            return torch.device("cpu"), f"cpu: {NO_CUDA if torch.version.cuda is None else NO_GPU}"
        wanted = "cuda"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise SettingError("device", wanted, "auto, cpu, cuda or cuda:N") from None
    if device.type == "cpu":
        return device, "cpu: asked for"
    if device.type != "cuda":
        raise SettingError("device", wanted, "auto, cpu, cuda or cuda:N")
    index = local_rank if device.index is None else device.index
    if index >= gpus:
        visible = f"GPU 0 to {gpus - 1}, which are visible" if gpus > 1 else "cuda:0, the one visible GPU"
        if gpus == 0:
            visible = f"cpu or auto: {NO_CUDA if torch.version.cuda is None else NO_GPU}"
        raise SettingError("device", wanted, visible)
    return torch.device("cuda", index), f"cuda:{index}: {torch.cuda.get_device_name(index)}"


def choose_dtype(wanted: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Arithmetic for ``wanted`` ("auto", "float32", "bfloat16") on a device, and the reason for it, as text."""
    if wanted != "auto":
        return getattr(torch, wanted), f"{wanted}: asked for"
    if device.type != "cuda":
        return torch.float32, "float32 (default on the CPU)"
    major, minor = torch.cuda.get_device_capability(device)
    if major >= 8:
        return torch.bfloat16, f"bfloat16 (autocast): compute capability {major}.{minor}"
    return torch.float32, f"float32: compute capability {major}.{minor}, bfloat16 needs 8.0"


def arithmetic(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Context in which a model runs in ``dtype``: autocast, or nothing at all for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def memory_format(channels_last: bool) -> torch.memory_format:
    """The order in memory of images and of convolutions' weights."""
    return torch.channels_last if channels_last else torch.contiguous_format


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and the mode of before afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)
