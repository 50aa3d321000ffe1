"""sample_crop: the arithmetic in float64 of the reference, and by OpenCV, for boxes anywhere and images of any size."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import hmsa_ext
from bench.meters import LiveBytes, peak_memory
from hmsa_ext.data.opencv import cv2
from hmsa_ext.ops import library, reference_crop

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NOTHING = (1.0, 1.0, 1.0, 0.0)
# Everything is calculated in float32 on 0..255, where half an ulp is 7.6e-6 of a level: sums of products with factors
# up to 1.5 * 1.5 and matrices whose rows add up to 3 lose a few dozen of these, 2e-4 levels, or 4e-6 when divided by
# 255 * std. The other types add half an ulp of values up to 2.7.
TOLERANCE = {torch.float32: 4e-6, torch.float16: 4e-6 + 2**-10, torch.bfloat16: 4e-6 + 2**-7}

Colour = tuple[float, float, float]
# Images, labels, boxes, flip, jitter, size, mean, std.
CropArguments = tuple[list[Tensor], list[Tensor], Tensor, Tensor, Tensor, tuple[int, int], Colour, Colour]


class Crops:
    """Arguments of the op: random images, and boxes in, across and outside them."""

    def __init__(self, seed: int, device, count: int = 4, sizes=((17, 33), (1, 1), (40, 70)), size=(20, 32)) -> None:
        chance = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        self.size = size
        shapes = [chance.choice(sizes) for _ in range(2)]
        images = [torch.randint(0, 256, (*s, 3), generator=generator, dtype=torch.uint8) for s in shapes]
        labels = [torch.randint(0, 200, s, generator=generator, dtype=torch.uint8) for s in shapes]
        self.images, self.labels = [x.to(device) for x in images], [x.to(device) for x in labels]
        boxes = []
        for _ in range(count):
            image = chance.randrange(2)
            height, width = shapes[image]
            tall, wide = chance.randint(1, 2 * height + 2), chance.randint(1, 2 * width + 2)
            y, x = chance.randint(-tall - 1, height + 1), chance.randint(-wide - 1, width + 1)
            boxes.append([image, y, x, y + tall, x + wide])
        self.boxes = torch.tensor(boxes, dtype=torch.int64).view(-1, 5)
        self.flip = torch.rand(count, generator=generator) < 0.5
        self.jitter = torch.rand(count, 4, generator=generator) + torch.tensor([0.5, 0.5, 0.5, -0.5])

    def plain(self) -> Crops:
        self.jitter = torch.tensor([NOTHING]).repeat(len(self.boxes), 1)
        return self

    def whole(self) -> Crops:
        """Boxes that are the first image."""
        self.boxes = torch.tensor([[0, 0, 0, *self.labels[0].shape]]).repeat(len(self.boxes), 1)
        return self

    def arguments(self) -> CropArguments:
        return self.images, self.labels, self.boxes, self.flip, self.jitter, self.size, MEAN, STD

    def keywords(self) -> dict[str, Any]:
        """The arguments by name, of any type: tests replace them by values that do not fit."""
        names = ("images", "labels", "boxes", "flip", "jitter", "size", "mean", "std")
        return dict(zip(names, self.arguments(), strict=True))


def assert_agree(crops: Crops, **options) -> tuple:
    """The op's result, which is that of the reference."""
    images, labels = hmsa_ext.sample_crop(*crops.arguments(), **options)
    dtype = options.pop("dtype", torch.float32)
    wanted, wanted_labels = reference_crop.sample_crop(*crops.arguments(), **options, dtype=torch.float64)
    assert torch.equal(labels, wanted_labels)
    assert labels.dtype == torch.uint8
    assert images.dtype == dtype
    assert images.shape == wanted.shape
    assert images.stride() == wanted.stride()
    assert images.device == wanted.device == crops.images[0].device
    if wanted.numel():
        assert (images.double() - wanted).abs().max().item() <= TOLERANCE[dtype]
    return images, labels


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(20, 32), (1, 1), (7, 1), (3, 65), (41, 100)])
@pytest.mark.parametrize("seed", range(6))
def test_boxes_anywhere(device, seed, size, antialias):
    assert_agree(Crops(seed, device, size=size), antialias=antialias)
    assert_agree(Crops(seed, device, size=size).plain(), antialias=antialias)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(4, 8), (8, 16), (23, 47), (64, 128), (128, 64), (300, 700), (1024, 2048)])
def test_up_and_down_by_up_to_sixteen(device, size, antialias):
    """From 64 x 128: by whole and odd ratios, and by different ones along the two axes."""
    crops = Crops(1, device, count=2, sizes=((64, 128),), size=size).whole()
    crops.flip = torch.tensor([False, True])
    crops.jitter[1] = torch.tensor(NOTHING)
    assert_agree(crops, antialias=antialias)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(19, 31), (16, 64)])
def test_types_and_formats(device, size, dtype, channels_last):
    crops = Crops(3, device, size=size)
    blur = torch.tensor([0.0, 1.0, 0.0, 2.0])
    images, _ = assert_agree(crops, dtype=dtype, channels_last=channels_last, blur=blur)
    assert images.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize("sigma", [0.05, 0.15, 0.34, 1.0, 1.3, 2.5, 4.0])
@pytest.mark.parametrize("size", [(20, 32), (1, 1), (3, 5), (2, 50), (50, 2), (70, 90)])
def test_blur_also_of_crops_smaller_than_its_radius(device, size, sigma):
    crops = Crops(5, device, size=size)
    assert_agree(crops, blur=torch.tensor([sigma, 0.0, sigma, 0.3]))
    assert_agree(crops.plain().whole(), blur=torch.full((4,), sigma))


@pytest.mark.parametrize("part", range(4))
def test_each_colour_change_alone(device, part):
    crops = Crops(7, device).plain()
    crops.jitter[:, part] = torch.tensor([0.0, 0.6, 1.7, 30.25])
    assert_agree(crops)


def test_identity_is_the_image(device):
    crops = Crops(2, device, sizes=((20, 33),), size=(20, 33)).plain().whole()
    crops.flip[:] = False
    images, labels = hmsa_ext.sample_crop(*crops.arguments()[:-2], (0, 0, 0), (1 / 255,) * 3)
    assert torch.equal(images[0].round().byte().permute(1, 2, 0), crops.images[0])
    assert torch.equal(labels[0], crops.labels[0])


def test_margin_keeps_its_colour_and_is_ignored(device):
    crops = Crops(2, device, count=3, sizes=((20, 32),), size=(20, 32))
    crops.boxes = torch.tensor([[0, -20, 0, 0, 32], [0, 5, 32, 25, 64], [0, -10, 0, 10, 32]])
    crops.flip[:] = False
    images, labels = assert_agree(crops, ignore_index=7, blur=torch.tensor([1.0, 0.0, 0.0]))
    assert images[:2].abs().max().item() < 1e-6
    assert labels[:2].eq(7).all()
    assert images[2, :, :10].abs().max().item() < 1e-6
    assert labels[2, :10].eq(7).all()


def test_only_the_part_inside_counts_for_contrast(device):
    crops = Crops(2, device, count=1, sizes=((30, 40),), size=(30, 40)).plain()
    crops.jitter[0, 1] = 0.0  # the mean luma, and nothing else
    crops.boxes = torch.tensor([[0, -15, -20, 15, 20]])
    crops.flip[:] = False
    images, _ = assert_agree(crops)
    inside = crops.images[0][:15, :20].double().mean((0, 1)) @ torch.tensor([0.299, 0.587, 0.114]).double().to(device)
    got = images[0, :, 15:, 20:].double() * torch.tensor(STD, device=device).view(3, 1, 1)
    got = 255 * (got + torch.tensor(MEAN, device=device).view(3, 1, 1))
    assert (got - inside).abs().max().item() < 1e-3


def test_any_strides_are_read(device):
    crops = Crops(4, device)
    expected = hmsa_ext.sample_crop(*crops.arguments())
    images, labels = crops.images, crops.labels

    def with_gaps(tensor):
        return tensor.repeat_interleave(2, dim=1)[:, ::2]

    forms = {
        "planes": [x.permute(2, 0, 1).contiguous().permute(1, 2, 0) for x in images],
        "columns first": [x.transpose(0, 1).contiguous().transpose(0, 1) for x in images],
        "four channels": [torch.cat([x, x[..., :1]], 2)[..., :3] for x in images],
        "gaps": [with_gaps(x) for x in images],
        "part of a row": [torch.cat([x, x], 1)[:, : x.shape[1]] for x in images],
    }
    for form in forms.values():
        crops.images, crops.labels = form, [with_gaps(x) for x in labels]
        for ours, theirs in zip(hmsa_ext.sample_crop(*crops.arguments()), expected, strict=True):
            assert torch.equal(ours, theirs)
    crops.images = [x[:1, :1].expand(x.shape) for x in images]
    crops.labels = [x[:1, :1].expand(x.shape) for x in labels]
    assert_agree(crops)


def test_nothing_beside_the_box_is_read(device):
    """Images that end where the memory does; boxes at their corners."""
    crops = Crops(4, device, sizes=((21, 35),), size=(16, 24)).plain()
    crops.boxes = torch.tensor([[0, 0, 0, 21, 35], [0, 20, 34, 21, 35], [0, 5, 18, 21, 35], [1, 10, 0, 21, 35]])
    assert_agree(crops)
    alone = assert_agree(crops, antialias=True)
    for image in crops.images:
        image[:10, :17] = 255 - image[:10, :17]  # part of the first box alone
    for ours, theirs in zip(hmsa_ext.sample_crop(*crops.arguments(), antialias=True), alone, strict=True):
        assert torch.equal(ours[1:], theirs[1:])


def test_opencv_agrees(device):
    """INTER_LINEAR and GaussianBlur on float images, an outside witness; a reduction to half, since OpenCV's linear
    interpolation has no antialiasing either."""
    crops = Crops(9, device, count=1, sizes=((96, 160),), size=(40, 60)).plain()
    crops.boxes = torch.tensor([[0, 7, 20, 87, 140]])
    crops.flip[:] = False
    images, _ = hmsa_ext.sample_crop(*crops.arguments(), blur=torch.tensor([1.1]))
    box = crops.images[0][7:87, 20:140].float().cpu().numpy()
    wanted = cv2.GaussianBlur(cv2.resize(box, (60, 40), interpolation=cv2.INTER_LINEAR), (9, 9), 1.1)
    wanted = (torch.from_numpy(wanted) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    assert (images[0].permute(1, 2, 0).cpu() - wanted).abs().max().item() < 1e-5


def test_items_do_not_depend_on_each_other(device):
    crops = Crops(6, device, count=40, size=(18, 21))
    blur = torch.rand(40) * (torch.rand(40) < 0.5)
    images, labels = assert_agree(crops, blur=blur, antialias=True)
    sources, truths, boxes, flip, jitter, size, mean, std = crops.arguments()
    for n in range(0, 40, 3):
        item = slice(n, n + 1)
        own = boxes[item], flip[item], jitter[item]
        one = hmsa_ext.sample_crop(sources, truths, *own, size, mean, std, blur=blur[item], antialias=True)
        assert torch.equal(one[0][0], images[n])
        assert torch.equal(one[1][0], labels[n])


def test_same_bits_for_every_number_of_threads():
    crops = Crops(8, "cpu", count=3, sizes=((300, 200),), size=(150, 90))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(hmsa_ext.sample_crop(*crops.arguments(), blur=torch.tensor([0.0, 1.0, 4.0])))
    finally:
        torch.set_num_threads(before)
    for images, labels in results[1:]:
        assert torch.equal(images, results[0][0])
        assert torch.equal(labels, results[0][1])


def test_far_boxes_are_the_mean_colour(device):
    crops = Crops(0, device, count=3)
    far = 1 << 30
    crops.boxes = torch.tensor([[0, -far, -far, 9 - far, 9 - far], [0, far - 9, 0, far, 9], [0, 0, far - 9, 9, far]])
    images, labels = hmsa_ext.sample_crop(*crops.arguments())
    assert images.abs().max().item() < 1e-6
    assert labels.eq(255).all()


def test_plain_pytorch_where_there_are_no_kernels(device, monkeypatch):
    crops = Crops(3, device)
    wanted = hmsa_ext.sample_crop(*crops.arguments(), blur=torch.ones(4), dtype=torch.bfloat16)
    monkeypatch.setattr(library, "has_kernels", lambda op, device: False)
    got = hmsa_ext.sample_crop(*crops.arguments(), blur=torch.ones(4), dtype=torch.bfloat16)
    torch.testing.assert_close(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])


def test_no_boxes_and_no_images(device):
    crops = Crops(0, device, count=0)
    for channels_last in (False, True):
        images, labels = assert_agree(crops, channels_last=channels_last)
        assert images.shape == (0, 3, 20, 32)
        assert labels.shape == (0, 20, 32)
    crops.images, crops.labels = [], []
    images, _ = hmsa_ext.sample_crop(*crops.arguments())
    assert images.shape == (0, 3, 20, 32)


@pytest.mark.memory
def test_nothing_but_the_result_is_allocated(device):
    """Scratch is a few rows, and a dozen more with a blur, whatever the sizes of images and boxes."""
    crops = Crops(0, device, count=2, sizes=((2048, 2048),), size=(1024, 1024)).whole()
    result = 2 * 1024 * 1024 * (3 * 4 + 1)

    def sample():
        torch.ops.hmsa.sample_crop(*crops.arguments(), blur=torch.tensor([0.0, 4.0]), antialias=True)

    sample()
    with LiveBytes() as meter:
        sample()
    assert meter.peak <= result + (1 << 16)
    # Every call needs its scratch; pages that the system took away meanwhile come back in one of them.
    peaks = [peak for peak in (peak_memory(sample, device) for _ in range(3)) if peak is not None]
    assert min(peaks, default=0) <= result + (4 << 20)


@pytest.mark.compile
def test_opcheck_and_compile(device):
    crops = Crops(1, device)
    blur = torch.rand(4)
    options = {"blur": blur, "dtype": torch.float16, "channels_last": True}
    opcheck(torch.ops.hmsa.sample_crop, crops.arguments(), options)
    opcheck(torch.ops.hmsa._sample_crop, (*crops.arguments(), blur, 255, True, "bfloat16", False))
    compiled = torch.compile(hmsa_ext.sample_crop, fullgraph=True, dynamic=True, backend="aot_eager")
    for count, size in ((4, (20, 32)), (2, (9, 40))):
        crops = Crops(2, device, count=count, size=size)
        for ours, theirs in zip(compiled(*crops.arguments()), hmsa_ext.sample_crop(*crops.arguments()), strict=True):
            assert torch.equal(ours, theirs)


# ---- what does not fit ------------------------------------------------------------------------------------------


def replaced(name: str, value, at: int | None = None):
    """Changes an argument of a call, or an entry of a list."""

    def change(arguments: dict) -> None:
        if at is None:
            arguments[name] = value
        else:
            arguments[name] = [*arguments[name]]
            arguments[name][at] = value

    return change


def entry(name: str, index: tuple, value):
    def change(arguments: dict) -> None:
        arguments[name] = arguments[name].clone()
        arguments[name][index] = value

    return change


BAD_INPUT = {
    "lists": (replaced("labels", []), r"images has 2 entries, labels 0; expected a label map for each image"),
    "image dtype": (replaced("images", torch.zeros(3, 4, 3), 1), r"images\[1\] is float32; expected uint8"),
    "image shape": (
        replaced("images", torch.zeros(3, 4, dtype=torch.uint8), 1),
        r"images\[1\] has shape \[3, 4\]; expected \[H, W, 3\]",
    ),
    "image planes": (
        replaced("images", torch.zeros(3, 4, 5, dtype=torch.uint8), 0),
        r"images\[0\] has shape \[3, 4, 5\]; expected \[H, W, 3\]",
    ),
    "label dtype": (replaced("labels", torch.zeros(9, 9).long(), 0), r"labels\[0\] is int64; expected uint8"),
    "label size": (
        replaced("labels", torch.zeros(9, 9, dtype=torch.uint8), 1),
        r"labels\[1\] has shape \[9, 9\]; expected \[12, 16\] as images\[1\] has it",
    ),
    "boxes dtype": (replaced("boxes", torch.zeros(2, 5).int()), r"boxes is int32; expected int64"),
    "boxes shape": (
        replaced("boxes", torch.zeros(2, 4).long()),
        r"boxes has shape \[2, 4\]; expected \[N, 5\]: image,",
    ),
    "image index": (
        entry("boxes", (1, 0), 2),
        r"boxes\[1\] is of image 2; expected the index of one of 2 images",
    ),
    "empty box": (
        entry("boxes", (1, 3), 2),
        r"boxes\[1\] is from \(2, 3\) to \(2, 9\); expected y0 < y1 and x0 < x1",
    ),
    "far box": (entry("boxes", (0, 2), -(1 << 40)), r"boxes\[0\] is from \(2, -1099511627776\) to \(8, 9\); expected"),
    "flip dtype": (replaced("flip", torch.zeros(2)), r"flip is float32; expected bool"),
    "flip shape": (replaced("flip", torch.zeros(3).bool()), r"flip has shape \[3\]; expected \[2\], one for each of"),
    "jitter dtype": (replaced("jitter", torch.ones(2, 4).double()), r"jitter is float64; expected float32"),
    "jitter shape": (replaced("jitter", torch.ones(2, 3)), r"jitter has shape \[2, 3\]; expected \[2, 4\], for each"),
    "contrast": (
        entry("jitter", (1, 1), float("nan")),
        r"jitter\[1, 1\] \(contrast\) is nan; expected a factor from 0 to 100",
    ),
    "brightness": (entry("jitter", (0, 0), -0.5), r"jitter\[0, 0\] \(brightness\) is -0.5; expected a factor from 0"),
    "hue": (entry("jitter", (1, 3), float("inf")), r"jitter\[1, 3\] \(hue\) is inf; expected whole turns from -100 to"),
    "size": (replaced("size", (0, 4)), r"size is \(0, 4\); expected sides from 1 to below"),
    "size length": (replaced("size", (4, 4, 4)), r"size has 3 entries; expected \(height, width\)|expected 2"),
    "mean": (replaced("mean", (123.7, 116.3, 103.5)), r"mean is \[123.7, 116.3, 103.5\]; expected numbers from 0 to 1"),
    "mean length": (replaced("mean", (0.5,)), r"mean has 1 entries; expected one for each of 3 channels"),
    "std": (replaced("std", (0.2, 0.0, 0.2)), r"std is \[0.2, 0, 0.2\]; expected positive numbers"),
    "blur dtype": (replaced("blur", torch.zeros(2).half()), r"blur is float16; expected float32"),
    "blur shape": (replaced("blur", torch.zeros(2, 1)), r"blur has shape \[2, 1\]; expected \[2\], one for each of"),
    "blur": (replaced("blur", torch.tensor([0.0, 4.5])), r"blur\[1\] is 4.5; expected a sigma from 0 \(none\) to 4"),
    "blur sign": (replaced("blur", torch.tensor([-1.0, 0])), r"blur\[0\] is -1; expected a sigma from 0"),
    "ignore_index": (replaced("ignore_index", 256), r"ignore_index is 256; expected 0 to 255, as labels are uint8"),
    "dtype": (replaced("dtype", torch.float64), r"dtype is float64; expected float32, float16 or bfloat16"),
    "gradient": (
        replaced("jitter", torch.ones(2, 4, requires_grad=True)),
        r"jitter requires a gradient, but the op has none; expected jitter.detach\(\)",
    ),
    "gradient of blur": (replaced("blur", torch.ones(2, requires_grad=True)), r"blur requires a gradient, but the op"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named(device, case):
    change, message = BAD_INPUT[case]
    crops = Crops(0, device, count=2, sizes=((12, 16),)).plain()
    crops.boxes = torch.tensor([[0, 2, 3, 8, 9], [1, 2, 3, 8, 9]])
    arguments = crops.keywords()
    change(arguments)
    for name in ("images", "labels"):
        arguments[name] = [x.to(device) for x in arguments[name]]
    with pytest.raises(RuntimeError, match=message if case == "size length" else f"^sample_crop: {message}"):
        hmsa_ext.sample_crop(**arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["boxes", "flip", "jitter", "blur"])
def test_small_tensors_on_a_gpu_are_refused(name):
    arguments = Crops(0, "cuda").keywords()
    arguments["blur"] = torch.zeros(4)
    arguments[name] = arguments[name].cuda()
    with pytest.raises(RuntimeError, match=f"sample_crop: {name} is on cuda:0; expected a CPU tensor"):
        hmsa_ext.sample_crop(**arguments)


@pytest.mark.gpu
def test_devices_that_differ_are_named():
    crops = Crops(0, "cuda")
    crops.labels[1] = crops.labels[1].cpu()
    with pytest.raises(RuntimeError, match=r"sample_crop: labels\[1\] is on cpu, images\[0\] on cuda:0; expected one"):
        hmsa_ext.sample_crop(*crops.arguments())
