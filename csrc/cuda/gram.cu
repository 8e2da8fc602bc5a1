#include <algorithm>

#include "oss_ext/cuda/gram.cuh"
#include "oss_ext/gram.h"

namespace oss_ext::cuda {
namespace {

struct Plan {
  int64_t tiles, splits, span;
  bool short_rows;
};

template <int P>
Plan plan_for(const GramParams& params, int device) {
  const bool short_rows = params.dim <= kShortGramDim;
  const int64_t tiles = short_rows ? ShortGramTriangle::count(params.source_begin, params.source_end, params.nodes)
                                   : GramTriangle<P>::count(params.source_begin, params.source_end, params.nodes);
  Plan plan{tiles, 1, params.dim, short_rows};
  if (short_rows || tiles * params.batch == 0) return plan;
  // Enough blocks for eight rounds over the GPU, but a thousand numbers each.
  const int64_t planned = params.plan_batch ? params.plan_batch : params.batch;
  const int64_t wanted = ceil_div(8 * static_cast<int64_t>(multiprocessors(device)), tiles * planned);
  plan.span = std::max<int64_t>(ceil_div(ceil_div(params.dim, wanted), kGramChunk) * kGramChunk, 1024);
  plan.splits = ceil_div(params.dim, plan.span);
  return plan;
}

// Numbers in the moments and in the Gram matrices.
int64_t moment_count(const GramParams& params) {
  return params.batch * params.nodes * params.nodes * params.basis_count;
}
int64_t product_count(const GramParams& params) {
  return params.batch * params.nodes * params.basis_count * params.basis_count;
}

int64_t bytes_of(const Plan& plan, const GramParams& params) {
  return plan.splits * (moment_count(params) + product_count(params)) * static_cast<int64_t>(sizeof(double));
}

template <typename T, int P>
Status compute(const GramParams& params, int device, cudaStream_t stream) {
  const Plan plan = plan_for<P>(params, device);
  if (params.workspace_bytes < bytes_of(plan, params)) return kWorkspaceTooSmall;
  GramArgs args{};
  take_pairs(params, plan.tiles, plan.splits, args);
  args.weight = params.weight;
  args.span = plan.span;
  args.sums = static_cast<double*>(params.workspace);
  args.products = args.sums + plan.splits * moment_count(params);
  const int64_t blocks = plan.tiles * plan.splits * params.batch;
  if (blocks > 0) {
    if (plan.short_rows) {
      gram_moments_short<T, P><<<blocks, dim3(64, 4), 0, stream>>>(args);
    } else {
      gram_moments<T, P><<<blocks, kGramThreads, 0, stream>>>(args);
    }
    if (Status status = launch_status()) return status;
  }
  gram_products<T, P><<<plan.splits * params.batch * params.nodes, 256, 0, stream>>>(args);
  if (Status status = launch_status()) return status;
  finish_gram<P><<<params.batch * params.nodes, 128, 0, stream>>>(args, params.gram, params.moment);
  return launch_status();
}

}  // namespace

int64_t gram_workspace(const GramParams& params, int device) {
  int64_t bytes = 0;
  const Status status = dispatch_basis_count(params.basis_count, [&](auto count) {
    bytes = bytes_of(plan_for<decltype(count)::value>(params, device), params);
    return kOk;
  });
  return status == kOk ? bytes : status;
}

Status gram(const GramParams& params, int device, void* stream) {
  DeviceGuard guard(device);
  if (guard.status() != kOk) return guard.status();
  if (params.batch == 0) return kOk;
  return dispatch_dtype(params.dtype, [&](auto element) {
    return dispatch_basis_count(params.basis_count, [&](auto count) {
      return compute<decltype(element), decltype(count)::value>(params, device, static_cast<cudaStream_t>(stream));
    });
  });
}

}  // namespace oss_ext::cuda
