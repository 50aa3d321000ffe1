"""Pictures: shares add up, pages are complete, files are written."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from hmsa_ext.data import ClassTable, Sample
from hmsa_ext.engine import panels, pictures
from hmsa_ext.engine.overlay import confidence_picture, overlay
from hmsa_ext.errors import HmsaError
from hmsa_ext.models import ScaleOutputs, build

CLASSES = ClassTable(("road", "sky", "car"), np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]]))


class Pair:
    """Two tiny scenes."""

    classes = CLASSES

    def __len__(self) -> int:
        return 2

    def label(self, index: int) -> np.ndarray:
        return self[index].label

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        label = rng.integers(0, 3, (64, 96), dtype=np.uint8)
        label[:8] = 255
        return Sample(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8), label, f"folder/scene {index}")


def read(file: Path) -> np.ndarray:
    """A picture, RGB."""
    picture = cv2.imread(str(file))
    assert picture is not None
    return picture[..., ::-1]


def outputs(scales: tuple[float, ...], attention: list[float]) -> ScaleOutputs:
    maps = [torch.full((1, 1, 4, 4), a) for a in attention]
    return ScaleOutputs([torch.zeros(1, 3, 4, 4) for _ in scales], maps, None, scales, (8, 8))


def test_shares_are_the_weights_of_the_chain() -> None:
    shares = outputs((2.0, 1.0, 0.5), [0.25, 0.5]).shares()
    assert shares is not None
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
    shares = made.shares()
    assert shares is not None
    total = torch.stack(list(shares.values())).sum(0)
    torch.testing.assert_close(total, torch.ones(1, 1, 16, 24))


def test_a_single_scale_has_all_of_the_share() -> None:
    shares = outputs((0.5,), []).shares()
    assert shares is not None
    assert shares[0.5].unique().tolist() == [1.0]


@pytest.mark.parametrize(("scales", "rows", "columns"), [((0.5, 1.0, 2.0), 3, 5), ((0.5, 1.0), 3, 4), ((0.5,), 1, 5)])
@pytest.mark.parametrize("flip", [False, True])
def test_files_are_written_and_hold_a_picture(
    tmp_path: Path, device: torch.device, scales: tuple[float, ...], rows: int, columns: int, flip: bool
) -> None:
    model = build("hrnet_small_ocr", 3).to(device)
    files = pictures.draw(model, Pair(), 5, scales, tmp_path / "p", device, flip=flip)
    assert [f.name for f in files] == ["scene 0.png", "scene 1.png"]
    page = read(files[0])
    width = 96 * 4  # the tiles are enlarged to at least 320 pixels
    # With one scale every prediction is the same, and is shown once.
    assert page.shape[1] == columns * (width + panels.MARGIN) + panels.MARGIN
    assert page.shape[0] >= rows * width * 64 // 96
    assert page.shape[0] < (rows + 1) * width * 64 // 96


def test_images_of_one_name_in_two_folders_keep_their_folders(tmp_path: Path) -> None:
    names = ["cityA/0000", "cityB/0000", "cityB/0000", "/etc/x", "../../up", "a.b", ".."]
    folder, taken = tmp_path / "p", []
    for name in names:
        taken.append(pictures._place(folder, name, taken))
    assert [f.relative_to(folder).as_posix() for f in taken] == [
        *("cityA/0000.png", "cityB/0000.png", "cityB/0000-2.png", "etc/x.png", "up.png", "a.b.png", "image.png")
    ]


def test_the_files_are_as_many_as_the_pictures(tmp_path: Path, device: torch.device) -> None:
    class Cities(Pair):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            return Sample(sample.image, sample.label, ("cityA/0000", "cityB/0000")[index])

    files = pictures.draw(build("hrnet_small_ocr", 3).to(device), Cities(), 2, (1.0,), tmp_path, device)
    found = sorted(path for path in tmp_path.rglob("*") if path.is_file())  # nothing temporary either
    assert found == sorted(files) == [tmp_path / "cityA/0000.png", tmp_path / "cityB/0000.png"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, device: torch.device) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(pictures.PictureError, match=r"folder/scene 0\.png: cannot be written"):
        pictures.draw(build("hrnet_small_ocr", 3).to(device), Pair(), 1, (1.0,), tmp_path, device)
    assert issubclass(pictures.PictureError, HmsaError)


def test_a_page_is_made_when_it_is_asked_for(device: torch.device) -> None:
    model = build("hrnet_small_ocr", 3).to(device).train()
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    pages = pictures.pages(model, Pair(), 2, (1.0,), device)
    assert not calls
    name, page = next(pages)
    assert name == "folder/scene 0"
    assert page.dtype == np.uint8
    assert page.shape[2] == 3
    assert len(calls) == 1
    assert model.training  # as it was


def test_truth_and_prediction_have_the_colours_of_the_classes() -> None:
    label = np.array([[0, 1], [2, 255]], np.uint8).repeat(32, 0).repeat(48, 1)
    fused = np.zeros_like(label)
    page = pictures.compose(
        np.full((64, 96, 3), 128, np.uint8), label, {"1.0": fused, "mean": fused, "attention": fused},
        {1.0: np.ones((64, 96), np.float32)}, CLASSES, "name",
    )  # fmt: skip
    colours = {tuple(c) for c in page.reshape(-1, 3).tolist()}
    assert {(200, 0, 0), (0, 200, 0), (0, 0, 200), panels.IGNORED, panels.WRONG} <= colours


@pytest.mark.parametrize("size", [(20, 30), (1024, 2048), (300, 100)])
def test_any_image_size_fits_the_page(size: tuple[int, int]) -> None:
    label = np.zeros(size, np.uint8)
    share = np.ones(size, np.float32)
    page = pictures.compose(
        np.zeros((*size, 3), np.uint8), label, {"0.5": label, "1.0": label, "mean": label, "attention": label},
        {0.5: share, 1.0: share}, CLASSES, "a name with ümlauts",
    )  # fmt: skip
    assert page.shape[1] <= 4 * (panels.TILE_WIDTH[1] + panels.MARGIN) + panels.MARGIN


def page_of(classes: ClassTable, label: np.ndarray, fused: np.ndarray) -> np.ndarray:
    """A page with one scale; the photo is grey."""
    photo = np.full((*label.shape, 3), 128, np.uint8)
    predictions = {"1.0": fused, "mean": fused, "attention": fused}
    return pictures.compose(photo, label, predictions, {1.0: np.ones(label.shape, np.float32)}, classes, "name")


def panel(page: np.ndarray, column: int, size: tuple[int, int]) -> np.ndarray:
    """A panel of the first row, without its frame."""
    top, left = panels.HEAD_HEIGHT + panels.TITLE_HEIGHT, panels.MARGIN + column * (size[1] + panels.MARGIN)
    return page[top : top + size[0], left : left + size[1]]


def test_the_overlay_mixes_photo_and_colours_and_leaves_ignored_pixels() -> None:
    image = np.full((1, 3, 3), 100, np.uint8)
    labels = np.array([[0, 2, 255]], np.uint8)
    mixed = overlay(image, labels, CLASSES.colours)
    assert mixed.tolist() == [[[150, 50, 50], [50, 50, 150], [100, 100, 100]]]
    assert overlay(image, labels, CLASSES.colours, 1.0).tolist() == [[[200, 0, 0], [0, 0, 200], [100] * 3]]
    page = page_of(CLASSES, np.zeros((320, 320), np.uint8), np.ones((320, 320), np.uint8))
    assert (panel(page, 4, (320, 320)) == [64, 164, 64]).all()


def test_a_class_as_light_as_the_paper_has_an_outline() -> None:
    white = ClassTable(("snow", "sky"), np.array([panels.PAPER, [0, 0, 200]]))
    label = np.zeros((320, 320), np.uint8)
    page = page_of(white, label, label)
    top, left = panels.HEAD_HEIGHT + panels.TITLE_HEIGHT, panels.MARGIN
    assert (page[top : top + 320, left : left + 320] != panels.PAPER).any()  # the photo
    left += 320 + panels.MARGIN
    assert (page[top : top + 320, left : left + 320] == panels.PAPER).all()
    frame = [page[top - 1, left : left + 320], page[top + 320, left : left + 320]]
    frame += [page[top : top + 320, left - 1], page[top : top + 320, left + 320]]
    assert all((side != panels.PAPER).all() for side in frame)


def test_wrong_and_ignored_differ_from_classes_of_their_colours() -> None:
    alike = ClassTable(("bus", "night"), np.array([panels.WRONG, panels.IGNORED]))
    label = np.zeros((320, 320), np.uint8)
    label[:160] = 255
    page = page_of(alike, label, np.ones_like(label))
    truth, errors = panel(page, 1, (320, 320)), panel(page, 3, (320, 320))
    lines = (errors[160:] == panels.WRONG_LINES).all(2)
    assert 0.1 < lines.mean() < 0.5
    assert ((errors[160:] == panels.WRONG).all(2) | lines).all()
    assert (truth[160:] == panels.WRONG).all()  # a class has no lines
    assert 0.1 < (truth[:160] == panels.IGNORED_LINES).all(2).mean() < 0.5
    assert 0.1 < (errors[:160] == panels.IGNORED_LINES).all(2).mean() < 0.5


def test_single_wrong_pixels_of_a_reduced_picture_stay_visible() -> None:
    label = np.zeros((640, 1280), np.uint8)
    fused = label.copy()
    fused[100, 100] = 1
    errors = panel(page_of(CLASSES, label, fused), 3, (320, 640)).astype(int)
    red = errors[..., 0] - errors[..., 1] > 20
    assert red.sum() == 1


def test_nothing_labelled_is_said_and_drawn() -> None:
    label = np.full((64, 96), 255, np.uint8)
    assert page_of(CLASSES, label, np.zeros_like(label)).dtype == np.uint8


def test_pages_of_long_names_keep_their_ends() -> None:
    label = np.zeros((64, 96), np.uint8)
    long = ClassTable(("x" * 400, "sky"), np.array([[1, 2, 3], [4, 5, 6]]))
    page = page_of(long, label, label)
    assert page.shape[1] == 5 * (96 * 4 + panels.MARGIN) + panels.MARGIN


def shares_page_of(scales: tuple[float, ...], size: tuple[int, int] = (320, 320)) -> np.ndarray:
    """A page without truth: class 0 above, class 2 below, the photo grey, equal shares."""
    labels = np.zeros(size, np.int32)
    labels[size[0] // 2 :] = 2
    shares = {scale: np.full(size, 1 / len(scales), np.float32) for scale in scales}
    return pictures.shares_page(np.full((*size, 3), 128, np.uint8), labels, shares, CLASSES, "name")


def test_the_page_of_a_prediction_has_photo_overlay_and_labels() -> None:
    page = shares_page_of((1.0,))
    size = (320, 320)
    assert (panel(page, 0, size) == 128).all()
    assert (panel(page, 1, size)[:160] == [164, 64, 64]).all()
    assert (panel(page, 1, size)[160:] == [64, 64, 164]).all()
    assert (panel(page, 2, size)[:160] == CLASSES.colours[0]).all()
    assert (panel(page, 2, size)[160:] == CLASSES.colours[2]).all()


def test_the_page_of_a_prediction_with_one_scale_has_one_row_and_no_shares() -> None:
    one, three = shares_page_of((1.0,)), shares_page_of((0.5, 1.0, 2.0))
    assert one.shape[1] == 3 * (320 + panels.MARGIN) + panels.MARGIN
    assert one.shape[0] < 2 * 320
    assert three.shape[0] - one.shape[0] == 320 + panels.TITLE_HEIGHT + panels.MARGIN
    assert three.shape[1] == 4 * (320 + panels.MARGIN) + panels.MARGIN


def test_the_page_of_a_prediction_shows_the_share_of_each_scale() -> None:
    page = shares_page_of((0.5, 1.0))
    below = page[320 + panels.TITLE_HEIGHT + panels.MARGIN :]
    for column in (1, 2):
        assert np.array_equal(panel(below, column, (320, 320)), confidence_picture(np.full((320, 320), 0.5)))
    assert len(np.unique(panel(below, 0, (320, 320)).reshape(-1, 3), axis=0)) > 50  # the key


def test_the_legend_of_a_prediction_names_what_occurs_alone() -> None:
    page = shares_page_of((1.0,))
    legend = {tuple(c) for c in page[panels.HEAD_HEIGHT + panels.TITLE_HEIGHT + 320 + 2 :].reshape(-1, 3).tolist()}
    assert {(200, 0, 0), (0, 0, 200)} <= legend
    assert not {(0, 200, 0), panels.WRONG, panels.IGNORED} & legend


@pytest.mark.parametrize("size", [(20, 30), (1024, 2048), (300, 100)])
def test_the_page_of_a_prediction_takes_images_of_any_size(size: tuple[int, int]) -> None:
    assert shares_page_of((0.5, 1.0, 2.0), size).shape[1] <= 4 * (panels.TILE_WIDTH[1] + panels.MARGIN) + panels.MARGIN
