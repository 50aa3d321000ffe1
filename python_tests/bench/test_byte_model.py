"""The byte model counts what tiles touch: checked against the weights of PyTorch's own resize."""

from __future__ import annotations

import pytest
import torch

from bench import byte_model, cases
from bench.byte_model import AxisMap
from bench.cases import Case

SIZES = [(1, 1), (1, 7), (7, 1), (5, 5), (5, 20), (20, 5), (7, 31), (31, 7), (13, 10), (10, 13)]


def weights(size_in: int, size_out: int) -> torch.Tensor:
    """[out, in], by resizing unit vectors."""
    unit = torch.eye(size_in, dtype=torch.float64)[None, :, None, :]
    return torch.nn.functional.interpolate(unit, (1, size_out), mode="bilinear")[0, :, 0, :].T


@pytest.mark.parametrize(("size_in", "size_out"), SIZES)
def test_axis_map_touches_what_has_a_weight(size_in, size_out):
    axis, matrix = AxisMap(size_in, size_out), weights(size_in, size_out)
    for low in range(size_out):
        for high in range(low + 1, size_out + 1):
            part = axis.sources(range(low, high))
            needed = matrix[low:high].any(0).nonzero().flatten().tolist()
            assert set(needed) <= set(part)
            # beyond the weights that are not zero, at most the second tap of the last output
            assert len(part) <= needed[-1] - needed[0] + 2
    for low in range(size_in):
        for high in range(low + 1, size_in + 1):
            part = axis.outputs(range(low, high))
            reached = matrix[:, low:high].any(1).nonzero().flatten().tolist()
            assert set(reached) <= set(part)
            if reached and len(part) > len(reached):  # at the ends, where the coordinate is clamped
                assert low == 0 or high == size_in


@pytest.mark.parametrize("case", [*cases.headline((96, 160)), *cases.shapes((96, 160))], ids=lambda case: case.name)
def test_a_tile_of_everything_moves_each_byte_once(case, monkeypatch):
    monkeypatch.setitem(byte_model.TILES, "fuse_scales_forward_kernel", (case.size, case.size))
    (forward,) = byte_model.launches(case, "forward")
    assert forward.bytes == byte_model.each_once(case, "forward")


def test_smaller_tiles_move_more(monkeypatch):
    case = cases.headline()[1]
    moved = []
    for tile in ((64, 256), (16, 64), (8, 32), (1, 1)):
        monkeypatch.setitem(byte_model.TILES, "fuse_scales_forward_kernel", (tile, tile))
        moved.append(byte_model.milliseconds(case, "forward", 1000))
    assert moved == sorted(moved)


def test_halo_of_a_tile_by_hand(monkeypatch):
    """One scale, head 8 x 8 to 32 x 32, tiles of 16 x 16: each reads 5 x 5 of the head, one more than its share."""
    monkeypatch.setitem(byte_model.TILES, "fuse_scales_forward_kernel", ((16, 16), (16, 16)))
    (forward,) = byte_model.launches(Case("one", (32, 32), scales=(1.0,), classes=3), "forward")
    assert forward.read == 4 * 5 * 5 * 3 * 4
    assert forward.written == 32 * 32 * 3 * 4


def test_backward_reads_the_gradient_and_writes_a_gradient_of_each_input():
    case = Case("three", (64, 128), scales=(2.0, 1.0, 0.5))
    _, *backward = byte_model.launches(case, "forward+backward")
    assert [(launch.kernel, launch.what) for launch in backward] == [
        ("channel_sums_kernel", "2 maps"),
        ("fuse_scales_backward_kernel", "scale 2"),
        ("fuse_scales_backward_kernel", "scale 1"),
        ("fuse_scales_backward_kernel", "scale 0.5"),
    ]
    assert all(launch.read > case.output_bytes for launch in backward)
    heads = 32 * 64, 16 * 32, 8 * 16
    written = sum(launch.written for launch in backward if launch.kernel == "fuse_scales_backward_kernel")
    assert written == 4 * (19 * sum(heads) + sum(heads[1:]))


def test_command_prints_the_headline(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["byte_model", "--bandwidth", "2000", "--dtype", "bfloat16"])
    byte_model.main()
    text = capsys.readouterr().out
    assert "at 2000 GB/s" in text
    assert "scales 2, 1, 0.5, 1024x2048, 19 classes, bfloat16" in text


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--scales", "2,0.5"), ("--scales", "a"), ("--bandwidth", "0"), ("--size", "3"), ("--classes", "0")],
)
def test_bad_flags_are_named(monkeypatch, capsys, flag, value):
    monkeypatch.setattr("sys.argv", ["byte_model", flag, value])
    with pytest.raises(SystemExit):
        byte_model.main()
    message = capsys.readouterr().err
    assert flag in message
    assert f"'{value}'" in message
    assert "expected" in message
