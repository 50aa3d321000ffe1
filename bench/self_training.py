"""Teacher, automatic labels, student on CamVid: the grid behind docs/autolabel.md.

    python -m bench.self_training --camvid CamVid --work DIR --prepare   # writes the roots of the data
    python -m bench.self_training --work DIR                             # works on the grid until it is done
    python -m bench.self_training --work DIR --table                     # what is known so far
    python -m bench.self_training --work DIR --json FILE                 # the same, machine and commands as JSON

Several processes may work on one folder; each takes the next job whose inputs are there. A killed job goes on from its
last checkpoint. Every job is a command, which is printed before it runs and kept in the JSON file.

The labelled frames are named in bench/camvid_lists: 46 and 92 of the 367, drawn once at random (NumPy's generator 0),
the smaller list within the larger one. All trainings have the same steps, and count their last checkpoint. A student
begins with the weights of its teacher; "again" is the same training without automatic labels, so that what more steps
alone give is known. "scratch" is a student that begins where its teacher did.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from bench import gpu_machine, soft_labels
from bench.self_training_table import (
    Row,
    Score,
    class_table,
    facts_of_runs,
    miou_table,
    missing_line,
    read_score,
    summarise,
)
from hmsa_ext import command_line
from hmsa_ext.files import Output, write_text
from hmsa_ext.models import LRASPP, EfficientNetLite, EfficientNetLiteConfig
from hmsa_ext.models.efficientnet import LITE0

LISTS = Path(__file__).parent / "camvid_lists"
FRACTIONS = {"eighth": 8, "quarter": 4}
DRIVE = "drive"
"""A part of another kind: the frames of one drive, 0001TP at dusk, have labels; those by day have none."""
PARTS = (*FRACTIONS, DRIVE)
SEEDS = (0, 1, 2)
STEPS = 900
SCALES = "0.5,1"
TRAINING = (
    "--long-edge", "240", "--crop", "176x240", "--scale-range", "0.75,2", "--batch-size", "8", "--lr", "0.004",
    "--warmup", "50", "--eval-every", "0", "--eval-scales", SCALES, "--threads", "1", "--workers", "0",
    "--device", "cpu", "--dtype", "float32",
)  # fmt: skip
"""At half the size of the frames a core has the time for 7,200 crops: 20 epochs of the whole split."""
NETWORK, SMALL_NETWORK = "efficientnet_lite0_lraspp", "bench.self_training:small"
CLASSES = {
    "Sky": "#808080", "Building": "#800000", "Pole": "#c0c080", "Road": "#804080", "Pavement": "#3c28de",
    "Tree": "#808000", "SignSymbol": "#c08080", "Fence": "#404080", "Car": "#400080", "Pedestrian": "#404000",
    "Bicyclist": "#0080c0",
}  # fmt: skip
RARE = "Pole,SignSymbol,Fence,Pedestrian,Bicyclist"


@dataclass(frozen=True)
class Job:
    """A command. name: its folder below the work folder. after: names of the jobs it reads from. module: it is run by
    ``python -m module``."""

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    module: str = "hmsa_ext"

    @property
    def is_training(self) -> bool:
        return self.command[0] == "train"

    @property
    def is_scored(self) -> bool:
        """Whether it leaves a results.json."""
        return self.command[0] in ("train", "evaluate")


def grid(work: Path) -> list[Job]:
    """All jobs, in the order in which they are worth having."""
    variants = [
        [job for name, flags in VARIANTS.items() for job in _variant(work, name, "eighth", seed, flags)]
        for seed in SEEDS
    ]
    main = [_of_part(work, "eighth", seed) for seed in SEEDS]
    quarter = [_of_part(work, "quarter", seed) for seed in SEEDS]
    full = [_twice(work, "full", "full", seed) for seed in SEEDS]
    scratch = [_student(work, "scratch", "eighth", seed, "--weights", IMAGENET) for seed in SEEDS]
    small = _training(work, f"small-{SEEDS[0]}", "eighth", SEEDS[0], "--model", SMALL_NETWORK)
    distilled = _student(
        work, "distilled", "eighth", SEEDS[0], "--model", SMALL_NETWORK, "--weights", IMAGENET,
        "--min-probability", "0",
    )  # fmt: skip
    drive = [_of_part(work, DRIVE, seed) for seed in SEEDS]
    late = [job for job in variants[0] if job.name.startswith(("rare", "soft"))]
    early = [job for job in variants[0] if job not in late]
    first = [*main[0], scratch[0], *early, *drive[0], *main[1], *main[2], *full[0], *quarter[0], small, distilled]
    first += [*late[1:], late[0]]
    return first + [job for k in (1, 2) for job in (*quarter[k], *full[k], *drive[k], scratch[k], *variants[k])]


IMAGENET = "imagenet"
VARIANTS: dict[str, tuple[str, ...] | None] = {
    "all-pixels": ("--min-probability", "0"),
    "above-0.5": ("--min-probability", "0.5"),
    "by-class": ("--class-threshold", "median"),
    "pooled": ("--extra-crops", "pooled"),
    "rare-classes": ("--extra-classes", RARE),
    "soft": None,
}
"""Students of the teachers on 1/8, each with the flags that make it differ from the main one; None: see ``_soft``."""
STUDENT = {"--min-probability": "0.9", "--extra-classes": "all"}


def table_rows() -> list[Row]:
    """The rows of the tables: every training, and what it is compared with."""

    def row(name: str, base: str = "", seeds: Sequence[int] = SEEDS) -> Row:
        return Row(name, {seed: f"{name}-{seed}" for seed in seeds}, base)

    rows = []
    for part in PARTS:
        again = f"again-{part}"
        rows += [row(f"teacher-{part}"), row(again, f"teacher-{part}"), row(f"student-{part}", again)]
    rows += [row("full"), row("again-full", "full")]
    for part in PARTS:
        again = f"rest-again-{part}"
        rows += [row(f"rest-teacher-{part}"), row(again, f"rest-teacher-{part}"), row(f"rest-student-{part}", again)]
    rows += [row("scratch-eighth", "teacher-eighth"), *(row(f"{name}-eighth", "again-eighth") for name in VARIANTS)]
    return [*rows, row("small", "", SEEDS[:1]), row("distilled-eighth", "small", SEEDS[:1])]


def variant_rows() -> list[Row]:
    """Further comparisons: students with their teachers, variants with the main student, soft labels with hard ones of
    all pixels."""
    rows = {row.name: row for row in table_rows()}
    pairs = [(f"student-{part}", f"teacher-{part}") for part in PARTS]
    pairs += [(f"{name}-eighth", "student-eighth") for name in VARIANTS] + [("soft-eighth", "all-pixels-eighth")]
    return [replace(rows[name], base=base) for name, base in pairs]


def _twice(work: Path, name: str, part: str, seed: int) -> list[Job]:
    """A training, and the same once more from its weights: what more steps alone give."""
    first = _training(work, f"{name}-{seed}", part, seed)
    return [first, _training(work, f"again-{part}-{seed}", part, seed, start=first.name)]


def _of_part(work: Path, part: str, seed: int) -> list[Job]:
    """A teacher, its labels, the same training once more, and the student, which begins with the teacher's weights."""
    teacher, again = _twice(work, f"teacher-{part}", part, seed)
    student = _student(work, "student", part, seed)
    rest = [_on_the_rest(work, job.name) for job in (teacher, again, student)]
    return [teacher, _labelling(work, part, seed), again, student, *rest]


def _training(
    work: Path, name: str, part: str, seed: int, *flags: str, start: str = "", after: Sequence[str] = ()
) -> Job:  # fmt: skip
    """A training. start: the run whose weights it begins with; those of ImageNet unless given."""
    options = {"--data": "folder", "--root": str(work / "data" / part), "--model": NETWORK}
    options["--weights"] = str(work / start / "last.pt") if start else IMAGENET
    options |= dict(zip(flags[::2], flags[1::2], strict=True))
    words = [word for pair in options.items() for word in pair]
    command = ("train", *words, "--seed", str(seed), "--iterations", str(STEPS), *TRAINING)
    return Job(name, (*command, "--output", str(work / name)), (*([start] if start else ()), *after))


def _labelling(work: Path, part: str, seed: int) -> Job:
    teacher = f"teacher-{part}-{seed}"
    command = (
        "autolabel", f"@{work / 'data' / part / 'unlabelled.txt'}", "--model", str(work / teacher), "--flip",
        "--eval-scales", SCALES, "--threads", "1", "--device", "cpu",
        "--output", str(work / f"labels-{part}-{seed}"),
    )  # fmt: skip
    return Job(f"labels-{part}-{seed}", command, (teacher,))


def _on_the_rest(work: Path, name: str) -> Job:
    """The evaluation on the frames whose labels were withheld. A student has seen them with its teacher's labels."""
    flags = ("--split", "test", "--eval-scales", SCALES, "--pictures", "0", "--threads", "1", "--device", "cpu")
    command = ("evaluate", str(work / name), *flags, "--json", str(work / f"rest-{name}" / "results.json"))
    return Job(f"rest-{name}", command, (name,))


def _student(work: Path, name: str, part: str, seed: int, *flags: str) -> Job:
    labels = f"labels-{part}-{seed}"
    options = {"--auto-labels": str(work / labels)} | STUDENT | dict(zip(flags[::2], flags[1::2], strict=True))
    words = [word for pair in options.items() for word in pair]
    return _training(
        work, f"{name}-{part}-{seed}", part, seed, *words, start=f"teacher-{part}-{seed}", after=(labels,)
    )  # fmt: skip


def _variant(work: Path, name: str, part: str, seed: int, flags: tuple[str, ...] | None) -> list[Job]:
    return _soft(work, name, part, seed) if flags is None else [_student(work, name, part, seed, *flags)]


def _soft(work: Path, name: str, part: str, seed: int) -> list[Job]:
    """The soft labels of a teacher, and their student."""
    teacher, labels = f"teacher-{part}-{seed}", f"softlabels-{part}-{seed}"
    command = (
        "write", "--model", str(work / teacher), "--camvid-list", f"@{work / 'data' / part / 'unlabelled.txt'}",
        "--output", str(work / labels),
    )  # fmt: skip
    flags = ("--data", "bench.soft_labels:Soft", "--soft-labels", str(work / labels))
    flags = (*flags, "--extra-classes", STUDENT["--extra-classes"])
    student = _training(work, f"{name}-{part}-{seed}", part, seed, *flags, start=teacher, after=(labels,))
    return [Job(labels, command, (teacher,), module="bench.soft_labels"), student]


# ---- the small network ------------------------------------------------------------------------------------------


def small(num_classes: int, **options: Any) -> LRASPP:
    """A network for distillation by hard labels: the trunk of the teacher up to its first stage at stride 16, fed with
    images of half the size, and LR-ASPP of half the channels at stride 8. ``--weights imagenet`` fits its trunk.

    A forward pass at 360x480 and scales 0.5 and 1, with 11 classes, takes 0.38 GFLOP by bench.flops (a multiplication
    and an addition are two); that of the teacher takes 2.23. Parameters: 0.28 and 0.77 M.

    options: see :class:`hmsa_ext.models.LRASPP`.
    """
    trunk = HalfSizeTrunk(EfficientNetLiteConfig(LITE0.stages[:4]))
    defaults = {"trunk": trunk, "context_channels": 64, "channels": 32, "attention_bottleneck": 16}
    return LRASPP(num_classes=num_classes, **(defaults | options))


class HalfSizeTrunk(EfficientNetLite):
    """EfficientNet-Lite that sees the means of 2x2 pixels: strides are twice those of the configuration."""

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.level_strides = tuple(2 * stride for stride in self.level_strides)
        self.stride = self.level_strides[0]

    def levels(self, images: Tensor) -> list[Tensor]:
        return super().levels(F.avg_pool2d(images, 2, ceil_mode=True))


# ---- data -------------------------------------------------------------------------------------------------------


def write_lists(camvid: Path) -> None:
    """Writes bench/camvid_lists; they are in the repository."""
    names = sorted(path.stem for path in (camvid / "train").iterdir())
    order = np.random.default_rng(0).permutation(len(names))
    LISTS.mkdir(exist_ok=True)
    for part, divisor in FRACTIONS.items():
        chosen = sorted(names[k] for k in order[: round(len(names) / divisor)])
        (LISTS / f"{part}.txt").write_text("".join(f"{name}\n" for name in chosen))
    drive = [name for name in names if name.startswith("0001TP")]
    (LISTS / f"{DRIVE}.txt").write_text("".join(f"{name}\n" for name in drive))


def prepare(camvid: Path, work: Path) -> None:
    """Writes DIR/data/PART: a description, lists of pairs, and a list of the frames without labels."""
    images = {path.stem: path for path in sorted((camvid / "train").iterdir())}
    for part in (*PARTS, "full"):
        folder = work / "data" / part
        folder.mkdir(parents=True, exist_ok=True)
        kept = (LISTS / f"{part}.txt").read_text().split() if part != "full" else list(images)
        lines = ["names: [" + ", ".join(CLASSES) + "]", "ignore: 11"]
        lines.append("colours: [" + ", ".join(f'"{colour}"' for colour in CLASSES.values()) + "]")
        (folder / "dataset.yaml").write_text("\n".join(lines) + "\n")
        _write_pairs(folder / "train.txt", camvid, "train", [images[name] for name in kept])
        _write_pairs(folder / "val.txt", camvid, "val", sorted((camvid / "val").iterdir()))
        rest = [path for name, path in images.items() if name not in set(kept)]
        (folder / "unlabelled.txt").write_text("".join(f"{path}\n" for path in rest))
        _write_pairs(folder / "test.txt", camvid, "train", rest)  # what the withheld labels say


def _write_pairs(file: Path, camvid: Path, split: str, images: Sequence[Path]) -> None:
    file.write_text("".join(f"{image}\t{camvid / f'{split}annot' / image.stem}.png\n" for image in images))


# ---- work -------------------------------------------------------------------------------------------------------


def run(work: Path, jobs: Sequence[Job], *, only: str = "") -> None:
    """Takes one job after the other until none is left that this process could do."""
    while True:
        wanted = [job for job in jobs if not is_done(work, job) and job.name.startswith(only)]
        if not wanted:
            return
        for job in wanted:
            if all((work / "done" / name).exists() for name in job.after):
                with _claimed(work, job) as mine:
                    if mine and not is_done(work, job):
                        _run(work, job)
                        break
        else:
            time.sleep(5)


def is_done(work: Path, job: Job) -> bool:
    return (work / "done" / job.name).exists()


@contextlib.contextmanager
def _claimed(work: Path, job: Job) -> Iterator[bool]:
    """Whether this process alone may do the job; the claim of a process that died is void."""
    import fcntl

    folder = work / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / job.name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def command_line_of(work: Path, job: Job) -> list[str]:
    """The command of a job; a training that left a checkpoint is resumed. The other jobs go on by themselves."""
    words: Sequence[str] = job.command
    if job.is_training and (work / job.name / "last.pt").exists():
        words = ("train", "--resume", str(work / job.name))
    return [sys.executable, "-m", job.module, *words]


def _run(work: Path, job: Job) -> None:
    command = command_line_of(work, job)
    print(time.strftime("%H:%M:%S"), job.name, shlex.join(command[1:]), flush=True)
    begin = time.monotonic()
    (work / "logs").mkdir(exist_ok=True)
    with (work / "logs" / f"{job.name}.txt").open("a") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{job.name}: exit status {done.returncode}, see {log.name}")
    (work / "done").mkdir(exist_ok=True)
    seconds = time.monotonic() - begin
    write_text(work / "done" / job.name, json.dumps({"seconds": round(seconds, 1), "commit": gpu_machine.commit()}))
    print(f"{time.strftime('%H:%M:%S')} {job.name} done in {seconds:.0f} s", flush=True)


# ---- results ----------------------------------------------------------------------------------------------------


def read_scores(work: Path) -> dict[str, Score]:
    """The scores of the trainings and evaluations that are finished, by name. Raises DataError."""
    scored = [job for job in grid(work) if job.is_scored]
    found = {job.name: read_score(work / job.name, STEPS if job.is_training else None) for job in scored}
    return {name: score for name, score in found.items() if score is not None}


def tables(work: Path) -> str:
    """What is known so far, as Markdown."""
    scores = read_scores(work)
    summaries = summarise(table_rows(), scores)
    lines = [*miou_table(summaries), "", *miou_table(summarise(variant_rows(), scores, among=table_rows()))]
    for part in PARTS:
        lines += ["", *class_table(summaries, [f"teacher-{part}", f"again-{part}", f"student-{part}", "again-full"])]
    for job, facts in _storages(work).items():
        lines += ["", f"{job}:", "", *(f"    {line}" for line in soft_labels.storage_table(facts).splitlines())]
    missing = [job["name"] for job in _jobs(work) if not job["done"]]
    return "\n".join([*lines, "", missing_line(missing)])


def results(work: Path) -> dict[str, Any]:
    """What is known so far, for a JSON file, with every command. The work folder is called DIR in it."""
    scores = read_scores(work)
    return facts_of_runs(
        summarise(table_rows(), scores),
        _jobs(work),
        variants=summarise(variant_rows(), scores, among=table_rows()),
        steps=STEPS,
        seeds=list(SEEDS),
        labelled={part: len((LISTS / f"{part}.txt").read_text().split()) for part in PARTS},
        soft_labels={job: soft_labels.storage(facts) for job, facts in _storages(work).items()},
    )


def _jobs(work: Path) -> list[dict[str, Any]]:
    """Each job with its command, whether it is done, and its score. seconds: of a training over all its resumptions."""
    scores, jobs = read_scores(work), []
    for job in grid(work):
        marker = work / "done" / job.name
        done = json.loads(marker.read_text()) if marker.exists() else {}
        score = scores.get(job.name)
        words = [word.replace(str(work), "DIR") for word in job.command]
        facts = {"name": job.name, "command": shlex.join(["python", "-m", job.module, *words]), "done": marker.exists()}
        facts |= {"seconds": done.get("seconds"), "commit": done.get("commit")}
        if score is not None:
            facts |= {"seconds": score.seconds, "miou": score.miou, "iou": dict(score.iou)}
        jobs.append(facts)
    return jobs


def _storages(work: Path) -> dict[str, dict[str, Any]]:
    """What the soft labels take that are written, by job."""
    jobs = [job for job in grid(work) if job.module == "bench.soft_labels" and is_done(work, job)]
    return {job.name: soft_labels.read_facts(work / job.name) for job in jobs}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return command_line.run(_main, arguments)


def _main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", type=Path, help="folder that holds train, trainannot, val and valannot")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--prepare", action="store_true", help="write the roots of the data and stop")
    parser.add_argument("--only", default="", help="jobs whose names begin so")
    parser.add_argument("--table", action="store_true", help="print what is known so far and stop")
    parser.add_argument("--json", metavar="FILE", help="write what is known so far to this file and stop")
    given = parser.parse_args(arguments)
    work = given.work.resolve()
    if given.prepare:
        if given.camvid is None:
            parser.error("--prepare needs --camvid")
        prepare(given.camvid.resolve(), work)
        return 0
    if given.table:
        print(tables(work))
    if given.json is not None:
        Output(given.json, "json").write(json.dumps(results(work), indent=1, allow_nan=False) + "\n")
    if not (given.table or given.json):
        run(work, grid(work), only=given.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
