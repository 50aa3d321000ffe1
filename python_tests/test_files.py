"""Outputs of commands: checked before the work, links followed, pipes and devices written as they are."""

import os
import stat
import threading
from pathlib import Path

import pytest

from hmsa_ext.files import Output, OutputError, replacing, writable_folder, write_text


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link_and_its_target_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    Output(link, "json").write("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    write_text(link, "newer")
    assert link.is_symlink()
    assert target.read_text() == "newer"


def test_a_link_to_a_file_that_is_not_there_yet_is_followed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "new")
    Output(tmp_path / "link", "json").write("x")
    assert (tmp_path / "deep" / "new").read_text() == "x"


def test_a_dash_is_standard_output(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> None:
    Output("-", "json").write("{}\n")
    assert capfdbinary.readouterr().out == b"{}\n"
    assert not Path("-").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_pipe_is_written_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    Output(pipe, "json").write("{}")
    reader.join(10)
    assert read == [b"{}"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full")
def test_a_device_is_written_and_stays_a_device() -> None:
    output = Output("/dev/full", "json")
    with pytest.raises(OutputError, match="json: /dev/full cannot be written: No space left"):
        output.write("{}")
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_what_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"json: no folder .*absent; expected a file in one that exists"):
        Output(tmp_path / "absent" / "x.json", "json")
    with pytest.raises(OutputError, match=r"json: .* is a folder; expected a file"):
        Output(tmp_path, "json")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"output: .* is a file, or lies in one; expected a folder"):
        writable_folder(tmp_path / "file", "output")
    with pytest.raises(OutputError, match=r"output: .* is a file, or lies in one; expected a folder"):
        writable_folder(tmp_path / "file" / "deeper", "output")
    if Path("/proc/self").exists():  # root may write everywhere but there
        with pytest.raises(OutputError, match="output: "):
            writable_folder("/proc/self", "output")
        with pytest.raises(OutputError, match="json: "):
            Output("/proc/self/x.json", "json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_folders_are_made_where_that_is_asked_for(tmp_path: Path) -> None:
    Output(tmp_path / "a" / "b.json", "json", parents=True).write("x")
    assert (tmp_path / "a" / "b.json").read_text() == "x"
    assert writable_folder(tmp_path / "c" / "d", "output").is_dir()
    assert not list((tmp_path / "c" / "d").iterdir())
