"""The benchmark of the loader, in miniature."""

import json

import cv2
import torch

from bench import loader


def test_it_prints_and_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loader, "SIZE", (128, 256))
    monkeypatch.setattr(loader, "CROP", (64, 128))
    threads = torch.get_num_threads(), cv2.getNumThreads()
    try:
        loader.main(["--workers", "1", "--frames", "6", "--rounds", "1", "--json", str(tmp_path / "loader.json")])
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    figures = json.loads((tmp_path / "loader.json").read_text())
    assert figures["workers"] == 1
    assert figures["frames"] == 6
    assert figures["decoding_share"] > 0
    assert f"{figures['crops_per_second']:.1f} images/s" in capsys.readouterr().out
