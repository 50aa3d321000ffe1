"""The curve of a run."""

import json

import cv2
import pytest

from hmsa_ext.engine import curve


def test_curve_shows_loss_and_validation(tmp_path):
    records = [{"kind": "train", "step": 10 * k, "loss": 3.0 / k} for k in range(1, 9)]
    records += [{"kind": "validation", "step": 80, "miou_attention": 0.4, "miou_mean": 0.3, "miou_1.0": 0.2}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    picture = cv2.imread(str(curve.draw(tmp_path)))
    assert picture.shape == (curve.HEIGHT, curve.WIDTH, 3)
    for name, colour in curve.VALIDATION.items():
        assert (picture == colour).all(axis=2).any(), name


def test_a_run_without_steps_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no training steps to draw"):
        curve.draw(tmp_path)
