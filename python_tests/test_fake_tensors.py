"""Fake tensors whose results are remembered are those of PyTorch's own mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from hmsa_ext.fake_tensors import RememberingFakes, tensors_in

OPERATIONS: dict[str, Callable[[Tensor], Any]] = {
    "dtype of a number": lambda x: (x.long() + 1, x.long() + 1.0, x.long() + True),
    "broadcast": lambda x: x + x[:, :1],
    "in place": lambda x: x.clone().mul_(2),
    "batch norm": lambda x: F.batch_norm(x, None, None, training=True),
    "order in memory": lambda x: F.relu(x.to(memory_format=torch.channels_last)),
    "views": lambda x: (x[:, 1:], x[:, :2], x.permute(0, 2, 3, 1), x.split(1, dim=1), x.flatten(2), x.mT),
    "views of views": lambda x: x[:, 1:][:, 1:].select(2, 3).view(x.shape[0], -1),
    "reshape": lambda x: (x.reshape(-1), x.mT.reshape(-1)),
    "a list": lambda x: torch.cat([x, x[:, 1:]], dim=1),
    "several outputs": lambda x: x.topk(2, dim=1),
    "a value that is known": lambda x: torch.tensor(3) + 1,
    "an output that is given": lambda x: torch.add(x, x, out=torch.empty_like(x)),
    "other sizes in place": lambda x: x.clone().transpose_(1, 2),
}


def facts(x: Tensor) -> tuple[Any, ...]:
    storage = x.untyped_storage()
    return (
        x.shape,
        x.stride(),
        x.storage_offset(),
        x.dtype,
        x.device,
        x.requires_grad,
        x.is_inference(),
        storage.nbytes(),
    )


def described(operation: Callable[[Tensor], Any], mode: FakeTensorMode, device: torch.device) -> list[Any]:
    """Of each output: what it is like, and whether it lies in the memory of the input."""
    found = []
    with mode:
        for size in (4, 4, 5, 4):
            x = torch.zeros(2, 3, size, 6, device=device)
            for y in tensors_in((operation(x),)):
                assert isinstance(y, FakeTensor)
                assert y.fake_mode is mode
                found.append((facts(y), y.untyped_storage()._cdata == x.untyped_storage()._cdata))
    return found


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_results_are_those_of_the_mode_of_pytorch(device: torch.device, name: str, inference: bool) -> None:
    with torch.inference_mode(inference):
        plain = described(OPERATIONS[name], FakeTensorMode(), device)
        assert described(OPERATIONS[name], RememberingFakes(), device) == plain


def test_errors_are_those_of_the_mode_of_pytorch() -> None:
    with RememberingFakes():
        x = torch.zeros(2, 3)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="broadcast"):
                torch.add(x, torch.zeros(2, 4))
            with pytest.raises(RuntimeError, match="invalid for input"):
                x.view(5)


def test_gradients_have_the_same_sizes_each_time(device: torch.device) -> None:
    with RememberingFakes(), device:
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        for _ in range(2):
            network.zero_grad()
            network(torch.zeros(2, 3, 8, 8)).sum().backward()
            for parameter in network.parameters():
                assert parameter.grad is not None
                assert facts(parameter.grad)[:5] == facts(parameter)[:5]


def test_watchers_see_each_operation_and_not_what_it_consists_of() -> None:
    seen: list[int] = []
    with RememberingFakes() as mode:
        x = torch.zeros(2, 3, 4, 4)
        mode.watchers.append(lambda args, kwargs, result: seen.append(len(list(tensors_in((result,))))))
        for _ in range(2):
            torch.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-5)
    assert seen == [3, 3]


def test_the_active_mode_is_known() -> None:
    assert RememberingFakes.active() is None
    with FakeTensorMode():
        assert RememberingFakes.active() is None
    with RememberingFakes() as mode:
        assert RememberingFakes.active() is mode
