"""Cross-entropy over the valid pixels of the fused logits."""

import doctest
import sys

import pytest
import torch
import torch.nn.functional as F

from hmsa_ext.losses import cross_entropy
from hmsa_ext.ops import fuse_scales


@pytest.mark.parametrize("ignore_index", [255, -1, 3])
@pytest.mark.parametrize("head", [(9, 13), (3, 4)])
def test_equals_pytorchs_mean(device, ignore_index: int, head):
    torch.manual_seed(0)
    logits = torch.randn(2, 6, *head, device=device, requires_grad=True)
    target = torch.randint(0, 6, (2, 9, 13), device=device)
    target[torch.rand(target.shape, device=device) < 0.2] = ignore_index
    loss = cross_entropy([logits], [], [1.0], target, ignore_index=ignore_index)
    large = F.interpolate(logits, (9, 13), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(large, target, ignore_index=ignore_index)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(x, logits)[0] for x in (loss, expected)]
    torch.testing.assert_close(*gradients)


def test_scales_in_any_order_with_smoothing(device):
    torch.manual_seed(0)
    low, high = torch.randn(2, 6, 4, 5, device=device), torch.randn(2, 6, 8, 10, device=device)
    attention, target = torch.rand(2, 1, 4, 5, device=device), torch.randint(0, 6, (2, 32, 40), device=device)
    loss = cross_entropy([low, high], [attention], [0.5, 1.0], target, label_smoothing=0.1)
    fused = fuse_scales([low, high], [attention], [0.5, 1.0], (32, 40))
    torch.testing.assert_close(loss, F.cross_entropy(fused, target, label_smoothing=0.1))


def test_target_without_a_valid_pixel_costs_nothing(device):
    logits = torch.randn(2, 6, 9, 13, device=device, requires_grad=True)
    loss = cross_entropy([logits], [], [1.0], torch.full((2, 9, 13), 255, dtype=torch.uint8, device=device))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_result_has_at_least_single_precision(device, dtype, result):
    logits = torch.randn(1, 4, 5, 6, device=device).to(dtype)
    target = torch.zeros(1, 5, 6, dtype=torch.long, device=device)
    assert cross_entropy([logits], [], [1.0], target).dtype == result


def test_example():
    result = doctest.testmod(sys.modules[cross_entropy.__module__], extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
