// What the entries of best_step share.
#pragma once

#include "oss_ext/best_step.h"
#include "oss_ext/cuda/common.cuh"

namespace oss_ext::cuda {

template <typename Body>
Status dispatch_float(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f32:
      return body(float{});
    case DType::bf16:
      return body(__nv_bfloat16{});
    case DType::f16:
      return body(__half{});
    case DType::f64:
      break;
  }
  return kUnsupportedDtype;
}

// Whether every row is whole aligned units of so many bytes.
inline bool aligned(const StepsParams& params, int64_t bytes) {
  bool all = params.dim * element_size(params.dtype) % bytes == 0;
  const auto look = [&](const RowsView& rows) {
    const int64_t size = element_size(params.dtype);
    all = all && reinterpret_cast<uintptr_t>(rows.data) % bytes == 0 && rows.batch_stride * size % bytes == 0 &&
          rows.node_stride * size % bytes == 0;
  };
  for (int p = 0; p < params.basis_count; ++p) look(params.basis[p]);
  look(params.target);
  return all;
}

}  // namespace oss_ext::cuda
