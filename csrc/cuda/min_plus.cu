#include "oss_ext/cuda/min_plus.cuh"
#include "oss_ext/min_plus.h"

namespace oss_ext::cuda {
namespace {

template <typename T>
Status launch(const MinPlusParams& params, cudaStream_t stream) {
  min_plus_path<T><<<params.batch, dim3(32, kPathWarps), 0, stream>>>(
      static_cast<const T*>(params.cost), params.batch_stride, params.source_stride, params.nodes, params.steps,
      params.initial, params.discount, params.values, params.backpointers);
  return launch_status();
}

}  // namespace

Status min_plus(const MinPlusParams& params, int device, void* stream) {
  DeviceGuard guard(device);
  if (guard.status() != kOk) return guard.status();
  if (params.batch == 0) return kOk;
  const auto on = static_cast<cudaStream_t>(stream);
  return params.dtype == DType::f64 ? launch<double>(params, on) : launch<float>(params, on);
}

}  // namespace oss_ext::cuda
