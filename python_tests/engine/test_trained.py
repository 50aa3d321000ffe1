"""Opening trained models: runs, checkpoints of any source and safetensors files, with their classes."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hmsa_ext import HmsaError, evaluate, models, settings, train
from hmsa_ext.data import ClassTable, Synthetic
from hmsa_ext.data.palette import distinct_colours
from hmsa_ext.data.sets import cityscapes
from hmsa_ext.engine import checkpoint
from hmsa_ext.engine.checkpoint import CheckpointError
from hmsa_ext.engine.settings import TrainSettings
from hmsa_ext.engine.trained import open_model, save_weights, weights_digest
from hmsa_ext.settings import SettingError

NAMES = Synthetic.classes.names
TWO_SCALES = models.Fusion("", "joint", train_scales=(0.5, 1.0), eval_scales=None)


class Head(nn.Module):
    """A network of one convolution per head, for MultiScale."""

    def __init__(self, num_classes: int, *, second: int = 0) -> None:
        super().__init__()
        self.feature_channels = 4
        self.trunk = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, num_classes, 1)
        self.second = nn.Conv2d(4, second or num_classes, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(images)
        return self.head(features), features


def fixed(num_classes: int) -> nn.Module:
    """Ignores the number of classes."""
    return Head(3)


def no_module(num_classes: int) -> int:
    return num_classes


def state(num_classes: int, network: Any = "hrnet_small_ocr") -> dict[str, Tensor]:
    torch.manual_seed(num_classes)
    return models.build(network, num_classes).state_dict()


def content(**changes: Any) -> dict[str, Any]:
    """A checkpoint of a run on synthetic scenes."""
    config = settings.to_dict(TrainSettings.of("synthetic"))
    return {
        "state_dict": state(len(NAMES)),
        "average": None,
        "config": config | changes.pop("config", {}),
        "class_names": list(NAMES),
        "classes": dataclasses.replace(Synthetic.classes, ids=tuple(range(5, 16))).to_dict(),
        "image_size": [128, 256],
    } | changes


def write(path: Path, content: dict[str, Any], *without: str) -> Path:
    torch.save({name: value for name, value in content.items() if name not in without}, path)
    return path


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("run") / "last.pt", content())


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of 19 classes as other programs write them."""
    weights = {f"module.{name}": value for name, value in state(19).items()}
    return write(tmp_path_factory.mktemp("other") / "published.pth", {"state_dict": weights, "epoch": 174})


# ---- our runs


def test_a_run_says_everything(tmp_path: Path, miniature: tuple[str, ...]) -> None:
    arguments = [*miniature, "--output", str(tmp_path / "run"), "--max-minutes", "1e-9", "--ema", "0.9"]
    assert train.main(arguments) == 0
    trained = open_model(tmp_path / "run")
    stored = checkpoint.load(tmp_path / "run")
    assert trained.path == tmp_path / "run" / "last.pt"
    assert trained.classes == Synthetic.classes
    assert trained.class_names == NAMES
    assert trained.num_classes == 11
    assert trained.classes_known
    assert trained.settings == stored["config"]
    assert trained.image_size == (64, 128)
    assert trained.network.name == "hrnet_small_ocr"
    assert all(torch.equal(value, stored["average"][name]) for name, value in trained.model.state_dict().items())
    assert len(trained.digest) == 64


def test_the_image_size_is_that_after_the_long_edge(tmp_path: Path, miniature: tuple[str, ...]) -> None:
    arguments = [*miniature, "--output", str(tmp_path / "run"), "--max-minutes", "1e-9", "--long-edge", "96"]
    assert train.main(arguments) == 0
    assert open_model(tmp_path / "run").image_size == (48, 96)


def test_a_resumed_run_of_an_earlier_version_gets_its_image_size(tmp_path: Path, miniature: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    assert train.main([*miniature, "--output", str(run), "--max-minutes", "1e-9"]) == 0
    write(run / "last.pt", checkpoint.load(run), "image_size")
    assert open_model(run).image_size is None
    assert train.main(["--resume", str(run), "--max-minutes", "1e-9"]) == 0
    assert open_model(run).image_size == (64, 128)


def test_colours_and_ids_are_those_of_the_checkpoint(run_file: Path) -> None:
    trained = open_model(run_file.parent)
    assert trained.classes.colours.tolist() == Synthetic.classes.colours.tolist()
    assert trained.classes.ids == tuple(range(5, 16))
    assert trained.image_size == (128, 256)


def test_an_older_checkpoint_has_the_colours_of_its_data_set_or_distinct_ones(tmp_path: Path) -> None:
    older = write(tmp_path / "older.pt", content(), "classes", "image_size")
    trained = open_model(older)
    assert trained.classes == Synthetic.classes
    assert trained.image_size is None
    names = [f"{name} of mine" for name in NAMES]
    other = write(tmp_path / "other.pt", content(class_names=names), "classes")
    assert open_model(other).classes == ClassTable(tuple(names), distinct_colours(11))


def test_the_data_set_of_a_run_need_not_be_there(tmp_path: Path) -> None:
    moved = write(tmp_path / "last.pt", content(config={"data": "absent_package:factory", "root": "/absent"}))
    assert open_model(moved).class_names == NAMES


@pytest.mark.parametrize("option", ["model", "trunk", "attention_head"])
def test_a_run_whose_network_cannot_be_imported_says_what_to_do(tmp_path: Path, option: str) -> None:
    path = write(tmp_path / "last.pt", content(config={option: "absent_package:factory"}))
    with pytest.raises(CheckpointError, match=r"network of .*last\.pt cannot be built here: .*absent_package.*network"):
        open_model(path)
    trained = open_model(path, models.hrnet_small_ocr)
    assert trained.class_names == NAMES
    assert trained.settings is not None
    assert trained.settings[option] == "absent_package:factory"
    assert trained.image_size == (128, 256)


# ---- files of other sources


def test_the_number_of_classes_follows_from_the_weights(published: Path, tmp_path: Path) -> None:
    trained = open_model(published, "hrnet_small_ocr")
    assert trained.num_classes == 19
    assert trained.class_names[:2] == ("class 0", "class 1")
    assert trained.classes.colours.tolist() == distinct_colours(19).tolist()
    assert not trained.classes_known
    assert trained.settings is trained.image_size is None
    assert trained.digest == weights_digest(trained.model)
    # One attention map per class has as many channels.
    by_class = models.build("hrnet_small_ocr", 6, attention_channels="classes").state_dict()
    path = write(tmp_path / "classes.pth", by_class)
    assert open_model(path, lambda n: models.build("hrnet_small_ocr", n, attention_channels="classes")).num_classes == 6


def test_a_network_is_a_name_a_path_or_a_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "trained_networks"
    monkeypatch.setitem(sys.modules, module, sys.modules[__name__])
    path = write(tmp_path / "head.pth", state(7, Head))
    assert open_model(path, Head).num_classes == open_model(path, f"{module}:Head").num_classes == 7


def test_classes_are_a_data_set_names_or_a_table(published: Path) -> None:
    assert open_model(published, "hrnet_small_ocr", classes="cityscapes").classes is cityscapes.CLASSES
    names = [f"thing {k}" for k in range(19)]
    trained = open_model(published, "hrnet_small_ocr", classes=names)
    assert trained.class_names == tuple(names)
    assert trained.classes_known
    table = ClassTable(tuple(names), distinct_colours(19), ids=tuple(range(1, 20)))
    assert open_model(published, "hrnet_small_ocr", 19, table).classes.ids == tuple(range(1, 20))


def two_numbers(num_classes: int) -> nn.Module:
    return Head(num_classes, second=num_classes)


@pytest.mark.parametrize(
    ("network", "weights", "message"),
    [
        (fixed, {}, "they fit any number"),
        (two_numbers, {"second": 5}, "they have 3 or 5"),
    ],
)
def test_a_number_of_classes_that_the_weights_do_not_tell_is_asked_for(
    tmp_path: Path, network: Any, weights: dict[str, int], message: str
) -> None:
    path = write(tmp_path / "head.pth", state(3, lambda n: Head(n, **weights)))
    with pytest.raises(SettingError, match=f"num_classes: got None, expected .* do not tell it: {message}"):
        open_model(path, network)
    if network is fixed:
        assert open_model(path, network, 3).num_classes == 3
        with pytest.raises(SettingError, match="num_classes: got 7, expected 3, as classes has"):
            open_model(path, network, 7, ["a", "b", "c"])
        run = write(tmp_path / "run.pth", content(state_dict=torch.load(path)))
        with pytest.raises(SettingError, match=r"num_classes: got 7, expected 11, as .*run\.pth has"):
            open_model(run, network, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"has no class_names, config: it is not one of ours; .*which network it is: network"),
        ({"network": "hrnet_small_ocr", "num_classes": 5}, "its weights are of 19 classes, not 5"),
        ({"network": "hrnet_small_ocr", "classes": "camvid"}, "its weights are of 19 classes, not 11"),
        ({"network": "hrnet_small_ocr", "classes": "folder"}, "classes: got 'folder', expected one of ade20k, bdd"),
        ({"network": "hrnet_small_ocr", "classes": "cityscapes", "num_classes": 5}, "num_classes: got 5, expected 19"),
        ({"network": "hrnet_small_ocr", "num_classes": 0}, "num_classes: got 0, expected a whole number above 0"),
        ({"network": "hrnet_small_ocr", "classes": []}, "classes: got .*, expected the name of a data set"),
        ({"network": "resnet"}, "network: got 'resnet', expected one of hrnet_small_ocr"),
        ({"network": "absent_package:factory"}, "network: .*there is no module absent_package"),
        ({"network": no_module}, "network: got 'no_module', expected a factory that returns a module, not int"),
        ({"network": nn.Conv2d(3, 3, 1)}, r"network: got 'Conv2d', expected a factory \(num_classes\) -> module, not"),
        ({"network": Head}, "published.pth: not one parameter fits this model"),
    ],
)
def test_what_does_not_fit_is_explained(published: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(HmsaError, match=message):
        open_model(published, **arguments)


def test_a_run_of_other_classes_is_refused(run_file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has 11 classes \(road, .*but classes asks for 19 \(road, sidewalk"):
        open_model(run_file, classes="cityscapes")
    with pytest.raises(CheckpointError, match="has 11 classes, --num-classes is 7"):
        open_model(run_file, num_classes=7)
    grey = ClassTable(NAMES, distinct_colours(11))
    assert open_model(run_file, classes=grey).classes == grey


def test_an_unreadable_file_is_not_said_to_lack_a_network(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="cannot read") as caught:
        open_model(tmp_path)
    assert "network" not in str(caught.value)


def test_a_folder_of_runs_names_them(run_file: Path) -> None:
    with pytest.raises(CheckpointError, match=f"no file .*last.pt; expected .*; these are runs: .*{run_file.parent}"):
        open_model(run_file.parents[1])
    with pytest.raises(CheckpointError, match="no file /absent"):
        open_model("/absent")


def test_a_config_of_another_program_is_not_taken_for_ours(tmp_path: Path) -> None:
    weights = {"state_dict": state(5), "class_names": "abcde", "config": {"model": "x"}, "classes": 5}
    path = write(tmp_path / "other.pth", weights)
    with pytest.raises(CheckpointError, match="a config or class_names of another form: it is not one of ours"):
        open_model(path)
    assert open_model(path, "hrnet_small_ocr").class_names[0] == "class 0"


# ---- safetensors


def test_saved_weights_open_as_the_model_that_they_are_of(run_file: Path, tmp_path: Path) -> None:
    trained = open_model(run_file)
    trained.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    file = tmp_path / "weights.safetensors"
    save_weights(trained, file)
    again = open_model(file)
    assert again.digest == trained.digest
    assert again.classes == trained.classes
    assert again.classes.ids == trained.classes.ids
    assert again.image_size == trained.image_size
    assert again.network == trained.network
    assert again.settings is not None
    assert trained.settings is not None
    assert {"eval_scales", "flip"} <= again.settings.keys()
    assert again.settings["eval_scales"] == trained.settings["eval_scales"]
    # Folders and files of the machine that trained are nobody else's business.
    assert not {"root", "cache", "weights", "output"} & again.settings.keys()
    assert file.stat().st_size < run_file.stat().st_size * 1.1
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]
    save_weights(again, file)
    assert open_model(file).digest == trained.digest


def test_evaluate_takes_saved_weights(run_file: Path, tmp_path: Path) -> None:
    save_weights(open_model(run_file), tmp_path / "weights.safetensors")
    arguments = ["--size", "64x128", "--val-length", "1", "--device", "cpu", "--threads", "1", "--json"]
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, path in zip((run_file, tmp_path / "weights.safetensors"), paths, strict=True):
        assert evaluate.main([str(file), *arguments, str(path)]) == 0
    one, other = (json.loads(path.read_text())["confusion_matrix"] for path in paths)
    assert one == other


def test_published_weights_become_a_file_that_says_everything(published: Path, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_weights(open_model(published, "hrnet_small_ocr", classes="cityscapes"), file)
    trained = open_model(file)
    assert trained.classes == cityscapes.CLASSES
    assert trained.classes.ids == cityscapes.CLASSES.ids
    save_weights(open_model(published, "hrnet_small_ocr"), file)
    assert not open_model(file).classes_known
    assert open_model(file, classes="cityscapes").classes_known


def test_a_network_without_a_name_is_asked_for_again(published: Path, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"

    def local(num_classes: int) -> nn.Module:
        return models.hrnet_small_ocr(num_classes)

    save_weights(open_model(published, local, classes="cityscapes"), file)
    with pytest.raises(CheckpointError, match=r"does not name its network; .*say which network it is"):
        open_model(file)
    assert open_model(file, local).classes == cityscapes.CLASSES


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    def tied(num_classes: int) -> nn.Module:
        network = Head(num_classes)
        network.second.weight = network.head.weight
        return network

    trained = open_model(write(tmp_path / "head.pth", state(3, tied)), tied)
    save_weights(trained, tmp_path / "w.safetensors")
    assert open_model(tmp_path / "w.safetensors", tied).digest == trained.digest


def test_a_safetensors_file_of_another_source_needs_the_network(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "other.safetensors"
    safetensors.save_file(state(5), path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has no class_names, config: .*say which network it is"):
        open_model(path)
    assert open_model(path, "hrnet_small_ocr").num_classes == 5


def test_only_safetensors_files_are_written(run_file: Path, tmp_path: Path) -> None:
    trained = open_model(run_file)
    with pytest.raises(HmsaError, match=r"path: expected a name that ends in \.safetensors, got .*w\.pt"):
        save_weights(trained, tmp_path / "w.pt")
    (tmp_path / "file").write_text("")
    with pytest.raises(HmsaError, match=r"path: .*file is a file, or lies in one; expected a folder"):
        save_weights(trained, tmp_path / "file" / "w.safetensors")


def test_a_digest_tells_weights_apart(run_file: Path) -> None:
    model = open_model(run_file).model
    before = weights_digest(model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    assert weights_digest(model) != before
    assert weights_digest(Head(2)) != weights_digest(Head(2))


def test_another_fusion_needs_the_attention_that_the_weights_have(tmp_path: Path) -> None:
    def weights(fusion: str, scales: tuple[float, ...] | None = None) -> dict[str, Tensor]:
        return models.build("hrnet_small_ocr", len(NAMES), fusion=fusion, train_scales=scales).state_dict()

    single = write(tmp_path / "single.pt", content(state_dict=weights("single"), config={"fusion": "single"}))
    with pytest.raises(CheckpointError, match="fusion explicit needs an attention that was trained for it"):
        open_model(single, fusion="explicit")  # and nothing is said of scales, which nobody gave
    # A file of another source says no scales: they are those of the fusion.
    other = write(tmp_path / "explicit.pt", weights("explicit"))
    opened = open_model(other, "hrnet_small_ocr", fusion="explicit")
    assert opened.network.train_scales == (0.5, 1.0, 2.0)
    # A run says them.
    config = {"fusion": "python_tests.engine.test_trained:TWO_SCALES"}
    two = write(tmp_path / "two.pt", content(state_dict=weights("explicit", (0.5, 1.0)), config=config))
    assert open_model(two, fusion="explicit").network.train_scales == (0.5, 1.0)
