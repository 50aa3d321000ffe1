#!/usr/bin/env bash
# Checks and measures the package on a machine with an NVIDIA GPU, in one command that stops after 520 s.
#
# Where there is a GPU and nvcc, this builds for that GPU, then runs:
#
#     bash bench/gpu.sh
#
# A machine that is lent by the minute should not compile. Build the library beforehand, where there is nvcc but no GPU,
# and carry the ignored folder build/gpu (some 7 MB) to the same place of the checkout there:
#
#     bash bench/gpu.sh --build                      # here; HMSA_CUDA_ARCHS=90 (Hopper) unless it is set
#     HMSA_PREBUILT=1 bash bench/gpu.sh              # there; results go to $OUT if it is set, else to bench/results/
#
# There, `python3` needs torch with CUDA, numpy, opencv, pytest, pytest-xdist, pytest-timeout and hypothesis; nothing is
# installed or downloaded. git may be missing: the commit is then HMSA_COMMIT, or what --build wrote down.
#
#     bash bench/gpu.sh --part times                 # one part alone; its figures are appended to the same day's file
#     bash bench/gpu.sh --list                       # the parts, with their limits in seconds
#     bash bench/gpu.sh --seconds 220                # what all parts together may take, instead of 520
#     bash bench/gpu.sh --dry                        # everything but the GPU, tiny, on the CPU: what CI runs
#
# Parts run in the order of their worth (bench/gpu_run.py), each with a limit of its own. A part that no longer fits is
# skipped, and the file says so. Each figure is appended to <date>-<machine>-gpu.jsonl as soon as it is known, so that a
# kill at any moment leaves what was measured: `python -m bench.gpu_report FILE` prints it. Beside it: the log, JUnit's
# file of the tests and what Nsight Compute printed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

started=$(date +%s)
python=${PYTHON:-$(command -v python3 || command -v python)}
prebuilt=$PWD/build/gpu

# The library with its package and metadata, where PYTHONPATH finds both, compiled in a folder of its own: no other
# build's objects, which lack line numbers (for the sanitizer and the profiler), get in.
build() {
  HMSA_CUDA=${HMSA_CUDA:-1} HMSA_CUDA_ARCHS=${HMSA_CUDA_ARCHS:-90} HMSA_BUILD_DIR=build/gpu-cmake \
    NVCC_APPEND_FLAGS="${NVCC_APPEND_FLAGS:-} -lineinfo" \
    "$python" -m pip install --quiet --no-build-isolation --no-deps --no-compile --upgrade --target "$prebuilt" .
  "$python" -m bench.gpu_machine --write "$prebuilt/built_from.json"
  du -sh "$prebuilt"
}

if [ "$*" = --build ]; then
  build
  exit
fi
"$python" -m bench.gpu_run --only-check-arguments "$@"

case " $* " in
  *" --dry "* | *" --list "* | *" --help "* | *" -h "*) ;;
  *)
    if ! "$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' 2>/dev/null; then
      echo "bench/gpu.sh: $python has no torch that sees a GPU. --build compiles here for a GPU elsewhere, --dry runs" \
        "everything but the GPU on the CPU" >&2
      exit 2
    fi
    if [ "${HMSA_PREBUILT:-0}" != 1 ]; then
      if [ -z "${HMSA_CUDA_ARCHS:-}" ]; then
        HMSA_CUDA_ARCHS=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
        export HMSA_CUDA_ARCHS
      fi
      build
      HMSA_PREBUILT=1
      started=$(date +%s)
    elif [ ! -e "$prebuilt/hmsa_ext/_C.so" ]; then
      echo "HMSA_PREBUILT=1, but there is no build/gpu/hmsa_ext/_C.so: make it with bash bench/gpu.sh --build" >&2
      exit 2
    fi
    ;;
esac
if [ "${HMSA_PREBUILT:-0}" = 1 ]; then
  export PYTHONPATH=$prebuilt${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONUNBUFFERED=1
exec "$python" -m bench.gpu_run --started "$started" "$@"
