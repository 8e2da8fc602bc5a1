// Shortest path of exactly k edges over given additive costs, for k = 1..steps (what GITS, arXiv 2405.11326, needs):
//   V_0 = initial,  V_k[j] = min_{i < j} cost[i,j] + discount * V_{k-1}[i],  B_k[j] = argmin_i
// with the tie and NaN rule of best_source.h. Sums in double.
#pragma once

#include "oss_ext/types.h"

namespace oss_ext {

struct MinPlusParams {
  int64_t batch, nodes, steps;
  DType dtype;       // of cost: f32 or f64
  const void* cost;  // [batch, nodes, nodes], the last dimension contiguous; entries with j <= i are not read
  int64_t batch_stride, source_stride;
  const double* initial;  // [nodes]: shared by the batch
  double discount;
  double* values;         // [steps, batch, nodes] contiguous
  int32_t* backpointers;  // [steps, batch, nodes] contiguous
};

namespace cpu {
Status min_plus(const MinPlusParams& params, int threads);
}
namespace cuda {
Status min_plus(const MinPlusParams& params, int device, void* stream);
}

}  // namespace oss_ext
