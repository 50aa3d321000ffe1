"""Class frequencies: counted by hand, as a table, as a picture, and from outside on CamVid."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from hmsa_ext import data, settings
from hmsa_ext.data import stats
from hmsa_ext.engine.settings import TrainSettings
from python_tests.data.picture_sets import CAMVID, Blocks
from python_tests.data.pictures import decoded


def prepared(sampling: data.Sampling | None = None) -> data.TrainingSet:
    augment = data.Augment((20, 24), scale=(0.5, 2.0))
    return data.prepare(Blocks(30), augment, sampling, seed=2, tile=8, quiet=True)


def test_crops_are_counted_in_their_boxes():
    training = prepared()
    counts = stats.count_crops(training, epochs=2, quiet=True)
    assert counts.crops == 60
    shares = []
    for epoch in range(2):
        for image, y0, x0, y1, x1 in training.sampler.draw(epoch)[0]:
            part = training.dataset.label(image)[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
            pixels = np.bincount(part[part != 255], minlength=4)
            shares.append(pixels / max(pixels.sum(), 1))
    np.testing.assert_allclose(counts.share, np.mean(shares, 0))
    np.testing.assert_allclose(counts.presence, (np.array(shares) > 0).mean(0))


def test_the_rare_class_rises_and_the_table_and_picture_say_so():
    training = prepared()
    plain = replace(training, sampler=training.sampler.with_sampling(data.Sampling("uniform")))
    uniform, sampled = (stats.count_crops(t, epochs=5, quiet=True) for t in (plain, training))
    assert sampled.share[2] > 2 * uniform.share[2]
    text = stats.table(training.index, uniform, sampled, "class_uniform")
    (line,) = [line for line in text.splitlines() if line.startswith("rare")]
    assert f"{100 * sampled.share[2]:.2f}" in line.split()
    assert f"{sampled.share[2] / uniform.share[2]:.2f}" in line.split()
    picture = stats.draw(training.index, uniform, sampled, "class_uniform")
    assert picture.dtype == np.uint8
    # A longer bar in the colour of the class than in grey.
    row = 84 + 46 * 2 + 4
    grey, colour = (picture[row + k, stats.NAME_WIDTH : stats.NAME_WIDTH + stats.PLOT_WIDTH] for k in (6, 21))
    own = (colour == training.index.classes.colours[2]).all(1).sum()
    assert own > (grey == stats.UNIFORM_BAR).all(1).sum() > 0


@pytest.mark.parametrize("shares", [[1.0, 0.0, 0.0, 0.0], [0.0] * 4, [0.999, 1e-9, 0.0, 0.0]])
def test_any_shares_can_be_drawn(shares):
    counts = stats.CropCounts(np.array(shares), np.zeros(4), 1)
    picture = stats.draw(prepared().index, counts, counts, "uniform")
    assert picture.shape[2] == 3
    assert "ground" in stats.table(prepared().index, counts, counts, "uniform")


@pytest.mark.skipif(not CAMVID.is_dir(), reason="no CamVid beside the repository (HMSA_SHARED)")
def test_on_camvid_the_classes_that_should_rise_do(tmp_path):
    command = [sys.executable, "-m", "hmsa_ext.data", "stats", "--data", "camvid", "--root", str(CAMVID)]
    flags = ["--crop", "192x256", "--scale-range", "0.75,2", "--epochs", "3", "--json", str(tmp_path / "stats.json")]
    environment = os.environ | {"HMSA_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [*command, *flags, "--picture", str(tmp_path / "stats.png")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "stats.json").read_text())
    factor = dict(zip(content["classes"], np.divide(content["share"], content["uniform_share"]), strict=True))
    assert all(factor[name] > 1.03 for name in ("Bicyclist", "Pedestrian", "SignSymbol", "Pole"))
    assert factor["Bicyclist"] > 1.2
    assert factor["Road"] < 1
    assert content["plan"] == [191] + [16] * 11
    assert "Bicyclist" in done.stdout
    assert decoded(tmp_path / "stats.png").shape[2] == 3


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--crop", "64"], "--crop: got '64', expected HxW"),
        (["--crop", "64x64", "--scale-range", "2,1"], "scale_range: got 2.0,1.0, expected SMALLEST,LARGEST"),
        (["--crop", "64x64", "--class-weights", "road"], "--sampling-weights: got 'road', expected NAME:X,NAME:X"),
        (["--crop", "64x64", "--class-weights", "rood:2"], "sampling_weights: no class 'rood'; expected some of road"),
        (["--crop", "64x64", "--epochs", "0"], "count_epochs: got 0, expected a number above 0"),
        (["--crop", "64x64", "--seed", "-1"], "seed: got -1, expected an integer from 0 to"),
        (["--crop", "64x64", "--picture", "/nowhere/x.png"], "plot: no folder /nowhere; expected a file in one"),
        (["--crop", "64x64", "--json", "/nowhere/x.json"], "json: no folder /nowhere; expected a file in one"),
        (["--crop", "64x64", "--share", "7"], "sampling_share: got 7.0, expected a number from 0 to 1"),
    ],
)
def test_bad_flags_are_named(flags, text, capsys):
    try:
        status = stats.main(["--data", "synthetic", "--length", "4", *flags])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("name", ["synthetic", "folder", "cityscapes"])
def test_stats_and_training_have_the_same_options_with_the_same_defaults(name):
    trained = settings.to_dict(TrainSettings.of(name))
    counted = settings.to_dict(stats.StatsSettings.of(name))
    own = {"split", "count_epochs", "plot", "json"}
    assert counted.keys() - trained.keys() == own
    assert {option: trained[option] for option in counted.keys() - own} == {
        option: value for option, value in counted.items() if option not in own
    }


def test_stats_count_the_crops_that_training_draws(tmp_path, capsys):
    chosen = data.DataSettings.of("synthetic")
    arguments = [
        "--data",
        "synthetic",
        "--length",
        "12",
        "--seed",
        "3",
        "--json",
        str(tmp_path / "x.json"),
        "--no-cache",
    ]
    assert stats.main([*arguments, "--share", "1"]) == 0
    captured = capsys.readouterr()
    assert "--share is now --sampling-share" in captured.err
    assert "crops of 112x224" in captured.out
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["settings"]["cache"] == "none"
    run = TrainSettings.of(replace(chosen, length=12))
    training, _ = data.open_training(run.data, replace(run.sampling, share=1.0), run.crops, seed=3, quiet=True)
    assert np.allclose(content["share"], stats.count_crops(training, quiet=True).share)


def test_the_older_flag_of_mapillary_is_understood(tmp_path, capsys):
    assert stats.main(["--data", "mapillary", "--root", str(tmp_path), "--version", "2.0"]) == 2
    error = capsys.readouterr().err
    assert "--version is now --vistas-version" in error
    assert "config_v2.0.json: cannot be read" in error
