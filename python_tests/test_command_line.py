"""Command lines: flags from settings, older spellings, exit statuses, one line for an error."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest

import hmsa_ext
from hmsa_ext import HmsaError, command_line
from hmsa_ext.__main__ import main as hmsa
from hmsa_ext.settings import Flag, Names, Positional, SettingError, Size, validate


@dataclass(frozen=True)
class Crops:
    """Training crops."""

    crop: Size = (8, 8)
    """Size of a crop."""
    flip: Annotated[bool, Flag("mirror")] = True
    """Mirror half of the crops."""
    lr: Annotated[float, Flag("lr", was=("learning-rate",))] = 0.5
    """Rate."""

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class Command:
    """Where the command reads."""

    source: Annotated[str | None, Positional("SOURCE")] = None
    """What to read."""
    split: Names = ()
    """Parts."""
    cache: str | None = None
    """Folder."""
    crops: Crops = field(default_factory=Crops)


def parse(*arguments: str, **options) -> Command:
    return command_line.parse(Command(), arguments, prog="hmsa test", description="What it does.", **options)


def test_flags_become_settings() -> None:
    found = parse("here", "--crop", "5x6", "--no-mirror", "--split", "train", "--split", "val", "--lr=1e-3")
    assert found == Command("here", ("train", "val"), None, Crops((5, 6), False, 1e-3))
    assert parse("here") == Command("here")


def test_what_is_not_given_stays_as_the_settings_have_it() -> None:
    start = Command(crops=Crops(lr=0.25))
    found = command_line.parse(start, ["x", "--crop", "1x2"], prog="p", description="")
    assert found.crops == Crops((1, 2), True, 0.25)


def test_help_shows_every_flag_with_text_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--help")
    assert ended.value.code == 0
    page = capsys.readouterr().out
    for text in ("--crop HxW", "Size of a crop.", "8x8", "--mirror, --no-mirror", "SOURCE", "What it does."):
        assert text in page
    assert "learning-rate" not in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x", "--corp", "5x6"], ["--corp", "--crop"]),
        (["--miror", "x"], ["--miror", "Perhaps you meant", "--mirror"]),
        (["x", "--crop", "5"], ["--crop", "got '5'", "expected HxW"]),
        ([], ["SOURCE"]),
    ],
)
def test_a_wrong_flag_ends_with_status_2_and_a_hint(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    for word in words:
        assert word in error


def test_of_several_processes_one_says_that_a_flag_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as ended:
        parse("x", "--corp", "5x6")
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "")


def test_older_spellings_work_and_say_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    older: dict[str, Callable[[str], list[str] | None] | list[str]] = {
        "no-cache": ["--cache", "none"],
        "crop": lambda value: ["--crop", value.replace(",", "x")] if "," in value else None,
    }
    found = parse("x", "--learning-rate", "0.1", "--learning-rate", "0.2", "--no-cache", "--crop", "3,4", older=older)
    assert (found.crops.lr, found.cache, found.crops.crop) == (0.2, "none", (3, 4))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert "--learning-rate is now --lr" in said[0]
    assert parse("x", "--crop", "3x4", older=older).crops.crop == (3, 4)
    assert capsys.readouterr().err == ""


def test_a_flag_that_belongs_elsewhere_says_where() -> None:
    with pytest.raises(HmsaError, match="--fold: an option of kitti"):
        parse("x", "--fold", "3", elsewhere={"fold": "an option of kitti"})


def test_version_is_that_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--version")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"hmsa_ext {hmsa_ext.__version__}\n"
    assert hmsa(["--version"]) == 0
    assert capsys.readouterr().out == f"hmsa_ext {hmsa_ext.__version__}\n"


def raising(error: BaseException) -> Callable[[list[str]], int]:
    def command(arguments: list[str]) -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (SettingError("lr", 0, "more"), 2, "error: lr: got 0, expected more"),
        (FileNotFoundError(2, "No such file or directory", "x.png"), 2, "error: x.png: No such file or directory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (command_line.Terminated(), 143, "terminated"),
    ],
)
def test_an_error_is_one_line_and_an_exit_status(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.run(raising(error), []) == status
    assert capsys.readouterr().err == f"{line}\n"


def test_names_that_the_terminal_cannot_show_do_not_end_a_command() -> None:
    program = (
        "import sys; from hmsa_ext import command_line; sys.exit(command_line.run(lambda a: print('stra\\xdfe') or 0))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert (found.returncode, found.stdout.strip()) == (0, rb"stra\xdfe")


def test_an_error_of_the_program_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        command_line.run(lambda arguments: 1 // 0, [])


def test_of_several_processes_the_first_speaks_and_one_that_alone_knows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class LocalError(HmsaError):
        local = True

    monkeypatch.setenv("RANK", "1")
    assert command_line.run(raising(HmsaError("all know")), []) == 2
    assert capsys.readouterr().err == ""
    assert command_line.run(raising(LocalError("I know")), []) == 2
    assert capsys.readouterr().err == "error in process 1: I know\n"


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_command_with_their_status_and_one_line(number: int, status: int) -> None:
    code = (
        "import signal, sys, time; from hmsa_ext import command_line\n"
        # A job in the background of a shell ignores Ctrl-C, and so does what it starts.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def command(arguments):\n    print('began', flush=True); time.sleep(60); return 0\n"
        "sys.exit(command_line.run(command, []))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(hmsa_ext.__file__).parents[1])},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "began\n"
    time.sleep(0.1)
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == status
    assert len(error.splitlines()) == 1


def test_hmsa_lists_its_commands_and_suggests_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert hmsa(["--help"]) == 0
    assert "train" in capsys.readouterr().out
    assert hmsa(["trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err
    assert hmsa([]) == 2


def test_the_first_word_that_is_no_flag_is_found() -> None:
    assert command_line.peek_positional(["--flip", "runs/a", "--device", "cpu"], {"flip"}) == "runs/a"
    assert command_line.peek_positional(["--device", "cpu", "--no-flip", "b"], {"flip"}) == "b"
    assert command_line.peek_positional(["--device=cpu"], set()) is None
    assert command_line.peek(["--data", "a", "--data=b"], "data") == "b"


def test_underscores_in_flags_are_as_good_as_dashes_before_the_command_line_is_parsed_too() -> None:
    assert command_line.peek_positional(["--channels_last", "runs/a"], {"channels-last"}) == "runs/a"
    assert command_line.peek_positional(["--no_flip", "runs/a"], {"flip"}) == "runs/a"
    assert command_line.peek(["--num_classes", "3"], "num-classes") == "3"
    assert command_line.peek(["--num_classes=3"], "num-classes") == "3"


@dataclass(frozen=True)
class Many:
    """A command with several sources."""

    sources: Annotated[tuple[str, ...], Positional("SOURCE ...", many=True)] = ()
    """What to read."""
    flip: bool = False
    """Mirror."""
    lr: float = 0.5
    """Rate."""


@pytest.mark.parametrize(
    ("arguments", "sources", "flip"),
    [
        ([], (), False),
        (["a", "b"], ("a", "b"), False),
        (["a", "--lr", "2", "b", "--flip", "-"], ("a", "b", "-"), True),
        (["--lr=2", "--no-flip", "@list", "x y"], ("@list", "x y"), False),
    ],
)
def test_several_positional_arguments_may_stand_anywhere(
    arguments: list[str], sources: tuple[str, ...], flip: bool
) -> None:
    found = command_line.parse(Many(), arguments, prog="hmsa many", description="")
    assert (found.sources, found.flip) == (sources, flip)
