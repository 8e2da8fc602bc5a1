// cost[b,i,j] = tw_j / D * sum_d w_d (sum_p C[b,i,j,p] u_p[b,i,d] - y[b,j,d])^2   for i < j, i in the source range;
// +inf everywhere else. (OSS, arXiv 2503.21774, Algorithm 1: candidates against the teacher, for any linear multistep
// step.)
//
// For a joint search, costs may be summed over neighbouring samples on the way: min_reduce adds the rest.
#pragma once

#include "oss_ext/types.h"

namespace oss_ext {

// Costs of longer rows are never summed over samples on the way.
constexpr int64_t kLongestSummed = 64;

struct PairwiseCostParams {
  int64_t batch, nodes, dim;
  int64_t plan_batch;  // the dims are cut as for so many samples: 0, the batch; else what all calls have in common
                       // whose costs of a sample must have the same bits
  int basis_count;     // P, 1..kMaxBasis
  DType dtype;         // of basis and target
  RowsView basis[kMaxBasis];
  RowsView target;
  const void* coefficients;          // acc [nodes, nodes, P] contiguous, one such block a sample
  int64_t coefficient_stride;        // acc elements between samples; 0: shared by the batch
  const void* weight;                // acc [dim], or null: all 1
  const void* target_weight;         // acc [nodes], or null: all 1
  int64_t source_begin, source_end;  // rows to compute, half open
  int64_t samples_per_sum;           // 1: a cost a sample; else what pairwise_cost_samples_per_sum answers
  void* cost;                        // acc [ceil(batch / samples_per_sum), nodes, nodes], contiguous and all written
  void* workspace;                   // CUDA only
  int64_t workspace_bytes;
};

namespace cpu {
// How many samples' costs a joint call should sum: looks at sizes, dtype and source range alone. Negative: a Status.
int64_t pairwise_cost_samples_per_sum(const PairwiseCostParams& params);
Status pairwise_cost(const PairwiseCostParams& params, int threads);
}  // namespace cpu
namespace cuda {
// Likewise, for this device. 1 for long rows.
int64_t pairwise_cost_samples_per_sum(const PairwiseCostParams& params, int device);
// Bytes of workspace that this call wants on this device; negative: a Status.
int64_t pairwise_cost_workspace(const PairwiseCostParams& params, int device);
Status pairwise_cost(const PairwiseCostParams& params, int device, void* stream);
}  // namespace cuda

}  // namespace oss_ext
