#!/usr/bin/env bash
# On a machine with a GPU: builds, runs every GPU test, checks memory and races, runs the benchmarks, prints their tables.
#   benchmarks/run_gpu.sh [folder for logs and results]      SANITIZE=0 leaves out the memory and race checks
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=$(mkdir -p "${1:-$root/benchmarks/results}" && cd "${1:-$root/benchmarks/results}" && pwd)
export PYTHONUNBUFFERED=1 OSS_REQUIRE_CUDA=1
cd "$root"
python3 -m pip install -q --no-build-isolation --no-deps .
failed=0
python3 -P -m pytest -q -p no:cacheprovider -m gpu --durations=5 > "$out/gpu_tests.log" 2>&1 || failed=1
tail -n 12 "$out/gpu_tests.log" | cut -c1-200
if [ "${SANITIZE:-1}" = 1 ]; then
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 9 python3 benchmarks/sanitize.py > "$out/$tool.log" 2>&1 || failed=1
    echo "$tool: $(tail -n 1 "$out/$tool.log")"
  done
fi
python3 benchmarks/bench_schedules.py --out "$out" | tail -n 45
python3 benchmarks/bench_kernels.py --out "$out" | tail -n 10
exit $failed
