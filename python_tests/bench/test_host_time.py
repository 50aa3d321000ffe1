"""The benchmark of host time, in miniature."""

import json

import pytest
import torch

from bench import host_time


def test_it_prints_and_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(host_time, "CALLS", 1)
    threads = torch.get_num_threads()
    host_time.main(["--rounds", "1", "--json", str(tmp_path / "host_time.json")])
    assert torch.get_num_threads() == threads
    figures = json.loads((tmp_path / "host_time.json").read_text())["microseconds"]
    table = capsys.readouterr().out
    for op, kinds in figures.items():
        assert set(kinds) in ({"op", "function"}, set(host_time.KINDS))
        assert op in table
        for microseconds in kinds.values():
            assert microseconds > 0
            assert f"{microseconds:.1f}" in table


def test_only_what_is_asked_for_is_measured(monkeypatch):
    monkeypatch.setattr(host_time, "CALLS", 1)
    assert list(host_time.measure(1, only="rmi")) == ["fuse_scales_rmi"]


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--rounds", "0"), ("--rounds", "abc"), ("--only", "nothing"), ("--json", "no/folder/file.json")],
)
def test_bad_arguments_are_named_with_what_came(flag, value, capsys):
    with pytest.raises(SystemExit) as ended:
        host_time.main([flag, value])
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {flag}" in last
    assert value in last
