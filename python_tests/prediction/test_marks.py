"""Marks come back from the files that they were put in, and no other program minds them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from hmsa_ext.errors import ArgumentValueError
from hmsa_ext.prediction.marks import KEYWORD, append_mark, encode_jpeg, encode_png, read_mark
from hmsa_ext.prediction.video import Frames, VideoFile

MARK = "model 0123 settings 4567 source 1-2 page 0"
GREY = np.random.default_rng(0).integers(0, 256, (17, 23), dtype=np.uint8)
DEEP = GREY.astype(np.uint16) * 200
RGB = np.random.default_rng(1).integers(0, 256, (17, 23, 3), dtype=np.uint8)


def marked(folder: Path, ending: str, mark: str = MARK) -> Path:
    """A small file with a mark."""
    path = folder / f"file{ending}"
    if ending == ".mp4":
        video = VideoFile(path, 25, RGB.shape[:2])
        video.write(RGB)
        video.finish(mark)
    else:
        path.write_bytes(encode_png(RGB, mark) if ending == ".png" else encode_jpeg(RGB, mark))
    return path


@pytest.mark.parametrize("ending", [".png", ".jpg", ".mp4"])
def test_a_mark_comes_back(tmp_path: Path, ending: str) -> None:
    longest = "x" * 2048
    for mark in (MARK, "m", longest):
        assert read_mark(marked(tmp_path, ending, mark)) == mark
    assert read_mark(marked(tmp_path, ending, "")) is None


@pytest.mark.parametrize("picture", [GREY, DEEP, RGB], ids=["grey", "deep", "colours"])
def test_png_files_with_a_mark_hold_the_same_pixels(picture: np.ndarray) -> None:
    data = encode_png(picture, MARK)
    image = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(np.asarray(image), picture)
    assert image.info[KEYWORD] == MARK
    read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert read is not None
    np.testing.assert_array_equal(read if read.ndim == 2 else read[..., ::-1], picture)


@pytest.mark.parametrize("picture", [GREY, RGB], ids=["grey", "colours"])
def test_jpeg_files_with_a_mark_hold_the_same_pixels(picture: np.ndarray) -> None:
    data, bare = encode_jpeg(picture, MARK, quality=100), encode_jpeg(picture, quality=100)
    image = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(bare))))
    assert MARK.encode() in image.info["comment"]
    np.testing.assert_allclose(np.asarray(image).astype(int).mean(), picture.mean(), atol=1)
    with_mark, without = (cv2.imdecode(np.frombuffer(d, np.uint8), cv2.IMREAD_UNCHANGED) for d in (data, bare))
    np.testing.assert_array_equal(with_mark, without)


def test_videos_with_a_mark_hold_the_same_frames(tmp_path: Path) -> None:
    found = []
    for mark in ("", MARK):
        with Frames(str(marked(tmp_path, ".mp4", mark))) as frames:
            assert frames.count == 1
            found.append(next(iter(frames)))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".mp4"])
def test_a_file_that_was_cut_off_anywhere_has_no_mark(tmp_path: Path, ending: str) -> None:
    path = marked(tmp_path, ending)
    data = path.read_bytes()
    for length in {*range(min(len(data), 200)), *range(len(data) - 100, len(data)), len(data) // 2}:
        path.write_bytes(data[:length])
        assert read_mark(path) is None, length


@pytest.mark.parametrize("ending", [".png", ".jpg", ".mp4"])
def test_damage_is_never_an_error(tmp_path: Path, ending: str) -> None:
    path = marked(tmp_path, ending)
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for place in generator.integers(0, min(len(data), 120), 3):
            damaged[place if ending != ".mp4" else -1 - place] = generator.integers(0, 256)
        path.write_bytes(damaged)
        assert read_mark(path) is None or isinstance(read_mark(path), str)


def test_a_damaged_mark_of_a_png_is_none(tmp_path: Path) -> None:
    path = marked(tmp_path, ".png")
    path.write_bytes(path.read_bytes().replace(b"model 0123", b"model 0124"))
    assert read_mark(path) is None


def test_files_of_other_programs_have_no_mark(tmp_path: Path) -> None:
    path = tmp_path / "file"
    image = Image.fromarray(RGB)
    image.save(path, "PNG")
    assert read_mark(path) is None
    image.save(path, "JPEG", comment=b"a holiday")
    assert read_mark(path) is None
    image.save(path, "TIFF")
    assert read_mark(path) is None
    # A comment whose length is impossible, and a text chunk of another program in the place of ours.
    path.write_bytes(b"\xff\xd8\xff\xfe\0\0" + encode_jpeg(RGB)[2:])
    assert read_mark(path) is None
    chunk = b"tEXtTitle\0A street"
    data = encode_png(RGB)
    whole = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(data[:33] + whole + data[33:])
    assert Image.open(path).info["Title"] == "A street"
    assert read_mark(path) is None
    path.write_bytes(b"")
    assert read_mark(path) is None
    assert read_mark(tmp_path / "absent") is None
    assert read_mark(tmp_path) is None


def test_only_the_last_mark_of_a_video_counts(tmp_path: Path) -> None:
    path = marked(tmp_path, ".mp4", "first")
    append_mark(path, "second")
    assert read_mark(path) == "second"
    with path.open("ab") as file:
        file.write(b"\0\0\0\x08free")
    assert read_mark(path) is None


@pytest.mark.parametrize("mark", ["grün", "two\nlines", "x" * 2049, "a\0b"])
def test_marks_are_one_line_of_ascii(mark: str, tmp_path: Path) -> None:
    path = marked(tmp_path, ".mp4")
    for attempt in (lambda: encode_png(GREY, mark), lambda: encode_jpeg(GREY, mark), lambda: append_mark(path, mark)):
        with pytest.raises(ArgumentValueError, match="mark: expected up to 2048 printable ASCII characters, got"):
            attempt()
    assert read_mark(path) == MARK


@pytest.mark.parametrize(
    "picture",
    [GREY.astype(np.float32), GREY.astype(np.int32), RGB.astype(np.uint16), RGB[..., :2], RGB[None], GREY[0]],
    ids=["float", "int32", "deep colours", "two channels", "batch", "row"],
)
def test_other_pictures_are_errors(picture: np.ndarray) -> None:
    for encode in (encode_png, encode_jpeg):
        with pytest.raises(ArgumentValueError, match=r"picture: expected uint8 \[H, W\] or \[H, W, 3\].*, got "):
            encode(picture)


def test_sixteen_bits_and_very_long_pictures_are_no_jpeg() -> None:
    with pytest.raises(ArgumentValueError, match="got uint16"):
        encode_jpeg(DEEP)
    with pytest.raises(ArgumentValueError, match="at most 65535 pixels along a side, got 65536x2; write a PNG"):
        encode_jpeg(np.zeros((2, 65536), np.uint8))
    assert encode_png(np.zeros((2, 65536), np.uint8))


def test_a_picture_without_pixels_is_an_error() -> None:
    for encode in (encode_png, encode_jpeg):
        with pytest.raises(ArgumentValueError, match="picture: "):
            encode(np.zeros((0, 5), np.uint8))
