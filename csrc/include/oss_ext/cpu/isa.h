// The inner loops, compiled once for every instruction set, and the choice between them at run time.
#pragma once

#include "oss_ext/types.h"

namespace oss_ext::cpu {

// Sources and targets of one tile, and the dims that are summed before the sum is handed on in double.
constexpr int kTileSources = 64;
constexpr int kTileTargets = 64;
constexpr int kBlockDim = 1024;
// Up to here the lanes of a vector are targets, beyond they are dims.
constexpr int kFewDims = 32;

// One tile of (source, target) pairs over the dims [dim_begin, dim_end). Pointers stand at the tile's first row, at dim
// 0. Pair (i, j) of the tile is wanted where j + diagonal > i; other sums are left alone, or 0.
struct Tile {
  DType dtype;
  int basis_count;
  const void* basis[kMaxBasis];
  int64_t basis_stride[kMaxBasis];  // elements from source to source
  const void* target;
  int64_t target_stride;
  const void* weight;  // acc (gram: double), or null
  int sources, targets;
  int64_t diagonal;
  int64_t dim_begin, dim_end;
  void* scratch;  // pairwise_scratch or moment_scratch bytes, aligned to 64
};

constexpr int64_t pairwise_scratch(int basis_count, int64_t acc_bytes) {
  return (kTileSources * basis_count + kTileTargets + 1) * int64_t{kBlockDim} * acc_bytes;
}
constexpr int64_t moment_scratch(int basis_count) {
  return (kTileSources * (basis_count + 1) + kTileTargets + 1) * int64_t{kBlockDim} * 8;
}

struct IsaKernels {
  const char* name;
  // sums[kTileSources][kTileTargets] += sum_d w (sum_p C u_p - y)^2. coefficients: acc, at the tile's first pair,
  // coefficient_stride elements from source to source, targets basis_count apart.
  void (*pairwise)(const Tile& tile, const void* coefficients, int64_t coefficient_stride, double* sums);
  // sums[kTileSources][kTileTargets][basis_count] = sum_d w u_p (y - u_0).
  void (*moment)(const Tile& tile, double* sums);
  // sums[basis_count][basis_count] of the tile's first source over the dims of the tile = sum_d w u_p u_q.
  void (*gram)(const Tile& tile, double* sums);
  // out[0, count) = sum_p coefficients[p] basis[p][0, count); coefficients: acc.
  void (*combine)(DType dtype, int basis_count, const void* const* basis, const void* coefficients, int64_t count,
                  void* out);
};

const IsaKernels& baseline_kernels();
#if defined(OSS_EXT_X86_ISAS)
const IsaKernels& avx2_kernels();
const IsaKernels& avx512_kernels();
#endif

// The widest set that this processor has. The environment variable OSS_EXT_CPU_ISA (baseline, avx2, avx512) asks for a
// narrower one; it is read once.
const IsaKernels& isa_kernels();

}  // namespace oss_ext::cpu
