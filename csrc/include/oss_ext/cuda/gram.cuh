// Gram statistics of long rows: <u_p(i), y_j> on the tensor cores in double, and the node's own products beside them;
// the moment is the difference <u_p, y_j> - <u_p, u_0>. A product of two float inputs is exact in double, and at most
// kLongestGramSpan of them are summed one after another: the sum is as if y_j and u_0 were given to 2^-40 of |y| and
// |u_0| at worst and 2^-48 as a rule, while they come rounded to 2^-24.
#pragma once

#include "oss_ext/cuda/common.cuh"
#include "oss_ext/cuda/multiply_double.cuh"
#include "oss_ext/cuda/triangle.cuh"

namespace oss_ext::cuda {

struct GramArgs : PairArgs {
  const double* weight;
  bool aligned;      // four numbers at a multiple of four can be loaded together
  int64_t span;      // numbers a split covers, a multiple of kGramChunk
  double* sums;      // <u_p, y> [splits, batch, nodes, nodes, P], where i < j
  double* products;  // <u_p, u_q> [splits, batch, nodes, P, P]
};

// A block's tile: kGramRows rows of the basis (P neighbours a source; what is left of them is not used) by kGramTargets
// targets, kGramChunk numbers of each at a time. Its 8 warps have 32 x 32 sums each.
constexpr int kGramRows = 128, kGramTargets = 64, kGramChunk = 16, kGramThreads = 256;
constexpr int64_t kLongestGramSpan = 8192;
template <int P>
constexpr int kGramSources = kGramRows / P;
template <int P>
using GramTriangle = Triangle<kGramSources<P>, kGramTargets, 1>;

// A chunk of a tile's rows in double, laid out as multiply_double takes them: of eight numbers the even and the odd
// ones, of 16 rows of the basis row r beside r + 8. 16-byte accesses meet no bank twice.
struct GramChunk {
  double2 u[kGramChunk / 8][2][kGramRows / 2][4];
  double2 y[kGramChunk / 8][kGramTargets][4];

  __device__ double at(int row, int eight, int two, int odd) const {
    const double2& rows = u[eight][odd][row / 16 * 8 + row % 8][two];
    return row / 8 % 2 ? rows.y : rows.x;
  }
};

// The numbers that a block sums: indices count from its begin.
struct Span {
  int64_t begin;
  int length;
  const double* weight;  // from the begin on, or null: all 1

  __device__ Span(const GramArgs& args, int64_t split)
      : begin(split * args.span),
        length(static_cast<int>(min(args.span, args.dim - begin))),
        weight(args.weight ? args.weight + begin : nullptr) {}
  __device__ double weigh(int d) const { return d < length ? weight[d] : 0.0; }
};

// Brings a thread's share of the tile, four numbers of two rows of the basis and of a target, into shared memory.
template <typename T, int P>
struct GramFeed {
  static constexpr int kWide = sizeof(T) == 8 ? 2 : 4;
  static_assert(kGramThreads == 4 * kGramTargets && kGramRows == 2 * kGramTargets && kGramChunk == 16);
  const T* rows[3];
  T next[3][4];
  const int piece = threadIdx.x % 4, row = threadIdx.x / 4;

  // A row beyond the sources or the nodes is the last one again: what is summed of it is not used.
  __device__ GramFeed(const GramArgs& args, const GramTriangle<P>& tile, int64_t b, const Span& span) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int of_tile = row / 8 * 16 + row % 8 + 8 * k;
      const int64_t i = min(tile.source + of_tile / P, args.source_end - 1);
      rows[k] = args.basis_row<T>(of_tile % P, b, i) + span.begin;
    }
    rows[2] = args.target_row<T>(b, min(tile.target + row, args.nodes - 1)) + span.begin;
  }

  __device__ void fetch(bool aligned, int first, int length) {
    const int at = first + 4 * piece;
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      if (aligned && at + 4 <= length) {
#pragma unroll
        for (int n = 0; n < 4; n += kWide) {
          const auto pack = *reinterpret_cast<const Pack<T, kWide>*>(rows[k] + at + n);
#pragma unroll
          for (int m = 0; m < kWide; ++m) next[k][n + m] = pack.at[m];
        }
      } else {
#pragma unroll
        for (int n = 0; n < 4; ++n) next[k][n] = at + n < length ? rows[k][at + n] : T(0.f);
      }
    }
  }

  __device__ void store(const Span& span, int first, GramChunk& chunk) const {
    double u[2][4], y[4];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      u[0][n] = widen(next[0][n]);
      u[1][n] = widen(next[1][n]);
      y[n] = widen(next[2][n]);
      if (span.weight) y[n] *= span.weigh(first + 4 * piece + n);
    }
    const int eight = piece / 2, two = piece % 2 * 2;
    const bool swap = eight;  // both eights start at the same bank
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int at = two + (k ^ swap), n = 2 * k, other = 2 - n;
      chunk.u[eight][0][row][at] = swap ? make_double2(u[0][other], u[1][other]) : make_double2(u[0][n], u[1][n]);
      chunk.u[eight][1][row][at] =
          swap ? make_double2(u[0][other + 1], u[1][other + 1]) : make_double2(u[0][n + 1], u[1][n + 1]);
      chunk.y[eight][row][at] = swap ? make_double2(y[other], y[other + 1]) : make_double2(y[n], y[n + 1]);
    }
  }
};

// A thread's products of a row of the basis with its node's P, over eight numbers of every chunk.
template <int P>
struct NodeProducts {
  double sum[P] = {};
  const int row = threadIdx.x % kGramRows, eight = threadIdx.x / kGramRows;
  static_assert(kGramThreads / kGramRows == kGramChunk / 8);

  __device__ void add(const Span& span, int first, const GramChunk& chunk) {
    const int node = row / P;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int two = (node + k) % 4;  // other banks than the neighbours; the same order for all of a node
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const double w = span.weight ? span.weigh(first + 8 * eight + 2 * two + odd) : 1.0;
        const double u = w * chunk.at(row, eight, two, odd);
#pragma unroll
        for (int q = 0; q < P; ++q)
          sum[q] = fma(u, chunk.at(min(node * P + q, kGramRows - 1), eight, two, odd), sum[q]);
      }
    }
  }

  // Adds the two eights of the chunks, by way of shared memory. (p, q) is given q <= p's: the matrix is symmetric.
  __device__ void write(const GramArgs& args, int64_t split, int64_t b, int64_t source, double* shared) const {
    __syncthreads();
    if (eight == 1) {
#pragma unroll
      for (int q = 0; q < P; ++q) shared[row * P + q] = sum[q];
    }
    __syncthreads();
    const int64_t i = source + row / P;
    const int p = row % P;
    if (eight == 1 || row >= kGramSources<P> * P || i >= args.source_end) return;
    double* to = args.products + ((split * args.batch + b) * args.nodes + i) * (P * P);
#pragma unroll
    for (int q = 0; q < P; ++q) {
      if (q <= p) to[p * P + q] = to[q * P + p] = sum[q] + shared[row * P + q];
    }
  }
};

// Grid: batch * splits * tiles. The first tile of a band has its nodes' own products to sum too.
template <typename T, int P>
__global__ void __launch_bounds__(kGramThreads, sizeof(T) == 8 ? 1 : 2)
    gram_tiles(const __grid_constant__ GramArgs args) {
  __shared__ GramChunk chunks[2];
  const int64_t split = blockIdx.x / args.tiles % args.splits;
  const int64_t b = blockIdx.x / args.tiles / args.splits;
  const GramTriangle<P> tile(blockIdx.x % args.tiles, args.source_begin, args.nodes);
  const bool with_products = tile.target == tile.source + 1;
  const Span span(args, split);

  // Warps 0-3 and 4-7 share the schedulers. Near the diagonal, the lower rows have pairs at the later columns only: so
  // each scheduler has an early and a late part of them.
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = 32 * (warp % 4 / 2 + warp / 4 * 2), warp_column = 32 * (warp % 2 ^ warp / 4);
  unsigned wanted = 0;  // which 16 x 8 sums have a pair that is wanted
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int64_t i = tile.source + (warp_row + 16 * m) / P, j = tile.target + warp_column + 8 * n;
      if (i < args.source_end && j < args.nodes && j + 7 > i) wanted |= 1u << (4 * m + n);
    }
  }

  GramFeed<T, P> feed(args, tile, b, span);
  NodeProducts<P> products;
  double sum[2][4][4] = {};
  feed.fetch(args.aligned, 0, span.length);
  feed.store(span, 0, chunks[0]);
  int now = 0;
  for (int first = 0; first < span.length; first += kGramChunk, now ^= 1) {
    __syncthreads();
    const int next = first + kGramChunk;
    if (next < span.length) feed.fetch(args.aligned, next, span.length);
    if (wanted) {
#pragma unroll 1
      for (int eight = 0; eight < kGramChunk / 8; ++eight) {
        double2 u[2][2];
#pragma unroll
        for (int m = 0; m < 4; ++m)
          u[m / 2][m % 2] = chunks[now].u[eight][m % 2][warp_row / 2 + m / 2 * 8 + lane / 4][lane % 4];
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const double2 y = chunks[now].y[eight][warp_column + 8 * n + lane / 4][lane % 4];
#pragma unroll
          for (int m = 0; m < 2; ++m) multiply_double(sum[m][n], u[m], y, wanted >> (4 * m + n) & 1);
        }
      }
    }
    if (with_products) products.add(span, first, chunks[now]);
    if (next < span.length) feed.store(span, next, chunks[now ^ 1]);
  }

#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int row = warp_row + 16 * m + 8 * (k / 2) + lane / 4;
        const int64_t i = tile.source + row / P, j = tile.target + warp_column + 8 * n + 2 * (lane % 4) + k % 2;
        if (row < kGramSources<P> * P && i < args.source_end && j < args.nodes && j > i) {
          args.sums[(((split * args.batch + b) * args.nodes + i) * args.nodes + j) * P + row % P] = sum[m][n][k];
        }
      }
    }
  }
  if (with_products) products.write(args, split, b, tile.source, reinterpret_cast<double*>(chunks));
}

constexpr int kFinishThreads = 256, kManySplits = 64;

// Adds the splits' sums in their order, or, of many, the totals of eight runs of them, and takes <u_p, u_0> off; 0
// outside the wanted pairs. Grid: batch * nodes, a block a source.
template <int P>
__global__ void __launch_bounds__(kFinishThreads)
    finish_gram(const __grid_constant__ GramArgs args, double* gram, double* moment) {
  __shared__ double products[P * P], totals[kFinishThreads];
  const int64_t node = blockIdx.x, i = node % args.nodes;
  const bool wanted = i >= args.source_begin && i < args.source_end;
  const int runs = args.splits >= kManySplits ? 8 : 1, width = kFinishThreads / runs, run = threadIdx.x / width;
  const int64_t length = ceil_div(args.splits, runs), first = run * length, last = min(first + length, args.splits);
  // Called by all threads, for the same run of columns.
  const auto total = [&](const double* sums, int64_t stride, bool have) {
    double mine = 0.0;
    if (have) {
#pragma unroll 8
      for (int64_t s = first; s < last; ++s) mine += sums[s * stride];
    }
    if (runs == 1) return mine;
    totals[threadIdx.x] = mine;
    __syncthreads();
    if (run == 0) {
      for (int other = 1; other < runs; ++other) mine += totals[threadIdx.x + other * width];
    }
    __syncthreads();
    return mine;
  };
  for (int64_t start = 0; start < P * P; start += width) {
    const int64_t k = start + threadIdx.x % width;
    const int64_t at = node * (P * P) + k;
    const double sum = total(args.products + at, args.batch * args.nodes * (P * P), wanted && k < P * P);
    if (run == 0 && k < P * P) gram[at] = products[k] = sum;
  }
  __syncthreads();
  const int64_t row = args.nodes * P;
  for (int64_t start = 0; start < row; start += width) {
    const int64_t k = start + threadIdx.x % width;
    const bool have = wanted && k < row && k / P > i;
    const double sum = total(args.sums + node * row + k, args.batch * args.nodes * row, have);
    if (run == 0 && k < row) moment[node * row + k] = have ? sum - products[k % P * P] : 0.0;
  }
}

}  // namespace oss_ext::cuda
