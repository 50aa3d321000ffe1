"""Parts by name, by ``package.module:object``, and as objects."""

import math
from dataclasses import dataclass
from typing import Annotated

import pytest

from hmsa_ext import parts, settings
from hmsa_ext.parts import Part
from hmsa_ext.settings import SettingError, validate

TABLE = {"sin": math.sin, "cos": math.cos}


@dataclass(frozen=True)
class Group:
    """A group with a part."""

    function: Annotated[Part, parts.one_of(TABLE)] = "sin"
    """Which."""
    other: Annotated[Part | None, parts.one_of(TABLE)] = None
    """Another."""

    def __post_init__(self) -> None:
        validate(self)


def test_a_part_is_found_by_name_by_module_and_as_it_is():
    assert parts.find("cos", TABLE, "function") is math.cos
    assert parts.find("math:tan", TABLE, "function") is math.tan
    assert parts.find(math.exp, TABLE, "function") is math.exp


def test_unknown_names_list_the_known_ones():
    with pytest.raises(
        SettingError, match=r"^function: got 'tan', expected one of sin, cos, or package.module:object$"
    ):
        parts.find("tan", TABLE, "function")
    with pytest.raises(SettingError, match=r"^function: got 'math:nothing', expected a name in math"):
        parts.find("math:nothing", TABLE, "function")


def test_settings_hold_parts():
    assert settings.to_dict(Group(function=parts.find)) == {"function": "hmsa_ext.parts:find", "other": None}
    changed = settings.replace(Group(), {"function": "math:tan", "other": "cos"})
    assert changed == Group("math:tan", "cos")
    assert [option.show(option.value) for option in settings.options(Group(parts.find))] == [
        "hmsa_ext.parts:find",
        "none",
    ]
    for wrong in ("tan", 3, ["sin"]):
        with pytest.raises(SettingError, match=r"function: got .*, expected one of sin, cos, or package.module:object"):
            settings.replace(Group(), {"function": wrong})


def test_parameters_by_keyword():
    def function(a, /, b, *c, d=1, **e):
        return a, b, c, d, e

    assert parts.parameters(function) == ({"b", "d"}, True)
    assert parts.parameters(lambda x: x) == ({"x"}, False)
