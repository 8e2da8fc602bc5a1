// Sums of squared distances of one tile. Included by the sources that are compiled once for every instruction set.
#pragma once

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
  T* basis;   // [sources][P][kBlockDim]
  T* target;  // [targets][kBlockDim]
  T* weight;  // [kBlockDim]
};

template <class T>
PackedTile<T> pack_tile(const Tile& tile, int64_t first, int count, int padded) {
  const int p_count = tile.basis_count;
  T* scratch = static_cast<T*>(tile.scratch);
  PackedTile<T> packed{scratch, scratch + int64_t{kTileSources} * p_count * kBlockDim, nullptr};
  packed.weight = packed.target + int64_t{kTileTargets} * kBlockDim;
  for (int p = 0; p < p_count; ++p)
    for (int i = 0; i < tile.sources; ++i)
      pack_row(tile.dtype, row_at(tile.basis[p], tile.basis_stride[p], i, tile.dtype), first, count, padded,
               packed.basis + (int64_t{i} * p_count + p) * kBlockDim);
  for (int j = 0; j < tile.targets; ++j)
    pack_row(tile.dtype, row_at(tile.target, tile.target_stride, j, tile.dtype), first, count, padded,
             packed.target + int64_t{j} * kBlockDim);
  if (tile.weight) {
    __builtin_memcpy(packed.weight, static_cast<const T*>(tile.weight) + first, sizeof(T) * count);
    for (int d = count; d < padded; ++d) packed.weight[d] = 0;
  }
  return packed;
}

// Two sources against two targets: their coefficients and sums stay in registers while the dims stream by.
template <class T, int P, bool Weighted>
struct Micro {
  const T* basis[2];  // [P][kBlockDim]
  const T* target[2];
  const T* weight;
  Vector<T> c[2][2][P];
  Vector<T> sum[2][2];

  template <bool Tail>
  OSS_EXT_INLINE void step(Micro& m, int d, Mask<T> mask) {
    Vector<T> y[2], u[2][P];
    for (int j = 0; j < 2; ++j) y[j] = load(m.target[j] + d);
    for (int i = 0; i < 2; ++i)
      for (int p = 0; p < P; ++p) { u[i][p] = load(m.basis[i] + p * kBlockDim + d); asm("" : "+v"(u[i][p])); }
    for (int j = 0; j < 2; ++j) asm("" : "+v"(y[j]));
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) {
        Vector<T> a = m.c[i][j][0] * u[i][0] - y[j];
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
};

OSS_EXT_INLINE int smaller(int a, int b) { return a < b ? a : b; }

template <class T, int P, bool Weighted>
void add_block(const Tile& tile, const PackedTile<T>& packed, int count, const T* coefficients, int64_t stride, double* sums) {
  const int whole = count / kLanes<T> * kLanes<T>;
  const Mask<T> mask = first_lanes<T>(count - whole);
  for (int i0 = 0; i0 < tile.sources; i0 += 2) {
    const int is[2] = {i0, smaller(i0 + 1, tile.sources - 1)};
    for (int j0 = 0; j0 < tile.targets; j0 += 2) {
      const int js[2] = {j0, smaller(j0 + 1, tile.targets - 1)};
      if (js[1] + tile.diagonal <= i0) continue;
      Micro<T, P, Weighted> m;
      m.weight = packed.weight;
      for (int i = 0; i < 2; ++i) m.basis[i] = packed.basis + int64_t{is[i]} * P * kBlockDim;
      for (int j = 0; j < 2; ++j) m.target[j] = packed.target + int64_t{js[j]} * kBlockDim;
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 2; ++j) {
          for (int p = 0; p < P; ++p) m.c[i][j][p] = broadcast<T>(coefficients[is[i] * stride + js[j] * P + p]);
          m.sum[i][j] = Vector<T>{};
        }
      for (int d = 0; d < whole; d += kLanes<T>) m.template step<false>(m, d, mask);
      if (whole < count) m.template step<true>(m, whole, mask);
      for (int i = i0; i <= is[1]; ++i)
        for (int j = j0; j <= js[1]; ++j)
          if (j + tile.diagonal > i) sums[i * kTileTargets + j] += sum_lanes<T>(m.sum[i - i0][j - j0]);
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
    for (int j = 0; j < kTileTargets; ++j) by_dim[d][j] = j < tile.targets ? packed.target[int64_t{j} * kBlockDim + d] : T(0);
  for (int i = 0; i < tile.sources; ++i) {
    const T* u = packed.basis + int64_t{i} * P * kBlockDim;
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
        for (int p = 1; p < P; ++p) a = c[p] * u[p * kBlockDim + d] + a;
        sum = Weighted ? (a * packed.weight[d]) * a + sum : a * a + sum;
      }
      T out[lanes];
      store<T>(out, sum);
      for (int j = j0; j < j0 + width; ++j)
        if (j + tile.diagonal > i) sums[i * kTileTargets + j] = static_cast<double>(out[j - j0]);
    }
  }
}

template <class T, int P, bool Weighted>
void pairwise_tile(const Tile& tile, const T* coefficients, int64_t stride, double* sums) {
  for (int k = 0; k < kTileSources * kTileTargets; ++k) sums[k] = 0;
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
  switch (tile.basis_count) {
    case 1: return pairwise_weight<T, 1>(tile, c, stride, sums);
    case 2: return pairwise_weight<T, 2>(tile, c, stride, sums);
    case 3: return pairwise_weight<T, 3>(tile, c, stride, sums);
    default: return pairwise_weight<T, 4>(tile, c, stride, sums);
  }
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
