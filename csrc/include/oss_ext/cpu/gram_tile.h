// Gram and moment sums of one tile, in double. Included by the sources that are compiled once for every instruction
// set.
#pragma once

#include "oss_ext/cpu/basis_count.h"
#include "oss_ext/cpu/isa.h"
#include "oss_ext/cpu/pairwise_tile.h"
#include "oss_ext/cpu/simd.h"

namespace oss_ext::cpu {
namespace {

// One row's block of dims in double, with zeros up to whole vectors.
OSS_EXT_INLINE void pack_double(DType dtype, const void* row, int64_t first, int count, int padded, double* to) {
  if (dtype == DType::f64) {
    __builtin_memcpy(to, static_cast<const double*>(row) + first, sizeof(double) * count);
  } else {
    float narrow[kBlockDim];
    read_row(dtype, row, first, count, narrow);
    for (int d = 0; d < count; ++d) to[d] = static_cast<double>(narrow[d]);
  }
  for (int d = count; d < padded; ++d) to[d] = 0;
}

OSS_EXT_INLINE void scale(double* row, const double* weight, int count) {
  for (int d = 0; d < count; ++d) row[d] *= weight[d];
}

OSS_EXT_INLINE int block_count(int64_t first, int64_t end) {
  return end - first < kBlockDim ? static_cast<int>(end - first) : kBlockDim;
}

OSS_EXT_INLINE int whole_vectors(int count) { return (count + kLanes<double> - 1) / kLanes<double> * kLanes<double>; }

// Packed: w u_p of every source ([sources][P]), u_0 of every source, the targets. The padding is 0 in all of them.
template <int P>
void moment_tile(const Tile& tile, double* sums) {
  for (int k = 0; k < kTileSources * kTileTargets * P; ++k) sums[k] = 0;
  double* weighted = static_cast<double*>(tile.scratch);
  double* state = weighted + int64_t{kTileSources} * P * kBlockDim;
  double* target = state + int64_t{kTileSources} * kBlockDim;
  for (int64_t first = tile.dim_begin; first < tile.dim_end; first += kBlockDim) {
    const int count = block_count(first, tile.dim_end), padded = whole_vectors(count);
    for (int i = 0; i < tile.sources; ++i) {
      for (int p = 0; p < P; ++p) {
        double* row = weighted + (int64_t{i} * P + p) * kBlockDim;
        pack_double(tile.dtype, row_at(tile.basis[p], tile.basis_stride[p], i, tile.dtype), first, count, padded, row);
        if (p == 0) __builtin_memcpy(state + int64_t{i} * kBlockDim, row, sizeof(double) * padded);
        if (tile.weight) scale(row, static_cast<const double*>(tile.weight) + first, count);
      }
    }
    for (int j = 0; j < tile.targets; ++j)
      pack_double(tile.dtype, row_at(tile.target, tile.target_stride, j, tile.dtype), first, count, padded,
                  target + int64_t{j} * kBlockDim);
    for (int i = 0; i < tile.sources; ++i) {
      const double* u = weighted + int64_t{i} * P * kBlockDim;
      const double* x = state + int64_t{i} * kBlockDim;
      for (int j0 = 0; j0 < tile.targets; j0 += 2) {
        const int js[2] = {j0, smaller(j0 + 1, tile.targets - 1)};
        if (js[1] + tile.diagonal <= i) continue;
        Vector<double> sum[2][P];
        for (int j = 0; j < 2; ++j)
          for (int p = 0; p < P; ++p) sum[j][p] = Vector<double>{};
        for (int d = 0; d < padded; d += kLanes<double>) {
          const Vector<double> x_d = load(x + d);
          for (int j = 0; j < 2; ++j) {
            const Vector<double> step = load(target + int64_t{js[j]} * kBlockDim + d) - x_d;
            for (int p = 0; p < P; ++p) sum[j][p] = load(u + p * kBlockDim + d) * step + sum[j][p];
          }
        }
        for (int j = j0; j <= js[1]; ++j)
          if (j + tile.diagonal > i)
            for (int p = 0; p < P; ++p) sums[(i * kTileTargets + j) * P + p] += sum_lanes<double>(sum[j - j0][p]);
      }
    }
  }
}

template <int P>
void gram_node(const Tile& tile, double* sums) {
  for (int k = 0; k < P * P; ++k) sums[k] = 0;
  alignas(64) double rows[P][kBlockDim];
  alignas(64) double weighted[P][kBlockDim];
  for (int64_t first = tile.dim_begin; first < tile.dim_end; first += kBlockDim) {
    const int count = block_count(first, tile.dim_end), padded = whole_vectors(count);
    for (int p = 0; p < P; ++p) {
      pack_double(tile.dtype, tile.basis[p], first, count, padded, rows[p]);
      __builtin_memcpy(weighted[p], rows[p], sizeof(double) * padded);
      if (tile.weight) scale(weighted[p], static_cast<const double*>(tile.weight) + first, count);
    }
    for (int p = 0; p < P; ++p)
      for (int q = p; q < P; ++q) {
        Vector<double> sum{};
        for (int d = 0; d < padded; d += kLanes<double>) sum = load(weighted[p] + d) * load(rows[q] + d) + sum;
        sums[p * P + q] += sum_lanes<double>(sum);
      }
  }
  for (int p = 0; p < P; ++p)
    for (int q = 0; q < p; ++q) sums[p * P + q] = sums[q * P + p];
}

void moment(const Tile& tile, double* sums) {
  with_basis_count(tile.basis_count, [&](auto p) { moment_tile<decltype(p)::value>(tile, sums); });
}

void gram(const Tile& tile, double* sums) {
  with_basis_count(tile.basis_count, [&](auto p) { gram_node<decltype(p)::value>(tile, sums); });
}

}  // namespace
}  // namespace oss_ext::cpu
