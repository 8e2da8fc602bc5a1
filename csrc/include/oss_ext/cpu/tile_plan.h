// How the upper triangle of (source, target) pairs is cut into tasks. The cut depends on the sizes alone, never on the
// number of threads, so that the sums are added in the same order on any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "oss_ext/cpu/isa.h"
#include "oss_ext/cpu/parallel.h"

namespace oss_ext::cpu {

// Where there are fewer tiles than this, the dims are cut too.
constexpr int64_t kEnoughTasks = 256;
constexpr int64_t kLeastSegment = 8 * kBlockDim;

struct TileTask {
  int64_t sample, first_source, first_target, dim_begin, dim_end;
  int sources, targets;
};

class TilePlan {
 public:
  // The dims are cut as for plan_batch samples.
  TilePlan(int64_t batch, int64_t nodes, int64_t dim, int64_t source_begin, int64_t source_end, int64_t plan_batch)
      : batch_(batch), nodes_(nodes), dim_(dim), begin_(source_begin), end_(std::min(source_end, nodes - 1)) {
    for (int64_t block = 0; begin_ + block * kTileSources < end_; ++block) tiles_ += targets_of(block);
    const int64_t wanted = tiles_ * plan_batch > 0 ? kEnoughTasks / (tiles_ * plan_batch) : 1;
    const int64_t segments = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(dim_ / kLeastSegment, 1));
    const int64_t blocks = (dim_ + kBlockDim - 1) / kBlockDim;
    segment_ = (blocks + segments - 1) / segments * kBlockDim;
    segments_ = (dim_ + segment_ - 1) / segment_;
  }

  int64_t tiles() const { return tiles_ * batch_; }
  int64_t segments() const { return segments_; }

  TileTask task(int64_t tile, int64_t segment) const {
    int64_t block = 0, rest = tile % tiles_;
    while (rest >= targets_of(block)) rest -= targets_of(block++);
    TileTask t{};
    t.sample = tile / tiles_;
    t.first_source = begin_ + block * kTileSources;
    t.sources = static_cast<int>(std::min<int64_t>(kTileSources, end_ - t.first_source));
    t.first_target = t.first_source + 1 + rest * kTileTargets;
    t.targets = static_cast<int>(std::min<int64_t>(kTileTargets, nodes_ - t.first_target));
    t.dim_begin = segment * segment_;
    t.dim_end = std::min(t.dim_begin + segment_, dim_);
    return t;
  }

 private:
  // Target tiles of a block of sources: from the node after its first source to the last node.
  int64_t targets_of(int64_t block) const {
    const int64_t targets = nodes_ - (begin_ + block * kTileSources + 1);
    return (targets + kTileTargets - 1) / kTileTargets;
  }

  int64_t batch_, nodes_, dim_, begin_, end_;
  int64_t tiles_ = 0, segments_ = 1, segment_ = 0;
};

// Points a tile at the rows of a task.
template <class Params>
Tile make_tile(const Params& params, const TileTask& task, char* scratch) {
  Tile tile{};
  tile.dtype = params.dtype;
  tile.basis_count = params.basis_count;
  const auto row = [&](const RowsView& rows, int64_t node) -> const void* {
    return static_cast<const char*>(rows.data) +
           (task.sample * rows.batch_stride + node * rows.node_stride) * element_size(params.dtype);
  };
  for (int p = 0; p < params.basis_count; ++p) {
    tile.basis[p] = row(params.basis[p], task.first_source);
    tile.basis_stride[p] = params.basis[p].node_stride;
  }
  tile.target = row(params.target, task.first_target);
  tile.target_stride = params.target.node_stride;
  tile.weight = params.weight;
  tile.sources = task.sources;
  tile.targets = task.targets;
  tile.diagonal = task.first_target - task.first_source;
  tile.dim_begin = task.dim_begin;
  tile.dim_end = task.dim_end;
  tile.scratch = scratch;
  return tile;
}

// What pairwise_cost and gram ask of their parameters alike.
template <class Params>
Status check_tile_params(const Params& p) {
  if (p.batch < 0 || p.nodes < 1 || p.dim < 1) return kInvalidArgument;
  if (p.basis_count < 1 || p.basis_count > kMaxBasis) return kInvalidArgument;
  if (p.source_begin < 0 || p.source_begin > p.source_end || p.source_end > p.nodes) return kInvalidArgument;
  if (p.dtype != DType::f32 && p.dtype != DType::bf16 && p.dtype != DType::f16 && p.dtype != DType::f64)
    return kUnsupportedDtype;
  return kOk;
}

// Sums of every tile over all dims. compute(task, scratch, sums) fills tile_size doubles for one segment of the dims;
// finish(task, sums) gets their total, the segments added in order. May throw std::bad_alloc.
template <class Compute, class Finish>
void for_tiles(const TilePlan& plan, int threads, double operations, int64_t scratch_bytes, int64_t tile_size,
               const Compute& compute, const Finish& finish) {
  const int64_t segments = plan.segments();
  const int64_t tasks = plan.tiles() * segments;
  if (tasks == 0) return;
  const int workers = worker_count(tasks, threads, operations);
  Scratch scratch(static_cast<size_t>(scratch_bytes) * workers);
  // One segment: a worker's sums are finished at once. Several: every task keeps its own.
  const int64_t slots = segments == 1 ? workers : tasks;
  Scratch sums(static_cast<size_t>(slots * tile_size) * sizeof(double));
  double* all_sums = reinterpret_cast<double*>(sums.data());
  parallel_for(tasks, workers, [&](int64_t index, int worker) {
    const TileTask task = plan.task(index / segments, index % segments);
    double* task_sums = all_sums + (segments == 1 ? worker : index) * tile_size;
    compute(task, scratch.data() + scratch_bytes * worker, task_sums);
    if (segments == 1) finish(task, task_sums);
  });
  if (segments == 1) return;
  for (int64_t tile = 0; tile < plan.tiles(); ++tile) {
    double* total = all_sums + tile * segments * tile_size;
    for (int64_t s = 1; s < segments; ++s)
      for (int64_t k = 0; k < tile_size; ++k) total[k] += total[s * tile_size + k];
    finish(plan.task(tile, 0), total);
  }
}

}  // namespace oss_ext::cpu
