"""Crop and length that follow from the data, and the default collate of PyTorch."""

import doctest
import importlib
from typing import Any, cast

import numpy as np
import pytest
import torch

from hmsa_ext import data
from hmsa_ext.data.files import read_image

from .picture_sets import Blocks
from .pictures import write, write_image


@pytest.mark.parametrize(
    ("size", "crop"),
    [
        ((1024, 2048), (352, 704)),
        ((2048, 1024), (704, 352)),
        ((360, 480), (352, 480)),
        ((512, 512), (512, 512)),
        ((513, 513), (512, 512)),
        ((20, 30), (32, 32)),
        ((3000, 4000), (416, 576)),
    ],
)
def test_the_crop_is_the_image_shrunk_to_an_area_in_multiples_of_32(size, crop):
    found, reason = data.fit_crop(size)
    assert found == crop
    assert f"the median image is {size[0]}x{size[1]}" in reason
    assert found[0] * found[1] <= 512 * 512


def test_the_typical_size_is_the_median_of_headers_and_opens_no_label(tmp_path):
    for k, size in enumerate([(40, 60), (50, 80), (300, 500)]):
        write_image(tmp_path / f"images/train/{k}.png", size)
        write(tmp_path / f"masks/train/{k}.png", np.zeros(size, np.uint8))
    (tmp_path / "dataset.yaml").write_text("names: [a, b]")
    dataset = data.build("folder", "train", root=tmp_path)
    for path in tmp_path.glob("masks/train/*"):
        path.write_bytes(b"gone")
    assert data.typical_size(dataset) == (50, 80)
    assert data.typical_size(Blocks(30)) == (56, 72)
    augment, reason = data.fit_augment(data.Augment(long_edge=160), dataset)
    assert augment.crop == (96, 160)
    assert augment.scale == (1.0, 2.0)
    assert "zoom 1 to 2: " in reason
    assert data.fit_augment(data.Augment(scale=(0.7, 0.8)), dataset)[0].scale == (0.7, 0.8)
    assert data.fit_augment(data.Augment(crop=(32, 32)), dataset)[0].scale == (0.5, 2.0)
    assert "100x160" in reason
    with pytest.raises(ValueError, match="crop: expected"):
        data.Augment().crop_size  # noqa: B018
    for path in tmp_path.glob("images/train/*"):
        path.write_bytes(b"gone")
    with pytest.raises(data.DataError, match="no image to take the size"):
        data.typical_size(dataset)


def test_at_the_smallest_zoom_the_image_fills_the_crop():
    for size in ((1024, 2048), (360, 480), (600, 400), (3000, 4000), (20, 30)):
        crop, _ = data.fit_crop(size)
        (low, high), _ = data.fit_zoom(size, crop)
        assert 0.5 <= low <= 1 < high == 2
        assert low == 1 or all(low * whole >= side - 1e-9 for side, whole in zip(crop, size, strict=True))


def test_small_data_sets_get_more_epochs_within_bounds():
    assert [data.fit_epochs(images)[0] for images in (1, 100, 200, 2000, 5000)] == [200, 200, 100, 10, 10]
    assert data.fit_epochs(367)[1] == "20000 crops of 367 images, within 10 to 200 epochs"


@pytest.mark.parametrize("module", ["fit", "by_name", "settings"])
def test_the_examples_run(module):
    result = doctest.testmod(importlib.import_module(f"hmsa_ext.data.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_the_default_collate_of_pytorch_makes_batches_of_equal_sizes(workers):
    scenes = data.build("synthetic", "val", size=(64, 96), length=4)
    loader = torch.utils.data.DataLoader(cast(Any, scenes), batch_size=2, num_workers=workers)
    batches = list(loader)
    assert [batch.images.shape for batch in batches] == [(2, 3, 64, 96)] * 2
    assert np.array_equal(data.denormalise(batches[1].images[0]), scenes[2].image)
    assert np.array_equal(batches[0].labels[1].numpy(), scenes[1].label)
    assert batches[0].names == ["val_00000", "val_00001"]
    assert batches[0].to("cpu").names == batches[0].names


def test_the_default_collate_names_sizes_that_differ():
    loader = torch.utils.data.DataLoader(cast(Any, Blocks()), batch_size=4)
    with pytest.raises(data.DataError, match="expected pictures of one size, got 48x64, 48x80, 56x80, 64x64; use"):
        next(iter(loader))


def test_twelve_bits_in_sixteen_are_stretched_by_a_stated_white(tmp_path):
    stored = np.array([[0, 1000, 4095, 5000]], np.uint16)
    path = write(tmp_path / "images/train/a.png", np.dstack([stored] * 3))
    write(tmp_path / "masks/train/a.png", np.array([[0, 1, 0, 1]], np.uint8))
    assert read_image(path)[0, :, 0].tolist() == [0, 3, 15, 19]
    (tmp_path / "dataset.yaml").write_text("names: [a, b]\nwhite: 4095\n")
    image = data.build("folder", "train", root=tmp_path)[0].image
    assert image[0, :, 1].tolist() == [0, 62, 255, 255]


def test_a_table_of_classes_goes_through_plain_values():
    classes = data.Synthetic.classes
    content = classes.to_dict()
    assert cast("list[str]", content["names"])[0] == "road"
    assert cast("list[list[int]]", content["colours"])[0] == [128, 64, 128]
    assert data.ClassTable.from_dict(content) == classes
    for wrong, text in (
        ({"names": ["a"]}, "got no colours"),
        ({}, "got no colours and no names"),
        ({"names": "ab", "colours": []}, "names: expected a list of texts"),
        ({"names": ["a"], "colours": [[0, 0]]}, "colours: expected"),
    ):
        with pytest.raises(ValueError, match=text):
            data.ClassTable.from_dict(wrong)
