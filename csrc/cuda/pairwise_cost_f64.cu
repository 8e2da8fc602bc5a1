#include "oss_ext/cuda/pairwise_cost_launch.cuh"

namespace oss_ext::cuda {

template int64_t cost_workspace<double>(const PairwiseCostParams&, int);
template int64_t cost_samples_per_sum<double>(const PairwiseCostParams&, int);
template Status cost_on<double>(const PairwiseCostParams&, int, cudaStream_t);

}  // namespace oss_ext::cuda
