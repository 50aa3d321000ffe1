"""Cityscapes: both layouts, kinds of labels, folds, thresholds, on tiny files in the published folders."""

from pathlib import Path

import numpy as np
import pytest

from hmsa_ext import data
from hmsa_ext.data.automatic.corrections import write_corrections
from hmsa_ext.data.sets import cityscapes
from python_tests.automatic_files import make_labels

from .pictures import on_disk, write, write_image

FLAT = {
    "train": "leftImg8bit/train",
    "val": "leftImg8bit/val",
    "train_extra": "leftImg8bit/train_extra",
    "fine": "gtFine",
    "coarse": "gtCoarse",
    "autolabelled": "autolabelled",
}
ARCHIVES = {
    "train": "leftImg8bit_trainvaltest/leftImg8bit/train",
    "val": "leftImg8bit_trainvaltest/leftImg8bit/val",
    "train_extra": "leftImg8bit_trainextra/leftImg8bit/train_extra",
    "fine": "gtFine_trainvaltest/gtFine",
    "coarse": "gtCoarse/gtCoarse",
    "autolabelled": "refinement_final_v0",
}
CITIES = {"train": ["aachen", "bochum", "ulm", "zurich"], "val": ["lindau", "frankfurt"], "train_extra": ["augsburg"]}
# Every id that a file can store, in two rows.
IDS = np.array([[*range(17)], [*range(17, 34)]], np.uint8)


def place(root: Path, layout: dict[str, str], split: str, city: str, name: str, kind: str) -> Path:
    ending = {"autolabelled": "_leftImg8bit.png", "fine": "_gtFine_labelIds.png", "coarse": "_gtCoarse_labelIds.png"}
    return root / layout[kind] / split / city / f"{name}{ending[kind]}"


def make(root: Path, layout: dict[str, str], *kinds: str, splits: tuple[str, ...] = ("train", "val")) -> Path:
    for split in splits:
        for city in CITIES[split]:
            for frame in (19, 20):
                name = f"{city}_000000_{frame:06d}"
                write_image(root / layout[split] / city / f"{name}_leftImg8bit.png", IDS.shape)
                for kind in kinds:
                    path = write(place(root, layout, split, city, name, kind), IDS)
                    # The other files of the archive, which must not be taken for label maps.
                    write(Path(str(path).replace("labelIds", "color")), np.zeros((2, 17, 3), np.uint8))
                    write(Path(str(path).replace("labelIds", "instanceIds")), np.zeros((2, 17), np.uint16))
    return root


def cities(dataset: data.LabelledFiles) -> list[str]:
    return list(dict.fromkeys(dataset[k].name.partition("_")[0] for k in range(len(dataset))))


@pytest.mark.parametrize("layout", [FLAT, ARCHIVES])
@pytest.mark.parametrize(("split", "labels"), [("train", "fine"), ("val", "fine"), ("train", "coarse")])
def test_both_layouts_are_read(tmp_path, layout, split, labels):
    dataset = on_disk("cityscapes", split, root=make(tmp_path, layout, labels), labels=labels)
    assert isinstance(dataset, data.Dataset)
    assert len(dataset) == 2 * len(CITIES[split])
    assert cities(dataset) == sorted(CITIES[split])
    sample = dataset[0]
    assert sample.name == f"{sorted(CITIES[split])[0]}_000000_000019"
    ignored = {0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30}
    expected, number = [], 0
    for value in range(34):
        expected.append(255 if value in ignored else number)
        number += value not in ignored
    assert sample.label.ravel().tolist() == expected
    assert dataset.files(0)[1].name.endswith("_labelIds.png")
    assert len(on_disk("cityscapes", split, root=tmp_path, labels=labels, length=1)) == 1


@pytest.mark.parametrize("layout", [FLAT, ARCHIVES])
def test_coarse_labels_of_the_extra_images(tmp_path, layout):
    root = make(tmp_path, layout, "coarse", splits=("train_extra",))
    dataset = on_disk("cityscapes", "train_extra", root=root, extra="coarse")
    assert [dataset[k].name for k in range(2)] == ["augsburg_000000_000019", "augsburg_000000_000020"]
    data.check(dataset, quiet=True)


def test_train_ids_are_read_where_there_are_no_ids(tmp_path):
    root = make(tmp_path, FLAT, "fine")
    stored = np.array([[*range(17)], [17, 18, *[255] * 15]], np.uint8)
    for path in [*root.rglob("*_labelIds.png")]:
        write(path.with_name(path.name.replace("labelIds", "labelTrainIds")), stored)
    ids = on_disk("cityscapes", "val", root=root)
    assert ids.files(0)[1].name.endswith("_labelIds.png")
    for path in [*root.rglob("*_labelIds.png")]:
        path.unlink()
    train_ids = on_disk("cityscapes", "val", root=root)
    assert train_ids.files(0)[1].name.endswith("_labelTrainIds.png")
    assert np.array_equal(train_ids.label(0), stored)
    assert ids.identity != train_ids.identity


def test_the_table_is_the_official_one():
    assert cityscapes.CLASSES.num_classes == 19
    assert cityscapes.CLASSES.names[0] == "road"
    assert cityscapes.CLASSES.names[18] == "bicycle"
    assert cityscapes.CLASSES.colours[13].tolist() == [0, 0, 142]
    assert [label.id for label in cityscapes.LABELS] == [*range(34), -1]
    assert sum(label.has_instances for label in cityscapes.LABELS) == 10
    # Ids of the train ids and back.
    assert cityscapes.IDS[:19].tolist() == [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert np.array_equal(cityscapes.id_table().entries[cityscapes.IDS[:19]], np.arange(19))
    assert (cityscapes.IDS[19:] == 0).all()
    assert cityscapes.id_table().entries[255] == 255  # the licence plate, -1


@pytest.mark.parametrize(
    ("fold", "val"),
    [
        (0, ["frankfurt", "lindau"]),
        # frankfurt lindau | aachen bochum | ulm zurich
        (1, ["aachen", "bochum"]),
        (2, ["ulm", "zurich"]),
    ],
)
def test_folds_move_a_window_over_the_cities(tmp_path, fold, val):
    root = make(tmp_path, FLAT, "fine")
    everything = {*CITIES["train"], *CITIES["val"]}
    assert cities(on_disk("cityscapes", "val", root=root, fold=fold)) == val
    assert set(cities(on_disk("cityscapes", "train", root=root, fold=fold))) == everything - set(val)


def test_fold_three_trains_and_validates_on_everything(tmp_path):
    root = make(tmp_path, ARCHIVES, "fine")
    for split in ("train", "val"):
        dataset = on_disk("cityscapes", split, root=root, fold=3)
        assert set(cities(dataset)) == {*CITIES["train"], *CITIES["val"]}
        assert len(dataset) == 12


def make_automatic(root: Path, layout: dict[str, str], size: tuple[int, int] = (4, 256)) -> Path:
    """One image whose labels are all road, of rising probability; bus in one pixel; coarse: bus and train in others."""
    name = "augsburg_000000_000019"
    write_image(root / layout["train_extra"] / "augsburg" / f"{name}_leftImg8bit.png", size)
    label = np.full(size, 7, np.uint8)
    label[1, 200] = 28
    path = write(place(root, layout, "train_extra", "augsburg", name, "autolabelled"), label)
    probability = np.arange(256, dtype=np.uint8)[None].repeat(size[0], 0)
    write(path.with_name(f"{name}_leftImg8bit_prob.png"), probability)
    coarse = np.zeros(size, np.uint8)
    coarse[2, :3], coarse[3, :3] = 28, 31
    write(place(root, layout, "train_extra", "augsburg", name, "coarse"), coarse)
    return root


def automatic(root: Path, **options) -> data.LabelledFiles:
    return on_disk("cityscapes", "train_extra", root=root, extra="autolabelled", **options)


@pytest.mark.parametrize("layout", [FLAT, ARCHIVES])
@pytest.mark.parametrize(("limit", "first"), [(0.5, 128), (0.2, 51), (1.0, 255)])
def test_pixels_below_the_probability_are_ignored(tmp_path, layout, limit, first):
    dataset = automatic(make_automatic(tmp_path, layout), min_probability=limit)
    label = dataset.label(0)
    assert (label[0, :first] == 255).all()
    assert (label[0, first:] == 0).all()
    assert len(dataset.files(0)) == 3
    assert f"probability from {[first] * 19}" in dataset.identity
    data.check(dataset, quiet=True)


def test_without_a_probability_no_probabilities_are_needed(tmp_path):
    root = make_automatic(tmp_path, FLAT)
    (path,) = root.rglob("*_prob.png")
    path.unlink()
    assert (automatic(root, min_probability=0).label(0) != 255).all()
    with pytest.raises(data.DataError, match="1 image without a probability map: augsburg_000000_000019_leftImg8bit"):
        automatic(root)


def test_coarse_pixels_of_chosen_classes_are_added_where_the_class_occurs(tmp_path):
    root = make_automatic(tmp_path, FLAT)
    plain, helped = automatic(root).label(0), automatic(root, coarse_classes=(14, 15, 16)).label(0)
    expected = plain.copy()
    expected[2, :3] = 15  # unsure there; the train does not occur in the automatic labels
    assert np.array_equal(helped, expected)
    assert np.array_equal(automatic(root, coarse_classes=(16,)).label(0), plain)
    assert len(automatic(root, coarse_classes=(15,)).files(0)) == 4


def test_the_region_of_interest(tmp_path):
    root = make_automatic(tmp_path, FLAT, (20, 256))
    label = automatic(root, min_probability=0, region_of_interest=True).label(0)
    assert (label[:15] == 255).all()
    assert (label[:, :14] == 255).all()
    assert (label[15:, 14:] == 0).all()


def test_sizes_of_automatic_labels_are_compared(tmp_path):
    root = make_automatic(tmp_path, FLAT)
    (path,) = root.rglob("*_prob.png")
    write(path, np.zeros((4, 255), np.uint8))
    with pytest.raises(data.DataError, match=r"_prob\.png: 255x4 pixels, its label map .* 256x4"):
        automatic(root).label(0)


def test_missing_folders_are_named_with_the_layout(tmp_path):
    with pytest.raises(data.DataError) as caught:
        on_disk("cityscapes", "train", root=tmp_path)
    text = str(caught.value)
    assert f"{tmp_path}/leftImg8bit/train: no such folder" in text
    assert f"{tmp_path}/gtFine/train: no such folder" in text
    assert "CITY/NAME_gtFine_labelIds.png" in text
    assert f"{tmp_path}/gtFine_trainvaltest/gtFine/train" in text


def test_images_without_labels_are_counted(tmp_path):
    root = make(tmp_path, FLAT, "fine")
    for path in (root / "gtFine/train/ulm").glob("*_labelIds.png"):
        path.unlink()
    with pytest.raises(data.DataError, match=r"2 images without a label: ulm_000000_000019_leftImg8bit\.png, ulm_"):
        on_disk("cityscapes", "train", root=root)


def test_a_value_that_is_no_id_is_named(tmp_path):
    root = make(tmp_path, FLAT, "fine")
    write(sorted(root.rglob("*lindau*labelIds.png"))[0], np.full((2, 17), 34, np.uint8))
    with pytest.raises(data.DataError, match=r"values that are no class: 34 in 34 pixels\. .*ids 0\.\.33"):
        data.check(on_disk("cityscapes", "val", root=root), quiet=True)


@pytest.mark.parametrize(
    ("split", "options", "text"),
    [
        ("test", {}, r"split: expected one of \['train', 'val', 'train_extra'\], got 'test'"),
        ("train", {"labels": "rough"}, "labels: got 'rough', expected one of fine, coarse, autolabelled"),
        ("train", {"fold": 4}, "fold: got 4, expected 0, 1, 2 or 3"),
        ("train_extra", {}, "extra: train_extra has no fine labels"),
        (
            "train",
            {"min_probability": 0.3},
            "min_probability: got 0.3, expected no value without automatic labels",
        ),
        (
            "train_extra",
            {"extra": "autolabelled", "min_probability": 2},
            "min_probability: got 2, expected a number from 0 to 1",
        ),
        (
            "train_extra",
            {"extra": "autolabelled", "coarse_classes": [19]},
            r"coarse_classes: got '19', expected .*0\.\.18",
        ),
        ("train", {"version": "2.0"}, "version: cityscapes has no such option; got '2.0'"),
        ("train", {"root": None}, "root: cityscapes needs the folder that holds leftImg8bit and gtFine"),
    ],
)
def test_bad_options_are_named(tmp_path, split, options, text):
    with pytest.raises(data.DataError, match=text):
        on_disk("cityscapes", split, **{"root": tmp_path, **options})


def test_corrections_beside_the_cities_are_no_label_maps_of_a_city(tmp_path):
    name = "augsburg/augsburg_000000_000019_leftImg8bit"
    folder = tmp_path / "autolabelled/train_extra"
    contents = {name: (np.zeros((2, 17), np.uint8), np.full((2, 17), 200, np.uint8))}
    made = make_labels(
        folder, classes=cityscapes.CLASSES, places=[name], layout="cityscapes", contents=contents,
        images=tmp_path / "leftImg8bit/train_extra",
    )  # fmt: skip
    touched = np.zeros((2, 17), bool)
    touched[1] = True
    write_corrections(made, name, np.full((2, 17), 3, np.uint8), touched)
    dataset = on_disk("cityscapes", "train_extra", root=tmp_path, extra="autolabelled")
    assert len(dataset) == 1
    assert dataset.label(0).tolist() == [[0] * 17, [3] * 17]
    (folder / "manifest.json").unlink()
    with pytest.raises(data.DataError, match="corrections without a manifest beside them"):
        on_disk("cityscapes", "train_extra", root=tmp_path, extra="autolabelled")
