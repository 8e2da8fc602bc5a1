// What every CUDA entry needs: the device guard, launch errors, dtype dispatch, loads that widen to the accumulate
// type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "oss_ext/types.h"

namespace oss_ext::cuda {

// Makes `device` current for a scope, so that a call works on tensors of any GPU and leaves the caller's choice alone.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    status_ = cudaGetDevice(&previous_);
    if (status_ == cudaSuccess && previous_ != device) {
      status_ = cudaSetDevice(device);
      restore_ = status_ == cudaSuccess;
    }
  }
  ~DeviceGuard() {
    if (restore_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  Status status() const { return static_cast<Status>(status_); }

 private:
  int previous_ = 0;
  bool restore_ = false;
  cudaError_t status_;
};

// The error of the launch just made. Clears it, so that a later caller does not meet ours.
inline Status launch_status() { return static_cast<Status>(cudaGetLastError()); }

inline int multiprocessors(int device) {
  int count = 0;
  return cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess ? count : 0;
}

template <typename T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

template <typename T, typename Acc>
__device__ __forceinline__ T narrow(Acc x) {
  if constexpr (sizeof(T) == 2 && !std::is_same_v<T, __half>) {
    return __float2bfloat16(x);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half(x);
  } else {
    return x;
  }
}

__device__ __forceinline__ float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double fused(double a, double b, double c) { return fma(a, b, c); }

// kCount neighbouring elements, loaded as one access where aligned.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T at[kCount];
};

// Calls `body` with a value of the element type that `dtype` names.
template <typename Body>
Status dispatch_dtype(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f32:
      return body(float{});
    case DType::bf16:
      return body(__nv_bfloat16{});
    case DType::f16:
      return body(__half{});
    case DType::f64:
      return body(double{});
  }
  return kUnsupportedDtype;
}

template <int kValue>
struct Int {
  static constexpr int value = kValue;
};

// Calls `body` with the number of basis vectors as a type.
template <typename Body>
Status dispatch_basis_count(int count, Body&& body) {
  static_assert(kMaxBasis == 6, "a case for every count");
  switch (count) {
    case 1:
      return body(Int<1>{});
    case 2:
      return body(Int<2>{});
    case 3:
      return body(Int<3>{});
    case 4:
      return body(Int<4>{});
    case 5:
      return body(Int<5>{});
    case 6:
      return body(Int<6>{});
  }
  return kInvalidArgument;
}

// True if 16-byte accesses at multiples of 16 bytes within every row are aligned.
inline bool rows_aligned(const RowsView& rows, int64_t element_bytes) {
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && rows.batch_stride * element_bytes % 16 == 0 &&
         rows.node_stride * element_bytes % 16 == 0;
}

// The rows that a kernel reads: a basis, and for most a target.
struct RowArgs {
  int64_t batch, nodes, dim;
  const void* basis[kMaxBasis];
  int64_t batch_stride[kMaxBasis], node_stride[kMaxBasis];
  const void* target;
  int64_t target_batch_stride, target_node_stride;

  template <typename T>
  __device__ const T* basis_row(int p, int64_t b, int64_t i) const {
    return static_cast<const T*>(basis[p]) + b * batch_stride[p] + i * node_stride[p];
  }
  template <typename T>
  __device__ const T* target_row(int64_t b, int64_t j) const {
    return static_cast<const T*>(target) + b * target_batch_stride + j * target_node_stride;
  }
};

template <typename Params>
void take_basis(const Params& params, RowArgs& args) {
  args.batch = params.batch;
  args.nodes = params.nodes;
  args.dim = params.dim;
  for (int p = 0; p < params.basis_count; ++p) {
    args.basis[p] = params.basis[p].data;
    args.batch_stride[p] = params.basis[p].batch_stride;
    args.node_stride[p] = params.basis[p].node_stride;
  }
}

template <typename Params>
void take_rows(const Params& params, RowArgs& args) {
  take_basis(params, args);
  args.target = params.target.data;
  args.target_batch_stride = params.target.batch_stride;
  args.target_node_stride = params.target.node_stride;
}

inline __host__ __device__ int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace oss_ext::cuda
