#include <algorithm>

#include "oss_ext/cuda/gram.cuh"
#include "oss_ext/cuda/gram_short.cuh"
#include "oss_ext/gram.h"

namespace oss_ext::cuda {
namespace {

struct Plan {
  int64_t tiles, splits, span;  // no splits for short rows
};

template <int P>
Plan plan_for(const GramParams& params, int device) {
  const int64_t tiles = GramTriangle<P>::count(params.source_begin, params.source_end, params.nodes);
  if (params.dim <= kLongestShortGram) return {0, 0, 0};
  // Enough blocks for four rounds over the GPU, two to a multiprocessor, but 256 numbers each.
  const int64_t planned = params.plan_batch ? params.plan_batch : params.batch;
  const int64_t wanted =
      ceil_div(8 * static_cast<int64_t>(multiprocessors(device)), std::max<int64_t>(tiles * planned, 1));
  const int64_t span = std::clamp<int64_t>(ceil_div(params.dim, wanted), 256, kLongestGramSpan);
  Plan plan{tiles, 0, ceil_div(span, kGramChunk) * kGramChunk};
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
bool all_aligned(const GramParams& params) {
  for (int p = 0; p < P; ++p) {
    if (!rows_aligned(params.basis[p], sizeof(T))) return false;
  }
  return rows_aligned(params.target, sizeof(T));
}

template <typename T, int P>
Status compute(const GramParams& params, int device, cudaStream_t stream) {
  const Plan plan = plan_for<P>(params, device);
  if (params.workspace_bytes < bytes_of(plan, params)) return kWorkspaceTooSmall;
  GramArgs args{};
  take_pairs(params, plan.tiles, plan.splits, args);
  args.weight = params.weight;
  if (plan.splits == 0) {
    const int64_t blocks = ceil_div(params.nodes, kShortTargets) * ceil_div(params.nodes, kShortSources) * params.batch;
    gram_short<T, P><<<blocks, kShortThreads, 0, stream>>>(args, params.gram, params.moment);
    return launch_status();
  }
  args.aligned = all_aligned<T, P>(params);
  args.span = plan.span;
  args.sums = static_cast<double*>(params.workspace);
  args.products = args.sums + plan.splits * moment_count(params);
  const int64_t blocks = plan.tiles * plan.splits * params.batch;
  if (blocks > 0) {
    gram_tiles<T, P><<<blocks, kGramThreads, 0, stream>>>(args);
    if (Status status = launch_status()) return status;
  }
  finish_gram<P><<<params.batch * params.nodes, kFinishThreads, 0, stream>>>(args, params.gram, params.moment);
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
