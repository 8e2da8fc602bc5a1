#!/usr/bin/env bash
# On a machine with a GPU: builds, runs every GPU test, checks memory and races, runs the benchmarks, prints their tables.
#   benchmarks/run_gpu.sh [folder for logs and results]
# Parts are chosen by the environment: BUILD=0, TESTS=0, SANITIZE=0 leave those out; BENCH="schedules kernels" names the
# benchmarks (BENCH= none); SCHEDULES="--part rows --guidance 1" are options of bench_schedules.py, SEARCH="--peer PATH"
# of bench_search.py.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=$(mkdir -p "${1:-$root/benchmarks/results}" && cd "${1:-$root/benchmarks/results}" && pwd)
export PYTHONUNBUFFERED=1 OSS_REQUIRE_CUDA=1
cd "$root"
failed=0
if [ "${BUILD:-1}" = 1 ]; then
  python3 -m pip install -q --no-build-isolation --no-deps .
fi
if [ "${TESTS:-1}" = 1 ]; then
  python3 -P -m pytest -q -p no:cacheprovider -m gpu --durations=5 > "$out/gpu_tests.log" 2>&1 || failed=1
  tail -n 12 "$out/gpu_tests.log" | cut -c1-200
fi
if [ "${SANITIZE:-1}" = 1 ]; then
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 9 python3 benchmarks/sanitize.py > "$out/$tool.log" 2>&1 || failed=1
    echo "$tool: $(tail -n 1 "$out/$tool.log")"
  done
fi
for name in ${BENCH-schedules kernels}; do
  case $name in
    schedules)
      # shellcheck disable=SC2086  # several options
      python3 benchmarks/bench_schedules.py --out "$out" ${SCHEDULES:-} > "$out/schedules.log" 2>&1 \
        || { failed=1; tail -n 20 "$out/schedules.log"; }
      grep -E 'evaluations \(|best of ours|saved| s in all|\(guidance' "$out/schedules.log" || true
      ;;
    kernels)
      python3 benchmarks/bench_kernels.py --out "$out" > "$out/kernels.log" 2>&1 || failed=1
      tail -n 30 "$out/kernels.log"
      ;;
    search)
      # shellcheck disable=SC2086  # several options, --peer PATH among them
      python3 benchmarks/bench_search.py --out "$out" ${SEARCH:-} > "$out/search.log" 2>&1 || failed=1
      tail -n 70 "$out/search.log"
      ;;
    costs)
      python3 benchmarks/bench_costs.py --out "$out" > "$out/costs.log" 2>&1 || failed=1
      tail -n 60 "$out/costs.log"
      ;;
    *)
      echo "BENCH: got $name, wanted schedules, kernels, search or costs" >&2
      exit 2
      ;;
  esac
done
exit $failed
