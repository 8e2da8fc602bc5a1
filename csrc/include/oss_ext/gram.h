// The statistics that least-squares coefficients need, all sums in double whatever the input:
//   gram[b,i,p,q]   = sum_d w_d u_p[b,i,d] u_q[b,i,d]
//   moment[b,i,j,p] = sum_d w_d u_p[b,i,d] (y[b,j,d] - u_0[b,i,d])    for i < j, else 0
// Rows outside the source range are 0 in both.
#pragma once

#include "oss_ext/types.h"

namespace oss_ext {

struct GramParams {
  int64_t batch, nodes, dim;
  int64_t plan_batch;  // as in PairwiseCostParams
  int basis_count;
  DType dtype;
  RowsView basis[kMaxBasis];
  RowsView target;
  const double* weight;  // [dim], or null: all 1
  int64_t source_begin, source_end;
  double* gram;     // [batch, nodes, P, P] contiguous, every entry is written
  double* moment;   // [batch, nodes, nodes, P] contiguous, every entry is written
  void* workspace;  // CUDA only
  int64_t workspace_bytes;
};

namespace cpu {
Status gram(const GramParams& params, int threads);
}
namespace cuda {
int64_t gram_workspace(const GramParams& params, int device);
Status gram(const GramParams& params, int device, void* stream);
}  // namespace cuda

}  // namespace oss_ext
