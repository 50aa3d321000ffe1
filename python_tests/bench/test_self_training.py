"""The grid of the experiment with automatic labels, its tables, and soft labels of two classes."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import self_training, soft_labels
from bench.flops import count_flops
from bench.self_training import FRACTIONS, STEPS, Job
from bench.self_training_table import Row, Score, miou_table, summarise
from bench.soft_labels import PLANES, Soft, SoftImages
from hmsa_ext.data import DataError, DataSettings
from hmsa_ext.data.files import read_label
from hmsa_ext.files import OutputError
from hmsa_ext.models import build, efficientnet_lite0_lraspp
from hmsa_ext.prediction.marks import encode_png
from python_tests.prediction.networks import photo, write_run

CLASSES = ("sky", "road", "car")

# ---- the grid ---------------------------------------------------------------------------------------------------


def test_every_job_has_a_name_of_its_own_and_follows_what_it_reads(tmp_path):
    seen: set[str] = set()
    for job in self_training.grid(tmp_path):
        assert job.name not in seen
        assert set(job.after) <= seen, job.name
        for word in job.command:  # whatever another job writes is waited for
            name = Path(word).name
            if word.startswith(str(tmp_path)) and name in seen:
                assert name in job.after, (job.name, name)
        output = ("--json", str(tmp_path / job.name / "results.json")), ("--output", str(tmp_path / job.name))
        assert job.command[-2:] == output[job.command[0] != "evaluate"]
        seen.add(job.name)


def test_trainings_have_the_same_steps_and_a_seed_of_their_name(tmp_path):
    for job in self_training.grid(tmp_path):
        if job.is_training:
            assert job.command[job.command.index("--iterations") + 1] == str(STEPS)
            assert job.name.endswith(f"-{job.command[job.command.index('--seed') + 1]}")


def test_the_tables_have_every_training_in_one_row(tmp_path):
    runs = [run for row in self_training.table_rows() for run in row.runs.values()]
    assert sorted(runs) == sorted(job.name for job in self_training.grid(tmp_path) if job.is_scored)


def test_soft_labels_come_from_the_teacher_and_replace_the_hard_ones(tmp_path):
    jobs = {job.name: job for job in self_training.grid(tmp_path)}
    student, labels = jobs["soft-eighth-1"], jobs["softlabels-eighth-1"]
    assert labels.module == "bench.soft_labels"
    assert labels.after == ("teacher-eighth-1",)
    assert student.after == ("teacher-eighth-1", labels.name)
    assert "--auto-labels" not in student.command
    assert "--min-probability" not in student.command
    assert student.command[student.command.index("--soft-labels") + 1] == str(tmp_path / labels.name)


def test_the_lists_are_nested_and_of_a_share_of_the_frames(tmp_path, monkeypatch):
    lists = {part: (self_training.LISTS / f"{part}.txt").read_text().split() for part in FRACTIONS}
    assert {part: len(names) for part, names in lists.items()} == {"eighth": 46, "quarter": 92}
    assert set(lists["eighth"]) < set(lists["quarter"])

    (tmp_path / "train").mkdir()
    for number in range(367):
        (tmp_path / "train" / f"{number:03d}.png").touch()
    monkeypatch.setattr(self_training, "LISTS", tmp_path / "lists")
    self_training.write_lists(tmp_path)
    drawn = {part: (tmp_path / "lists" / f"{part}.txt").read_text().split() for part in FRACTIONS}
    assert [len(names) for names in drawn.values()] == [46, 92]
    assert set(drawn["eighth"]) < set(drawn["quarter"])


def test_prepared_lists_share_no_frame(tmp_path):
    camvid, work = tmp_path / "camvid", tmp_path / "work"
    listed = [(self_training.LISTS / f"{part}.txt").read_text().split() for part in ("quarter", "drive")]
    names = sorted({name for names in listed for name in names} | {"another"})
    for split, stems in (("train", names), ("val", ["v"])):
        (camvid / split).mkdir(parents=True)
        for stem in stems:
            (camvid / split / f"{stem}.png").touch()
    self_training.prepare(camvid, work)
    folder = work / "data" / "quarter"
    labelled = [line.split("\t")[0] for line in (folder / "train.txt").read_text().splitlines()]
    unlabelled = (folder / "unlabelled.txt").read_text().splitlines()
    assert len(labelled) == 92
    assert unlabelled == [str(camvid / "train" / f"{name}.png") for name in names if name not in listed[0]]
    withheld = [line.split("\t")[0] for line in (folder / "test.txt").read_text().splitlines()]
    assert withheld == unlabelled


# ---- work -------------------------------------------------------------------------------------------------------


def test_a_training_that_left_a_checkpoint_is_resumed(tmp_path):
    training = Job("student", ("train", "--output", str(tmp_path / "student")))
    other = Job("labels", ("autolabel", "--output", str(tmp_path / "labels")))
    for job in (training, other):
        assert self_training.command_line_of(tmp_path, job) == [sys.executable, "-m", "hmsa_ext", *job.command]
        (tmp_path / job.name).mkdir()
        (tmp_path / job.name / "last.pt").touch()
    resumed = [sys.executable, "-m", "hmsa_ext", "train", "--resume", str(tmp_path / "student")]
    assert self_training.command_line_of(tmp_path, training) == resumed
    assert self_training.command_line_of(tmp_path, other)[3:] == list(other.command)


def test_jobs_run_once_and_after_those_that_they_read_from(tmp_path):
    (tmp_path / "in.json").write_text("[1]")
    names = [str(tmp_path / name) for name in ("in.json", "first.json", "second.json")]
    first = Job("first", (names[0], names[1]), module="json.tool")
    second = Job("second", (names[1], names[2]), ("first",), module="json.tool")
    self_training.run(tmp_path, [second, first])
    assert json.loads((tmp_path / "second.json").read_text()) == [1]
    assert json.loads((tmp_path / "done" / "second").read_text())["seconds"] >= 0
    (tmp_path / "second.json").unlink()
    self_training.run(tmp_path, [second, first])
    assert not (tmp_path / "second.json").exists()


def test_a_job_that_fails_is_not_done(tmp_path):
    job = Job("bad", (str(tmp_path / "nothing.json"),), module="json.tool")
    with pytest.raises(SystemExit, match="bad: exit status"):
        self_training.run(tmp_path, [job])
    assert not self_training.is_done(tmp_path, job)


# ---- tables -----------------------------------------------------------------------------------------------------


def write_results(work: Path, name: str, miou: float, steps: int = STEPS, car: float | None = 0.5) -> None:
    """The results of a run that are better at one scale, which must not be shown."""
    (work / name).mkdir(parents=True)
    content = {
        "combination": "attention", "miou": {"1.0": 0.9, "attention": miou}, "steps": steps, "seconds": 12.5,
        "iou": {"1.0": {"Sky": 0.9, "Car": 0.9}, "attention": {"Sky": miou, "Car": car}},
    }  # fmt: skip
    (work / name / "results.json").write_text(json.dumps(content))
    (work / "done").mkdir(exist_ok=True)
    (work / "done" / name).write_text(json.dumps({"seconds": 1.0}))


@pytest.fixture
def work(tmp_path):
    """Two teachers on 1/8 and three students; on 1/4 a teacher and a student of different seeds; soft labels."""
    for name, miou in (
        ("teacher-eighth-0", 0.4), ("again-eighth-0", 0.5), ("again-eighth-1", 0.54), ("student-eighth-0", 0.53),
        ("student-eighth-1", 0.55), ("student-eighth-2", 0.6), ("again-full-0", 0.7), ("again-quarter-2", 0.6),
        ("student-quarter-0", 0.5),
    ):  # fmt: skip
        write_results(tmp_path, name, miou)
    (tmp_path / "softlabels-eighth-0").mkdir()
    facts = {"pixels": 2_000_000, "bytes": dict(zip(PLANES, (10, 20, 40, 80), strict=True))}
    (tmp_path / "softlabels-eighth-0" / "soft.json").write_text(json.dumps(facts))
    (tmp_path / "done" / "softlabels-eighth-0").write_text(json.dumps({"seconds": 1.0}))
    return tmp_path


def cells(text: str, start: str) -> list[str]:
    """The cells of the first line of a table that begins so."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_pairs_by_seed_and_shows_what_is_there(work, capsys):
    assert self_training.main(["--work", str(work), "--table"]) == 0
    text = capsys.readouterr().out
    assert cells(text, "again-eighth")[:6] == ["again-eighth", "50.00", "54.00", "-", "52.00", "2.83"]
    student = ["student-eighth", "53.00", "55.00", "60.00", "56.00", "3.61", "again-eighth", "2"]
    assert cells(text, "student-eighth") == [*student, "+2.00", "+1.00", "+3.00"]
    assert cells(text, "again-quarter")[1:6] == ["-", "-", "60.00", "60.00", "-"]
    student = ["student-quarter", "50.00", "-", "-", "50.00", "-", "again-quarter", "0"]
    assert cells(text, "student-quarter") == [*student, "-", "-", "-"]
    assert cells(text, "teacher-eighth")[1:] == ["40.00", "-", "-", "40.00", "-", "", "", "", "", ""]
    assert cells(text, "Sky") == ["Sky", "40.00", "52.00", "+10.00", "56.00", "+2.00", "70.00"]
    assert "again-eighth (2 of 3 seeds)" in text
    missing = next(line for line in text.splitlines() if line.startswith("missing"))
    assert "teacher-eighth-2" in missing
    assert " student-eighth-2" not in missing


def test_a_class_without_a_value_counts_nowhere():
    scores = {"a": Score(50, {"Sky": 40, "Car": 60}, 1), "b": Score(60, {"Sky": 50}, 1)}
    (summary,) = summarise([Row("x", {0: "a", 1: "b"})], scores)
    assert summary["iou"] == {"Sky": 45}


def test_variants_are_compared_with_the_main_student():
    scores = {"student-eighth-0": Score(50, {"Sky": 1}, 1), "pooled-eighth-0": Score(49, {"Sky": 1}, 1)}
    summaries = summarise(self_training.variant_rows(), scores, among=self_training.table_rows())
    line = next(line for line in miou_table(summaries) if line.startswith("| pooled-eighth"))
    assert "student-eighth | 1 | -1.00 |" in line


def test_json_has_every_job_and_no_path(work, tmp_path):
    file = tmp_path / "out.json"
    assert self_training.main(["--work", str(work), "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    jobs = {job["name"]: job for job in content["jobs"]}
    assert list(jobs) == [job.name for job in self_training.grid(work)]
    assert jobs["teacher-eighth-0"]["seconds"] == 12.5
    assert jobs["teacher-eighth-0"]["iou"]["Sky"] == 40
    assert "--seed 0" in jobs["teacher-eighth-0"]["command"]
    assert set(content["missing"]) == {name for name, job in jobs.items() if not job["done"]}
    assert len(content["missing"]) == len(jobs) - 10
    assert content["machine"]["processor"]
    assert content["steps"] == STEPS
    assert "commit" in content
    expected = {"hard labels": 5, "hard labels and their probabilities": 25, "two classes and their probabilities": 75}
    assert content["soft_labels"] == {"softlabels-eighth-0": expected | {"19 float32 per pixel": 76e6}}
    assert content["labelled"] == {"eighth": 46, "quarter": 92, "drive": 62}
    rows = {row["row"]: row for row in content["rows"]}
    assert rows["student-eighth"]["difference"]["mean"] == pytest.approx(2)
    assert str(work) not in file.read_text()
    assert os.getcwd() not in file.read_text()


def test_a_run_of_other_steps_is_refused(work, capsys):
    write_results(work, "full-1", 0.9, steps=STEPS - 1)
    assert self_training.main(["--work", str(work), "--table"]) == 2
    assert f"is of {STEPS - 1} steps, expected {STEPS}" in capsys.readouterr().err


# ---- the small network ------------------------------------------------------------------------------------------


def test_the_small_network_takes_a_third_of_the_teacher_at_most():
    def flops(factory) -> int:
        network = build(factory, 11).eval()
        return count_flops(lambda: network(torch.zeros(1, 3, 360, 480), (0.5, 1.0)))

    assert 3 * flops(self_training.small) < flops(efficientnet_lite0_lraspp)


def test_the_small_network_takes_odd_sizes():
    network = build(self_training.SMALL_NETWORK, 4).eval()
    with torch.no_grad():
        outputs = network(torch.zeros(1, 3, 65, 47), (0.5, 1.0))
    assert outputs.fuse().shape == (1, 4, 65, 47)
    assert outputs.logits[0].shape[2:] == (9, 6)


# ---- soft labels ------------------------------------------------------------------------------------------------


def test_top_two_are_the_most_probable_classes():
    logits = np.log(np.array([0.1, 0.6, 0.3], np.float32))[:, None, None] + np.zeros((1, 2, 2), np.float32)
    first, second, p1, p2 = soft_labels.top_two(logits)
    assert (first == 1).all()
    assert (second == 2).all()
    assert (p1 == 153).all()
    assert np.abs(p2.astype(int) - 76.5).max() <= 0.5  # the nearest of two that are as near
    assert first.dtype == second.dtype == p1.dtype == p2.dtype == np.uint8


def write_planes(folder: Path, place: str, planes: list[np.ndarray]) -> None:
    for name, plane in zip(PLANES, planes, strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{place}.png").write_bytes(encode_png(plane))


@pytest.fixture
def soft(tmp_path):
    """A data set with one labelled image, and two of soft labels: road 150 / 255, car 50 / 255."""
    root, labels = tmp_path / "root", tmp_path / "soft"
    size = (100, 120)
    (root / "images").mkdir(parents=True)
    for name in ("a", "b", "c"):
        (root / "images" / f"{name}.png").write_bytes(encode_png(photo(*size)))
    (root / "a_label.png").write_bytes(encode_png(np.tile(np.array([0, 1], np.uint8), (size[0], size[1] // 2))))
    for split in ("train", "val"):
        (root / f"{split}.txt").write_text("images/a.png a_label.png\n")
    (root / "dataset.yaml").write_text(f"names: [{', '.join(CLASSES)}]\n")
    planes = [np.full(size, value, np.uint8) for value in (1, 2, 150, 50)]
    for name in ("b", "c"):
        write_planes(labels, name, planes)
    facts = {
        "classes": {"names": list(CLASSES)}, "bytes": {}, "pixels": 0,
        "images": {name: str(root / "images" / f"{name}.png") for name in ("b", "c")},
    }  # fmt: skip
    (labels / "soft.json").write_text(json.dumps(facts))
    return Soft(root=str(root), soft_labels=str(labels))


def test_the_second_class_is_drawn_as_often_as_it_is_probable(soft):
    images = soft.open("soft")
    share = np.mean([images[0].label == 2 for _ in range(10)])
    # 120,000 draws of probability 1/4 have a standard deviation of 0.00125.
    assert share == pytest.approx(0.25, abs=0.006)
    assert set(np.unique(images[1].label)) == {1, 2}


def test_the_gradient_of_the_draws_has_the_soft_labels_as_its_mean():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)

    def gradient(target: torch.Tensor) -> torch.Tensor:
        loss = -(target * logits.log_softmax(0)).sum()
        return torch.autograd.grad(loss, logits)[0]

    planes = [np.full((1, 40000), value, np.uint8) for value in (1, 2, 150, 50)]
    drawn = soft_labels.draw(planes, soft_labels.draw_rng(0, 0))
    shares = torch.from_numpy(np.bincount(drawn.ravel(), minlength=3) / drawn.size)
    one_hot = torch.eye(3, dtype=torch.float64)
    mean = sum(share * gradient(one_hot[label]) for label, share in enumerate(shares))
    # The share has a standard deviation of 0.0022.
    torch.testing.assert_close(mean, gradient(torch.tensor([0, 0.75, 0.25]).double()), atol=0.01, rtol=0)


def test_draws_repeat_between_runs_and_differ_between_readings_and_images(soft):
    first, again = soft.open("soft"), soft.open("soft")
    one, two = first[0].label, first[0].label
    assert np.array_equal(one, again[0].label)
    assert np.array_equal(two, again[0].label)
    assert not np.array_equal(one, two)
    assert not np.array_equal(one, first[1].label)


def test_certain_pixels_keep_their_class():
    planes = [np.full((50, 50), value, np.uint8) for value in (1, 2, 255, 0)]
    assert (soft_labels.draw(planes, soft_labels.draw_rng(3, 1)) == 1).all()


def test_an_index_counts_the_first_class_and_draws_nothing(soft):
    images, untouched = soft.open("soft"), soft.open("soft")
    assert (images.label(0) == 1).all()
    label, problems = images.inspect(0)
    assert (label == 1).all()
    assert not problems
    assert np.array_equal(images[0].label, untouched[0].label)


def test_training_takes_the_soft_images_as_further_ones(soft):
    assert soft.extra_split == "soft"
    assert Soft(root=soft.root).extra_split is None
    settings = DataSettings.of("bench.soft_labels:Soft", root=soft.root, soft_labels=soft.soft_labels)
    assert settings.extra_split == "soft"
    assert len(settings.open("train")) == 1
    assert len(soft.open("soft")) == 2
    assert len(soft.open("soft", length=1)) == 1
    with pytest.raises(DataError, match="soft_labels: got none"):
        Soft(root=soft.root).open("soft")


def test_soft_labels_that_do_not_fit_are_refused(soft):
    folder, classes = Path(soft.soft_labels), soft.open("train").classes
    other = dataclasses.replace(classes, names=("sky", "road", "tree"))
    with pytest.raises(DataError, match=r"has the classes sky, road, car"):
        SoftImages(folder, other)
    write_planes(folder, "b", [np.full((9, 9), value, np.uint8) for value in (1, 2, 150, 50)])
    write_planes(folder, "c", [np.full((100, 120), value, np.uint8) for value in (1, 7, 150, 50)])
    images = soft.open("soft")
    with pytest.raises(DataError, match="9x9 pixels"):
        images[0]
    with pytest.raises(DataError, match="classes below 3, got 7"):
        images[1]
    assert images.inspect(0)[0] is None
    assert "9x9 pixels" in images.inspect(0)[1][0]
    assert images.inspect(1)[0] is None
    facts = json.loads((folder / "soft.json").read_text())
    del facts["bytes"]
    (folder / "soft.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="not complete"):
        soft.open("soft")


def test_writing_goes_on_and_refuses_another_teacher(tmp_path, capsys):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(encode_png(photo(40, 64, number)))
    (tmp_path / "list.txt").write_text("0.png\n1.png\n")
    runs = [str(write_run(tmp_path / f"run{seed}", seed)) for seed in range(2)]
    output = tmp_path / "soft"
    flags = ["--camvid-list", f"@{tmp_path / 'list.txt'}", "--output", str(output)]
    assert soft_labels.main(["write", "--model", runs[0], *flags]) == 0
    text = capsys.readouterr().out
    assert "19 float32 per pixel" in text
    assert "3,187.4" in text
    first, second = (read_label(output / plane / "0.png") for plane in PLANES[:2])
    assert first.shape == (40, 64)
    assert (first != second).all()

    kept = output / "first" / "0.png"
    before = kept.stat().st_mtime_ns
    (output / "second" / "1.png").unlink()
    assert soft_labels.main(["write", "--model", runs[0], *flags]) == 0
    assert kept.stat().st_mtime_ns == before
    assert (output / "second" / "1.png").exists()
    sizes = soft_labels.read_facts(output)["bytes"]
    assert sizes["first"] == sum((output / "first" / f"{n}.png").stat().st_size for n in range(2))

    with pytest.raises(OutputError, match="differ in weights"):
        soft_labels.write(runs[1], [f"@{tmp_path / 'list.txt'}"], str(output))
