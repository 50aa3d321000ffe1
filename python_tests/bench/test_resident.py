"""The benchmark of resident memory, in miniature."""

import json
import sys

import pytest

from bench import resident

SMALL = ["--size", "64x128", "--crop", "64x64", "--length", "8", "--val-length", "1", "--batch-size", "2"]
SMALL += ["--iterations", "3", "--pictures", "0", "--log-every", "1"]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_it_prints_and_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(resident, "SECONDS", 0.01)
    monkeypatch.setattr(resident, "LIBRARIES", ())
    resident.main(["--json", str(tmp_path / "resident.json"), "--", *SMALL])
    content = json.loads((tmp_path / "resident.json").read_text())
    assert content["flags"] == SMALL
    assert list(content["samples"]) == list(resident.WAYS)
    for samples in content["samples"].values():
        steps = [sample["step"] for sample in samples]
        assert steps
        assert steps == sorted(set(steps))
        for sample in samples:
            assert 10**8 < sample["resident"] <= sample["peak"]
            assert sample["cpu_seconds"] > 0
    assert "peak MB, as it comes" in capsys.readouterr().out


def test_a_training_that_fails_is_an_error():
    with pytest.raises(SystemExit, match="status 2"):
        resident.train(["--no-such-flag"], {})


def test_ways_are_those_that_the_system_has(monkeypatch, capsys):
    monkeypatch.setattr(resident.ctypes.util, "find_library", {"jemalloc": "libjemalloc.so.2"}.get)
    assert list(resident.ways()) == ["given back", "as it comes", "jemalloc"]
    assert resident.ways()["jemalloc"] == {"LD_PRELOAD": "libjemalloc.so.2"}
    with pytest.raises(SystemExit):
        resident.main(["--way", "tcmalloc_minimal"])
    assert "argument --way: this system has no library tcmalloc_minimal" in capsys.readouterr().err


def test_a_folder_that_is_missing_is_named(capsys):
    with pytest.raises(SystemExit):
        resident.main(["--json", "no/folder/file.json"])
    assert "argument --json: there is no folder for no/folder/file.json" in capsys.readouterr().err
