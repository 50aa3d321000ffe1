"""The two commands from outside: a whole small run, its folder, and what bad input is answered with."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from hmsa_ext import evaluate, train
from hmsa_ext.engine import checkpoint

SMALL = (
    *("--size", "64x128", "--crop", "64x128", "--length", "8", "--val-length", "2", "--batch-size", "2"),
    *("--epochs", "1", "--pictures", "2", "--threads", "1", "--device", "cpu"),
)
WAYS = {"0.5", "1.0", "2.0", "mean", "attention"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run in miniature."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    threads = torch.get_num_threads()
    assert train.main([*SMALL, "--output", str(folder)]) == 0
    torch.set_num_threads(threads)
    return folder


def test_a_run_writes_everything_into_its_folder(run: Path) -> None:
    names = {p.name for p in run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "last.pt", "best.pt", "results.json", "pictures"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert len(list((run / "pictures").glob("*.png"))) == 2
    assert yaml.safe_load((run / "config.yaml").read_text())["crop"] == [64, 128]


def test_results_have_the_promised_keys(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert set(results["miou"]) == WAYS == set(results["iou"]) == set(results["pixel_accuracy"])
    assert all(0 <= x <= 1 for x in results["miou"].values())
    assert set(results["iou"]["attention"]) == set(results["classes"])
    assert results["scales"] == [0.5, 1.0, 2.0]
    assert results["config"]["scale_weight"] == 0.05
    assert results["versions"]["torch"] == torch.__version__
    assert results["seconds"] > 0


def test_metrics_are_lines_of_json(run: Path) -> None:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["kind"] for r in records] == ["train", "validation"]
    expected = {"step", "epoch", "loss", "lr", "data_seconds", "step_seconds", "images_per_second", "memory_gib"}
    assert expected <= records[0].keys()
    assert records[1]["miou_attention"] >= 0


def test_the_best_checkpoint_knows_that_it_is_the_best(run: Path) -> None:
    best, records = checkpoint.load(run / "best.pt"), (run / "metrics.jsonl").read_text().splitlines()
    assert best["progress"]["best"] == json.loads(records[-1])["miou_attention"]


def test_evaluate_repeats_the_result_of_the_run(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "result.json"
    assert evaluate.main([str(run), "--output", str(file), "--threads", "1", "--device", "cpu"]) == 0
    result, before = json.loads(file.read_text()), json.loads((run / "results.json").read_text())
    assert result["miou"] == before["miou"]
    assert result["iou"] == before["iou"]


def test_evaluate_writes_nothing_but_the_json_to_standard_output(run: Path, capsysbinary) -> None:
    folder = run.parent / "drawn"
    assert evaluate.main([str(run), "--json", "-", "--device", "cpu", "--picture-folder", str(folder)]) == 0
    output, error = capsysbinary.readouterr()
    assert json.loads(output)["images"] == 2
    assert b"IoU in %" in error
    assert b"drew 2 pictures" in error


def test_evaluate_works_at_one_scale_other_than_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run / "best.pt"), "--scales", "0.5", "--device", "cpu"]) == 0
    assert "scale 0.5" in capsys.readouterr().out


def test_evaluate_takes_published_files_and_draws(run: Path, tmp_path: Path) -> None:
    weights = {f"module.{k}": v for k, v in checkpoint.load(run)["state_dict"].items()}
    file = tmp_path / "published.pth"
    torch.save({"epoch": 174, "arch": "x", "mean_iu": np.float64(0.5), "state_dict": weights}, file)
    published = (str(file), "--model", "hrnet_small_ocr", "--num-classes", "11", "--data", "synthetic")
    assert evaluate.main([*published, "--scales", "1", "--flip", "--split", "train", "--length", "2"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-classes", "7"], "has 11 classes, --num-classes is 7"),
        (["--scales", "0.5,2"], "scales: got 0.5,2.0, expected"),
        (["--model", "hrnet_small_ocr"], "num_classes: got None, expected the number of the checkpoint's classes"),
        (["--model", "hrnet_small_ocr", "--num-classes", "7"], "7 of another shape|4 of another shape"),
        (
            ["--model", "hrnet_small_ocr", "--num-classes", "-1"],
            "num_classes: got '-1', expected a whole number above 0",
        ),
        (["--pictures", "-1"], "pictures: got -1, expected a number not below 0"),
        (["--model", "resnet", "--num-classes", "11"], "model: got 'resnet', expected one of"),
        (["--data", "camvid"], "camvid needs the folder"),
        (["--long-edge", "-5"], "long_edge: got -5, expected a number not below 0"),
        (["--workers", "-1"], "workers: got -1, expected a number not below 0"),
        (["--fold", "2"], "--fold: synthetic has no such option; cityscapes, kitti have it"),
        (["--split", "nope"], "split: expected one of"),
        (["--data", "camvid", "--root", "absent"], "absent/val: no such folder"),
    ],
)
def test_evaluate_explains_what_is_wrong(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(run), "--device", "cpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert any(m in error for m in message.split("|")), error


def test_the_older_length_is_the_number_of_images_of_the_split_that_is_evaluated(run: Path) -> None:
    for split, size in (("train", 3), ("val", 1)):
        command, trained = evaluate.parse([str(run), "--split", split, "--length", str(size)])
        assert trained is not None
        assert len(evaluate.open_data(command, trained)) == size


def test_older_pictures_name_a_folder_only_where_a_folder_stands(run: Path) -> None:
    evaluated = evaluate.parse([str(run), "--pictures", "drawn", "--picture-count", "3"])[0]
    assert (evaluated.picture_folder, evaluated.run.evaluation.pictures) == ("drawn", 3)
    with pytest.raises(SystemExit):
        evaluate.parse([str(run), "--pictures", "--flip"])


def test_evaluate_refuses_data_of_other_classes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    camvid(tmp_path)
    assert evaluate.main([str(run), "--data", "camvid", "--root", str(tmp_path), "--device", "cpu"]) == 2
    assert "was trained for 11 classes (road, " in capsys.readouterr().err


def test_a_run_is_never_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*SMALL, "--output", str(run)]) == 2
    assert "expected a new folder: this one already holds a run, which can be resumed" in capsys.readouterr().err


def test_runs_without_a_name_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert train.main([*SMALL, "--max-minutes", "1e-9"]) == 0
    names = [p.name for p in (tmp_path / "runs").iterdir()]
    assert len(names) == 2
    assert all(name.startswith("synthetic-hrnet_small_ocr-") for name in names)


def test_resuming_a_finished_run_evaluates_it_again(run: Path) -> None:
    before = json.loads((run / "results.json").read_text())["miou"]
    assert train.main(["--resume", str(run)]) == 0
    assert json.loads((run / "results.json").read_text())["miou"] == before


def test_initial_weights_are_taken_and_reported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin = [*SMALL, "--output", str(tmp_path / "next"), "--weights", str(run / "best.pt"), "--max-minutes", "1e-9"]
    assert train.main([*begin, "--lr", "1e-30"]) == 0
    assert "best.pt: loaded" in capsys.readouterr().out
    old, new = (checkpoint.load(f)["state_dict"]["ocr.cls_head.weight"] for f in (run / "best.pt", tmp_path / "next"))
    torch.testing.assert_close(old, new, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "camvid"], "root: camvid needs the folder that holds train"),
        (["--data", "camvid", "--root", "absent"], "root: no such folder"),
        (["--weights", "absent.pt"], "absent.pt"),
        (["--resume", "absent"], "resume: got 'absent', expected the folder of a run; there is no such folder"),
        (["--batch-size", "99"], "fewer than one batch"),
        (["--lr", "nan"], "lr: got nan, expected a number above 0"),
    ],
)
def test_train_explains_what_is_wrong_before_it_begins(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = [] if "--resume" in arguments else ["--output", str(tmp_path / "run"), "--device", "cpu"]
    small = [] if {"--resume", "camvid"} & set(arguments) else ["--length", "8", "--val-length", "2"]
    assert train.main([*begin, *small, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error[error.index("error: ") :]
    assert not (tmp_path / "run").exists()


def test_a_batch_hook_that_does_not_exist_leaves_no_run_behind(tmp_path: Path) -> None:
    assert train.main([*SMALL, "--batch-hook", "json:absent", "--output", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()


def test_a_label_outside_the_classes_is_found_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    camvid(tmp_path, value=42)
    arguments = ["--data", "camvid", "--root", str(tmp_path), "--output", str(tmp_path / "run"), "--batch-size", "1"]
    assert train.main(arguments) == 2
    assert "42 in 16 pixels" in capsys.readouterr().err


def test_a_crop_of_nothing_but_ignored_pixels_does_not_end_a_run(tmp_path: Path) -> None:
    camvid(tmp_path)
    assert cv2.imwrite(str(tmp_path / "trainannot" / "a.png"), np.full((64, 96), 11, np.uint8))
    arguments = ["--data", "camvid", "--root", str(tmp_path), "--output", str(tmp_path / "run"), "--crop", "64x96"]
    assert train.main([*arguments, "--batch-size", "1", "--epochs", "1", "--device", "cpu", "--threads", "1"]) == 0
    weights = checkpoint.load(tmp_path / "run")["state_dict"]
    assert all(torch.isfinite(w).all() for w in weights.values())


@pytest.mark.slow
def test_the_main_job_ends_with_the_attention_ahead(tmp_path: Path) -> None:
    assert train.main(["--output", str(tmp_path / "run")]) == 0
    miou = json.loads((tmp_path / "run" / "results.json").read_text())["miou"]
    assert max(miou, key=miou.get) == "attention"
    assert miou["attention"] > 0.4


def camvid(root: Path, *, value: int = 3) -> None:
    """Two images in each split, whose label maps have ``value`` in 16 pixels."""
    for split in ("train", "val"):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for name in ("a", "b"):
            label = np.zeros((64, 96), np.uint8)
            label[:2, :8] = value
            cv2.imwrite(str(root / split / f"{name}.png"), np.full((64, 96, 3), 90, np.uint8))
            cv2.imwrite(str(root / f"{split}annot" / f"{name}.png"), label)
