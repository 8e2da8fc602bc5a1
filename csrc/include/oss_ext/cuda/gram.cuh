// Gram statistics in double; sums stay in registers.
#pragma once

#include "oss_ext/cuda/common.cuh"
#include "oss_ext/cuda/triangle.cuh"

namespace oss_ext::cuda {

struct GramArgs : PairArgs {
  const double* weight;
  int64_t span;      // numbers a split covers, a multiple of kGramChunk
  double* sums;      // moments [splits, batch, nodes, nodes, P]
  double* products;  // Gram matrices [splits, batch, nodes, P, P]
};

// A warp's tile (kGramI x kGramJ pairs, P sums each, all in registers), the block's layout of warps, and the numbers of
// each row it takes at a time.
constexpr int kGramWarpsI = 2, kGramWarpsJ = 2, kGramChunk = 64;
constexpr int kGramThreads = 32 * kGramWarpsI * kGramWarpsJ;
template <int P>
constexpr int kGramI = P <= 4 ? 4 : 2;
template <int P>
constexpr int kGramJ = P <= 2   ? 8
                       : P <= 4 ? 4
                                : 6;
template <int P>
using GramTriangle = Triangle<kGramI<P> * kGramWarpsI, kGramJ<P> * kGramWarpsJ>;

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// The rows are widened to double once, on their way into shared memory; a warp's lanes then run along the dimension.
// Grid: batch * splits * tiles.
template <typename T, int P>
__global__ void __launch_bounds__(kGramThreads) gram_moments(const __grid_constant__ GramArgs args) {
  constexpr int TI = kGramI<P>, TJ = kGramJ<P>, kSources = TI * kGramWarpsI, kTargets = TJ * kGramWarpsJ;
  constexpr int kRows = P * kSources + kTargets, kPerThread = kRows * kGramChunk / kGramThreads;
  static_assert(kRows * kGramChunk % kGramThreads == 0 && kGramThreads % kGramChunk == 0);
  __shared__ const T* rows[kRows];
  __shared__ double shared[kRows][kGramChunk];
  const int64_t split = blockIdx.x / args.tiles % args.splits;
  const int64_t b = blockIdx.x / args.tiles / args.splits;
  const GramTriangle<P> tile(blockIdx.x % args.tiles, args.source_begin, args.nodes);
  for (int row = threadIdx.x; row < kRows; row += kGramThreads) {
    // A row beyond the sources or the nodes is the last one again: what is summed of it is not written.
    const int p = row / kSources;
    if (p < P) {
      const int64_t i = min(tile.source + row % kSources, args.source_end - 1);
      rows[row] = args.basis_row<T>(p, b, i);
    } else {
      const int64_t j = min(tile.target + row - P * kSources, args.nodes - 1);
      rows[row] = args.target_row<T>(b, j);
    }
  }
  __syncthreads();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_i = warp / kGramWarpsJ * TI, warp_j = warp % kGramWarpsJ * TJ;
  const int64_t i0 = tile.source + warp_i, j0 = tile.target + warp_j;
  const bool active = i0 < args.source_end && j0 < args.nodes && j0 + TJ - 1 > i0;
  const int64_t begin = split * args.span, end = min(begin + args.span, args.dim);
  const int column = threadIdx.x % kGramChunk, first_row = threadIdx.x / kGramChunk;

  T next[kPerThread];  // the chunk after the one being summed, on its way
  const auto fetch = [&](int64_t first) {
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      next[k] = first + column < end ? rows[first_row + k * (kGramThreads / kGramChunk)][first + column] : T(0.f);
    }
  };
  double sum[TI][TJ][P] = {};
  fetch(begin);
  for (int64_t first = begin; first < end; first += kGramChunk) {
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) shared[first_row + k * (kGramThreads / kGramChunk)][column] = widen(next[k]);
    __syncthreads();
    fetch(first + kGramChunk);
    if (!active) continue;
#pragma unroll 1
    for (int d = lane; d < kGramChunk; d += 32) {
      const double w = args.weight && first + d < end ? args.weight[first + d] : 1.0;
      double y[TJ];
#pragma unroll
      for (int j = 0; j < TJ; ++j) y[j] = shared[P * kSources + warp_j + j][d];
#pragma unroll
      for (int i = 0; i < TI; ++i) {
        double u[P];
#pragma unroll
        for (int p = 0; p < P; ++p) u[p] = shared[p * kSources + warp_i + i][d];
#pragma unroll
        for (int j = 0; j < TJ; ++j) {
          double move = y[j] - u[0];
          if (args.weight) move *= w;
#pragma unroll
          for (int p = 0; p < P; ++p) sum[i][j][p] = fma(u[p], move, sum[i][j][p]);
        }
      }
    }
  }
  if (!active) return;
#pragma unroll
  for (int i = 0; i < TI; ++i) {
#pragma unroll
    for (int j = 0; j < TJ; ++j) {
#pragma unroll
      for (int p = 0; p < P; ++p) {
        const double total = warp_sum(sum[i][j][p]);
        const int64_t from = i0 + i, to = j0 + j;
        if (lane == 0 && from < args.source_end && to < args.nodes && to > from) {
          args.sums[(((split * args.batch + b) * args.nodes + from) * args.nodes + to) * P + p] = total;
        }
      }
    }
  }
}

constexpr int kShortGramDim = 64;  // rows up to this length go to gram_moments_short

// Rows of a few numbers: a thread a pair. Block (64, 4): targets x sources; grid: batch * tiles. One split.
using ShortGramTriangle = Triangle<4, 64>;
template <typename T, int P>
__global__ void __launch_bounds__(256) gram_moments_short(const __grid_constant__ GramArgs args) {
  const int64_t b = blockIdx.x / args.tiles;
  const ShortGramTriangle tile(blockIdx.x % args.tiles, args.source_begin, args.nodes);
  const int64_t i = tile.source + threadIdx.y, j = tile.target + threadIdx.x;
  if (i >= args.source_end || j >= args.nodes || j <= i) return;
  const T* u[P];
#pragma unroll
  for (int p = 0; p < P; ++p) {
    u[p] = args.basis_row<T>(p, b, i);
  }
  const T* y = args.target_row<T>(b, j);
  double sum[P] = {};
  for (int64_t d = 0; d < args.dim; ++d) {
    double move = static_cast<double>(widen(y[d])) - widen(u[0][d]);
    if (args.weight) move *= args.weight[d];
#pragma unroll
    for (int p = 0; p < P; ++p) sum[p] = fma(static_cast<double>(widen(u[p][d])), move, sum[p]);
  }
#pragma unroll
  for (int p = 0; p < P; ++p) args.sums[((b * args.nodes + i) * args.nodes + j) * P + p] = sum[p];
}

// The splits' sums in their order; moments are 0 outside the wanted pairs. Grid: batch * nodes, a block a source.
template <int P>
__global__ void __launch_bounds__(128)
    finish_gram(const __grid_constant__ GramArgs args, double* gram, double* moment) {
  const int64_t node = blockIdx.x, i = node % args.nodes;
  const bool wanted = i >= args.source_begin && i < args.source_end;
  const int64_t row = args.nodes * P, all = args.batch * args.nodes * row;
  for (int64_t k = threadIdx.x; k < row; k += blockDim.x) {
    double total = 0.0;
    if (wanted && k / P > i) {
      for (int64_t s = 0; s < args.splits; ++s) total += args.sums[s * all + node * row + k];
    }
    moment[node * row + k] = total;
  }
  if (threadIdx.x < P * P) {
    const int64_t products = args.batch * args.nodes * P * P;
    double total = 0.0;
    for (int64_t s = 0; s < args.splits; ++s) total += args.products[s * products + node * P * P + threadIdx.x];
    gram[node * P * P + threadIdx.x] = total;
  }
}

// One block a node and split: its P x P inner products. Grid: splits * batch * nodes.
template <typename T, int P>
__global__ void __launch_bounds__(256) gram_products(const __grid_constant__ GramArgs args) {
  constexpr int kPairs = P * (P + 1) / 2;
  const int64_t split = blockIdx.x / (args.batch * args.nodes), node = blockIdx.x % (args.batch * args.nodes);
  const int64_t b = node / args.nodes, i = node % args.nodes;
  double sum[kPairs] = {};
  if (i >= args.source_begin && i < args.source_end) {
    const int64_t end = min((split + 1) * args.span, args.dim);
    for (int64_t d = split * args.span + threadIdx.x; d < end; d += blockDim.x) {
      const double w = args.weight ? args.weight[d] : 1.0;
      double u[P];
#pragma unroll
      for (int p = 0; p < P; ++p) {
        u[p] = widen(args.basis_row<T>(p, b, i)[d]);
      }
      int pair = 0;
#pragma unroll
      for (int p = 0; p < P; ++p) {
#pragma unroll
        for (int q = 0; q <= p; ++q) {
          sum[pair] = fma(w * u[p], u[q], sum[pair]);
          ++pair;
        }
      }
    }
  }
  __shared__ double warp_totals[8][kPairs];
#pragma unroll
  for (int pair = 0; pair < kPairs; ++pair) {
    const double total = warp_sum(sum[pair]);
    if (threadIdx.x % 32 == 0) warp_totals[threadIdx.x / 32][pair] = total;
  }
  __syncthreads();
  if (threadIdx.x >= P * P) return;
  const int p = threadIdx.x / P, q = threadIdx.x % P;
  const int pair = p >= q ? p * (p + 1) / 2 + q : q * (q + 1) / 2 + p;
  double total = 0.0;
  for (int w = 0; w < 8; ++w) total += warp_totals[w][pair];
  args.products[blockIdx.x * static_cast<int64_t>(P * P) + threadIdx.x] = total;
}

}  // namespace oss_ext::cuda
