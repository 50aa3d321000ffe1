"""Which pixels of automatic labels count in training: thresholds, margins, coarse labels, corrections; the index."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from hmsa_ext import HmsaError, data
from hmsa_ext.data.automatic import trust as trusting
from hmsa_ext.data.automatic.corrections import corrected_file, write_corrections
from hmsa_ext.data.automatic.folder import open_automatic
from hmsa_ext.data.automatic.manifest import Manifest, free_values, read_manifest, write_manifest
from hmsa_ext.data.automatic.trust import MEDIAN, Trust
from hmsa_ext.data.label_table import LabelTable
from hmsa_ext.data.scan import command as scan
from hmsa_ext.engine.settings import TrainSettings
from hmsa_ext.settings import to_dict
from python_tests.automatic_files import PLACES, class_table, labels_of, make_labels, stored, write_png

IGNORED = 255
NAMES = ("c0", "c1", "c2", "c3")


@pytest.fixture
def made(tmp_path: Path) -> Manifest:
    return make_labels(tmp_path / "auto")


def opened(manifest: Manifest, trust: Trust | None = None, **options: object) -> data.LabelledFiles:
    return open_automatic(manifest.folder, manifest.classes, trust, **options)  # type: ignore[arg-type]


# ---- thresholds -------------------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.integers(0, 255))
@limits(max_examples=200, deadline=None)
def test_a_stored_probability_passes_where_it_reaches_the_threshold(limit: float, level: int) -> None:
    least = Trust(min_probability=limit).thresholds(class_table(), None)
    label, levels = np.zeros((1, 1), np.uint8), np.full((1, 1), level, np.uint8)
    passes = trusting.trusted(label, levels, least, 0)[0, 0] == 0
    assert passes == (level / 255 >= limit)


def test_every_item_has_the_pixels_that_pass(made: Manifest) -> None:
    least = [0.9, 0.4, 0.9, 2.0]
    found = opened(made, Trust(min_probability=0.9, class_threshold={"c1": 0.4}, drop_classes=("c3",)))
    assert [found[k].name for k in range(3)] == list(PLACES)
    for k, place in enumerate(PLACES):
        label, level = labels_of(made, place)
        expected = np.where(level / 255 >= np.array(least)[label], label, IGNORED)
        assert np.array_equal(found.label(k), expected)
        assert np.array_equal(found[k].label, expected)
        assert len(np.unique(expected)) > 2


def test_the_median_of_each_class_is_capped(made: Manifest) -> None:
    least = Trust(class_threshold=MEDIAN).thresholds(made.classes, made.histogram)
    pairs = [labels_of(made, place) for place in PLACES]
    for number in range(4):
        levels = np.sort(np.concatenate([level[label == number] for label, level in pairs]))
        middle = levels[(len(levels) + 1) // 2 - 1]  # the least one that at least half of the pixels do not exceed
        assert least[number] == min(middle, 230)
    assert {*least} != {230}


@given(st.lists(st.integers(0, 40), min_size=256, max_size=256))
@limits(max_examples=50, deadline=None)
def test_half_of_a_class_passes_its_median(counts: list[int]) -> None:
    histogram = np.array([counts])
    least = int(trusting.median_thresholds(histogram)[0])
    total = sum(counts)
    if least < 230:
        assert 2 * sum(counts[least:]) >= total
        assert 2 * sum(counts[least + 1 :]) <= total
    assert least == 0 or total > 0


def test_without_thresholds_no_probabilities_are_read(made: Manifest) -> None:
    label = labels_of(made, PLACES[0])[0]
    for place in PLACES:
        made.probability_file(place).unlink()
    assert np.array_equal(opened(made, Trust(min_probability=0)).label(0), label)
    with pytest.raises(data.DataError, match=r"3 files that the manifest lists not found: .*probabilities/a/0001\.png"):
        opened(made)


def test_dropped_classes_need_no_probabilities(made: Manifest) -> None:
    label = labels_of(made, PLACES[0])[0]
    found = opened(made, Trust(min_probability=0, drop_classes=("c2",))).label(0)
    assert np.array_equal(found, np.where(label == 2, IGNORED, label))


@pytest.mark.parametrize("margin", [1, 2, 5])
def test_pixels_near_a_border_are_ignored(made: Manifest, margin: int) -> None:
    found = opened(made, Trust(min_probability=0, boundary_margin=margin)).label(0)
    label = labels_of(made, PLACES[0])[0]
    height, width = label.shape
    for y in range(height):
        for x in range(width):
            window = label[max(0, y - margin) : y + margin + 1, max(0, x - margin) : x + margin + 1]
            assert found[y, x] == (label[y, x] if (window == label[y, x]).all() else IGNORED)


def test_another_order_of_the_classes_is_followed_and_other_classes_are_refused(made: Manifest) -> None:
    plain = opened(made, Trust(class_threshold=MEDIAN)).label(0)
    order = [2, 0, 3, 1]  # number here of c0, c1, ...
    turned = data.ClassTable(tuple(f"c{order.index(k)}" for k in range(4)), np.eye(4, 3) * 200)
    found = open_automatic(made.folder, turned, Trust(class_threshold=MEDIAN)).label(0)
    assert np.array_equal(found, np.append(order, [0] * 251 + [IGNORED])[plain])
    with pytest.raises(data.DataError, match="has other classes than the training images: only there c3; not there x"):
        open_automatic(made.folder, data.ClassTable(("c0", "c1", "c2", "x"), made.classes.colours))


# ---- coarse labels and corrections ------------------------------------------------------------------------------


def coarse_folder(made: Manifest, tmp_path: Path) -> tuple[dict[str, np.ndarray], LabelTable]:
    """Coarse labels of all images but the last."""
    random = np.random.default_rng(3)
    coarse = {}
    for place in PLACES[:2]:
        label = random.choice(np.array([0, 1, 2, IGNORED], np.uint8), (24, 32), p=[0.1, 0.1, 0.1, 0.7])
        write_png(tmp_path / "coarse" / f"{place}.png", stored(label, made.classes, IGNORED))
        coarse[place] = label
    return coarse, LabelTable({0: 0, 1: 1, 2: 2, 3: 3, IGNORED: IGNORED}, expected="0..3")


def test_a_coarse_label_wins_or_bounds(made: Manifest, tmp_path: Path) -> None:
    coarse, table = coarse_folder(made, tmp_path)
    plain = opened(made)
    wins = opened(made, Trust(coarse_use="wins"), coarse=tmp_path / "coarse", coarse_table=table)
    bounds = opened(made, Trust(coarse_use="bounds"), coarse=tmp_path / "coarse", coarse_table=table)
    for k, place in enumerate(PLACES[:2]):
        own, people = plain.label(k), coarse[place]
        assert np.array_equal(wins.label(k), np.where(people == IGNORED, own, people))
        kept = ((people == IGNORED) | (people == own)) & (own != 3)  # nobody marked class 3 in the image
        assert np.array_equal(bounds.label(k), np.where(kept, own, IGNORED))
    assert np.array_equal(wins.label(2), plain.label(2))  # it has no coarse labels
    assert np.array_equal(bounds.label(2), plain.label(2))


def test_coarse_labels_and_their_use_go_together(made: Manifest, tmp_path: Path) -> None:
    _, table = coarse_folder(made, tmp_path)
    with pytest.raises(data.DataError, match=r"coarse_labels: got none, expected a folder of label maps"):
        opened(made, Trust(coarse_use="wins"))
    with pytest.raises(data.DataError, match=r"coarse_labels: got .*coarse, expected --coarse-use wins or bounds too"):
        opened(made, coarse=tmp_path / "coarse", coarse_table=table)
    with pytest.raises(data.DataError, match=r"no label map in .* is called like an image; expected for example"):
        opened(made, Trust(coarse_use="wins"), coarse=made.images.parent, coarse_table=table)
    with pytest.raises(data.DataError, match="this data set has no label files"):
        opened(made, Trust(coarse_use="wins"), coarse=tmp_path / "coarse")


def test_corrected_pixels_win_over_everything(made: Manifest, tmp_path: Path) -> None:
    _, table = coarse_folder(made, tmp_path)
    trust = Trust(min_probability=1, drop_classes=NAMES, coarse_use="wins")
    plain = opened(made, trust, coarse=tmp_path / "coarse", coarse_table=table).label(0)
    touched = np.zeros((24, 32), bool)
    touched[:3, 5:9] = True
    right = np.full((24, 32), 3, np.uint8)
    right[2] = IGNORED  # of no class
    write_corrections(made, PLACES[0], right, touched)
    corrected = opened(made, trust, coarse=tmp_path / "coarse", coarse_table=table)
    assert np.array_equal(corrected.label(0), np.where(touched, right, plain))
    write_corrections(made, PLACES[0], np.zeros((24, 32), np.uint8), np.eye(24, 32) > 0)  # over the first ones
    both = np.where(touched, right, plain)
    assert np.array_equal(corrected.label(0), np.where(np.eye(24, 32) > 0, 0, both))


def test_a_correction_of_no_image_is_named(made: Manifest) -> None:
    write_png(corrected_file(made.folder, "a/0009"), np.zeros((2, 2), np.uint8))
    with pytest.raises(data.DataError, match=r"a/0009\.png is a correction of no image"):
        opened(made)


# ---- training ---------------------------------------------------------------------------------------------------


def folder_of(made: Manifest, root: Path) -> Path:
    """A data set of two labelled images of the same classes."""
    for split in ("train", "val"):
        for k in range(2):
            label, _ = labels_of(made, PLACES[k])
            write_png(root / "images" / split / f"{k}.png", np.full((24, 32, 3), 90 * k, np.uint8))
            write_png(root / "masks" / split / f"{k}.png", label)
    (root / "dataset.yaml").write_text(f"names: [{', '.join(NAMES)}]\n")
    return root


def prepared(made: Manifest, tmp_path: Path, sampling: data.Sampling | None = None, **trust: object):
    chosen = data.DataSettings.of(
        "folder", root=str(folder_of(made, tmp_path / "mine")), auto_labels=str(made.folder),
        cache=str(tmp_path / "cache"), **trust,
    )  # fmt: skip
    return data.open_training(chosen, sampling or data.Sampling(), data.Augment((16, 16)), seed=0, quiet=True)[0]


def test_what_is_left_of_the_labels_is_said(made: Manifest, tmp_path: Path) -> None:
    training = prepared(made, tmp_path, data.Sampling(extra_crops="pooled"), drop_classes=("c1",))
    passing = [(label != 1) & (level >= 128) for label, level in (labels_of(made, place) for place in PLACES)]
    share = round(100 * np.mean(passing))
    assert training.describe_extra() == f"3 images, {share} % of their pixels count; no pixel of c1"
    with pytest.raises(data.DataError, match="extra: no pixel of the extra images has a label that counts"):
        prepared(made, tmp_path, data.Sampling(extra_crops="pooled"), drop_classes=NAMES)


def test_pooled_images_are_images_like_the_others(made: Manifest, tmp_path: Path) -> None:
    training = prepared(made, tmp_path, data.Sampling(extra_crops="pooled"), min_probability=0.8)
    assert len(training.dataset) == len(training.index) == len(training.sampler) == 5
    for k in range(3):
        label, level = labels_of(made, PLACES[k])
        counts = np.bincount(label[level >= 204], minlength=4)
        assert training.index.pixels[2 + k].tolist() == counts.tolist()
    boxes, classes = training.sampler.draw(0)
    seen = [{*training.sampler.draw(epoch)[0][:, 0].tolist()} for epoch in range(20)]
    assert set().union(*seen) == {0, 1, 2, 3, 4}
    assert len(boxes) == len(classes) == 5


def test_crops_by_class_come_from_automatic_labels_and_the_rest_does_not(made: Manifest, tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match="extra_crops: by_class draws no crop from the extra images"):
        prepared(made, tmp_path, data.Sampling(share=1.0))
    training = prepared(made, tmp_path, data.Sampling(share=1.0, extra_classes=("c1",), weights={"c0": 0, "c2": 0}))
    assert (len(training.sampler), len(training.index), len(training.dataset)) == (2, 2, 5)
    drawn = [training.sampler.draw(epoch) for epoch in range(40)]
    pairs = {(int(c), int(b) >= 2) for boxes, classes in drawn for b, c in zip(boxes[:, 0], classes, strict=True)}
    assert pairs == {(1, False), (1, True), (3, False)}


@pytest.mark.parametrize("crops", ["pooled", "by_class"])
@pytest.mark.parametrize("trust", [{"min_probability": 1.0}, {"drop_classes": NAMES}])
def test_labels_of_which_nothing_counts_are_an_error(
    tmp_path: Path, crops: Literal["pooled", "by_class"], trust: dict[str, object]
) -> None:
    contents = {place: (np.full((24, 32), k, np.uint8), np.full((24, 32), 254, np.uint8))
                for k, place in enumerate(PLACES)}  # fmt: skip
    made = make_labels(tmp_path / "auto", contents=contents)
    with pytest.raises(data.DataError, match="no pixel of the extra images has a label that counts"):
        prepared(made, tmp_path, data.Sampling(extra_crops=crops), **trust)


@pytest.mark.parametrize("crops", ["pooled", "by_class"])
def test_a_training_set_has_another_fingerprint_when_automatic_labels_change(
    made: Manifest, tmp_path: Path, crops: Literal["pooled", "by_class"]
) -> None:
    def fingerprint(limit: float) -> str:
        sampling = data.Sampling(extra_crops=crops, share=1.0, weights={"c0": 0, "c2": 0})
        return prepared(made, tmp_path, sampling, min_probability=limit).fingerprint

    before = fingerprint(0.5)
    assert fingerprint(0.5) == before != fingerprint(0.6)
    write_corrections(made, PLACES[0], np.full((24, 32), 1, np.uint8), np.eye(24, 32, dtype=bool))
    assert fingerprint(0.5) != before


def test_a_class_with_two_thresholds_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        scan.main(["--data", "camvid", "--auto-labels", "auto", "--class-threshold", "Car:0.2,Car:0.3"])
    assert "got 'Car:0.2,Car:0.3', expected median" in capsys.readouterr().err


def test_the_index_is_made_anew_when_the_threshold_changes(made: Manifest, tmp_path: Path) -> None:
    sampling = data.Sampling(extra_crops="pooled")
    loose, strict = (prepared(made, tmp_path, sampling, min_probability=limit).index for limit in (0.3, 0.95))
    assert (strict.pixels[2:] < loose.pixels[2:]).all()
    again = prepared(made, tmp_path, sampling, min_probability=0.3).index
    assert np.array_equal(again.pixels, loose.pixels)
    touched = np.ones((24, 32), bool)
    write_corrections(made, PLACES[0], np.full((24, 32), 1, np.uint8), touched)
    corrected = prepared(made, tmp_path, sampling, min_probability=0.3).index
    assert corrected.pixels[2].tolist() == [0, 24 * 32, 0, 0]


def test_scan_looks_at_automatic_labels_as_training_reads_them(
    made: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder_of(made, tmp_path / "mine")
    arguments = ["--data", "folder", "--root", str(root), "--auto-labels", str(made.folder), "--json", "-", "--quiet"]
    assert scan.main([*arguments, "--drop-classes", "c3"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)["splits"]["automatic"]
    assert found["images"] == 3
    assert "What counts in training, automatic labels after thresholds:\n\nnumber" in err
    write_png(made.label_file(PLACES[1]), np.full((24, 32), 9, np.uint8))
    assert scan.main(arguments) == 1
    assert "values that are no class: 9" in capsys.readouterr().err


def test_a_class_that_only_automatic_labels_have_can_be_learnt(
    made: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder_of(made, tmp_path / "mine")
    for k in range(2):
        label = labels_of(made, PLACES[k])[0]
        write_png(root / f"masks/train/{k}.png", np.where(label == 3, np.uint8(2), label))
    own = ["--data", "folder", "--root", str(root), "--quiet"]
    assert scan.main(own) == 0
    assert "classes in val, but not in train: c3" in capsys.readouterr().out
    assert scan.main([*own, "--auto-labels", str(made.folder)]) == 0
    assert "but not in train" not in capsys.readouterr().out


def test_options_without_automatic_labels_are_named() -> None:
    for options, text in (
        ({"min_probability": 0.9}, "min_probability: got 0.9, expected no value without automatic labels"),
        ({"class_threshold": MEDIAN}, "class_threshold: got 'median', expected no value without automatic labels"),
        ({"auto_images": "x"}, "auto_images: got .*, expected none without --auto-labels"),
        ({"coarse_labels": "x"}, "coarse_labels: got .*, expected none without --auto-labels"),
    ):
        with pytest.raises(HmsaError, match=text):
            data.DataSettings.of("camvid", **options)


def test_the_flags_and_the_file_of_settings_say_the_same(made: Manifest) -> None:
    values = {
        "auto_labels": str(made.folder), "class_threshold": "c1:0.4,c2:0.95", "min_probability": "0.8",
        "drop_classes": "c3", "boundary_margin": "2", "extra_crops": "pooled",
    }  # fmt: skip
    found = TrainSettings.read({"data": "folder", **values})
    assert found.data.trust == Trust(0.8, {"c1": 0.4, "c2": 0.95}, 2, ("c3",))
    assert TrainSettings.read(to_dict(found)) == found
    with pytest.raises(HmsaError, match=r"class_threshold: got 'c1', expected median, or NAME:X"):
        TrainSettings.read({"data": "folder", **values, "class_threshold": "c1"})
    with pytest.raises(HmsaError, match=r"class_threshold: got .*, expected median, or NAME:X,NAME:X with numbers"):
        TrainSettings.read({"data": "folder", **values, "class_threshold": "c1:1.5"})


def test_a_class_that_does_not_exist_is_named(made: Manifest) -> None:
    with pytest.raises(data.DataError, match="class_threshold: no class 'x'; expected some of c0, c1"):
        opened(made, Trust(class_threshold={"x": 0.5}))
    with pytest.raises(data.DataError, match="drop_classes: no class 'y'"):
        opened(made, Trust(drop_classes=("y",)))


# ---- the manifest -----------------------------------------------------------------------------------------------


def test_a_manifest_is_read_as_it_was_written(made: Manifest) -> None:
    again = read_manifest(made.folder)
    assert again.classes == made.classes
    assert again.classes.ids == made.classes.ids
    assert np.array_equal(again.histogram, made.histogram)
    assert list(again.records) == list(made.records)
    for place, record in again.records.items():
        assert (record.image, record.size) == (f"{place}.png", (24, 32))
        assert np.array_equal(record.pixels, made.records[place].pixels)
        assert record.probability == pytest.approx(made.records[place].probability, abs=1e-5)
    assert again.images == made.images


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "cannot be read"),
        ("{}", "is no manifest of automatic labels"),
        ('{"version": 99}', "is of a later version"),
        ("[]", "is no manifest"),
    ],
)
def test_a_damaged_manifest_is_named(made: Manifest, content: str, text: str) -> None:
    (made.folder / "manifest.json").write_text(content)
    with pytest.raises(data.DataError, match=rf"manifest\.json: {text}"):
        read_manifest(made.folder)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"histogram": [[1], [1, 2]]}, "inhomogeneous"),
        ({"made": "x"}, "made: got 'x', expected names and values"),
        ({"ignored": "x"}, "invalid literal"),
        ({"ignored": 2}, r"ignored, untouched: got \(2, 254\), expected two values that no class has"),
        ({"ignored": 254}, r"ignored, untouched: got \(254, 254\)"),
        ({"labelled": {"a": {"image": 3, "size": [1, 1], "pixels": [1] * 4, "probability": 1}}}, "is no manifest"),
        ({"labelled": {"a": {"image": "a", "size": [1, 1], "pixels": [1] * 4, "probability": None}}}, "is no manifest"),
        ({"labelled": {"a": {"image": "a", "size": [1, 1], "pixels": ["b"] * 4, "probability": 1}}}, "is no manifest"),
    ],
)
def test_values_that_no_manifest_has_are_named(made: Manifest, changes: dict[str, object], text: str) -> None:
    path = made.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(data.DataError, match=rf"manifest\.json: .*{text}"):
        read_manifest(made.folder)


def test_images_of_machines_with_folders_of_their_own_are_found_by_place(made: Manifest, tmp_path: Path) -> None:
    records = {place: dataclasses.replace(made.records[place], image=f"m{k}/{place}.png")
               for k, place in enumerate(PLACES)}  # fmt: skip
    write_manifest(dataclasses.replace(made, records=records, images=tmp_path / "gone"))
    with pytest.raises(data.DataError, match="3 files that the manifest lists not found"):
        opened(made)
    found = opened(made, images=tmp_path / "images")
    assert [found.files(k)[0] for k in range(3)] == [tmp_path / "images" / f"{place}.png" for place in PLACES]


def test_two_manifests_of_one_image_or_of_two_teachers_are_refused(made: Manifest) -> None:
    write_manifest(made, "manifest.1-of-2.json")
    with pytest.raises(data.DataError, match="a/0001 is in two manifests; hmsa autolabel merge"):
        read_manifest(made.folder)
    path = made.folder / "manifest.1-of-2.json"
    path.write_text(path.read_text().replace('"flip": true', '"flip": false'))
    with pytest.raises(data.DataError, match="made otherwise: flip differ"):
        read_manifest(made.folder)


def test_values_that_are_free() -> None:
    assert free_values([7, 8]) == (255, 254)
    assert free_values([0, 255, 254]) == (253, 252)
    assert free_values(range(256)) == (65535, 65534)
    assert free_values([*range(254)]) == (255, 254)
