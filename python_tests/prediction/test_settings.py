"""Settings of a prediction as a command line and Python spell them."""

from __future__ import annotations

import pytest

from hmsa_ext import command_line, settings
from hmsa_ext.prediction.settings import PredictionSettings


def memory_of(*arguments: str) -> int | None:
    return command_line.parse(PredictionSettings(), arguments, prog="hmsa predict", description="").memory


def test_memory_of_a_command_line_is_what_it_says() -> None:
    assert memory_of("--memory", "400MB") == 400 * 10**6
    assert memory_of("--memory", "1.5GiB") == 3 * 2**29
    assert memory_of("--memory", "4") == 4 * 2**30
    assert memory_of() is None


def test_memory_in_python_is_a_text_or_a_number_of_gib_or_bytes() -> None:
    def read(value: object) -> int | None:
        return settings.replace(PredictionSettings(), {"memory": value}).memory

    assert read("800mb") == 800 * 10**6
    assert read(2) == 2 * 2**30
    assert read(400 * 10**6) == 400 * 10**6


@pytest.mark.parametrize("value", [float("inf"), "9" * 400])
def test_endless_memory_is_an_error(value: object) -> None:
    with pytest.raises(settings.SettingError, match="memory"):
        settings.replace(PredictionSettings(), {"memory": value})
