"""The benchmark of prediction, in miniature."""

import json

import numpy as np
import pytest

from bench import predict
from hmsa_ext.ops import reference

SIZE = (64, 128)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(predict, "SIZE", SIZE)


def test_it_prints_and_writes_what_it_measured(tmp_path, capsys):
    file = tmp_path / "predict.json"
    predict.main(
        ["--network", "hrnet_small_ocr", "--images", "2", "--rounds", "1", "--device", "cpu", "--json", str(file)]
    )
    content = json.loads(file.read_text())
    figures = content["networks"]["hrnet_small_ocr"]
    table = capsys.readouterr().out
    assert content["load_before"] >= 0
    assert content["dtype"] == "float32"
    assert set(figures["ways"]) == set(predict.WAYS)
    for name, way in figures["ways"].items():
        assert way["images_per_second"] > 0
        assert f"{way['images_per_second']:.3g}" in table
        assert name in table
    assert figures["ways"][predict.OURS]["times_ours"] == 1
    assert set(figures["part_ms"]) == set(predict.PARTS)
    assert all(ms > 0 for ms in figures["part_ms"].values())


def test_both_ways_predict_the_same(tmp_path):
    predictor = predict.random_predictor("hrnet_small_ocr", "cpu", "float32", predict.SCALES)
    (path,) = predict.write_photos(tmp_path / "photos", 1, SIZE)
    labels, confidence = predict.plain_labels(predictor, path)
    found = predictor.predict(path)
    assert len(np.unique(labels)) > 1
    assert (found.labels == labels).mean() > 0.999  # the others are ties up to rounding
    np.testing.assert_allclose(found.confidence, confidence, atol=1e-5)


def test_timing_leaves_the_functions_as_they_were(tmp_path):
    argmax, crop = predict.ScaleOutputs.argmax, predict.ops.sample_crop
    predictor = predict.random_predictor("hrnet_small_ocr", "cpu", "float32", (1.0,))
    photos = predict.write_photos(tmp_path / "photos", 1, SIZE)
    predict.shares(predict.Work(predictor, photos, tmp_path), 1)
    assert predict.ScaleOutputs.argmax is argmax
    assert predict.ops.sample_crop is crop
    assert not predictor.model._forward_hooks
    assert not predict.network_of(predictor).backbone._forward_pre_hooks


def test_the_plain_way_makes_logits_at_full_resolution(tmp_path, monkeypatch):
    sizes = []
    fuse = reference.fuse_scales

    def watched(*arguments, **named):
        fused = fuse(*arguments, **named)
        sizes.append(tuple(fused.shape[-2:]))
        return fused

    monkeypatch.setattr(reference, "fuse_scales", watched)
    predictor = predict.random_predictor("hrnet_small_ocr", "cpu", "float32", predict.SCALES)
    (path,) = predict.write_photos(tmp_path / "photos", 1, SIZE)
    predict.plain_labels(predictor, path)
    assert sizes == [SIZE]


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--rounds", "0"), ("--images", "0"), ("--network", "nothing"), ("--json", "no/folder/file.json")],
)
def test_bad_arguments_are_named_with_what_came(flag, value, capsys):
    with pytest.raises(SystemExit) as ended:
        predict.main([flag, value])
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {flag}" in last
    assert value in last
