#!/usr/bin/env bash
# Builds, tests and measures on a machine with an NVIDIA GPU, in one command:
#
#     bash bench/gpu.sh
#
# Installs the package into the environment of `python`, which must have torch with CUDA, numpy, opencv, pytest,
# hypothesis and pytest-benchmark; nvcc, cmake and ninja must be there too. Nothing is downloaded. Then: every test that
# has a `cuda` variant, compute-sanitizer over each op, the bytes that the model expects the kernels to move, and the
# benchmarks, whose table holds the measured times against that model. Results go to bench/results/, or to $OUT if that
# is set: <gpu>.log, <gpu>.benchmark.json and <gpu>.summary.json. Every part runs; if one failed, so does this.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

results=${OUT:-bench/results}
mkdir -p "$results"
gpu=$(python -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-").replace("/", "-"))' 2>/dev/null) || {
  echo "no GPU that $(command -v python)'s torch can use: this script needs one" >&2
  exit 2
}
log=$results/$gpu.log
parts=()
failed=0
: >"$log"

# part NAME COMMAND...: runs the command, keeps its output in the log and its exit status for the summary.
part() {
  local name=$1 started=$SECONDS status
  shift
  printf '\n=== %s: %s\n' "$name" "$*" | tee -a "$log"
  "$@" </dev/null 2>&1 | tee -a "$log"
  status=${PIPESTATUS[0]}
  parts+=("$name=$status=$((SECONDS - started))")
  [ "$status" -eq 0 ] || failed=1
  return "$status"
}

summary() {
  python - "$results/$gpu.summary.json" "${parts[@]}" <<'PYTHON' | tee -a "$log"
import json
import sys

parts = [part.split("=") for part in sys.argv[2:]]
summary = {"parts": {name: {"exit status": int(status), "seconds": int(seconds)} for name, status, seconds in parts}}
try:
    from hmsa_ext.info import collect

    summary["info"] = collect()
    summary["info"]["library"].pop("path")  # of this machine alone
except ImportError as error:
    summary["info"] = f"hmsa_ext does not import: {error}"
with open(sys.argv[1], "w", encoding="utf-8") as file:
    json.dump(summary, file, indent=2)
print()
for name, status, seconds in parts:
    print(f"{name:<20} {'passed' if status == '0' else 'FAILED (exit status ' + status + ')':<24} {seconds:>5} s")
PYTHON
}

# Code for this GPU only unless told otherwise: a full build takes four times as long. Line numbers are for the sanitizer.
export HMSA_CUDA=1
export HMSA_CUDA_ARCHS=${HMSA_CUDA_ARCHS:-$(python -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')}
export NVCC_APPEND_FLAGS="${NVCC_APPEND_FLAGS:-} -lineinfo"
export PYTHONUNBUFFERED=1

part gpu nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem --format=csv
if ! part build python -m pip install --no-build-isolation --no-deps --force-reinstall .; then
  summary
  exit 1
fi
part info python -m hmsa_ext.info
part tests python -m pytest python_tests -k cuda -q
if command -v compute-sanitizer >/dev/null; then
  # Without PyTorch's cache every tensor is an allocation of its own, so that a step past its end is seen.
  for tool in memcheck racecheck; do
    part "$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      python bench/sanitizer_cases.py
  done
else
  echo "compute-sanitizer is not on PATH: memcheck and racecheck did not run" | tee -a "$log"
  parts+=("memcheck=127=0" "racecheck=127=0")
  failed=1
fi
part model python -m bench.byte_model
part benchmarks python -m pytest bench -k cuda --benchmark-json="$results/$gpu.benchmark.json" &&
  part table python -m bench.table "$results/$gpu.benchmark.json"
part loader python -m bench.loader --workers 8 --device cuda --json "$results/$gpu.loader.json"
summary
exit "$failed"
