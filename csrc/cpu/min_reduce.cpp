#include "oss_ext/min_reduce.h"

#include <limits>
#include <new>

#include "oss_ext/best_source.h"
#include "oss_ext/cpu/entry.h"
#include "oss_ext/cpu/parallel.h"

namespace oss_ext::cpu {
namespace {

// Targets of one task: their running minima stay in L1 while the sources stream by.
constexpr int64_t kChunk = 256;

template <class T>
void take(const T* candidate, int32_t source, int64_t count, BestSource* best) {
  for (int64_t j = 0; j < count; ++j) best[j].offer(static_cast<double>(candidate[j]), source);
}

template <class T>
void run(const MinReduceParams& params, int threads) {
  const T* cost = static_cast<const T*>(params.cost);
  const int64_t chunks = (params.targets + kChunk - 1) / kChunk;
  const int64_t rows = params.joint ? 1 : params.batch;
  const int64_t tasks = rows * chunks;
  const double operations = static_cast<double>(params.batch) * params.sources * params.targets / 2;
  parallel_for(tasks, worker_count(tasks, threads, operations), [&](int64_t task, int) {
    const int64_t row = task / chunks, first = task % chunks * kChunk;
    const int64_t count = std::min(kChunk, params.targets - first);
    BestSource best[kChunk];
    std::fill_n(best, count, BestSource::none());
    for (int64_t i = 0; i < params.sources; ++i) {
      const T* candidate = cost + i * params.source_stride + first;
      if (!params.joint) {
        take(candidate + row * params.batch_stride, static_cast<int32_t>(i), count, best);
        continue;
      }
      double sum[kChunk] = {};
      for (int64_t b = 0; b < params.batch; ++b)
        for (int64_t j = 0; j < count; ++j) sum[j] += static_cast<double>(candidate[b * params.batch_stride + j]);
      take(sum, static_cast<int32_t>(i), count, best);
    }
    for (int64_t j = 0; j < count; ++j) {
      params.values[row * params.targets + first + j] = best[j].value;
      params.backpointers[row * params.targets + first + j] = best[j].source;
    }
  });
}

}  // namespace

Status min_reduce(const MinReduceParams& params, int threads) {
  if (params.batch < 0 || params.sources < 0 || params.targets < 0) return kInvalidArgument;
  if (params.sources > std::numeric_limits<int32_t>::max()) return kInvalidArgument;
  if (params.dtype != DType::f32 && params.dtype != DType::f64) return kUnsupportedDtype;
  return guarded_for(params.dtype, [&](auto acc) { run<decltype(acc)>(params, threads); });
}

}  // namespace oss_ext::cpu
