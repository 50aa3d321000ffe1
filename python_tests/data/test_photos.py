"""Photos from files and from memory: upright, RGB, 8 bits, whatever form they come in; what is none is named."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from hmsa_ext.data import DataError
from hmsa_ext.data.files import read_image
from hmsa_ext.data.headers import FormatError
from hmsa_ext.data.photos import as_photo, as_stored, count_pages, read_photo
from hmsa_ext.errors import ArgumentTypeError, ArgumentValueError

from .pictures import chunk, tiff, turned_jpeg, write, write_image

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (13, 22, 3), dtype=np.uint8)
ORIENTATIONS = range(1, 9)


def saved(path: Path, image: Image.Image | None = None, **options: Any) -> Path:
    (Image.fromarray(PIXELS) if image is None else image).save(path, **options)
    return path


def oriented(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[274] = orientation
    return found


# ---- orientation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("form", ["jpg", "png", "webp", "tif"])
def test_files_are_turned_upright_as_pillow_turns_them(tmp_path, orientation, form):
    path = tmp_path / f"photo.{form}"
    if form == "jpg":
        turned_jpeg(path, (13, 22), orientation)
    elif form == "tif":
        path.write_bytes(tiff(PIXELS, photometric=2, orientation=orientation))
    else:
        saved(path, exif=oriented(orientation), lossless=True)
    photo = read_photo(path)
    assert (photo.orientation, photo.name, photo.pixels.dtype) == (orientation, path.name, np.uint8)
    assert photo.pixels.shape == ((22, 13, 3) if orientation >= 5 else (13, 22, 3))
    shown = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    assert np.abs(photo.pixels.astype(int) - shown).max() <= (4 if form == "jpg" else 0)
    # What is undone is the pixels of the file, as data sets read them.
    assert np.array_equal(as_stored(photo.pixels, orientation), read_image(path))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("form", ["jpg", "png", "webp", "tif"])
def test_pillow_images_are_turned_upright(tmp_path, orientation, form):
    path = tmp_path / f"photo.{form}"
    if form == "tif":
        path.write_bytes(tiff(PIXELS, photometric=2, orientation=orientation))
    else:
        saved(path, exif=oriented(orientation), lossless=True)
    photo = as_photo(Image.open(path))
    assert np.array_equal(photo.pixels, np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")))
    assert photo.name == path.name
    loaded = np.asarray(Image.open(path).convert("RGB"))
    assert np.array_equal(as_stored(photo.pixels, photo.orientation), loaded)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 2)])
def test_results_are_turned_back_to_the_pixels_of_the_file(tmp_path, orientation, shape):
    path = tmp_path / "photo.tif"
    path.write_bytes(tiff(np.arange(15, dtype=np.uint8).reshape(3, 5), orientation=orientation))
    labels = read_photo(path).pixels[..., 0].astype(np.float32)
    result = labels if len(shape) == 2 else np.stack([labels, labels + 100], -1)
    stored = as_stored(result, orientation)
    assert stored.flags.c_contiguous
    assert stored.shape == shape
    assert np.array_equal(stored[..., 0] if len(shape) == 3 else stored, np.arange(15).reshape(3, 5))


# ---- kinds of files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["png", "bmp", "tif"])
def test_grey_becomes_three_equal_channels(tmp_path, form):
    photo = read_photo(saved(tmp_path / f"grey.{form}", Image.fromarray(PIXELS[..., 0])))
    assert np.array_equal(photo.pixels, np.stack([PIXELS[..., 0]] * 3, -1))
    assert photo.notes == ()


@pytest.mark.parametrize("form", ["png", "webp", "tif"])
def test_alpha_is_left_out_and_said(tmp_path, form):
    rgba = np.dstack([PIXELS, np.full((13, 22), 7, np.uint8)])
    path = saved(tmp_path / f"alpha.{form}", Image.fromarray(rgba), lossless=True, exact=True)
    photo = read_photo(path)
    assert np.array_equal(photo.pixels, PIXELS)
    assert np.array_equal(read_image(path), PIXELS), "not multiplied by alpha for data sets either"
    assert photo.notes == ("alpha left out",)


def test_palettes_are_followed(tmp_path):
    image = Image.fromarray(PIXELS).quantize(16)
    for form in ("png", "bmp"):
        photo = read_photo(saved(tmp_path / f"palette.{form}", image))
        assert np.array_equal(photo.pixels, np.asarray(image.convert("RGB")))


def test_cmyk_is_converted_about_as_pillow_does(tmp_path):
    smooth = np.asarray(Image.fromarray(RNG.integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((48, 32)))
    path = saved(tmp_path / "print.jpg", Image.fromarray(smooth).convert("CMYK"), quality=95)
    photo = read_photo(path)
    assert np.abs(photo.pixels.astype(int) - np.asarray(Image.open(path).convert("RGB"))).mean() < 4
    assert photo.notes == ("CMYK converted to RGB",)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_stretched_by_white_and_said(tmp_path, suffix):
    stored = RNG.integers(0, 4096, (13, 22, 3), dtype=np.uint16)
    stored[0, 0] = (4095, 0, 2048)
    path = write(tmp_path / f"deep{suffix}", stored[..., ::-1])
    photo = read_photo(path, white=4095)
    assert photo.pixels[0, 0].tolist() == [255, 0, 128]
    assert np.array_equal(photo.pixels, np.floor(stored * 255.0 / 4095 + 0.5))
    assert photo.notes == ("16 bits reduced to 8 with white=4095 (largest value: 4095)",)
    dark = read_photo(path)
    assert np.array_equal(dark.pixels, read_image(path)), "as training reads it"
    assert np.abs(dark.pixels - stored * 255.0 / 65535).max() <= 1
    assert read_photo(path, white=1000).pixels.max() == 255, "larger is white"
    for white in (4095, 65535):
        assert np.array_equal(as_photo(stored, white=white).pixels, read_photo(path, white=white).pixels)


@pytest.mark.parametrize("white", [0, 65536, -1])
def test_a_white_that_cannot_be_is_an_error(tmp_path, white):
    for image in (write_image(tmp_path / "photo.png"), PIXELS):
        with pytest.raises(ArgumentValueError, match=f"white: expected a value from 1 to 65535, got {white}"):
            as_photo(image, white=white)


# ---- pages ------------------------------------------------------------------------------------------------------


def several_pages(path: Path, count: int = 3, **options: Any) -> list[np.ndarray]:
    pages = [RNG.integers(0, 256, (6 + k, 9, 3), dtype=np.uint8) for k in range(count)]
    first, *rest = (Image.fromarray(page) for page in pages)
    first.save(path, save_all=True, append_images=rest, **options)
    return pages


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_each_page_of_a_tiff_is_read(tmp_path, compression):
    path = tmp_path / "scan.tif"
    pages = several_pages(path, compression=compression)
    assert count_pages(path) == 3
    for k, page in enumerate(pages):
        photo = read_photo(path, page=k)
        assert np.array_equal(photo.pixels, page)
        assert photo.notes == (f"page {k + 1} of 3",)
    for wrong in (3, -1):
        with pytest.raises(ArgumentValueError, match=rf"page: got {wrong}, but .*scan\.tif has 3 pages"):
            read_photo(path, page=wrong)


def test_overviews_and_masks_of_a_tiff_are_no_pages(tmp_path):
    path = tmp_path / "map.tif"
    pages = several_pages(path)
    content = bytearray(path.read_bytes())
    (place,) = struct.unpack_from("<I", content, 4)
    for kind in (0, 1, 4):  # the first is a page, the second reduced, the third a mask
        (count,) = struct.unpack_from("<H", content, place)
        entry = place + 2
        assert struct.unpack_from("<H", content, entry)[0] == 256  # the width; what replaces it is smaller, so first
        following = place + 2 + 12 * count
        # Pillow writes no tag 254: the last entry, which nobody reads here, makes room for it.
        entries = bytes(content[entry : following - 12])
        content[entry:following] = struct.pack("<HHII", 254, 4, 1, kind) + entries
        (place,) = struct.unpack_from("<I", content, following)
    path.write_bytes(content)
    assert count_pages(path) == 1
    photo = read_photo(path)
    assert np.array_equal(photo.pixels, pages[0])
    assert photo.notes == ()


def test_a_tiff_whose_directories_form_a_circle_has_an_end(tmp_path):
    path = tmp_path / "scan.tif"
    several_pages(path, 2)
    content = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, first)
    (second,) = struct.unpack_from("<I", content, first + 2 + 12 * count)
    (count,) = struct.unpack_from("<H", content, second)
    struct.pack_into("<I", content, second + 2 + 12 * count, first)
    path.write_bytes(content)
    assert count_pages(path) == 2


def test_other_files_have_one_page(tmp_path):
    assert count_pages(write_image(tmp_path / "photo.png")) == 1
    with pytest.raises(ArgumentValueError, match=r"page: got 1, but .*photo\.png has 1 page;"):
        read_photo(tmp_path / "photo.png", page=1)
    with pytest.raises(DataError, match=r"none\.tif: cannot be read: No such file"):
        count_pages(tmp_path / "none.tif")
    (tmp_path / "cut.tif").write_bytes(tiff(PIXELS, photometric=2)[:40])
    with pytest.raises(DataError, match=r"cut\.tif: the file is damaged: the directory of page 1"):
        count_pages(tmp_path / "cut.tif")


# ---- files that are not read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("part", [0.5, 0.98])
def test_files_that_end_early_are_errors(tmp_path, suffix, part):
    path = write_image(tmp_path / f"photo{suffix}", (60, 80))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(DataError, match=rf"photo\{suffix}: .*damaged"):
        read_photo(path)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC photo"),
        ("a.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC photo"),
        ("a.avif", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "an AVIF file"),
        ("a.gif", b"GIF89a\x05\0\x05\0", "a GIF"),
        ("a.nef", b"MM\0*\0\0\0\x08", "a raw photo of a camera"),
        ("a.jp2", b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 file"),
        ("a.mp4", b"\0\0\0\x20ftypisom\0\0\2\0", "a video"),
        ("a.png", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("a.jpg", b"\n<!DOCTYPE html><html>", "a web page"),
    ],
)
def test_kinds_that_are_not_read_are_named_with_advice(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=rf"{name}: {kind}.* is not read; PNG, JPEG, BMP, TIFF and WebP are\. Conv"):
        read_photo(tmp_path / name)


def test_what_is_no_picture_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "a.jpg").write_text("notes")
    (tmp_path / "b.jpg").write_bytes(b"")
    for name, text in [("a.jpg", "not a picture: expected a PNG, JPEG"), ("b.jpg", "empty"), ("c.jpg", "No such file")]:
        with pytest.raises(DataError, match=rf"{name}: .*{text}"):
            as_photo(tmp_path / name)
    with pytest.raises(DataError, match="a folder; expected a picture"):
        as_photo(str(tmp_path))


def test_a_dng_without_its_ending_and_bigtiff_are_errors(tmp_path):
    content = bytearray(tiff(PIXELS, photometric=2))
    at = content.index(struct.pack("<HHI", 339, 3, 3))  # the kind of samples becomes the version of DNG
    content[at : at + 12] = struct.pack("<HHI4B", 50706, 1, 4, 1, 4, 0, 0)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(FormatError, match="DNG"):
        read_photo(tmp_path / "a.tif")
    (tmp_path / "b.tif").write_bytes(b"II+\0\x08\0\0\0" + bytes(60))
    with pytest.raises(FormatError, match="BigTIFF is not read"):
        read_photo(tmp_path / "b.tif")


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_more_pixels_than_opencv_decodes_are_an_error_that_names_the_variable(tmp_path):
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(40000, 30000))
    with pytest.raises(DataError, match=r"huge\.png: 40000x30000 pixels .* OPENCV_IO_MAX_IMAGE_PIXELS"):
        read_photo(path)


def test_the_limit_of_opencv_follows_its_variable(tmp_path):
    path = write_image(tmp_path / "photo.png", (10, 20))
    code = f"from hmsa_ext.data.photos import read_photo; print(read_photo({str(path)!r}).pixels.shape)"
    for limit, expected in [("200", "(10, 20, 3)"), ("199", "more than OpenCV decodes (199, ")]:
        environment = {**os.environ, "OPENCV_IO_MAX_IMAGE_PIXELS": limit}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert expected in done.stdout + done.stderr


# ---- arrays -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image",
    [
        PIXELS,
        np.asfortranarray(PIXELS),
        PIXELS[::-1, ::-1].copy()[::-1, ::-1],
        PIXELS[..., ::-1].copy()[..., ::-1],
        np.repeat(PIXELS, 2, axis=1)[:, ::2],
    ],
)
def test_arrays_of_any_strides_are_taken(image):
    photo = as_photo(image)
    assert np.array_equal(photo.pixels, PIXELS)
    assert photo.pixels.flags.c_contiguous
    assert (photo.orientation, photo.name, photo.notes) == (1, "", ())


def test_grey_arrays_and_alpha():
    grey = PIXELS[..., 0]
    for image in (grey, grey[..., None]):
        assert np.array_equal(as_photo(image).pixels, np.stack([grey] * 3, -1))
    photo = as_photo(np.dstack([PIXELS, grey]))
    assert np.array_equal(photo.pixels, PIXELS)
    assert photo.notes == ("alpha left out",)


def test_arrays_of_sixteen_bits_are_taken_in_either_byte_order():
    image = RNG.integers(0, 65536, (4, 5, 3), dtype=np.uint16)
    for order in "<>":
        assert np.array_equal(as_photo(image.astype(f"{order}u2")).pixels, image >> 8)


@pytest.mark.parametrize(
    ("image", "error", "text"),
    [
        (PIXELS / 255, ArgumentTypeError, r"float64, expected uint8 .* pass \(image \* 255\)\.round\(\)\.astype"),
        (PIXELS > 100, ArgumentTypeError, r"bool, expected uint8 .* image\.astype\(np\.uint8\) \* 255"),
        (PIXELS.astype(np.int64), ArgumentTypeError, r"int64, expected uint8 .* image\.astype\(np\.uint8\) where"),
        (PIXELS.transpose(2, 0, 1), ArgumentValueError, r"channels come last.*image\.transpose\(1, 2, 0\)"),
        (PIXELS[None], ArgumentValueError, r"a batch \[1, 13, 22, 3\], expected one image; pass a list"),
        (PIXELS[..., :2], ArgumentValueError, r"\[13, 22, 2\], expected \[H, W\]"),
        (PIXELS[0, 0], ArgumentValueError, r"\[3\], expected \[H, W\]"),
        (PIXELS[:0], ArgumentValueError, r"\[0, 22, 3\] without pixels"),
        ([[1, 2]], ArgumentTypeError, "image: got list, expected a path, a PIL image"),
        (None, ArgumentTypeError, "image: got NoneType"),
    ],
)
def test_arrays_that_are_no_photo_are_errors_with_advice(image, error, text):
    with pytest.raises(error, match=text):
        as_photo(image)


# ---- tensors ----------------------------------------------------------------------------------------------------

TENSOR = torch.from_numpy(PIXELS).permute(2, 0, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_tensors_of_floating_point_give_the_same_photo(dtype):
    image = (TENSOR.double() / 255).to(dtype).requires_grad_()
    assert np.array_equal(as_photo(image).pixels, PIXELS)


def test_bfloat16_is_as_near_as_its_eight_bits():
    photo = as_photo(TENSOR.float().div(255).bfloat16())
    assert np.abs(photo.pixels.astype(int) - PIXELS).max() <= 1


def test_tensors_of_bytes_are_taken_in_all_shapes():
    assert np.array_equal(as_photo(TENSOR).pixels, PIXELS)
    assert np.array_equal(as_photo(TENSOR.contiguous()).pixels, PIXELS)
    for image in (TENSOR[0], TENSOR[:1]):
        assert np.array_equal(as_photo(image).pixels, np.stack([PIXELS[..., 0]] * 3, -1))
    photo = as_photo(torch.cat([TENSOR, TENSOR[:1]]))
    assert np.array_equal(photo.pixels, PIXELS)
    assert photo.notes == ("alpha left out",)


@pytest.mark.gpu
def test_tensors_on_a_gpu_are_taken():
    assert np.array_equal(as_photo(TENSOR.cuda()).pixels, PIXELS)


@pytest.mark.parametrize(
    ("image", "error", "text"),
    [
        (TENSOR.float(), ArgumentValueError, r"values from 0 to 255, expected 0 to 1\. This looks like 0\.\.255"),
        (TENSOR.float() / 128 - 1, ArgumentValueError, "This looks normalised"),
        (torch.full((3, 4, 4), 1.01), ArgumentValueError, r"pass image\.clamp\(0, 1\)"),
        (torch.full((3, 4, 4), torch.nan), ArgumentValueError, "not finite"),
        (torch.full((3, 4, 4), torch.inf), ArgumentValueError, "not finite"),
        (TENSOR.permute(1, 2, 0), ArgumentValueError, r"channels come first .* image\.permute\(2, 0, 1\)"),
        (TENSOR[None], ArgumentValueError, r"a batch \[1, 3, 13, 22\]"),
        (TENSOR[:2], ArgumentValueError, r"\[2, 13, 22\], expected \[3, H, W\]"),
        (TENSOR[:, :0], ArgumentValueError, "without pixels"),
        (TENSOR.long(), ArgumentTypeError, r"torch\.int64, expected uint8"),
        (TENSOR > 3, ArgumentTypeError, r"torch\.bool, expected uint8"),
    ],
)
def test_tensors_that_are_no_photo_are_errors_with_advice(image, error, text):
    with pytest.raises(error, match=text):
        as_photo(image)


# ---- PIL images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_pillow_images_of_all_modes_are_as_pillow_converts_them(mode):
    base = Image.fromarray(PIXELS)
    image = base.convert("P").convert("PA") if mode == "PA" else base.convert(mode)
    photo = as_photo(image)
    assert np.array_equal(photo.pixels, np.asarray(image.convert("RGB")))
    assert photo.notes == (("alpha left out",) if mode in ("LA", "PA", "RGBA") else ())


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_pillow_images_of_more_than_eight_bits_are_reduced_by_white(mode):
    stored = RNG.integers(0, 4096, (6, 7), dtype=np.uint16)
    if mode == "I":
        image = Image.fromarray(stored.astype(np.int32))
    else:
        raw = stored.astype(">u2" if mode.endswith("B") else "<u2").tobytes()
        image = Image.frombytes(mode, (7, 6), raw)
    assert image.mode == mode
    photo = as_photo(image, white=4095)
    assert np.array_equal(photo.pixels[..., 1], np.floor(stored * 255.0 / 4095 + 0.5))


def test_pillow_images_without_a_known_white_are_errors():
    with pytest.raises(ArgumentValueError, match="mode I with values from -1 to 70000, expected 0 to 65535"):
        as_photo(Image.fromarray(np.array([[-1, 70000]], np.int32)))
    with pytest.raises(ArgumentTypeError, match="PIL image of mode F"):
        as_photo(Image.fromarray(np.ones((2, 2), np.float32)))


def test_a_pillow_image_that_ends_early_is_an_error():
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG")
    with pytest.raises(DataError, match="image: Pillow cannot decode"):
        as_photo(Image.open(io.BytesIO(buffer.getvalue()[:-100])))


def test_pillow_is_not_imported_for_those_who_do_not_use_it(tmp_path):
    path = write_image(tmp_path / "photo.png")
    code = (
        f"import sys; from hmsa_ext.data.photos import as_photo; as_photo({str(path)!r}); print('PIL' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
