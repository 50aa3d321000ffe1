"""Settings: one declaration gives names, checks, help and plain values."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

from hmsa_ext import HmsaError, settings
from hmsa_ext.settings import FREE, SHARE, Flag, Range, Scales, SettingError, Size, Weights, validate


@dataclass(frozen=True)
class Colours:
    """How colours change."""

    amount: Annotated[float, SHARE, Flag("colour", was=("color",))] = 0.5
    """How much,
    in parts of one."""
    blur: Range = (0.0, 0.0)
    """Sigma."""

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class Paint:
    """What to paint."""

    size: Size | None = None
    """Size in pixels."""
    kind: Literal["oil", "water"] = "oil"
    """Kind of paint."""
    scales: Scales = (0.5, 1.0)
    """Scales."""
    weights: Weights = field(default_factory=dict)
    """Weights."""
    dry: bool = True
    """Let the paint dry."""
    layers: Annotated[int | None, FREE] = None
    """Layers of paint."""
    colours: Colours = field(default_factory=Colours)

    def __post_init__(self) -> None:
        validate(self)


def test_options_have_flat_names_help_and_groups() -> None:
    found = {option.name: option for option in settings.options(Paint())}
    assert list(found) == ["size", "kind", "scales", "weights", "dry", "layers", "colour", "blur"]
    assert found["colour"].path == ("colours", "amount")
    assert found["colour"].help == "How much, in parts of one."
    assert found["kind"].choices == ("oil", "water")
    assert [name for name, option in found.items() if option.free] == ["layers"]
    assert [(title, text) for title, text, _ in settings.groups(Paint())] == [
        ("", "What to paint."),
        ("colours", "How colours change."),
    ]


def test_text_and_yaml_give_the_same_settings_and_plain_values_read_back() -> None:
    text = {"size": "64x96", "scales": "2,1", "weights": "a:2, b c:0.5", "layers": "3", "colour": "0.25", "blur": "1"}
    yaml = {"size": [64, 96], "scales": [1, 2], "weights": {"a": 2, "b c": 0.5}, "layers": 3, "colour": 0.25, "blur": 1}
    paint = settings.replace(Paint(), text)
    assert paint == settings.replace(Paint(), yaml)
    assert (paint.size, paint.scales, paint.colours.blur) == ((64, 96), (1.0, 2.0), (1.0, 1.0))
    plain = settings.to_dict(paint)
    assert plain["size"] == [64, 96]
    assert settings.replace(Paint(), plain) == paint


def test_older_spellings_are_understood() -> None:
    assert settings.replace(Paint(), {"color": 0.125}).colours.amount == 0.125


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 2}, r"colour: got 2\.0, expected a number from 0 to 1"),
        ({"size": "64"}, "size: got '64', expected HxW"),
        ({"size": [0, 4]}, "size: got 0,4, expected HxW"),
        ({"kind": "acrylic"}, "kind: got 'acrylic', expected one of oil, water"),
        ({"scales": "0.5,2"}, r"scales: got 0\.5,2\.0, expected .* 1\.0 among them"),
        ({"weights": "a"}, "weights: got 'a', expected NAME:X"),
        ({"weights": "a:-1"}, "weights: got .* expected NAME:X,NAME:X with numbers not below 0"),
        ({"dry": "no"}, "dry: got 'no', expected true or false"),
        ({"layers": 2.5}, r"layers: got 2\.5, expected a whole number"),
        ({"layres": 2}, "layres: no such setting; did you mean layers"),
        ({"dry": None}, "dry: got None, expected true or false"),
        ({"scales": None}, "scales: got None, expected"),
    ],
)
def test_a_bad_value_names_setting_value_and_expectation(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        settings.replace(Paint(), changes)
    assert isinstance(caught.value, HmsaError)
    assert isinstance(caught.value, ValueError)


def test_settings_check_themselves_in_python() -> None:
    with pytest.raises(SettingError, match=r"amount: got 3, expected a number from 0 to 1"):
        Colours(amount=3)
    with pytest.raises(SettingError, match="amount: got 'much', expected a number from 0 to 1"):
        Colours(amount="much")  # pyright: ignore[reportArgumentType] (that is the point)


def test_objects_are_found_by_name_and_written_by_name() -> None:
    assert settings.load_object("collections:OrderedDict", "data") is __import__("collections").OrderedDict
    assert settings.to_plain(Paint) == f"{Paint.__module__}:Paint"
    with pytest.raises(SettingError, match=r"data: got 'absent_module:x', expected .* no module absent_module, inst"):
        settings.load_object("absent_module:x", "data")
    with pytest.raises(SettingError, match="data: got 'collections:absent', expected a name in collections"):
        settings.load_object("collections:absent", "data")
    for incomplete in (":", ":x", "collections:"):
        with pytest.raises(SettingError, match=f"data: got '{incomplete}', expected package.module:name"):
            settings.load_object(incomplete, "data")


def test_two_options_of_one_name_are_refused() -> None:
    @dataclass(frozen=True)
    class Both:
        blur: float = 0.0
        colours: Colours = field(default_factory=Colours)

    with pytest.raises(SettingError, match=r"blur: got 'two options, blur and colours\.blur', expected one"):
        settings.replace(Both(), {"blur": 1.0})
