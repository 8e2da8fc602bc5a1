// cost[g,i,j] = sum over the samples of group g of sum_d w_d (sum_p C_ijp u_p(i) - y_j)^2 for rows of a few numbers.
//
// A thread owns TI x TJ pairs, their coefficients and sums in registers, and goes through the samples of its block:
// what is shared by the samples is read once, and only the sums leave the block. Rows come through shared memory in
// units of 16 bytes, [sample][unit][row]: a warp's lanes read neighbouring rows, and every row is at a constant offset.
// P + 1 fused instructions a pair and number, (P TI + TJ) / (TI TJ) shared loads of 16 bytes a pair and unit.
#pragma once

#include "oss_ext/cuda/pairwise_cost.cuh"
#include "oss_ext/pairwise_cost.h"

namespace oss_ext::cuda {

// Rows up to this length go to pairwise_cost_short.
template <typename Acc>
constexpr int kShortDim = sizeof(Acc) == 8 ? 28 : 60;
static_assert(kShortDim<float> <= kLongestSummed && kShortDim<double> <= kLongestSummed);
constexpr int kShortThreads = 128;
// Numbers of a float sum before it is added to the group's, and such sums in a group: the error stays that of some ten
// dozen additions.
constexpr int kShortRun = 64, kShortRuns = 64;

template <typename Acc, int P>
struct ShortTile {
  // 2 x 2 warps of 4 x 8 lanes (sources x targets).
  static constexpr int TI = sizeof(Acc) == 8 ? 2 : 4, TJ = TI;
  static constexpr int kSources = 8 * TI, kTargets = 16 * TJ;
  static constexpr int kRows = P * kSources + kTargets;
  static constexpr int kUnit = 16 / static_cast<int>(sizeof(Acc));  // numbers of a unit
  static constexpr int kPitch = kRows + 1;  // units; uneven, so that stores spread over the banks
};

template <typename Acc>
__host__ __device__ constexpr int short_units(int64_t dim) {
  return static_cast<int>((dim * static_cast<int64_t>(sizeof(Acc)) + 15) / 16);
}

// Shared memory: the rows of samples_at_once samples, then the weights.
template <typename Acc, int P>
constexpr int short_bytes(int64_t dim, int samples_at_once) {
  return short_units<Acc>(dim) * (samples_at_once * ShortTile<Acc, P>::kPitch + 1) * 16;
}

// A row in the block's first sample, and the elements from there to the same row of the next.
template <typename T>
struct alignas(16) ShortRow {
  const T* at;
  int64_t batch_stride;
};

// A row beyond the sources or the nodes is the last one again: what is computed of it is not written.
template <typename T, int P, class Tile>
__device__ __forceinline__ void find_short_rows(const CostArgs& args, int64_t b, int64_t source, int64_t target,
                                                ShortRow<T>* rows) {
  for (int row = threadIdx.x; row < Tile::kRows; row += kShortThreads) {
    if (row < P * Tile::kSources) {
      const int p = row / Tile::kSources;
      const int64_t i = min(source + row % Tile::kSources, args.source_end - 1);
      rows[row] = {args.basis_row<T>(p, b, i), args.batch_stride[p]};
    } else {
      const int64_t j = min(target + row - P * Tile::kSources, args.nodes - 1);
      rows[row] = {args.target_row<T>(b, j), args.target_batch_stride};
    }
  }
}

// Samples skip .. skip + count of the block's, widened, zero beyond the dimension. Neighbouring threads take the units
// of a row: 2^unit_bits of them, some idle where the row has fewer.
template <typename T, int P, class Tile, typename Unit>
__device__ __forceinline__ void load_short_rows(const CostArgs& args, const ShortRow<T>* rows, int64_t skip, int count,
                                                int units, Unit* shared) {
  constexpr int kUnit = Tile::kUnit, kAtOnce = 4;
  const int unit = threadIdx.x & ((1 << args.unit_bits) - 1), step = kShortThreads >> args.unit_bits;
  if (unit >= units) return;
  const int dim = static_cast<int>(args.dim), d = unit * kUnit, all = count * Tile::kRows;
  for (int first = threadIdx.x >> args.unit_bits; first < all; first += kAtOnce * step) {
    Pack<T, kUnit> got[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int index = first + k * step;
      if (index >= all) break;
      const ShortRow<T> row = rows[index % Tile::kRows];
      const T* from = row.at + (skip + index / Tile::kRows) * row.batch_stride + d;
      if (args.aligned) {
        got[k] = *reinterpret_cast<const Pack<T, kUnit>*>(from);
      } else {
#pragma unroll
        for (int n = 0; n < kUnit; ++n) got[k].at[n] = d + n < dim ? from[n] : T(0.f);
      }
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int index = first + k * step;
      if (index >= all) break;
      Unit wide;
#pragma unroll
      for (int n = 0; n < kUnit; ++n) wide.at[n] = widen(got[k].at[n]);
      shared[(index / Tile::kRows * units + unit) * Tile::kPitch + index % Tile::kRows] = wide;
    }
  }
}

// Blocks of a multiprocessor: bounds the registers.
template <int P, bool kWeighted>
constexpr int kShortBlocks = P <= 2 && !kWeighted           ? 4
                             : P + (kWeighted ? 1 : 0) <= 3 ? 3
                                                            : 2;

// Grid: tiles * groups of samples_per_block samples, a multiple of samples_per_sum. With aligned set, the dimension is
// a multiple of the unit.
template <typename T, int P, bool kWeighted>
__global__ void __launch_bounds__(kShortThreads, kShortBlocks<P, kWeighted>)
    pairwise_cost_short(const __grid_constant__ CostArgs args) {
  using Acc = typename AccOf<T>::type;
  using Tile = ShortTile<Acc, P>;
  constexpr int TI = Tile::TI, TJ = Tile::TJ, kUnit = Tile::kUnit;
  using Unit = Pack<Acc, kUnit>;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  __shared__ ShortRow<T> rows[Tile::kRows];
  Unit* shared = reinterpret_cast<Unit*>(shared_bytes);
  const int units = short_units<Acc>(args.dim);
  const Unit* weight = shared + args.samples_at_once * units * Tile::kPitch;

  const Triangle<Tile::kSources, Tile::kTargets> tile(blockIdx.x % args.tiles, args.source_begin, args.nodes);
  const int64_t begin = blockIdx.x / args.tiles * args.samples_per_block;
  const int samples = static_cast<int>(min(begin + args.samples_per_block, args.batch) - begin);
  find_short_rows<T, P, Tile>(args, begin, tile.source, tile.target, rows);
  if constexpr (kWeighted) {
    for (int d = threadIdx.x; d < units * kUnit; d += kShortThreads) {
      const Acc w = d < args.dim ? static_cast<const Acc*>(args.weight)[d] : Acc(0);
      reinterpret_cast<Acc*>(shared + args.samples_at_once * units * Tile::kPitch)[d] = w;
    }
  }

  // Targets follow bits 1 to 3 of the lane, sources bits 0 and 4: the parts of a 16-byte load merge where lanes that
  // differ in bit 0, or in bit 1, read the same address.
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_i = warp / 2 * 4 * TI, warp_j = warp % 2 * 8 * TJ;
  const int lane_i = warp_i + lane / 16 * 2 + lane % 2, lane_j = warp_j + lane / 2 % 8;
  // The thread's first pair; then every fourth source, every eighth target. 32 bits: a cost has nodes^2 entries.
  const int i0 = static_cast<int>(tile.source) + lane_i, j0 = static_cast<int>(tile.target) + lane_j;
  const bool active = tile.source + warp_i < args.source_end && tile.target + warp_j < args.nodes &&
                      tile.target + warp_j + 8 * TJ - 1 > tile.source + warp_i;
  const auto wanted = [&](int i, int j) {
    return i0 + 4 * i < args.source_end && j0 + 8 * j < args.nodes && j0 + 8 * j > i0 + 4 * i;
  };

  Acc c[TI][TJ][P], sum[TI][TJ], total[TI][TJ];
  const auto take_coefficients = [&](int64_t b) {
    const Acc* first = static_cast<const Acc*>(args.coefficients) + b * args.coefficient_stride;
#pragma unroll
    for (int i = 0; i < TI; ++i) {
#pragma unroll
      for (int j = 0; j < TJ; ++j) {
        const Acc* at = first + (static_cast<int64_t>(i0 + 4 * i) * args.nodes + j0 + 8 * j) * P;
        const bool read = wanted(i, j);
#pragma unroll
        for (int p = 0; p < P; ++p) c[i][j][p] = read ? at[p] : Acc(0);
      }
    }
  };
#pragma unroll
  for (int i = 0; i < TI; ++i) {
#pragma unroll
    for (int j = 0; j < TJ; ++j) sum[i][j] = total[i][j] = Acc(0);
  }

  int run = 0;                                        // numbers in sum
  int left = static_cast<int>(args.samples_per_sum);  // samples until the group is complete
  Acc* out = static_cast<Acc*>(args.sums) + begin / args.samples_per_sum * args.nodes * args.nodes;
  for (int done = 0; done < samples; done += args.samples_at_once) {
    const int count = min(args.samples_at_once, samples - done);
    __syncthreads();
    load_short_rows<T, P, Tile>(args, rows, done, count, units, shared);
    __syncthreads();
    if (!active) continue;
    for (int s = 0; s < count; ++s) {
      if (args.coefficient_stride != 0 || done + s == 0) take_coefficients(begin + done + s);
      const Unit* at = shared + s * units * Tile::kPitch;
#pragma unroll 1
      for (int unit = 0; unit < units; ++unit, at += Tile::kPitch) {
        Unit y[TJ], w;
#pragma unroll
        for (int j = 0; j < TJ; ++j) y[j] = at[P * Tile::kSources + lane_j + 8 * j];
        if constexpr (kWeighted) w = weight[unit];
#pragma unroll
        for (int i = 0; i < TI; ++i) {
          // In rounds over all the pairs, so that neighbouring instructions do not wait for one another.
          Acc off[TJ][kUnit];
#pragma unroll
          for (int p = 0; p < P; ++p) {
            const Unit u = at[p * Tile::kSources + lane_i + 4 * i];
#pragma unroll
            for (int j = 0; j < TJ; ++j) {
#pragma unroll
              for (int n = 0; n < kUnit; ++n) off[j][n] = fused(c[i][j][p], u.at[n], p == 0 ? -y[j].at[n] : off[j][n]);
            }
          }
#pragma unroll
          for (int n = 0; n < kUnit; ++n) {
#pragma unroll
            for (int j = 0; j < TJ; ++j) {
              sum[i][j] = fused(kWeighted ? off[j][n] * w.at[n] : off[j][n], off[j][n], sum[i][j]);
            }
          }
        }
      }
      run += units * kUnit;
      const bool complete = --left == 0 || done + s + 1 == samples;
      if (!complete && run + units * kUnit <= kShortRun) continue;
      run = 0;
#pragma unroll
      for (int i = 0; i < TI; ++i) {
#pragma unroll
        for (int j = 0; j < TJ; ++j) {
          total[i][j] += sum[i][j];
          sum[i][j] = Acc(0);
          if (complete) {
            const int64_t source = i0 + 4 * i, target = j0 + 8 * j;
            if (wanted(i, j)) out[source * args.nodes + target] = scaled_cost<Acc>(args, total[i][j], target);
            total[i][j] = Acc(0);
          }
        }
      }
      if (complete) {
        left = static_cast<int>(args.samples_per_sum);
        out += args.nodes * args.nodes;
      }
    }
  }
}

}  // namespace oss_ext::cuda
