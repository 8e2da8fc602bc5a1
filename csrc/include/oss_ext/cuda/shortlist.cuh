// Which sources of a target may be the nearest, from bounds of their costs.
#pragma once

#include "oss_ext/best_step.h"
#include "oss_ext/cuda/common.cuh"

namespace oss_ext::cuda {

constexpr int kShortlistThreads = 512;
constexpr int kShortlistShares = 4;  // warps that share a source's parts

constexpr int64_t shortlist_bytes(int64_t nodes) { return nodes * static_cast<int64_t>(sizeof(double2)); }

// Grid: groups * nodes, a block a target. A source is left out only if it is dearer than another for sure.
__global__ void __launch_bounds__(kShortlistThreads) shortlist_sources(const __grid_constant__ ShortlistParams params) {
  constexpr int kAtOnce = kShortlistThreads / kShortlistShares;
  const int64_t j = blockIdx.x % params.nodes, group = blockIdx.x / params.nodes;
  const int64_t begin = params.source_begin, end = min(params.source_end, j);
  const int count_all = static_cast<int>(max(end - begin, int64_t{0}));
  const float2* bounds =
      reinterpret_cast<const float2*>(params.bounds) + (group * params.nodes + j) * params.nodes + begin;
  const int64_t part = params.groups * params.nodes * params.nodes;
  extern __shared__ double2 totals[];  // [source]: both bounds
  __shared__ double2 sums[kShortlistShares][kAtOnce];
  const int column = threadIdx.x % kAtOnce, share = threadIdx.x / kAtOnce, lane = threadIdx.x % 32;
  for (int first = 0; first < count_all; first += kAtOnce) {
    double2 some{0.0, 0.0};
    if (first + column < count_all) {
#pragma unroll 8
      for (int64_t s = share; s < params.parts; s += kShortlistShares) {
        const float2 pair = bounds[s * part + first + column];
        some.x += pair.x;
        some.y += pair.y;
      }
    }
    sums[share][column] = some;
    __syncthreads();
    if (share == 0 && first + column < count_all) {
#pragma unroll
      for (int s = 1; s < kShortlistShares; ++s) {
        some.x += sums[s][column].x;
        some.y += sums[s][column].y;
      }
      totals[first + column] = some;
    }
    __syncthreads();
  }
  if (threadIdx.x >= 32) return;

  double surest = INFINITY, middle = INFINITY;  // the least upper bound; the least mean of both bounds, and whose
  int likeliest = INT32_MAX;
  for (int i = lane; i < count_all; i += 32) {
    const double2 total = totals[i];
    surest = fmin(surest, total.y);
    if (total.x + total.y < middle || likeliest == INT32_MAX) {
      middle = total.x + total.y;
      likeliest = i;
    }
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    surest = fmin(surest, __shfl_xor_sync(0xffffffffu, surest, step));
    const double other_middle = __shfl_xor_sync(0xffffffffu, middle, step);
    const int other = __shfl_xor_sync(0xffffffffu, likeliest, step);
    if (other_middle < middle || (other_middle == middle && other < likeliest)) {
      middle = other_middle;
      likeliest = other;
    }
  }

  int32_t* list = params.sources + (group * params.nodes + j) * params.nodes;
  int count = count_all > 0 ? 1 : 0;
  if (lane == 0 && count) list[0] = static_cast<int32_t>(begin + likeliest);
  for (int first = 0; first < count_all; first += 32) {
    const int i = first + lane;
    const bool kept = i < count_all && i != likeliest && totals[i].x <= surest;
    const unsigned votes = __ballot_sync(0xffffffffu, kept);
    if (kept) list[count + __popc(votes & ((1u << lane) - 1))] = static_cast<int32_t>(begin + i);
    count += __popc(votes);
  }
  if (lane == 0) params.counts[group * params.nodes + j] = count;
}

}  // namespace oss_ext::cuda
