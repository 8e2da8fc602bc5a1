// A stage in which the nearest steps alone matter: for every target j the source i whose step i -> j lands nearest to
// the teacher (OSS, arXiv 2503.21774, Algorithm 1), without the exact cost of every pair. CUDA, rows of 16-byte units.
//
//   screen     bounds of every cost, from tensor cores
//   shortlist  the sources of each target whose bounds leave them a chance; the likeliest first
//   weigh      the costs of those in double, and the states that the likeliest steps lead to
//   choose     the nearest of those, and its state where it is not the likeliest
//
// Samples that share one choice are a group: all of them, or each is its own. M nodes, pair (i, j) stands at
// j (j - 1) / 2 + its place in the shortlist of j.
#pragma once

#include "oss_ext/types.h"

namespace oss_ext {

struct StepsParams {
  int64_t batch, nodes, dim;
  int basis_count;
  DType dtype;  // of basis, target and out: not f64
  RowsView basis[kMaxBasis];
  RowsView target;
  const void* coefficients;    // float [nodes, nodes, P] contiguous, one such block a sample
  int64_t coefficient_stride;  // 0: shared by the batch; needed where the batch is one group
  bool joint;                  // the batch is one group
};

struct ScreenParams : StepsParams {
  const double* place;  // [nodes], falling: where along the trajectory the nodes are. Bounds hold for any, and are
                        // close where steps and teacher move evenly with it
  int64_t source_begin, source_end;
  int64_t splits;  // as screen_splits answers
  float* bounds;   // [splits, groups, nodes (target), nodes (source), 2]: least and most, of the sum over the dims of a
                   // split; written where source < target within the source range
};

struct ShortlistParams {
  int64_t parts, groups, nodes;  // parts: whose sums the bounds are of
  int64_t source_begin, source_end;
  const float* bounds;
  int32_t* sources;  // [groups, nodes, nodes]: of each target the sources, as many as counted
  int32_t* counts;   // [groups, nodes]
};

struct WeighParams : StepsParams {
  const int32_t *sources, *counts;
  int64_t parts;  // as weigh_parts answers
  double* exact;  // [batch, nodes (nodes - 1) / 2, parts]: written for pairs on the shortlists
  void* out;      // [batch, nodes, dim] contiguous: NaN for targets without a source
};

struct ChooseParams : StepsParams {
  const int32_t *sources, *counts;
  int64_t all;  // samples that exact has: of every process
  int64_t parts;
  const double* exact;  // [all, pairs, parts]
  double* values;       // [groups, nodes], means over the dims (joint: summed over the samples); +inf: unreached
  int32_t* backpointers;
  void* out;  // as weigh left it
};

namespace cuda {
// 0: these cannot be screened on this device (dtype, alignment, shared memory). Negative: a Status.
int64_t screen_splits(const StepsParams& params, int64_t source_begin, int64_t source_end, int device);
int64_t weigh_parts(const StepsParams& params);
Status screen(const ScreenParams& params, int device, void* stream);
Status shortlist(const ShortlistParams& params, int device, void* stream);
Status weigh(const WeighParams& params, int device, void* stream);
Status choose(const ChooseParams& params, int device, void* stream);
}  // namespace cuda

}  // namespace oss_ext
