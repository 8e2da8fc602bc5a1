// One block a sample walks through all the stages: the values of a stage are the next one's input.
#pragma once

#include "oss_ext/best_source.h"
#include "oss_ext/cuda/common.cuh"

namespace oss_ext::cuda {

constexpr int kPathWarps = 32;

// Block (32, kPathWarps), grid: batch. Lanes are neighbouring targets, warps stride over the sources.
template <typename T>
__global__ void min_plus_path(const T* cost, int64_t batch_stride, int64_t source_stride, int64_t nodes, int64_t steps,
                              const double* initial, double discount, double* values, int32_t* backpointers) {
  __shared__ BestSource found[kPathWarps][33];
  const int64_t b = blockIdx.x, batch = gridDim.x;
  cost += b * batch_stride;
  const double* previous = initial;
  for (int64_t k = 0; k < steps; ++k) {
    double* value = values + (k * batch + b) * nodes;
    int32_t* pointer = backpointers + (k * batch + b) * nodes;
    for (int64_t first = 0; first < nodes; first += 32) {
      const int64_t target = first + threadIdx.x;
      BestSource best = BestSource::none();
      if (target < nodes) {
        for (int64_t i = threadIdx.y; i < target; i += kPathWarps) {
          // Rounded twice, as on the CPU, so that both choose alike: no fused multiply-add.
          best.offer(__dadd_rn(cost[i * source_stride + target], __dmul_rn(discount, previous[i])), i);
        }
      }
      found[threadIdx.y][threadIdx.x] = best;
      __syncthreads();
      if (threadIdx.y == 0 && target < nodes) {
        for (int w = 1; w < kPathWarps; ++w) best.offer(found[w][threadIdx.x]);
        value[target] = best.value;
        pointer[target] = best.source;
      }
      __syncthreads();  // before `found` is filled again, and before the stage's values are read
    }
    previous = value;
  }
}

}  // namespace oss_ext::cuda
