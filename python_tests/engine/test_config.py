"""The configuration: where values come from, and what a bad one says."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from hmsa_ext.engine.config import ConfigError, TrainConfig, field_documentation, from_settings, parse_command_line


def parse(*arguments: str) -> TrainConfig:
    return parse_command_line(list(arguments), prog="test", description="")


def test_no_arguments_give_the_defaults() -> None:
    assert parse() == TrainConfig()


def test_every_field_has_documentation_and_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    documentation = field_documentation()
    with pytest.raises(SystemExit):
        parse("--help")
    page = capsys.readouterr().out
    for field in dataclasses.fields(TrainConfig):
        assert documentation[field.name].endswith(".")
        assert f"--{field.name.replace('_', '-')}" in page


def test_flags_are_converted_to_the_types_of_the_fields() -> None:
    config = parse("--crop", "64x96", "--scales", "1,0.5,0.25", "--lr", "1e-3", "--epochs", "3", "--no-mirror")
    assert config.crop == (64, 96)
    assert config.scales == (0.25, 0.5, 1.0)
    assert config.lr == 0.001
    assert config.epochs == 3
    assert config.mirror is False


def test_ranges_names_and_weights_are_read_from_text_and_from_yaml(tmp_path: Path) -> None:
    flags = ("--blur", "0.15,1.3", "--sampling-weights", "Bicyclist:2, Sky:0", "--sampling-epochs", "7")
    extra = ("--data", "cityscapes", "--root", "x", "--extra", "coarse", "--extra-classes", "bus, train")
    config = parse(*flags, *extra)
    assert config.blur == (0.15, 1.3)
    assert config.sampling_weights == {"Bicyclist": 2.0, "Sky": 0.0}
    assert config.sampling_epochs == 7
    assert config.extra_classes == ("bus", "train")
    config.save(tmp_path / "config.yaml")
    assert parse("--config", str(tmp_path / "config.yaml")) == config
    assert parse("--blur", "0.5").blur == (0.5, 0.5)


def test_flags_override_the_file_which_overrides_defaults(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("lr: 1e-4\nepochs: 7\ncrop: [64, 64]\n")
    config = parse("--config", str(file), "--epochs", "8")
    assert (config.lr, config.epochs, config.crop) == (1e-4, 8, (64, 64))
    assert config.batch_size == TrainConfig().batch_size


def test_a_saved_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = parse("--crop", "64x96", "--iterations", "5", "--eval-scales", "0.5")
    config.save(tmp_path / "config.yaml")
    assert from_settings(yaml.safe_load((tmp_path / "config.yaml").read_text())) == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "0"], r"lr: got 0\.0, expected a number above 0"),
        (["--lr", "fast"], "lr: got 'fast', expected a number"),
        (["--epochs", "2.5"], "epochs: got '2.5', expected a whole number"),
        (["--crop", "64"], "crop: got 64, expected HxW"),
        (["--scales", "0.5,2"], "scales: got 0.5,2.0, expected .* 1.0 among them"),
        (["--scales", "1,1"], "scales: got 1.0,1.0, expected"),
        (["--eval-scales", "0.5,2"], "eval_scales: got 0.5,2.0, expected .* 1.0 among them"),
        (["--model", "resnet"], "model: got 'resnet', expected one of hrnet_small_ocr"),
        (["--loss", "dice"], "loss: got 'dice', expected one of ce, rmi"),
        (["--data", "camvid"], "root: got None, expected the folder of the camvid data"),
        (["--data", "cityskapes"], "data: got 'cityskapes', expected one of ade20k, bdd100k, camvid, cityscapes"),
        (["--blur", "3,1"], r"blur: got 3\.0,1\.0, expected SMALLEST,LARGEST from 0 to 4"),
        (["--sampling", "fair"], "sampling: got 'fair', expected one of class_uniform, rare_class, uniform"),
        (["--sampling-share", "2"], r"sampling_share: got 2\.0, expected a number from 0 to 1"),
        (["--sampling-weights", "Sky"], "sampling_weights: got 'Sky', expected NAME:X,NAME:X"),
        (["--sampling-weights", "Sky:-1"], "sampling_weights: got .*, expected NAME:X,NAME:X with numbers not below 0"),
        (["--extra", "coarse"], "extra: got 'coarse', expected none, since the data is synthetic"),
        (["--extra-classes", "bus"], "extra_classes: got bus, expected none without --extra"),
        (["--coarse-classes", "bus"], "coarse_classes: got bus, expected nothing without --extra autolabelled"),
        (["--region-of-interest"], "region_of_interest: got True, expected nothing without --extra autolabelled"),
        (
            ["--data", "cityscapes", "--root", "x", "--extra", "coarse"],
            "extra_classes: got , expected the classes that --extra is for",
        ),
        (["--config", "absent.yaml"], "config: no file absent.yaml"),
        (["--resume", "absent"], "resume: no file absent/config.yaml"),
    ],
)
def test_a_bad_value_names_field_value_and_expectation(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(*arguments)


def test_an_unknown_setting_in_a_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("batchsize: 2\n")
    with pytest.raises(ConfigError, match="batchsize: no such setting; did you mean batch_size"):
        parse("--config", str(file))


def test_abbreviated_flags_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--epoch", "3")
    assert "--epoch" in capsys.readouterr().err


def test_resume_takes_the_settings_of_the_run(tmp_path: Path) -> None:
    parse("--lr", "0.5", "--output", str(tmp_path)).save(tmp_path / "config.yaml")
    config = parse("--resume", str(tmp_path), "--max-minutes", "3")
    assert (config.lr, config.max_minutes, config.output) == (0.5, 3.0, str(tmp_path))


def test_resume_refuses_settings_that_change_the_computation(tmp_path: Path) -> None:
    parse("--lr", "0.5").save(tmp_path / "config.yaml")
    assert parse("--resume", str(tmp_path), "--lr", "0.5").lr == 0.5
    with pytest.raises(ConfigError, match=r"lr: got '0\.1', the run has 0\.5"):
        parse("--resume", str(tmp_path), "--lr", "0.1")
