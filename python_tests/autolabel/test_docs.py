"""The commands, the Python, the options and the figures of docs/autolabel.md work and are as printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from hmsa_ext import __main__ as program
from hmsa_ext import settings
from hmsa_ext.autolabel.advice import Advice
from hmsa_ext.autolabel.exporting import Export
from hmsa_ext.autolabel.importing import Import
from hmsa_ext.autolabel.label import SHOWN, AutoLabel
from hmsa_ext.autolabel.merge import Merge
from hmsa_ext.autolabel.report import ReportSettings
from hmsa_ext.data.automatic.manifest import manifest_files, read_manifest
from hmsa_ext.data.automatic.trust import Trust
from hmsa_ext.engine.settings import TrainSettings, read_file
from hmsa_ext.predict import is_shown
from python_tests.autolabel.scenes import FLAGS, NAMES, write_scenes
from python_tests.data.pictures import decoded, write, write_image

PAGE = Path(__file__).parents[2] / "docs" / "autolabel.md"
LENGTH = ("--iterations", "2", "--eval-scales", "0.5,1")
CITY = "ulm"


def section(name: str) -> str:
    """The part of the page below a heading of the second level."""
    found = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert found is not None, name
    return found[1]


def commands(name: str) -> list[list[str]]:
    """The commands in the bash blocks of a section, word by word."""
    found = re.findall(r"^```bash\n(.*?)^```$", section(name), re.M | re.S)
    lines = "".join(found).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder of all tests here, with MINE and PHOTOS."""
    folder = tmp_path_factory.mktemp("docs")
    write_scenes(folder, train=6)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HMSA_CACHE", str(folder / "cache"))
        yield folder
    torch.set_num_threads(threads)


def run(words: list[str]) -> None:
    """Runs a command of the page as printed, but for three things.

    Trainings are short, on a small network without ImageNet weights; the flags of the page for these are replaced. What
    torchrun would start eight times is started once, without it. All commands run on the CPU.
    """
    if words[0] == "cp":
        subprocess.run(words, check=True)
        return
    if words[0] == "torchrun":
        assert words[1:5] == ["--nproc-per-node", "8", "-m", "hmsa_ext.autolabel"]
        words = ["hmsa", "autolabel", *words[5:]]
    assert words[0] == "hmsa", words
    arguments = words[1:]
    if arguments[0] == "train":
        for replaced in (["--model", "efficientnet_lite0_lraspp"], ["--weights", "imagenet"]):
            place = arguments.index(replaced[0]) if replaced[0] in arguments else None
            if place is not None and arguments[place : place + 2] == replaced:
                del arguments[place : place + 2]
        arguments += [*FLAGS, *LENGTH]
    elif arguments[0] == "evaluate" or (arguments[0] == "autolabel" and "--model" in arguments):
        arguments += ["--device", "cpu", "--threads", "1"]
    assert program.main(arguments) == 0, words


def paint_over(annotations: Path) -> None:
    """What somebody does in a tool: the first label of each image becomes another class."""
    content = json.loads(annotations.read_text(encoding="utf-8"))
    first = {row["image_id"]: row for row in reversed(content["annotations"])}
    ids = [row["id"] for row in content["categories"]]
    for row in first.values():
        row["category_id"] = next(number for number in ids if number != row["category_id"])
    annotations.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="module")
def looped(here: Path) -> Path:
    """The folder after all commands of the loop."""
    for words in commands("The loop"):
        run(words)
        if words[2:3] == ["export"]:
            paint_over(here / "REVIEW" / "annotations" / "instances_default.json")
    return here


def trained(run_folder: Path) -> TrainSettings:
    """The settings of a finished run."""
    assert (run_folder / "results.json").is_file()
    return TrainSettings.read(read_file(run_folder / "config.yaml", "config"))


def test_the_loop_as_printed_goes_from_masks_to_a_second_student(looped: Path) -> None:
    assert len(read_manifest("AUTO").records) == 4
    assert len(read_manifest("CHECK").records) == 2
    assert Path("report.png").is_file()
    corrected = sorted(path.relative_to("AUTO") for path in Path("AUTO/corrected").rglob("*.png"))
    assert len(corrected) == 4
    for path in corrected:
        assert (Path("AUTO2") / path).read_bytes() == (Path("AUTO") / path).read_bytes()
    assert trained(looped / "runs/teacher").data.auto_labels is None
    student, second = trained(looped / "runs/student"), trained(looped / "runs/student2")
    assert student.data.auto_labels == str(looped / "AUTO")
    assert student.data.trust == Trust(
        class_threshold={"background": 0.6, "road": 0.8}, drop_classes=("car",)
    )  # fmt: skip
    assert second.data.auto_labels == str(looped / "AUTO2")
    assert student.sampling.extra_crops == second.sampling.extra_crops == "by_class"
    assert student.model.weights == "runs/teacher/last.pt"
    assert second.model.weights == "runs/student/last.pt"
    digests = [read_manifest(folder).made["weights_sha256"] for folder in ("AUTO", "CHECK", "AUTO2")]
    assert digests[0] == digests[1] != digests[2], "the second folder is the student's"


def test_the_flags_to_copy_are_as_the_report_prints_them_and_are_used_as_printed() -> None:
    (shown,) = re.findall(r"^    (--class-threshold .*)$", section("The loop"), re.M)
    none = np.zeros(len(NAMES), np.int64)
    advice = Advice(0.95, none, {"background": 0.6, "road": 0.8}, {"car": "never so precise"}, none)
    assert advice.flags() == shown
    students = [words for words in commands("The loop") if "AUTO" in words and "--class-threshold" in words]
    assert [words[1] for words in students] == ["data", "train"]
    for words in students:
        assert set(shown.split()) <= set(words)


def test_machines_that_share_the_work_as_printed_give_one_manifest(looped: Path) -> None:
    for words in commands("Several machines"):
        run(words)
    assert [file.name for file in manifest_files(looped / "SHARED")] == ["manifest.json"]
    alone = read_manifest("AUTO")
    for folder in ("SHARED", "GPUS"):
        together = read_manifest(folder)
        assert together.records.keys() == alone.records.keys()
        np.testing.assert_array_equal(together.histogram, alone.histogram)


def test_the_python_of_the_page_joins_both(looped: Path) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", section("In Python"), re.M | re.S)
    names: dict = {}
    exec(block, names)
    assert (len(names["training"].index), len(names["training"].dataset)) == (6, 6 + 4)
    assert names["found"].agreement.images == 2


@pytest.fixture(scope="module")
def city(here: Path) -> Path:
    """CITYSCAPES with tiny images: fine labels of train and val, coarse ones of the extra images."""
    root = here / "CITYSCAPES"
    for split, kind in (("train", "gtFine"), ("val", "gtFine"), ("train_extra", "gtCoarse")):
        for frame in range(8 if split == "train" else 4):  # enough for a crop of each class in an epoch
            name = f"{CITY}_000000_{frame:06d}"
            write_image(root / "leftImg8bit" / split / CITY / f"{name}_leftImg8bit.png", (64, 96), frame)
            ids = (7, 11, 26, 0) if kind == "gtCoarse" else (7, 11, 0, 26)
            label = np.resize(np.repeat(np.array(ids, np.uint8), 8), (64, 96))
            write(root / kind / split / CITY / f"{name}_{kind}_labelIds.png", label)
    return root


def learn(labels: Path, coarse: Path) -> None:
    """Labels as of a teacher that knows the coarse ones and is sure of them; one of two steps is sure of nothing."""
    for place in read_manifest(labels).records:
        name = place.replace("_leftImg8bit", "_gtCoarse_labelIds")
        ids = decoded(coarse / f"{name}.png", cv2.IMREAD_UNCHANGED)
        write(labels / f"{place}.png", np.where(ids == 0, np.uint8(7), ids))
        write(labels / f"{place}_prob.png", np.full(ids.shape, 250, np.uint8))


def test_cityscapes_as_printed(here: Path, city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = city / "autolabelled" / "train_extra"
    for words in commands("Cityscapes"):
        if "--extra" in words:
            learn(labels, city / "gtCoarse" / "train_extra")
        run(words)
    output = capsys.readouterr().out
    assert "Compared with CITYSCAPES/gtCoarse/train_extra: 4 images of 4" in output
    student = trained(here / "runs/city-student")
    assert student.data.trust == Trust(min_probability=0.9, coarse_use="bounds")
    assert student.data.source.region_of_interest
    names = {path.name for path in (labels / CITY).iterdir()}
    assert names == {f"{CITY}_000000_{k:06d}_leftImg8bit{end}.png" for k in range(4) for end in ("", "_prob")}
    assert read_manifest(labels).classes.ids is not None


def test_coarse_labels_of_a_folder_of_ones_own(looped: Path) -> None:
    given = re.findall(r"`(--auto-labels AUTO --coarse-labels FOLDER [^`]+)`", section("Cityscapes"))
    assert len(given) == 1
    for path in Path("AUTO/labels").rglob("*.png"):
        copy = Path("FOLDER") / path.relative_to("AUTO/labels")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    next(Path("FOLDER").rglob("*.png")).unlink()  # a photo may lack one
    run(["hmsa", "data", "scan", "--data", "folder", "--root", "MINE", *given[0].split()])


# ---- options, files, figures ------------------------------------------------------------------------------------


def flags_in_tables(text: str) -> set[str]:
    """The flags in the first columns of the tables of a text."""
    cells = re.findall(r"^\| ((?:[^|\\]|\\.)+) \|", text, re.M)
    return {flag for cell in cells for flag in re.findall(r"--([a-z][\w-]*)", cell)}


def flags_of(chosen: object) -> set[str]:
    """The flags that stand for some settings."""
    return {option.flag for option in settings.options(chosen) if option.positional is None}


def test_the_tables_name_every_option_and_no_other() -> None:
    begins = r"^(?=Labelling, |`hmsa autolabel report OUT`:|`hmsa autolabel export OUT` and)"
    trust, label, report, review = map(flags_in_tables, re.split(begins, section("Options"), flags=re.M))
    own = {"auto-labels", "auto-images", "coarse-labels", "extra-crops", "extra-classes"}
    assert trust == {name.replace("_", "-") for name in vars(Trust())} | own
    shown = {
        option.flag
        for option in settings.options(AutoLabel())
        if option.positional is None
        and (option.name in SHOWN if option.path[0] == "pictures" else is_shown(option))
    }  # fmt: skip
    assert label == shown
    assert report == flags_of(ReportSettings())
    assert review == flags_of(Export()) | flags_of(Import())
    assert flags_of(Merge()) == set()


def test_the_table_of_the_manifest_names_every_key(looped: Path) -> None:
    written = json.loads((looped / "AUTO" / "manifest.json").read_text(encoding="utf-8"))
    table = section("Files").partition("| key of the manifest |")[2]
    rows = {
        tuple(re.findall(r"`(\w+)`", key)): text for key, text in re.findall(r"^\| (`[^|]+) \| (.*) \|$", table, re.M)
    }
    assert {key for keys in rows for key in keys} == written.keys()
    assert set(re.findall(r"`(\w+)`", rows["made",])) == written["made"].keys()
    assert set(re.findall(r"`(\w+)`", rows["classes",])) == written["classes"][0].keys()
    assert set(re.findall(r"`(\w+)`", rows["labelled",])) == next(iter(written["labelled"].values())).keys()
    assert (written["ignored"], written["untouched"]) == (255, 254)
    assert [row["name"] for row in written["classes"]] == list(NAMES)


def test_the_files_of_the_page_are_those_that_are_there(looped: Path) -> None:
    named = re.findall(r"^\| `AUTO/([\w]+)/PLACE.png` \|", section("Files"), re.M)
    assert {*named, "manifest.json"} == set(os.listdir(looped / "AUTO"))


def test_the_sizes_of_soft_and_hard_labels_are_what_their_products_give() -> None:
    found = re.findall(r"([\d* ]+?) = ([\d.]+) ([TG])B", section("Why the labels are hard"))
    assert len(found) == 2
    for product, size, unit in found:
        value = np.prod([int(factor) for factor in product.split("*")], dtype=float)
        assert float(size) == pytest.approx(value / {"T": 1e12, "G": 1e9}[unit], rel=0.02)
