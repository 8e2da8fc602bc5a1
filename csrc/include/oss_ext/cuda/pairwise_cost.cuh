// cost[b,i,j] = sum_d w_d (sum_p C_ijp u_p(i) - y_j)^2 for long rows (short ones: pairwise_cost_short.cuh), and the
// pass that adds the parts of a split dimension and scales.
//
// A warp owns a tile of TI x TJ pairs, its sums and coefficients in registers, and its lanes run along the dimension;
// the block's rows come through shared memory, kStages chunks deep. P + 1 fused instructions a pair and number, (P TI +
// TJ) / (TI TJ) shared loads.
#pragma once

#include "oss_ext/cuda/common.cuh"
#include "oss_ext/cuda/triangle.cuh"

namespace oss_ext::cuda {

struct CostArgs : PairArgs {
  const void* coefficients;
  int64_t coefficient_stride;
  const void* weight;
  void* sums;  // acc [splits, batch, nodes, nodes]; with one split: the costs themselves
  const void* target_weight;
  double scale;              // 1 / dim
  bool aligned;              // every row may be read 16 bytes at a time
  int64_t chunks_per_split;  // long rows
  // Short rows: samples of a cost, of a block, in shared memory at once; log2 of the threads that bring a row there.
  int64_t samples_per_sum, samples_per_block;
  int samples_at_once, unit_bits;
};

__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(at), "l"(global));
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;\n"); }
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending));
}

// A warp's tile and how the block's warps are laid out.
template <int kTI, int kTJ, int kWarpsI, int kWarpsJ, int kStagesDeep>
struct CostTile {
  static constexpr int TI = kTI, TJ = kTJ, WI = kWarpsI, WJ = kWarpsJ, kStages = kStagesDeep;
  static constexpr int kSources = TI * WI, kTargets = TJ * WJ, kThreads = 32 * WI * WJ;
};

template <typename T, int P, class Tile>
struct CostLayout {
  static constexpr int kChunk = sizeof(T) == 8 ? 64 : 128;
  static constexpr int kRows = P * Tile::kSources + Tile::kTargets;
  static constexpr int kVector = 16 / sizeof(T);
  static constexpr int kVectorsPerRow = kChunk / kVector;
  static constexpr int kBytes = Tile::kStages * kRows * kChunk * static_cast<int>(sizeof(T));
};

template <typename Acc>
__device__ __forceinline__ Acc scaled_cost(const CostArgs& args, double sum, int64_t target) {
  if (args.target_weight) sum *= static_cast<const Acc*>(args.target_weight)[target];
  return static_cast<Acc>(sum * args.scale);
}

// Where the block's rows start: P x kSources of the basis, then the targets. A row beyond the sources or the nodes is
// the last one again: what is computed of it is not written.
template <typename T, int P, class Tile>
__device__ __forceinline__ void find_rows(const CostArgs& args, int64_t b, int64_t source, int64_t target,
                                          const T** rows) {
  for (int row = threadIdx.x; row < CostLayout<T, P, Tile>::kRows; row += Tile::kThreads) {
    const T* from;
    if (row < P * Tile::kSources) {
      const int p = row / Tile::kSources;
      const int64_t i = min(source + row % Tile::kSources, args.source_end - 1);
      from = args.basis_row<T>(p, b, i);
    } else {
      const int64_t j = min(target + row - P * Tile::kSources, args.nodes - 1);
      from = args.target_row<T>(b, j);
    }
    rows[row] = from;
  }
}

// Brings numbers first .. first + kChunk of every row to shared memory, zero beyond the dimension.
template <typename T, int P, class Tile>
__device__ __forceinline__ void load_chunk(const T* const* rows, int64_t first, int64_t dim, bool aligned, T* shared) {
  using Layout = CostLayout<T, P, Tile>;
  if (aligned && first + Layout::kChunk <= dim) {
    constexpr int kRowsAtOnce = Tile::kThreads / Layout::kVectorsPerRow;
    const int row = threadIdx.x / Layout::kVectorsPerRow;
    const int d = threadIdx.x % Layout::kVectorsPerRow * Layout::kVector;
    const int64_t from = first + d;
    T* to = shared + row * Layout::kChunk + d;
#pragma unroll
    for (int k = 0; k < (Layout::kRows + kRowsAtOnce - 1) / kRowsAtOnce; ++k) {
      if (Layout::kRows % kRowsAtOnce != 0 && row + k * kRowsAtOnce >= Layout::kRows) break;
      copy_async_16(to + k * kRowsAtOnce * Layout::kChunk, rows[row + k * kRowsAtOnce] + from);
    }
  } else {
#pragma unroll 1
    for (int v = threadIdx.x; v < Layout::kRows * Layout::kChunk; v += Tile::kThreads) {
      const int64_t d = first + v % Layout::kChunk;
      shared[v] = d < dim ? rows[v / Layout::kChunk][d] : T(0.f);
    }
  }
}

template <typename T, int P, class Tile, bool kWeighted>
__global__ void __launch_bounds__(Tile::kThreads) pairwise_cost_tiled(const __grid_constant__ CostArgs args) {
  using Acc = typename AccOf<T>::type;
  using Layout = CostLayout<T, P, Tile>;
  constexpr int TI = Tile::TI, TJ = Tile::TJ;
  constexpr int kPart = 2;  // numbers of a lane in flight: bounds the registers
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  T* shared = reinterpret_cast<T*>(shared_bytes);

  const int64_t tile_index = blockIdx.x % args.tiles;
  const int64_t split = blockIdx.x / args.tiles % args.splits;
  const int64_t b = blockIdx.x / args.tiles / args.splits;
  const Triangle<Tile::kSources, Tile::kTargets> tile(tile_index, args.source_begin, args.nodes);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_i = warp / Tile::WJ * TI, warp_j = warp % Tile::WJ * TJ;
  const int64_t i0 = tile.source + warp_i, j0 = tile.target + warp_j;
  const bool active = i0 < args.source_end && j0 < args.nodes && j0 + TJ - 1 > i0;
  __shared__ const T* rows[Layout::kRows];
  find_rows<T, P, Tile>(args, b, tile.source, tile.target, rows);
  __syncthreads();

  Acc c[TI][TJ][P], sum[TI][TJ];
#pragma unroll
  for (int i = 0; i < TI; ++i) {
#pragma unroll
    for (int j = 0; j < TJ; ++j) {
      sum[i][j] = Acc(0);
      const bool wanted = active && i0 + i < args.source_end && j0 + j < args.nodes && j0 + j > i0 + i;
      const Acc* at = static_cast<const Acc*>(args.coefficients) + b * args.coefficient_stride +
                      ((i0 + i) * args.nodes + j0 + j) * P;
#pragma unroll
      for (int p = 0; p < P; ++p) c[i][j][p] = wanted ? at[p] : Acc(0);
    }
  }

  const int64_t chunks = (args.dim + Layout::kChunk - 1) / Layout::kChunk;
  const int64_t begin = split * args.chunks_per_split;
  const int64_t end = min(begin + args.chunks_per_split, chunks);
  constexpr int kStageSize = Layout::kRows * Layout::kChunk;
  for (int s = 0; s < Tile::kStages - 1; ++s) {
    if (begin + s < end) {
      load_chunk<T, P, Tile>(rows, (begin + s) * Layout::kChunk, args.dim, args.aligned, shared + s * kStageSize);
    }
    commit_copies();
  }
  int stage = 0;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    wait_copies<Tile::kStages - 2>();
    __syncthreads();
    const int64_t ahead = chunk + Tile::kStages - 1;
    if (ahead < end) {
      const int slot = stage == 0 ? Tile::kStages - 1 : stage - 1;
      load_chunk<T, P, Tile>(rows, ahead * Layout::kChunk, args.dim, args.aligned, shared + slot * kStageSize);
    }
    commit_copies();
    if (active) {
      // The lanes of a warp read neighbouring pairs, so that their accesses meet no bank twice.
      const T* mine = shared + stage * kStageSize + lane * kPart;
#pragma unroll 1
      for (int part = 0; part < Layout::kChunk; part += 32 * kPart) {
        Acc y[TJ][kPart], w[kPart];
#pragma unroll
        for (int j = 0; j < TJ; ++j) {
          const auto packed = *reinterpret_cast<const Pack<T, kPart>*>(
              mine + (P * Tile::kSources + warp_j + j) * Layout::kChunk + part);
#pragma unroll
          for (int k = 0; k < kPart; ++k) y[j][k] = widen(packed.at[k]);
        }
        if constexpr (kWeighted) {
#pragma unroll
          for (int k = 0; k < kPart; ++k) {
            const int64_t d = chunk * Layout::kChunk + part + lane * kPart + k;
            w[k] = d < args.dim ? static_cast<const Acc*>(args.weight)[d] : Acc(0);
          }
        }
#pragma unroll
        for (int i = 0; i < TI; ++i) {
          Acc u[P][kPart];
#pragma unroll
          for (int p = 0; p < P; ++p) {
            const auto packed = *reinterpret_cast<const Pack<T, kPart>*>(
                mine + (p * Tile::kSources + warp_i + i) * Layout::kChunk + part);
#pragma unroll
            for (int k = 0; k < kPart; ++k) u[p][k] = widen(packed.at[k]);
          }
          // In rounds over all the pairs, so that neighbouring instructions do not wait for one another.
          Acc off[TJ][kPart];
#pragma unroll
          for (int p = 0; p < P; ++p) {
#pragma unroll
            for (int j = 0; j < TJ; ++j) {
#pragma unroll
              for (int k = 0; k < kPart; ++k) off[j][k] = fused(c[i][j][p], u[p][k], p == 0 ? -y[j][k] : off[j][k]);
            }
          }
#pragma unroll
          for (int j = 0; j < TJ; ++j) {
#pragma unroll
            for (int k = 0; k < kPart; ++k) {
              sum[i][j] = fused(kWeighted ? off[j][k] * w[k] : off[j][k], off[j][k], sum[i][j]);
            }
          }
        }
      }
    }
    stage = stage == Tile::kStages - 1 ? 0 : stage + 1;
  }
  if (!active) return;

  Acc* sums = static_cast<Acc*>(args.sums) + (split * args.batch + b) * args.nodes * args.nodes;
#pragma unroll
  for (int i = 0; i < TI; ++i) {
#pragma unroll
    for (int j = 0; j < TJ; ++j) {
      Acc total = sum[i][j];
#pragma unroll
      for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
      if (lane == (i * TJ + j) % 32 && i0 + i < args.source_end && j0 + j < args.nodes && j0 + j > i0 + i) {
        sums[(i0 + i) * args.nodes + j0 + j] = args.splits > 1 ? total : scaled_cost<Acc>(args, total, j0 + j);
      }
    }
  }
}

// Completes `cost`: +inf outside the wanted pairs and, where the dimension was split, the splits' sums added in their
// order. Grid: parts of the cost * nodes, a block a source's row.
template <typename Acc>
__global__ void __launch_bounds__(128) finish_cost(const __grid_constant__ CostArgs args, Acc* cost) {
  const int64_t i = blockIdx.x % args.nodes, row = static_cast<int64_t>(blockIdx.x) * args.nodes;
  const bool wanted = i >= args.source_begin && i < args.source_end;
  const int64_t split_stride = args.batch * args.nodes * args.nodes;
  for (int64_t j = threadIdx.x; j < args.nodes; j += blockDim.x) {
    if (!wanted || j <= i) {
      cost[row + j] = Acc(INFINITY);
    } else if (args.splits > 1) {
      double total = 0.0;
      for (int64_t s = 0; s < args.splits; ++s) total += static_cast<const Acc*>(args.sums)[s * split_stride + row + j];
      cost[row + j] = scaled_cost<Acc>(args, total, j);
    }
  }
}

}  // namespace oss_ext::cuda
