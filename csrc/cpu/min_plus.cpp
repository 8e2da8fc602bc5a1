#include "oss_ext/min_plus.h"

#include <limits>
#include <new>

#include "oss_ext/best_source.h"
#include "oss_ext/cpu/entry.h"
#include "oss_ext/cpu/parallel.h"

namespace oss_ext::cpu {
namespace {

// Targets whose running minima stay in L1 while the rows of the cost stream by.
constexpr int64_t kChunk = 256;

template <class T>
void run(const MinPlusParams& params, int threads) {
  const int64_t nodes = params.nodes;
  const double operations = static_cast<double>(params.batch) * params.steps * nodes * nodes / 4;
  parallel_for(params.batch, worker_count(params.batch, threads, operations), [&](int64_t sample, int) {
    const T* cost = static_cast<const T*>(params.cost) + sample * params.batch_stride;
    const double* before = params.initial;
    for (int64_t k = 0; k < params.steps; ++k) {
      const int64_t row = (k * params.batch + sample) * nodes;
      double* values = params.values + row;
      for (int64_t first = 0; first < nodes; first += kChunk) {
        const int64_t end = std::min(first + kChunk, nodes);
        BestSource best[kChunk];
        std::fill_n(best, kChunk, BestSource::none());
        for (int64_t i = 0; i < end; ++i) {
          const double past = params.discount * before[i];
          const T* edge = cost + i * params.source_stride;
          for (int64_t j = std::max(first, i + 1); j < end; ++j)
            best[j - first].offer(static_cast<double>(edge[j]) + past, static_cast<int32_t>(i));
        }
        for (int64_t j = first; j < end; ++j) {
          values[j] = best[j - first].value;
          params.backpointers[row + j] = best[j - first].source;
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
  return guarded_for(params.dtype, [&](auto acc) { run<decltype(acc)>(params, threads); });
}

}  // namespace oss_ext::cpu
