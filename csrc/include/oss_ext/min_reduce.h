// values[j] = min_i cost[i,j], backpointers[j] = argmin_i.
//
// Ties and NaN as in best_source.h; a target without a finite candidate is unreached: value +inf, backpointer -1.
// joint: the costs of all samples are summed, in double and in order of the sample, before the minimum; one non-finite
// sample rules the candidate out for all.
#pragma once

#include "oss_ext/best_source.h"
#include "oss_ext/types.h"

namespace oss_ext {

struct MinReduceParams {
  int64_t batch, sources, targets;
  DType dtype;                          // of cost: f32 or f64
  const void* cost;                     // [batch, sources, targets], the last dimension contiguous
  int64_t batch_stride, source_stride;  // elements
  bool joint;
  double* values;         // [batch, targets]; joint: [targets]
  int32_t* backpointers;  // likewise
  void* workspace;        // CUDA, joint only
  int64_t workspace_bytes;
};

namespace cpu {
Status min_reduce(const MinReduceParams& params, int threads);
}
namespace cuda {
int64_t min_reduce_workspace(const MinReduceParams& params, int device);
Status min_reduce(const MinReduceParams& params, int device, void* stream);
}  // namespace cuda

}  // namespace oss_ext
