// Which sources of a target may be the nearest, from bounds of their costs.
#pragma once

#include "oss_ext/best_step.h"
#include "oss_ext/cuda/common.cuh"

namespace oss_ext::cuda {

constexpr int kShortlistThreads = 256;
constexpr int kShortlistShares = 8;  // threads that share a source's parts

// Grid: groups * nodes, a block a target. A source is left out only if it is dearer than another for sure.
__global__ void __launch_bounds__(kShortlistThreads) shortlist_sources(const __grid_constant__ ShortlistParams params) {
  constexpr int kAtOnce = kShortlistThreads / kShortlistShares;
  static_assert(kAtOnce == 32);
  const int64_t j = blockIdx.x % params.nodes, group = blockIdx.x / params.nodes;
  const int64_t begin = params.source_begin, end = min(params.source_end, j);
  const float2* bounds = reinterpret_cast<const float2*>(params.bounds) + (group * params.nodes + j) * params.nodes;
  const int64_t part = params.groups * params.nodes * params.nodes;
  // The shares are warps, the sources lanes.
  __shared__ double2 sums[kShortlistShares][kAtOnce];
  const int source = threadIdx.x % kAtOnce, share = threadIdx.x / kAtOnce;
  // Both bounds of source first + `source`, for every thread of that source.
  const auto total = [&](int64_t first, double& least, double& most) {
    const int64_t i = first + source;
    double2 some{0.0, 0.0};
    if (i < end) {
#pragma unroll 4
      for (int64_t s = share; s < params.parts; s += kShortlistShares) {
        const float2 pair = bounds[s * part + i];
        some.x += pair.x;
        some.y += pair.y;
      }
    }
    __syncthreads();
    sums[share][source] = some;
    __syncthreads();
    least = most = 0.0;
#pragma unroll
    for (int s = 0; s < kShortlistShares; ++s) {
      least += sums[s][source].x;
      most += sums[s][source].y;
    }
  };

  double surest = INFINITY, middle = INFINITY;  // the least upper bound; the least mean of both bounds, and whose
  int likeliest = INT32_MAX;
  for (int64_t first = begin; first < end; first += kAtOnce) {
    double least, most;
    total(first, least, most);
    if (first + source < end) {
      surest = fmin(surest, most);
      if (least + most < middle || likeliest == INT32_MAX) {
        middle = least + most;
        likeliest = static_cast<int>(first + source);
      }
    }
  }
  const int lane = threadIdx.x % 32;  // every warp has all sources
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
  int count = begin < end ? 1 : 0;
  if (threadIdx.x == 0 && count) list[0] = likeliest;
  for (int64_t first = begin; first < end; first += kAtOnce) {
    const int64_t i = first + source;
    double least, most;
    total(first, least, most);
    const bool kept = i < end && i != likeliest && least <= surest;
    const unsigned votes = __ballot_sync(0xffffffffu, kept);
    if (kept && share == 0) list[count + __popc(votes & ((1u << lane) - 1))] = static_cast<int32_t>(i);
    count += __popc(votes);
  }
  if (threadIdx.x == 0) params.counts[group * params.nodes + j] = count;
}

}  // namespace oss_ext::cuda
