"""The settings of the network."""

import pytest

from hmsa_ext import settings
from hmsa_ext.models import ATTENTION_HEADS, ModelSettings
from hmsa_ext.settings import SettingError

FLAGS = ["model", "trunk", "attention-channels", "attention-head", "fusion", "dropout", "weights", "train-scales",
         "channels-last"]  # fmt: skip


def test_options_have_flat_names_and_help():
    options = settings.options(ModelSettings())
    assert [option.flag for option in options] == FLAGS
    assert all(option.help for option in options)
    assert [option.name for option in options if option.free] == ["weights"]


def test_settings_survive_the_way_through_plain_values():
    changed = ModelSettings("a.b:c", "d:e", "classes", "f:g", "h:i", 0.1, "runs/x", (0.5, 1.0, 2.0), False)
    assert settings.replace(ModelSettings(), settings.to_dict(changed)) == changed
    assert settings.replace(ModelSettings(), settings.to_dict(ModelSettings())) == ModelSettings()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "resnet"}, "model: got 'resnet', expected one of hrnet_small_ocr, .*, or package.module:object"),
        ({"trunk": "resnet"}, "trunk: got 'resnet', expected one of hrnet_small, .*, or package.module:object"),
        ({"attention_channels": "two"}, "attention_channels: got 'two', expected one of one, classes"),
        (
            {"attention_head": "none"},
            f"attention_head: got 'none', expected one of {', '.join(ATTENTION_HEADS)}, or package.module:object",
        ),
        ({"dropout": 1}, "dropout: got 1.0, expected a number from 0 to below 1"),
        ({"train_scales": "0.5"}, "train_scales: got 0.5, expected up to 8 different positive numbers, 1.0 among them"),
        ({"scales": "0.5,2"}, "train_scales: got 0.5,2.0, expected 1 to 8 different positive numbers, 1.0 among them"),
        ({"fusion": "sum"}, "fusion: got 'sum', expected one of hierarchical, explicit, .*, or package.module:object"),
        ({"fusion": "single", "train_scales": "0.5,1"}, "train_scales: got 0.5,1.0, expected one scale: this fusion"),
        ({"fusion": "mean", "attention_channels": "classes"}, "attention_channels: got 'classes', expected one, since"),
        (
            {"fusion": "max", "attention_head": "a:b"},
            "attention_head: got 'a:b', expected scale, since the fusion has no",
        ),
        ({"fusion": "explicit", "train_scales": "1"}, "train_scales: got 1.0, expected several scales"),
        ({"channels_last": "yes"}, "channels_last: got 'yes', expected true or false"),
    ],
)
def test_what_does_not_fit_is_named(change: dict, message: str):
    with pytest.raises(SettingError, match=message):
        settings.replace(ModelSettings(), change)
