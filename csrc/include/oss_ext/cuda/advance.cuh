// Gathers the winners' states: one thread combines kCount neighbouring numbers of one target's row.
#pragma once

#include "oss_ext/cuda/common.cuh"

namespace oss_ext::cuda {

struct AdvanceArgs : RowArgs {
  int64_t packs;  // threads a row: dim / kCount
  const void* coefficients;
  int64_t coefficient_stride;
  const int32_t* backpointers;
  int64_t backpointer_stride;
  void* out;
};

// One thread a pack: batch * nodes * packs threads in all. Index: 32 bits where they suffice, for the division.
template <typename T, int P, int kCount, typename Index>
__global__ void __launch_bounds__(256) advance_rows(const __grid_constant__ AdvanceArgs args) {
  using Acc = typename AccOf<T>::type;
  using Vector = Pack<T, kCount>;
  const Index thread = static_cast<Index>(blockIdx.x) * 256 + threadIdx.x;
  const Index row = thread / static_cast<Index>(args.packs);
  if (row >= args.batch * args.nodes) return;
  const int64_t d = static_cast<int64_t>(thread - row * static_cast<Index>(args.packs)) * kCount;
  const int64_t b = row / static_cast<Index>(args.nodes), j = row % static_cast<Index>(args.nodes);
  const int64_t i = args.backpointers[b * args.backpointer_stride + j];
  const bool reached = i >= 0 && i < args.nodes;
  Acc state[kCount];
#pragma unroll
  for (int k = 0; k < kCount; ++k) state[k] = reached ? Acc(0) : Acc(NAN);
  if (reached) {
    const Acc* coefficient =
        static_cast<const Acc*>(args.coefficients) + b * args.coefficient_stride + (i * args.nodes + j) * P;
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const T* source = args.basis_row<T>(p, b, i) + d;
      const Vector u = *reinterpret_cast<const Vector*>(source);
      const Acc c = coefficient[p];
#pragma unroll
      for (int k = 0; k < kCount; ++k) state[k] = p == 0 ? c * widen(u.at[k]) : fused(c, widen(u.at[k]), state[k]);
    }
  }
  Vector out;
#pragma unroll
  for (int k = 0; k < kCount; ++k) out.at[k] = narrow<T>(state[k]);
  *reinterpret_cast<Vector*>(static_cast<T*>(args.out) + static_cast<int64_t>(row) * args.dim + d) = out;
}

}  // namespace oss_ext::cuda
