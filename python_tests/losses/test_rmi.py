"""The region mutual information loss: published values, the plain formulation, inputs on which published code fails."""

import doctest
import random

import pytest
import torch
from torch import Tensor

import hmsa_ext.losses.rmi
from hmsa_ext.losses.rmi import rmi_bce_loss, rmi_loss
from python_tests.losses import rmi_reference
from python_tests.ops.problems import CHANNELS_LAST, CONTIGUOUS, make_problem, random_problem


def of_one_scale(function, logits: Tensor, target: Tensor, **options) -> Tensor:
    return function([logits], [], [1.0], target, **options)


def published_case(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    n, c, y, x = torch.meshgrid(*(torch.arange(k, dtype=torch.float64) for k in (2, 5, 32, 48)), indexing="ij")
    logits = 2 * torch.sin(0.1 * (n + 1) * (c + 1) * y + 0.07 * x)
    n, y, x = (t[:, 0].long() for t in (n, y, x))
    target = (y // 8 + x // 12 + n) % 5
    target[(x + y) % 17 == 0] = 255
    assert (target != 255).sum() == 2892
    return logits.to(device, dtype).requires_grad_(), target.to(device)


def random_target(problem, seed: int) -> Tensor:
    """Labels in blocks, a tenth of the pixels ignored."""
    generator = torch.Generator().manual_seed(seed)
    batch, classes = problem.logits[0].shape[:2]
    height, width = problem.size
    blocks = torch.randint(0, classes, (batch, -(-height // 5), -(-width // 7)), generator=generator)
    target = blocks.repeat_interleave(5, 1)[:, :height].repeat_interleave(7, 2)[:, :, :width].contiguous()
    target[torch.rand(target.shape, generator=generator) < 0.1] = 255
    return target.to(problem.logits[0].device)


def check_against_reference(problem, target: Tensor, value: float, gradient: float) -> None:
    """Both losses and their gradients against the plain formulation of the fused logits in float64."""
    truth = problem.to(torch.float64)
    for ours, theirs in ((rmi_loss, rmi_reference.rmi_loss), (rmi_bce_loss, rmi_reference.rmi_bce_loss)):
        loss = ours(problem.logits, problem.attention, problem.scales, target, align_corners=problem.align_corners)
        expected = theirs(truth.reference(), target)
        assert loss.item() == pytest.approx(expected.item(), rel=value, abs=value)
        gradients = torch.autograd.grad(loss, problem.inputs())
        for got, want in zip(gradients, torch.autograd.grad(expected, truth.inputs()), strict=True):
            assert (got.double() - want).abs().max().item() <= gradient * want.abs().max().item()


# ---- values -----------------------------------------------------------------------------------------------------


def test_published_values_are_reproduced(device):
    logits, target = published_case(device)
    full, bce = of_one_scale(rmi_loss, logits, target), of_one_scale(rmi_bce_loss, logits, target)
    assert bce.item() == pytest.approx(4.6696014, rel=1e-6)
    assert full.item() == pytest.approx(2.6490018, rel=1e-6)
    assert 2 * full.item() - bce.item() == pytest.approx(0.6284022, rel=1e-5)
    full.backward()
    assert logits.grad is not None
    # The published gradient went through an inverse; four digits are what float32 inputs leave of it.
    assert logits.grad.abs().sum().item() == pytest.approx(1.8082224, rel=1e-4)
    assert logits.grad[0, 0, 0, 1].item() == pytest.approx(4.621925e-05, rel=1e-3)


@pytest.mark.parametrize("size", [(8, 8), (17, 31), (64, 48)])
def test_value_and_gradient_are_those_of_the_inverse_formulation(device, size):
    problem = make_problem([1.0], size, classes=4, stride=1, dtype=torch.float64, device=device)
    target = random_target(problem, 0)
    (logits,) = problem.logits
    loss, expected = of_one_scale(rmi_loss, logits, target), rmi_reference.inverse_formulation(logits, target)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    gradient, expected_gradient = (torch.autograd.grad(x, logits)[0] for x in (loss, expected))
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("class_wise", [False, True])
@pytest.mark.parametrize("scales", [[1.0], [0.5], [1.0, 0.5], [2.0, 1.0, 0.5], [2.0, 1.5, 1.0, 0.25]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradients_are_those_of_the_plain_formulation(device, dtype, scales, class_wise, memory_format):
    problem = make_problem(
        scales, (43, 62), class_wise=class_wise, dtype=dtype, memory_format=memory_format, device=device
    )
    check_against_reference(problem, random_target(problem, 1), 1e-6, 1e-5 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("seed", range(30))
def test_random_chains_are_those_of_the_plain_formulation(device, seed):
    problem = random_problem(seed, dtype=torch.float64, device=device)
    if min(problem.size) < 8:
        problem.size = (8 + seed % 4, 8 + problem.size[1])
    check_against_reference(problem, random_target(problem, seed), 1e-9, 1e-8)


def test_images_of_more_than_one_tile(device):
    """Sides around those of the tiles that the kernels work in, and one that is in no window at all."""
    for size in ((103, 13), (9, 515), (130, 519)):
        problem = make_problem([1.0, 0.5], size, classes=2, batch=1, dtype=torch.float64, device=device)
        check_against_reference(problem, random_target(problem, 2), 1e-9, 1e-8)


def test_gradients_are_right(device):
    problem = make_problem([1.0, 0.5], (9, 11), classes=2, batch=1, stride=2, dtype=torch.float64, device=device)
    target = random_target(problem, 3)

    def loss(function):
        return lambda high, low, attention: function([high, low], [attention], [1.0, 0.5], target)

    assert torch.autograd.gradcheck(loss(rmi_loss), problem.inputs())
    assert torch.autograd.gradcheck(loss(rmi_bce_loss), problem.inputs())


def test_scales_come_in_any_order(device):
    problem = make_problem([2.0, 1.0, 0.5], (24, 32), device=device)
    target = random_target(problem, 4)
    (large, unit, small), (of_unit, of_small) = problem.logits, problem.attention
    expected = rmi_loss(problem.logits, problem.attention, problem.scales, target)
    assert torch.equal(rmi_loss([small, unit, large], [of_small, of_unit], [0.5, 1.0, 2.0], target), expected)


# ---- random and degenerate maps ---------------------------------------------------------------------------------


def label_map(rng: random.Random, size: tuple[int, int], classes: int) -> Tensor:
    """Labels as no one would draw them: one class, single pixels, stripes, boards, noise, hardly a valid pixel."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    kind = rng.choice(["one", "pixel", "stripes", "board", "noise", "halves", "corner"])
    if kind == "one":
        labels = torch.full(size, rng.randrange(classes))
    elif kind == "pixel":
        labels = torch.zeros(size, dtype=torch.long)
        labels[rng.randrange(height), rng.randrange(width)] = classes - 1
    elif kind == "stripes":
        labels = (y if rng.random() < 0.5 else x) // rng.randint(1, 9) % classes
    elif kind == "board":
        labels = (x // rng.choice([1, 4]) + y // rng.choice([1, 4])) % classes
    elif kind == "noise":
        labels = torch.randint(0, classes, size, generator=torch.Generator().manual_seed(rng.randrange(1 << 30)))
    elif kind == "halves":
        labels = (x > width // 2).long() * (classes - 1)
    else:
        labels = ((x > width - 5) & (y > height - 5)).long() * rng.randrange(classes)
    ignored = rng.choice(["none", "none", "columns", "all", "all but one", "noise"])
    if ignored == "columns":
        labels[:, rng.randrange(width) :] = 255
    elif ignored in ("all", "all but one"):
        kept = labels[0, 0].item()
        labels = torch.full(size, 255)
        if ignored == "all but one":
            labels[rng.randrange(height), rng.randrange(width)] = kept
    elif ignored == "noise":
        labels[torch.rand(size, generator=torch.Generator().manual_seed(rng.randrange(1 << 30))) < 0.5] = 255
    return labels


def prediction(rng: random.Random, labels: Tensor, classes: int) -> Tensor:
    """Logits [C, H, W]: random, constant, right or wrong beyond doubt, saturated."""
    kind = rng.choice(["random", "constant", "zero", "perfect", "wrong", "saturated", "tiny"])
    noise = torch.randn(classes, *labels.shape, generator=torch.Generator().manual_seed(rng.randrange(1 << 30)))
    own = (labels == torch.arange(classes).view(-1, 1, 1)).double()
    logits = {
        "random": 3 * noise,
        "constant": torch.full_like(noise, rng.uniform(-9, 9)),
        "zero": torch.zeros_like(noise),
        "perfect": rng.choice([1, 8, 30, 200]) * (2 * own - 1),
        "wrong": rng.choice([1, 8, 30, 200]) * (1 - 2 * own),
        "saturated": 1e4 * noise.sign(),
        "tiny": 1e-6 * noise,
    }[kind]
    return logits.double()


@pytest.mark.parametrize("seed", range(10))
def test_thousands_of_random_and_degenerate_maps(device, seed):
    """Ten times 25 batches of 8 maps."""
    rng = random.Random(seed)
    for _ in range(25):
        size = (rng.randint(8, 33), rng.randint(8, 33))
        classes = rng.randint(1, 4)
        maps = [label_map(rng, size, classes) for _ in range(8)]
        target = torch.stack(maps).to(device)
        logits = torch.stack([prediction(rng, labels, classes) for labels in maps]).to(device).requires_grad_()
        loss, expected = of_one_scale(rmi_loss, logits, target), rmi_reference.rmi_loss(logits, target)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)
        (gradient,), (expected_gradient,) = (torch.autograd.grad(x, logits) for x in (loss, expected))
        for got, want in zip(gradient, expected_gradient, strict=True):
            assert (got - want).abs().max() <= 1e-5 * want.abs().max() + 1e-12
        single = logits.detach().float().requires_grad_()
        loss = of_one_scale(rmi_loss, single, target)
        (gradient,) = torch.autograd.grad(loss, single)
        assert gradient.isfinite().all()
        # In float32 what a matrix is singular in is known to the rounding of the probabilities, not further.
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("case", ["constant", "saturated", "perfect"])
def test_large_degenerate_maps_stay_accurate(device, case: str):
    """Rounding of the covariances stays below the ridge, where it grew with the square of the map."""
    size = 512
    rows = torch.arange(size, device=device).view(1, -1, 1).expand(1, -1, size)
    target = (rows // 8) % 3  # of 4 classes one is absent
    own = (target.unsqueeze(1) == torch.arange(4, device=device).view(1, -1, 1, 1)).float()
    logits = {"constant": 0.7 + 0 * own, "saturated": 1e4 * (own - 0.3), "perfect": 60 * own - 30}[case]
    logits.requires_grad_()
    loss = of_one_scale(rmi_loss, logits, target)
    assert loss.item() == pytest.approx(rmi_reference.rmi_loss(logits.detach().double(), target).item(), rel=1e-6)
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


@pytest.mark.parametrize("case", ["constant", "saturated", "wrong", "perfect", "tiny"])
@pytest.mark.parametrize("labels", ["one", "halves", "blocks", "ignored"])
def test_degenerate_maps_of_two_scales_are_as_accurate_as_promised(device, case: str, labels: str):
    """Heads at a quarter of their grids, which have kernels of their own on a GPU; the third class is absent."""
    size, classes = (96, 128), 3
    y, x = torch.meshgrid(*(torch.arange(side, device=device) for side in size), indexing="ij")
    maps = {"one": 0 * x + 1, "halves": x // 64, "blocks": (x // 8 + y // 16) % 2, "ignored": 0 * x + 255}
    target = maps[labels].unsqueeze(0)
    own = (target[:, None, 2::4, 2::4] == torch.arange(classes, device=device).view(1, -1, 1, 1)).float()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(own.shape, generator=generator).to(device)
    value = {
        "constant": 0.7 + 0 * own,
        "saturated": 1e4 * (own - 0.3),
        "wrong": 50 - 100 * own,
        "perfect": 100 * own - 50,
        "tiny": 1e-6 * noise,
    }[case]
    inputs = value, value[:, :, ::2, ::2].contiguous(), torch.rand(1, 1, 12, 16, generator=generator).to(device)

    def loss_and_gradients(dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
        high, low, attention = (t.to(dtype).requires_grad_() for t in inputs)
        loss = rmi_loss([high, low], [attention], [1.0, 0.5], target)
        return loss, torch.autograd.grad(loss, (high, low))

    loss, gradients = loss_and_gradients(torch.float32)
    expected, expected_gradients = loss_and_gradients(torch.float64)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    for got, want in zip(gradients, expected_gradients, strict=True):
        assert (got - want).abs().max().item() <= 1e-3 * max(want.abs().max().item(), 1 / target.numel())


# ---- special inputs ---------------------------------------------------------------------------------------------


def test_target_without_a_valid_pixel_costs_nothing(device):
    problem = make_problem([1.0, 0.5], (16, 16), device=device)
    problem.logits[0].data[0, 0] = float("nan")
    target = torch.full((2, 16, 16), 255, dtype=torch.uint8, device=device)
    for function in (rmi_loss, rmi_bce_loss):
        loss = function(problem.logits, problem.attention, problem.scales, target)
        assert loss.item() == 0
        if function is rmi_loss:
            problem.logits[0].data.nan_to_num_()
        loss = function(problem.logits, problem.attention, problem.scales, target)
        assert all((g == 0).all() for g in torch.autograd.grad(loss, problem.inputs()))


def test_ignored_pixels_do_not_matter(device):
    logits, target = published_case(device)
    ignored = (target == 255).unsqueeze(1)
    expected = of_one_scale(rmi_loss, logits, target)
    for value in (5.0, float("inf"), float("nan")):
        changed = torch.where(ignored, value, logits.detach()).requires_grad_()
        loss = of_one_scale(rmi_loss, changed, target)
        assert torch.equal(loss, expected)
        (gradient,) = torch.autograd.grad(loss, changed)
        assert (gradient.movedim(1, -1)[target == 255] == 0).all()


def test_not_a_number_passes_through(device):
    logits, target = published_case(device)
    bad = logits.detach().clone()
    bad[0, 1, 4, 6] = float("nan")
    assert target[0, 4, 6] != 255
    for function in (rmi_loss, rmi_bce_loss):
        assert of_one_scale(function, bad, target).isnan()
    assert of_one_scale(rmi_loss, bad.requires_grad_(), target).isnan()


def test_infinite_logits_are_limits(device):
    _, target = published_case(device)
    own = target.unsqueeze(1) == torch.arange(5, device=device).view(1, -1, 1, 1)
    right = torch.where(own, torch.inf, -torch.inf).requires_grad_()
    large = torch.where(own, 1e4, -1e4)
    loss = of_one_scale(rmi_loss, right, target)
    torch.testing.assert_close(loss, of_one_scale(rmi_loss, large, target))
    assert torch.autograd.grad(loss, right)[0].isfinite().all()
    assert of_one_scale(rmi_loss, -right, target) == torch.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(device, dtype):
    problem = make_problem([1.0, 0.5], (37, 45), dtype=dtype, device=device)
    target = random_target(problem, 5)
    wide = problem.to(torch.float32)
    loss, expected = (rmi_loss(p.logits, p.attention, p.scales, target) for p in (problem, wide))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(x, p.inputs()) for x, p in ((loss, problem), (expected, wide)))
    for got, want in zip(ours, theirs, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, want.to(dtype))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_type(device, dtype):
    logits, target = published_case(device)
    expected = of_one_scale(rmi_loss, logits, target)
    assert torch.equal(of_one_scale(rmi_loss, logits, target.to(dtype)), expected)


def test_another_label_is_ignored(device):
    logits, target = published_case(device)
    expected = of_one_scale(rmi_loss, logits, target)
    for label in (-100, 300):
        other = torch.where(target == 255, label, target)
        assert torch.equal(of_one_scale(rmi_loss, logits, other, ignore_index=label), expected)


def test_a_class_may_be_ignored(device):
    """Its pixels do not count, and no pixel of another class is of it."""
    logits, target = published_case(device, torch.float64)
    loss = of_one_scale(rmi_loss, logits, torch.where(target == 255, 2, target), ignore_index=2)
    expected = rmi_reference.rmi_loss(logits, torch.where(target == 2, 255, target))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)


def test_rows_of_the_inverse_are_the_same_both_ways(device):
    """CUDA tensors take triangular solves and CPU tensors the inverse; here both are asked, and the CPU too."""
    samples = torch.randn(3, 4, 18, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    samples[..., 9:, :] += samples[..., :9, :]  # what is known of the labels
    factor = torch.linalg.cholesky(samples @ samples.mT)
    wanted = torch.linalg.inv(factor)[..., 9:, :]
    for rows in (hmsa_ext.losses.rmi._rows_by_solve(factor), hmsa_ext.losses.rmi._rows_by_inverse(factor)):
        # The inverse of J squares the condition of its factor, here some tens.
        assert torch.allclose(rows, wanted, rtol=0, atol=1e-12)
    assert hmsa_ext.losses.rmi._rows_by_solve(factor[:0]).shape == (0, 4, 9, 18)


def test_an_empty_batch_costs_nothing(device):
    logits = torch.zeros(0, 3, 4, 4, device=device, requires_grad=True)
    target = torch.zeros(0, 16, 16, dtype=torch.uint8, device=device)
    for function in (rmi_loss, rmi_bce_loss):
        loss = of_one_scale(function, logits, target)
        assert loss.item() == 0
        assert torch.autograd.grad(loss, logits)[0].shape == logits.shape


def test_small_images_are_refused(device):
    logits, target = torch.zeros(1, 2, 7, 9, device=device), torch.zeros(1, 7, 9, dtype=torch.long, device=device)
    with pytest.raises(ValueError, match=r"needs at least 8 x 8 pixels, got \[1, 7, 9\]"):
        of_one_scale(rmi_loss, logits, target)
    assert of_one_scale(rmi_bce_loss, logits, target).isfinite()


def test_a_label_outside_the_classes_is_loud(device):
    logits, target = published_case(device)
    target[0, 1, 3] = 5
    for function in (rmi_loss, rmi_bce_loss):
        if device.type == "cpu":
            message = r"fuse_scales_rmi: target has labels that are no class in 1 pixels, from 5 to 5; expected 0 to 4"
            with pytest.raises(RuntimeError, match=message):
                of_one_scale(function, logits, target)
        else:
            assert of_one_scale(function, logits, target).isnan()


@pytest.mark.compile
def test_compiles_whole(device):
    problem = make_problem([1.0, 0.5], (24, 36), device=device)
    target = random_target(problem, 6)

    def loss(high, low, attention):
        return rmi_loss([high, low], [attention], [1.0, 0.5], target) + rmi_bce_loss([low], [], [1.0], target)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours, expected = compiled(*problem.inputs()), loss(*problem.inputs())
    torch.testing.assert_close(ours, expected)
    for got, want in zip(
        torch.autograd.grad(ours, problem.inputs()), torch.autograd.grad(expected, problem.inputs()), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_examples_in_docstrings_run():
    result = doctest.testmod(hmsa_ext.losses.rmi, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
