// Which tile, how many splits, and the launches: host templates over the element type, instantiated once a type in
// csrc/cuda/pairwise_cost_<type>.cu so that the types compile side by side.
#pragma once

#include <algorithm>
#include <type_traits>

#include "oss_ext/cuda/pairwise_cost.cuh"
#include "oss_ext/pairwise_cost.h"

namespace oss_ext::cuda {

// More basis vectors (and weights) mean more numbers in registers, so a smaller tile a warp.
using LargeTile = CostTile<6, 8, 2, 4, 3>;
using MediumTile = CostTile<4, 8, 4, 2, 2>;
using SmallTile = CostTile<4, 4, 4, 2, 2>;
using WideTile = CostTile<3, 8, 2, 4, 2>;
using DoubleTile = CostTile<2, 4, 4, 2, 2>;
template <typename T, int P, bool kWeighted>
using TileFor = std::conditional_t<
    sizeof(T) == 8, DoubleTile,
    std::conditional_t<
        P >= 5, WideTile,
        std::conditional_t<kWeighted, SmallTile, std::conditional_t<sizeof(T) == 4 && P <= 2, LargeTile, MediumTile>>>>;

constexpr int64_t kMostChunks = 64;  // 256 numbers a lane
constexpr int64_t kBlockCost = 5;    // chunks

struct CostPlan {
  int64_t tiles, splits, chunks_per_split, sources_per_block;
  bool short_rows;
};

template <typename T, int P, bool kWeighted>
CostPlan plan_for(const PairwiseCostParams& params, int device) {
  using Tile = TileFor<T, P, kWeighted>;
  CostPlan plan{};
  plan.short_rows = params.dim <= kShortDim<typename AccOf<T>::type, P>;
  plan.splits = 1;
  if (plan.short_rows) {
    // All sources in one block where the batch fills the GPU, else fewer.
    const int64_t target_tiles = ceil_div(params.nodes, kShortTargets);
    const int64_t groups = ceil_div(8 * multiprocessors(device), std::max<int64_t>(1, target_tiles * params.batch));
    const int64_t sources = params.source_end - params.source_begin;
    plan.sources_per_block = std::max<int64_t>(ceil_div(ceil_div(sources, groups), kShortSources), 1) * kShortSources;
    plan.tiles = target_tiles * ceil_div(sources, plan.sources_per_block);
    return plan;
  }
  plan.tiles = Triangle<Tile::kSources, Tile::kTargets>::count(params.source_begin, params.source_end, params.nodes);
  const int64_t chunks = ceil_div(params.dim, CostLayout<T, P, Tile>::kChunk);
  plan.chunks_per_split = chunks;
  if (plan.tiles * params.batch == 0) return plan;
  // The split that is done soonest: rounds of blocks over the GPU, each as long as its chunks and what a block costs
  // apart from them (coefficients, first rows, sums: as much as kBlockCost chunks, measured on an H200). No more than
  // kMostChunks, so that float sums stay short: the splits are added in double.
  const int64_t at_once = std::max(1, multiprocessors(device));
  int64_t best = INT64_MAX;
  for (int64_t length = std::min(chunks, kMostChunks); length > 0; length = length > 16 ? length * 7 / 8 : length - 1) {
    const int64_t rounds = ceil_div(plan.tiles * params.batch * ceil_div(chunks, length), at_once);
    if (rounds * (length + kBlockCost) < best) {
      best = rounds * (length + kBlockCost);
      plan.chunks_per_split = length;
    }
  }
  plan.splits = ceil_div(chunks, plan.chunks_per_split);
  return plan;
}

inline int64_t bytes_of(const CostPlan& plan, const PairwiseCostParams& params) {
  const int64_t entries = params.batch * params.nodes * params.nodes;
  return plan.splits > 1 ? plan.splits * entries * acc_size(params.dtype) : 0;
}

template <typename T, int P, bool kWeighted>
Status launch_sums(const CostArgs& args, const CostPlan& plan, cudaStream_t stream) {
  const int64_t blocks = plan.tiles * plan.splits * args.batch;
  if (blocks == 0) return kOk;
  if (plan.short_rows) {
    const int bytes = short_bytes<typename AccOf<T>::type, P>(args.dim);
    pairwise_cost_short<T, P, kWeighted><<<blocks, kShortTargets, bytes, stream>>>(args);
    return launch_status();
  }
  using Tile = TileFor<T, P, kWeighted>;
  constexpr int kBytes = CostLayout<T, P, Tile>::kBytes;
  static_assert(kBytes + CostLayout<T, P, Tile>::kRows * sizeof(void*) <= 99 * 1024,
                "what a block of 8.6 and 12.0 has");
  const auto kernel = pairwise_cost_tiled<T, P, Tile, kWeighted>;
  if (kBytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
    if (error != cudaSuccess) return static_cast<Status>(error);
  }
  kernel<<<blocks, Tile::kThreads, kBytes, stream>>>(args);
  return launch_status();
}

template <typename T, int P, bool kWeighted>
Status compute(const PairwiseCostParams& params, int device, cudaStream_t stream) {
  using Acc = typename AccOf<T>::type;
  const CostPlan plan = plan_for<T, P, kWeighted>(params, device);
  if (params.workspace_bytes < bytes_of(plan, params)) return kWorkspaceTooSmall;
  CostArgs args{};
  take_rows(params, args);
  args.aligned = rows_aligned(params.target, sizeof(T));
  for (int p = 0; p < P; ++p) args.aligned = args.aligned && rows_aligned(params.basis[p], sizeof(T));
  args.coefficients = params.coefficients;
  args.coefficient_stride = params.coefficient_stride;
  args.weight = params.weight;
  args.source_begin = params.source_begin;
  args.source_end = params.source_end;
  args.tiles = plan.tiles;
  args.splits = plan.splits;
  args.chunks_per_split = plan.chunks_per_split;
  args.sources_per_block = plan.sources_per_block;
  args.sums = plan.splits > 1 ? params.workspace : params.cost;
  args.target_weight = params.target_weight;
  args.scale = 1.0 / static_cast<double>(params.dim);
  const Status status = launch_sums<T, P, kWeighted>(args, plan, stream);
  if (status != kOk) return status;
  finish_cost<Acc><<<params.batch * params.nodes, 128, 0, stream>>>(args, static_cast<Acc*>(params.cost));
  return launch_status();
}

// body(count, weighted): P and whether there are weights, as types.
template <typename Body>
Status dispatch_cost(const PairwiseCostParams& params, Body&& body) {
  return dispatch_basis_count(params.basis_count, [&](auto count) {
    return params.weight ? body(count, std::true_type{}) : body(count, std::false_type{});
  });
}

template <typename T>
int64_t cost_workspace(const PairwiseCostParams& params, int device) {
  int64_t bytes = 0;
  const Status status = dispatch_cost(params, [&](auto count, auto weighted) {
    bytes = bytes_of(plan_for<T, decltype(count)::value, decltype(weighted)::value>(params, device), params);
    return kOk;
  });
  return status == kOk ? bytes : status;
}

template <typename T>
Status cost_on(const PairwiseCostParams& params, int device, cudaStream_t stream) {
  return dispatch_cost(params, [&](auto count, auto weighted) {
    return compute<T, decltype(count)::value, decltype(weighted)::value>(params, device, stream);
  });
}

}  // namespace oss_ext::cuda
