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

  const int64_t rows = params.batch * nodes;
  parallel_for(rows, worker_count(rows, threads, static_cast<double>(rows) * nodes / 8),
               [&](int64_t row, int) { std::fill_n(cost + row * nodes, nodes, std::numeric_limits<T>::infinity()); });

  const TilePlan plan(params.batch, nodes, params.dim, params.source_begin, params.source_end);
  const double operations =
      static_cast<double>(plan.tiles()) * kTileSources * kTileTargets * params.dim * (count + 1) / 16;
  for_tiles(
      params, plan, threads, operations, pairwise_scratch(params.basis_count, sizeof(T)), kTileSources * kTileTargets,
      [&](const Tile& tile, const TileTask& task, double* sums) {
        const T* coefficients = static_cast<const T*>(params.coefficients) + task.sample * params.coefficient_stride +
                                (task.first_source * nodes + task.first_target) * count;
        isa.pairwise(tile, coefficients, nodes * count, sums);
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

Status pairwise_cost(const PairwiseCostParams& params, int threads) {
  const Status status = check_tile_params(params);
  if (status != kOk) return status;
  return guarded_for(params.dtype, [&](auto acc) { run<decltype(acc)>(params, threads); });
}

}  // namespace oss_ext::cpu
