"""Data sets as declarations: names, options, functions and classes of others in place of a name."""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import pytest
import torch

from hmsa_ext import data, settings
from hmsa_ext.data.commands import flags_of_others, required_data
from hmsa_ext.settings import POSITIVE, Flag, SettingError

from .picture_sets import Blocks
from .pictures import write, write_image


@dataclasses.dataclass(frozen=True)
class Mine:
    """A data set in another package."""

    splits: ClassVar = ("train", "val")

    size: Annotated[int, POSITIVE, Flag("block-size")] = 48
    """Height of the images."""

    def open(self, split: str, *, length: int | None = None) -> data.Dataset:
        return Blocks(length or 7, size=(self.size, 64))


def stripes(split: str, *, height: int = 48, kind: Literal["wide", "narrow"] = "wide", need: str) -> data.Dataset:
    """Blocks by a function."""
    return Blocks(9, size=(height, 64))


def counted(split: str, length: int | None = None) -> data.Dataset:
    return Blocks(length or 5)


@dataclasses.dataclass(frozen=True)
class Run:
    """Settings of several packages, as training has them."""

    images: data.DataSettings = dataclasses.field(default_factory=data.DataSettings)
    sampling: data.Sampling = dataclasses.field(default_factory=data.Sampling)
    crops: data.Augment = dataclasses.field(default_factory=data.Augment)


def test_every_module_in_the_folder_of_sets_is_a_data_set():
    folder = Path(data.__file__).parent / "sets"
    assert set(data.NAMES) == {path.stem for path in folder.glob("*.py")} - {"__init__"}
    for name in data.NAMES:
        kind = data.source_type(name)
        assert isinstance(kind(), data.Source)
        assert all(option.help for option in settings.options(data.DataSettings.of(name)))


def test_options_of_a_data_set_have_flat_names_and_come_back_from_plain_values():
    chosen = data.DataSettings.of("cityscapes", root="/x", fold=2, extra="autolabelled", coarse_classes=["bus", 15])
    plain = settings.to_dict(chosen)
    assert plain["data"] == "cityscapes"
    assert plain["fold"] == 2
    assert plain["coarse_classes"] == ["bus", "15"]
    assert settings.replace(data.DataSettings.of("cityscapes"), plain) == chosen
    assert settings.to_dict(data.DataSettings.of("mapillary"))["vistas_version"] == "1.2"


def test_flat_settings_reach_data_sampling_and_crops():
    changes = {"fold": "1", "crop": "64x96", "sampling_tile": 32, "sampling_weights": "car:2", "scale_range": "1,2"}
    run = settings.replace(Run(data.DataSettings.of("kitti")), changes)
    assert run.images.source.fold == 1
    assert run.crops.crop == (64, 96)
    assert run.crops.scale == (1.0, 2.0)
    assert run.sampling.tile == 32
    assert run.sampling.weights == {"car": 2.0}
    with pytest.raises(SettingError, match=r"fold: got 12, expected a whole number from 0 to 9"):
        settings.replace(run, {"fold": 12})


def test_names_and_options_that_do_not_exist_are_named():
    with pytest.raises(SettingError, match=r"data: got 'cityscape', expected one of ade20k, .*package\.module:object"):
        data.DataSettings.of("cityscape")
    with pytest.raises(SettingError, match=r"data: got 'no\.such:thing', expected .*there is no module no"):
        data.DataSettings.of("no.such:thing")
    with pytest.raises(SettingError, match="source: got 'Kitti', expected Camvid"):
        data.DataSettings("camvid", data.DataSettings.of("kitti").source)
    with pytest.raises(data.DataError, match="height: Mine has no such option"):
        data.build(Mine, "train", height=3)


@pytest.mark.parametrize("source", [Mine, f"{__name__}:Mine"])
def test_a_class_of_another_package_is_a_data_set(source):
    dataset = data.build(source, "train", length=3, size=56)
    assert len(dataset) == 3
    assert dataset[0].label.shape == (56, 64)
    chosen = settings.replace(Run(data.DataSettings.of(source)), {"block_size": "64"})
    assert chosen.images.open("val")[0].label.shape == (64, 64)
    assert settings.to_dict(chosen)["data"] == f"{__name__}:Mine"


@pytest.mark.parametrize("source", [stripes, f"{__name__}:stripes"])
def test_a_function_of_another_package_is_a_data_set(source):
    dataset = data.build(source, "train", length=4, height=56, need="x")
    assert len(dataset) == 4
    assert dataset[3].label.shape[0] == 56
    assert np.array_equal(dataset.label(2), Blocks(size=(56, 64)).label(2))
    with pytest.raises(IndexError, match=r"expected 0\.\.3, got 4"):
        dataset[4]
    names = {option.name for option in settings.options(data.DataSettings.of(source))}
    assert {"height", "kind", "need", "length"} <= names
    with pytest.raises(data.DataError, match="need: stripes needs a value"):
        data.build(source, "train")
    with pytest.raises(data.DataError, match="kind: got 'tall', expected one of wide, narrow"):
        data.build(source, "train", kind="tall", need="x")
    assert data.source_type(source) is data.source_type(stripes)


def test_a_function_may_cut_to_a_length_itself_and_a_class_of_data_sets_is_a_function():
    assert len(data.build(counted, "train", length=3)) == 3
    scenes = data.build(data.Synthetic, "val", length=2, size=(64, 96))
    assert scenes[1].label.shape == (64, 96)
    with pytest.raises(SettingError, match=r"data: got .*, expected a function of"):
        data.source_type(lambda *arguments: None)


def no_data_set(split):
    return None


def test_a_function_that_makes_no_data_set_is_named():
    with pytest.raises(data.DataError, match=r"data: no_data_set\('val'\) gave None; expected a Dataset"):
        data.DataSettings.of(no_data_set).open("val")
    with pytest.raises(SettingError, match="data: got 'int', expected a function of"):
        data.DataSettings.of("builtins:int")


def test_a_training_set_of_a_foreign_data_set_is_opened_from_settings():
    chosen = data.DataSettings.of(Mine)
    training, reason = data.open_training(chosen, data.Sampling(), data.Augment((16, 24)), seed=0, quiet=True)
    assert len(training.index) == 7
    assert reason == "as set"
    fitted, reason = data.open_training(chosen, data.Sampling(), data.Augment(), seed=0, quiet=True)
    assert fitted.augment.crop == (32, 64)
    assert "the median image is 56x64" in reason
    assert fitted.index.tile == 8


def test_a_root_is_absolute_and_a_missing_one_says_relative_to_which_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    chosen = data.DataSettings.of("camvid", root="absent/set")
    assert settings.to_dict(chosen)["root"] == f"{tmp_path}/here/absent/set"
    with pytest.raises(data.DataError, match=rf"root: no such folder {tmp_path}/here/absent/set, which is absent/set "
                                             rf"from the current folder {tmp_path}/here"):  # fmt: skip
        chosen.open("train")
    for split in ("train", "trainannot"):
        write_image(tmp_path / f"set/{split}/a.png", (4, 6))
    write(tmp_path / "set/trainannot/a.png", np.zeros((4, 6), np.uint8))
    found = data.DataSettings.of("camvid", root="../set")
    monkeypatch.chdir("/")
    assert len(found.open("train")) == 1


def test_extra_images_are_those_that_the_data_set_names():
    assert data.DataSettings.of("cityscapes").extra_split is None
    assert data.DataSettings.of("cityscapes", extra="coarse").extra_split == "train_extra"
    assert not data.DataSettings.of("camvid").has_extra
    assert data.DataSettings.of("camvid").open_extra(data.build("synthetic", "val", length=1)) == []


def test_the_cache_is_a_folder_the_users_own_or_none(tmp_path, monkeypatch):
    monkeypatch.setenv("HMSA_CACHE", str(tmp_path))
    assert data.DataSettings().cache_path == tmp_path
    assert data.DataSettings(cache="none").cache_path is None
    assert data.DataSettings(cache="/x").cache_path == Path("/x")


def test_the_recipe_of_the_scenes_holds_the_settings_of_the_main_job():
    assert data.recipe("synthetic")["crop"] == (112, 224)
    assert data.recipe("synthetic")["epochs"] == 4
    assert data.recipe("folder") == {}


def test_commands_about_data_know_flags_of_other_data_sets():
    text = flags_of_others("camvid")
    assert text["fold"] == "camvid has no such option; cityscapes, kitti have it"
    assert text["description"] == "camvid has no such option; folder has it"
    assert "root" not in text
    assert required_data(["--data", "kitti"], "scan") == "kitti"
    assert required_data(["--help"], "scan") == "folder"


def double(batch: data.Batch) -> data.Batch:
    return data.Batch(batch.images * 2, batch.labels, batch.names)


@pytest.mark.parametrize("hook", [double, f"{__name__}:double"])
def test_a_hook_changes_a_batch_after_the_crop(hook):
    augment = data.Augment((16, 16), batch_hook=hook)
    assert settings.to_dict(augment)["batch_hook"] == f"{__name__}:double"
    training = data.prepare(Blocks(), augment, seed=1, quiet=True)
    batch = data.cut(next(iter(data.training_loader(training, batch_size=2, epoch=0))))
    assert (augment.change(batch).images == batch.images * 2).all()
    assert data.Augment((16, 16)).change(batch) is batch


def test_a_hook_that_is_none_is_named():
    with pytest.raises(SettingError, match=r"batch_hook: got 'double', expected package\.module:function"):
        data.Augment(batch_hook="double")
    batch = data.Batch(torch.zeros(1), torch.zeros(1), ["a"])
    with pytest.raises(SettingError, match=r"batch_hook: .* has no 'gone'"):
        data.Augment(batch_hook=f"{__name__}:gone").change(batch)
    with pytest.raises(SettingError, match=r"batch_hook: .*a function that returns a Batch, not None"):
        data.Augment(batch_hook=lambda batch: None).change(batch)
