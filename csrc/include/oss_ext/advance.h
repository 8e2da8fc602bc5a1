// out[b,j,d] = sum_p C[b,i,j,p] u_p[b,i,d] with i = backpointers[b,j]; an unreached target's row is NaN.
#pragma once

#include "oss_ext/types.h"

namespace oss_ext {

struct AdvanceParams {
  int64_t batch, nodes, dim;
  int basis_count;
  DType dtype;  // of basis and out
  RowsView basis[kMaxBasis];
  const void* coefficients;     // acc [nodes, nodes, P] contiguous, one such block a sample
  int64_t coefficient_stride;   // acc elements between samples; 0: shared by the batch
  const int32_t* backpointers;  // [nodes], one such row a sample; outside [0, nodes): unreached
  int64_t backpointer_stride;   // 0: shared by the batch
  void* out;                    // [batch, nodes, dim] contiguous
};

namespace cpu {
Status advance(const AdvanceParams& params, int threads);
}
namespace cuda {
Status advance(const AdvanceParams& params, int device, void* stream);
}

}  // namespace oss_ext
