"""Prints the table of a benchmark run: ``python -m bench.table bench/results/cpu.json``."""

from __future__ import annotations

import json
import sys


def rows(report: dict) -> list[list[str]]:
    table = [["op", "direction", "by", "ms", "times ours", "peak MB", "saved MB", "GFLOP"]]
    for test in report["benchmarks"]:
        scales, direction = test["params"]["scales"], test["params"]["direction"]
        for name in ("eager", "compile", "hmsa"):
            facts = test["extra_info"][name]
            table.append(
                [
                    f"`fuse_scales` ({', '.join(f'{s:g}' for s in scales)})",
                    direction,
                    {"eager": "PyTorch eager", "compile": "torch.compile", "hmsa": "**hmsa_ext**"}[name],
                    f"{facts['milliseconds']:.0f}",
                    f"{facts['times_ours']:.1f}" if "times_ours" in facts else "1",
                    f"{facts['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in facts else "",
                    f"{facts['saved_bytes'] / 1e6:.0f}",
                    f"{facts['flops'] / 1e9:.2f}",
                ]
            )
    return table


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m bench.table RESULTS.json")
    with open(sys.argv[1], encoding="utf-8") as file:
        report = json.load(file)
    table = rows(report)
    for i, row in enumerate(table):
        print("| " + " | ".join(row) + " |")
        if i == 0:
            print("|" + " --- |" * len(row))
    machine = report["machine_info"]
    print(f"\n{machine['cpu'].get('brand_raw', 'CPU')}, {machine['threads']} threads, torch {machine['torch']}")


if __name__ == "__main__":
    main()
