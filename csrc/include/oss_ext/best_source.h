// The tie and NaN rule, written once for CPU and CUDA: only finite candidates count, and among equals the smallest
// source wins (the noisiest node, the longest step). Whatever the order in which candidates are offered, the result is
// the same.
#pragma once

#include "oss_ext/types.h"

#ifdef __CUDACC__
#define OSS_EXT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define OSS_EXT_HOST_DEVICE inline
#endif

namespace oss_ext {

constexpr int32_t kUnreached = -1;

struct BestSource {
  double value;    // +inf: none so far
  int32_t source;  // kUnreached: none so far

  OSS_EXT_HOST_DEVICE static BestSource none() { return {__builtin_huge_val(), kUnreached}; }

  OSS_EXT_HOST_DEVICE void offer(double candidate, int32_t from) {
    const bool finite = candidate - candidate == 0.0;
    const bool better = candidate < value || (candidate == value && from < source) || source == kUnreached;
    if (finite && better) {
      value = candidate;
      source = from;
    }
  }

  OSS_EXT_HOST_DEVICE void offer(const BestSource& other) {
    if (other.source != kUnreached) offer(other.value, other.source);
  }
};

}  // namespace oss_ext
