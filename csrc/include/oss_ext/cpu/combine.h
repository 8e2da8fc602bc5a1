// out = sum_p c_p u_p over one row. Included by the sources that are compiled once for every instruction set.
#pragma once

#include "oss_ext/cpu/basis_count.h"
#include "oss_ext/cpu/isa.h"
#include "oss_ext/cpu/simd.h"

namespace oss_ext::cpu {
namespace {

template <class T, int P>
void combine_rows(const T* const* basis, const T* coefficients, int64_t count, T* out) {
  const T* u[P];
  T c[P];
  for (int p = 0; p < P; ++p) {
    u[p] = basis[p];
    c[p] = coefficients[p];
  }
  int64_t d = 0;
  for (; d + kLanes<T> <= count; d += kLanes<T>) {
    Vector<T> sum = c[0] * load(u[0] + d);
    for (int p = 1; p < P; ++p) sum = c[p] * load(u[p] + d) + sum;
    store<T>(out + d, sum);
  }
  if (d < count) {  // the last lanes through a whole vector, so that they are rounded as the others
    Vector<T> sum{};
    for (int p = 0; p < P; ++p) {
      Vector<T> v{};
      __builtin_memcpy(&v, u[p] + d, sizeof(T) * (count - d));
      sum = p == 0 ? c[0] * v : c[p] * v + sum;
    }
    __builtin_memcpy(out + d, &sum, sizeof(T) * (count - d));
  }
}

template <class T>
void combine_any(int basis_count, const T* const* basis, const T* coefficients, int64_t count, T* out) {
  with_basis_count(basis_count, [&](auto p) { combine_rows<T, decltype(p)::value>(basis, coefficients, count, out); });
}

void combine(DType dtype, int basis_count, const void* const* basis, const void* coefficients, int64_t count,
             void* out) {
  if (dtype == DType::f64) {
    const double* rows[kMaxBasis];
    for (int p = 0; p < basis_count; ++p) rows[p] = static_cast<const double*>(basis[p]);
    return combine_any<double>(basis_count, rows, static_cast<const double*>(coefficients), count,
                               static_cast<double*>(out));
  }
  const float* c = static_cast<const float*>(coefficients);
  const float* rows[kMaxBasis];
  if (dtype == DType::f32) {
    for (int p = 0; p < basis_count; ++p) rows[p] = static_cast<const float*>(basis[p]);
    return combine_any<float>(basis_count, rows, c, count, static_cast<float*>(out));
  }
  alignas(64) float wide[kMaxBasis][kBlockDim];
  alignas(64) float sum[kBlockDim];
  uint16_t* narrow = static_cast<uint16_t*>(out);
  for (int64_t first = 0; first < count; first += kBlockDim) {
    const int length = count - first < kBlockDim ? static_cast<int>(count - first) : kBlockDim;
    for (int p = 0; p < basis_count; ++p) {
      read_row(dtype, basis[p], first, length, wide[p]);
      rows[p] = wide[p];
    }
    combine_any<float>(basis_count, rows, c, length, sum);
    if (dtype == DType::f16) {
      narrow_f16(sum, length, narrow + first);
    } else {
      for (int d = 0; d < length; ++d) narrow[first + d] = to_bf16(sum[d]);
    }
  }
}

}  // namespace
}  // namespace oss_ext::cpu
