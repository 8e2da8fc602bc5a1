// Which tile, how many splits, and the launches: host templates over the element type, instantiated once a type in
// csrc/cuda/pairwise_cost_<type>.cu so that the types compile side by side.
#pragma once

#include <algorithm>
#include <type_traits>

#include "oss_ext/cuda/pairwise_cost.cuh"
#include "oss_ext/cuda/pairwise_cost_short.cuh"
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

// The same for short rows, where a block goes through samples: what a block costs apart from its numbers (coefficients,
// first rows, and a cost to write here and to read later), in numbers of a row; and the bytes of rows that it takes at
// a time.
constexpr int64_t kShortBlockCost = 64;
constexpr int64_t kShortStageBytes = 32 * 1024;

struct CostPlan {
  int64_t tiles, splits, chunks_per_split;
  int64_t samples_per_block;  // short rows
  bool short_rows;
};

// Samples a block: as few groups as keep the GPU busy. A block that is alone on its multiprocessor waits for its rows,
// hence one round more than there are.
inline int64_t samples_per_block(int64_t tiles, int64_t batch, int64_t length, int device) {
  if (tiles == 0) return std::max<int64_t>(batch, 1);
  const int64_t at_once = std::max(1, multiprocessors(device));
  const int64_t most = std::max<int64_t>(kShortRun * kShortRuns / length, 1);
  int64_t best = INT64_MAX, found = 1;
  for (int64_t samples = std::min(batch, most); samples > 0; samples = samples > 16 ? samples * 7 / 8 : samples - 1) {
    const int64_t groups = ceil_div(batch, samples), even = ceil_div(batch, groups);
    const int64_t took = (ceil_div(tiles * groups, at_once) + 1) * (even * length + kShortBlockCost);
    if (took < best) {
      best = took;
      found = even;
    }
  }
  return found;
}

template <typename T, int P, bool kWeighted>
CostPlan plan_for(const PairwiseCostParams& params, int device) {
  using Acc = typename AccOf<T>::type;
  using Tile = TileFor<T, P, kWeighted>;
  CostPlan plan{};
  plan.short_rows = params.dim <= kShortDim<Acc>;
  plan.splits = 1;
  plan.samples_per_block = 1;
  if (plan.short_rows) {
    using Short = ShortTile<Acc, P>;
    plan.tiles =
        Triangle<Short::kSources, Short::kTargets>::count(params.source_begin, params.source_end, params.nodes);
    const int64_t length = short_units<Acc>(params.dim) * Short::kUnit;
    plan.samples_per_block = samples_per_block(plan.tiles, params.batch, length, device);
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
  const int64_t planned = params.plan_batch ? params.plan_batch : params.batch;
  int64_t best = INT64_MAX;
  for (int64_t length = std::min(chunks, kMostChunks); length > 0; length = length > 16 ? length * 7 / 8 : length - 1) {
    const int64_t rounds = ceil_div(plan.tiles * planned * ceil_div(chunks, length), at_once);
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

// Launches with dynamic shared memory; above 48 KiB it must be asked for.
inline Status launch_cost(void (*kernel)(CostArgs), int64_t blocks, int threads, int bytes, const CostArgs& args,
                          cudaStream_t stream) {
  if (bytes > 40 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return static_cast<Status>(error);
  }
  kernel<<<blocks, threads, bytes, stream>>>(args);
  return launch_status();
}

// What a block may have on 8.6 and 12.0.
constexpr int kMostShared = 99 * 1024;

template <typename T, int P, bool kWeighted>
Status launch_sums(CostArgs& args, const CostPlan& plan, cudaStream_t stream) {
  using Acc = typename AccOf<T>::type;
  if (plan.short_rows) {
    using Tile = ShortTile<Acc, P>;
    constexpr int kTable = Tile::kRows * static_cast<int>(sizeof(ShortRow<T>));
    static_assert(short_bytes<Acc, P>(kShortDim<Acc>, 1) + kTable <= kMostShared);
    const int units = short_units<Acc>(args.dim);
    const int64_t fit = std::max<int64_t>(kShortStageBytes / (units * Tile::kPitch * 16), 1);
    args.samples_at_once = static_cast<int>(std::min(fit, args.samples_per_block));
    while ((1 << args.unit_bits) < units) ++args.unit_bits;
    args.aligned = args.aligned && args.dim % Tile::kUnit == 0;
    const int64_t blocks = plan.tiles * ceil_div(args.batch, args.samples_per_block);
    if (blocks == 0) return kOk;
    return launch_cost(pairwise_cost_short<T, P, kWeighted>, blocks, kShortThreads,
                       short_bytes<Acc, P>(args.dim, args.samples_at_once), args, stream);
  }
  using Tile = TileFor<T, P, kWeighted>;
  constexpr int kBytes = CostLayout<T, P, Tile>::kBytes;
  static_assert(kBytes + CostLayout<T, P, Tile>::kRows * sizeof(void*) <= kMostShared);
  const int64_t blocks = plan.tiles * plan.splits * args.batch;
  if (blocks == 0) return kOk;
  return launch_cost(pairwise_cost_tiled<T, P, Tile, kWeighted>, blocks, Tile::kThreads, kBytes, args, stream);
}

template <typename T, int P, bool kWeighted>
Status compute(const PairwiseCostParams& params, int device, cudaStream_t stream) {
  using Acc = typename AccOf<T>::type;
  const CostPlan plan = plan_for<T, P, kWeighted>(params, device);
  const bool joint = params.samples_per_sum > 1;
  if (joint && !plan.short_rows) return kInvalidArgument;
  if (params.workspace_bytes < bytes_of(plan, params)) return kWorkspaceTooSmall;
  CostArgs args{};
  take_pairs(params, plan.tiles, plan.splits, args);
  args.aligned = rows_aligned(params.target, sizeof(T));
  for (int p = 0; p < P; ++p) args.aligned = args.aligned && rows_aligned(params.basis[p], sizeof(T));
  args.coefficients = params.coefficients;
  args.coefficient_stride = params.coefficient_stride;
  args.weight = params.weight;
  args.chunks_per_split = plan.chunks_per_split;
  args.samples_per_sum = params.samples_per_sum;
  args.samples_per_block = joint ? params.samples_per_sum : plan.samples_per_block;
  args.sums = plan.splits > 1 ? params.workspace : params.cost;
  args.target_weight = params.target_weight;
  args.scale = 1.0 / static_cast<double>(params.dim);
  const Status status = launch_sums<T, P, kWeighted>(args, plan, stream);
  if (status != kOk) return status;
  const int64_t parts = ceil_div(params.batch, params.samples_per_sum);
  finish_cost<Acc><<<parts * params.nodes, 128, 0, stream>>>(args, static_cast<Acc*>(params.cost));
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
int64_t cost_samples_per_sum(const PairwiseCostParams& params, int device) {
  int64_t samples = 1;
  const Status status = dispatch_cost(params, [&](auto count, auto weighted) {
    samples = plan_for<T, decltype(count)::value, decltype(weighted)::value>(params, device).samples_per_block;
    return kOk;
  });
  return status == kOk ? samples : status;
}

template <typename T>
Status cost_on(const PairwiseCostParams& params, int device, cudaStream_t stream) {
  return dispatch_cost(params, [&](auto count, auto weighted) {
    return compute<T, decltype(count)::value, decltype(weighted)::value>(params, device, stream);
  });
}

}  // namespace oss_ext::cuda
