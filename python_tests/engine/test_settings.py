"""The settings of a training: where values come from, and what a bad one says."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hmsa_ext import HmsaError, models, settings, train
from hmsa_ext.data import NAMES
from hmsa_ext.engine.settings import TrainSettings, unnamed_parts
from hmsa_ext.settings import SettingError


def parse(*arguments: str) -> TrainSettings:
    return train.parse(list(arguments), prog="test").training


def test_no_arguments_give_the_defaults_with_the_recipe_of_the_synthetic_scenes() -> None:
    assert parse() == TrainSettings.of("synthetic")
    assert parse().crops.crop == (112, 224)


def test_data_of_ones_own_have_no_recipe() -> None:
    own = parse("--data", "folder", "--root", "x")
    assert (own.crops.crop, own.optimisation.epochs) == (None, None)
    assert own.crops.scale is None
    assert own.crops.zoom == (0.5, 2.0)


@pytest.mark.parametrize("data", NAMES)
def test_every_option_has_documentation_and_a_flag(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--data", data, "--help")
    page = capsys.readouterr().out
    for option in settings.options(TrainSettings.of(data)):
        assert option.help.endswith("."), option.name
        assert f"--{option.flag}" in page


def test_option_names_are_unique() -> None:
    for data in NAMES:
        names = [option.name for option in settings.options(train.Train(training=TrainSettings.of(data)))]
        assert len(set(names)) == len(names)


def test_flags_are_converted_to_the_types_of_the_fields() -> None:
    found = parse("--crop", "64x96", "--train-scales", "1,0.5,0.25", "--lr", "1e-3", "--epochs", "3", "--no-mirror")
    assert found.crops.crop == (64, 96)
    assert found.model.scales == (0.25, 0.5, 1.0)
    assert found.optimisation.lr == 0.001
    assert found.optimisation.epochs == 3
    assert found.crops.flip is False


def test_ranges_names_and_weights_are_read_from_text_and_from_yaml(tmp_path: Path) -> None:
    flags = ("--blur", "0.15,1.3", "--sampling-weights", "Bicyclist:2, Sky:0", "--sampling-epochs", "7")
    extra = ("--data", "cityscapes", "--root", str(tmp_path), "--extra", "coarse", "--extra-classes", "bus, train")
    found = parse(*flags, *extra)
    assert found.crops.blur == (0.15, 1.3)
    assert found.sampling.weights == {"Bicyclist": 2.0, "Sky": 0.0}
    assert found.sampling.epochs == 7
    assert found.sampling.extra_classes == ("bus", "train")
    found.save(tmp_path / "config.yaml")
    assert parse("--config", str(tmp_path / "config.yaml")) == found
    assert parse("--blur", "0.5").crops.blur == (0.5, 0.5)


def test_flags_override_the_file_which_overrides_defaults(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("lr: 1e-4\nepochs: 7\ncrop: [64, 64]\n")
    found = parse("--config", str(file), "--epochs", "8")
    assert (found.optimisation.lr, found.optimisation.epochs, found.crops.crop) == (1e-4, 8, (64, 64))
    assert found.optimisation.batch_size == TrainSettings().optimisation.batch_size


def test_a_saved_configuration_reads_back_equal(tmp_path: Path) -> None:
    found = parse("--crop", "64x96", "--iterations", "5", "--eval-scales", "0.5")
    found.save(tmp_path / "config.yaml")
    assert TrainSettings.read(yaml.safe_load((tmp_path / "config.yaml").read_text())) == found


def test_parts_that_files_cannot_name_are_found() -> None:
    defaults = TrainSettings.of("synthetic")
    assert unnamed_parts(defaults) == {}
    assert unnamed_parts(settings.replace(defaults, {"model": models.build})) == {}
    unnamed: list[Callable[..., object]] = [lambda classes: models.build("hrnet_small_ocr", classes)]
    unnamed.append(functools.partial(models.build, "hrnet_small_ocr"))
    for part in unnamed:
        changed = settings.replace(defaults, {"model": part, "batch_hook": part})
        assert list(unnamed_parts(changed)) == ["batch_hook", "model"]


def test_a_configuration_of_the_version_before_is_read() -> None:
    recipe = Path(__file__).parents[2] / "docs" / "camvid" / "recipe.yaml"
    found = parse("--config", str(recipe), "--root", "x")
    assert (found.data.name, found.crops.crop, found.sampling.kind) == ("camvid", (192, 256), "class_uniform")
    # That version wrote the options of every data set into every file.
    with pytest.raises(HmsaError, match=r"fold: .*(kitti|cityscapes)"):
        TrainSettings.read({"data": "camvid", "fold": 2})
    assert TrainSettings.read({"data": "camvid", "fold": 0, "extra": "none", "version": None}).data.name == "camvid"
    # It wrote null where a data set decides, and into checkpoints which run was resumed.
    main_job = {"data": "synthetic", "size": None, "root": None, "output": None, "resume": None}
    assert TrainSettings.read(main_job) == TrainSettings.of("synthetic")


def test_a_name_with_two_numbers_is_refused() -> None:
    with pytest.raises(HmsaError, match="sampling_weights: got 'Sky:1,Sky:2', expected NAME:X,NAME:X"):
        TrainSettings.read({"sampling_weights": "Sky:1,Sky:2"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "0"], r"lr: got 0\.0, expected a number above 0"),
        (["--train-scales", "0.5,2"], r"train_scales: got 0\.5,2\.0, expected .* 1\.0 among them"),
        (["--train-scales", "1,1"], r"train_scales: got 1\.0,1\.0, expected"),
        (["--eval-scales", "0.5,2"], r"eval_scales: got 0\.5,2\.0, expected .* 1\.0 among them"),
        (["--model", "resnet"], "model: got 'resnet', expected one of hrnet_small_ocr"),
        (["--data", "cityskapes"], "data: got 'cityskapes', expected one of"),
        (["--blur", "3,1"], r"blur: got 3\.0,1\.0, expected SMALLEST,LARGEST from 0 to 4"),
        (["--sampling-share", "2"], r"sampling_share: got 2\.0, expected a number from 0 to 1"),
        (["--sampling-weights", "Sky:-1"], "sampling_weights: got .*, expected NAME:X,NAME:X with numbers not below 0"),
        (["--extra", "coarse"], "extra: .*cityscapes"),
        (["--extra-classes", "bus"], "extra_classes: got bus, expected none without extra images"),
        (["--coarse-classes", "bus"], "coarse-classes: .*cityscapes"),
        (["--region-of-interest"], "region-of-interest: .*cityscapes"),
        (
            ["--data", "cityscapes", "--root", "x", "--extra", "coarse", "--extra-classes", ""],
            "extra_classes: got , expected all, or the classes that the extra images are for",
        ),
        (["--config", "absent.yaml"], r"config: got 'absent\.yaml', expected a YAML file"),
        (["--resume", "absent"], "resume: got 'absent', expected the folder of a run; there is no such folder"),
        (["--resume", ""], "resume: got '', expected the folder of a run"),
    ],
)
def test_a_bad_value_names_setting_value_and_expectation(arguments: list[str], message: str) -> None:
    with pytest.raises(HmsaError, match=message):
        parse(*arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lr", "fast"], ["--lr", "got 'fast'", "expected a number"]),
        (["--epochs", "2.5"], ["--epochs", "got '2.5'", "expected a whole number"]),
        (["--crop", "64"], ["--crop", "got '64'", "expected HxW"]),
        (["--sampling", "fair"], ["--sampling", "got 'fair'", "class_uniform, rare_class, uniform"]),
        (["--sampling-weights", "Sky"], ["--sampling-weights", "got 'Sky'", "NAME:X,NAME:X"]),
        (["--epoch", "3"], ["--epoch", "--epochs"]),
        (["--learning-rate", "3"], ["--learning-rate"]),
    ],
)
def test_a_bad_flag_ends_with_status_2(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)
    assert ended.value.code == 2
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    for word in words:
        assert word in shown


def test_an_unknown_setting_in_a_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("batchsize: 2\n")
    with pytest.raises(SettingError, match="batchsize: no such setting; did you mean batch_size"):
        parse("--config", str(file))


@pytest.mark.parametrize("content", [b"lr: [", b"- 1", b"\xff\xfe\x00"])
def test_a_file_that_is_no_settings_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with pytest.raises(SettingError, match=r"config: got '.*recipe\.yaml', expected"):
        parse("--config", str(file))


def test_resume_takes_the_settings_of_the_run(tmp_path: Path) -> None:
    parse("--lr", "0.5", "--output", str(tmp_path)).save(tmp_path / "config.yaml")
    command = train.parse(["--resume", str(tmp_path), "--max-minutes", "3"])
    assert (command.training.optimisation.lr, command.training.records.max_minutes) == (0.5, 3.0)
    assert command.resume == str(tmp_path)


def test_resume_takes_a_checkpoint_in_the_run_as_well(tmp_path: Path) -> None:
    parse("--lr", "0.5").save(tmp_path / "config.yaml")
    for name in ("last.pt", "best.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(SettingError, match=r"resume: got .*best\.pt', expected the folder of a run"):
        parse("--resume", str(tmp_path / "best.pt"))
    assert parse("--resume", str(tmp_path / "last.pt")).optimisation.lr == 0.5


def test_resume_refuses_settings_that_change_the_computation(tmp_path: Path) -> None:
    parse("--lr", "0.5").save(tmp_path / "config.yaml")
    assert parse("--resume", str(tmp_path), "--lr", "0.5").optimisation.lr == 0.5
    with pytest.raises(HmsaError, match=r"lr: got 0\.1, the run has 0\.5"):
        parse("--resume", str(tmp_path), "--lr", "0.1")


def test_older_flags_are_understood_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    found = parse("--data", "mapillary", "--root", "x", "--version", "2.0")
    assert settings.to_dict(found)["vistas_version"] == "2.0"
    assert capsys.readouterr().err.count("--version is now --vistas-version") == 1


@pytest.mark.parametrize(
    ("fusion", "scales", "message"),
    [
        ("hmsa_ext.models:NAMES", (1.0,), "fusion: got .* that is a Fusion or a function"),
        (
            "python_tests.engine.test_trained:TWO_SCALES",
            (0.5, 1.0, 2.0),
            "eval_scales: got .*, expected 0.5,1, or",
        ),
    ],
)
def test_a_fusion_that_is_an_object_is_looked_at_before_the_data(
    fusion: str, scales: tuple[float, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_data(*_: object) -> None:
        pytest.fail("the data were read first")

    monkeypatch.setattr("hmsa_ext.engine.run._build_data", read_data)
    values = {"fusion": fusion, "eval_scales": scales, "device": "cpu"}
    with pytest.raises(SettingError, match=message):
        train.run(TrainSettings.read(values))
