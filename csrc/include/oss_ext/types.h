// Plain types shared by every operation, CPU and CUDA. No torch, no Python.
#pragma once

#include <cstdint>

namespace oss_ext {

// 0: success. Negative: one of the codes below. Positive: a cudaError_t.
using Status = int;
constexpr Status kOk = 0;
constexpr Status kInvalidArgument = -1;
constexpr Status kUnsupportedDtype = -2;
constexpr Status kWorkspaceTooSmall = -3;
constexpr Status kOutOfMemory = -4;
constexpr Status kNotCompiled = -5;

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2, f64 = 3 };

// Most vectors a node's basis may hold: its state, its model output and four earlier predictions.
constexpr int kMaxBasis = 6;

// [batch, nodes, dim] with any stride between samples and between nodes, in elements; dim is contiguous.
struct RowsView {
  const void* data;
  int64_t batch_stride;
  int64_t node_stride;
};

// Sums run in "acc": float for f32, bf16 and f16 inputs, double for f64 inputs.
inline int64_t acc_size(DType dtype) { return dtype == DType::f64 ? 8 : 4; }
inline int64_t element_size(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

}  // namespace oss_ext
