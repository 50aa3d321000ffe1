"""Marks in output files: they come back, other programs read the files as before, and damaged files have none."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from hmsa_ext.errors import ArgumentTypeError, ArgumentValueError
from hmsa_ext.prediction.marks import KEYWORD, append_mark, encode_jpeg, encode_png, read_mark

RNG = np.random.default_rng(0)
MARK = "v1 model=0123abcd source=street.jpg 4711"
RGB = RNG.integers(0, 256, (11, 17, 3), dtype=np.uint8)
SMOOTH = cv2.resize(RGB[:3, :4], (64, 48), interpolation=cv2.INTER_CUBIC)
LABELS = RNG.integers(0, 19, (11, 17), dtype=np.uint8)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "array", [LABELS, LABELS.astype(np.uint16) * 3000, RGB, RGB[::-1, ::2], LABELS.T], ids=lambda a: f"{a.shape}"
)
def test_png_files_are_read_as_before_by_opencv_and_pillow(tmp_path, array):
    path = written(tmp_path / "a.png", encode_png(array, MARK))
    assert read_mark(path) == MARK
    assert np.array_equal(np.asarray(Image.open(path)), array)
    by_opencv = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert by_opencv is not None
    assert by_opencv.dtype == array.dtype
    assert np.array_equal(by_opencv, array[..., ::-1] if array.ndim == 3 else array)


def test_pillow_shows_the_mark_of_a_png_and_a_jpeg():
    png, jpeg = (Image.open(io.BytesIO(encode(RGB, MARK))) for encode in (encode_png, encode_jpeg))
    assert getattr(png, "text") == {"hmsa_ext": MARK}  # noqa: B009
    assert jpeg.info["comment"] == KEYWORD + b"\0" + MARK.encode()


def test_the_mark_lies_directly_behind_the_header():
    content = encode_png(LABELS, MARK)
    assert content[12:16] == b"IHDR"
    assert content[37:41] == b"tEXt"
    assert encode_jpeg(RGB, MARK)[:4] == b"\xff\xd8\xff\xfe"


def test_jpeg_files_are_read_as_before_by_opencv_and_pillow(tmp_path):
    path = written(tmp_path / "a.jpg", encode_jpeg(SMOOTH, MARK))
    assert read_mark(path) == MARK
    plain = cv2.imencode(".jpg", SMOOTH[..., ::-1].copy(), [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
    by_opencv = cv2.imread(str(path))
    assert by_opencv is not None
    expected = cv2.imdecode(plain, cv2.IMREAD_COLOR)
    assert expected is not None
    assert np.array_equal(by_opencv, expected)
    assert np.abs(np.asarray(Image.open(path)).astype(int) - SMOOTH).mean() < 6, "red, green, blue, not the reverse"


def test_a_lower_quality_makes_a_smaller_file():
    assert len(encode_jpeg(SMOOTH, MARK, quality=50)) < len(encode_jpeg(SMOOTH, MARK))


def boxes(content: bytes) -> list[bytes]:
    """Kinds of the boxes of an MP4 file."""
    found, place = [], 0
    while place < len(content):
        size, kind = struct.unpack_from(">I4s", content, place)
        found.append(kind)
        place += size
    assert place == len(content)
    return found


def test_mp4_files_are_played_as_before(tmp_path):
    path = tmp_path / "a.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 48))
    for k in range(5):
        writer.write(np.full((48, 64, 3), 40 * k, np.uint8))
    writer.release()
    before = boxes(path.read_bytes())
    assert read_mark(path) is None
    append_mark(path, MARK)
    assert read_mark(path) == MARK
    assert boxes(path.read_bytes()) == [*before, b"free"]
    capture = cv2.VideoCapture(str(path))
    means = [int(capture.read()[1].mean()) for _ in range(5)]
    assert not capture.read()[0]
    assert np.allclose(means, [0, 40, 80, 120, 160], atol=4)


@pytest.mark.parametrize("length", [1, 1000])
def test_short_and_long_marks_come_back(tmp_path, length):
    mark = "m" * length
    for name, content in [("a.png", encode_png(LABELS, mark)), ("a.jpg", encode_jpeg(RGB, mark))]:
        assert read_mark(written(tmp_path / name, content)) == mark
    path = written(tmp_path / "a.mp4", struct.pack(">I4sII", 16, b"ftyp", 0, 0))
    append_mark(path, mark)
    assert read_mark(path) == mark


def test_an_empty_mark_is_none(tmp_path):
    for name, content in [("a.png", encode_png(LABELS)), ("a.jpg", encode_jpeg(RGB))]:
        assert read_mark(written(tmp_path / name, content)) is None


@pytest.mark.parametrize("mark", ["grün", "a\nb", "a\0b", "m" * 1001])
def test_marks_that_do_not_fit_are_errors(mark):
    for encode in (encode_png, encode_jpeg):
        with pytest.raises(ArgumentValueError, match=r"mark: got .*expected 1 to 1000 printable ASCII"):
            encode(RGB, mark)


def test_a_file_that_was_cut_off_has_no_mark(tmp_path):
    mp4 = written(tmp_path / "a.mp4", struct.pack(">I4sII", 16, b"ftyp", 0, 0))
    append_mark(mp4, MARK)
    for content in (encode_png(LABELS, MARK), encode_jpeg(RGB, MARK), mp4.read_bytes()):
        for length in (*range(0, len(content), 11), *range(len(content) - 40, len(content))):
            assert read_mark(written(tmp_path / "cut", content[:length])) is None


def test_a_changed_mark_of_a_png_is_none(tmp_path):
    content = bytearray(encode_png(LABELS, MARK))
    content[content.index(MARK.encode())] ^= 1
    assert read_mark(written(tmp_path / "a.png", bytes(content))) is None


def test_foreign_and_missing_files_have_no_mark(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    Image.fromarray(RGB).save(tmp_path / "a.jpg", comment="holiday")
    foreign = encode_png(LABELS, MARK).replace(KEYWORD, b"Software")
    body = foreign[37 : 41 + struct.unpack_from(">I", foreign, 33)[0]]
    at = 33 + 4 + len(body)
    (tmp_path / "b.png").write_bytes(foreign[:at] + struct.pack(">I", zlib.crc32(body)) + foreign[at + 4 :])
    (tmp_path / "a.txt").write_bytes(b"free" + KEYWORD + b"\0" + MARK.encode())
    assert Image.open(tmp_path / "b.png").size == (17, 11)
    for name in ("a.png", "a.jpg", "b.png", "a.txt", "none.png", "."):
        assert read_mark(tmp_path / name) is None


def test_arrays_that_cannot_be_written_are_errors():
    for array in (RGB / 255, RGB.astype(np.uint16), RGB[..., :2], LABELS.astype(np.int64), LABELS[0]):
        with pytest.raises(ArgumentTypeError, match=r"array: got .* expected uint8 or uint16"):
            encode_png(array, MARK)
    with pytest.raises(ArgumentTypeError, match=r"rgb: got uint8 \[11, 17\], expected uint8 \[H, W, 3\]"):
        encode_jpeg(LABELS, MARK)
    with pytest.raises(ArgumentValueError, match="without pixels"):
        encode_png(LABELS[:0], MARK)
    with pytest.raises(ArgumentValueError, match="quality: got 0, expected 1 to 100"):
        encode_jpeg(RGB, MARK, quality=0)


def test_a_side_that_jpeg_cannot_store_is_an_error_with_advice():
    with pytest.raises(ArgumentValueError, match=r"got 65536x1 pixels; a JPEG has at most 65535 .*write it as PNG"):
        encode_jpeg(np.zeros((1, 65536, 3), np.uint8), MARK)
    assert encode_png(np.zeros((1, 65536), np.uint8), MARK)
