"""The report on automatic labels: figures against plain counts, thresholds that keep their precision, the command."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmsa_ext import HmsaError
from hmsa_ext.autolabel import calibration, report_plot
from hmsa_ext.autolabel.advice import threshold_of
from hmsa_ext.autolabel.report import ReportSettings, main, report, run
from hmsa_ext.data.automatic.corrections import write_corrections
from hmsa_ext.data.automatic.manifest import LEVELS, Manifest, write_manifest
from hmsa_ext.data.automatic.trust import Trust, trusted
from hmsa_ext.data.types import IGNORE_LABEL, ClassTable, DataError
from hmsa_ext.settings import SettingError
from hmsa_ext.settings import replace as changed
from python_tests.automatic_files import (
    PLACES,
    SIZE,
    class_table,
    labels_of,
    make_labels,
    make_truth,
    write_png,
)
from python_tests.data.pictures import decoded

NUMBER = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


def all_pixels(manifest: Manifest, truths: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Labels, levels and true classes of all pixels that have a true class, one behind the other."""
    pairs = [(*labels_of(manifest, place), truth) for place, truth in truths.items()]
    label, level, truth = (np.concatenate([pair[k].ravel() for pair in pairs]) for k in range(3))
    there = truth != IGNORE_LABEL
    return label[there], level[there].astype(int), truth[there]


def split_evenly(label: np.ndarray, level: np.ndarray) -> np.ndarray:
    """A teacher that is over-confident for even classes, and right for odd ones where it is sure."""
    return np.where(label % 2 == 0, 0.6 * level / 255, np.where(level > 120, 0.99, 0.3))


# ---- figures ----------------------------------------------------------------------------------------------------


def test_what_passes_a_threshold_is_counted_as_training_counts_it(folder: Path) -> None:
    manifest = make_labels(folder)
    found = report(folder)
    for share in calibration.THRESHOLDS:
        least = Trust(min_probability=share).thresholds(manifest.classes, None)
        kept = np.zeros(NUMBER, int)
        for place in PLACES:
            kept += np.bincount(trusted(*labels_of(manifest, place), least, 0).ravel(), minlength=256)[:NUMBER]
        assert found.passing(share).tolist() == kept.tolist()
        entry = found.to_dict()["classes"]
        assert [row["passing"][f"{share:g}"] for row in entry] == kept.tolist()


def test_medians_are_those_of_the_pixels(folder: Path) -> None:
    manifest = make_labels(folder)
    label, level = (np.concatenate([labels_of(manifest, p)[k].ravel() for p in PLACES]) for k in range(2))
    # The lower of the two in the middle.
    expected = [np.quantile(level[label == k], 0.5, method="inverted_cdf") / 255 for k in range(NUMBER)]
    assert calibration.medians(manifest.histogram).tolist() == expected
    counts = np.zeros((2, LEVELS), np.int64)
    counts[0, [10, 20]] = 2, 2
    counts[1, [10, 20]] = 1, 2
    assert (calibration.medians(counts) * 255).tolist() == [10, 20]
    assert np.isnan(calibration.medians(np.zeros((2, LEVELS), np.int64))).all()


def test_agreement_is_that_of_a_plain_count(folder: Path, tmp_path: Path) -> None:
    manifest = make_labels(folder)
    label, _, truth = all_pixels(manifest, make_truth(manifest, tmp_path / "truth", is_right=split_evenly))
    found = report(folder, tmp_path / "truth", least_pixels=1)
    content = found.to_dict()["agreement"]
    assert content["images"] == len(PLACES)
    assert content["pixels"] == len(label)
    for k in range(NUMBER):
        own, true = label == k, truth == k
        both = (own & true).sum()
        assert content["precision"][k] == pytest.approx(both / own.sum(), abs=1e-6)
        assert content["recall"][k] == pytest.approx(both / true.sum(), abs=1e-6)
        assert content["iou"][k] == pytest.approx(both / (own | true).sum(), abs=1e-6)
        assert content["confusion"][k] == [(own & (truth == other)).sum() for other in range(NUMBER)]


@pytest.mark.parametrize("name", [None, 0, 3])
def test_calibration_error_is_that_of_its_formula(folder: Path, tmp_path: Path, name: int | None) -> None:
    manifest = make_labels(folder)
    label, level, truth = all_pixels(manifest, make_truth(manifest, tmp_path / "truth", is_right=split_evenly))
    found = report(folder, tmp_path / "truth").to_dict()["agreement"]
    own = np.full(label.shape, True) if name is None else label == name
    right, sure = (label == truth)[own], level[own] / 255
    error = 0.0
    for part in range(10):
        inside = (sure >= part / 10) & ((sure < (part + 1) / 10) | (part == 9))
        pixels = found["bins"][part]["pixels"] if name is None else found["class_bins"]["pixels"][name][part]
        assert pixels == inside.sum()
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert (found["calibration_error"] if name is None else found["class_calibration_error"][name]) == pytest.approx(
        error, abs=1e-6
    )
    excess = found["excess"] if name is None else found["class_excess"][name]
    assert excess == pytest.approx(sure.mean() - right.mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("is_right", "verdict"),
    [
        (lambda label, level: level / 255, "calibrated"),
        (lambda label, level: 0.7 * level / 255, "over-confident"),
        (lambda label, level: 0.5 + level / 510, "under-confident"),
        (lambda label, level: np.where(label < 2, level / 255 - 0.1, level / 255 + 0.1), "calibrated"),
        (lambda label, level: np.full(label.shape, 0.72), "uneven"),
    ],
)
def test_the_teacher_is_judged_in_one_sentence(folder: Path, tmp_path: Path, is_right, verdict: str) -> None:
    manifest = make_labels(folder, size=(200, 200))
    make_truth(manifest, tmp_path / "truth", is_right=is_right)
    found = report(folder, tmp_path / "truth")
    assert found.to_dict()["agreement"]["verdict"] == verdict
    assert f"The teacher is {verdict}" in found.text()


def test_a_teacher_that_is_calibrated_in_all_is_judged_by_class(folder: Path, tmp_path: Path) -> None:
    manifest = make_labels(folder, size=(200, 200))
    offsets = np.array([0.0, 0.1, -0.1, 0.0])
    make_truth(manifest, tmp_path / "truth", is_right=lambda label, level: 0.15 + 0.7 * level / 255 - offsets[label])
    found = report(folder, tmp_path / "truth")
    lines = found.text().splitlines()
    assert [line.partition(" (")[0] for line in lines if line.startswith("It is")] == [
        "It is over-confident about c1",
        "It is under-confident about c2",
    ]


def test_pixels_without_an_automatic_label_count_against_recall_alone(folder: Path, tmp_path: Path) -> None:
    label = np.zeros((10, 20), np.uint8)
    label[:5] = IGNORE_LABEL
    manifest = make_labels(folder, places=["x"], contents={"x": (label, np.full_like(label, 200))})
    write_png(tmp_path / "truth" / "x.png", np.zeros((10, 20), np.uint8))
    agreement = report(folder, tmp_path / "truth").agreement
    assert agreement is not None
    assert agreement.unlabelled.tolist() == [100, 0, 0, 0]
    assert (agreement.precision()[0], agreement.recall()[0], agreement.iou()[0]) == (1.0, 0.5, 0.5)
    assert np.isnan(agreement.iou()[1:]).all()
    assert manifest.histogram.sum() == 100


# ---- advice -----------------------------------------------------------------------------------------------------


def test_every_level_has_a_threshold_of_its_own_with_few_digits() -> None:
    for level in range(LEVELS):
        value = threshold_of(level)
        text = f"{value:g}"
        assert float(text) == value
        assert len(text) <= 5
        least = Trust(min_probability=value).thresholds(class_table(1), None)
        assert least.tolist() == [level]


@pytest.mark.parametrize("precision", [0.5, 0.8, 0.95])
def test_advised_thresholds_keep_the_precision_when_training_applies_them(
    folder: Path, tmp_path: Path, precision: float
) -> None:
    manifest = make_labels(folder, classes=class_table(6), size=(120, 160))
    truths = make_truth(manifest, tmp_path / "truth", is_right=split_evenly)
    advice = report(folder, tmp_path / "truth", precision=precision).advice
    assert advice.thresholds
    assert advice.thresholds.keys() | advice.dropped.keys() == set(manifest.classes.names)
    # The flags, as a shell and the command line of training read them.
    words = shlex.split(advice.flags())
    flags = {
        flag.removeprefix("--").replace("-", "_"): value for flag, value in zip(words[::2], words[1::2], strict=True)
    }
    trust = changed(Trust(), flags)
    assert trust == advice.trust
    least = trust.thresholds(manifest.classes, manifest.histogram)
    kept, right, passing = (np.zeros(6, int) for _ in range(3))
    for place, truth in truths.items():
        label = trusted(*labels_of(manifest, place), least, 0)
        passing += np.bincount(label.ravel(), minlength=256)[:6]
        there = truth != IGNORE_LABEL
        kept += np.bincount(label[there], minlength=256)[:6]
        right += np.bincount(label[there & (label == truth)], minlength=256)[:6]
    assert passing.tolist() == advice.kept.tolist()
    assert (kept[least == LEVELS] == 0).all()
    assert (right[least < LEVELS] / kept[least < LEVELS] >= precision).all()


def test_thresholds_are_the_lowest_that_every_higher_one_keeps() -> None:
    random = np.random.default_rng(5)
    labelled = random.integers(0, 12, (30, LEVELS))
    right = random.binomial(labelled, np.linspace(0.2, 1, LEVELS) ** 0.7)
    found = calibration.lowest_levels(labelled, right, 0.85, 100)
    for k in range(30):
        count, correct = (np.array([part[k, q:].sum() for q in range(LEVELS)]) for part in (labelled, right))
        fits = [
            q
            for q in range(LEVELS)
            if count[q] >= 100
            and labelled[k, q]
            and all(correct[h] / count[h] >= 0.85 for h in range(q, LEVELS) if count[h] >= 100)
        ]
        assert found[k] == min(fits, default=LEVELS)
    assert (found < LEVELS).any()


def test_a_lucky_dip_of_the_curve_is_no_answer() -> None:
    labelled, right = np.zeros((1, LEVELS), np.int64), np.zeros((1, LEVELS), np.int64)
    labelled[0, [100, 150, 200]] = 1000
    right[0, [100, 150, 200]] = 1000, 700, 1000
    # From 100 on 90 % are right, from 150 on only 85 %: a higher threshold would be worse than a lower one.
    assert calibration.lowest_levels(labelled, right, 0.9, 100).tolist() == [200]
    assert calibration.lowest_levels(labelled, right, 0.85, 100).tolist() == [100]
    assert calibration.lowest_levels(labelled, right, 0.9, 1001).tolist() == [LEVELS]


def test_nothing_is_advised_below_what_was_measured(folder: Path, tmp_path: Path) -> None:
    label = np.zeros((20, 20), np.uint8)
    contents = {"seen": (label, np.full_like(label, 180)), "unseen": (label, np.full_like(label, 90))}
    manifest = make_labels(folder, places=list(contents), contents=contents)
    make_truth(manifest, tmp_path / "truth", places=["seen"], is_right=lambda label, level: np.ones(label.shape))
    advice = report(folder, tmp_path / "truth").advice
    assert advice.levels[0] == 180
    assert advice.kept[0] == 400


def test_classes_that_are_never_so_precise_or_hardly_compared_are_dropped(folder: Path, tmp_path: Path) -> None:
    label = np.zeros((30, 30), np.uint8)
    label[:20] = 1
    label[0, :7] = 2
    manifest = make_labels(folder, places=["x"], contents={"x": (label, np.full_like(label, 240))})
    make_truth(
        manifest, tmp_path / "truth", ignored_share=0.0, is_right=lambda label, level: np.where(label == 1, 0.5, 1.0)
    )
    found = report(folder, tmp_path / "truth", precision=0.9)
    assert found.advice.dropped == {"c1": "never so precise", "c2": "only 7 pixels with truth"}
    assert found.advice.flags() == "--class-threshold c0:0.94 --drop-classes c1,c2"
    text = found.text()
    assert "dropped: only 7 pixels with truth" in text
    assert "That keeps 300 of 900 pixels (33.3 %)" in text


def test_without_truth_the_medians_are_advised_and_said_to_keep_nothing(folder: Path) -> None:
    manifest = make_labels(folder)
    found = report(folder)
    least = found.advice.trust.thresholds(manifest.classes, manifest.histogram)
    assert found.advice.levels.tolist() == least.tolist()
    assert found.advice.kept.tolist() == [manifest.histogram[k, q:].sum() for k, q in enumerate(least)]
    assert found.advice.flags() == "--class-threshold median"
    assert "keeps no stated precision" in found.text()


@pytest.mark.parametrize("name", ["traffic light", "it's", "a:b"])
def test_names_are_quoted_for_a_shell(folder: Path, tmp_path: Path, name: str) -> None:
    classes = ClassTable((name, "other"), np.array([(200, 0, 0), (0, 0, 200)]), ids=(0, 1))
    make_truth(make_labels(folder, classes=classes), tmp_path / "truth")
    found = report(folder, tmp_path / "truth", precision=0.3)
    words = shlex.split(found.advice.flags())
    assert changed(Trust(), {"class_threshold": words[1]}).class_threshold == found.advice.thresholds
    assert name in found.advice.thresholds


@pytest.mark.parametrize("name", ["bed, sofa", "wall "])
def test_names_that_no_flag_can_have_are_advised_as_yaml(folder: Path, tmp_path: Path, name: str) -> None:
    yaml = pytest.importorskip("yaml")
    classes = ClassTable((name, "Straße"), np.array([(200, 0, 0), (0, 0, 200)]), ids=(0, 1))
    make_truth(
        make_labels(folder, classes=classes),
        tmp_path / "truth",
        is_right=lambda label, level: np.where(label == 0, 1.0, 0.2),
    )
    found = report(folder, tmp_path / "truth")
    assert changed(Trust(), yaml.safe_load(found.advice.flags())) == found.advice.trust
    assert list(found.advice.dropped) == ["Straße"]


# ---- files ------------------------------------------------------------------------------------------------------


def test_ids_of_16_bits_and_other_ignored_values_are_understood(folder: Path, tmp_path: Path) -> None:
    classes = class_table(NUMBER, ids=(7, 300, 65535, 0))
    manifest = make_labels(folder, classes=classes)
    truths = make_truth(manifest, tmp_path / "truth")
    label, _, truth = all_pixels(manifest, truths)
    agreement = report(folder, tmp_path / "truth").agreement
    assert agreement is not None
    assert agreement.right.sum() == (label == truth).sum()
    assert agreement.labelled.sum() == len(label)


def test_values_that_are_no_class_are_an_error_unless_they_are_named(folder: Path, tmp_path: Path) -> None:
    manifest = make_labels(folder)
    truth = make_truth(manifest, tmp_path / "truth")["a/0002"].copy()
    truth[0, :5] = 11
    write_png(tmp_path / "truth/a/0002.png", truth)
    with pytest.raises(DataError, match=r"a/0002\.png: values that are no class: 11 in 5 pixels.*--truth-ignored"):
        report(folder, tmp_path / "truth")
    counts = [report(folder, tmp_path / "truth", truth_ignored=v).agreement for v in ((11,), "others")]
    expected = sum((t != 255).sum() for p, t in make_truth(manifest, tmp_path / "again").items() if p != "a/0002")
    expected += (truth < NUMBER).sum()
    assert [found.labelled.sum() for found in counts if found is not None] == [expected, expected]
    with pytest.raises(SettingError, match=r"truth_ignored: got 2,11, expected values that are no class, unlike 2 \(c"):
        report(folder, tmp_path / "truth", truth_ignored=(2, 11))


def test_images_without_truth_do_not_count_and_none_at_all_is_an_error(folder: Path, tmp_path: Path) -> None:
    manifest = make_labels(folder)
    make_truth(manifest, tmp_path / "truth", suffix="_L", places=["b/0001"])
    found = report(folder, tmp_path / "truth", truth_suffix="_L")
    assert found.agreement is not None
    assert found.agreement.images == 1
    assert "1 image of 3" in found.text()
    with pytest.raises(DataError, match=r"truth: none of the 3 labelled images.*a/0001\.png.*--truth-suffix"):
        report(folder, tmp_path / "truth")
    with pytest.raises(DataError, match="truth: no folder"):
        report(folder, tmp_path / "nowhere")


def test_files_of_cityscapes_are_found(folder: Path, tmp_path: Path) -> None:
    place = "aachen/aachen_000000_000019_leftImg8bit"
    manifest = make_labels(folder, places=[place], layout="cityscapes")
    assert (folder / f"{place}_prob.png").is_file()
    (truth,) = make_truth(manifest, tmp_path / "made").values()
    write_png(tmp_path / "gtFine/aachen/aachen_000000_000019_gtFine_labelIds.png", truth)
    found = report(folder, tmp_path / "gtFine", truth_suffix="_gtFine_labelIds")
    assert found.agreement is not None
    assert found.agreement.labelled.sum() == (truth != 255).sum()


def test_corrections_in_the_layout_of_cityscapes_are_a_truth(folder: Path) -> None:
    place = "aachen/aachen_000000_000019_leftImg8bit"
    manifest = make_labels(folder, places=[place], layout="cityscapes")
    touched = np.zeros(SIZE, bool)
    touched[:5] = True
    write_corrections(manifest, place, np.zeros(SIZE, np.uint8), touched)
    found = report(folder, folder / "corrected", truth_ignored=[manifest.untouched])
    assert found.agreement is not None
    assert found.agreement.labelled.sum() == touched.sum()


def test_truth_of_another_size_is_an_error(folder: Path, tmp_path: Path) -> None:
    make_truth(make_labels(folder), tmp_path / "truth")
    write_png(tmp_path / "truth/a/0001.png", np.zeros((24, 30), np.uint8))
    with pytest.raises(DataError, match=r"truth/a/0001\.png: 30x24 pixels, the automatic labels .* have 32x24"):
        report(folder, tmp_path / "truth")


def test_labels_that_the_manifest_did_not_count_are_an_error(folder: Path, tmp_path: Path) -> None:
    manifest = make_labels(folder)
    make_truth(manifest, tmp_path / "truth")
    label, _ = labels_of(manifest, "a/0001")
    write_png(manifest.label_file("a/0001"), (label + 1) % NUMBER)
    with pytest.raises(DataError, match=r"labels/a/0001\.png: \d+ pixels of c\d, the manifest counted \d+"):
        report(folder, tmp_path / "truth")
    write_png(manifest.label_file("a/0001"), label)
    write_png(manifest.probability_file("a/0001"), np.zeros((24, 32), np.uint16))
    with pytest.raises(DataError, match=r"probabilities/a/0001\.png: expected probabilities 0..255 in 8 bits"):
        report(folder, tmp_path / "truth")


def test_missing_files_are_named(folder: Path) -> None:
    manifest = make_labels(folder)
    for place in ("a/0002", "b/0001"):
        manifest.probability_file(place).unlink()
    with pytest.raises(DataError, match=r"missing: .*probabilities/a/0002\.png, .*probabilities/b/0001\.png\."):
        report(folder)


def test_corrections_are_counted_and_not_the_teachers(folder: Path, tmp_path: Path) -> None:
    manifest = make_labels(folder)
    truths = make_truth(manifest, tmp_path / "truth")
    before = report(folder, tmp_path / "truth")
    write_corrections(manifest, "a/0001", np.zeros((24, 32), np.uint8), np.ones((24, 32), bool))
    after = report(folder, tmp_path / "truth")
    assert (before.corrected, after.corrected) == (0, 1)
    assert before.to_dict()["agreement"] == after.to_dict()["agreement"]
    assert "1 of them corrected by people" in after.text()
    # What people corrected can be the truth.
    by_people = report(folder, folder / "corrected", truth_ignored=(manifest.untouched,)).agreement
    assert by_people is not None
    assert by_people.confusion.sum() == truths["a/0001"].size


# ---- edges ------------------------------------------------------------------------------------------------------


def test_an_empty_folder_has_a_report(folder: Path, tmp_path: Path) -> None:
    manifest = make_labels(folder, places=[])
    found = report(folder)
    assert "nothing is labelled yet" in found.text()
    assert found.advice.flags() == ""
    json.dumps(found.to_dict(), allow_nan=False)
    assert report_plot.draw(found).dtype == np.uint8
    (tmp_path / "truth").mkdir()
    with pytest.raises(DataError, match="none of the 0 labelled images"):
        report(manifest.folder, tmp_path / "truth")
    with pytest.raises(DataError, match="expected a folder of automatic labels"):
        report(tmp_path / "nowhere")


def test_one_image_with_one_class_has_a_report(folder: Path, tmp_path: Path) -> None:
    label = np.full((3, 5), 2, np.uint8)
    manifest = make_labels(folder, places=["x"], contents={"x": (label, np.full_like(label, 255))})
    make_truth(manifest, tmp_path / "truth", is_right=lambda label, level: np.ones(label.shape))
    for truth in (None, tmp_path / "truth"):
        found = report(folder, truth, least_pixels=5)
        json.dumps(found.to_dict(), allow_nan=False)
        assert found.advice.thresholds == {"c2": 1.0 if truth else 0.9}
        assert "c1" in found.text()
        assert report_plot.draw(found).shape[2] == 3


def test_truth_without_a_class_says_so(folder: Path, tmp_path: Path) -> None:
    manifest = make_labels(folder)
    make_truth(manifest, tmp_path / "truth", ignored_share=1.1)
    found = report(folder, tmp_path / "truth")
    assert "nothing can be said of the teacher" in found.text()
    assert found.to_dict()["agreement"]["verdict"] is None
    assert len(found.advice.dropped) == NUMBER
    assert report_plot.draw(found).shape[2] == 3


def test_images_are_named_by_how_sure_the_teacher_was(folder: Path) -> None:
    label = np.zeros((4, 4), np.uint8)
    levels = {"p": 250, "q": 40, "r": 130}
    make_labels(
        folder, places=list(levels), contents={place: (label, label + level) for place, level in levels.items()}
    )
    found = report(folder)
    assert found.by_probability() == ["q", "r", "p"]
    content = found.to_dict(most=2)
    assert [entry["place"] for entry in content["least_sure"]] == ["q", "r"]
    assert [entry["place"] for entry in content["most_sure"]] == ["p", "r"]
    assert content["least_sure"][0]["probability"] == pytest.approx(40 / 255, abs=1e-5)
    assert [len(found.text(most).split("mean probability")) for most in (0, 2)] == [1, 3]


# ---- the command ------------------------------------------------------------------------------------------------


def test_the_command_prints_and_writes_the_report(folder: Path, tmp_path: Path, capsys) -> None:
    manifest = make_labels(folder)
    make_truth(manifest, tmp_path / "truth", suffix="_L")
    flags = ["--truth", str(tmp_path / "truth"), "--truth-suffix", "_L", "--precision", "0.6", "--most", "2"]
    files = ["--json", str(tmp_path / "report.json"), "--plot", str(tmp_path / "report.png")]
    assert main([str(folder), *flags, *files]) == 0
    out, err = capsys.readouterr()
    assert not err
    found = report(folder, tmp_path / "truth", truth_suffix="_L", precision=0.6)
    assert out.startswith(found.text(2))
    assert found.advice.flags() in out
    assert json.loads((tmp_path / "report.json").read_text()) == found.to_dict(2)
    assert (decoded(tmp_path / "report.png") == report_plot.draw(found)[..., ::-1]).all()


def test_json_on_standard_output_is_alone_there(folder: Path, capsys) -> None:
    make_labels(folder)
    assert main([str(folder), "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["images"] == 3
    assert "Least sure images" in err


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--precision", "1.5"], "precision: got 1.5, expected a number from 0 to 1"),
        (["--truth-ignored", "x"], "--truth-ignored: got 'x', expected numbers of 0..65535, or others"),
        (["--truth-ignored", "-1"], "truth_ignored: got -1, expected numbers of 0..65535"),
        (["--most", "-1"], "most: got -1, expected a number not below 0"),
        (["--plot", "/nowhere/x.png"], "plot: no folder /nowhere"),
        (["--truth-suffix", "_L"], "truth: got None, expected a folder, for truth_suffix"),
        (["--truth", "/nowhere"], "truth: no folder /nowhere"),
    ],
)
def test_bad_flags_are_named(folder: Path, flags: list[str], text: str, capsys) -> None:
    make_labels(folder)
    try:
        status = main([str(folder), *flags])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert text in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize("value", ["11", "11,255", "others", 11, [11, 255], (11,)])
def test_ignored_values_are_read_and_shown_alike(value: object) -> None:
    chosen = changed(ReportSettings(), {"truth_ignored": value})
    assert chosen.truth_ignored in ((11,), (11, 255), "others")


# ---- the picture ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 11, 60])
def test_each_class_has_its_line_and_the_truth_a_diagram(folder: Path, tmp_path: Path, number: int) -> None:
    random = np.random.default_rng(0)
    label = random.integers(0, number, (120, 160)).astype(np.uint8)
    # The teacher is less sure of later classes, so that lines do not hide each other.
    level = (255 * random.random(label.shape) ** (0.2 + 2 * label / number)).astype(np.uint8)
    manifest = make_labels(folder, classes=class_table(number), places=["x"], contents={"x": (label, level)})
    make_truth(manifest, tmp_path / "truth")
    alone, both = (report_plot.draw(report(folder, truth)) for truth in (None, tmp_path / "truth"))
    assert both.shape[1] == alone.shape[1] + report_plot.SIDE + report_plot.GAP
    above = alone[: report_plot.TOP + report_plot.SIDE]
    drawn = [(above == colour).all(2).any() for colour in manifest.classes.colours]
    assert sum(drawn) >= (number if number < 20 else 0.8 * number)


def test_a_line_is_where_its_share_is(folder: Path) -> None:
    label = np.zeros((10, 10), np.uint8)
    label[:, 5:] = 1
    level = np.where(label == 0, 255, np.where(np.arange(10)[:, None] < 7, 51, 204)).astype(np.uint8)
    manifest = make_labels(folder, classes=class_table(2), places=["x"], contents={"x": (label, level)})
    page = report_plot.draw(report(folder))
    # Of the second class 30 % pass between 0.2 and 0.8.
    y = report_plot.TOP + round(0.7 * report_plot.SIDE)
    x = report_plot.LEFT + report_plot.SIDE // 2
    assert (page[y - 2 : y + 3, x] == manifest.classes.colours[1]).all(1).any()
    assert not (page[y + 20 : y + 60, x] == manifest.classes.colours[1]).all(1).any()


def test_the_reliability_diagram_has_precision_over_probability(folder: Path, tmp_path: Path) -> None:
    label = np.zeros((20, 20), np.uint8)
    make_labels(folder, classes=class_table(2), places=["x"], contents={"x": (label, np.full_like(label, 204))})
    truth = label.copy()
    truth[:15] = 1
    write_png(tmp_path / "truth" / "x.png", truth)
    page = report_plot.draw(report(folder, tmp_path / "truth"))
    # Probability 0.8, of which a quarter is right.
    left = report_plot.LEFT + report_plot.SIDE + report_plot.GAP
    x, y = left + round(0.8 * report_plot.SIDE), report_plot.TOP + round(0.75 * report_plot.SIDE)
    assert (page[y, x] == report_plot.INK).all()
    assert (page[y + 10, left + round(0.85 * report_plot.SIDE)] == report_plot.BAR).all()


def test_errors_have_the_base_of_all_errors(folder: Path) -> None:
    manifest = make_labels(folder)
    write_manifest(replace(manifest, layout="cityscapes"))
    with pytest.raises(HmsaError, match=r"are missing: .*, and 1 more"):
        report(folder)


def test_medians_of_an_unsure_teacher_are_warned_of(tmp_path: Path) -> None:
    label = np.tile(np.arange(4, dtype=np.uint8), (24, 8))
    level = np.where(label == 2, 60, 240).astype(np.uint8)
    folder = make_labels(tmp_path / "auto", places=("a",), contents={"a": (label, level)}).folder
    assert "Half of the pixels of c2 are below 0.5: the teacher is not sure of them" in report(folder).text()


def test_what_is_said_about_a_truth_needs_one(folder: Path) -> None:
    lonely: list[tuple[str, Any]] = [("precision", 0.9), ("truth_suffix", "_L"), ("truth_ignored", (11,))]
    for option, value in lonely:
        with pytest.raises(HmsaError, match=f"{option}: got .*, expected no value without truth"):
            report(folder, **{option: value})
    outside: list[tuple[str, Any]] = [("precision", 1.5), ("least_pixels", 0)]
    for option, value in outside:
        with pytest.raises(HmsaError, match=f"{option}: got {value}, expected a number"):
            report(folder, folder, **{option: value})
    with pytest.raises(HmsaError, match="truth: got None, expected a folder, for precision"):
        run(ReportSettings(str(folder), precision=0.9))
