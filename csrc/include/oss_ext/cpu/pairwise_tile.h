// Sums of squared distances of one tile. Included by the sources that are compiled once for every instruction set.
#pragma once

#include "oss_ext/cpu/basis_count.h"
#include "oss_ext/cpu/isa.h"
#include "oss_ext/cpu/simd.h"

namespace oss_ext::cpu {
namespace {

OSS_EXT_INLINE const char* row_at(const void* data, int64_t stride, int row, DType dtype) {
  const int64_t bytes = dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
  return static_cast<const char*>(data) + stride * row * bytes;
}

// One row's block of dims in the accumulate type, with zeros up to whole vectors.
OSS_EXT_INLINE void pack_row(DType dtype, const void* row, int64_t first, int count, int padded, float* to) {
  read_row(dtype, row, first, count, to);
  for (int d = count; d < padded; ++d) to[d] = 0;
}
OSS_EXT_INLINE void pack_row(DType, const void* row, int64_t first, int count, int padded, double* to) {
  __builtin_memcpy(to, static_cast<const double*>(row) + first, sizeof(double) * count);
  for (int d = count; d < padded; ++d) to[d] = 0;
}

template <class T>
struct PackedTile {
  T* basis;   // [sources][P][row]
  T* target;  // [targets][row]
  T* weight;  // [row]
  int row;    // elements of a row: whole vectors
};

template <class T>
PackedTile<T> pack_tile(const Tile& tile, int64_t first, int count, int padded) {
  const int p_count = tile.basis_count;
  T* scratch = static_cast<T*>(tile.scratch);
  T* target = scratch + int64_t{tile.sources} * p_count * padded;
  const PackedTile<T> packed{scratch, target, target + int64_t{tile.targets} * padded, padded};
  for (int p = 0; p < p_count; ++p)
    for (int i = 0; i < tile.sources; ++i)
      pack_row(tile.dtype, row_at(tile.basis[p], tile.basis_stride[p], i, tile.dtype), first, count, padded,
               packed.basis + (int64_t{i} * p_count + p) * padded);
  for (int j = 0; j < tile.targets; ++j)
    pack_row(tile.dtype, row_at(tile.target, tile.target_stride, j, tile.dtype), first, count, padded,
             packed.target + int64_t{j} * padded);
  if (tile.weight) {
    __builtin_memcpy(packed.weight, static_cast<const T*>(tile.weight) + first, sizeof(T) * count);
    for (int d = count; d < padded; ++d) packed.weight[d] = 0;
  }
  return packed;
}

OSS_EXT_INLINE int smaller(int a, int b) { return a < b ? a : b; }

// A few sources against a few targets: their coefficients and sums stay in registers while the dims stream by.
template <class T, int P, bool Weighted>
struct Micro {
  static constexpr int kSources = P <= 4 ? 2 : 1;
  static constexpr int kTargets = kVectorBytes == 64 && P <= 2 ? 4 : 2;

  const T* basis[kSources][P];
  const T* target[kTargets];
  const T* weight;
  Vector<T> c[kSources][kTargets][P];
  Vector<T> sum[kSources][kTargets];

  template <bool Tail>
  OSS_EXT_INLINE void step(Micro& m, int d, Mask<T> mask) {
    Vector<T> u[kSources][P];
    for (int i = 0; i < kSources; ++i)
      for (int p = 0; p < P; ++p) u[i][p] = in_register<T>(load(m.basis[i][p] + d));
    for (int j = 0; j < kTargets; ++j) {
      const Vector<T> y = in_register<T>(load(m.target[j] + d));
      for (int i = 0; i < kSources; ++i) {
        Vector<T> a = m.c[i][j][0] * u[i][0] - y;
        for (int p = 1; p < P; ++p) a = m.c[i][j][p] * u[i][p] + a;
        // A zero from the padding times an infinite coefficient would be a NaN: the lanes past the end are cleared.
        if (Tail) a = keep<T>(a, mask);
        if (Weighted) {
          m.sum[i][j] = (a * load(m.weight + d)) * a + m.sum[i][j];
        } else {
          m.sum[i][j] = a * a + m.sum[i][j];
        }
      }
    }
  }
};

template <class T, int P, bool Weighted>
void add_block(const Tile& tile, const PackedTile<T>& packed, int count, const T* coefficients, int64_t stride,
               double* sums) {
  using M = Micro<T, P, Weighted>;
  const int whole = count / kLanes<T> * kLanes<T>;
  const Mask<T> mask = first_lanes<T>(count - whole);
  for (int i0 = 0; i0 < tile.sources; i0 += M::kSources) {
    const int source_end = smaller(i0 + M::kSources, tile.sources);
    for (int j0 = 0; j0 < tile.targets; j0 += M::kTargets) {
      const int target_end = smaller(j0 + M::kTargets, tile.targets);
      if (target_end - 1 + tile.diagonal <= i0) continue;
      M m;  // past the tile's edge its last row is taken once more, and the sum dropped
      m.weight = packed.weight;
      for (int i = 0; i < M::kSources; ++i)
        for (int p = 0; p < P; ++p)
          m.basis[i][p] = packed.basis + (int64_t{smaller(i0 + i, source_end - 1)} * P + p) * packed.row;
      for (int j = 0; j < M::kTargets; ++j)
        m.target[j] = packed.target + int64_t{smaller(j0 + j, target_end - 1)} * packed.row;
      for (int i = 0; i < M::kSources; ++i)
        for (int j = 0; j < M::kTargets; ++j) {
          const T* c = coefficients + smaller(i0 + i, source_end - 1) * stride + smaller(j0 + j, target_end - 1) * P;
          for (int p = 0; p < P; ++p) m.c[i][j][p] = broadcast<T>(c[p]);
          m.sum[i][j] = Vector<T>{};
        }
      for (int d = 0; d < whole; d += kLanes<T>) M::template step<false>(m, d, mask);
      if (whole < count) M::template step<true>(m, whole, mask);
      for (int i = 0; i < M::kSources; ++i)
        for (int j = 0; j < M::kTargets; ++j) {
          const double sum = sum_lanes<T>(m.sum[i][j]);
          if (i0 + i < source_end && j0 + j < target_end && j0 + j + tile.diagonal > i0 + i)
            sums[(i0 + i) * kTileTargets + j0 + j] += sum;
        }
    }
  }
}

// Few dims: a lane is a target, so that there are no sums across lanes.
template <class T, int P, bool Weighted>
void add_few_dims(const Tile& tile, const PackedTile<T>& packed, int count, const T* coefficients, int64_t stride,
                  double* sums) {
  constexpr int lanes = kLanes<T>;
  T by_dim[kFewDims][kTileTargets];
  for (int d = 0; d < count; ++d)
    for (int j = 0; j < kTileTargets; ++j)
      by_dim[d][j] = j < tile.targets ? packed.target[int64_t{j} * packed.row + d] : T(0);
  for (int i = 0; i < tile.sources; ++i) {
    const T* u = packed.basis + int64_t{i} * P * packed.row;
    const T* c_row = coefficients + i * stride;
    for (int j0 = 0; j0 < tile.targets; j0 += lanes) {
      const int width = smaller(lanes, tile.targets - j0);
      if (j0 + width - 1 + tile.diagonal <= i) continue;
      T gathered[P][lanes];
      for (int l = 0; l < lanes; ++l)
        for (int p = 0; p < P; ++p) gathered[p][l] = l < width ? c_row[(j0 + l) * P + p] : T(0);
      Vector<T> c[P], sum{};
      for (int p = 0; p < P; ++p) c[p] = load(gathered[p]);
      for (int d = 0; d < count; ++d) {
        Vector<T> a = c[0] * u[d] - load(by_dim[d] + j0);
        for (int p = 1; p < P; ++p) a = c[p] * u[p * packed.row + d] + a;
        sum = Weighted ? (a * packed.weight[d]) * a + sum : a * a + sum;
      }
      T out[lanes];
      store<T>(out, sum);
      for (int j = j0; j < j0 + width; ++j)
        if (j + tile.diagonal > i) sums[i * kTileTargets + j] += static_cast<double>(out[j - j0]);
    }
  }
}

template <class T, int P, bool Weighted>
void pairwise_tile(const Tile& tile, const T* coefficients, int64_t stride, double* sums) {
  const bool few = tile.dim_end - tile.dim_begin <= kFewDims;
  for (int64_t first = tile.dim_begin; first < tile.dim_end; first += kBlockDim) {
    const int64_t left = tile.dim_end - first;
    const int count = left < kBlockDim ? static_cast<int>(left) : kBlockDim;
    const int padded = (count + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    const PackedTile<T> packed = pack_tile<T>(tile, first, count, padded);
    if (few) {
      add_few_dims<T, P, Weighted>(tile, packed, count, coefficients, stride, sums);
    } else {
      add_block<T, P, Weighted>(tile, packed, count, coefficients, stride, sums);
    }
  }
}

template <class T, int P>
void pairwise_weight(const Tile& tile, const T* coefficients, int64_t stride, double* sums) {
  if (tile.weight) {
    pairwise_tile<T, P, true>(tile, coefficients, stride, sums);
  } else {
    pairwise_tile<T, P, false>(tile, coefficients, stride, sums);
  }
}

template <class T>
void pairwise_basis(const Tile& tile, const void* coefficients, int64_t stride, double* sums) {
  const T* c = static_cast<const T*>(coefficients);
  with_basis_count(tile.basis_count, [&](auto p) { pairwise_weight<T, decltype(p)::value>(tile, c, stride, sums); });
}

void pairwise(const Tile& tile, const void* coefficients, int64_t coefficient_stride, double* sums) {
  if (tile.dtype == DType::f64) {
    pairwise_basis<double>(tile, coefficients, coefficient_stride, sums);
  } else {
    pairwise_basis<float>(tile, coefficients, coefficient_stride, sums);
  }
}

}  // namespace
}  // namespace oss_ext::cpu
