#include "oss_ext/gram.h"

#include <new>

#include "oss_ext/cpu/entry.h"
#include "oss_ext/cpu/isa.h"
#include "oss_ext/cpu/parallel.h"
#include "oss_ext/cpu/tile_plan.h"

namespace oss_ext::cpu {
namespace {

void run(const GramParams& params, int threads) {
  const IsaKernels& isa = isa_kernels();
  const int64_t nodes = params.nodes, count = params.basis_count;

  const int64_t rows = params.batch * nodes;
  const double row_operations = static_cast<double>(params.dim) * count * count / 8 + nodes * count / 8.0;
  parallel_for(rows, worker_count(rows, threads, rows * row_operations), [&](int64_t row, int) {
    std::fill_n(params.moment + row * nodes * count, nodes * count, 0.0);
    TileTask task{};
    task.sample = row / nodes;
    task.first_source = row % nodes;
    task.sources = 1;
    task.dim_end = params.dim;
    double* sums = params.gram + row * count * count;
    if (task.first_source < params.source_begin || task.first_source >= params.source_end) {
      std::fill_n(sums, count * count, 0.0);
    } else {
      isa.gram(make_tile(params, task, nullptr), sums);
    }
  });

  const int64_t plan_batch = params.plan_batch ? params.plan_batch : params.batch;
  const TilePlan plan(params.batch, nodes, params.dim, params.source_begin, params.source_end, plan_batch);
  const double operations =
      static_cast<double>(plan.tiles()) * kTileSources * kTileTargets * params.dim * (count + 1) / 8;
  for_tiles(
      plan, threads, operations, moment_scratch(params.basis_count), kTileSources * kTileTargets * count,
      [&](const TileTask& task, char* scratch, double* sums) { isa.moment(make_tile(params, task, scratch), sums); },
      [&](const TileTask& task, const double* sums) {
        for (int i = 0; i < task.sources; ++i)
          for (int j = 0; j < task.targets; ++j) {
            const int64_t source = task.first_source + i, target = task.first_target + j;
            if (target <= source) continue;
            std::copy_n(sums + (i * kTileTargets + j) * count, count,
                        params.moment + ((task.sample * nodes + source) * nodes + target) * count);
          }
      });
}

}  // namespace

Status gram(const GramParams& params, int threads) {
  const Status status = check_tile_params(params);
  if (status != kOk) return status;
  return guarded([&] { run(params, threads); });
}

}  // namespace oss_ext::cpu
