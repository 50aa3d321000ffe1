"""The CamVid layout: what is read, and what is said about folders and files that are not right."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from hmsa_ext import data
from hmsa_ext.data.sets import camvid
from python_tests.data.picture_sets import CAMVID


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three small pairs in each split, one image a PNG."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for index, ending in enumerate((".jpg", ".png", ".jpg")):
            write(tmp_path / split / f"f{index}{ending}", rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            write(tmp_path / f"{split}annot" / f"f{index}.png", rng.integers(0, 12, (24, 32), dtype=np.uint8))
    return tmp_path


def build(root: Path, split: str = "train") -> data.Dataset:
    return data.build("camvid", split, root=root)


def found_by_check(root: Path) -> str:
    with pytest.raises(data.DataError) as caught:
        data.check(build(root), quiet=True)
    return str(caught.value)


def test_pairs_are_read_in_the_order_of_their_names_and_void_is_ignored(root):
    dataset = build(root)
    data.check(dataset, quiet=True)
    assert [dataset[index].name for index in range(3)] == ["f0", "f1", "f2"]
    stored = cv2.imread(str(root / "trainannot" / "f1.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(dataset[1].label, np.where(stored == 11, 255, stored))
    picture = cv2.imread(str(root / "train" / "f1.png"))
    assert np.array_equal(dataset[1].image, picture[..., ::-1])


def test_only_the_first_images_with_a_length(root):
    assert len(data.build("camvid", "train", root=root, length=2)) == 2


def test_a_missing_folder_is_named_with_the_expected_layout(tmp_path):
    with pytest.raises(data.DataError, match=r"train: no such folder; .*\. Expected images .*train/NAME\.png or \.jpg"):
        build(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(data.DataError, match=r"trainannot: no such folder"):
        build(tmp_path)


def test_an_empty_split_is_an_error(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "trainannot").mkdir()
    with pytest.raises(data.DataError, match="the split is empty"):
        build(tmp_path)


def test_images_and_labels_without_a_partner_are_counted_and_named(root):
    (root / "trainannot" / "f0.png").unlink()
    (root / "train" / "f1.png").unlink()
    (root / "train" / "f2.jpg").unlink()
    text = r"1 image without a label: f0\.jpg; 2 labels without an image: f1\.png, f2\.png"
    with pytest.raises(data.DataError, match=text):
        build(root)


def test_two_images_of_one_name_are_an_error(root):
    write(root / "train" / "f0.png", np.zeros((24, 32, 3), np.uint8))
    with pytest.raises(data.DataError, match=r"two files of one name, f0\.jpg and f0\.png"):
        build(root)


def test_sizes_that_differ_are_named_with_both_sizes(root):
    write(root / "trainannot" / "f1.png", np.zeros((20, 32), np.uint8))
    text = r"f1\.png: the label map is 32x20 pixels, its image f1\.png 32x24"
    with pytest.raises(data.DataError, match=text):
        data.check(build(root), quiet=True)
    with pytest.raises(data.DataError, match=text):
        build(root)[1]


def test_label_values_outside_the_classes_are_named_and_counted(root):
    label = np.zeros((24, 32), np.uint8)
    label[:2, :5], label[5, 7] = 12, 200
    write(root / "trainannot" / "f2.png", label)
    text = r"f2\.png: values that are no class: 12 in 10 pixels, 200 in 1 pixel\. Expected 0\.\.10, or 11 for void"
    with pytest.raises(data.DataError, match=text):
        data.check(build(root), quiet=True)
    with pytest.raises(data.DataError, match=text):
        build(root)[2]


def test_labels_in_colours_are_refused(root):
    label = np.zeros((24, 32, 4), np.uint8)
    label[3, 4] = 1, 2, 3, 255
    write(root / "trainannot" / "f1.png", label)
    text = found_by_check(root)
    assert "1 problem in 3 images" in text
    assert (
        "f1.png: expected a label map with one channel of class numbers, got colours (8-bit RGB and alpha PNG)" in text
    )
    assert "masks: colours" in text


def test_labels_of_sixteen_bits_are_taken_by_their_values(root):
    label = np.full((24, 32), 3, np.uint16)
    write(root / "trainannot" / "f0.png", label)
    assert np.array_equal(build(root).label(0), label)
    label[0, 0] = 259  # 3 in its lower byte
    write(root / "trainannot" / "f0.png", label)
    assert "f0.png: values that are no class: 259 in 1 pixel." in found_by_check(root)


def test_the_label_alone_the_files_and_what_decides_the_labels(root):
    dataset = build(root)
    assert np.array_equal(dataset.label(1), dataset[1].label)
    assert dataset.files(1) == (root / "train" / "f1.png", root / "trainannot" / "f1.png")
    assert dataset.identity == build(root, "val").identity
    assert "11 classes" in dataset.identity
    assert "11>255" in dataset.identity
    (root / "train" / "f1.png").unlink()
    dataset.label(1)  # the image is not needed


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def make_text(path: Path) -> None:
    path.write_text("not a picture")


@pytest.mark.parametrize(
    ("folder", "name", "damage", "text"),
    [
        ("train", "f0.jpg", cut_short, "the file is damaged: it ends early"),
        ("train", "f1.png", cut_short, "the file is damaged: it ends early"),
        ("train", "f1.png", change_a_byte, "wrong checksum in PNG chunk IDAT"),
        ("train", "f2.jpg", make_empty, "the file is empty"),
        ("train", "f2.jpg", make_text, "not a picture: expected a PNG, JPEG, BMP, TIFF or WebP file"),
        ("trainannot", "f0.png", cut_short, "the file is damaged: it ends early"),
        ("trainannot", "f0.png", change_a_byte, "wrong checksum in PNG chunk IDAT"),
    ],
)
def test_damaged_files_are_named_by_check_and_when_loaded(root, folder, name, damage, text):
    damage(root / folder / name)
    dataset = build(root)
    message = found_by_check(root)
    assert str(root / folder / name) in message
    assert text in message
    with pytest.raises(data.DataError, match=text):
        dataset[int(name[1])]


def test_a_file_that_vanished_is_named(root):
    dataset = build(root)
    (root / "train" / "f1.png").unlink()
    with pytest.raises(data.DataError, match=r"f1\.png: cannot be read"):
        data.check(dataset, quiet=True)


def test_a_long_list_of_problems_is_cut(root):
    for index in range(3, 20):
        write(root / "train" / f"f{index}.jpg", np.zeros((24, 32, 3), np.uint8))
        write(root / "trainannot" / f"f{index}.png", np.full((24, 32), 99, np.uint8))
    text = found_by_check(root)
    assert text.startswith("17 problems in 20 images:")
    assert text.endswith("... and 7 more")
    assert text.count("99 in 768 pixels") == 10


def test_a_note_on_orientation_does_not_turn_the_image(root):
    """A JPEG whose camera says "turn me": its label map is stored unturned, so the image stays so too."""
    path = root / "train" / "f0.jpg"
    plain, content = build(root)[0].image, path.read_bytes()
    tag = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    body = b"Exif\0\0" + tag
    path.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + content[2:])
    assert cv2.imread(str(path)).shape == (32, 24, 3)  # the note is understood
    assert np.array_equal(build(root)[0].image, plain)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("camvid", {}, "root: camvid needs the folder"),
        ("camvid", {"root": "/tmp", "size": (64, 64)}, r"size: camvid has no such option; got \(64, 64\)"),
        (
            "cityscape",
            {},
            r"data: got 'cityscape', expected one of ade20k, .*synthetic, or package\.module:object",
        ),
        ("camvid", {"root": "/tmp", "fold": 1}, "fold: camvid has no such option; got 1"),
        ("camvid", {"root": "/tmp", "labels": "coarse"}, "labels: camvid has no such option; got 'coarse'"),
        ("synthetic", {"version": "2.0"}, "version: synthetic has no such option"),
    ],
)
def test_bad_options_are_named(name, options, text):
    with pytest.raises(data.DataError, match=text):
        data.build(name, "train", **options)


def test_bad_splits_and_lengths_are_named(root):
    with pytest.raises(data.DataError, match=r"split: expected one of \['train', 'val', 'test'\], got 'all'"):
        build(root, "all")
    with pytest.raises(data.DataError, match="length: expected at least 1 image, got 0"):
        data.build("camvid", "train", root=root, length=0)


def test_check_writes_plain_lines_where_there_is_no_terminal(root, capsys):
    data.check(build(root))
    assert capsys.readouterr().err.startswith("checked 3 images in ")


def test_check_loads_what_it_cannot_inspect():
    class Wrong:
        classes = camvid.CLASSES

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> data.Sample:
            label = np.full((4, 5), 11 if index else 3, np.uint8)
            return data.Sample(np.zeros((4, 6 - index, 3), np.uint8), label, f"item{index}")

    with pytest.raises(data.DataError) as caught:
        data.check(Wrong(), quiet=True)
    assert "item0: the label map is 5x4 pixels, its image 6x4" in str(caught.value)
    assert "item1: values that are no class: 11 in 20 pixels. Expected 0..10, or 255 for ignored" in str(caught.value)


# Of the pixels, in percent, of the 11 classes and void, as measured when the data was described.
SHARES = {
    "train": (16.85, 23.26, 0.98, 31.66, 4.49, 9.72, 1.17, 1.13, 5.87, 0.64, 0.29, 3.95),
    "val": (9.18, 25.96, 0.56, 28.95, 8.72, 16.34, 0.89, 3.08, 1.75, 0.65, 2.22, 1.70),
}


@pytest.mark.skipif(not CAMVID.is_dir(), reason="no CamVid beside the repository (HMSA_SHARED)")
def test_the_real_camvid_is_whole():
    for split, count in (("train", 367), ("val", 101)):
        dataset = build(CAMVID, split)
        data.check(dataset, quiet=True)
        assert len(dataset) == count
        pixels = sum(np.bincount(dataset.label(index).ravel(), minlength=256) for index in range(count))
        shares = 100 * pixels / pixels.sum()
        assert np.allclose([*shares[:11], shares[255]], SHARES[split], atol=0.006)  # they are given to 0.01
    sample = dataset[0]
    assert sample.image.shape == (360, 480, 3)
    assert set(np.unique(sample.label)) <= {*range(11), 255}
    # Most of the road is grey, and below most of the sky: the picture and the label map belong together.
    rows = np.arange(360)[:, None] * np.ones(480)
    assert rows[sample.label == 3].mean() > rows[sample.label == 0].mean() + 100
