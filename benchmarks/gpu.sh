#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: build the kernels, check them, time them. Needs a PyTorch with
# CUDA, nvcc, CMake, Ninja and pytest; no network, and nothing is installed.
#
#   benchmarks/gpu.sh [--library _C_cuda.so] [--budget SECONDS] [--output FOLDER]
#
# --library takes kernels that were built elsewhere. The budget, 460 s by default, is for everything;
# baselines that do not fit into it are left out and named. The report, gpu.json and gpu.md, goes to
# --output, else to $OUT, else to benchmarks/results. The exit status is 1 if a test failed or a
# result was wrong; the report is written all the same. PYTHON names the Python (python3), and COMMIT
# the commit where this is a copy without .git.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}" library="" budget=460 output="${OUT:-benchmarks/results}"
while (($#)); do
  case "$1" in
    --library) library="$2" ;;
    --budget) budget="$2" ;;
    --output) output="$2" ;;
    *) sed -n '2,/^set/{/^#/p}' "$0" >&2 && exit 2 ;;
  esac
  shift 2
done
export PYTHONPATH="$PWD"
mkdir -p "$output"

"$python" -c 'import torch; torch.cuda.is_available() or exit("gpu.sh: expected a GPU, got none")'
"$python" tools/build_cuda.py ${library:+--library "$library"}
"$python" -m clsd_fast.env | tee "$output/gpu-environment.txt"

# The whole suite is `make gpu-test`. A failure does not stop the rest: every number has a check of
# its own.
failed=0
timeout $((budget / 4)) "$python" -m pytest -m gpu -q -rfs tests/gpu/test_cuda_gpu.py \
  -k "native or small or graph or served" 2>&1 | tee "$output/gpu-tests.txt" || failed=1

"$python" benchmarks/gpu.py --budget $((budget - SECONDS)) --output "$output" || failed=1
exit $failed
