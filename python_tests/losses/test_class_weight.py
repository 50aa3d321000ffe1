"""Class weights in the cross-entropy, and how they follow from frequencies."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hmsa_ext import data, losses


def test_weighted_mean_equals_pytorch(device):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 9, 7, generator=generator, dtype=torch.float64).to(device).requires_grad_()
    target = torch.randint(0, 5, (2, 9, 7), generator=generator).to(device)
    target[:, :2] = 255
    weight = torch.tensor([0.5, 1.0, 2.0, 0.0, 3.0], device=device)
    ours = losses.cross_entropy([logits], [], [1.0], target.byte(), weight=weight)
    theirs = F.cross_entropy(logits, target, weight.double(), ignore_index=255)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


def test_all_ignored_is_zero_with_weights_too(device):
    logits = torch.randn(1, 3, 4, 4, device=device, requires_grad=True)
    target, weight = torch.full((1, 4, 4), 255, device=device), torch.tensor([1.0, 2.0, 3.0], device=device)
    loss = losses.cross_entropy([logits], [], [1.0], target, weight=weight)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0.0
    assert not gradient.any()


def test_weights_of_another_length_are_refused():
    with pytest.raises(RuntimeError, match=r"weight has shape \[4\]; expected \[3\], one factor for each class"):
        losses.cross_entropy([torch.zeros(1, 3, 2, 2)], [], [1.0], torch.zeros(1, 2, 2).long(), weight=torch.ones(4))
    with pytest.raises(ValueError, match="class_weight: expected None, since the main loss rmi takes none"):
        losses.MultiScaleLoss("rmi", class_weight=torch.ones(3))


def test_balanced_weights():
    frequencies = np.array([0.64, 0.32, 0.04, 0.0])
    np.testing.assert_allclose(data.balanced_weights(frequencies, 0.0), 1.0)
    even = data.balanced_weights(frequencies, 1.0)
    np.testing.assert_allclose(even[:3] * frequencies[:3], 1 / 3)  # every class as heavy as any other
    assert even[3] == even[2]  # absent: like the rarest that occurs
    assert (data.balanced_weights(frequencies, 0.5) * frequencies).sum() == pytest.approx(1.0)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="exponent: expected a number of at least 0, got -1"):
        data.balanced_weights(np.array([0.5, 0.5]), -1)
