"""Every method of the paper from outside: a training, its resumption, its evaluation and a prediction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import hmsa_ext
from hmsa_ext import evaluate, predict, train
from hmsa_ext.engine import checkpoint
from hmsa_ext.engine.settings import TrainSettings, read_recipe, recipe_names
from hmsa_ext.models import FUSIONS, NAMES, build
from hmsa_ext.normalisation import MEAN, STD

TINY = (
    *("--size", "64x96", "--crop", "64x64", "--length", "4", "--val-length", "2", "--batch-size", "2"),
    *("--epochs", "2", "--eval-every", "1", "--pictures", "1", "--threads", "1", "--device", "cpu"),
)
METHODS = [name for name in recipe_names() if name.startswith("synthetic-")]


def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (48, 80, 3), np.uint8)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train_whole_and_in_pieces(begin: Sequence[str], run: Path, pieces: Path) -> None:
    """Trains once without a stop; a run that is stopped after its first step and resumed has the same weights."""
    assert train.main([*begin, "--output", str(run)]) == 0
    assert train.main([*begin, "--output", str(pieces), "--max-minutes", "1e-9"]) == 0
    assert checkpoint.load(pieces)["progress"]["step"] == 1
    assert train.main(["--resume", str(pieces), "--max-minutes", "0"]) == 0
    whole, again = checkpoint.load(run), checkpoint.load(pieces)
    assert all(torch.equal(value, again["state_dict"][name]) for name, value in whole["state_dict"].items())


@pytest.mark.parametrize("recipe", METHODS)
def test_a_method_trains_resumes_evaluates_and_predicts(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    begin = ("--config", recipe, *TINY)
    train_whole_and_in_pieces(begin, run, tmp_path / "pieces")
    result = json.loads((run / "results.json").read_text())
    wanted = read_recipe(recipe, "config")
    fusion = FUSIONS[wanted["fusion"]]
    assert result["scales"] == wanted["eval_scales"]
    assert result["combination"] == fusion.combination
    assert fusion.combination in result["miou"]
    assert len(list((run / "pictures").glob("*.png"))) == 1

    file = tmp_path / "evaluated.json"
    assert evaluate.main([str(run), "--json", str(file), "--device", "cpu"]) == 0
    assert json.loads(file.read_text())["miou"] == result["miou"]
    assert evaluate.main([str(run), "--eval-scales", "1", "--device", "cpu", "--json", str(file)]) == 0

    more = ["--eval-scales", "0.25,0.5,1,2", "--device", "cpu"]
    if fusion.most_scales or fusion.attention == "joint":
        capsys.readouterr()
        assert evaluate.main([str(run), *more]) == 2
        assert "eval_scales: got 0.25,0.5,1.0,2.0, expected" in capsys.readouterr().err
    else:
        assert evaluate.main([str(run), *more]) == 0

    cv2.imwrite(str(tmp_path / "photo.png"), photo())
    written = ["--write", "labels,overlay,attention", "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert predict.main([str(tmp_path / "photo.png"), "--model", str(run), *written]) == 0
    labels = cv2.imread(str(tmp_path / "out/photo.png"), cv2.IMREAD_UNCHANGED)
    assert labels is not None
    found = hmsa_ext.load(run, "cpu").predict(photo()[..., ::-1])
    assert np.array_equal(labels, found.ids())
    assert found.scales == tuple(wanted["eval_scales"])


def test_weights_of_one_scale_serve_every_combination(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train.main(["--config", "synthetic-single", *TINY, "--epochs", "1", "--output", str(run)]) == 0
    alone = json.loads((run / "results.json").read_text())["miou"]["1.0"]
    for fusion in ("mean", "max", "mean_probabilities", "max_probabilities"):
        file = tmp_path / f"{fusion}.json"
        assert evaluate.main([str(run), "--fusion", fusion, "--json", str(file), "--device", "cpu"]) == 0
        result = json.loads(file.read_text())
        assert result["scales"] == [0.5, 1.0, 2.0]
        assert result["miou"]["1.0"] == alone
        assert result["combination"] == fusion
        labels = hmsa_ext.load(run, "cpu", fusion=fusion).predict(photo()).labels
        model = build("hrnet_small_ocr", 11, fusion=fusion).eval()
        model.load_state_dict(checkpoint.load(run)["state_dict"])
        pixels = (torch.from_numpy(photo()) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        with torch.inference_mode():
            expected, _ = model(pixels.permute(2, 0, 1)[None], (0.5, 1.0, 2.0)).argmax()
        assert (labels == expected[0].numpy()).mean() > 0.999  # ties may fall otherwise
    for fusion in ("hierarchical", "explicit"):
        capsys.readouterr()
        assert evaluate.main([str(run), "--fusion", fusion, "--device", "cpu"]) == 2
        assert f"fusion {fusion} needs an attention that was trained for it" in capsys.readouterr().err
    photos = [str(run), "--model", str(run), "--output", str(tmp_path / "out")]
    assert predict.main([*photos, "--eval-scales", "0.5,1"]) == 2
    assert "eval_scales: got 0.5,1.0, expected one scale" in capsys.readouterr().err


@pytest.mark.parametrize("fusion", ["mean", "max"])
def test_tiles_are_blended_before_they_are_combined(fusion: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--epochs", "1", "--model", "python_tests.prediction.networks:Local")
    assert train.main(["--config", "synthetic-mean", *TINY, *options, "--fusion", fusion, "--output", str(run)]) == 0
    big = cv2.resize(photo(), (320, 192))
    whole = hmsa_ext.load(run, "cpu").predict(big, logits=True)
    tiles = hmsa_ext.load(run, "cpu", tile=128).predict(big, logits=True)
    assert whole.logits is not None
    assert tiles.logits is not None
    # Resized images differ by a pixel at the border of a tile, where its weight is small.
    assert np.abs(tiles.logits - whole.logits).max() < 0.05
    assert (tiles.labels == whole.labels).mean() > 0.999


def test_recipes_are_complete_and_can_be_read() -> None:
    for data in ("synthetic", "camvid"):
        methods = {"single", "mean", "max", "explicit", "hierarchical", "hierarchical-classes"}
        assert {name.partition("-")[2] for name in recipe_names() if name.startswith(f"{data}-")} == methods
    for name in recipe_names():
        chosen = TrainSettings.read(read_recipe(name, "config"))
        assert chosen.final_evaluation.scales == tuple(read_recipe(name, "config")["eval_scales"])


def test_what_is_neither_a_file_nor_a_recipe_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--config", "camvid-sum"]) == 2
    assert "config: got 'camvid-sum', expected a YAML file" in capsys.readouterr().err


# A smaller trunk stands for that of the large networks: their heads and their code are what runs.
SMALLER = {
    "hrnet_w18_ocr": "hrnet_small", "hrnet_w32_ocr": "hrnet_small", "hrnet_w48_ocr": "hrnet_small",
    "hrnet_w48_fcn": "hrnet_small", "resnet50_deeplabv3plus": "resnet18", "resnet101_deeplabv3plus": "resnet18",
}  # fmt: skip


@pytest.mark.parametrize("network", NAMES)
def test_a_network_trains_resumes_evaluates_and_predicts(network: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    begin = ["--model", network, *TINY, "--length", "2", "--eval-scales", "0.5,1", "--optimizer", "sgd", "--lr", "0.01"]
    if network in SMALLER:
        begin += ["--trunk", SMALLER[network]]
    train_whole_and_in_pieces(begin, run, tmp_path / "pieces")
    file = tmp_path / "evaluated.json"
    assert evaluate.main([str(run), "--json", str(file), "--device", "cpu"]) == 0
    assert json.loads(file.read_text())["miou"] == json.loads((run / "results.json").read_text())["miou"]
    found = hmsa_ext.load(run, "cpu").predict(photo())
    assert found.labels.shape == (48, 80)
    assert hmsa_ext.load(run, "cpu", fusion="max").predict(photo()).labels.shape == (48, 80)
