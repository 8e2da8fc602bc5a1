#include "oss_ext/cuda/min_reduce.cuh"
#include "oss_ext/min_reduce.h"

namespace oss_ext::cuda {
namespace {

template <typename T>
Status launch_min(const T* cost, int64_t batch, int64_t batch_stride, int64_t source_stride,
                  const MinReduceParams& params, cudaStream_t stream) {
  const int64_t tiles = ceil_div(params.targets, 32);
  min_over_sources<T><<<batch * tiles, dim3(32, kMinWarps), 0, stream>>>(
      cost, batch_stride, source_stride, params.sources, params.targets, tiles, params.values, params.backpointers);
  return launch_status();
}

template <typename T>
Status reduce(const MinReduceParams& params, cudaStream_t stream) {
  const T* cost = static_cast<const T*>(params.cost);
  if (!params.joint) {
    return params.batch == 0
               ? kOk
               : launch_min(cost, params.batch, params.batch_stride, params.source_stride, params, stream);
  }
  double* sum = static_cast<double*>(params.workspace);
  const int64_t entries = params.sources * params.targets;
  if (entries > 0) {
    sum_over_batch<T><<<ceil_div(entries, 256), 256, 0, stream>>>(cost, params.batch_stride, params.source_stride,
                                                                  params.batch, params.sources, params.targets, sum);
    if (Status status = launch_status()) return status;
  }
  return launch_min(static_cast<const double*>(sum), 1, 0, params.targets, params, stream);
}

}  // namespace

int64_t min_reduce_workspace(const MinReduceParams& params, int) {
  return params.joint ? params.sources * params.targets * static_cast<int64_t>(sizeof(double)) : 0;
}

Status min_reduce(const MinReduceParams& params, int device, void* stream) {
  if (params.workspace_bytes < min_reduce_workspace(params, device)) return kWorkspaceTooSmall;
  DeviceGuard guard(device);
  if (guard.status() != kOk) return guard.status();
  if (params.targets == 0) return kOk;
  const auto on = static_cast<cudaStream_t>(stream);
  return params.dtype == DType::f64 ? reduce<double>(params, on) : reduce<float>(params, on);
}

}  // namespace oss_ext::cuda
