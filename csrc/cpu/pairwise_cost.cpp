#include "oss_ext/pairwise_cost.h"

#include <limits>
#include <new>

#include "oss_ext/cpu/entry.h"
#include "oss_ext/cpu/isa.h"
#include "oss_ext/cpu/parallel.h"
#include "oss_ext/cpu/tile_plan.h"

namespace oss_ext::cpu {
namespace {

template <class T>
void run(const PairwiseCostParams& params, int threads) {
  const IsaKernels& isa = isa_kernels();
  const int64_t nodes = params.nodes, count = params.basis_count;
  T* cost = static_cast<T*>(params.cost);
  const T* target_weight = static_cast<const T*>(params.target_weight);

  const int64_t parts = (params.batch + params.samples_per_sum - 1) / params.samples_per_sum;
  const int64_t rows = parts * nodes;
  parallel_for(rows, worker_count(rows, threads, static_cast<double>(rows) * nodes / 8),
               [&](int64_t row, int) { std::fill_n(cost + row * nodes, nodes, std::numeric_limits<T>::infinity()); });

  // The plan's samples are the parts of the cost.
  const int64_t plan_parts = params.samples_per_sum > 1 || params.plan_batch == 0 ? parts : params.plan_batch;
  const TilePlan plan(parts, nodes, params.dim, params.source_begin, params.source_end, plan_parts);
  const double operations = static_cast<double>(plan.tiles()) * params.samples_per_sum * kTileSources * kTileTargets *
                            params.dim * (count + 1) / 16;
  for_tiles(
      plan, threads, operations, pairwise_scratch(params.basis_count, sizeof(T)), kTileSources * kTileTargets,
      [&](const TileTask& task, char* scratch, double* sums) {
        std::fill_n(sums, kTileSources * kTileTargets, 0.0);
        TileTask one = task;
        const int64_t first = task.sample * params.samples_per_sum;
        const int64_t end = std::min(first + params.samples_per_sum, params.batch);
        for (one.sample = first; one.sample < end; ++one.sample) {
          const T* coefficients = static_cast<const T*>(params.coefficients) + one.sample * params.coefficient_stride +
                                  (task.first_source * nodes + task.first_target) * count;
          isa.pairwise(make_tile(params, one, scratch), coefficients, nodes * count, sums);
        }
      },
      [&](const TileTask& task, const double* sums) {
        for (int i = 0; i < task.sources; ++i)
          for (int j = 0; j < task.targets; ++j) {
            const int64_t source = task.first_source + i, target = task.first_target + j;
            if (target <= source) continue;
            const double weight = target_weight ? static_cast<double>(target_weight[target]) : 1.0;
            cost[(task.sample * nodes + source) * nodes + target] =
                static_cast<T>(weight * (sums[i * kTileTargets + j] / static_cast<double>(params.dim)));
          }
      });
}

}  // namespace

int64_t pairwise_cost_samples_per_sum(const PairwiseCostParams& params) {
  const Status status = check_tile_params(params);
  if (status != kOk) return status;
  if (params.dim > kLongestSummed) return 1;
  const int64_t tiles = TilePlan(1, params.nodes, params.dim, params.source_begin, params.source_end, 1).tiles();
  if (tiles == 0) return std::max<int64_t>(params.batch, 1);
  return std::max<int64_t>(params.batch * tiles / kEnoughTasks, 1);
}

Status pairwise_cost(const PairwiseCostParams& params, int threads) {
  const Status status = check_tile_params(params);
  if (status != kOk) return status;
  if (params.samples_per_sum < 1) return kInvalidArgument;
  return guarded_for(params.dtype, [&](auto acc) { run<decltype(acc)>(params, threads); });
}

}  // namespace oss_ext::cpu
