// Minimum over sources: 32 neighbouring targets a block (coalesced rows), the sources strided over its warps.
#pragma once

#include "oss_ext/best_source.h"
#include "oss_ext/cuda/common.cuh"

namespace oss_ext::cuda {

constexpr int kMinWarps = 16;

// Block (32, kMinWarps), grid: batch * ceil(targets / 32).
template <typename T>
__global__ void min_over_sources(const T* cost, int64_t batch_stride, int64_t source_stride, int64_t sources,
                                 int64_t targets, int64_t target_tiles, double* values, int32_t* backpointers) {
  const int64_t b = blockIdx.x / target_tiles;
  const int64_t target = (blockIdx.x % target_tiles) * 32 + threadIdx.x;
  BestSource best = BestSource::none();
  if (target < targets) {
    const T* column = cost + b * batch_stride + target;
#pragma unroll 4
    for (int64_t i = threadIdx.y; i < sources; i += kMinWarps) best.offer(column[i * source_stride], i);
  }
  __shared__ BestSource found[kMinWarps][32];
  found[threadIdx.y][threadIdx.x] = best;
  __syncthreads();
  if (threadIdx.y != 0 || target >= targets) return;
  for (int w = 1; w < kMinWarps; ++w) best.offer(found[w][threadIdx.x]);
  values[b * targets + target] = best.value;
  backpointers[b * targets + target] = best.source;
}

// sum[i, j] over the samples in their order, one thread an entry: the same bits whatever the launch.
template <typename T>
__global__ void sum_over_batch(const T* cost, int64_t batch_stride, int64_t source_stride, int64_t batch,
                               int64_t sources, int64_t targets, double* sum) {
  const int64_t entry = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (entry >= sources * targets) return;
  const T* at = cost + (entry / targets) * source_stride + entry % targets;
  double total = 0.0;
#pragma unroll 8
  for (int64_t b = 0; b < batch; ++b) total += at[b * batch_stride];
  sum[entry] = total;
}

}  // namespace oss_ext::cuda
