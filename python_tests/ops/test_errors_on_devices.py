"""Wrong lists and mixed devices end in the same errors on a GPU as on the CPU: checks come before everything else."""

from __future__ import annotations

import pytest
import torch

from .problems import make_problem

op = torch.ops.hmsa

SIZE = (16, 24)

# Raw ops over (logits, attention, scales); something else brings the device where there are no logits.
CHAIN_OPS = {
    "fuse_scales": lambda logits, attention, scales, target: op.fuse_scales(logits, attention, scales, SIZE),
    "_fuse_scales_backward": lambda logits, attention, scales, target: op._fuse_scales_backward(
        target.float().unsqueeze(1).expand(-1, 5, -1, -1), logits, attention, scales, False, 1, 1
    ),
    "fuse_scales_argmax": lambda logits, attention, scales, target: op.fuse_scales_argmax(
        logits, attention, scales, SIZE
    ),
    "_fuse_scales_cross_entropy": lambda logits, attention, scales, target: op._fuse_scales_cross_entropy(
        logits, attention, scales, target, None, 255, 0.0, "mean", False
    ),
    "_fuse_scales_rmi": lambda logits, attention, scales, target: op._fuse_scales_rmi(
        logits, attention, scales, target, 255, True, False
    ),
}


def arguments(device: torch.device):
    problem = make_problem([2.0, 1.0, 0.5], SIZE)
    logits = [tensor.detach().to(device) for tensor in problem.logits]
    attention = [tensor.detach().to(device) for tensor in problem.attention]
    target = torch.zeros(logits[0].shape[0], *SIZE, dtype=torch.uint8, device=device)
    return logits, attention, problem.scales, target


@pytest.mark.parametrize("name", CHAIN_OPS)
def test_no_logits_are_an_error(device, name):
    _, attention, scales, target = arguments(device)
    with pytest.raises(RuntimeError, match="logits has 0 entries; expected"):
        CHAIN_OPS[name]([], attention, scales, target)


@pytest.mark.parametrize("name", CHAIN_OPS)
def test_too_few_logits_are_an_error(device, name):
    logits, attention, scales, target = arguments(device)
    with pytest.raises(RuntimeError, match="logits has 1 entries; expected 3"):
        CHAIN_OPS[name](logits[:1], attention, scales, target)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHAIN_OPS)
def test_first_logits_elsewhere_are_an_error(name):
    logits, attention, scales, target = arguments(torch.device("cuda"))
    with pytest.raises(RuntimeError, match=r"is on .*cpu"):
        CHAIN_OPS[name]([logits[0].cpu(), *logits[1:]], attention, scales, target)


@pytest.mark.gpu
def test_labels_on_two_devices_are_an_error():
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="prediction is on cuda:0, target on cpu; expected one device"):
        op.confusion_matrix(labels.cuda(), labels, 5)
    with pytest.raises(RuntimeError, match="prediction is on cpu, target on cuda:0; expected one device"):
        op.confusion_matrix(labels, labels.cuda(), 5)
