"""Small networks for the tests of predictions."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from hmsa_ext import settings
from hmsa_ext.data import ClassTable, Synthetic
from hmsa_ext.data.palette import distinct_colours
from hmsa_ext.engine.settings import TrainSettings
from hmsa_ext.engine.trained import TrainedModel
from hmsa_ext.models import ModelSettings, MultiScale


class Local(nn.Module):
    """Logits that depend on the 4x4 pixels under them alone: tiles of it must agree with the whole exactly."""

    feature_channels = 6

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(num_classes)
        self.features = nn.Conv2d(3, self.feature_channels, 1)
        self.logits = nn.Conv2d(self.feature_channels, num_classes, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.sin(3 * self.features(F.avg_pool2d(images, 4)))
        return 8 * self.logits(features), features


class PointwiseAttention(nn.Module):
    """Attention of 1x1 convolutions, so that the whole network stays local."""

    def __init__(self, feature_channels: int, attention_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(feature_channels, attention_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(4 * self.conv(features))


def local_network(num_classes: int = 5, attention_channels: int = 1, fusion: str = "hierarchical") -> MultiScale:
    """A multi-scale network without any context."""
    network = Local(num_classes)
    return MultiScale(
        network, network.feature_channels, attention_channels=attention_channels, attention_head=PointwiseAttention,
        fusion=fusion,
    ).eval()  # fmt: skip


def trained(model: nn.Module | None = None, num_classes: int = 5, **given: Any) -> TrainedModel:
    """A trained model without a file."""
    classes = ClassTable(tuple(f"c{k}" for k in range(num_classes)), distinct_colours(num_classes))
    fields: dict[str, Any] = {"settings": None, "image_size": None, "classes": classes, "digest": "0" * 64}
    fields |= {"network": ModelSettings()} | given
    return TrainedModel(model or local_network(num_classes), Path("m.pt"), num_classes, **fields)


def write_run(folder: Path, seed: int = 0, **classes: Any) -> Path:
    """A run folder as training leaves it, of the local network on synthetic scenes. classes: changes of their table."""
    names = Synthetic.classes.names
    config = settings.to_dict(TrainSettings.of("synthetic"))
    config |= {"model": f"{__name__}:local_network", "eval_scales": [0.5, 1.0]}
    network = local_network(len(names))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(seed)
    folder.mkdir(parents=True)
    content = {
        "state_dict": network.state_dict(), "average": None, "config": config, "class_names": list(names),
        "classes": dataclasses.replace(Synthetic.classes, **classes).to_dict(), "image_size": [64, 96],
    }  # fmt: skip
    torch.save(content, folder / "last.pt")
    return folder


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours, so that labels form areas: uint8 [H, W, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def save(name: str | Path, pixels: np.ndarray, **options: Any) -> None:
    """Writes a picture, with the folders that it lies in; options are Pillow's."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(name, **options)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes on one thread inside: small networks are faster so."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
