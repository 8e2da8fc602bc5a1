// screen for any GPU from sm_80 on: products of a warp (mma.sync). What is computed, and why the bounds hold:
// screen_bound.cuh.
#pragma once

#include "oss_ext/cuda/pairwise_cost.cuh"
#include "oss_ext/cuda/screen_bound.cuh"

namespace oss_ext::cuda {

// kBlocks: of 8 targets, what a run is long.
template <typename T, int P, int kBlocks>
struct ScreenTile {
  static constexpr int kBands = 4, kRun = 8 * kBlocks, kRuns = 2;  // a warp has 32 sources and a run of targets
  static constexpr int kThreads = 32 * kBands * kRuns;
  static constexpr int kSources = 32 * kBands, kTargets = kRun * kRuns;
  static constexpr int kChunk = 128 / static_cast<int>(sizeof(T));  // numbers of a row at a time: 128 bytes
  static constexpr int kQuads = kChunk / 4;
  static constexpr int kStages = 3;
  static constexpr int kRows = P * kSources + kTargets;
  static constexpr int kStageBytes = kRows * 128;
  static constexpr int kHalvesBytes = kTargets * kQuads * 16;  // per quad of a target: four high, four low halves
  static constexpr int kRowNumbers = P == 1 ? 4 : 8;  // of a source and a run: l, 1 / the way, both steps' coefficients
  static constexpr int kTableBytes = (kRuns * kSources * kRowNumbers + 2 * kTargets) * 4;
  static constexpr int kNormBytes = (kTargets + 2 * kRuns) * kQuads * 4;  // of bent targets, of the runs' ends
  static constexpr int kBytes = kStages * kStageBytes + 2 * kHalvesBytes + kTableBytes + kNormBytes;
};

// Byte of four neighbouring numbers of a row in a stage. Rows are stored so that the lanes of a quarter (four-byte
// types) or half warp meet no bank twice.
template <typename T>
__device__ __forceinline__ int quad_at(int row, int quad) {
  if constexpr (sizeof(T) == 4) {
    return row * 128 + ((quad ^ ((row & 1) << 2)) << 4);
  } else {
    return row * 128 + (((quad >> 1) ^ ((row & 3) << 1)) << 4) + ((quad & 1) << 3);
  }
}

template <typename T>
__device__ __forceinline__ void read_quad(const unsigned char* stage, int row, int quad, float (&to)[4]) {
  const auto packed = *reinterpret_cast<const Pack<T, 4>*>(stage + quad_at<T>(row, quad));
#pragma unroll
  for (int e = 0; e < 4; ++e) to[e] = widen(packed.at[e]);
}

__device__ __forceinline__ void multiply(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void copy_async_16_or_zero(void* shared, const void* global, bool wanted) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(at), "l"(global), "r"(wanted ? 16 : 0));
}

// Brings chunk after chunk of every row of the tile to shared memory, zero beyond the dimension. Rows that the tile
// does not have are left as they are: nothing of them is used. Eight neighbouring threads copy a row.
template <typename T, int P, class Tile>
class ScreenLoader {
  static constexpr int kAtOnce = Tile::kThreads / 8, kUnit = 16 / static_cast<int>(sizeof(T));

 public:
  __device__ ScreenLoader(const ScreenArgs& args, const ScreenPlace& tile, int64_t sample, int64_t number)
      : sample_(sample), number_(number + threadIdx.x % 8 * kUnit) {
    const int row = threadIdx.x / 8, swizzle = sizeof(T) == 4 ? (row & 1) << 2 : (row & 3) << 1;
    to_ = row * 128 + ((static_cast<int>(threadIdx.x % 8) ^ swizzle) << 4);
    find(args, tile);
  }

  __device__ __forceinline__ void load(const ScreenArgs& args, const ScreenPlace& tile, unsigned char* stage) {
    const int row = threadIdx.x / 8;
    const bool inside = number_ < args.dim;
#pragma unroll
    for (int p = 0; p <= P; ++p) {
      const int count = p == P ? tile.target_end - tile.target : tile.source_end - tile.source;
      const int64_t stride = p == P ? args.target_node_stride : args.node_stride[p];
#pragma unroll
      for (int m = 0; m < ((p == P ? Tile::kTargets : Tile::kSources) + kAtOnce - 1) / kAtOnce; ++m) {
        if (row + m * kAtOnce < count) {
          copy_async_16_or_zero(stage + to_ + (p * Tile::kSources + m * kAtOnce) * 128, at_[p] + m * kAtOnce * stride,
                                inside);
        }
      }
      at_[p] += Tile::kChunk;
    }
    number_ += Tile::kChunk;
    if (number_ - threadIdx.x % 8 * kUnit >= args.dim) {
      number_ = threadIdx.x % 8 * kUnit;
      ++sample_;
      find(args, tile);
    }
  }

 private:
  __device__ __forceinline__ void find(const ScreenArgs& args, const ScreenPlace& tile) {
    const int row = threadIdx.x / 8;
    const int64_t sample = min(sample_, args.batch - 1);  // beyond the last one nothing is loaded
#pragma unroll
    for (int p = 0; p < P; ++p) at_[p] = args.basis_row<T>(p, sample, tile.source + row) + number_;
    at_[P] = args.target_row<T>(sample, tile.target + row) + number_;
  }

  const T* at_[P + 1];
  int64_t sample_, number_;
  int to_;
};

// The targets of a chunk less their straight line, as halves for the tensor cores; their squares are summed on the way,
// and after them those of the line's ends.
template <typename T, int P, class Tile>
__device__ __forceinline__ void bend_targets(const unsigned char* stage, const float* share, int targets, int length,
                                             uint4* halves, float* norms) {
  constexpr int kAtOnce = Tile::kThreads / Tile::kQuads;
  const int quad = threadIdx.x % Tile::kQuads;
  const unsigned char* rows = stage + P * Tile::kSources * 128;
#pragma unroll
  for (int run = 0; run < Tile::kRuns; ++run) {
    const int first = run * length, last = min(first + length, targets) - 1;
    if (first >= targets) break;
    float line_first[4], line[4];
    read_quad<T>(rows, first, quad, line_first);
    read_quad<T>(rows, last, quad, line);
#pragma unroll
    for (int m = 0; m < (Tile::kRun + kAtOnce - 1) / kAtOnce; ++m) {
      const int row = first + threadIdx.x / Tile::kQuads + m * kAtOnce;
      if (row > last) break;
      float y[4], bent[4];
      read_quad<T>(rows, row, quad, y);
      const float l = share[row];
      float square = 0.f;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        bent[e] = y[e] - fmaf(l, line_first[e] - line[e], line[e]);
        square = fmaf(bent[e], bent[e], square);
      }
      uint4 both;
      split_pair(bent[0], bent[1], both.x, both.z);
      split_pair(bent[2], bent[3], both.y, both.w);
      halves[row * Tile::kQuads + (quad ^ ((row & 1) << 2))] = both;
      norms[row * Tile::kQuads + quad] += square;
    }
    if (threadIdx.x < Tile::kQuads) {
      float squares[2] = {};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        squares[0] = fmaf(line_first[e], line_first[e], squares[0]);
        squares[1] = fmaf(line[e], line[e], squares[1]);
      }
      norms[(Tile::kTargets + run * 2) * Tile::kQuads + quad] += squares[0];
      norms[(Tile::kTargets + run * 2 + 1) * Tile::kQuads + quad] += squares[1];
    }
  }
}

// Grid: splits * groups * tiles.
template <typename T, int P, int kBlocks>
__global__ void __launch_bounds__(ScreenTile<T, P, kBlocks>::kThreads, 1)
    screen_tiles(const __grid_constant__ ScreenArgs args) {
  using Tile = ScreenTile<T, P, kBlocks>;
  constexpr int kRuns = Tile::kRuns;
  extern __shared__ __align__(128) unsigned char shared[];
  unsigned char* stages = shared;
  uint4* halves = reinterpret_cast<uint4*>(shared + Tile::kStages * Tile::kStageBytes);
  float* norms = reinterpret_cast<float*>(halves + 2 * Tile::kHalvesBytes / 16);
  float* table = norms + Tile::kNormBytes / 4;                        // [run][source][kRowNumbers]
  float* share = table + kRuns * Tile::kSources * Tile::kRowNumbers;  // [target]
  float* way = share + Tile::kTargets;                                // [target], to the last one of the run

  const ScreenPlace tile(blockIdx.x % args.tiles, args);
  const int64_t group = blockIdx.x / args.tiles % args.groups, split = blockIdx.x / args.tiles / args.groups;
  const int64_t begin = args.chunks * split / args.splits;
  const int chunks = static_cast<int>(args.chunks * (split + 1) / args.splits - begin);
  const int sources = tile.source_end - tile.source, targets = tile.target_end - tile.target;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int band = threadIdx.x / 32 % Tile::kBands, run = threadIdx.x / 32 / Tile::kBands;  // this warp's
  const float* coefficients = args.coefficients + group * args.coefficient_stride;

  const int length = static_cast<int>(args.run);
  ScreenLoader<T, P, Tile> loader(args, tile, args.joint ? begin / args.chunks_per_sample : group,
                                  (args.joint ? begin % args.chunks_per_sample : begin) * Tile::kChunk);
  const auto load = [&](int chunk) {
    if (chunk < chunks) loader.load(args, tile, stages + chunk % Tile::kStages * Tile::kStageBytes);
    commit_copies();
  };
  load(0);
  load(1);

  for (int k = threadIdx.x; k < Tile::kNormBytes / 4; k += Tile::kThreads) norms[k] = 0.f;
  for (int k = threadIdx.x; k < targets; k += Tile::kThreads) {
    const int first = k / length * length, last = min(first + length, targets) - 1;
    const double* place = args.place + tile.target;
    const double whole = place[first] - place[last], rest = place[k] - place[last];
    way[k] = static_cast<float>(rest);
    share[k] = whole == 0.0 ? 1.f : static_cast<float>(rest / whole);
  }
  __syncthreads();
  for (int k = threadIdx.x; k < kRuns * sources; k += Tile::kThreads) {
    const int run = k / sources, row = k % sources;
    const int first = run * length, last = min(first + length, targets) - 1;
    step_numbers<P>(args, coefficients, tile.source + row, tile.target + first, tile.target + last, share + first,
                    way + first, table + (run * Tile::kSources + row) * Tile::kRowNumbers);
  }

  const int first = run * length, last = min(first + length, targets) - 1;  // this warp's targets
  const bool active = first < targets && band * 32 < sources && tile.source + band * 32 < tile.target + last;
  const bool measures = active && last == targets - 1;  // the last run has every source that an earlier one has
  float sum[kBlocks][4][4] = {};  // [block of 8 targets][r0, r1 of rows 0 to 15; of rows 16 to 31]
  float gram[4][3] = {};          // [row g, g + 8, g + 16, g + 24]: |r0|^2, <r0, r1>, |r1|^2
  float size[4][P] = {};          // |u_p|^2

  wait_copies<1>();
  __syncthreads();
  if (chunks > 0) bend_targets<T, P, Tile>(stages, share, targets, length, halves, norms);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    wait_copies<0>();
    __syncthreads();
    load(chunk + 2);
    if (chunk + 1 < chunks) {
      bend_targets<T, P, Tile>(stages + (chunk + 1) % Tile::kStages * Tile::kStageBytes, share, targets, length,
                               halves + (chunk + 1) % 2 * (Tile::kHalvesBytes / 16), norms);
    }
    const unsigned char* stage = stages + chunk % Tile::kStages * Tile::kStageBytes;
    const uint4* bent = halves + chunk % 2 * (Tile::kHalvesBytes / 16);
    if (!active) continue;
#pragma unroll 1
    for (int step = 0; step < Tile::kChunk / 16; ++step) {
      const int quad = step * 4 + q;
      unsigned high[4][4], low[4][4];
      float line[4], slope[4];
      read_quad<T>(stage, P * Tile::kSources + first, quad, slope);
      read_quad<T>(stage, P * Tile::kSources + last, quad, line);
#pragma unroll
      for (int e = 0; e < 4; ++e) slope[e] -= line[e];
#pragma unroll
      for (int h = 0; h < 4; ++h) {
        const int row = band * 32 + h * 8 + g;
        float numbers[Tile::kRowNumbers];
#pragma unroll
        for (int n = 0; n < Tile::kRowNumbers; n += 4) {
          *reinterpret_cast<float4*>(numbers + n) =
              *reinterpret_cast<const float4*>(table + (run * Tile::kSources + row) * Tile::kRowNumbers + n);
        }
        float r0[4], r1[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          r0[e] = -fmaf(numbers[0], slope[e], line[e]);
          r1[e] = -line[e];
        }
#pragma unroll
        for (int p = 0; p < P; ++p) {
          float u[4];
          read_quad<T>(stage, p * Tile::kSources + row, quad, u);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            r0[e] = fmaf(numbers[2 + p], u[e], r0[e]);
            r1[e] = fmaf(numbers[2 + P + p], u[e], r1[e]);
          }
          if (measures) {
            float square = 0.f;
#pragma unroll
            for (int e = 0; e < 4; ++e) square = fmaf(u[e], u[e], square);
            size[h][p] += square;
          }
        }
        float here[3] = {};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          here[0] = fmaf(r0[e], r0[e], here[0]);
          here[1] = fmaf(r0[e], r1[e], here[1]);
          here[2] = fmaf(r1[e], r1[e], here[2]);
        }
#pragma unroll
        for (int k = 0; k < 3; ++k) gram[h][k] += here[k];
        const int half = h / 2 * 2, at = h % 2;
        split_pair(r0[0], r0[1], high[half][at], low[half][at]);
        split_pair(r0[2], r0[3], high[half][at + 2], low[half][at + 2]);
        split_pair(r1[0], r1[1], high[half + 1][at], low[half + 1][at]);
        split_pair(r1[2], r1[3], high[half + 1][at + 2], low[half + 1][at + 2]);
      }
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const int row = first + block * 8 + g;  // beyond the last one: not used
        const uint4 y = bent[row * Tile::kQuads + (quad ^ ((row & 1) << 2))];
        // Four sums at a time, so that neighbouring products do not wait for one another.
        float products[4][4] = {};
#pragma unroll
        for (int r = 0; r < 4; ++r) multiply(products[r], low[r], y.x, y.y);  // the small ones first
#pragma unroll
        for (int r = 0; r < 4; ++r) multiply(products[r], high[r], y.z, y.w);
#pragma unroll
        for (int r = 0; r < 4; ++r) multiply(products[r], high[r], y.x, y.y);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[block][r][e] += products[r][e];
        }
      }
    }
  }

  // Norms of the bent targets and of the runs' ends, in the place of the first stage.
  wait_copies<0>();
  __syncthreads();
  float* norm = reinterpret_cast<float*>(stages);
  for (int k = threadIdx.x; k < Tile::kTargets + 2 * kRuns; k += Tile::kThreads) {
    float total = 0.f;
    for (int quad = 0; quad < Tile::kQuads; ++quad) total += norms[k * Tile::kQuads + quad];
    norm[k] = sqrtf(total);
  }
  __syncthreads();

  // Sizes of the sources, from the warps that measured them.
  float* sizes = norm + Tile::kTargets + 2 * kRuns;
  float squares[4][3];
#pragma unroll
  for (int h = 0; h < 4; ++h) {
#pragma unroll
    for (int k = 0; k < 3; ++k) squares[h][k] = over_quarter(gram[h][k]);
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const float total = over_quarter(size[h][p]);
      if (measures && q == 0) sizes[(band * 32 + h * 8 + g) * P + p] = sqrtf(total);
    }
  }
  __syncthreads();
  if (!active) return;

  const float steps = static_cast<float>(chunks * (Tile::kChunk / 16));
  const SumError error{(steps + 64.f) * 0x1p-24f, 0x1p-24f * sqrtf(static_cast<float>(chunks * Tile::kChunk))};
  const RunNorms line{norm[Tile::kTargets + run * 2], norm[Tile::kTargets + run * 2 + 1]};
  float2* bounds = reinterpret_cast<float2*>(args.bounds) + (split * args.groups + group) * args.nodes * args.nodes;
#pragma unroll
  for (int h = 0; h < 4; ++h) {
    const int row = band * 32 + h * 8 + g;
    const int64_t i = tile.source + row;
    if (row >= sources || i >= tile.target + last) continue;
    const float* numbers = table + (run * Tile::kSources + row) * Tile::kRowNumbers;
    SourceSums<P> sums{squares[h][0], squares[h][1], squares[h][2]};
#pragma unroll
    for (int p = 0; p < P; ++p) sums.size[p] = sizes[row * P + p];
    const SourceBound source(sums, line, numbers);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = first + block * 8 + q * 2 + e;
        const int64_t j = tile.target + column;
        if (column > last || j <= i) continue;
        const float w0 = way[column] * numbers[1];
        const float inner =
            fmaf(w0, sum[block][h / 2 * 2][h % 2 * 2 + e], (1.f - w0) * sum[block][h / 2 * 2 + 1][h % 2 * 2 + e]);
        bounds[j * args.nodes + i] =
            bound_cost<P>(source, sums.size, line, error, numbers, coefficients + (i * args.nodes + j) * P,
                          share[column], w0, inner, norm[column]);
      }
    }
  }
}

}  // namespace oss_ext::cuda
