"""Cross-entropy over the hardest pixels."""

import doctest
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hmsa_ext.losses import bootstrapped_cross_entropy, cross_entropy


def case(device) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 6, 8, device=device, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 5, (2, 24, 32), device=device)
    target[:, :5] = 255
    return logits, target


def pixel_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Of the valid pixels, the hardest first."""
    large = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)
    losses = F.cross_entropy(large, target, ignore_index=255, reduction="none")
    return losses[target != 255].sort(descending=True).values


@pytest.mark.parametrize("share", [1e-9, 0.01, 0.2, 0.5, 0.999, 1.0])
def test_mean_over_a_share_of_the_valid_pixels(device, share):
    logits, target = case(device)
    ours = bootstrapped_cross_entropy([logits], [], [1.0], target, share=share)
    losses = pixel_losses(logits, target)
    expected = losses[: math.ceil(share * len(losses))].mean()
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (ours, expected)))


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.7, 0.999])
def test_pixels_below_the_threshold_count_beyond_the_share(device, threshold):
    logits, target = case(device)
    ours = bootstrapped_cross_entropy([logits], [], [1.0], target, share=0.1, threshold=threshold)
    losses = pixel_losses(logits, target)
    number = max(math.ceil(0.1 * len(losses)), int((losses >= -math.log(threshold)).sum()))
    torch.testing.assert_close(ours, losses[:number].mean())


def test_the_whole_share_is_the_plain_mean(device):
    logits, target = case(device)
    ours = bootstrapped_cross_entropy([logits], [], [1.0], target, share=1.0)
    torch.testing.assert_close(ours, cross_entropy([logits], [], [1.0], target))


def test_pixels_as_hard_as_the_last_one_count_too(device):
    logits = torch.zeros(1, 2, 4, 4, device=device, requires_grad=True)
    target = torch.zeros(1, 4, 4, dtype=torch.uint8, device=device)
    loss = bootstrapped_cross_entropy([logits], [], [1.0], target, share=0.25)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(math.log(2))
    torch.testing.assert_close(gradient[0, 0], torch.full((4, 4), -0.5 / 16, device=device))


def test_two_scales_weights_and_smoothing(device):
    logits, target = case(device)
    low, attention = torch.randn_like(logits[..., ::2, ::2]), torch.rand_like(logits[:, :1, ::2, ::2])
    weight = torch.tensor([0.5, 1.0, 2.0, 1.0, 3.0], device=device)
    options = {"weight": weight, "label_smoothing": 0.1}
    loss = bootstrapped_cross_entropy([low, logits], [attention], [0.5, 1.0], target, share=0.3, **options)
    assert loss > cross_entropy([low, logits], [attention], [0.5, 1.0], target, **options)


def test_target_without_a_valid_pixel_costs_nothing(device):
    logits = torch.randn(2, 5, 6, 8, device=device, requires_grad=True)
    target = torch.full((2, 24, 32), 255, dtype=torch.uint8, device=device)
    loss = bootstrapped_cross_entropy([logits], [], [1.0], target, threshold=0.7)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()
    assert bootstrapped_cross_entropy([logits[:0]], [], [1.0], target[:0]).item() == 0


def test_nan_shows(device):
    logits, target = case(device)
    with torch.no_grad():
        logits[0, 2, 4, 4] = math.nan
    assert bootstrapped_cross_entropy([logits], [], [1.0], target).isnan()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "share: expected a number above 0 and up to 1, got 0.0"),
        ({"share": 1.5}, "share: expected a number above 0 and up to 1, got 1.5"),
        ({"share": math.nan}, "share: expected a number above 0 and up to 1, got nan"),
        ({"threshold": 0.0}, "threshold: expected a probability between 0 and 1, or None, got 0.0"),
        ({"threshold": 1.0}, "threshold: expected a probability between 0 and 1, or None, got 1.0"),
    ],
)
def test_bad_options_are_named(options, message):
    logits, target = case("cpu")
    with pytest.raises(ValueError, match=message):
        bootstrapped_cross_entropy([logits], [], [1.0], target, **options)


def test_example():
    result = doctest.testmod(sys.modules[bootstrapped_cross_entropy.__module__], extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
