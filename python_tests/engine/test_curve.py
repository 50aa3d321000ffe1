"""The curve of a run."""

import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from hmsa_ext.engine import curve
from hmsa_ext.errors import HmsaError


def drawn(folder: Path) -> np.ndarray:
    """The curve of a run folder, BGR."""
    picture = cv2.imread(str(curve.draw(folder)))
    assert picture is not None
    return picture


def test_curve_shows_loss_and_validation(tmp_path):
    records = [{"kind": "train", "step": 10 * k, "loss": 3.0 / k} for k in range(1, 9)]
    records += [{"kind": "validation", "step": 80, "miou_attention": 0.4, "miou_mean": 0.3, "miou_1.0": 0.2}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    picture = drawn(tmp_path)
    assert picture.shape == (curve.HEIGHT, curve.WIDTH, 3)
    for name, colour in curve.VALIDATION.items():
        assert (picture == colour).all(axis=2).any(), name


@pytest.mark.parametrize("way", ["max", "mean_probabilities", "my_parts:median"])
def test_the_fusion_of_a_run_without_attention_is_drawn(tmp_path, way):
    records = [{"kind": "train", "step": 80, "loss": 1.0}]
    records += [{"kind": "validation", "step": 80, f"miou_{way}": 0.4, "miou_mean": 0.3, "miou_0.5": 0.2}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    picture = drawn(tmp_path)
    for name, is_drawn in (("attention", True), ("mean", True), ("1.0", False)):
        assert (picture == curve.VALIDATION[name]).all(axis=2).any() == is_drawn, name


def test_a_run_without_steps_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no training steps to draw"):
        curve.draw(tmp_path)


def test_undefined_values_are_left_out(tmp_path):
    records = [{"kind": "train", "step": k, "loss": None if k == 2 else 1.0} for k in range(1, 4)]
    records += [{"kind": "validation", "step": 3, "miou_attention": None, "miou_mean": 0.3}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    picture = drawn(tmp_path)
    assert (picture == curve.VALIDATION["mean"]).all(axis=2).any()
    assert not (picture == curve.VALIDATION["attention"]).all(axis=2).any()


@pytest.mark.parametrize("losses", [[0.0, 0.0], [-0.5, -1.0], [1.0, -1.0]])
def test_losses_of_any_sign_stay_inside_the_frame(tmp_path, losses):
    records = [{"kind": "train", "step": k + 1, "loss": loss} for k, loss in enumerate(losses)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    picture = drawn(tmp_path)
    below = picture[curve.HEIGHT - curve.MARGIN + 2 : curve.HEIGHT - curve.MARGIN + 6, curve.MARGIN : -curve.MARGIN]
    assert not (below == curve.LOSS).all(axis=2).any()


def test_lines_that_are_no_records_are_passed_over(tmp_path):
    good = [{"kind": "train", "step": k, "loss": 1.0 / k} for k in (1, 2)]
    good += [{"kind": "validation", "step": 2, "miou_attention": 0.5}]
    bad = [b"5", b"null", b"[]", b'"text"', b"\x00\xff\xfe", b"", b'{"step": 3}', b'{"kind": "train"}', b"{}"]
    bad += [b'{"kind": "train", "step": 3, "loss": "much"}', b'{"kind": "train", "step": 3, "loss": NaN}']
    bad += [b'{"kind": "train", "step": 3, "loss": true}', b'{"kind": "train", "step": null, "loss": 1.0}']
    bad += [b'{"kind": "train", "step": 3, "loss": 1' + b"0" * 400 + b"}", b"[" * 100_000]
    lines = [json.dumps(r).encode() for r in good]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    expected = drawn(tmp_path)
    mixed = [piece for pair in itertools.zip_longest(bad, lines) for piece in pair if piece is not None]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(mixed))
    assert (drawn(tmp_path) == expected).all()


def test_the_validation_loss_is_drawn_where_there_is_one(tmp_path):
    records = [{"kind": "train", "step": k, "loss": 1.0} for k in (1, 2)]
    records += [{"kind": "validation", "step": 2, "miou_attention": 0.5}]
    for with_loss in (False, True):
        if with_loss:
            records[-1]["loss"] = 2.0
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        picture = drawn(tmp_path)
        assert (picture == curve.VALIDATION_LOSS).all(axis=2).any() == with_loss


def test_a_run_at_its_very_beginning_can_be_drawn(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 0, "loss": 1.0}\n')
    assert curve.draw(tmp_path).is_file()


def test_a_folder_without_records_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(curve.CurveError, match=r"metrics\.jsonl: cannot be read"):
        curve.draw(tmp_path)
    assert issubclass(curve.CurveError, HmsaError)
