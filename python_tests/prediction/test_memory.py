"""The memory that a plan states is what a prediction takes at most, and not much more than it takes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from bench.meters import LiveBytes, peak_memory
from hmsa_ext import models
from hmsa_ext.data.photos import Photo
from hmsa_ext.engine.memory import Footprint, reading
from hmsa_ext.models import ScaleOutputs
from hmsa_ext.prediction.predictor import Predictor, _Results
from hmsa_ext.prediction.settings import PredictionSettings
from python_tests.prediction.networks import photo, trained

MIB = 2**20


@pytest.mark.memory
@pytest.mark.parametrize(
    ("size", "scales", "flip", "tile", "more"),
    [
        ((512, 768), (0.5, 1.0, 2.0), False, None, {}),
        ((800, 1024), (0.5, 1.0), True, 384, {"logits": True, "per_scale": True}),
    ],
)
def test_no_prediction_takes_more_than_its_plan_states(size, scales, flip, tile, more):
    model = models.build("hrnet_small_ocr", 19)
    predictor = Predictor(
        trained(model, 19), "cpu", dtype="float32", scales=scales, flip=flip, settings=PredictionSettings(tile=tile)
    )
    image = Photo(photo(*size))
    first = peak_memory(lambda: predictor.predict_photo(image, **more))
    again = peak_memory(lambda: predictor.predict_photo(image, **more))
    if first is None or again is None:
        pytest.skip("this system does not say how much memory a process had")
    plan = predictor.plan(size, **more)
    assert plan.peak is not None
    assert (plan.layout is None) == (tile is None)
    assert max(first, again) <= plan.peak <= 1.5 * again + 400 * MIB  # fragments: 256 MiB, code: 144


@pytest.mark.memory
@pytest.mark.parametrize(("flip", "logits", "per_scale"), list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("attention_channels", [1, 7])
def test_reading_makes_no_more_maps_than_are_counted(flip, logits, per_scale, attention_channels):
    scales, size, views = (2.0, 1.0, 0.5), (96, 128), 1 + flip
    heads = [torch.randn(views, 7, int(96 * s) // 4, int(128 * s) // 4) for s in scales]
    attention = [torch.rand(views, attention_channels, *z.shape[2:]) for z in heads[1:]]
    outputs = ScaleOutputs(heads, attention, None, scales, size)
    found = _Results(size, 7, scales[::-1], logits=logits, per_scale=per_scale)
    counted = reading(7, len(scales), attention_channels, flip=flip, logits=logits, per_scale=per_scale)
    with LiveBytes() as meter, torch.inference_mode():
        found.read(outputs, flip, 0, 0, size[0])
    pixels = size[0] * size[1]
    assert counted.meanwhile * pixels / 2 <= meter.peak <= counted.meanwhile * pixels
    kept = [found.labels, found.confidence, found.logits]
    kept += [*(found.scale_labels or {}).values(), *(found.shares or {}).values()]
    assert sum(array.nbytes for array in kept if array is not None) == counted.results * pixels


@pytest.mark.memory
@pytest.mark.parametrize(("flip", "logits"), list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("combination", ["mean", "max", "mean_probabilities", "max_probabilities"])
def test_combinations_without_attention_make_no_more_maps_than_are_counted(flip, logits, combination):
    scales, size, views = (2.0, 1.0, 0.5), (96, 128), 1 + flip
    heads = [torch.randn(views, 7, int(96 * s) // 4, int(128 * s) // 4) for s in scales]
    outputs = ScaleOutputs(heads, [], None, scales, size, combination)
    found = _Results(size, 7, scales[::-1], logits=logits, per_scale=True)
    builds = combination != "mean"
    counted = reading(7, len(scales), 0, flip=flip, logits=logits, per_scale=True, builds_logits=builds)
    with LiveBytes().ignore(*heads) as meter, torch.inference_mode():
        found.read(outputs, flip, 0, 0, size[0])
    pixels = size[0] * size[1]
    assert meter.peak <= counted.meanwhile * pixels
    if builds:
        assert meter.peak >= counted.meanwhile * pixels / 4


def test_the_plan_counts_logits_that_a_combination_builds():
    peaks = []
    for fusion, scales in (("mean", (1, 2)), ("max", (1, 2)), ("mean", (1, 1.5, 2)), ("hierarchical", (1, 1.5, 2))):
        model = models.build("hrnet_small_ocr", 40, fusion=fusion)
        predictor = Predictor(trained(model, 40, network=models.ModelSettings(fusion=fusion)), "cpu", scales=scales)
        peak = predictor.plan((1000, 1000), logits=True, stated=True).peak
        assert peak is not None
        peaks.append(peak)
    mean, largest, mean_of_large, chain = peaks
    assert largest > mean + 1000**2 * 4 * 40
    assert mean_of_large > chain + 1000**2 * 4 * 40


def test_the_plan_counts_what_is_asked_for_beside_labels():
    predictor = Predictor(trained(num_classes=40), "cpu", scales=(0.5,))
    peaks = [
        predictor.plan((2000, 2000), flip=flip, logits=logits, stated=True).peak
        for flip, logits in itertools.product([False, True], repeat=2)
    ]
    plain, with_logits, mirrored, mirrored_with_logits = (np.array(peaks, float) / 2000**2).tolist()
    # Kept and fused; kept, of both views, mirrored back and their mean.
    assert with_logits > plain + 2 * 4 * 40 - 20
    assert mirrored_with_logits > mirrored + 5 * 4 * 40 - 40


def test_half_precision_takes_half_whatever_the_weights_are():
    model, device = models.build("hrnet_w18_ocr", 19), torch.device("cpu")
    single, half = (
        Footprint(model, (1.0,), device, dtype=dtype, flip=False) for dtype in (torch.float32, torch.bfloat16)
    )
    assert 0.45 < half.live((512, 768)) / single.live((512, 768)) < 0.65
