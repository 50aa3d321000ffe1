"""Cross-entropy over valid pixels, and the checks that all losses share."""

import pytest
import torch
import torch.nn.functional as F

from hmsa_ext.losses import cross_entropy


@pytest.mark.parametrize("ignore_index", [255, -1, 3])
def test_equals_pytorchs_mean(device, ignore_index: int):
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 9, 13, device=device, requires_grad=True)
    target = torch.randint(0, 6, (2, 9, 13), device=device)
    target[torch.rand(target.shape, device=device) < 0.2] = ignore_index
    loss = cross_entropy(logits, target, ignore_index=ignore_index)
    expected = F.cross_entropy(logits, target, ignore_index=ignore_index)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(x, logits)[0] for x in (loss, expected)]
    torch.testing.assert_close(*gradients)


def test_target_without_a_valid_pixel_costs_nothing(device):
    logits = torch.randn(2, 6, 9, 13, device=device, requires_grad=True)
    loss = cross_entropy(logits, torch.full((2, 9, 13), 255, dtype=torch.uint8, device=device))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_type(device, dtype):
    torch.manual_seed(0)
    logits, target = torch.randn(1, 4, 5, 6, device=device), torch.randint(0, 4, (1, 5, 6), device=device)
    assert torch.equal(cross_entropy(logits, target.to(dtype)), cross_entropy(logits, target))


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
    assert cross_entropy(logits, torch.zeros(1, 5, 6, dtype=torch.long, device=device)).dtype == result


@pytest.mark.parametrize(
    ("logits", "target", "error", "message"),
    [
        (torch.zeros(4, 5, 6), torch.zeros(5, 6).long(), ValueError, r"logits: expected \[B, C, H, W\], got shape"),
        (torch.zeros(1, 4, 5, 6).long(), torch.zeros(1, 5, 6).long(), TypeError, "logits: expected floating point"),
        (
            torch.zeros(1, 4, 5, 6),
            torch.zeros(1, 1, 5, 6).long(),
            ValueError,
            r"target: expected shape \[1, 5, 6\] to go with logits \[1, 4, 5, 6\], got \[1, 1, 5, 6\]",
        ),
        (
            torch.zeros(1, 4, 5, 6),
            torch.zeros(1, 5, 6),
            TypeError,
            "target: expected integer labels, got torch.float32",
        ),
        (
            torch.zeros(1, 4, 5, 6),
            torch.zeros(1, 5, 6, dtype=torch.bool),
            TypeError,
            "target: expected integer labels, got torch.bool",
        ),
        (
            torch.zeros(1, 4, 1, 6),
            torch.tensor([[[0, 9, 9, 200, 255, -1]]]),
            ValueError,
            r"labels must be 0 to 3, or 255 \(ignored\); found -1 \(1 pixels\), 9 \(2 pixels\), 200 \(1 pixels\)",
        ),
    ],
)
def test_bad_input_is_named(logits, target, error, message: str):
    with pytest.raises(error, match=message):
        cross_entropy(logits, target)
