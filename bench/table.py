"""Prints the tables of a benchmark run as Markdown: ``python -m bench.table R.json``.

Columns: times in cold and in warm memory, how many times ours and how many times the memory floor that is (forward: one
copy of the output; see bench/competitors.py); the most memory that was resident beyond the inputs; what autograd keeps
for the backward pass beyond the inputs; floating-point operations by one mapping. On a GPU: the share of the floor that
was reached, which there is every byte moved once at the bandwidth that the same run measured.

The tables of training steps: FLOPs of a step; those of trunk and decoder, times those of a single scale, and the share
of the attention (what is left are fusion and loss); what autograd keeps for backward beside parameters and inputs; the
most bytes of tensors that live at once, with parameters and gradients; time and peak memory of a step, workspace and
parameters included.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench import competitors, training_cost
from bench.cases import OPS, Case
from bench.commands import markdown

NAMES = {
    "hmsa": "**hmsa_ext**",
    "eager": "PyTorch eager",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "xla": "XLA",
    "numpy": "np.bincount",
}
H200_COPY = 4300.0  # GB/s, read and written together
CROP_NAMES = {"pillow": "Pillow, whole frame first", "opencv": "OpenCV, crop first"}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m bench.table RESULTS.json")
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for device in sorted({test["device"] for test in report["benchmarks"]}):
        print("\n".join(tables(report, device)))


def tables(report: dict, device: str) -> list[str]:
    tests = {"headline": [], "shape": [], "end": [], "centroids": [], "sample_crop": [], "paper_table": []}
    for test in report["benchmarks"]:
        if test["device"] == device:
            tests[test["group"]].append(test)
    lines = markdown(summary_table([*tests["headline"], *tests["end"]])) if tests["headline"] or tests["end"] else []
    if tests["headline"]:
        lines += ["", *markdown(headline_table(tests["headline"]))]
    if device == "cuda":
        for some in filter(None, (tests[group] for group in ("headline", "shape", "end"))):
            lines += ["", *markdown(gpu_table(some))]
    if tests["shape"]:
        # What an element of the result costs is held against the first case of the headline, or of the shapes.
        first = {test["direction"]: test for test in reversed(tests["headline"] or tests["shape"])}
        lines += ["", *markdown(shape_table(tests["shape"], first))]
    if tests["centroids"]:
        lines += ["", *markdown(centroids_table(tests["centroids"]))]
    if tests["sample_crop"]:
        lines += ["", *markdown(crop_table(tests["sample_crop"]))]
    for test in tests["paper_table"]:
        lines += ["", *markdown(paper_table(test))]
    return [*lines, "", machine_line(report, device), ""]


# ---- the tables --------------------------------------------------------------------------------------------------


def headline_table(tests: list[dict]) -> list[list[str]]:
    memories = _memories(tests)
    header = ["op", "direction", "by"]
    for memory in memories:
        header += [f"ms {memory}", "times ours", "times the floor"]
    table = [[*header, "peak MB", "saved MB", "GFLOP"]]
    for test in tests:
        for name, label in NAMES.items():
            facts = test["results"].get(name)
            if facts is None:
                continue
            row = [_op(test["case"]), test["direction"], label]
            for memory in memories:
                ms = facts[memory]["ms"]
                ours, floor = (test["results"][other][memory]["ms"] for other in ("hmsa", "floor"))
                row += [_ms(ms), f"{ms / ours:.1f}", f"{ms / floor:.1f}"]
            row += [_megabytes(facts["peak_bytes"]), _megabytes(facts["saved_bytes"]), _gflop(facts["flops"])]
            table.append(row)
    return table


def summary_table(tests: list[dict]) -> list[list[str]]:
    """Everything but the shapes, in cold memory where there is that."""
    memory = _memories(tests)[0]
    table = [["what", "by", "ms", "times ours", "times the floor", "peak MB", "saved MB", "GFLOP"]]
    for test in tests:
        ours, floor = (test["results"][name][memory]["ms"] for name in ("hmsa", "floor"))
        for name, label in NAMES.items():
            facts = test["results"].get(name)
            if facts is None:
                continue
            ms = facts[memory]["ms"]
            row = [
                _what(test),
                "published, eager" if (Case.from_json(test["case"]).op, name) == ("rmi", "eager") else label,
                _ms(ms),
            ]
            row += [f"{ms / ours:.1f}", f"{ms / floor:.1f}"]
            row += [_megabytes(facts["peak_bytes"]), _megabytes(facts["saved_bytes"]), _gflop(facts["flops"])]
            table.append(row)
    return table


def shape_table(tests: list[dict], first: dict[str, dict]) -> list[list[str]]:
    memories = _memories(tests)
    header = ["shape", "output", "direction"]
    for memory in memories:
        header += [f"ms {memory}", "eager, times ours", "times the floor", "ns per element", "to the first"]
    table = [header]
    for test in tests:
        case = Case.from_json(test["case"])
        row = [case.name, "x".join(map(str, case.output_shape)), test["direction"]]
        for memory in memories:
            ours, eager, floor = (test["results"][name][memory]["ms"] for name in ("hmsa", "eager", "floor"))
            reference = first[test["direction"]]
            elements = Case.from_json(reference["case"]).output_elements
            each, first_each = ours / case.output_elements, reference["results"]["hmsa"][memory]["ms"] / elements
            row += [_ms(ours), f"{eager / ours:.1f}", f"{ours / floor:.1f}"]
            row += [f"{1e6 * each:.2f}", f"{each / first_each:.2f}"]
        table.append(row)
    return table


def centroids_table(tests: list[dict]) -> list[list[str]]:
    table = [["`class_tile_centroids` of", "threads", "ms", "published, ms on one thread", "times ours"]]
    for test in tests:
        ours, published = test["ms"]["hmsa"], test["ms"]["published"]
        table.append([test["labels"], str(test["threads"]), _ms(ours), _ms(published), f"{published / ours:.0f}"])
    return table


def crop_table(tests: list[dict]) -> list[list[str]]:
    """``sample_crop`` on one thread, and how many times ours the others take; on a GPU ours alone."""
    names = [name for name in CROP_NAMES if name in tests[0]["results"]]
    header = ["sample_crop", "scale", "ms"]
    for name in names:
        header += [f"{CROP_NAMES[name]}, ms", "times ours"]
    table = [header]
    for test in tests:
        case, results = test["case"], test["results"]
        row = [case["variant"], f"{case['scale']:g}", _ms(results["hmsa"])]
        for name in names:
            row += [_ms(results[name]), f"{results[name] / results['hmsa']:.1f}"]
        table.append(row)
    return table


def paper_table(test: dict) -> list[list[str]]:
    """What a training step of each method costs one network, and how many times a single scale that is."""
    case, results = test["case"], test["results"]
    base = results[training_cost.BASE]
    header = [f"`{case['network']}`", "trained at", "GFLOP", "times single scale", "in the paper"]
    header += ["trunk and decoder alone", "attention, %", "saved MB", "times single scale", "live MB"]
    header += ["times single scale"]
    has_times = case["time_crop"] is not None
    if has_times:
        crop = "x".join(map(str, case["time_crop"]))
        header += [f"ms at {crop}", "times single scale", f"peak MB at {crop}"]
    table = [header]
    for name, method in training_cost.METHODS.items():
        facts = results[name]

        def times(key: str, facts: dict = facts) -> str:
            return f"{facts[key] / base[key]:.2f}"

        row = [method.label, ", ".join(f"{scale:g}" for scale in facts["scales"]), f"{facts['flops'] / 1e9:.0f}"]
        row += [times("flops"), "" if method.paper is None else f"{method.paper:.2f}"]
        row += [times("trunk_and_decoder_flops"), f"{100 * facts['attention_flops'] / facts['flops']:.1f}"]
        for key in ("saved_bytes", "live_peak_bytes"):
            row += [_megabytes(facts[key]), times(key)]
        if has_times:
            row += [_ms(facts["ms"]), times("ms"), _megabytes(facts["peak_bytes"])]
        table.append(row)
    return table


def gpu_table(tests: list[dict]) -> list[list[str]]:
    """Ours against every byte moved once, at the bandwidth of a copy of the output measured in the same test."""
    header = ["op", "output", "direction", "ms", "GB/s of a copy", "ms each byte once"]
    table = [[*header, "share of the floor"]]
    for test in tests:
        case, direction = Case.from_json(test["case"]), test["direction"]
        bandwidth = copy_bandwidth(test, tests)
        once = competitors.moved_bytes(case, direction) / bandwidth / 1e6
        ours = test["results"]["hmsa"]["warm"]["ms"]
        shape = "x".join(map(str, case.output_shape))
        name = case.name if case.op == "fuse_scales" else f"{OPS[case.op].function}, {case.name}"
        row = [name, shape, direction, _ms(ours), f"{bandwidth:.0f}", f"{once:.3f}"]
        table.append([*row, f"{100 * once / ours:.0f} %"])
    return table


def copy_bandwidth(test: dict, tests: list[dict]) -> float:
    """GB/s of the floor of the same case's forward direction, which is a copy and nothing else; of the ops that end the
    chain, whose floor is the time for their bytes at the speed of a copy, that speed."""
    if Case.from_json(test["case"]).op != "fuse_scales":
        return competitors.moved_bytes(Case.from_json(test["case"]), test["direction"]) / floor_ms(test) / 1e6
    for other in tests:
        if other["case"] == test["case"] and other["direction"] == "forward":
            case = Case.from_json(other["case"])
            return 2 * case.output_bytes / floor_ms(other) / 1e6
    return H200_COPY


def floor_ms(test: dict) -> float:
    return test["results"]["floor"]["warm"]["ms"]


def machine_line(report: dict, device: str) -> str:
    machine, commit = report["machine_info"], report["commit_info"]
    parts = [
        machine["processor"],
        f"{machine['instruction sets']} (row primitives {machine['row primitives']})",
        f"{machine['threads']} threads",
        f"huge pages: {machine['huge pages']}",
        machine["glibc"],
        f"torch {machine['versions']['torch']}",
        machine["compiler"],
    ]
    if device == "cuda":
        parts = [*machine["devices"][:1], f"torch {machine['versions']['torch']}", f"nvcc {machine['cuda']['nvcc']}"]
    if commit.get("id"):
        parts.append(f"commit {commit['id'][:7]}{' with changes' if commit['dirty'] else ''}")
    return ", ".join([*parts, report["datetime"]])


def _memories(tests: list[dict]) -> list[str]:
    return [memory for memory in ("cold", "warm") if memory in tests[0]["results"]["hmsa"]]


def _op(fields: dict) -> str:
    case = Case.from_json(fields)
    scales = "" if case.op == "confusion_matrix" else f" ({', '.join(f'{s:g}' for s in case.scales)})"
    more = [", labels only"] * (case.op == "labels") + [", trained"] * case.trained
    return f"`{OPS[case.op].function}`{scales}{''.join(more)}"


def _what(test: dict) -> str:
    """The op, what about its case is not the usual, the direction where there is more than one."""
    case = Case.from_json(test["case"])
    unusual = [] if case.classes == 19 else [f"{case.classes} classes"]
    if case.batch > 1:
        unusual.append(f"{case.batch}x{case.size[0]}x{case.size[1]}")
    direction = [test["direction"]] if len(case.directions) > 1 else []
    return ", ".join([_op(test["case"]), *unusual, *direction])


def _ms(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 1 else f"{ms:.3f}"


def _gflop(count: int | None) -> str:
    return "" if count is None else f"{count / 1e9:.2f}"


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.0f}"


if __name__ == "__main__":
    main()
