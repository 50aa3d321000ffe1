"""The examples run, small: with the package that each is for, and with a stand-in that has its interface."""

from __future__ import annotations

import importlib.util
import runpy
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from python_tests.module_loader import load_module

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("--classes", "5", "--size", "64x96", "--batch", "1", "--device", "cpu")

# A network of few layers for each package, with the attributes that the example uses, which ends as the package's do.
TRANSFORMERS = """
    from types import SimpleNamespace

    import torch.nn.functional as F
    from torch import nn

    class SegformerConfig:
        def __init__(self, num_labels, semantic_loss_ignore_index):
            self.num_labels, self.semantic_loss_ignore_index = num_labels, semantic_loss_ignore_index

    class Head(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.linear_fuse, self.classifier = nn.Conv2d(8, 8, 1), nn.Conv2d(8, classes, 1)

        def forward(self, features):
            return self.classifier(self.linear_fuse(features).relu())

    class SegformerForSemanticSegmentation(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.config, self.trunk = config, nn.Conv2d(3, 8, 4, stride=4)
            self.decode_head = Head(config.num_labels)

        def forward(self, pixel_values, labels=None):
            logits, loss = self.decode_head(self.trunk(pixel_values)), None
            if labels is not None:
                large = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
                loss = F.cross_entropy(large, labels, ignore_index=self.config.semantic_loss_ignore_index)
            return SimpleNamespace(logits=logits, loss=loss)
"""
SMP = """
    from torch import nn

    class FPN(nn.Module):
        def __init__(self, encoder_name, encoder_weights, classes):
            super().__init__()
            self.encoder = nn.Conv2d(3, 8, 4, stride=4)
            last = nn.Conv2d(8, classes, 3, padding=1)
            self.segmentation_head = nn.Sequential(last, nn.UpsamplingBilinear2d(scale_factor=4), nn.Identity())

        def forward(self, images):
            return self.segmentation_head(self.encoder(images))
"""
TORCHVISION = """
    import torch.nn.functional as F
    from torch import nn

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.high = nn.Conv2d(3, 8, 8, stride=8), nn.Conv2d(8, 8, 2, stride=2)

        def forward(self, images):
            low = self.low(images)
            return {"low": low, "high": self.high(low)}

    class Head(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.low_classifier, self.high_classifier = nn.Conv2d(8, classes, 1), nn.Conv2d(8, classes, 1)

        def forward(self, features):
            low, high = features["low"], features["high"]
            high = F.interpolate(high, size=low.shape[-2:], mode="bilinear", align_corners=False)
            return self.low_classifier(low) + self.high_classifier(high)

    class LRASPP(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.backbone, self.classifier = Backbone(), Head(classes)

        def forward(self, images):
            logits = self.classifier(self.backbone(images))
            return {"out": F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)}

    def lraspp_mobilenet_v3_large(weights, weights_backbone, num_classes):
        return LRASPP(num_classes)
"""
STAND_INS = {
    "segformer": ("transformers", "transformers.py", TRANSFORMERS),
    "smp_models": ("segmentation_models_pytorch", "segmentation_models_pytorch.py", SMP),
    "torchvision_models": ("torchvision", "torchvision/models/segmentation.py", TORCHVISION),
}
PACKAGES = [package for package, _, _ in STAND_INS.values()]


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs an example as a program, in this process, and returns what it printed. ``first``: a folder in which packages
    are looked for before all others."""

    def run(name: str, *options: str, first: Path | None = None) -> str:
        for folder in (ROOT / "examples", first):
            if folder is not None:
                monkeypatch.syspath_prepend(folder)
        path = ROOT / "examples" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *options])
        known = dict(sys.modules)
        try:
            runpy.run_path(str(path), run_name="__main__")
        finally:
            for module in set(sys.modules) - set(known):
                if module.partition(".")[0] in {"comparison", *PACKAGES}:
                    del sys.modules[module]
        return capsys.readouterr().out

    return run


def write_package(folder: Path, file: str, source: str) -> None:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    for parent in path.relative_to(folder).parents[:-1]:
        (folder / parent / "__init__.py").touch()
    path.write_text(textwrap.dedent(source))


def test_every_example_is_in_the_list_and_tested_here():
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"comparison"}
    assert scripts == {"upsample_cross_entropy", *STAND_INS}
    listed = (ROOT / "examples" / "README.md").read_text()
    assert all(f"({script}.py)" in listed for script in scripts)


def test_plain_example_agrees_with_pytorch(run_example):
    printed = run_example("upsample_cross_entropy", *SMALL)
    assert "the gradients agree" in printed
    assert "labels: 100.0000 % agree" in printed


@pytest.mark.parametrize("example", STAND_INS)
def test_patch_of_a_network_agrees_with_what_it_replaces(run_example, example: str, tmp_path: Path):
    package, file, source = STAND_INS[example]
    if package in sys.modules:
        pytest.skip(f"{package} itself is loaded")
    write_package(tmp_path, file, source)
    printed = run_example(example, *SMALL, first=tmp_path)
    assert "the gradients agree" in printed
    assert "% agree" in printed


@pytest.mark.parametrize("example", STAND_INS)
def test_patch_of_the_packages_own_network_agrees_with_what_it_replaces(run_example, example: str):
    package = STAND_INS[example][0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    assert "the gradients agree" in run_example(example, *SMALL)


@pytest.mark.parametrize("example", STAND_INS)
def test_package_that_is_missing_is_named(run_example, example: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, STAND_INS[example][0], None)  # as if it were not installed
    with pytest.raises(SystemExit, match="pip install"):
        run_example(example)


def test_size_that_is_none_is_refused(run_example, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        run_example("upsample_cross_entropy", "--size", "64")
    assert "got '64'; expected HEIGHTxWIDTH" in capsys.readouterr().err


def test_losses_and_labels_that_differ_are_an_error():
    comparison = load_module("comparison", ROOT / "examples" / "comparison.py")
    x = torch.rand(20, requires_grad=True)
    with pytest.raises(AssertionError, match="differ"):
        comparison.compare_losses(lambda: x.square().sum(), lambda: 1.01 * x.square().sum(), [x])
    with pytest.raises(AssertionError, match=r"only 95\.00 %"):
        comparison.compare_predictions(lambda: torch.zeros(20), lambda: torch.eye(20)[0])
