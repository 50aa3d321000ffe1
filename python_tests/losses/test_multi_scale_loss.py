"""The loss of a multi-scale model: which terms, with which weights."""

import pytest
import torch
from torch import Tensor

from bench.meters import LiveBytes
from hmsa_ext.losses import LOSSES, MultiScaleLoss, cross_entropy, rmi_bce_loss, rmi_loss
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


def tensors_of(outputs: ScaleOutputs) -> list[Tensor]:
    assert outputs.aux is not None
    return outputs.logits + outputs.aux + outputs.attention


@pytest.mark.parametrize("main", ["ce", "rmi"])
@pytest.mark.parametrize("scales", [(1.0, 0.5), (2.0, 1.0, 0.5), (1.0,)])
def test_terms_and_weights_are_as_documented(device, main: str, scales):
    outputs, target = case(device, scales=scales)
    full, plain = FUNCTIONS[main]

    def of(loss, logits):
        return loss([logits], [], [1.0], target)

    expected = of(full, outputs.fuse()) + 0.3 * of(plain, outputs.fuse_aux())
    expected = expected + 0.05 * sum(of(plain, outputs.single_scale(i)) for i in range(len(scales)))
    loss = MultiScaleLoss(main, aux_weight=0.3, scale_weight=0.05)(outputs, target)
    torch.testing.assert_close(loss, expected)
    assert loss.dtype == torch.float32
    assert loss.dim() == 0


def test_defaults_are_the_published_ones(device):
    outputs, target = case(device)
    expected = [cross_entropy([z], [], [1.0], target) for z in (outputs.fuse(), outputs.fuse_aux())]
    expected = expected[0] + 0.4 * expected[1]
    torch.testing.assert_close(MultiScaleLoss()(outputs, target), expected)


@pytest.mark.parametrize("main", ["ce", "rmi"])
def test_gradients_reach_logits_aux_and_attention(device, main: str):
    outputs, target = case(device)
    MultiScaleLoss(main)(outputs, target).backward()
    for tensor in tensors_of(outputs):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0


def test_networks_without_aux_have_no_aux_term(device):
    outputs, target = case(device, aux=False)
    torch.testing.assert_close(MultiScaleLoss()(outputs, target), cross_entropy([outputs.fuse()], [], [1.0], target))


@pytest.mark.parametrize("main", ["ce", "rmi"])
def test_target_without_a_valid_pixel_costs_nothing(device, main: str):
    outputs, target = case(device)
    loss = MultiScaleLoss(main, scale_weight=0.05)(outputs, torch.full_like(target, 255))
    loss.backward()
    assert loss.item() == 0
    for tensor in tensors_of(outputs):
        assert tensor.grad is not None
        assert (tensor.grad == 0).all()


def test_the_ignored_label_can_be_chosen(device):
    outputs, target = case(device)
    changed = torch.where(target == 255, 7, target.long())
    expected = MultiScaleLoss()(outputs, target)
    assert torch.equal(MultiScaleLoss(ignore_index=7)(outputs, changed), expected)


@pytest.mark.memory
def test_no_logits_at_full_resolution_exist(device):
    scales, size = (2.0, 1.0, 0.5), (256, 256)
    heads = [[torch.randn(1, 40, s, s, device=device, requires_grad=True) for s in (128, 64, 32)] for _ in range(2)]
    attention = [torch.rand(1, 1, *z.shape[2:], device=device, requires_grad=True) for z in heads[0][1:]]
    outputs = ScaleOutputs(heads[0], attention, heads[1], scales, size)
    target = torch.randint(0, 40, (1, *size), device=device, dtype=torch.uint8)
    gradients = 2 * sum(z.numel() * 4 for z in heads[0])
    with LiveBytes() as meter:
        MultiScaleLoss(scale_weight=0.05)(outputs, target).backward()
    # The gradients, twice where autograd adds those of the single scales up; full logits alone would take 10 MB.
    assert meter.peak < 2 * gradients + 5 * 4 * target.numel() + (1 << 20)
    assert meter.peak - gradients < 40 * 256 * 256 * 4


def test_bad_options_and_targets_are_named(device):
    with pytest.raises(ValueError, match=f"main: got 'absent', expected one of {', '.join(LOSSES)}, or package"):
        MultiScaleLoss("absent")
    with pytest.raises(ValueError, match="aux_weight: expected a number of at least 0, got -1"):
        MultiScaleLoss(aux_weight=-1)
    with pytest.raises(ValueError, match="scale_weight: expected a number of at least 0, got nan"):
        MultiScaleLoss(scale_weight=float("nan"))
    outputs, target = case(device)
    with pytest.raises(
        ValueError, match=r"target: expected shape \[2, 24, 32\], labels at the size of the images, got"
    ):
        MultiScaleLoss()(outputs, target[:, ::4, ::4])


def test_what_is_no_output_of_a_model_is_named(device):
    outputs, target = case(device)
    with pytest.raises(TypeError, match=r"outputs: expected ScaleOutputs, got Tensor; .*MultiScale.*cross_entropy\("):
        MultiScaleLoss()(outputs.logits[0], target)
    with pytest.raises(TypeError, match=r"target: expected a tensor of labels \[B, H, W\], got list"):
        MultiScaleLoss()(outputs, target.tolist())


def test_an_ignored_label_that_is_a_class_has_to_be_chosen() -> None:
    outputs = ScaleOutputs([torch.zeros(1, 300, 4, 4)], [], None, (1.0,), (16, 16))
    target = torch.full((1, 16, 16), 255)
    with pytest.raises(ValueError, match="ignore_index: 255 is one of the 300 classes"):
        MultiScaleLoss()(outputs, target)
    assert MultiScaleLoss(ignore_index=-1)(outputs, target) > 0
