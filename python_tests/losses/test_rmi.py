"""The region mutual information loss: published values, and inputs on which the published code fails."""

import doctest

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import hmsa_ext.losses.rmi
from hmsa_ext.losses import cross_entropy, rmi_bce_loss, rmi_loss


def published_case(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    n, c, y, x = torch.meshgrid(*(torch.arange(k, dtype=torch.float64) for k in (2, 5, 32, 48)), indexing="ij")
    logits = 2 * torch.sin(0.1 * (n + 1) * (c + 1) * y + 0.07 * x)
    n, y, x = (t[:, 0].long() for t in (n, y, x))
    target = (y // 8 + x // 12 + n) % 5
    target[(x + y) % 17 == 0] = 255
    assert (target != 255).sum() == 2892
    return logits.to(device, dtype).requires_grad_(), target.to(device)


def inverse_formulation(logits: Tensor, target: Tensor) -> Tensor:
    """The loss with an explicit inverse, term by term as its formula is usually written; float64."""
    num_classes = logits.shape[1]
    valid = (target != 255).unsqueeze(1).double()
    one_hot = F.one_hot(torch.where(target == 255, 0, target), num_classes).permute(0, 3, 1, 2) * valid
    bce = (F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none") * valid).sum() / (valid.sum() + 1)

    def vectors(x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 4, 4, 2)
        patches = F.unfold(x.flatten(0, 1).unsqueeze(1), 3).unflatten(0, x.shape[:2])
        return patches - patches.mean(dim=-1, keepdim=True)

    y, p = vectors(one_hot), vectors(torch.sigmoid(logits) * valid + 1e-6)
    ridge = 5e-4 * torch.eye(9, dtype=torch.float64)
    inverse = torch.linalg.inv(p @ p.mT + ridge)
    m = y @ y.mT - (y @ p.mT) @ inverse @ (y @ p.mT).mT + ridge
    rmi = torch.log(torch.linalg.cholesky(m).diagonal(dim1=-2, dim2=-1) + 1e-8).sum(-1)
    return 0.5 * bce + 0.5 * (rmi.mean(0) / 9).sum()


def test_published_values_are_reproduced(device):
    logits, target = published_case(device)
    full, bce = rmi_loss(logits, target), rmi_bce_loss(logits, target)
    assert bce.item() == pytest.approx(4.6696014, rel=1e-6)
    assert full.item() == pytest.approx(2.6490018, rel=1e-6)
    assert 2 * full.item() - bce.item() == pytest.approx(0.6284022, rel=1e-5)
    assert cross_entropy(logits, target).item() == pytest.approx(2.3513505, rel=1e-6)
    full.backward()
    # The published gradient went through an inverse; four digits are what float32 inputs leave of it.
    assert logits.grad.abs().sum().item() == pytest.approx(1.8082224, rel=1e-4)
    assert logits.grad[0, 0, 0, 1].item() == pytest.approx(4.621925e-05, rel=1e-3)


@pytest.mark.parametrize("size", [(8, 8), (17, 31), (64, 48)])
def test_value_and_gradient_are_those_of_the_inverse_formulation(size):
    torch.manual_seed(0)
    logits = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 4, (2, *size))
    target[torch.rand(target.shape) < 0.1] = 255
    loss, expected = rmi_loss(logits, target), inverse_formulation(logits, target)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    gradient, expected_gradient = (torch.autograd.grad(x, logits)[0] for x in (loss, expected))
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-9)


def test_gradients_are_right():
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 9, 10, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 2, (1, 9, 10))
    target[0, 2, 3] = 255
    assert torch.autograd.gradcheck(lambda z: rmi_loss(z, target), logits)
    assert torch.autograd.gradcheck(lambda z: rmi_bce_loss(z, target), logits)


@pytest.mark.parametrize("case", ["constant", "saturated", "perfect", "one class", "half ignored", "large map"])
def test_degenerate_inputs_stay_finite(device, case: str):
    torch.manual_seed(0)
    size = 512 if case == "large map" else 64
    rows = torch.arange(size, device=device).view(1, -1, 1).expand(2, -1, size)
    target = (rows // 8) % 3  # of 5 classes two are absent
    one_hot = F.one_hot(target, 5).permute(0, 3, 1, 2).float()
    logits = torch.randn(2, 5, size, size, device=device)
    if case == "constant":
        logits = torch.zeros_like(logits)
    elif case == "saturated":
        logits = 1e4 * logits.sign()
    elif case in ("perfect", "large map"):  # labels and predictions the same: everything is singular but for the ridge
        logits = 60 * one_hot - 30
    elif case == "one class":
        target = torch.zeros_like(target)
    elif case == "half ignored":
        target = target.clone()
        target[:, :, size // 2 :] = 255
        target[1] = 255
    logits.requires_grad_()
    loss = rmi_loss(logits, target)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_target_without_a_valid_pixel_costs_nothing(device):
    logits = torch.randn(2, 3, 16, 16, device=device, requires_grad=True)
    target = torch.full((2, 16, 16), 255, dtype=torch.uint8, device=device)
    for loss in (rmi_loss, rmi_bce_loss):
        (gradient,) = torch.autograd.grad(loss(logits, target), logits)
        assert loss(logits, target).item() == 0
        assert (gradient == 0).all()


def test_ignored_pixels_do_not_matter(device):
    logits, target = published_case(device)
    changed = torch.where((target == 255).unsqueeze(1), logits + 5, logits)
    torch.testing.assert_close(rmi_loss(changed, target), rmi_loss(logits, target))
    (gradient,) = torch.autograd.grad(rmi_loss(logits, target), logits)
    assert (gradient.movedim(1, -1)[target == 255] == 0).all()


def test_not_a_number_passes_through(device):
    logits, target = published_case(device)
    bad = logits.detach().clone()
    bad[0, 1, 4, 6] = float("nan")
    assert target[0, 4, 6] != 255
    assert rmi_loss(bad, target).isnan()
    assert rmi_bce_loss(bad, target).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_float32(device, dtype):
    logits, target = published_case(device, dtype)
    loss = rmi_loss(logits, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(2.6490018, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_type(device, dtype):
    logits, target = published_case(device)
    assert torch.equal(rmi_loss(logits, target.to(dtype)), rmi_loss(logits, target))


def test_small_images_are_refused():
    with pytest.raises(ValueError, match=r"needs at least 8 x 8 pixels, got \[1, 2, 7, 9\]"):
        rmi_loss(torch.zeros(1, 2, 7, 9), torch.zeros(1, 7, 9, dtype=torch.long))
    assert rmi_bce_loss(torch.zeros(1, 2, 7, 9), torch.zeros(1, 7, 9, dtype=torch.long)).isfinite()


def test_a_label_outside_the_classes_is_loud(device):
    logits, target = published_case(device)
    target[0, 1, 3] = 5
    for loss in (rmi_loss, rmi_bce_loss):
        if device.type == "cpu":
            with pytest.raises(ValueError, match=r"labels must be 0 to 4, or 255 \(ignored\); found 5 \(1 pixels\)"):
                loss(logits, target)
        else:
            assert loss(logits, target).isnan()


def test_examples_in_docstrings_run():
    result = doctest.testmod(hmsa_ext.losses.rmi, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
