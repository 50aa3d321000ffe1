"""What an op says when its result does not fit into memory."""

from __future__ import annotations

import pytest
import torch

import hmsa_ext.ops  # noqa: F401  (registers the ops)


def test_error_names_shape_dtype_and_device():
    logits = [torch.zeros(1, 1, 2, 2)]
    expected = r"^out of memory: cannot allocate a tensor \[1, 1, 8388608, 4194304\] of float32 on cpu"
    with pytest.raises(RuntimeError, match=expected):
        torch.ops.hmsa.fuse_scales(logits, [], [1.0], [2**23, 2**22])
