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


def test_undefined_values_are_left_out(tmp_path):
    records = [{"kind": "train", "step": k, "loss": None if k == 2 else 1.0} for k in range(1, 4)]
    records += [{"kind": "validation", "step": 3, "miou_attention": None, "miou_mean": 0.3}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    picture = cv2.imread(str(curve.draw(tmp_path)))
    assert (picture == curve.VALIDATION["mean"]).all(axis=2).any()
    assert not (picture == curve.VALIDATION["attention"]).all(axis=2).any()


@pytest.mark.parametrize("losses", [[0.0, 0.0], [-0.5, -1.0], [1.0, -1.0]])
def test_losses_of_any_sign_stay_inside_the_frame(tmp_path, losses):
    records = [{"kind": "train", "step": k + 1, "loss": loss} for k, loss in enumerate(losses)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    picture = cv2.imread(str(curve.draw(tmp_path)))
    below = picture[curve.HEIGHT - curve.MARGIN + 2 : curve.HEIGHT - curve.MARGIN + 6, curve.MARGIN : -curve.MARGIN]
    assert not (below == curve.LOSS).all(axis=2).any()
