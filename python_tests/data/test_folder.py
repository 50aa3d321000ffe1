"""A user's own folder: layouts, list files, the description, and what is said when it is not there."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from hmsa_ext import data

from .pictures import on_disk, png, write, write_image

LABEL = np.array([[0, 1, 2, 255], [2, 2, 1, 0]], np.uint8)
NAMES = "names: [background, road, car]\n"


def make(root: Path, images: str = "images", masks: str = "masks", *, text: str | None = NAMES) -> Path:
    """Two images in train, one in val."""
    for split, names in (("train", ("a", "b")), ("val", ("c",))):
        for name in names:
            write_image(root / images / split / f"{name}.jpg", LABEL.shape)
            write(root / masks / split / f"{name}.png", LABEL)
    if text is not None:
        (root / "dataset.yaml").write_text(text)
    return root


def build(root: Path, split: str = "train", **options) -> data.LabelledFiles:
    return on_disk("folder", split, root=root, **options)


def error(root: Path, split: str = "train", **options) -> str:
    with pytest.raises(data.DataError) as caught:
        build(root, split, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("images", "masks"),
    [("images", "masks"), ("images", "labels"), ("images", "annotations"), ("img_dir", "ann_dir")],
)
def test_layouts(tmp_path, images, masks):
    root = make(tmp_path, images, masks)
    train, val = build(root), build(root, "val")
    assert isinstance(train, data.Dataset)
    assert [train[k].name for k in range(len(train))] == ["a", "b"]
    assert [val[k].name for k in range(len(val))] == ["c"]
    assert np.array_equal(train[0].label, LABEL)
    assert train[0].image.shape == (2, 4, 3)
    assert train.classes.names == ("background", "road", "car")
    assert len(np.unique(train.classes.colours, axis=0)) == 3
    assert train.files(0) == (root / images / "train/a.jpg", root / masks / "train/a.png")
    data.check(train, quiet=True)
    assert len(build(root, length=1)) == 1


def test_own_folder_names_and_folders_within(tmp_path):
    root = make(tmp_path, "pictures", "truth", text=NAMES + "images: pictures\nmasks_dir: truth\n")
    write_image(root / "pictures/train/more/a.png", LABEL.shape)
    write(root / "truth/train/more/a.png", LABEL)
    dataset = build(root)
    # Two are called "a": here the names keep their folders.
    assert [dataset[k].name for k in range(3)] == ["a", "b", "more/a"]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_kinds_of_files(tmp_path, suffix):
    for name in ("a", "b"):
        write_image(tmp_path / f"images/train/{name}{suffix}", LABEL.shape)
        write(tmp_path / f"masks/train/{name}{suffix}", LABEL)
    (tmp_path / "dataset.yaml").write_text(NAMES)
    assert np.array_equal(build(tmp_path)[1].label, LABEL)


def test_palette_masks_are_read_as_indices(tmp_path):
    root = make(tmp_path)
    stored = np.array([[0, 1, 2, 2], [2, 2, 1, 0]], np.uint8)
    (root / "masks/train/a.png").write_bytes(png(stored, depth=2, colour=3, palette=bytes(range(12))))
    assert np.array_equal(build(root).label(0), stored)


def test_list_files(tmp_path):
    for name in ("x", "y"):
        write_image(tmp_path / f"images/{name}.jpg", LABEL.shape)
        write(tmp_path / f"labels/{name}.png", LABEL)
    write_image(tmp_path / "images/with blank.jpg", LABEL.shape)
    (tmp_path / "dataset.yaml").write_text(NAMES)
    lines = ["# a comment", "images/y.jpg labels/y.png", "", "images/x.jpg   labels/x.png"]
    (tmp_path / "train.txt").write_text("\n".join([*lines, "images/with blank.jpg\tlabels/x.png"]))
    dataset = build(tmp_path)
    assert [dataset[k].name for k in range(3)] == ["y", "x", "with blank"]
    assert dataset.files(0) == (tmp_path / "images/y.jpg", tmp_path / "labels/y.png")
    assert "val: no such folder" in error(tmp_path, "val")

    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/one.txt").write_text("images/y.jpg labels/y.png\n")
    (tmp_path / "dataset.yaml").write_text(NAMES + "train: lists/one.txt\n")
    assert len(build(tmp_path)) == 1


def test_a_list_file_may_begin_with_a_byte_order_mark(tmp_path):
    make(tmp_path, "i", "m")
    (tmp_path / "train.txt").write_text("\ufeffi/train/a.jpg m/train/a.png\n", encoding="utf-8")
    assert len(build(tmp_path)) == 1


def test_what_is_wrong_in_a_list_file_is_named(tmp_path):
    write_image(tmp_path / "x.jpg", LABEL.shape)
    write(tmp_path / "x.png", LABEL)
    (tmp_path / "dataset.yaml").write_text(NAMES)
    (tmp_path / "train.txt").write_text("x.jpg x.png\nx.jpg x.png\nx.jpg\nx.jpg none.png\n")
    text = error(tmp_path)
    assert "train.txt, line 2: x.jpg is in the list already" in text
    assert "train.txt, line 3: expected IMAGE LABEL (or a tab between), got 'x.jpg'" in text
    assert "1 file in the list not found: " in text
    assert "none.png" in text
    (tmp_path / "train.txt").write_text("\n")
    assert "train.txt: the split is empty" in error(tmp_path)
    (tmp_path / "dataset.yaml").write_text(NAMES + "train: no.txt\n")
    assert "no.txt: cannot be read" in error(tmp_path)


def test_a_split_may_be_a_folder_of_images(tmp_path):
    """As descriptions of another trainer have it: train: images/train, masks_dir: masks."""
    text = NAMES + "train: images/train\nval: images/val\nmasks_dir: masks\n"
    assert len(build(make(tmp_path, text=text), "val")) == 1


def test_a_description_elsewhere(tmp_path, monkeypatch):
    root = make(tmp_path / "root", text=None)
    (root / "mine.yaml").write_text(NAMES)
    assert len(build(root, description="mine.yaml")) == 2
    (tmp_path / "other.yaml").write_text("names: [a, b, c]")
    monkeypatch.chdir(tmp_path)
    assert build(root, description="other.yaml").classes.names == ("a", "b", "c")
    assert "none.yaml: no such file" in error(root, description="none.yaml")


def test_stored_values_by_names_and_by_ids(tmp_path):
    by_names = build(make(tmp_path / "1", text="names: {0: background, 2: car, 1: road}"))
    assert by_names.classes.names == ("background", "road", "car")
    assert np.array_equal(by_names.label(0), LABEL)

    gaps = build(make(tmp_path / "2", text="names: {0: background, 2: car}\nignore: [1, 255]"))
    assert gaps.label(0).tolist() == [[0, 255, 1, 255], [1, 1, 255, 0]]

    joined = build(make(tmp_path / "3", text="names: [nothing, thing]\nids: {0: nothing, 1: thing, 2: 1}"))
    assert joined.label(0).tolist() == [[0, 1, 1, 255], [1, 1, 1, 0]]

    binary = "names: [background, spot]\nids: {0: background, 255: spot, 1: spot, 2: spot}"
    assert build(make(tmp_path / "4", text=binary)).label(0).tolist() == [[0, 1, 1, 1], [1, 1, 1, 0]]
    assert len({dataset.identity for dataset in (by_names, gaps, joined)}) == 3


def test_sixteen_bit_masks(tmp_path):
    root = make(tmp_path, text="names: {0: a, 300: b}\nignore: 65535\n")
    for name in ("a", "b"):
        write(root / f"masks/train/{name}.png", np.array([[0, 300, 65535, 0]] * 2, np.uint16))
    assert build(root).label(0).tolist() == [[0, 1, 255, 0]] * 2
    write(root / "masks/train/a.png", np.array([[0, 301, 65535, 0]] * 2, np.uint16))
    with pytest.raises(data.DataError, match=r"301 in 2 pixels\. Expected 0, 300, or 65535 for ignored"):
        build(root).label(0)


# The colours of the original CamVid pictures, of which several make one class.
CAMVID = """
masks: colours
mask_suffix: _L
names: [sky, building, road, car]
ids: {"#808080": sky, "#800000": building, "#804080": road, "#8000c0": road, "#400080": car, "#4080c0": car}
ignore: ["#000000", [64, 192, 0]]
"""


def test_masks_in_colours(tmp_path):
    colours = [[(128, 128, 128), (128, 0, 0), (128, 64, 128)], [(128, 0, 192), (64, 128, 192), (64, 192, 0)]]
    write_image(tmp_path / "images/train/0001TP.png", (2, 3))
    write(tmp_path / "masks/train/0001TP_L.png", np.array(colours, np.uint8)[..., ::-1])
    (tmp_path / "dataset.yaml").write_text(CAMVID)
    dataset = build(tmp_path)
    assert dataset[0].label.tolist() == [[0, 1, 2], [2, 3, 255]]
    assert dataset[0].name == "0001TP"
    write(tmp_path / "masks/train/0001TP_L.png", np.full((2, 3, 3), 7, np.uint8))
    with pytest.raises(data.DataError, match=r"#070707 in 6 pixels\. Expected #400080, .*or #000000, #40c000 for"):
        dataset.label(0)


def test_masks_in_the_colours_of_the_classes(tmp_path):
    write_image(tmp_path / "images/train/a.png", (1, 3))
    write(tmp_path / "masks/train/a.png", np.array([[(10, 20, 30), (0, 0, 0), (1, 1, 1)]], np.uint8))
    for colours in ("[[0, 0, 0], [30, 20, 10]]", '{thing: "#1e140a", background: [0, 0, 0]}'):
        (tmp_path / "dataset.yaml").write_text(
            f"masks: colours\nnames: [background, thing]\ncolours: {colours}\nignore: [1, 1, 1]\n"
        )
        dataset = build(tmp_path)
        assert dataset.label(0).tolist() == [[1, 0, 255]]
        assert dataset.classes.colours.tolist() == [[0, 0, 0], [30, 20, 10]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [a]", "unknown key 'name'; did you mean names?"),
        ("names: [a]\ncolors: [[0, 0, 0]]", "unknown key 'colors'; did you mean colours?"),
        ("names: [a]\nzebra: 1", "unknown key 'zebra'; expected names, ignore, ids"),
        ("ignore: 3", "names: expected a list of class names, or a map from stored value to name, got None"),
        (
            "names: [a, yes]",
            'names: expected texts, got True; YAML reads yes, no, on and off as true and false: write "yes"',
        ),
        ("names: [a, no]", 'write "no", "off" or "false" in quotes'),
        ("names: [a, 3]", 'names: expected texts, got 3; write "3" in quotes'),
        ("names: [a]\nids: {0: no}", 'ids: 0 is False; YAML reads yes, no, on and off as true and false: write "no"'),
        ("names: [a]\nwhite: 0", "white: expected a value from 1 to 65535, got 0"),
        ("names: [a, b, a]", "names: expected each class once, got a more often"),
        ("names: {-1: a}", "names: expected numbers from 0 up before the names, got -1"),
        ("names: {x: a}", "names: expected numbers from 0 up before the names, got 'x'"),
        ("names: [a]\nmasks: rgb", "masks: expected indices or colours, got 'rgb'"),
        ("names: [a]\nmasks: colours", "masks: colours, but there is neither colours:"),
        ("names: [a, b]\ncolours: [[0, 0, 0]]", "colours: expected 2, one for each name"),
        ("names: [a]\ncolours: [[0, 0, 300]]", 'colours: expected colours as [128, 64, 128] or "#804080"'),
        ("names: [a, b]\ncolours: {a: [0, 0, 0], c: [0, 0, 1]}", "these differ: b, c"),
        ("names: [a, b]\nmasks: colours\ncolours: [[0, 0, 0], [0, 0, 0]]", "a colour of its own for each class"),
        ("names: [a]\nids: {0: b}", "ids: 0 is 'b', which is not in names: a"),
        ("names: [a]\nids: {x: a}", "ids: expected stored values from 0 up, got 'x'"),
        ("names: [a]\nids: {70000: a}", "expected stored values of 0..65535, got 70000"),
        ("names: [a]\nids: [0]", "ids: expected a map from stored value to class, got [0]"),
        ("names: [a, b]\nignore: 1", "ignore: 1 is also class 'b'"),
        ("names: [a]\nignore: x", "ignore: expected a stored value or a list of them, got 'x'"),
        ("names: [a]\nimages: 3", "images: expected a text, got 3"),
        ("just text", "expected keys with values, such as names: [background, road], got 'just text'"),
        ("names: [a", "not a YAML file"),
    ],
)
def test_what_is_wrong_in_a_description_is_named(tmp_path, text, expected):
    found = error(make(tmp_path, text=text))
    assert f"{tmp_path}/dataset.yaml: " in found
    assert expected in found


def test_more_classes_than_labels_can_hold_are_refused(tmp_path):
    names = "names: {" + ", ".join(f"{k}: c{k}" for k in range(255)) + "}"
    assert "names: expected at most 254 classes, got 255" in error(make(tmp_path, text=names))


def suggested(text: str) -> dict:
    """The YAML within an error."""
    return yaml.safe_load(text.split("would fit:\n\n")[1])


def test_without_a_description_one_is_suggested_that_works(tmp_path):
    root = make(tmp_path, text=None)
    text = error(root)
    assert f"{root}/dataset.yaml: no such file; it has to name the classes" in text
    assert suggested(text) == {"names": ["class_0", "class_1", "class_2"]}
    (root / "dataset.yaml").write_text(text.split("would fit:\n\n")[1])
    assert np.array_equal(build(root).label(0), LABEL)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ([[0, 255]], {"names": ["background", "object"], "ids": {0: "background", 255: "object"}}),
        ([[7, 200]], {"names": {7: "class_7", 200: "class_200"}}),
        (
            [[(0, 0, 0), (10, 20, 30)]],
            {
                "masks": "colours",
                "names": ["class_0", "class_1"],
                "colours": {"class_0": "#000000", "class_1": "#1e140a"},
            },
        ),
    ],
)
def test_the_suggestion_fits_what_the_masks_hold(tmp_path, label, expected):
    write_image(tmp_path / "images/train/a.png", (1, 2))
    write(tmp_path / "masks/train/a.png", np.array(label, np.uint8))
    text = error(tmp_path)
    assert suggested(text) == expected
    (tmp_path / "dataset.yaml").write_text(text.split("would fit:\n\n")[1])
    assert build(tmp_path).label(0).tolist() == [[0, 1]]


def test_masks_that_end_on_something_are_recognised(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / f"images/train/{name}.png", LABEL.shape)
        write(tmp_path / f"masks/train/{name}_mask.png", LABEL)
    (tmp_path / "dataset.yaml").write_text(NAMES)
    text = error(tmp_path)
    assert "2 images without a label: a.png, b.png; 2 labels without an image: a_mask.png, b_mask.png" in text
    assert "mask_suffix: _mask in the description pairs them" in text
    (tmp_path / "dataset.yaml").write_text(NAMES + "mask_suffix: _mask\n")
    assert len(build(tmp_path)) == 2


def test_missing_folders_lonely_files_and_doubles_are_named(tmp_path):
    (tmp_path / "dataset.yaml").write_text(NAMES)
    text = error(tmp_path)
    assert f"{tmp_path}/images/train: no such folder" in text
    assert f"{tmp_path}/masks/train: no such folder" in text
    assert f"Expected images {tmp_path}/images/train/NAME.jpg or .png and label maps" in text
    root = make(tmp_path)
    write_image(root / "images/train/a.png", LABEL.shape)
    assert "images/train: two files of one name, a.jpg and a.png" in error(root)
    (root / "images/train/a.png").unlink()
    (root / "images/train/b.jpg").unlink()
    assert "1 label without an image: b.png" in error(root)
    for folder in ("images", "masks"):
        for path in (root / folder / "val").iterdir():
            path.unlink()
    assert "val: the split is empty" in error(root, "val")


def test_jpeg_masks_are_refused_when_read(tmp_path):
    root = make(tmp_path)
    (root / "masks/train/a.png").unlink()
    write(root / "masks/train/a.jpg", LABEL)
    with pytest.raises(data.DataError, match=r"a\.jpg: JPEG is lossy: it alters labels at class borders"):
        data.check(build(root), quiet=True)
