"""Evaluation in tiles: that of the whole image where tiles change nothing, and within the memory that is allowed."""

from __future__ import annotations

import itertools
import json

import cv2
import pytest
import torch
from torch import nn

from bench.meters import peak_memory
from hmsa_ext import HmsaError, models
from hmsa_ext.data import Batch, ClassTable
from hmsa_ext.data.palette import distinct_colours
from hmsa_ext.engine.distributed import Process
from hmsa_ext.engine.evaluation import EvaluationSettings, evaluate
from hmsa_ext.engine.memory import PROBES, Footprint
from hmsa_ext.engine.metrics import CalibrationError, Predictions
from hmsa_ext.engine.passes import run
from hmsa_ext.engine.settings import TrainSettings, differences
from hmsa_ext.engine.tiling import TileSettings, Tiling, scored
from hmsa_ext.evaluate import main
from hmsa_ext.settings import SettingError, options, to_dict
from python_tests.prediction.networks import Local, local_network, one_thread, write_run

CLASSES = ClassTable(tuple("abcde"), distinct_colours(5))
BLENDS = ("linear", "gaussian", "constant")
CPU = torch.device("cpu")
MIB = 2**20


def smooth_images(count: int, height: int, width: int) -> torch.Tensor:
    torch.manual_seed(0)
    small = torch.randn(count, 3, height // 12 + 2, width // 12 + 2)
    return nn.functional.interpolate(small, (height, width), mode="bicubic")


def batch_of(images: torch.Tensor) -> Batch:
    labels = torch.randint(0, 5, (images.shape[0], *images.shape[-2:]), dtype=torch.uint8)
    return Batch(images, labels, [f"image {i}" for i in range(images.shape[0])])


def maps_of(model, images, scales, device, *, flip=False, **settings):
    """Blended outputs, and those of whole images, each on the device."""
    tiling = Tiling(model, device, TileSettings(**settings))
    around = scored(5, len(scales), flip=flip, metrics=False)
    with torch.inference_mode():
        return tiling.outputs(images, scales, around, flip=flip), run(model, images, scales, device, flip=flip)


def same(found, expected, **tolerance) -> None:
    assert found.size == expected.size
    assert found.scales == expected.scales
    for one, other in zip((*found.logits, *found.attention), (*expected.logits, *expected.attention), strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("flip", [False, True])
def test_a_tile_that_covers_the_image_changes_no_bit(flip, device):
    torch.manual_seed(1)
    model = models.build("hrnet_small_ocr", 5).to(device).eval()
    images, scales = torch.randn(1, 3, 70, 95, device=device), (0.5, 1.0)
    same(*maps_of(model, images, scales, device, flip=flip, tile=(70, 96)), rtol=0, atol=0)
    batches, settings = [batch_of(images)], TileSettings(tile=96, memory=8 * 2**30)
    tiled, whole = (
        evaluate(model, batches, CLASSES, scales, Process(device), flip=flip, tiles=tiles) for tiles in (settings, None)
    )
    assert all(torch.equal(tiled.scores[way].counts, whole.scores[way].counts) for way in whole.scores)


@pytest.mark.parametrize(("flip", "blend"), list(itertools.product([False, True], BLENDS)))
@pytest.mark.parametrize("attention_channels", [1, 5])
def test_tiles_change_nothing_where_the_network_has_no_context(attention_channels, flip, blend, device):
    model = local_network(5, attention_channels).to(device)
    images = smooth_images(2, 200, 144).to(device)
    found, expected = maps_of(model, images, (0.5, 1.0), device, flip=flip, tile=(64, 96), overlap=0.4, blend=blend)
    same(found, expected, rtol=1e-4, atol=2e-4)
    for attention in found.attention:
        assert attention.min() >= 0
        assert attention.max() <= 1 + 1e-6


@pytest.mark.parametrize("size", [(203, 145), (130, 209)])
@pytest.mark.parametrize("divisor", [1, 4])
def test_maps_of_tiles_have_the_size_of_the_whole_images(size, divisor, device):
    """Of sizes that are no multiple of the stride: networks round up or down, as a divisor of 4 makes this one."""
    network = Local()
    model = models.MultiScale(network, 6, divisor=divisor, fusion="single").to(device).eval()
    found, expected = maps_of(model, smooth_images(1, *size).to(device), (1.0,), device, tile=64, flip=True)
    assert found.logits[0].shape[-2:] == expected.logits[0].shape[-2:]
    same(found, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("blend", BLENDS)
def test_an_evaluation_in_tiles_counts_as_one_of_whole_images(blend, device):
    model = local_network().to(device)
    batches = [batch_of(smooth_images(1, 200, 144)), batch_of(smooth_images(2, 96, 248))]

    def result(tiles):
        return evaluate(
            model, batches, CLASSES, (0.5, 1.0), Process(device), tiles=tiles, metrics=[CalibrationError(CLASSES)]
        )

    tiled, whole = result(TileSettings(tile=64, blend=blend)), result(None)
    assert tiled.images == whole.images == 3
    assert (tiled.in_tiles, whole.in_tiles) == (3, 0)
    assert tiled.to_dict()["images_in_tiles"] == 3
    for way, scores in whole.scores.items():
        moved = (tiled.scores[way].counts - scores.counts).abs().sum() / scores.counts.sum()
        assert moved < 0.002, way  # ties
        assert tiled.more["calibration_error"][way] == pytest.approx(whole.more["calibration_error"][way], abs=0.002)


def test_metrics_see_whole_images(device):
    seen = []

    class Seeing:
        def update(self, predictions: Predictions) -> None:
            seen.append((predictions.outputs.size, predictions.target.shape, predictions.labels("0.5").shape))

        def reduce(self, process):
            pass

        def result(self):
            return {}

    settings = TileSettings(tile=64)
    evaluate(
        local_network().to(device), [batch_of(smooth_images(1, 150, 90))], CLASSES, (0.5, 1.0), Process(device),
        metrics=[Seeing()], tiles=settings,
    )  # fmt: skip
    assert seen == [((150, 90), (1, 150, 90), (1, 150, 90))]


def test_large_images_run_in_tiles_no_larger_than_asked_for():
    sizes = []

    class Recording(Local):
        def forward(self, images):
            if type(images) is torch.Tensor:  # not fake
                sizes.append(tuple(images.shape[-2:]))
            return super().forward(images)

    model = models.MultiScale(Recording(), 6, fusion="single").eval()
    maps_of(model, smooth_images(1, 200, 144), (1.0,), CPU, tile=(64, 96))
    *of_tiles, whole = sizes
    assert whole == (200, 144)
    assert len(of_tiles) > 4
    assert all(height <= 64 and width <= 96 for height, width in of_tiles)


def test_memory_decides_the_tiles_of_an_evaluation():
    model = models.build("hrnet_small_ocr", 5).eval()
    around = scored(5, 3, flip=False, metrics=False)

    def plan(mebibytes):
        return Tiling(model, CPU, TileSettings(memory=mebibytes * MIB)).plan((1000, 1500), (0.5, 1, 2), False, around)

    small, large, whole = plan(450), plan(800), plan(64 * 1024)
    assert small.layout is not None
    assert large.layout is not None
    assert whole.layout is None
    assert small.layout.tile < large.layout.tile
    for found in (small, large, whole):
        assert found.peak is not None
        assert found.peak <= found.limit
    assert large.peak is not None
    assert large.peak > 0.6 * large.limit  # no smaller than they have to be
    with pytest.raises(SettingError, match=r"memory: got '150 MiB', expected at least \d+ MiB"):
        plan(150)


def test_the_search_for_tiles_takes_few_passes(monkeypatch):
    """A pass over fake tensors takes seconds where the network is a large one."""
    passes = []
    whole_pass = Footprint._pass
    monkeypatch.setattr(Footprint, "_pass", lambda self, *given: passes.append(given) or whole_pass(self, *given))

    class Wide(Local):
        def forward(self, images):
            return super().forward(images.repeat(1, 40, 1, 1).sin()[:, :3])

    model = models.MultiScale(Wide(), 6, fusion="mean").eval()
    around = scored(5, 2, flip=False, metrics=False)
    for side, mebibytes in ((1500, 500), (1500, 800), (4000, 1400), (4000, 3000)):
        passes.clear()
        plan = Tiling(model, CPU, TileSettings(memory=mebibytes * MIB)).plan((side, side), (0.5, 1), False, around)
        assert plan.layout is not None
        assert plan.peak is not None
        assert plan.peak <= plan.limit
        assert len(passes) <= len(PROBES)


def test_without_settings_an_evaluation_never_asks_what_it_takes(monkeypatch):
    monkeypatch.setattr(Tiling, "footprint", lambda *_: pytest.fail("asked"))
    evaluate(local_network(), [batch_of(smooth_images(1, 64, 64))], CLASSES, (1.0,), Process(CPU))


def test_tiles_that_the_network_does_not_take_are_an_error_by_name():
    class Odd(Local):
        def forward(self, images):
            logits, features = super().forward(images)
            return logits[..., :-1], features[..., :-1]

    model = models.MultiScale(Odd(), 6, fusion="single").eval()
    with pytest.raises(HmsaError, match="tile: got 64, expected none: the logits of this network have no whole stride"):
        maps_of(model, smooth_images(1, 128, 128), (1.0,), CPU, tile=64)


# ---- commands ---------------------------------------------------------------------------------------------------


def test_the_command_evaluates_and_draws_in_tiles(tmp_path, capsys):
    run_folder = write_run(tmp_path / "run")
    given = [str(run_folder), "--size", "128x192", "--val-length", "2", "--device", "cpu", "--threads", "1"]
    found = []
    for name, more in (("whole", []), ("tiled", ["--tile", "64x96", "--overlap", "0.5", "--blend", "gaussian"])):
        folder = tmp_path / name
        command = [*given, "--json", str(folder / "a.json"), "--picture-folder", str(folder), "--pictures", "1", *more]
        assert main(command) == 0
        picture = next(folder.rglob("*.png"))
        found.append((json.loads((folder / "a.json").read_text()), cv2.imread(str(picture))))
    (whole, drawn), (tiled, drawn_from_tiles) = found
    assert (whole["images_in_tiles"], tiled["images_in_tiles"]) == (0, 2)
    assert "evaluated 2 images in" in capsys.readouterr().out
    assert tiled["pixel_accuracy"]["attention"] == pytest.approx(whole["pixel_accuracy"]["attention"], abs=0.002)
    assert (drawn != drawn_from_tiles).mean() < 0.02
    assert main([*given, "--memory", "2MiB"]) == 2
    assert "memory: got '2 MiB', expected at least" in capsys.readouterr().err


def test_a_training_may_change_the_tiles_of_its_evaluations_when_it_goes_on():
    declared = {option.name: option for option in options(TrainSettings())}
    assert all(declared[name].free for name in ("tile", "overlap", "blend", "memory"))
    changed = TrainSettings.read({"tile": [64, 96], "memory": "2GB", "blend": "constant"}).evaluation.tiles
    assert changed == TileSettings(tile=(64, 96), memory=2 * 10**9, blend="constant")
    assert differences(to_dict(TrainSettings()), TrainSettings(evaluation=EvaluationSettings(tiles=changed))) == {}


# ---- the footprint ----------------------------------------------------------------------------------------------


def test_the_footprint_follows_what_a_network_does_at_each_size(monkeypatch):
    """A network that works in strips above some size takes less there than its share of pixels."""

    class InStrips(Local):
        def forward(self, images):
            strips = [images] if images.shape[-2] <= 512 else images.split(256, dim=-2)
            # 30 channels at full resolution, of a strip at a time.
            return super().forward(torch.cat([strip.repeat(1, 10, 1, 1).sin()[:, :3] for strip in strips], -2))

    model = models.MultiScale(InStrips(), 6, fusion="single").eval()
    needs = Footprint(model, (1.0,), CPU, dtype=torch.float32, flip=False)
    whole, in_strips, largest = needs.live((512, 512)), needs.live((1024, 1024)), needs.live((2048, 2048))
    assert in_strips < 3 * whole
    passes = []
    monkeypatch.setattr(needs, "_pass", lambda *given: passes.append(given))
    assert needs.live((4096, 2048)) == 2 * largest
    assert whole < needs.live((700, 700)) <= in_strips
    assert needs.live((512, 512), batch=4) == in_strips
    assert passes == []


# ---- resident memory --------------------------------------------------------------------------------------------


@pytest.mark.memory
@pytest.mark.parametrize(
    ("size", "flip", "settings"),
    [
        ((640, 960), False, {"memory": 64 * 2**30}),
        ((640, 960), True, {"memory": 700 * MIB}),
        ((800, 1024), False, {"tile": 384}),
    ],
)
def test_no_evaluation_takes_more_than_its_plan_states(size, flip, settings):
    torch.manual_seed(0)
    model, scales = models.build("hrnet_small_ocr", 5).eval(), (0.5, 1.0, 2.0)
    chosen = TileSettings(**settings)
    plan = Tiling(model, CPU, chosen).plan(size, scales, flip, scored(5, 3, flip=flip, metrics=True))

    def evaluation():
        batches = (batch_of(torch.randn(1, 3, *size)) for _ in range(1))
        evaluate(
            model, batches, CLASSES, scales, Process(CPU), flip=flip, tiles=chosen, metrics=[CalibrationError(CLASSES)]
        )

    with one_thread():
        first, again = peak_memory(evaluation), peak_memory(evaluation)
    if first is None or again is None:
        pytest.skip("this system does not say how much memory a process had")
    assert plan.peak is not None
    assert max(first, again) <= plan.peak <= 1.5 * again + 400 * MIB  # fragments: 256 MiB, code: 144
