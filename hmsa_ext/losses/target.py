"""Checks that every loss makes of its target."""

import torch
from torch import Tensor

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32)


def check_target(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Check ``target`` [B, H, W] against ``logits`` [B, C, H, W]; return it as int64, and which pixels are valid.

    Labels are integers of any width. A label that is neither a class nor ``ignore_index`` raises on the CPU. On other
    devices this is not looked at, since that would wait for the device; losses then make themselves NaN or abort.

    Raises:
        ValueError: shapes that do not fit, labels outside the classes (value and number of pixels).
        TypeError: logits that are not floating point, a target that is not of integers.
    """
    if logits.dim() != 4:
        raise ValueError(f"logits: expected [B, C, H, W], got shape {list(logits.shape)}")
    if not logits.is_floating_point():
        raise TypeError(f"logits: expected floating point, got {logits.dtype}")
    expected = (logits.shape[0], *logits.shape[-2:])
    if tuple(target.shape) != expected:
        raise ValueError(
            f"target: expected shape {list(expected)} to go with logits {list(logits.shape)}, got {list(target.shape)}"
        )
    if target.dtype not in _INTEGERS:
        raise TypeError(f"target: expected integer labels, got {target.dtype}")
    if target.device != logits.device:
        raise ValueError(f"target: expected it on {logits.device} with the logits, got {target.device}")
    target = target.long()
    valid = target != ignore_index
    if target.device.type == "cpu":
        _check_labels(target, valid, logits.shape[1], ignore_index)
    return target, valid


def outside(target: Tensor, valid: Tensor, num_classes: int) -> Tensor:
    """Pixels whose label is neither a class nor ignored: bool, of the target's shape."""
    return valid & ((target < 0) | (target >= num_classes))


def _check_labels(target: Tensor, valid: Tensor, num_classes: int, ignore_index: int) -> None:
    wrong = outside(target, valid, num_classes)
    if wrong.any():
        values, counts = target[wrong].unique(return_counts=True)
        found = ", ".join(f"{v} ({n} pixels)" for v, n in zip(values.tolist()[:5], counts.tolist()[:5], strict=True))
        raise ValueError(
            f"target: labels must be 0 to {num_classes - 1}, or {ignore_index} (ignored); found {found}"
            + (f" and {len(values) - 5} other values" if len(values) > 5 else "")
        )
