// The exact costs of the steps on the shortlists, and the states of the likeliest ones; then the nearest of them.
#pragma once

#include "oss_ext/best_source.h"
#include "oss_ext/best_step.h"
#include "oss_ext/cuda/common.cuh"

namespace oss_ext::cuda {

struct WeighArgs : RowArgs {
  const float* coefficients;
  int64_t coefficient_stride;
  bool joint;
  const int32_t *sources, *counts;
  int64_t parts;
  double* exact;
  void* out;
};

constexpr int kWeighThreads = 256;
constexpr int kWeighPack = 4;                                         // numbers of an access
constexpr int kWeighPacks = 4;                                        // of a thread and row
constexpr int kWeighSpan = kWeighThreads * kWeighPack * kWeighPacks;  // numbers of a block
constexpr int kWeighShort = 512;  // rows up to this length are dealt to parts of a warp

// What a thread adds to the cost of one step; writes its numbers of the state where `to` is not null. Where several
// sources are weighed, in double: the sums then tell costs apart as doubles do.
template <typename T, int P, int kPacks>
__device__ __forceinline__ double weigh_step(const WeighArgs& args, const float* c, int64_t b, int64_t i,
                                             bool in_double, const float (&y)[kPacks][kWeighPack],
                                             const int64_t (&at)[kPacks], int64_t end, T* to) {
  Pack<T, kWeighPack> u[P][kPacks];
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    if (at[k] >= end) continue;
#pragma unroll
    for (int p = 0; p < P; ++p) {
      u[p][k] = *reinterpret_cast<const Pack<T, kWeighPack>*>(args.basis_row<T>(p, b, i) + at[k]);
    }
  }
  float weights[P];
#pragma unroll
  for (int p = 0; p < P; ++p) weights[p] = c[p];
  double total = 0.0;
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    if (at[k] >= end) continue;
    if (to != nullptr) {
      Pack<T, kWeighPack> state;
#pragma unroll
      for (int e = 0; e < kWeighPack; ++e) {
        float z = weights[0] * widen(u[0][k].at[e]);
#pragma unroll
        for (int p = 1; p < P; ++p) z = fmaf(weights[p], widen(u[p][k].at[e]), z);
        state.at[e] = narrow<T>(z);
      }
      *reinterpret_cast<Pack<T, kWeighPack>*>(to + at[k]) = state;
    }
    if (in_double) {
#pragma unroll
      for (int e = 0; e < kWeighPack; ++e) {
        double off = -static_cast<double>(y[k][e]);
#pragma unroll
        for (int p = 0; p < P; ++p)
          off = fma(static_cast<double>(weights[p]), static_cast<double>(widen(u[p][k].at[e])), off);
        total = fma(off, off, total);
      }
    } else {
#pragma unroll
      for (int e = 0; e < kWeighPack; ++e) {
        float off = -y[k][e];
#pragma unroll
        for (int p = 0; p < P; ++p) off = fmaf(weights[p], widen(u[p][k].at[e]), off);
        total = fma(static_cast<double>(off), static_cast<double>(off), total);  // a float's square may overflow
      }
    }
  }
  return total;
}

template <typename T, int kPacks>
__device__ __forceinline__ void write_nan(const int64_t (&at)[kPacks], int64_t end, T* to) {
  Pack<T, kWeighPack> nothing;
#pragma unroll
  for (int e = 0; e < kWeighPack; ++e) nothing.at[e] = narrow<T>(NAN);
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    if (at[k] < end) *reinterpret_cast<Pack<T, kWeighPack>*>(to + at[k]) = nothing;
  }
}

template <typename T, int kPacks>
__device__ __forceinline__ void read_target(const WeighArgs& args, int64_t b, int64_t j, const int64_t (&at)[kPacks],
                                            int64_t end, float (&y)[kPacks][kWeighPack]) {
  const T* row = args.target_row<T>(b, j);
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    Pack<T, kWeighPack> packed{};
    if (at[k] < end) packed = *reinterpret_cast<const Pack<T, kWeighPack>*>(row + at[k]);
#pragma unroll
    for (int e = 0; e < kWeighPack; ++e) y[k][e] = widen(packed.at[e]);
  }
}

// Grid: batch * parts * nodes, neighbouring targets side by side: they share sources.
template <typename T, int P>
__global__ void __launch_bounds__(kWeighThreads) weigh_long(const __grid_constant__ WeighArgs args) {
  const int64_t j = blockIdx.x % args.nodes, part = blockIdx.x / args.nodes % args.parts;
  const int64_t b = blockIdx.x / args.nodes / args.parts, group = args.joint ? 0 : b;
  const int64_t begin = part * kWeighSpan, end = min(begin + kWeighSpan, args.dim);
  int64_t at[kWeighPacks];
#pragma unroll
  for (int k = 0; k < kWeighPacks; ++k) at[k] = begin + (k * kWeighThreads + threadIdx.x) * kWeighPack;
  T* to = static_cast<T*>(args.out) + (b * args.nodes + j) * args.dim;
  const int count = args.counts[group * args.nodes + j];
  if (count == 0) return write_nan(at, end, to);
  float y[kWeighPacks][kWeighPack];
  read_target<T>(args, b, j, at, end, y);
  const int32_t* list = args.sources + (group * args.nodes + j) * args.nodes;
  const float* coefficients = args.coefficients + b * args.coefficient_stride;
  double* exact = args.exact + (b * (args.nodes * (args.nodes - 1) / 2) + j * (j - 1) / 2) * args.parts + part;
  __shared__ double totals[kWeighThreads / 32];
  for (int slot = 0; slot < count; ++slot) {
    const int64_t i = list[slot];
    double total = weigh_step<T, P>(args, coefficients + (i * args.nodes + j) * P, b, i, count > 1, y, at, end,
                                    slot == 0 ? to : nullptr);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
    if (slot > 0) __syncthreads();
    if (threadIdx.x % 32 == 0) totals[threadIdx.x / 32] = total;
    __syncthreads();
    if (threadIdx.x == 0) {
      double all = 0.0;
#pragma unroll
      for (int w = 0; w < kWeighThreads / 32; ++w) all += totals[w];
      exact[slot * args.parts] = all;
    }
  }
}

// Short rows: `lanes` (a power of two) neighbouring lanes a row, one pack each at a time.
template <typename T, int P>
__global__ void __launch_bounds__(kWeighThreads) weigh_short(const __grid_constant__ WeighArgs args, int lanes) {
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kWeighThreads + threadIdx.x) / lanes;
  const int lane = threadIdx.x % lanes;
  const bool real = row < args.batch * args.nodes;
  const int64_t j = real ? row % args.nodes : 0, b = real ? row / args.nodes : 0, group = args.joint ? 0 : b;
  const int count = real ? args.counts[group * args.nodes + j] : 0;
  const int32_t* list = args.sources + (group * args.nodes + j) * args.nodes;
  const float* coefficients = args.coefficients + b * args.coefficient_stride;
  double* exact = args.exact + b * (args.nodes * (args.nodes - 1) / 2) + j * (j - 1) / 2;
  T* to = static_cast<T*>(args.out) + row * args.dim;
  if (real && count == 0) {
    for (int64_t d = lane * kWeighPack; d < args.dim; d += lanes * kWeighPack) write_nan<T, 1>({d}, args.dim, to);
  }
  int most = count;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) most = max(most, __shfl_xor_sync(0xffffffffu, most, step));
  for (int slot = 0; slot < most; ++slot) {
    double total = 0.0;
    if (slot < count) {
      const int64_t i = list[slot];
      for (int64_t d = lane * kWeighPack; d < args.dim; d += lanes * kWeighPack) {
        const int64_t at[1] = {d};
        float y[1][kWeighPack];
        read_target<T>(args, b, j, at, args.dim, y);
        total += weigh_step<T, P>(args, coefficients + (i * args.nodes + j) * P, b, i, count > 1, y, at, args.dim,
                                  slot == 0 ? to : nullptr);
      }
    }
    for (int step = lanes / 2; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
    if (slot < count && lane == 0) exact[slot] = total;
  }
}

constexpr int kChooseThreads = 128;

// Grid: groups * nodes, a block a target.
__global__ void __launch_bounds__(kChooseThreads) choose_sources(const __grid_constant__ ChooseParams params) {
  const int64_t j = blockIdx.x % params.nodes, group = blockIdx.x / params.nodes;
  const int64_t first = params.joint ? 0 : group, samples = params.joint ? params.all : 1;
  const int count = params.counts[group * params.nodes + j];
  const int32_t* list = params.sources + (group * params.nodes + j) * params.nodes;
  const int64_t pairs = params.nodes * (params.nodes - 1) / 2;
  __shared__ double totals[kChooseThreads / 32];
  BestSource best = BestSource::none();
  for (int slot = 0; slot < count; ++slot) {
    double total = 0.0;
    for (int64_t k = threadIdx.x; k < samples * params.parts; k += kChooseThreads) {
      const int64_t b = first + k / params.parts, part = k % params.parts;
      total += params.exact[(b * pairs + j * (j - 1) / 2 + slot) * params.parts + part];
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
    __syncthreads();
    if (threadIdx.x % 32 == 0) totals[threadIdx.x / 32] = total;
    __syncthreads();
    best.offer((totals[0] + totals[1] + totals[2] + totals[3]) / static_cast<double>(params.dim), list[slot]);
  }
  if (threadIdx.x == 0) {
    params.values[group * params.nodes + j] = best.value;
    params.backpointers[group * params.nodes + j] = best.source;
  }
}

// The rows of targets whose nearest source is not the one that weigh took: few, if any. Grid: blocks of neighbouring
// rows x parts of the dims.
template <typename T, int P>
__global__ void __launch_bounds__(kWeighThreads)
    mend_states(const __grid_constant__ WeighArgs args, const int32_t* backpointers, int64_t rows_per_block) {
  __shared__ int found;
  __shared__ int list[kWeighThreads];
  if (threadIdx.x == 0) found = 0;
  __syncthreads();
  const int64_t first = blockIdx.x * rows_per_block;
  const auto target_of = [&](int64_t row) { return args.joint ? row % args.nodes : row; };
  if (threadIdx.x < rows_per_block && first + threadIdx.x < args.batch * args.nodes) {
    const int64_t target = target_of(first + threadIdx.x);
    if (args.counts[target] > 0 && args.sources[target * args.nodes] != backpointers[target]) {
      list[atomicAdd(&found, 1)] = threadIdx.x;  // in any order
    }
  }
  __syncthreads();
  for (int k = 0; k < found; ++k) {
    const int64_t row = first + list[k], b = row / args.nodes, j = row % args.nodes, i = backpointers[target_of(row)];
    T* to = static_cast<T*>(args.out) + row * args.dim;
    const int64_t step = static_cast<int64_t>(gridDim.y) * kWeighThreads * kWeighPack;
    for (int64_t d = (blockIdx.y * kWeighThreads + threadIdx.x) * kWeighPack; d < args.dim; d += step) {
      const int64_t at[1] = {d};
      const float y[1][kWeighPack] = {};
      if (i == kUnreached) {
        write_nan(at, args.dim, to);
      } else {
        weigh_step<T, P>(args, args.coefficients + b * args.coefficient_stride + (i * args.nodes + j) * P, b, i, false,
                         y, at, args.dim, to);
      }
    }
  }
}

}  // namespace oss_ext::cuda
