"""A predictor gives what evaluation gives, at the size of the photo, within the memory that it may take."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hmsa_ext import HmsaError, data, models, settings
from hmsa_ext.data import Sample, collate, cut, whole_piece
from hmsa_ext.data.photos import as_photo
from hmsa_ext.engine.memory import Footprint
from hmsa_ext.engine.passes import run, unmirrored
from hmsa_ext.live_bytes import LiveBytes
from hmsa_ext.prediction.predictor import Predictor, load
from hmsa_ext.prediction.settings import PredictionSettings
from python_tests.prediction.networks import Local, local_network, photo, trained

SCALES = (0.5, 1.0, 2.0)
CPU = torch.device("cpu")


def predictor_of(model=None, num_classes=5, *, scales=SCALES, flip=False, dtype="float32", **settings) -> Predictor:
    about = trained(model, num_classes)
    return Predictor(about, "cpu", dtype=dtype, scales=scales, flip=flip, settings=PredictionSettings(**settings))


def kept(array: np.ndarray | None) -> np.ndarray:
    assert array is not None
    return array


@pytest.fixture(scope="module")
def hrnet():
    torch.manual_seed(3)
    model = models.build("hrnet_small_ocr", 5).eval()
    with torch.no_grad():  # attention and logits that differ from pixel to pixel
        for name, parameter in model.named_parameters():
            if name.startswith(("scale_attn", "ocr")) and parameter.dim() == 4:
                parameter.mul_(3)
    return model


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(96, 130), (61, 47)])
def test_labels_and_confidence_are_those_of_the_evaluation(hrnet, size, flip, device):
    image = photo(*size)
    predictor = Predictor(trained(hrnet), device.type, scales=SCALES, flip=flip)
    found = predictor.predict(image, logits=True, per_scale=True)
    batch = cut(collate([whole_piece(Sample(image, np.zeros(size, np.uint8), "x"))]))
    with torch.inference_mode():
        outputs = run(hrnet.eval(), batch.images, SCALES, predictor.device, flip=flip)
        labels, confidence = outputs.argmax(views=1 + flip)
        logits = unmirrored(outputs.fuse(), flip=flip)[0]
    np.testing.assert_array_equal(found.labels, labels[0].cpu().numpy())
    np.testing.assert_array_equal(found.confidence, confidence[0].cpu().numpy())
    np.testing.assert_array_equal(found.logits, logits.cpu().numpy())
    assert found.labels.dtype == np.uint8
    assert found.labels.shape == found.confidence.shape == size
    assert found.scale_labels is not None
    assert found.shares is not None
    assert set(found.scale_labels) == set(found.shares) == set(SCALES)
    np.testing.assert_allclose(sum(found.shares.values()), 1, atol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("attention_channels", "blend"), [(1, "linear"), (5, "gaussian"), (1, "constant")])
def test_tiles_change_nothing_where_the_network_has_no_context(flip, attention_channels, blend):
    """At 0.5 and 1 a tile of this network sees what the whole photo sees there."""
    image, scales = photo(200, 144), (0.5, 1.0)
    model = local_network(5, attention_channels)
    whole = predictor_of(model, scales=scales, flip=flip).predict(image, logits=True, per_scale=True)
    of_tiles = predictor_of(model, scales=scales, flip=flip, tile=(64, 96), blend=blend)
    tiled = of_tiles.predict(image, logits=True, per_scale=True)
    np.testing.assert_allclose(kept(tiled.logits), kept(whole.logits), atol=2e-4)
    assert (tiled.labels == whole.labels).mean() > 0.9995  # ties aside
    np.testing.assert_allclose(tiled.confidence, whole.confidence, atol=1e-4)
    assert tiled.shares is not None
    assert whole.shares is not None
    assert whole.scale_labels is not None
    assert tiled.scale_labels is not None
    for scale in scales:
        np.testing.assert_allclose(tiled.shares[scale], whole.shares[scale], atol=1e-4)
        assert (tiled.scale_labels[scale] == whole.scale_labels[scale]).mean() > 0.999


def test_a_tile_that_covers_the_photo_changes_no_bit(hrnet):
    image = photo(90, 70)
    whole = predictor_of(hrnet).predict(image, logits=True)
    covered = predictor_of(hrnet, tile=(90, 72)).predict(image, logits=True)
    np.testing.assert_array_equal(kept(covered.logits), kept(whole.logits))


def test_tiles_leave_no_seam(hrnet):
    """Along the borders of tiles neighbouring pixels differ no more than elsewhere."""
    image = photo(260, 390)
    predictor = predictor_of(hrnet, tile=128)
    layout = predictor.plan(image.shape[:2]).layout
    assert layout is not None
    logits = predictor.predict(image, logits=True).logits
    steps = np.abs(np.diff(kept(logits), axis=2)).mean(axis=(0, 1))
    borders = [column - 1 for column in layout.columns[1:]]
    borders += [column + layout.tile[1] - 1 for column in layout.columns[:-1]]
    assert steps[borders].mean() < 2 * steps.mean()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("tile", [None, 64])
def test_resized_photos_have_labels_at_their_own_size(tile, flip):
    image = photo(150, 210)
    found = predictor_of(local_network(), flip=flip, resize_to=105, tile=tile).predict(image, logits=True)
    assert found.labels.shape == (150, 210)
    # The network saw the photo at half its size; its labels lie where they do at the full size.
    other = predictor_of(local_network(), flip=flip).predict(image)
    assert (found.labels == other.labels).mean() > 0.6
    mirrored = predictor_of(local_network(), flip=flip, resize_to=105, tile=tile).predict(image[:, ::-1], logits=True)
    if flip:
        np.testing.assert_allclose(kept(mirrored.logits)[..., ::-1], kept(found.logits), atol=0.8)


def test_a_size_may_change_the_proportions():
    found = predictor_of(local_network(), resize_to=(64, 256)).predict(photo(100, 100))
    assert found.labels.shape == (100, 100)
    assert predictor_of(local_network(), resize_to=(64, 256)).plan((100, 100)).size == (64, 256)


def test_the_long_edge_of_the_training_is_the_default_size():
    about = trained(settings={"long_edge": 120, "eval_scales": [1.0, 0.5], "flip": True})
    predictor = Predictor(about, "cpu")
    assert predictor.plan((200, 240)).size == (100, 120)
    assert (predictor.scales, predictor.flip) == ((0.5, 1.0), True)
    assert Predictor(about, "cpu", settings=PredictionSettings(resize_to=60)).plan((200, 240)).size == (50, 60)


# ---- kinds of images --------------------------------------------------------------------------------------------


def test_paths_arrays_pictures_and_tensors_give_the_same(tmp_path):
    image = photo(70, 50)
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    predictor = predictor_of()
    expected = predictor.predict(image).labels
    given = [path, str(path), Image.open(path), image.astype(np.uint16) * 257, tensor, tensor.float() / 255]
    found = predictor.predict(given)
    assert [one.name for one in found] == ["a.png", "a.png", "a.png", "", "", ""]
    for one in found:
        np.testing.assert_array_equal(one.labels, expected)
    assert predictor.predict([]) == []


@pytest.mark.parametrize("size", [(2, 2), (2, 40), (3, 5), (33, 2)])
def test_tiny_photos_are_predicted(hrnet, size):
    assert predictor_of(hrnet, scales=(0.5, 1.0)).predict(np.zeros((*size, 3), np.uint8)).labels.shape == size


def test_a_photo_that_is_too_small_for_a_scale_is_named():
    with pytest.raises(HmsaError, match=r"image: 1x1 pixels leave nothing at scale 0.5; expected at least 2"):
        predictor_of(scales=(0.5, 1.0)).predict(np.zeros((1, 1, 3), np.uint8))


def test_scales_and_flip_of_one_call_leave_those_of_the_predictor():
    predictor, image = predictor_of(), photo(40, 40)
    found = predictor.predict(image, scales=[1.0], flip=True)
    assert (found.scales, found.flip) == ((1.0,), True)
    assert (predictor.predict(image).scales, predictor.flip) == (SCALES, False)
    with pytest.raises(HmsaError, match=r"scales: 1\.0 must be among several"):
        predictor.predict(image, scales=(0.5, 2.0))


def test_predicting_does_not_leave_the_model_in_another_mode_or_with_gradients():
    predictor = predictor_of()
    mode = predictor.model.training
    predictor.predict(photo(32, 32))
    assert predictor.model.training == mode
    assert torch.is_grad_enabled()


def test_bfloat16_is_close_to_float32(hrnet, device):
    image = photo(96, 96)
    exact = Predictor(trained(hrnet), device.type, dtype="float32", scales=SCALES).predict(image)
    rounded = Predictor(trained(hrnet), device.type, dtype="bfloat16", scales=SCALES).predict(image)
    assert (exact.labels == rounded.labels).mean() > 0.8
    assert np.abs(exact.confidence - rounded.confidence).mean() < 0.05


# ---- memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_footprint_is_what_a_pass_takes(hrnet, flip, dtype):
    found = Footprint(hrnet, SCALES, CPU, dtype=dtype, flip=flip)
    assert found.strides == (4, 4, 4)
    with torch.inference_mode(), LiveBytes() as watch:
        images = torch.randn(1, 3, 512, 512)
        outputs = run(hrnet, images, SCALES, CPU, dtype=dtype, flip=flip)
    weights = 0 if dtype == torch.float32 else 2 * sum(p.numel() for p in hrnet.parameters())
    assert 0.95 < found.live((512, 512)) / (watch.peak - weights) < 1.2
    kept = sum(t.numel() * 4 for t in (*outputs.logits, *outputs.attention))
    assert kept == pytest.approx(found.kept * 512 * 512, rel=0.05)


def test_a_network_that_looks_at_values_is_tried_for_real():
    class Looking(Local):
        def forward(self, images):
            if images.mean().item() > 1e9:
                raise AssertionError
            return super().forward(images)

    model = models.MultiScale(Looking(), 6).eval()
    found = Footprint(model, (0.5, 1.0), CPU, dtype=torch.float32, flip=False)
    assert found.strides == (4, 4)
    assert found.live((200, 300)) > 12 * 200 * 300


def test_tiles_are_as_large_as_the_memory_allows(hrnet):
    peaks, sizes = [], []
    for mebibytes in (400, 600, 1024):
        plan = predictor_of(hrnet, memory=mebibytes * 2**20).plan((2000, 3000))
        assert plan.layout is not None
        assert plan.peak is not None
        assert plan.peak <= plan.limit
        peaks.append(plan.peak)
        sizes.append(plan.layout.tile[0])
    assert peaks == sorted(peaks)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    whole = predictor_of(hrnet, memory=64 * 2**30).plan((2000, 3000))
    assert whole.layout is None


def test_too_little_memory_is_an_error_that_says_how_much_is_needed(hrnet):
    with pytest.raises(HmsaError, match=r"memory: got '100 MiB', expected at least \d+ MiB for this photo; give more"):
        predictor_of(hrnet, memory=100 * 2**20).predict(photo(400, 400))
    with pytest.raises(HmsaError, match=r"memory: got '200 MiB', expected .* for tiles of this size"):
        predictor_of(hrnet, memory=200 * 2**20, tile=2048).predict(photo(1000, 1000))


def test_the_same_photo_gets_the_same_tiles_every_time(hrnet):
    predictor = predictor_of(hrnet, memory=500 * 2**20)
    assert predictor.plan((1500, 1500)) == predictor.plan((1500, 1500))


# ---- sizes ------------------------------------------------------------------------------------------------------


def test_a_photo_of_another_size_than_in_training_is_worth_a_word():
    about = trained(image_size=(360, 480), settings={"scale_range": [1.0, 2.0]})
    predictor = Predictor(about, "cpu")
    assert predictor.size_note((360, 480)) == predictor.size_note((720, 960)) == ""
    large = predictor.size_note((3000, 4000))
    assert "3000x4000" in large
    assert "trained on images of about 360x480" in large
    assert "resize them to 480 pixels (--resize-to, in Python resize_to): that predicts better and faster" in large
    assert "smaller" in predictor.size_note((90, 120))
    resized = Predictor(about, "cpu", settings=PredictionSettings(resize_to=480))
    assert resized.size_note((3000, 4000)) == ""
    assert Predictor(trained(), "cpu").size_note((3000, 4000)) == ""


@pytest.mark.parametrize(
    ("given", "count"),
    [("4GB", 4 * 10**9), ("1.5 GiB", 3 * 2**29), ("800mb", 800 * 10**6), ("2", 2**31), (2, 2**31), (2**30, 2**30)],
)
def test_memory_is_text_gibibytes_or_bytes_and_reads_back_the_same(given, count):
    read = settings.replace(PredictionSettings(), {"memory": given})
    assert read.memory == count
    assert settings.replace(PredictionSettings(), settings.to_dict(read)) == read


def test_settings_that_cannot_be_are_named():
    wrong: dict[str, Any] = {"tile": 10, "blend": "cosine", "resize_to": 0, "overlap": 0.8, "memory": 3}
    for name, value in wrong.items():
        with pytest.raises(HmsaError, match=f"{name}: got"):
            PredictionSettings(**{name: value})
    with pytest.raises(HmsaError, match="dtype: got 'float16', expected auto, float32 or bfloat16"):
        Predictor(trained(), "cpu", dtype="float16")
    with pytest.raises(HmsaError, match="device: got 'gpu'"):
        Predictor(trained(), "gpu")


def test_the_data_set_of_the_run_is_not_needed(tmp_path, monkeypatch):
    """The predictor of a run whose data is gone; also that no full-resolution logits are made unless asked for."""
    assert data is not None
    image = photo(128, 128)
    predictor = predictor_of(local_network(64), 64)
    with LiveBytes() as watch:
        predictor.predict(image)
    labels_only = watch.peak
    with LiveBytes() as watch:
        predictor.predict(image, logits=True)
    assert watch.peak > labels_only
    assert labels_only < 64 * 128 * 128 * 4 * 2


def test_predictions_can_be_replaced_field_by_field():
    found = predictor_of().predict(photo(40, 40))
    assert dataclasses.replace(found, name="b").name == "b"


@pytest.mark.parametrize("scales", [(0.3, 1.0), (0.6, 1.0)])
def test_scales_that_are_no_part_of_a_power_of_two_have_tiles_too(scales):
    image = photo(240, 320)
    whole = predictor_of(scales=scales).predict(image, logits=True)
    tiled = predictor_of(scales=scales, tile=120)
    assert tiled.plan((240, 320)).layout is not None
    np.testing.assert_allclose(kept(tiled.predict(image, logits=True).logits), kept(whole.logits), atol=1e-4)


def test_tiles_that_were_asked_for_are_refused_by_name_where_scales_share_no_grid():
    with pytest.raises(HmsaError, match="scales: tiles need scales that share a grid"):
        predictor_of(scales=(0.613, 1.0), tile=64).predict(photo(128, 128))


def test_outputs_that_are_no_numbers_are_an_error_and_never_labels():
    model = local_network()
    with torch.no_grad():
        dict(model.named_parameters())["network.logits.bias"][2] = float("nan")
    with pytest.raises(HmsaError, match="network: its outputs are no numbers in 100 % of the pixels"):
        predictor_of(model).predict(photo(32, 32))


def test_a_network_of_another_kind_is_named():
    class Plain(torch.nn.Module):
        def forward(self, images, scales):
            return images

    with pytest.raises(HmsaError, match=r"network: it returned Tensor, expected hmsa_ext\.models\.ScaleOutputs"):
        predictor_of(Plain()).predict(photo(32, 32))


def test_each_tile_is_told():
    told = []
    predictor = predictor_of(tile=64)
    predictor.predict_photo(as_photo(photo(100, 150)), tile_done=lambda *which: told.append(which))
    layout = predictor.plan((100, 150)).layout
    assert layout is not None
    assert told == [(k + 1, len(layout)) for k in range(len(layout))]


def test_wrong_types_are_named():
    wrong: Any = 3
    with pytest.raises(HmsaError, match="path: got 3, expected a run folder or a file of weights"):
        load(wrong)
    with pytest.raises(HmsaError, match=r"size: got 3, expected \(height, width\)"):
        predictor_of().plan(wrong)
