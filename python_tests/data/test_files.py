"""Pictures and label maps from files: stored values, not colours; what is damaged or of the wrong kind is named."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from hmsa_ext.data import DataError
from hmsa_ext.data.files import read_colours, read_image, read_label
from hmsa_ext.data.headers import FormatError, read_header

from .pictures import chunk, exif, png, tiff, turned_jpeg, write, write_image

RNG = np.random.default_rng(0)


def values(depth: int, size: tuple[int, int] = (19, 37)) -> np.ndarray:
    """Odd sizes, so that rows end within a byte; the largest value is there."""
    result = RNG.integers(0, 2**depth, size, dtype=np.uint8)
    result[3, 5] = 2**depth - 1
    return result


def palette_image(stored: np.ndarray) -> Image.Image:
    image = Image.fromarray(stored, "P")
    image.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tobytes())
    return image


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_files_give_their_indices(tmp_path, depth):
    stored, path = values(depth), tmp_path / "label.png"
    palette_image(stored).save(path, bits=depth)
    header = read_header(path)
    assert (header.depth, header.palette, header.channels) == (depth, True, 1)
    label = read_label(path)
    assert label.dtype == np.uint8
    assert np.array_equal(label, stored)
    assert np.array_equal(label, np.array(Image.open(path)))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_files_made_by_hand_give_their_indices(tmp_path, depth):
    stored, path = values(depth), tmp_path / "label.png"
    palette = RNG.integers(0, 256, 3 * 2**depth, dtype=np.uint8).tobytes()
    path.write_bytes(png(stored, depth=depth, colour=3, palette=palette))
    assert np.array_equal(np.array(Image.open(path)), stored)
    assert np.array_equal(read_label(path), stored)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_greyscale_files_of_few_bits_give_what_they_store(tmp_path, depth):
    stored, path = values(depth), tmp_path / "label.png"
    path.write_bytes(png(stored, depth=depth))
    assert np.array_equal(read_label(path), stored)
    assert str(read_header(path)) == f"{depth}-bit greyscale PNG"


# Eight by eight pixels in the seven passes of Adam7: first row, first column, row step, column step.
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("colour", [0, 3])
def test_interlaced_files_give_what_they_store(tmp_path, depth, colour):
    stored, path = values(depth), tmp_path / "label.png"
    height, width = stored.shape
    rows = b""
    for y, x, down, across in PASSES:
        for row in stored[y::down, x::across]:
            bits = np.unpackbits(row[:, None], axis=1)[:, 8 - depth :].ravel()
            rows += b"\0" + np.packbits(bits).tobytes()
    body = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 1))
    if colour == 3:
        body += chunk(b"PLTE", RNG.integers(0, 256, 3 * 2**depth, dtype=np.uint8).tobytes())
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    if colour == 3 or depth in (1, 8):  # Pillow stretches greyscale of 2 and 4 bits
        assert np.array_equal(np.array(Image.open(path)).astype(np.uint8), stored)
    assert np.array_equal(read_label(path), stored)


def test_transparency_and_background_of_a_palette_do_not_matter(tmp_path):
    stored, path = values(4), tmp_path / "label.png"
    palette_image(stored).save(path, bits=4, transparency=3)
    content = path.read_bytes()
    at = content.index(b"IDAT") - 4
    path.write_bytes(content[:at] + chunk(b"bKGD", b"\x02") + content[at:])
    assert np.array_equal(read_label(path), stored)
    grey = png(stored, depth=4)
    at = grey.index(b"IDAT") - 4
    path.write_bytes(grey[:at] + chunk(b"tRNS", b"\x00\x05") + grey[at:])
    assert np.array_equal(read_label(path), stored)


def test_sixteen_bits_are_kept(tmp_path):
    stored = RNG.integers(0, 65536, (19, 37), dtype=np.uint16)
    for suffix in (".png", ".tif"):
        label = read_label(write(tmp_path / f"label{suffix}", stored))
        assert label.dtype == np.uint16
        assert np.array_equal(label, stored)


def test_channels_that_are_all_the_same_are_one(tmp_path):
    stored = values(8)
    same = write(tmp_path / "same.png", np.dstack([stored] * 3))
    assert np.array_equal(read_label(same), stored)
    alpha = write(tmp_path / "alpha.png", np.dstack([stored] * 3 + [values(8)]))
    assert np.array_equal(read_label(alpha), stored)
    grey = tmp_path / "grey.png"
    Image.fromarray(np.dstack([stored, values(8)]), "LA").save(grey)
    assert read_header(grey).channels == 2
    assert np.array_equal(read_label(grey), stored)


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_are_refused_with_advice(tmp_path, channels):
    picture = np.dstack([values(8)] * channels)
    picture[2, 3, 1] ^= 1  # one pixel is enough
    path = write(tmp_path / "label.png", picture)
    with pytest.raises(DataError, match=r"label\.png: expected a label map with one channel .*, got colours") as caught:
        read_label(path)
    assert "8-bit greyscale or palette PNG" in str(caught.value)
    assert "masks: colours" in str(caught.value)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_files_that_change_values_are_refused_as_label_maps(tmp_path, suffix):
    path = write(tmp_path / f"label{suffix}", values(8))
    for read in (read_label, read_colours):
        with pytest.raises(DataError, match=rf"label\{suffix}: (JPEG|WebP) is lossy: it alters labels .* PNG"):
            read(path)


@pytest.mark.parametrize("suffix", [".bmp", ".tif"])
def test_label_maps_in_bmp_and_tiff(tmp_path, suffix):
    stored = values(8)
    assert np.array_equal(read_label(write(tmp_path / f"label{suffix}", stored)), stored)
    path = tmp_path / f"pillow{suffix}"
    Image.fromarray(stored, "L").save(path)
    assert np.array_equal(read_label(path), stored)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("depth", [1, 4, 8])
def test_a_palette_in_a_bmp_gives_indices(tmp_path, depth, old):
    stored, path = values(depth), tmp_path / "label.bmp"
    height, width = stored.shape
    table = RNG.integers(0, 256, (3 if old else 4) * 2**depth, dtype=np.uint8).tobytes()
    bits = np.unpackbits(stored[..., None], axis=2)[..., 8 - depth :].reshape(height, -1)
    rows = np.packbits(bits, axis=1)[::-1]
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4))).tobytes()
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, depth, 0, len(rows), 0, 0, 2**depth, 0)
    if old:
        info = struct.pack("<IHHHH", 12, width, height, 1, depth)
    start = 14 + len(info) + len(table)
    head = struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start) + info
    path.write_bytes(head + table + rows)
    assert read_header(path).palette
    assert read_header(path).size == (height, width)
    assert np.array_equal(read_label(path), stored)


def test_a_palette_in_a_tiff_is_refused(tmp_path):
    path = tmp_path / "label.tif"
    palette_image(values(8)).save(path)
    with pytest.raises(DataError, match=r"label\.tif: a 8-bit palette TIFF: palettes are read from PNG and BMP"):
        read_label(path)


def test_colours_as_numbers(tmp_path):
    picture = RNG.integers(0, 256, (19, 37, 3), dtype=np.uint8)
    blue, green, red = picture.astype(np.uint32).transpose(2, 0, 1)
    path = write(tmp_path / "label.png", picture)
    assert np.array_equal(read_colours(path), red * 65536 + green * 256 + blue)
    write(path, np.dstack([picture, values(8)]))  # alpha is left out
    assert np.array_equal(read_colours(path), red * 65536 + green * 256 + blue)
    image = palette_image(values(8))
    image.save(path)
    red, green, blue = np.array(image.convert("RGB")).astype(np.uint32).transpose(2, 0, 1)
    assert np.array_equal(read_colours(path), red * 65536 + green * 256 + blue)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".webp", ".jpg"])
def test_images_are_red_green_blue(tmp_path, suffix):
    picture = np.empty((20, 40, 3), np.uint8)
    picture[:] = 10, 100, 200
    image = read_image(write(tmp_path / f"a{suffix}", picture))
    assert image.dtype == np.uint8
    assert image.shape == (20, 40, 3)
    assert np.abs(image.astype(int) - (200, 100, 10)).max() <= 3  # JPEG and WebP are lossy


@pytest.mark.parametrize(
    ("suffix", "shape", "expected"),
    [
        (".png", (5, 7), "8-bit greyscale PNG"),
        (".png", (5, 7, 3), "8-bit RGB PNG"),
        (".png", (5, 7, 4), "8-bit RGB and alpha PNG"),
        (".jpg", (5, 7), "8-bit greyscale JPEG"),
        (".jpg", (5, 7, 3), "8-bit RGB JPEG"),
        (".bmp", (5, 7, 3), "8-bit RGB BMP"),
        (".bmp", (5, 7), "8-bit palette BMP"),
        (".tif", (5, 7), "8-bit greyscale TIFF"),
        (".tif", (5, 7, 3), "8-bit RGB TIFF"),
        (".webp", (5, 7, 3), "8-bit RGB WebP"),
        (".webp", (5, 7, 4), "8-bit RGB and alpha WebP"),
    ],
)
def test_headers_tell_size_and_kind(tmp_path, suffix, shape, expected):
    path = write(tmp_path / f"a{suffix}", RNG.integers(0, 256, shape, dtype=np.uint8))
    header = read_header(path)
    assert header.size == (5, 7)
    assert str(header) == expected


@pytest.mark.parametrize(("lossless", "alpha"), [(True, False), (True, True), (False, True), (False, False)])
def test_headers_of_every_kind_of_webp(tmp_path, lossless, alpha):
    path = tmp_path / "a.webp"
    picture = RNG.integers(0, 256, (5, 7, 4 if alpha else 3), dtype=np.uint8)
    Image.fromarray(picture).save(path, lossless=lossless)
    header = read_header(path)
    assert header.size == (5, 7)
    assert header.channels == (4 if alpha else 3)


def test_a_header_takes_little_reading(tmp_path):
    """Cut off after the header, the file still tells its size; whole, it is not read whole."""
    for suffix in (".png", ".jpg", ".bmp", ".webp"):
        path = write_image(tmp_path / f"a{suffix}", (301, 407))
        path.write_bytes(path.read_bytes()[:1000])
        assert read_header(path).size == (301, 407)


def test_sixteen_bit_headers(tmp_path):
    for suffix in (".png", ".tif"):
        path = write(tmp_path / f"a{suffix}", np.zeros((5, 7), np.uint16))
        assert read_header(path).depth == 16


def cut_short(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_images_cut_short_are_damaged(tmp_path, suffix):
    path = write_image(tmp_path / f"a{suffix}", (40, 60))
    path.write_bytes(cut_short(path.read_bytes()))
    with pytest.raises(DataError, match=rf"a\{suffix}: .*damaged"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_label_maps_cut_short_are_damaged(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", RNG.integers(0, 256, (40, 60), dtype=np.uint8))
    path.write_bytes(cut_short(path.read_bytes()))
    with pytest.raises(DataError, match=rf"a\{suffix}: .*damaged"):
        read_label(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "the file is empty"),
        (b"GIF89a not one of ours", "not a picture: expected a PNG, JPEG, BMP, TIFF or WebP file"),
        (b"\x89PNG\r\n\x1a\n\0\0", "the file is damaged: its header cannot be read"),
        (b"\xff\xd8\xff\xe0\0\x10", "the file is damaged: it ends early, within its header"),
        (b"II*\0\xff\xff\0\0", "the file is damaged: its header cannot be read"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path, content, text):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in (read_header, read_image, read_label):
        with pytest.raises(DataError, match=text):
            read(path)


def test_files_that_are_not_there_are_named(tmp_path):
    for read in (read_header, read_image, read_label, read_colours):
        with pytest.raises(DataError, match=r"none\.png: cannot be read: No such file"):
            read(tmp_path / "none.png")


def test_a_progressive_jpeg_with_a_preview_is_whole(tmp_path):
    """A small JPEG, with an end marker, lies within the header of the large one."""
    picture = RNG.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    small, large = io.BytesIO(), tmp_path / "a.jpg"
    Image.fromarray(picture[:8, :8]).save(small, "JPEG")
    Image.fromarray(picture).save(large, "JPEG", progressive=True)
    content, preview = large.read_bytes(), b"Exif\0\0" + small.getvalue()
    content = content[:2] + b"\xff\xe1" + struct.pack(">H", len(preview) + 2) + preview + content[2:]
    large.write_bytes(content)
    assert read_header(large).size == (64, 96)
    assert np.array_equal(read_image(large), cv2.imread(str(large))[..., ::-1])
    large.write_bytes(content[:-400])
    with pytest.raises(DataError, match="it ends early"):
        read_image(large)


def test_paths_need_not_be_ascii(tmp_path: Path):
    path = tmp_path / "maßstab 1.png"
    path.write_bytes(png(np.eye(5, dtype=np.uint8)))
    assert np.array_equal(read_label(path), np.eye(5))


BYTES = np.arange(24, dtype=np.uint8)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (tiff(BYTES.reshape(4, 6)), "8-bit greyscale TIFF"),
        (tiff(BYTES.reshape(4, 3, 2), extra=(2,)), "8-bit greyscale and alpha TIFF"),
        (tiff(BYTES.reshape(4, 2, 3), photometric=2), "8-bit RGB TIFF"),
        (tiff(BYTES.reshape(3, 2, 4), photometric=2, extra=(2,)), "8-bit RGB and alpha TIFF"),
        (tiff(BYTES.reshape(3, 2, 4), photometric=2, extra=(0,)), "8-bit RGB and a fourth band TIFF"),
        (tiff(BYTES.reshape(3, 2, 4), photometric=5), "8-bit CMYK TIFF"),
    ],
)
def test_tiffs_that_opencv_reads_as_they_are_meant_are_read(tmp_path, content, expected):
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    header = read_header(path)
    assert str(header) == expected
    assert header.refusal == ""
    assert read_image(path).shape == (*header.size, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(BYTES.reshape(4, 3, 2)), "a TIFF with 2 bands that are not said to be red, green and blue is not read"),
        (tiff(BYTES.reshape(4, 2, 3), extra=(0, 0)), "3 bands that are not said to be"),
        (tiff(BYTES.reshape(3, 2, 4), extra=(0, 0, 0)), "4 bands that are not said to be"),
        (tiff(np.zeros((2, 2, 5), np.uint8), photometric=2, extra=(0, 0)), "5 bands that are not said to be"),
        (tiff(BYTES.reshape(4, 6).astype(np.float32)), "a TIFF with float 32-bit samples is not read"),
        (tiff(BYTES.reshape(4, 6).astype(np.int32)), "a TIFF with signed 32-bit samples is not read"),
        (tiff(BYTES.reshape(4, 6).astype(np.uint32)), "a TIFF with 32-bit samples is not read"),
        (tiff(BYTES.reshape(4, 6).astype(np.int16)), "a TIFF with signed 16-bit samples is not read"),
        (b"II+\0\x08\0\0\0" + bytes(40), "BigTIFF is not read; save the picture as TIFF or PNG"),
        (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", 40000, 40000, 8, 0, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""),
            "40000x40000 pixels are more than OpenCV decodes",
        ),
    ],
)  # fmt: skip
def test_pictures_of_a_kind_that_is_not_read_are_refused_from_the_header_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    for read in (read_image, read_label, read_colours):
        with pytest.raises(FormatError, match=f"a.tif: .*{reason}"):
            read(path)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_headers_tell_the_orientation_of_every_format_and_pixels_stay_as_stored(tmp_path, orientation):
    turned = (7, 5) if orientation > 4 else (5, 7)
    array = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    made = {".jpg": turned_jpeg(tmp_path / "a.jpg", (5, 7), orientation)}
    for suffix in (".png", ".webp"):
        made[suffix] = tmp_path / f"a{suffix}"
        Image.fromarray(array).save(made[suffix], exif=b"Exif\0\0" + exif(orientation), lossless=True)
    made[".tif"] = tmp_path / "a.tif"
    made[".tif"].write_bytes(tiff(array, photometric=2, orientation=orientation))
    for suffix, path in made.items():
        header = read_header(path)
        assert (header.size, header.orientation, header.turned) == ((5, 7), orientation, turned), suffix
        assert read_image(path).shape == (5, 7, 3)
        if suffix != ".jpg":
            assert np.array_equal(read_image(path), array), suffix
    made[".tif"].write_bytes(tiff(array[..., 0], orientation=orientation))
    assert np.array_equal(read_label(made[".tif"]), array[..., 0])


def test_exif_that_cannot_be_read_is_upright(tmp_path):
    path = write_image(tmp_path / "a.jpg", (5, 7))
    content, body = path.read_bytes(), b"Exif\0\0II*\0\xff\xff\xff\xff"
    path.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + content[2:])
    assert read_header(path).orientation == 1


def test_a_cmyk_jpeg_is_called_so(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (7, 5), (10, 20, 30, 40)).save(path)
    header = read_header(path)
    assert str(header) == "8-bit CMYK JPEG"
    assert header.cmyk
    assert not header.alpha
    assert read_image(path).shape == (5, 7, 3)
