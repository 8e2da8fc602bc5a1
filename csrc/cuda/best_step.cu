#include <algorithm>

#include "oss_ext/best_step.h"
#include "oss_ext/cuda/best_step_launch.cuh"
#include "oss_ext/cuda/shortlist.cuh"
#include "oss_ext/cuda/weigh.cuh"

namespace oss_ext::cuda {
namespace {

constexpr int64_t kMendBlocks = 1024;

WeighArgs weigh_args(const StepsParams& params, const int32_t* sources, const int32_t* counts, void* out) {
  WeighArgs args{};
  take_rows(params, args);
  args.coefficients = static_cast<const float*>(params.coefficients);
  args.coefficient_stride = params.coefficient_stride;
  args.joint = params.joint;
  args.sources = sources;
  args.counts = counts;
  args.out = out;
  return args;
}

}  // namespace

Status shortlist(const ShortlistParams& params, int device, void* stream) {
  DeviceGuard guard(device);
  if (guard.status() != kOk) return guard.status();
  const int64_t blocks = params.groups * params.nodes;
  if (blocks == 0) return kOk;
  const int64_t shared = shortlist_bytes(params.nodes);
  const cudaError_t error =
      cudaFuncSetAttribute(shortlist_sources, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (error != cudaSuccess) return static_cast<Status>(error);
  shortlist_sources<<<blocks, kShortlistThreads, shared, static_cast<cudaStream_t>(stream)>>>(params);
  return launch_status();
}

int64_t weigh_parts(const StepsParams& params) {
  return params.dim <= kWeighShort ? 1 : ceil_div(params.dim, kWeighSpan);
}

Status weigh(const WeighParams& params, int device, void* stream) {
  DeviceGuard guard(device);
  if (guard.status() != kOk) return guard.status();
  const auto on = static_cast<cudaStream_t>(stream);
  if (!aligned(params, kWeighPack * element_size(params.dtype))) return kInvalidArgument;
  if (params.parts != weigh_parts(params)) return kInvalidArgument;
  WeighArgs args = weigh_args(params, params.sources, params.counts, params.out);
  args.parts = params.parts;
  args.exact = params.exact;
  const int64_t rows = params.batch * params.nodes;
  if (rows == 0) return kOk;
  return dispatch_float(params.dtype, [&](auto element) {
    using T = decltype(element);
    return dispatch_basis_count(params.basis_count, [&](auto count) {
      constexpr int P = decltype(count)::value;
      if (params.dim <= kWeighShort) {
        int lanes = 1;
        while (lanes < 32 && lanes * kWeighPack < params.dim) lanes *= 2;
        weigh_short<T, P><<<ceil_div(rows * lanes, kWeighThreads), kWeighThreads, 0, on>>>(args, lanes);
      } else {
        weigh_long<T, P><<<rows * args.parts, kWeighThreads, 0, on>>>(args);
      }
      return launch_status();
    });
  });
}

Status choose(const ChooseParams& params, int device, void* stream) {
  DeviceGuard guard(device);
  if (guard.status() != kOk) return guard.status();
  const auto on = static_cast<cudaStream_t>(stream);
  const int64_t groups = params.joint ? 1 : params.batch, rows = params.batch * params.nodes;
  if (groups == 0) return kOk;
  choose_sources<<<groups * params.nodes, kChooseThreads, 0, on>>>(params);
  if (Status status = launch_status()) return status;
  if (rows == 0) return kOk;
  const WeighArgs args = weigh_args(params, params.sources, params.counts, params.out);
  return dispatch_float(params.dtype, [&](auto element) {
    using T = decltype(element);
    return dispatch_basis_count(params.basis_count, [&](auto count) {
      const int64_t at_once = std::min<int64_t>(ceil_div(rows, kMendBlocks), kWeighThreads);
      const int64_t blocks = ceil_div(rows, at_once);
      const int64_t parts = std::clamp<int64_t>(2 * kMendBlocks / blocks, 1, weigh_parts(params));
      mend_states<T, decltype(count)::value>
          <<<dim3(blocks, parts), kWeighThreads, 0, on>>>(args, params.backpointers, at_once);
      return launch_status();
    });
  });
}

}  // namespace oss_ext::cuda
