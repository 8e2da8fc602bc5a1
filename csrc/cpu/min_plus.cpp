#include "oss_ext/min_plus.h"

#include <cmath>
#include <limits>
#include <new>

#include "oss_ext/cpu/parallel.h"
#include "oss_ext/min_reduce.h"

namespace oss_ext::cpu {
namespace {

template <class T>
void run(const MinPlusParams& params, int threads) {
  const int64_t nodes = params.nodes;
  const double operations = static_cast<double>(params.batch) * params.steps * nodes * nodes / 4;
  parallel_for(params.batch, worker_count(params.batch, threads, operations), [&](int64_t sample, int) {
    const T* cost = static_cast<const T*>(params.cost) + sample * params.batch_stride;
    const double* before = params.initial;
    for (int64_t k = 0; k < params.steps; ++k) {
      double* values = params.values + (k * params.batch + sample) * nodes;
      int32_t* backpointers = params.backpointers + (k * params.batch + sample) * nodes;
      std::fill_n(values, nodes, std::numeric_limits<double>::infinity());
      std::fill_n(backpointers, nodes, kUnreached);
      for (int64_t i = 0; i < nodes; ++i) {
        const double past = params.discount * before[i];
        if (!std::isfinite(past)) continue;
        const T* edge = cost + i * params.source_stride;
        for (int64_t j = i + 1; j < nodes; ++j) {
          const double c = static_cast<double>(edge[j]) + past;
          const bool wins = std::isfinite(c) && c < values[j];
          values[j] = wins ? c : values[j];
          backpointers[j] = wins ? static_cast<int32_t>(i) : backpointers[j];
        }
      }
      before = values;
    }
  });
}

}  // namespace

Status min_plus(const MinPlusParams& params, int threads) {
  if (params.batch < 0 || params.nodes < 1 || params.steps < 0) return kInvalidArgument;
  if (params.nodes > std::numeric_limits<int32_t>::max()) return kInvalidArgument;
  if (params.dtype != DType::f32 && params.dtype != DType::f64) return kUnsupportedDtype;
  try {
    if (params.dtype == DType::f64) {
      run<double>(params, threads);
    } else {
      run<float>(params, threads);
    }
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
  return kOk;
}

}  // namespace oss_ext::cpu
