#include "oss_ext/cuda/common.cuh"
#include "oss_ext/pairwise_cost.h"

namespace oss_ext::cuda {

// Instantiated in pairwise_cost_<type>.cu.
template <typename T>
int64_t cost_workspace(const PairwiseCostParams& params, int device);
template <typename T>
int64_t cost_samples_per_sum(const PairwiseCostParams& params, int device);
template <typename T>
Status cost_on(const PairwiseCostParams& params, int device, cudaStream_t stream);

int64_t pairwise_cost_workspace(const PairwiseCostParams& params, int device) {
  int64_t bytes = 0;
  const Status status = dispatch_dtype(params.dtype, [&](auto element) {
    bytes = cost_workspace<decltype(element)>(params, device);
    return kOk;
  });
  return status == kOk ? bytes : status;
}

int64_t pairwise_cost_samples_per_sum(const PairwiseCostParams& params, int device) {
  int64_t samples = 1;
  const Status status = dispatch_dtype(params.dtype, [&](auto element) {
    samples = cost_samples_per_sum<decltype(element)>(params, device);
    return kOk;
  });
  return status == kOk ? samples : status;
}

Status pairwise_cost(const PairwiseCostParams& params, int device, void* stream) {
  DeviceGuard guard(device);
  if (guard.status() != kOk) return guard.status();
  if (params.samples_per_sum < 1) return kInvalidArgument;
  if (params.batch == 0) return kOk;
  return dispatch_dtype(params.dtype, [&](auto element) {
    return cost_on<decltype(element)>(params, device, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace oss_ext::cuda
