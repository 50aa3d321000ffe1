"""One call per op and case, forward and backward, against plain PyTorch in float64.

    python -m bench.gpu_checks --lines FILE                    # large cases, one process per op, several at a time
    python -m bench.gpu_checks --lines FILE --op argmax        # one op, started again after a case that it died of
    compute-sanitizer python -m bench.gpu_checks --lines FILE --small --here      # few small cases, in this process

Each case appends a line: the relative error of every result, and whether all are within tolerance; or the exception.
The exit status is 1 if a case failed. Integer results must equal those of the CPU kernels.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import gc
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import hmsa_ext
from bench import competitors, published_rmi, supervise
from bench.cases import Case
from bench.commands import command_parser
from bench.competitors import Inputs
from bench.json_lines import JsonLines
from hmsa_ext.data.progress import usable_cores
from hmsa_ext.losses.rmi import rmi_loss
from hmsa_ext.ops import reference, reference_crop

# Relative to the largest value of a result. In float32 sums of thousands of terms; results in half precision are
# rounded once at the end, by at most 2^-11 and 2^-8.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-4, torch.bfloat16: 4e-3, torch.float64: 1e-11}
SUBNORMAL = {torch.float16: 2.0**-25}  # half the step of the smallest numbers, which gradients of a mean reach
SECONDS = 40.0  # for one case of one op, the process's start included


@dataclasses.dataclass
class Result:
    """One result of an op beside what it should be. ``least``: the size that errors are relative to, at least."""

    name: str
    got: Tensor
    wanted: Tensor
    least: float = 1e-30
    equal: bool = False  # bit for bit

    def error(self) -> float:
        wanted = self.wanted.to(self.got.device)
        if self.got.shape != wanted.shape:
            return float("inf")
        if self.equal:
            same = (self.got == wanted) | ((self.got != self.got) & (wanted != wanted))  # NaN is NaN
            return float((~same).sum())
        if wanted.numel() == 0:
            return 0.0
        wanted = wanted.double()
        quantum = SUBNORMAL.get(self.got.dtype, 0.0)
        difference = (self.got.double() - wanted).abs().max()
        # NaN stays NaN.
        return ((difference - quantum).clamp_min(0) / wanted.abs().max().clamp_min(self.least)).item()

    def tolerance(self) -> float:
        return 0.0 if self.equal else TOLERANCE[self.got.dtype]


Check = Callable[[], Iterator[Result]]
NamedCheck = tuple[tuple[str, str], Check]  # ((op, case), check)


def main() -> int:
    parser = command_parser("python -m bench.gpu_checks", __doc__)
    parser.add_argument("--lines", required=True, help="file to append to")
    parser.add_argument("--kind", default="check", help="of the lines: the sanitizer's have another")
    parser.add_argument("--op", choices=OPS, help="this op alone")
    parser.add_argument("--small", action="store_true", help="few small cases: for the sanitizer")
    parser.add_argument("--here", action="store_true", help="in this process, whatever happens")
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--dry", action="store_true", help="small cases, on the CPU, of two ops alone unless --here")
    options = parser.parse_args()
    if options.dry:
        options.device, options.small = "cpu", True
    lines = JsonLines(options.lines)
    if options.here or options.first is not None:
        checks = all_checks(options.op, options.device, options.small)
        return run_here(checks, options.first or 0, lines, options.kind, options.device)
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--op", options.op)]
    names = [options.op] if options.op else ["fuse_scales", "sample_crop"] if options.dry else list(OPS)
    # A process keeps one core busy; the card takes turns between them.
    with concurrent.futures.ThreadPoolExecutor(min(len(names), usable_cores())) as pool:
        whole = list(pool.map(lambda op: run_op(op, arguments, lines, options), names))
    return 0 if all(whole) else 1


def run_op(op: str, arguments: list[str], lines: JsonLines, options: argparse.Namespace) -> bool:
    command = [sys.executable, "-m", "bench.gpu_checks", *arguments, "--op", op]
    names = [case for (_, case), _ in all_checks(op, options.device, options.small)]
    failures = []

    def failed(name: str, why: str) -> None:
        failures.append(lines.append(options.kind, op=op, case=name, ok=False, error=why))
        print(f"{op} {name}: {why}", flush=True)

    supervise.supervise(command, names, SECONDS, failed)
    return not failures


def run_here(checks: list[NamedCheck], first: int, lines: JsonLines, kind: str, device: str) -> int:
    bad = []

    def run(check: NamedCheck) -> None:
        (op, case), function = check
        started = time.perf_counter()
        fields: dict = {"op": op, "case": case, "ok": True, "errors": {}}
        try:
            for result in function():
                error = result.error()
                fields["errors"][result.name] = error
                if not error <= result.tolerance():  # NaN is not
                    fields["ok"] = False
                    fields.setdefault("wrong", []).append(f"{result.name}: {error:.3g} > {result.tolerance():g}")
        except Exception as error:
            fields |= {"ok": False, "error": f"{type(error).__name__}: {str(error)[:500]}"}
        fields["seconds"] = round(time.perf_counter() - started, 3)
        if device == "cuda":
            release_memory()
        lines.append(kind, **fields)
        if not fields["ok"]:
            bad.append(case)
            print(f"FAILED {op} {case}: {fields.get('error') or '; '.join(fields['wrong'])}", flush=True)

    named = [(f"{op} {case}", ((op, case), check)) for (op, case), check in checks]
    supervise.run_items(named, first, run, lambda: healthy(device))
    return 1 if bad else 0


def release_memory() -> None:
    """Gives the card's memory back for the processes beside this one."""
    gc.collect()
    with contextlib.suppress(Exception):  # of a card that is unusable: the caller finds out
        torch.cuda.empty_cache()


def healthy(device: str) -> bool:
    """Whether the device still computes: an illegal access makes every later call fail."""
    if device != "cuda":
        return True
    try:
        torch.cuda.synchronize()
        return torch.ones(2, device="cuda").sum().item() == 2
    except Exception:
        return False


# ---- the cases ---------------------------------------------------------------------------------------------------


def chain_cases(small: bool) -> list[Case]:
    """Cases of the ops over a chain of scales: what users have, and odd ones. Each differs from the first in little."""
    three, four = (2.0, 1.0, 0.5), (2.0, 1.5, 1.0, 0.5)
    if small:  # what a sanitizer is shown: odd sizes, several blocks, vectors that fit and that do not, both formats
        return [
            Case("small, two scales", (37, 53), classes=5, batch=2),
            Case("small, three scales", (40, 96), three, classes=16, channels_last=True),
            Case("small, two scales of octaves", (24, 136), classes=24),
            Case("small, three scales of octaves, bfloat16", (24, 136), three, classes=5, dtype="bfloat16"),
            Case("small, scales 2 and 1", (20, 36), (2.0, 1.0), classes=3, batch=2),
            Case("small, four scales, stride 1", (29, 70), (1.5, 1.0, 0.75, 0.25), 5, stride=1, class_wise=True),
            Case("small, bfloat16", (37, 54), classes=19, dtype="bfloat16"),
            Case("small, stride 8, one pixel", (8, 8), classes=3, stride=8),
            Case("small, one scale off the grid", (35, 9), (0.5,), classes=3, stride=1),
        ]
    size, half, quarter = (1024, 2048), (512, 1024), (512, 512)
    return [
        Case("two scales", size),
        Case("three scales", size, three),
        Case("scales 2 and 1", size, (2.0, 1.0)),
        Case("two scales, bfloat16", size, dtype="bfloat16"),
        Case("two scales, float16", size, dtype="float16"),
        Case("two scales, channels_last", size, channels_last=True),
        Case("two scales, stride 8", size, stride=8),
        Case("odd size", (1023, 2047)),
        Case("class-wise attention", half, class_wise=True),
        Case("four scales", half, four),
        Case("three scales, bfloat16", size, three, dtype="bfloat16"),
        Case("channels_last, bfloat16", size, channels_last=True, dtype="bfloat16"),
        Case("1080x1920, stride 8", (1080, 1920), stride=8),
        Case("2 classes, three scales, stride 8", quarter, three, 2, stride=8),
        Case("three scales down, stride 8", (720, 960), (1.0, 0.5, 0.25), stride=8),
        Case("150 classes, one scale", quarter, (1.0,), 150, batch=2),
        Case("65 classes, batch 3, odd size", (129, 257), classes=65, batch=3),
        Case("class-wise, channels_last, four scales, odd size", (255, 511), four, class_wise=True, channels_last=True),
        Case("four scales, odd, stride 1", (37, 53), (1.5, 1.0, 0.75, 0.25), 5, stride=1),
        Case("stride 8, one pixel", (8, 8), classes=5, stride=8),
        Case("one scale off the grid", (300, 500), (0.5,), 19),
        Case("float64", (256, 512), dtype="float64"),
    ]


def all_checks(op: str | None, device: str, small: bool) -> list[NamedCheck]:
    """The checks of one op or of all."""
    checks = []
    for name, make in OPS.items():
        if op in (None, name):
            checks += [((name, case), check) for case, check in make(device, small)]
    return checks


def chain_checks(op: str, check: Callable[[Case, Inputs, int], Iterator[Result]]):
    """Checks of an op over a chain; ``check`` is also told the number of the case, to take turns with options."""

    def make(device: str, small: bool) -> Iterator[tuple[str, Check]]:
        for number, case in enumerate(chain_cases(small)):
            case = dataclasses.replace(case, op=op)
            if op == "rmi" and min(case.size) < 9:
                continue

            def run(case: Case = case, number: int = number) -> Iterator[Result]:
                torch.manual_seed(0)
                return check(case, competitors.make_inputs(case, device), number)

            yield case.name, run

    return make


def in_double(inputs: Inputs, small_on_cpu: bool) -> Inputs:
    """The same values as leaves in float64: the reference's inputs. Of few pixels on the CPU, where no sanitizer looks
    at what PyTorch does with them."""
    device = "cpu" if small_on_cpu else inputs.leaves[0].device

    def place(tensors: list[Tensor]) -> list[Tensor]:
        return [x.detach().to(device, torch.float64, copy=True).contiguous().requires_grad_() for x in tensors]

    grad = None if inputs.grad is None else inputs.grad.to(device, torch.float64)
    labels = [x.to(device) for x in inputs.labels]
    return Inputs(place(inputs.logits), place(inputs.attention), labels, grad)


def results(names: str, case: Case, inputs: Inputs, ours, theirs, least: float = 1e-30) -> Iterator[Result]:
    """Value and gradients of ``ours(inputs)`` beside ``theirs(inputs in float64)``, then the same bits once more."""
    got = with_gradients(ours, inputs)
    truth = in_double(inputs, case.output_elements < 1 << 20)
    wanted = with_gradients(theirs, truth)
    leaves = [f"logits[{i}]" for i in range(len(inputs.logits))]
    leaves += [f"attention[{i}]" for i in range(len(inputs.attention))]
    for index, name in enumerate([names, *(f"gradient of {leaf}" for leaf in leaves)]):
        yield Result(name, got[index], wanted[index], least if index else 1e-30)
    del truth, wanted
    again = with_gradients(ours, inputs)
    for index, name in enumerate([names, *leaves]):
        yield Result(f"same bits, {name}", again[index], got[index], equal=True)


def with_gradients(function, inputs: Inputs) -> list[Tensor]:
    value = function(inputs)
    grad = None if inputs.grad is None else inputs.grad.to(value.dtype)
    return [value.detach(), *torch.autograd.grad(value, inputs.leaves, grad)]


# ---- the ops -----------------------------------------------------------------------------------------------------


def check_fuse_scales(case: Case, inputs: Inputs, number: int) -> Iterator[Result]:
    options = {"align_corners": number % 4 == 3}
    yield from results(
        "output",
        case,
        inputs,
        lambda i: hmsa_ext.fuse_scales(i.logits, i.attention, case.scales, case.size, **options),
        lambda i: reference.fuse_scales(i.logits, i.attention, case.scales, case.size, **options),
        least=1e-2,  # a gradient that cancels is compared with the size of its terms
    )


def check_cross_entropy(case: Case, inputs: Inputs, number: int) -> Iterator[Result]:
    options: dict = {"label_smoothing": (0.0, 0.0, 0.1)[number % 3], "reduction": ("mean", "sum")[number % 2]}
    weight = torch.linspace(0.5, 1.5, case.classes, dtype=torch.float64) if number % 4 == 1 else None
    target = inputs.labels[0]
    # What one pixel adds to a gradient before softmax and label cancel.
    each = 1 / target.numel() if options["reduction"] == "mean" else 1.0

    def ours(i: Inputs) -> Tensor:
        w = None if weight is None else weight.to(i.labels[0].device, torch.float32)
        return hmsa_ext.fuse_scales_cross_entropy(
            i.logits, i.attention, case.scales, i.labels[0].byte(), weight=w, **options
        )

    def theirs(i: Inputs) -> Tensor:
        w = None if weight is None else weight.float().double().to(i.labels[0].device)
        return reference.fuse_scales_cross_entropy(i.logits, i.attention, case.scales, i.labels[0], weight=w, **options)

    if case.dtype == "float64":
        weight = None  # its weight would be float64
    yield from results("loss", case, inputs, ours, theirs, least=0.1 * each)


def check_argmax(case: Case, inputs: Inputs, number: int) -> Iterator[Result]:
    """The confidence, that no other class is better than the winner by more than rounding, and labels alone; one view
    and two, and labels alone where most classes lie below others."""
    regions = with_regions(inputs)
    parts = (regions.logits, regions.attention, case.scales, case.size)
    wanted, confidence = hmsa_ext.fuse_scales_argmax(*parts)
    alone = hmsa_ext.fuse_scales_argmax(*parts, confidence=False)
    yield Result("labels only, regions", alone.to(confidence.dtype), wanted.to(confidence.dtype))
    for views in (1, 2):
        if views == 2:  # the second half of the batch are outputs for the mirrored images
            inputs = with_mirrored(inputs)
        labels, confidence = hmsa_ext.fuse_scales_argmax(
            inputs.logits, inputs.attention, case.scales, case.size, views=views
        )
        truth = in_double(inputs, case.output_elements < 1 << 20)
        with torch.no_grad():
            fused = reference.fuse_scales(truth.logits, truth.attention, case.scales, case.size)
            if views == 2:
                straight, mirrored = fused.chunk(2)
                fused = (straight + mirrored.flip(-1)) / 2
            chosen = fused.gather(1, labels.long().to(fused.device)[:, None])[:, 0]
            best = fused.amax(1)
            probability = fused.softmax(1).amax(1)
        # Computed in float32 whatever the logits' type: ties may fall either way.
        yield Result(f"winning logit, views {views}", chosen.to(confidence.dtype), best)
        yield Result(f"confidence, views {views}", confidence, probability)
        alone = hmsa_ext.fuse_scales_argmax(
            inputs.logits, inputs.attention, case.scales, case.size, views=views, confidence=False
        )
        yield Result(f"labels only, views {views}", alone.to(confidence.dtype), labels.to(confidence.dtype))


def with_regions(inputs: Inputs) -> Inputs:
    """In each of six regions of the image one class is well above the others."""

    def of_head(x: Tensor) -> Tensor:
        classes, height, width = x.shape[1:]
        rows = torch.arange(height, device=x.device)[:, None] * 3 // height
        columns = torch.arange(width, device=x.device) * 2 // width
        leads = torch.arange(classes, device=x.device)[:, None, None] == (rows + 3 * columns) % classes
        return x.detach() + 20 * leads.to(x.dtype)

    return Inputs([of_head(x) for x in inputs.logits], inputs.attention, [], None)


def with_mirrored(inputs: Inputs) -> Inputs:
    """Twice the batch; not mirrored alone, or both views would say the same."""

    def twice(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.cat([x.detach(), x.detach().roll(1, 1).flip(-1)]).requires_grad_() for x in tensors]

    return Inputs(twice(inputs.logits), twice(inputs.attention), [], None)


def check_rmi(case: Case, inputs: Inputs, number: int) -> Iterator[Result]:
    yield from results(
        "loss",
        case,
        inputs,
        lambda i: rmi_loss(i.logits, i.attention, case.scales, i.labels[0]),
        lambda i: published_rmi.rmi_loss(
            reference.fuse_scales(i.logits, i.attention, case.scales, case.size), i.labels[0]
        ),
        least=0.01 / (case.batch * case.size[0] * case.size[1]),
    )


def equal(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], *names: str) -> Iterator[Result]:
    for name, mine, theirs in zip(names, got, wanted, strict=True):
        yield Result(name, mine, theirs, equal=True)


def confusion_matrix_checks(device: str, small: bool) -> Iterator[tuple[str, Check]]:
    def check(classes: int, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Result]:
        generator = torch.Generator().manual_seed(3)
        prediction = torch.randint(0, classes, shape, generator=generator).to(dtype)
        target = torch.randint(0, classes, shape, generator=generator)
        target[torch.rand(shape, generator=generator) < 0.2] = 255
        target[..., ::7] = classes  # no class
        got = hmsa_ext.confusion_matrix(prediction.to(device), target.to(device), classes)
        yield from equal(got, reference.confusion_matrix(prediction, target, classes), "counts", "invalid")

    shapes = [(1, 1, 1), (2, 37, 50), (70001,)] if small else [(1, 1024, 2048), (8, 1023, 2047), (1, 1, 1), (70001,)]
    for shape in shapes:
        for classes in (19, 200) if small else (1, 19, 110, 111, 200):
            for dtype in (torch.uint8, torch.int64) if small else (torch.uint8, torch.int16, torch.int32, torch.int64):
                yield (
                    f"{classes} classes {shape} {dtype}",
                    lambda arguments=(classes, shape, dtype): check(*arguments),
                )


def tile_centroids_checks(device: str, small: bool) -> Iterator[tuple[str, Check]]:
    def check(classes: int, shape: tuple[int, ...], tile: int, by_columns: bool) -> Iterator[Result]:
        labels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(4)).byte() % 25
        given = labels.to(device)
        if by_columns:
            given = given.mT.contiguous().mT
        got = hmsa_ext.ops.class_tile_centroids(given, tile, classes)
        yield from equal(got, hmsa_ext.ops.class_tile_centroids(labels, tile, classes), "counts", "centres")

    shapes = [(2, 37, 50), (1, 130, 33)] if small else [(1, 1024, 2048), (4, 513, 1025), (1, 1, 1), (1, 130, 129)]
    for shape in shapes:
        for classes in (19,) if small else (1, 19, 256):
            for tile in (16, 5000) if small else (33, 128, 1024, 5000):
                for by_columns in (False, True):
                    yield (
                        f"{classes} classes {shape} tile {tile}{' by columns' if by_columns else ''}",
                        lambda arguments=(classes, shape, tile, by_columns): check(*arguments),
                    )


def class_uniform_checks(device: str, small: bool) -> Iterator[tuple[str, Check]]:
    def check(classes: int, images: int, centroids: int, items: int, attempt: int, long_edge: int) -> Iterator[Result]:
        generator = torch.Generator().manual_seed(5)
        sizes = torch.randint(1, 400, (images, 2), generator=generator)
        c = torch.randint(0, classes, (centroids,), generator=generator).sort().values
        image = torch.randint(0, images, (centroids,), generator=generator)
        points = (torch.rand((centroids, 2), generator=generator) * sizes[image]).long()
        tables = [torch.cat([c[:, None], image[:, None], points], 1), torch.full((1 + classes,), items), sizes]
        tables[1][1:][torch.bincount(c, minlength=classes) == 0] = 0
        keywords = {"scale": (0.5, 2.0), "uniform_images": images, "seed": 1, "epoch": 2, "first": 1}
        keywords |= {"count": int(tables[1].sum()) - 1, "attempt": attempt, "long_edge": long_edge}
        draw = hmsa_ext.ops.draw_class_uniform_boxes
        got = draw(*(table.to(device) for table in tables), (33, 70), **keywords)
        yield from equal(got, draw(*tables, (33, 70), **keywords), "boxes", "classes")

    sets = [(1, 1, 1, 3), (19, 7, 300, 40)] if small else [(1, 1, 1, 3), (19, 2975, 100000, 150), (150, 40, 2000, 100)]
    for numbers in sets:
        for attempt, long_edge in ((0, 0), (3, 500)):
            name = "{} classes, {} images, {} centroids, {} items".format(*numbers)
            yield (
                f"{name}, attempt {attempt}, long edge {long_edge}",
                lambda arguments=(*numbers, attempt, long_edge): check(*arguments),
            )


def sample_crop_checks(device: str, small: bool) -> Iterator[tuple[str, Check]]:
    """Boxes in, across and outside of images that are as small as one pixel; more crops than a launch takes; and crops
    of frames as they are trained on."""

    def check(shapes, count: int, size, dtype: torch.dtype, channels_last: bool, largest_blur: float):
        generator = torch.Generator().manual_seed(4)

        def whole(low: int, high: int) -> int:
            return int(torch.randint(low, high + 1, (), generator=generator))

        images = [torch.randint(0, 256, (*s, 3), generator=generator, dtype=torch.uint8) for s in shapes]
        labels = [torch.randint(0, 19, s, generator=generator, dtype=torch.uint8) for s in shapes]
        boxes = []
        for n in range(count):
            height, width = shapes[n % len(shapes)]
            y, x = whole(-height // 2, height - 1), whole(-width // 2, width - 1)
            boxes.append([n % len(shapes), y, x, y + whole(1, 2 * height), x + whole(1, 2 * width)])
        jitter = torch.rand(count, 4, generator=generator) + torch.tensor([0.5, 0.5, 0.5, -0.5])
        jitter[::4] = torch.tensor([1.0, 1.0, 1.0, 0.0])
        flip = torch.rand(count, generator=generator) < 0.5
        blur = largest_blur * torch.rand(count, generator=generator) * (torch.rand(count, generator=generator) < 0.5)
        rest = (torch.tensor(boxes), flip, jitter, size, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
        options = {"blur": blur, "antialias": channels_last, "channels_last": channels_last}
        placed = ([x.to(device) for x in images], [x.to(device) for x in labels])
        got = hmsa_ext.sample_crop(*placed, *rest, **options, dtype=dtype)
        wanted = reference_crop.sample_crop(
            *((images, labels) if small else placed), *rest, **options, dtype=torch.float64
        )
        yield Result("images", got[0], wanted[0])
        yield Result("labels", got[1], wanted[1], equal=True)

    few = [(1, 1), (37, 50), (90, 21)]
    for size in ((33, 70),) if small else ((1, 1), (7, 1), (33, 70), (64, 32)):
        for dtype in (torch.float32, torch.bfloat16) if small else (torch.float32, torch.float16, torch.bfloat16):
            for channels_last in (False, True):
                yield (
                    f"41 crops {size} {dtype}{', channels_last, antialias' if channels_last else ''}",
                    lambda arguments=(few, 41, size, dtype, channels_last, 4.0): check(*arguments),
                )
    if not small:
        frames = [(1024, 2048), (720, 960)]
        for channels_last in (False, True):
            yield (
                f"4 crops (512, 1024) of frames{', channels_last, antialias' if channels_last else ''}",
                lambda arguments=(frames, 4, (512, 1024), torch.float32, channels_last, 2.6): check(*arguments),
            )


# Most valuable first.
OPS: dict[str, Callable[[str, bool], Iterator[tuple[str, Check]]]] = {
    "fuse_scales": chain_checks("fuse_scales", check_fuse_scales),
    "cross_entropy": chain_checks("cross_entropy", check_cross_entropy),
    "argmax": chain_checks("argmax", check_argmax),
    "rmi": chain_checks("rmi", check_rmi),
    "sample_crop": sample_crop_checks,
    "confusion_matrix": confusion_matrix_checks,
    "class_tile_centroids": tile_centroids_checks,
    "draw_class_uniform_boxes": class_uniform_checks,
}


if __name__ == "__main__":
    sys.exit(main())
