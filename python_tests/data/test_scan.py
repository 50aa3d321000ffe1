"""The scan: every trap is found, named, and answered with advice; the exit status tells whether training would fail."""

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from hmsa_ext import data
from hmsa_ext.data import __main__ as command
from hmsa_ext.data.files import read_colours
from hmsa_ext.data.suggestion import suggest_for_colours

from .pictures import png, tiff, turned_jpeg, write, write_image

LABEL = np.array([[0, 1, 2, 255], [2, 2, 1, 0]], np.uint8)
NAMES = "names: [background, road, car]\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with nothing wrong: three pairs in train, two in val."""
    for split, names in (("train", "abc"), ("val", "de")):
        for name in names:
            write_image(tmp_path / f"images/{split}/{name}.png", LABEL.shape, seed=ord(name))
            write(tmp_path / f"masks/{split}/{name}.png", LABEL)
    (tmp_path / "dataset.yaml").write_text(NAMES)
    return tmp_path


def scan(root: Path, *options: str, data: str = "folder") -> tuple[int, str, dict]:
    """Exit status, text and JSON."""
    file = root.parent / f"{root.name}.json"
    with contextlib.redirect_stdout(io.StringIO()) as output:
        status = command.main(["scan", "--data", data, "--root", str(root), "--quiet", "--json", str(file), *options])
    return status, output.getvalue(), json.loads(file.read_text())


def kinds(result: dict, severity: str = "error") -> list[str]:
    return [finding["kind"] for finding in result["findings"] if finding["severity"] == severity]


def finding(result: dict, kind: str) -> dict:
    (found,) = [finding for finding in result["findings"] if finding["kind"] == kind]
    return found


def test_a_sound_folder(root):
    status, text, result = scan(root)
    assert status == 0
    assert text.endswith("training can begin\n")
    assert "train: 3 pairs" in text
    assert "sizes       4x2 in 3 images" in text
    assert "label maps  2 8-bit greyscale PNG" in text
    assert result["findings"] == []
    assert result["would_fail"] is False
    train = result["splits"]["train"]
    assert train["images"] == 3
    assert train["sizes"] == [{"size": [2, 4], "images": 3}]
    assert train["image_kinds"] == {"8-bit RGB PNG": 3}
    assert train["stored"]["2"] == {"pixels": 9, "images": 3}
    assert train["classes"]["car"] == {"pixels": 9, "images": 3}
    assert train["ignored"] == {"pixels": 3, "images": 3}


def rows(text: str) -> dict[str, list[str]]:
    """Rows of a table by their second column."""
    cells = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return {row[1]: row for row in cells if len(row) >= 6}


def test_the_table_has_shares_of_pixels_and_counts_of_images(root):
    write(root / "masks/val/d.png", np.zeros((2, 4), np.uint8))
    table = rows(scan(root)[1])
    assert table["class"] == ["stored", "class", "train pixels", "images", "val pixels", "images"]
    assert table["background"] == ["0", "background", "25.00 %", "3", "62.50 %", "2"]
    assert table["car"] == ["2", "car", "37.50 %", "3", "18.75 %", "1"]
    assert table["ignored"] == ["255", "ignored", "12.50 %", "3", "6.25 %", "1"]


def test_a_table_of_classes_where_several_values_make_one(root):
    (root / "dataset.yaml").write_text("names: [background, thing]\nids: {0: background, 1: thing, 2: thing}\n")
    table = scan(root)[1].partition("number  class")[2]
    assert rows(table)["thing"] == ["1", "thing", "62.50 %", "3", "62.50 %", "2"]
    assert rows(table)["(ignored)"] == ["255", "(ignored)", "12.50 %", "3", "12.50 %", "2"]


def test_one_split_as_a_process_of_its_own(root):
    command_line = [sys.executable, "-m", "hmsa_ext.data", "scan", "--data", "folder", "--root", str(root)]
    done = subprocess.run([*command_line, "--split", "val", "--decode-images"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "val: 2 pairs" in done.stdout
    assert "train" not in done.stdout.replace("training", "")
    assert done.stderr == ""  # nothing took ten seconds
    (root / "masks/val/e.png").unlink()
    done = subprocess.run([*command_line, "--split", "val"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "1 image without a label: e.png" in done.stdout


def test_all_problems_are_listed_and_not_the_first_alone(root):
    (root / "masks/train/a.png").unlink()
    write(root / "masks/train/extra.png", LABEL)
    write(root / "masks/train/b.png", np.full((2, 4), 9, np.uint8))
    write(root / "masks/val/d.png", np.zeros((2, 5), np.uint8))
    (root / "images/val/e.png").write_bytes((root / "images/val/e.png").read_bytes()[:-20])
    status, text, result = scan(root)
    assert status == 1
    assert sorted(kinds(result)) == ["folders", "image", "sizes", "values"]
    assert "4 errors: training would fail" in text
    assert result["splits"]["train"]["lonely_images"] == [str(root / "images/train/a.png")]
    assert result["splits"]["train"]["lonely_labels"] == [str(root / "masks/train/extra.png")]
    assert f"{root}/images/val/e.png: the file is damaged: it ends early" in text
    assert f"{root}/masks/val/d.png: the label map is 5x2 pixels, its image d.png 4x2" in text
    assert "Copy the files again" in finding(result, "image")["advice"]
    assert "nearest neighbour" in finding(result, "sizes")["advice"]


def test_sizes_smallest_largest_most_frequent(root):
    for name, size in (("a", (2, 2)), ("b", (6, 8))):
        write_image(root / f"images/train/{name}.png", size)
        write(root / f"masks/train/{name}.png", np.ones(size, np.uint8))
    write_image(root / "images/train/f.png", LABEL.shape)
    write(root / "masks/train/f.png", LABEL)
    text = scan(root)[1]
    assert "4x2 in 2 images, the most frequent of 3; smallest 2x2, largest 8x6" in text


def test_values_outside_the_classes(root):
    label = LABEL.copy()
    label[0, :2], label[1, 0] = 7, 200
    write(root / "masks/train/b.png", label)
    status, _, result = scan(root)
    found = finding(result, "values")
    assert status == 1
    assert found["text"] == "train: label maps with values that are no class: 1; the values are 7, 200"
    text = (
        f"{root}/masks/train/b.png: values that are no class: 7 in 2 pixels, 200 in 1 pixel. Expected 0..2, or 255 for"
    )
    assert found["files"][0].startswith(text)
    assert "Add the values to names, ids or ignore in dataset.yaml" in found["advice"]
    assert result["splits"]["train"]["stored"]["7"] == {"pixels": 2, "images": 1}


def test_values_that_count_from_one(root):
    for path in root.glob("masks/*/*.png"):
        write(path, np.array([[1, 2, 3, 255]] * 2, np.uint8))
    found = [found["advice"] for found in scan(root)[2]["findings"] if found["kind"] == "values"]
    assert len(found) == 2  # one for each split
    assert "names: {1: ..., 2: ...}" in found[0]


def test_instance_ids_are_recognised(root):
    write(root / "masks/train/a.png", np.full((2, 4), 26001, np.uint16))
    assert "instance ids" in finding(scan(root)[2], "values")["advice"]


def test_binary_masks(root):
    for path in root.glob("masks/*/*.png"):
        write(path, np.array([[0, 255, 255, 0]] * 2, np.uint8))
    for text in (NAMES, None):
        if text is None:
            (root / "dataset.yaml").unlink()
        status, text, result = scan(root)
        assert status == 1
        assert finding(result, "binary")["text"].startswith("all label maps hold 0 and 255 alone")
        assert "ids: {0: background, 255: object}" in text
    (root / "dataset.yaml").write_text(finding(result, "binary")["advice"].partition("\n")[2])
    status, _, result = scan(root)
    assert status == 0
    assert result["splits"]["train"]["classes"]["object"] == {"pixels": 12, "images": 3}


def test_binary_masks_in_a_data_set_by_name(tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / f"{split}/a.png", (2, 4), seed=len(split))
        write(tmp_path / f"{split}annot/a.png", np.array([[0, 255, 255, 0]] * 2, np.uint8))
    status, _, result = scan(tmp_path, data="camvid")
    assert status == 1
    assert "binary masks; with --data folder" in result["findings"][0]["advice"]


def test_palettes_are_fine_and_noted(root):
    stored = np.where(LABEL == 255, 0, LABEL)
    (root / "masks/train/a.png").write_bytes(png(stored, depth=2, colour=3, palette=bytes(range(12))))
    status, text, result = scan(root)
    assert status == 0
    assert finding(result, "palette")["text"] == "train: label maps with a palette, of which the indices are read: 1"
    assert "1 2-bit palette PNG" in text


def test_colours_where_numbers_are_expected(root):
    write(root / "masks/train/a.png", np.random.default_rng(0).integers(0, 9, (2, 4, 3), dtype=np.uint8))
    status, _, result = scan(root)
    assert status == 1
    assert finding(result, "colours")["text"] == "train: label maps in colours, where class numbers are expected: 1"
    assert "masks: colours in dataset.yaml" in finding(result, "colours")["advice"]


def test_equal_channels_alpha_and_sixteen_bits_are_noted(root):
    plain = np.where(LABEL == 255, 0, LABEL)
    write(root / "masks/train/a.png", np.dstack([plain] * 3))
    write(root / "masks/train/b.png", plain.astype(np.uint16))
    write(root / "images/val/d.png", np.random.default_rng(0).integers(0, 256, (2, 4, 4), dtype=np.uint8))
    write(root / "images/val/e.png", np.random.default_rng(0).integers(0, 65536, (2, 4, 3), dtype=np.uint16))
    status, _, result = scan(root)
    assert status == 0
    notes = [found["text"] for found in result["findings"]]
    assert notes == [
        "train: label maps of 16 bits, whose values are read as they are: 1",
        "train: label maps with several equal channels, of which one is read (alpha is not): 1",
        "val: images of 16 bits, reduced to 8: 1",
        "val: images with alpha, which is left out: 1",
    ]


def test_jpeg_masks(root):
    (root / "masks/train/a.png").unlink()
    write(root / "masks/train/a.jpg", LABEL)
    status, _, result = scan(root)
    assert status == 1
    assert kinds(result) == ["lossy"]
    assert "save them as PNG" in finding(result, "lossy")["advice"]


def test_damaged_label_maps(root):
    (root / "masks/train/a.png").write_bytes(b"")
    (root / "masks/train/b.png").write_text("no picture")
    status, _, result = scan(root)
    assert status == 1
    assert len(finding(result, "label")["files"]) == 2


def test_damage_within_a_picture_is_found_by_decoding(root):
    path = root / "images/train/a.bmp"
    (root / "images/train/a.png").unlink()
    write_image(path, (2, 4))
    path.write_bytes(path.read_bytes()[:-6])
    assert scan(root)[0] == 0
    status, _, result = scan(root, "--decode-images")
    assert status == 1
    assert kinds(result) == ["image"]


def test_without_a_description_all_the_rest_is_looked_at(root):
    (root / "dataset.yaml").unlink()
    (root / "masks/train/a.png").unlink()
    write(root / "masks/val/d.png", np.zeros((3, 4), np.uint8))
    status, text, result = scan(root)
    assert status == 1
    assert sorted(kinds(result)) == ["folders", "folders", "sizes"]
    assert text.count("no such file; it has to name the classes") == 1
    assert "  - class_2" in text
    assert result["splits"]["train"]["stored"]["1"] == {"pixels": 4, "images": 2}
    assert result["splits"]["train"]["classes"] == {}


def test_without_a_description_colours_are_counted(root):
    (root / "dataset.yaml").unlink()
    for path in root.glob("masks/*/*.png"):
        write(path, np.array([[(0, 0, 0), (10, 20, 30)]] * 2, np.uint8).repeat(2, 1))
    _, text, result = scan(root)
    assert result["splits"]["val"]["stored"] == {
        "#000000": {"pixels": 8, "images": 2},
        "#1e140a": {"pixels": 8, "images": 2},
    }
    assert 'class_1: "#1e140a"' in text


def test_photographs_for_masks(root):
    (root / "dataset.yaml").unlink()
    write_image(root / "images/train/a.png", (64, 64))
    write_image(root / "masks/train/a.png", (64, 64))
    _, text, result = scan(root)
    assert "different colours, more than classes can have" in text
    assert "colours" in kinds(result)


def test_masks_in_colours_by_description(root):
    (root / "dataset.yaml").write_text('masks: colours\nnames: [a, b]\ncolours: ["#000000", "#1e140a"]\n')
    for path in root.glob("masks/*/*.png"):
        write(path, np.array([[(0, 0, 0), (10, 20, 30)]] * 2, np.uint8).repeat(2, 1))
    status, text, _ = scan(root)
    assert status == 0
    assert rows(text)["b"] == ["#1e140a", "b", "50.00 %", "3", "50.00 %", "2"]
    write(root / "masks/val/d.png", np.full((2, 4, 3), 1, np.uint8))
    status, _, result = scan(root)
    assert status == 1
    assert finding(result, "values")["text"].endswith("no class: 1; the values are #010101")
    assert "Add the colours to ids" in finding(result, "values")["advice"]


def test_classes_that_never_occur_or_not_in_train(root):
    (root / "dataset.yaml").write_text("names: [background, road, car, bus, tram]\n")
    write(root / "masks/val/d.png", np.full((2, 4), 4, np.uint8))
    status, text, _ = scan(root)
    assert status == 0  # training can begin, and will not be good
    assert "warning: classes that never occur (1 of 5): bus" in text
    assert "warning: classes in val, but not in train: tram" in text
    assert "They cannot be learnt" in text


def test_one_class_alone_is_an_error(root):
    for path in root.glob("masks/*/*.png"):
        write(path, np.zeros((2, 4), np.uint8))
    status, text, _ = scan(root)
    assert status == 1
    assert "error: only one class occurs at all, background" in text


def test_ignored_label_maps(root):
    write(root / "masks/train/a.png", np.full((2, 4), 255, np.uint8))
    status, text, _ = scan(root)
    assert status == 0
    assert "warning: train: images without a single labelled pixel: 1" in text
    for path in root.glob("masks/val/*.png"):
        write(path, np.full((2, 4), 255, np.uint8))
    status, text, _ = scan(root)
    assert status == 1
    assert "error: val: every pixel of every image is ignored" in text
    assert "The label maps store 255" in text


def test_images_in_two_splits_and_copies(root):
    (root / "images/val/d.png").write_bytes((root / "images/train/a.png").read_bytes())
    (root / "images/train/c.png").write_bytes((root / "images/train/b.png").read_bytes())
    status, _, result = scan(root)
    assert status == 0
    across, within = [found for found in result["findings"] if found["kind"] == "copies"]
    assert across["text"] == "images in two splits: 1"
    assert across["files"] == [f"{root}/images/val/d.png is {root}/images/train/a.png"]
    assert within["files"] == [f"{root}/images/train/c.png is {root}/images/train/b.png"]


def test_missing_folders_show_the_layout_once_for_each_split(tmp_path):
    status, text, result = scan(tmp_path, data="cityscapes")
    assert status == 1
    assert text.count("no such folder") == 4
    assert text.count("Expected images") == 2
    assert kinds(result) == ["folders"] * 4


def test_automatic_labels_are_counted_after_the_threshold(tmp_path):
    name, stored = "ulm_000000_000019", np.full((2, 4), 7, np.uint8)
    write_image(tmp_path / f"leftImg8bit/train_extra/ulm/{name}_leftImg8bit.png", (2, 4))
    folder = tmp_path / "autolabelled/train_extra/ulm"
    stored[0, 3] = 8
    write(folder / f"{name}_leftImg8bit.png", stored)
    write(folder / f"{name}_leftImg8bit_prob.png", np.array([[0, 100, 200, 255]] * 2, np.uint8))
    status, text, result = scan(tmp_path, "--split", "train_extra", "--extra", "autolabelled", data="cityscapes")
    assert status == 0
    train = result["splits"]["train_extra"]
    assert train["stored"]["7"]["pixels"] == 7
    assert train["classes"]["road"]["pixels"] == 3
    assert train["ignored"]["pixels"] == 4
    assert "0  road" in text


def test_options_reach_the_data_set(tmp_path):
    for name in ("000001_10", "000011_10", "000002_10"):
        write_image(tmp_path / f"training/image_2/{name}.png", (2, 4))
        write(tmp_path / f"training/semantic/{name}.png", np.array([[7, 8, 26, 0]] * 2, np.uint8))
    for fold, count in ((0, 2), (2, 1)):
        result = scan(tmp_path, "--split", "val", "--fold", str(fold), data="kitti")[2]
        assert result["splits"]["val"]["images"] == count


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "expected one of scan, stats, got none"),
        (["look"], "expected one of scan, stats, got 'look'"),
        (["scan"], "scan: expected --data NAME, one of ade20k"),
        (
            ["scan", "--data", "synthetic", "--root", "x"],
            "data: got 'synthetic', expected a data set on disk: one",
        ),
        (
            ["scan", "--data", "camvid", "--root", "x", "--fold", "1"],
            "--fold: camvid has no such option; cityscapes, kitti have it",
        ),
        (
            ["scan", "--data", "camvid", "--root", "x", "--split", "all"],
            "split: expected one of ['train', 'val', 'test']",
        ),
        (
            ["scan", "--data", "cityscapes", "--root", "x", "--coarse-classes", "bus"],
            "coarse_classes: got bus, expected no value without autolabelled labels or extra",
        ),
        (
            ["scan", "--data", "camvid", "--root", "x", "--json", "/none/x.json"],
            "json: no folder /none; expected a file in one",
        ),
    ],
)
def test_wrong_usage_gives_two(arguments, text, capsys):
    try:
        status = command.main(arguments)
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert text in capsys.readouterr().err


def test_help_lists_the_commands(capsys):
    assert command.main(["--help"]) == 0
    assert "scan   look at every file" in capsys.readouterr().out


def test_what_scan_lets_pass_training_can_read(root):
    assert scan(root)[0] == 0
    for split in ("train", "val"):
        data.check(data.build("folder", split, root=root), quiet=True)


def turn(root: Path, orientation: int, size: tuple[int, int]) -> None:
    (root / "images/train/a.png").unlink()
    turned_jpeg(root / "images/train/a.jpg", size, orientation)


def test_images_that_a_tag_turns_are_counted_and_explained(root):
    turn(root, 3, (2, 4))
    status, text, result = scan(root)
    assert status == 0
    found = finding(result, "orientation")
    assert found["severity"] == "warning"
    assert found["text"].startswith("train: images whose EXIF tag turns them in viewers: 1 (orientation 3 in 1)")
    assert "the tag is not followed, pixels are read as they are stored" in text
    assert "mogrify -auto-orient" in found["advice"]


def test_a_size_that_a_tag_explains_is_named_so_by_scan_and_by_training(root):
    turn(root, 6, (4, 2))
    status, _, result = scan(root)
    assert status == 1
    (line,) = finding(result, "sizes")["files"]
    expected = (
        "a.png: the label map is 4x2 pixels, its image a.jpg 2x4; the EXIF orientation 6 of the image is not followed: "
        "pixels are read as they are stored (2x4); viewers show 4x2"
    )
    assert line.endswith(expected)
    assert "name an EXIF orientation" in finding(result, "sizes")["advice"]
    with pytest.raises(data.DataError, match="the EXIF orientation 6 of the image is not followed"):
        data.check(data.build("folder", "train", root=root), quiet=True)


def test_cmyk_and_fourth_bands_are_no_alpha(root):
    (root / "images/train/a.png").unlink()
    Image.new("CMYK", (4, 2), (10, 20, 30, 40)).save(root / "images/train/a.jpg")
    (root / "images/val/d.png").unlink()
    bands = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    (root / "images/val/d.tif").write_bytes(tiff(bands, photometric=2, extra=(0,)))
    status, text, result = scan(root)
    assert status == 0
    assert "note: train: images in CMYK, which are converted to RGB: 1" in text
    assert "note: val: images with a fourth band, which is left out: 1" in text
    assert "alpha" not in kinds(result, "note")


def test_files_of_a_kind_that_is_not_read_have_their_own_advice(root):
    (root / "masks/train/a.png").unlink()
    (root / "masks/train/a.tif").write_bytes(tiff(LABEL.astype(np.float32)))
    (root / "images/val/d.png").unlink()
    (root / "images/val/d.tif").write_bytes(tiff(np.zeros((2, 4, 5), np.uint8), photometric=2, extra=(0, 0)))
    status, text, result = scan(root)
    assert status == 1
    assert kinds(result) == ["format", "format"]
    assert "a.tif: a TIFF with float 32-bit samples is not read" in text
    assert "d.tif: a TIFF with 5 bands" in text
    assert "Copy the files" not in text


def test_sixteen_bit_images_of_few_bits_are_almost_black(root):
    for path in root.glob("images/train/*.png"):
        write(path, np.random.default_rng(0).integers(0, 4096, (2, 4, 3), dtype=np.uint16))
    status, _, result = scan(root)
    assert status == 0
    found = finding(result, "dark")
    assert found["severity"] == "warning"
    assert "read almost black, 0 to 1" in found["text"]
    assert "write white: 4095 in dataset.yaml" in found["advice"]
    (root / "dataset.yaml").write_text(NAMES + "white: 4095\n")
    assert "dark" not in kinds(scan(root)[2], "warning")


def smooth(root: Path, *, colours: bool = False) -> None:
    """Masks of 0 and 255 with borders of 30 values between."""
    for path in root.glob("masks/*/*.png"):
        label = np.zeros((40, 60), np.uint8)
        label[:, 30:] = 255
        label[0, 10:40] = np.arange(30) * 8 + 4
        write(path, np.dstack([label, label // 2, label]) if colours else label)
    for path in root.glob("images/*/*.png"):
        write_image(path, (40, 60), seed=ord(path.stem))


def test_smoothed_masks_are_recognised_and_not_described_as_classes(root):
    smooth(root)
    (root / "dataset.yaml").write_text("names: [a, b]\nids: {0: a, 255: b}\n")
    status, _, result = scan(root)
    assert status == 1
    advice = result["findings"][0]["advice"]
    assert "smoothed borders (antialiasing, or resizing with interpolation)" in advice
    assert "Add the values" not in advice
    (root / "dataset.yaml").unlink()
    status, text, _ = scan(root)
    assert status == 1
    assert "smoothed borders" in text
    assert "class_4" not in text
    smooth(root, colours=True)
    (root / "dataset.yaml").write_text('masks: colours\nnames: [a, b]\ncolours: ["#000000", "#ff7fff"]\n')
    assert "smoothed borders" in scan(root)[2]["findings"][0]["advice"]


def test_void_is_recognised_in_colour_masks_and_the_yaml_is_printed_once(root):
    (root / "dataset.yaml").unlink()
    mask = np.array([[(0, 0, 0), (10, 20, 30)], [(0, 200, 0), (0, 0, 0)]], np.uint8).repeat(2, 1)
    for path in root.glob("masks/*/*.png"):
        write(path, mask)
    status, text, _ = scan(root, "--write-yaml", str(root / "dataset.yaml"))
    assert status == 1
    assert text.count("masks: colours") == 1
    assert yaml.safe_load((root / "dataset.yaml").read_text()) == {
        "masks": "colours",
        "names": ["class_0", "class_1"],
        "colours": {"class_0": "#00c800", "class_1": "#1e140a"},
        "ignore": "#000000",
    }
    status, _, result = scan(root)
    assert status == 0
    assert result["splits"]["train"]["ignored"]["pixels"] == 12
    void = np.where((mask == 0).all(-1, keepdims=True), np.uint8([192, 224, 224]), mask)
    assert 'ignore: "#e0e0c0"' in suggest_for_colours([0, *np.unique(read(root, void)).tolist()])


def read(root: Path, colours: np.ndarray) -> np.ndarray:
    return read_colours(write(root / "masks/other.png", colours))


def test_a_description_that_is_there_is_not_written_over(root, capsys):
    arguments = ["scan", "--data", "folder", "--root", str(root), "--write-yaml", str(root / "dataset.yaml")]
    assert command.main(arguments) == 2
    assert "write_yaml: got" in capsys.readouterr().err
    assert (root / "dataset.yaml").read_text() == NAMES


def test_one_named_class_is_an_error_and_so_is_one_class_in_train(root):
    (root / "dataset.yaml").write_text("names: [fg]\nignore: [1, 2, 255]\n")
    status, text, _ = scan(root)
    assert status == 1
    assert "error: only one class is named, fg: a network has nothing to tell apart. Name the background" in text
    (root / "dataset.yaml").write_text(NAMES)
    for path in root.glob("masks/train/*.png"):
        write(path, np.full((2, 4), 1, np.uint8))
    status, text, _ = scan(root)
    assert status == 1
    assert "error: train: only one class occurs at all, road" in text


def test_classes_that_never_occur_count_as_zero_once_predicted(root):
    (root / "dataset.yaml").write_text("names: [background, road, car, bus]\n")
    assert "until a pixel is predicted as one of them. Then their IoU is 0." in scan(root)[1]


def test_masks_of_other_kinds_are_named(root):
    for path in root.glob("masks/train/*.png"):
        path.rename(path.with_suffix(".npy"))
    assert "expected files that end with .png, .jpg" in (text := scan(root)[1])
    assert "got others alone: 3 .npy" in text


def test_json_may_go_to_standard_output(root, capsys):
    assert command.main(["scan", "--data", "folder", "--root", str(root), "--quiet", "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["splits"]["train"]["images"] == 3
    assert "training can begin" in captured.err


def test_a_length_looks_at_the_first_images(root):
    assert scan(root, "--length", "1")[2]["splits"]["train"]["images"] == 1
