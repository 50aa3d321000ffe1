"""The published networks' golden files: their inputs, and checks of a network against them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmsa_ext.losses import MultiScaleLoss


def golden_inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 64, 96, generator=generator)
    target = torch.randint(0, 19, (2, 64, 96), generator=generator)
    target[:, :4] = 255
    return images, target


def published_entries(folder: Path, network: str) -> dict[str, list[int]]:
    """Names and shapes of the published network's entries, in its order."""
    return json.loads((folder / f"state_dict_{network}.json").read_text())


def entries_of(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def check_predictions(model: nn.Module, folder: Path, network: str, scales: tuple[float, ...]) -> None:
    """Fused logits and attention, to 1e-4 of their scale."""
    golden = np.load(folder / f"golden_{network}.npz")
    key = "eval_" + "_".join(map(str, scales))
    with torch.no_grad():
        outputs = model.eval()(golden_inputs()[0].to(_device(model)), scales)
    _check_close_to_scale(outputs.fuse(), golden[f"{key}/pred"])
    for attention, scale in zip(outputs.attention, outputs.scales[1:], strict=True):
        expected = golden[f"{key}/attn_{scale}x"]
        _check_close_to_scale(F.interpolate(attention, expected.shape[-2:], mode="bilinear"), expected)


def check_losses(model: nn.Module, folder: Path, network: str) -> None:
    """Training losses, to 1e-4 relative."""
    images, target = (x.to(_device(model)) for x in golden_inputs())
    with torch.no_grad():
        outputs = model.train()(images, scales=(0.5, 1.0))
    for case, expected in _cases(folder, network).items():
        assert _criterion_of(case)(outputs, target).item() == pytest.approx(expected["loss"], rel=1e-4), case


def check_gradient_norms(
    model: nn.Module, folder: Path, network: str, tolerances: dict[str, float] | None = None
) -> None:
    """Norms of the parameters' gradients, computed in float64, to 1e-2 relative or to a tolerance by name."""
    images, target = golden_inputs()
    model = model.cpu().train().double()
    parameters = dict(model.named_parameters())
    outputs = model(images.double(), scales=(0.5, 1.0))
    try:
        for case, expected in _cases(folder, network).items():
            model.zero_grad()
            _criterion_of(case)(outputs, target).backward(retain_graph=True)
            for name, norm in expected["grad_norm"].items():
                gradient, tolerance = parameters[name].grad, (tolerances or {}).get(name, 1e-2)
                assert gradient is not None
                # A bias before a batch norm has no gradient but rounding, hence the absolute part.
                assert gradient.norm().item() == pytest.approx(norm, rel=tolerance, abs=1e-7), (case, name)
    finally:
        model.zero_grad()
        model.float()


def _cases(folder: Path, network: str) -> dict:
    return json.loads((folder / f"golden_{network}.json").read_text())


def _criterion_of(case: str) -> MultiScaleLoss:
    _, main, single = case.split("_")
    return MultiScaleLoss(main=main, scale_weight=float(single.removeprefix("sup")))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _check_close_to_scale(got: Tensor, expected: np.ndarray) -> None:
    difference = np.abs(got.detach().cpu().numpy() - expected).max()
    assert difference <= 1e-4 * np.abs(expected).max()
