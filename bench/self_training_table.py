"""The results of bench.self_training: rows of runs, their Markdown tables, and the content of the JSON file.

A run counts by the results.json of its last checkpoint: IoU of the fusion of its scales (not of a single scale), in
percent. What is not there yet is left out of means and shown as a dash.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import gpu_machine, record
from bench.commands import markdown
from hmsa_ext.data import DataError

NONE = "-"


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone.

    runs: name of the job of each seed.
    base: name of the row that this one is compared with, seed by seed; empty for none.
    """

    name: str
    runs: Mapping[int, str]
    base: str = ""


@dataclass(frozen=True)
class Score:
    """Of one run. miou, iou (by class): percent. seconds: of training and evaluation, over all its resumptions."""

    miou: float
    iou: Mapping[str, float]
    seconds: float


def read_score(folder: Path, steps: int | None) -> Score | None:
    """The score of the run or evaluation in a folder; None where it is not finished. steps: None for an evaluation.

    Raises DataError for a file that cannot be read, and for a run of another number of steps.
    """
    file = folder / "results.json"
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        way, found = content["combination"], None if steps is None else content["steps"]
        # null stands for a class that neither the truth nor the prediction has: it counts nowhere.
        iou = {name: 100 * value for name, value in content["iou"][way].items() if value is not None}
        score = Score(100 * content["miou"][way], iou, content["evaluation_seconds" if steps is None else "seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"results: {file} is not the results of a training: {error!r}") from error
    if found != steps:
        raise DataError(f"results: {file} is of {found} steps, expected {steps}")
    return score


def summarise(rows: Sequence[Row], scores: Mapping[str, Score], *, among: Sequence[Row] = ()) -> list[dict[str, Any]]:
    """What the tables show of each row, for the JSON file too; None where there is nothing.

    scores: by name of the run. Values are percent. The standard deviation is that of a sample (n - 1).
    among: further rows that rows are compared with.
    """
    by_name, summaries = {row.name: row for row in (*among, *rows)}, []
    for row in rows:
        own = _by_seed(row, scores)
        base = _by_seed(by_name[row.base], scores) if row.base else {}
        both = [seed for seed in own if seed in base]
        gains = [own[seed].miou - base[seed].miou for seed in both]
        summaries.append(
            {
                "row": row.name,
                "miou": {str(seed): own[seed].miou if seed in own else None for seed in row.runs},
                "mean": _mean([score.miou for score in own.values()]),
                "standard deviation": statistics.stdev(s.miou for s in own.values()) if len(own) > 1 else None,
                "compared with": row.base or None,
                "difference": {"seeds": both, "mean": _mean(gains), "min": min(gains, default=None)}
                | {"max": max(gains, default=None)},
                "iou": {name: _mean([score.iou[name] for score in own.values()]) for name in _classes([*own.values()])},
                "iou difference": {
                    name: _mean([own[seed].iou[name] - base[seed].iou[name] for seed in both])
                    for name in _classes([of[seed] for seed in both for of in (own, base)])
                },
            }
        )
    return summaries


def miou_table(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of Markdown: mIoU of each row by seed, mean, deviation, and the difference to the row it is compared with.

    A row with fewer seeds than others was planned so; a dash is a run that is not there yet.
    """
    seeds = list(dict.fromkeys(seed for summary in summaries for seed in summary["miou"]))
    header = ["mIoU, %", *(f"seed {seed}" for seed in seeds), "mean", "sd", "compared with", "seeds"]
    table = [[*header, "difference", "min", "max"]]
    for summary in summaries:
        planned, gain = summary["miou"], summary["difference"]
        values = [_number(planned[seed]) if seed in planned else "" for seed in seeds]
        row = [summary["row"], *values, _number(summary["mean"]), _number(summary["standard deviation"])]
        if summary["compared with"] is None:
            row += [""] * 5
        else:
            row += [summary["compared with"], str(len(gain["seeds"]))]
            row += [_number(gain[key], signed=True) for key in ("mean", "min", "max")]
        table.append(row)
    return markdown(table)


def class_table(summaries: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Lines of Markdown: IoU of each class, mean over the seeds that are there, for some rows; after a row that is
    compared with another, the mean difference over the seeds that both have."""
    chosen = [next(summary for summary in summaries if summary["row"] == name) for name in names]
    classes = next((list(summary["iou"]) for summary in chosen if summary["iou"]), [])
    header, columns = ["IoU, %"], []
    for summary in chosen:
        count = sum(value is not None for value in summary["miou"].values())
        header.append(f"{summary['row']} ({count} of {len(summary['miou'])} seeds)")
        columns.append([_number(summary["iou"].get(name)) for name in classes])
        if summary["compared with"] in names:
            header.append("difference")
            columns.append([_number(summary["iou difference"].get(name), signed=True) for name in classes])
    return markdown([header, *([name, *(column[k] for column in columns)] for k, name in enumerate(classes))])


def missing_line(missing: Sequence[str]) -> str:
    return f"missing, {len(missing)}: {', '.join(missing)}" if missing else "nothing is missing"


def facts_of_runs(summaries: Sequence[Mapping[str, Any]], jobs: Sequence[Mapping[str, Any]], **about: Any) -> dict:
    """The content of the JSON file: the machine and commit of this process, ``about``, the jobs and the rows.

    jobs: with "name" and "done" at least.
    """
    return {
        "machine": record.machine(),
        "commit": gpu_machine.commit(),
        **about,
        "missing": [job["name"] for job in jobs if not job["done"]],
        "jobs": list(jobs),
        "rows": list(summaries),
    }


def _by_seed(row: Row, scores: Mapping[str, Score]) -> dict[int, Score]:
    return {seed: scores[name] for seed, name in row.runs.items() if name in scores}


def _classes(scores: Sequence[Score]) -> list[str]:
    """Those that all the scores have, in the order of the first."""
    return [name for name in scores[0].iou if all(name in score.iou for score in scores)] if scores else []


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _number(value: float | None, *, signed: bool = False) -> str:
    return NONE if value is None else f"{value:+.2f}" if signed else f"{value:.2f}"
