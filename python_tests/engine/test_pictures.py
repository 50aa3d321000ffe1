"""Pictures: shares add up, pages are complete, files are written."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from hmsa_ext.data import ClassTable, Sample
from hmsa_ext.engine import pictures
from hmsa_ext.models import ScaleOutputs, build

CLASSES = ClassTable(("road", "sky", "car"), np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]]))


class Pair:
    """Two tiny scenes."""

    classes = CLASSES

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        label = rng.integers(0, 3, (64, 96), dtype=np.uint8)
        label[:8] = 255
        return Sample(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8), label, f"folder/scene {index}")


def outputs(scales: tuple[float, ...], attention: list[float]) -> ScaleOutputs:
    maps = [torch.full((1, 1, 4, 4), a) for a in attention]
    return ScaleOutputs([torch.zeros(1, 3, 4, 4) for _ in scales], maps, None, scales, (8, 8))


def test_shares_are_the_weights_of_the_chain() -> None:
    shares = pictures.scale_shares(outputs((2.0, 1.0, 0.5), [0.25, 0.5]))
    assert list(shares) == [0.5, 1.0, 2.0]
    assert shares[0.5].unique().tolist() == [0.5]
    assert shares[1.0].unique().tolist() == [0.5 * 0.25]
    assert shares[2.0].unique().tolist() == [0.5 * 0.75]


def test_shares_add_up_to_one() -> None:
    torch.manual_seed(0)
    made = ScaleOutputs(
        [torch.zeros(1, 3, *s) for s in ((8, 12), (4, 6), (2, 3), (1, 1))],
        [torch.rand(1, 1, *s) for s in ((4, 6), (2, 3), (1, 1))],
        None,
        (2.0, 1.0, 0.5, 0.25),
        (16, 24),
    )
    total = sum(pictures.scale_shares(made).values())
    torch.testing.assert_close(total, torch.ones(1, 1, 16, 24))


def test_a_single_scale_has_all_of_the_share() -> None:
    assert pictures.scale_shares(outputs((0.5,), []))[0.5].unique().tolist() == [1.0]


@pytest.mark.parametrize("scales", [(0.5, 1.0, 2.0), (0.5,)])
@pytest.mark.parametrize("flip", [False, True])
def test_files_are_written_and_hold_a_picture(
    tmp_path: Path, device: torch.device, scales: tuple[float, ...], flip: bool
) -> None:
    model = build("hrnet_small_ocr", 3).to(device)
    files = pictures.draw(model, Pair(), 5, scales, tmp_path / "p", device, flip=flip)
    assert [f.name for f in files] == ["scene 0.png", "scene 1.png"]
    page = cv2.imread(str(files[0]))
    assert page.shape[1] >= 4 * pictures.TILE_WIDTH[0]
    assert page.shape[0] >= 3 * (page.shape[1] // 4) * 64 // 96 * 0.9


def test_truth_and_prediction_have_the_colours_of_the_classes() -> None:
    label = np.array([[0, 1], [2, 255]], np.uint8).repeat(32, 0).repeat(48, 1)
    fused = np.zeros_like(label)
    page = pictures.compose(
        np.full((64, 96, 3), 128, np.uint8), label, {"1.0": fused, "mean": fused, "attention": fused},
        {1.0: np.ones((64, 96), np.float32)}, CLASSES, "name",
    )  # fmt: skip
    colours = {tuple(c) for c in page.reshape(-1, 3).tolist()}
    assert {(200, 0, 0), (0, 200, 0), (0, 0, 200), pictures.IGNORED, pictures.WRONG} <= colours


@pytest.mark.parametrize("size", [(20, 30), (1024, 2048), (300, 100)])
def test_any_image_size_fits_the_page(size: tuple[int, int]) -> None:
    label = np.zeros(size, np.uint8)
    share = np.ones(size, np.float32)
    page = pictures.compose(
        np.zeros((*size, 3), np.uint8), label, {"0.5": label, "1.0": label, "mean": label, "attention": label},
        {0.5: share, 1.0: share}, CLASSES, "a name with ümlauts",
    )  # fmt: skip
    assert page.shape[1] <= 4 * (pictures.TILE_WIDTH[1] + pictures.MARGIN) + pictures.MARGIN
