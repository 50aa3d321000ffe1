"""The loss of a multi-scale model: which terms, with which weights."""

import pytest
import torch
from torch import Tensor

from hmsa_ext.losses import MultiScaleLoss, cross_entropy, rmi_bce_loss, rmi_loss
from hmsa_ext.models import ScaleOutputs

FUNCTIONS = {"ce": (cross_entropy, cross_entropy), "rmi": (rmi_loss, rmi_bce_loss)}


def case(
    device: torch.device, *, scales: tuple[float, ...] = (1.0, 0.5), aux: bool = True
) -> tuple[ScaleOutputs, Tensor]:
    torch.manual_seed(0)
    heads = [(-(-int(24 * s) // 4), -(-int(32 * s) // 4)) for s in scales]
    logits = [torch.randn(2, 5, *h, device=device, requires_grad=True) for h in heads]
    extra = [torch.randn(2, 5, *h, device=device, requires_grad=True) for h in heads]
    attention = [torch.rand(2, 1, *h, device=device, requires_grad=True) for h in heads[1:]]
    target = torch.randint(0, 5, (2, 24, 32), device=device, dtype=torch.uint8)
    target[:, :3] = 255
    return ScaleOutputs(logits, attention, extra if aux else None, scales, (24, 32)), target


@pytest.mark.parametrize("main", ["ce", "rmi"])
@pytest.mark.parametrize("scales", [(1.0, 0.5), (2.0, 1.0, 0.5), (1.0,)])
def test_terms_and_weights_are_as_documented(device, main: str, scales):
    outputs, target = case(device, scales=scales)
    full, plain = FUNCTIONS[main]
    expected = full(outputs.fuse(), target) + 0.3 * plain(outputs.fuse_aux(), target)
    expected = expected + 0.05 * sum(plain(outputs.single_scale(i), target) for i in range(len(scales)))
    loss = MultiScaleLoss(main, aux_weight=0.3, scale_weight=0.05)(outputs, target)
    torch.testing.assert_close(loss, expected)
    assert loss.dtype == torch.float32
    assert loss.dim() == 0


def test_defaults_are_the_published_ones(device):
    outputs, target = case(device)
    expected = cross_entropy(outputs.fuse(), target) + 0.4 * cross_entropy(outputs.fuse_aux(), target)
    torch.testing.assert_close(MultiScaleLoss()(outputs, target), expected)


@pytest.mark.parametrize("main", ["ce", "rmi"])
def test_gradients_reach_logits_aux_and_attention(device, main: str):
    outputs, target = case(device)
    MultiScaleLoss(main)(outputs, target).backward()
    for tensor in outputs.logits + outputs.aux + outputs.attention:
        assert tensor.grad.abs().sum() > 0


def test_networks_without_aux_have_no_aux_term(device):
    outputs, target = case(device, aux=False)
    assert torch.equal(MultiScaleLoss()(outputs, target), cross_entropy(outputs.fuse(), target))


@pytest.mark.parametrize("main", ["ce", "rmi"])
def test_target_without_a_valid_pixel_costs_nothing(device, main: str):
    outputs, target = case(device)
    loss = MultiScaleLoss(main, scale_weight=0.05)(outputs, torch.full_like(target, 255))
    loss.backward()
    assert loss.item() == 0
    for tensor in outputs.logits + outputs.aux + outputs.attention:
        assert (tensor.grad == 0).all()


def test_the_ignored_label_can_be_chosen(device):
    outputs, target = case(device)
    changed = torch.where(target == 255, 7, target.long())
    expected = MultiScaleLoss()(outputs, target)
    assert torch.equal(MultiScaleLoss(ignore_index=7)(outputs, changed), expected)


def test_bad_options_and_targets_are_named(device):
    with pytest.raises(ValueError, match="main: expected one of 'ce', 'rmi', got 'dice'"):
        MultiScaleLoss("dice")
    with pytest.raises(ValueError, match="aux_weight: expected a number of at least 0, got -1"):
        MultiScaleLoss(aux_weight=-1)
    with pytest.raises(ValueError, match="scale_weight: expected a number of at least 0, got nan"):
        MultiScaleLoss(scale_weight=float("nan"))
    outputs, target = case(device)
    with pytest.raises(ValueError, match=r"target: expected shape \[2, 24, 32\]"):
        MultiScaleLoss()(outputs, target[:, ::4, ::4])
