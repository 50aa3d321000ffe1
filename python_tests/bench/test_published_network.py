"""The plainly written network is the published one: it and ours give the same numbers with the same weights."""

from __future__ import annotations

import pytest
import torch

from bench import published_network
from bench.published_network import WIDTHS, PublishedNetwork, checkpointed, training_loss
from hmsa_ext import models
from hmsa_ext.losses import MultiScaleLoss

CLASSES, SMALLEST = 5, "hrnet_w18_ocr"
# Of sums over some thousand positions in float64, through a hundred layers of batch norm.
ROUNDING = 1e-7


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return models.build(SMALLEST, CLASSES).double().state_dict()


def published(weights, device, **options) -> PublishedNetwork:
    network = PublishedNetwork(WIDTHS[SMALLEST], CLASSES, dropout=0.0, **options).double()
    network.load_state_dict(weights)
    return network.to(device)


def ours(weights, device) -> torch.nn.Module:
    network = models.build(SMALLEST, CLASSES, dropout=0.0).double()
    network.load_state_dict(weights)
    return network.to(device)


def photo(device, size=(64, 96), batch=2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, *size, generator=generator, dtype=torch.float64)
    target = torch.randint(0, CLASSES, (batch, *size), generator=generator)
    target[:, :9, :9] = published_network.IGNORED
    return images.to(device), target.to(device)


@pytest.mark.parametrize("loss", ["ce", "rmi"])
def test_training_has_the_numbers_of_ours(device, weights, loss):
    images, target = photo(device)
    plain, fused = published(weights, device), ours(weights, device)
    value = training_loss(plain, images, target, loss)
    expected = MultiScaleLoss(loss)(fused(images, (0.5, 1.0)), target)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    for name, parameter in fused.named_parameters():
        assert parameter.grad is not None
        largest = parameter.grad.abs().max()
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=float(ROUNDING * largest) + 1e-15)
    statistics = dict(plain.named_buffers())
    for name, buffer in fused.named_buffers():
        torch.testing.assert_close(statistics[name], buffer, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("size", "scales"), [((64, 96), (0.5, 1.0, 2.0)), ((49, 67), (1.0, 0.75))])
def test_evaluation_has_the_logits_of_ours(device, weights, size, scales):
    images, _ = photo(device, size, batch=1)
    plain, fused = published(weights, device).eval(), ours(weights, device).eval()
    with torch.no_grad():
        outputs = fused(images, scales)
        logits = plain.blended(images, scales)
        labels, confidence = plain.predict(images, scales)
    torch.testing.assert_close(logits, outputs.fuse(), rtol=0, atol=1e-9 * float(logits.abs().max()))
    ours_labels, ours_confidence = outputs.argmax()
    assert (labels == ours_labels).float().mean() > 0.999  # but for ties
    torch.testing.assert_close(confidence, ours_confidence, rtol=1e-6, atol=1e-9)


def test_checkpoints_change_no_gradient(device, weights):
    images, target = photo(device)
    gradients = []
    for options in ({}, {"run": checkpointed}):
        network = published(weights, device, **options)
        training_loss(network, images, target).backward()
        gradients.append([p.grad for p in network.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("network", WIDTHS)
def test_parameters_have_the_names_and_shapes_of_ours(network):
    with torch.device("meta"):
        plain, fused = PublishedNetwork(WIDTHS[network]), models.build(network, 19)
    shapes = {name: tensor.shape for name, tensor in fused.state_dict().items()}
    assert {name: tensor.shape for name, tensor in plain.state_dict().items()} == shapes
