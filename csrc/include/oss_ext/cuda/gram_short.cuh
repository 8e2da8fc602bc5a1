// Gram statistics of short rows, where the time goes into writing the moments: each is written once, zeros too.
#pragma once

#include "oss_ext/cuda/gram.cuh"

namespace oss_ext::cuda {

constexpr int kLongestShortGram = 64;  // numbers of the longest row that comes here

// A block's tile, on the whole square of pairs: a thread has kShortEach sources and one target.
constexpr int kShortSources = 32, kShortTargets = 64, kShortThreads = 256, kShortChunk = 16;
constexpr int kShortEach = kShortSources * kShortTargets / kShortThreads;

// Grid: tiles of sources * tiles of targets * batch, targets innermost.
template <typename T, int P>
__global__ void __launch_bounds__(kShortThreads)
    gram_short(const __grid_constant__ GramArgs args, double* gram, double* moment) {
  constexpr int kRows = kShortSources * P, kProducts = kRows * P;
  __shared__ __align__(16) double u[kShortChunk][kRows + 2];  // P neighbours a source; 2: the writes' banks differ
  __shared__ double y[kShortChunk][kShortTargets + 1], products[kProducts];  // [source][p][q]
  const int64_t columns = ceil_div(args.nodes, kShortTargets), bands = ceil_div(args.nodes, kShortSources);
  const int64_t b = blockIdx.x / columns / bands;
  const int64_t source = blockIdx.x / columns % bands * kShortSources, target = blockIdx.x % columns * kShortTargets;
  const bool first = target == 0;  // writes the nodes' own products too
  // Without wanted pairs it writes zeros only.
  const bool pairs =
      target + kShortTargets - 1 > source && source < args.source_end && source + kShortSources > args.source_begin;
  const int mine = threadIdx.x / kShortTargets * kShortEach, column = threadIdx.x % kShortTargets;

  double sum[kShortEach][P] = {};
  for (int k = threadIdx.x; k < kProducts; k += kShortThreads) products[k] = 0.0;
  for (int64_t begin = 0; begin < args.dim && (pairs || first); begin += kShortChunk) {
    const int d = threadIdx.x % kShortChunk;
    const bool inside = begin + d < args.dim;
    const double w = args.weight && inside ? args.weight[begin + d] : 1.0;
    __syncthreads();
#pragma unroll 4
    for (int row = threadIdx.x / kShortChunk; row < kRows; row += kShortThreads / kShortChunk) {
      const int64_t i = min(source + row / P, args.nodes - 1);
      u[d][row] = inside ? static_cast<double>(widen(args.basis_row<T>(row % P, b, i)[begin + d])) : 0.0;
    }
#pragma unroll
    for (int row = threadIdx.x / kShortChunk; row < kShortTargets; row += kShortThreads / kShortChunk) {
      const int64_t j = min(target + row, args.nodes - 1);
      y[d][row] = inside ? w * static_cast<double>(widen(args.target_row<T>(b, j)[begin + d])) : 0.0;
    }
    __syncthreads();
    if (pairs) {
#pragma unroll 2
      for (int k = 0; k < kShortChunk; ++k) {
        const double to = y[k][column];
#pragma unroll
        for (int n = 0; n < kShortEach * P; n += 2) {
          const double2 two = *reinterpret_cast<const double2*>(&u[k][mine * P + n]);
          sum[n / P][n % P] = fma(two.x, to, sum[n / P][n % P]);
          sum[(n + 1) / P][(n + 1) % P] = fma(two.y, to, sum[(n + 1) / P][(n + 1) % P]);
        }
      }
    }
    // <u_p, u_0> for the moments, and for the first tile all of q <= p.
    for (int k = threadIdx.x; k < kProducts; k += kShortThreads) {
      const int row = k / P, q = k % P;
      if (q > (first ? row % P : 0)) continue;
      double total = products[k];
      for (int n = 0; n < kShortChunk; ++n) {
        const double each = args.weight && begin + n < args.dim ? args.weight[begin + n] : 1.0;
        total = fma(each * u[n][row], u[n][row / P * P + q], total);
      }
      products[k] = total;
    }
  }
  __syncthreads();

  const auto is_source = [&](int64_t i) { return i >= args.source_begin && i < args.source_end; };
  const int64_t j = target + column;
#pragma unroll
  for (int n = 0; n < kShortEach; ++n) {
    const int64_t i = source + mine + n;
    if (i >= args.nodes || j >= args.nodes) continue;
    double* to = moment + ((b * args.nodes + i) * args.nodes + j) * P;
    double out[P];
#pragma unroll
    for (int p = 0; p < P; ++p) {
      out[p] = is_source(i) && j > i ? sum[n][p] - products[((mine + n) * P + p) * P] : 0.0;
    }
    if constexpr (P % 2 == 0) {
#pragma unroll
      for (int p = 0; p < P; p += 2) reinterpret_cast<double2*>(to)[p / 2] = make_double2(out[p], out[p + 1]);
    } else {
#pragma unroll
      for (int p = 0; p < P; ++p) to[p] = out[p];
    }
  }
  if (!first) return;
  for (int k = threadIdx.x; k < kProducts; k += kShortThreads) {
    const int row = k / P, p = max(row % P, k % P), q = min(row % P, k % P);
    const int64_t i = source + row / P;
    if (i >= args.nodes) break;
    gram[(b * args.nodes + i) * (P * P) + k % (P * P)] = is_source(i) ? products[(row / P * P + p) * P + q] : 0.0;
  }
}

}  // namespace oss_ext::cuda
