// screen for compute capability 9.0: products of a warpgroup (wgmma). What is computed, and why the bounds hold:
// screen_bound.cuh.
//
// A block has a tile of up to 128 sources and two runs of targets, and goes through the dims 32 numbers, two units of
// 16, at a time. One warpgroup has the rows brought (bulk tensor copies), bends the targets and leaves them as halves
// in shared memory; each of two others makes r0 and r1 of 64 sources in registers and multiplies them with a run's bent
// targets, while those at work on the tensor cores are the ones made before.
#pragma once

#include "oss_ext/cuda/hopper.cuh"
#include "oss_ext/cuda/screen_bound.cuh"

namespace oss_ext::cuda {

constexpr int kUnit = 16;  // numbers that a product sums

template <typename T, int P, int kBlocks>
struct HopperTile {
  static constexpr int kRun = 8 * kBlocks, kRuns = 2, kTargets = kRun * kRuns;
  static constexpr int kBand = 64, kSources = 128;  // sources of a warpgroup, of a block
  static constexpr int kThreads = 3 * 128;
  static constexpr int kUnits = 2, kChunk = kUnits * kUnit;  // of a stage
  static constexpr int kRowBytes = kUnit * static_cast<int>(sizeof(T));
  static constexpr int kUnitBytes = (P * kSources + kTargets) * kRowBytes;  // [basis vector or target][row][number]
  static constexpr int kStageBytes = kUnits * kUnitBytes;
  static constexpr int kMatrixBytes = kRun * kUnit * 2;                   // of a run's halves of a unit
  static constexpr int kHalvesBytes = kUnits * kRuns * 2 * kMatrixBytes;  // [unit][run][high, low]
  static constexpr int kHalves = 2;
  static constexpr int kRowNumbers = P == 1 ? 4 : 8;
  static constexpr int kTableBytes = (kRuns * kSources * kRowNumbers + 3 * kTargets + 2 * kRuns) * 4;
  static constexpr int kNormBytes = kUnits * kRuns * (kRun + 2) * 4;
  static constexpr int kRest = kHalves * kHalvesBytes + kTableBytes + kNormBytes + 256;
  static constexpr int kMost = 227 * 1024;
  static constexpr int kStages = (kMost - kRest) / kStageBytes < 8 ? (kMost - kRest) / kStageBytes : 8;
  static constexpr int kBytes = kStages * kStageBytes + kRest;
  static_assert(kStages >= 3);
};

struct HopperArgs : ScreenArgs {
  int64_t units_per_sample;
  CUtensorMap rows[3];  // basis, then target: boxes of kUnit x the tile's rows
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <typename T>
__device__ __forceinline__ void read_four(const unsigned char* from, float (&to)[4]) {
  const auto packed = *reinterpret_cast<const Pack<T, 4>*>(from);
#pragma unroll
  for (int e = 0; e < 4; ++e) to[e] = widen(packed.at[e]);
}

// What the warpgroups share.
template <typename T, int P, class Tile>
struct HopperShared {
  unsigned char *stages, *halves;
  float* table;           // [run][source][kRowNumbers]
  float *share, *way;     // [target]: l; to the last one of the run
  float* norm;            // [target], then [run][2] of the runs' ends
  float* parts;           // [unit][run][kRun + 2]: squares that norm is made of
  uint64_t *full, *read;  // [stage]: rows have come; are not needed any more
  uint64_t *bent, *used;  // [halves]: targets are bent; are not needed any more

  __device__ explicit HopperShared(unsigned char* shared) {
    stages = shared;
    halves = stages + Tile::kStages * Tile::kStageBytes;
    table = reinterpret_cast<float*>(halves + Tile::kHalves * Tile::kHalvesBytes);
    share = table + Tile::kRuns * Tile::kSources * Tile::kRowNumbers;
    way = share + Tile::kTargets;
    norm = way + Tile::kTargets;
    parts = norm + Tile::kTargets + 2 * Tile::kRuns;
    full = reinterpret_cast<uint64_t*>(parts + Tile::kNormBytes / 4);
    read = full + Tile::kStages;
    bent = read + Tile::kStages;
    used = bent + Tile::kHalves;
  }
};

// A block's part of the work.
struct HopperPart {
  ScreenPlace tile;
  int64_t group, split, begin;
  int chunks, sources, targets, length;

  __device__ explicit HopperPart(const HopperArgs& args) : tile(blockIdx.x % args.tiles, args) {
    group = blockIdx.x / args.tiles % args.groups;
    split = blockIdx.x / args.tiles / args.groups;
    begin = args.chunks * split / args.splits;
    chunks = static_cast<int>(args.chunks * (split + 1) / args.splits - begin);
    sources = tile.source_end - tile.source;
    targets = tile.target_end - tile.target;
    length = static_cast<int>(args.run);
  }
  __device__ int first(int run) const { return run * length; }
  __device__ int last(int run) const { return min(first(run) + length, targets) - 1; }
  // The band of a warpgroup: with few sources both have the same one, and a run each.
  __device__ int band(int group) const { return sources > 64 ? group * 64 : 0; }
  __device__ bool active(int group, int run) const {
    return first(run) < targets && band(group) < sources && tile.source + band(group) < tile.target + last(run) &&
           (sources > 64 || run == group);
  }
  __device__ int warpgroups() const {
    return (active(0, 0) || active(0, 1) ? 1 : 0) + (active(1, 0) || active(1, 1) ? 1 : 0);
  }
};

template <typename T, int P, class Tile>
class HopperLoader {
 public:
  __device__ HopperLoader(const HopperArgs& args, const HopperPart& part) {
    const int64_t unit = part.begin * Tile::kUnits;
    sample_ = static_cast<int>(args.joint ? unit / args.units_per_sample : part.group);
    number_ = static_cast<int>(args.joint ? unit % args.units_per_sample : unit) * kUnit;
  }
  // One thread: the rows of the next chunk. Zero is what lies beyond the dims and the samples.
  __device__ __forceinline__ void load(const HopperArgs& args, const HopperPart& part, unsigned char* stage,
                                       uint64_t* full) {
    barrier_expect(full, Tile::kUnits * Tile::kRowBytes * static_cast<int>(P * args.tile_sources + args.tile_targets));
#pragma unroll
    for (int unit = 0; unit < Tile::kUnits; ++unit) {
#pragma unroll
      for (int p = 0; p <= P; ++p) {
        copy_box(stage + unit * Tile::kUnitBytes + p * Tile::kSources * Tile::kRowBytes, args.rows[p], number_,
                 p == P ? part.tile.target : part.tile.source, sample_, full);
      }
      number_ += kUnit;
      if (args.joint && number_ >= args.dim) {
        number_ = 0;
        ++sample_;
      }
    }
  }

 private:
  int sample_, number_;
};

// The first warpgroup. A warp has a unit of a run: lanes 4 k .. 4 k + 3 have target k of every eight.
template <typename T, int P, int kBlocks, class Tile>
__device__ __forceinline__ void bend_targets_hopper(const HopperArgs& args, const HopperPart& part,
                                                    const HopperShared<T, P, Tile>& shared,
                                                    HopperLoader<T, P, Tile>& loader) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, q = lane % 4, k = lane / 4;
  const int run = warp / Tile::kUnits, unit = warp % Tile::kUnits;
  const int first = part.first(run), last = part.last(run);
  const bool some = first <= last;
  float share[kBlocks], square[kBlocks] = {}, ends[2] = {};
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    const int row = first + block * 8 + k;
    share[block] = row <= last ? shared.share[row] : 0.f;
  }
  for (int chunk = 0; chunk < part.chunks; ++chunk) {
    const int slot = chunk % Tile::kStages, at = chunk % Tile::kHalves;
    barrier_wait(shared.full + slot, chunk / Tile::kStages % 2);
    if (chunk >= Tile::kHalves) barrier_wait(shared.used + at, (chunk / Tile::kHalves - 1) % 2);
    if (some) {
      const unsigned char* rows = shared.stages + slot * Tile::kStageBytes + unit * Tile::kUnitBytes +
                                  P * Tile::kSources * Tile::kRowBytes + q * 4 * static_cast<int>(sizeof(T));
      // This lane's row among the matrices high k < 8, high k >= 8, low k < 8, low k >= 8.
      unsigned char* to = shared.halves + at * Tile::kHalvesBytes +
                          ((unit * 2 + run) * 2 + lane / 16) * Tile::kMatrixBytes + lane / 8 % 2 * 128 + lane % 8 * 16;
      float slope[4], line[4];
      read_four<T>(rows + first * Tile::kRowBytes, slope);
      read_four<T>(rows + last * Tile::kRowBytes, line);
      float here[2] = {};  // few terms at a time, as everywhere
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        here[0] = fmaf(slope[e], slope[e], here[0]);
        here[1] = fmaf(line[e], line[e], here[1]);
        slope[e] -= line[e];
      }
      ends[0] += here[0];
      ends[1] += here[1];
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        float y[4], some_squares = 0.f;
        read_four<T>(rows + (first + block * 8 + k) * Tile::kRowBytes, y);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          y[e] -= fmaf(share[block], slope[e], line[e]);
          some_squares = fmaf(y[e], y[e], some_squares);
        }
        square[block] += some_squares;
        unsigned pairs[4];
        split_pair(y[0], y[1], pairs[0], pairs[2]);
        split_pair(y[2], y[3], pairs[1], pairs[3]);
        store_matrices(to + block * 256, pairs);
      }
    }
    fence_shared_for_engines();
    __syncwarp();
    if (lane == 0) {
      barrier_arrive(shared.bent + at);
      barrier_arrive(shared.read + slot);
    }
    // The stage that was read before this one takes the rows of the chunk after all those on their way.
    if (threadIdx.x == 0 && chunk > 0 && chunk - 1 + Tile::kStages < part.chunks) {
      const int free = (chunk - 1) % Tile::kStages;
      barrier_wait(shared.read + free, (chunk - 1) / Tile::kStages % 2);
      loader.load(args, part, shared.stages + free * Tile::kStageBytes, shared.full + free);
    }
    __syncwarp();
  }
  float* parts = shared.parts + (unit * Tile::kRuns + run) * (Tile::kRun + 2);
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    const float total = over_quarter(square[block]);
    if (q == 0) parts[block * 8 + k] = total;
  }
#pragma unroll
  for (int end = 0; end < 2; ++end) {
    const float total = over_quarter(ends[end]);
    if (lane == 0) parts[Tile::kRun + end] = total;
  }
}

// Sums of 64 sources and kSlots runs, of one thread: rows g and g + 8 of its warp's 16, two neighbouring targets of
// every eight.
template <int P, int kBlocks, int kSlots>
struct HopperSums {
  float inner[kSlots][kBlocks][4];  // <f_ij, y''>
  float gram[kSlots][2][3];
  float size[2][P];
};

// Adds the products of a chunk, with the steps' own weights of r0 and r1: those of two rows, the same ones if `even`.
template <int kBlocks>
__device__ __forceinline__ void add_products(float (&inner)[kBlocks][4], const float (&product)[2][kBlocks][4],
                                             const float* way, const float (&inverse)[2], bool even) {
  if (even) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const float2 ways = *reinterpret_cast<const float2*>(way + block * 8);
      const float w0[2] = {ways.x * inverse[0], ways.y * inverse[0]}, w1[2] = {1.f - w0[0], 1.f - w0[1]};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        inner[block][e] = fmaf(w0[e % 2], product[0][block][e], fmaf(w1[e % 2], product[1][block][e], inner[block][e]));
      }
    }
  } else {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const float2 ways = *reinterpret_cast<const float2*>(way + block * 8);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float w0 = (e % 2 ? ways.y : ways.x) * inverse[e / 2];
        inner[block][e] = fmaf(w0, product[0][block][e], fmaf(1.f - w0, product[1][block][e], inner[block][e]));
      }
    }
  }
}

template <typename T, int P, int kBlocks, int kSlots, class Tile>
__device__ __forceinline__ void multiply_sources(const HopperPart& part, const HopperShared<T, P, Tile>& shared,
                                                 int band, const int (&runs)[kSlots],
                                                 HopperSums<P, kBlocks, kSlots>& sums) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int row = band + threadIdx.x / 32 % 4 * 16 + g;
  float product[2][kBlocks][4];
  const unsigned halves = shared_address(shared.halves);
  const auto flush = [&](int slot) {
    const float* numbers = shared.table + (runs[slot] * Tile::kSources + row) * Tile::kRowNumbers;
    const float inverse[2] = {numbers[1], numbers[8 * Tile::kRowNumbers + 1]};
    add_products(sums.inner[slot], product, shared.way + runs[slot] * Tile::kRun + q * 2, inverse,
                 part.tile.source + band + Tile::kBand <= part.tile.target + part.first(runs[slot]));
  };
  for (int chunk = 0; chunk < part.chunks; ++chunk) {
    const int stage = chunk % Tile::kStages, at = chunk % Tile::kHalves;
    barrier_wait(shared.full + stage, chunk / Tile::kStages % 2);
    const unsigned char* rows = shared.stages + stage * Tile::kStageBytes + q * 4 * static_cast<int>(sizeof(T));
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const int run = runs[slot];
      const float* table = shared.table + (run * Tile::kSources + row) * Tile::kRowNumbers;
      const unsigned char* ends = rows + P * Tile::kSources * Tile::kRowBytes;
      float numbers[2][Tile::kRowNumbers];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int n = 0; n < Tile::kRowNumbers; n += 4) {
          *reinterpret_cast<float4*>(numbers[h] + n) =
              *reinterpret_cast<const float4*>(table + h * 8 * Tile::kRowNumbers + n);
        }
      }
      float gram[2][3];  // of the chunk: summed apart, so that few terms are added to large sums
#pragma unroll
      for (int unit = 0; unit < Tile::kUnits; ++unit) {
        const bool begins = unit == 0, ends_here = unit == Tile::kUnits - 1;
        float slope[4], line[4];
        read_four<T>(ends + unit * Tile::kUnitBytes + part.first(run) * Tile::kRowBytes, slope);
        read_four<T>(ends + unit * Tile::kUnitBytes + part.last(run) * Tile::kRowBytes, line);
#pragma unroll
        for (int e = 0; e < 4; ++e) slope[e] -= line[e];
        unsigned high[2][4], low[2][4];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float r0[4], r1[4];
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            r0[e] = -fmaf(numbers[h][0], slope[e], line[e]);
            r1[e] = -line[e];
          }
#pragma unroll
          for (int p = 0; p < P; ++p) {
            float u[4];
            read_four<T>(rows + unit * Tile::kUnitBytes + (p * Tile::kSources + row + h * 8) * Tile::kRowBytes, u);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              r0[e] = fmaf(numbers[h][2 + p], u[e], r0[e]);
              r1[e] = fmaf(numbers[h][2 + P + p], u[e], r1[e]);
            }
            if (slot == 0) {
#pragma unroll
              for (int e = 0; e < 4; ++e) sums.size[h][p] = fmaf(u[e], u[e], sums.size[h][p]);
            }
          }
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            gram[h][0] = begins && e == 0 ? r0[e] * r0[e] : fmaf(r0[e], r0[e], gram[h][0]);
            gram[h][1] = begins && e == 0 ? r0[e] * r1[e] : fmaf(r0[e], r1[e], gram[h][1]);
            gram[h][2] = begins && e == 0 ? r1[e] * r1[e] : fmaf(r1[e], r1[e], gram[h][2]);
          }
          if (ends_here) {
#pragma unroll
            for (int n = 0; n < 3; ++n) sums.gram[slot][h][n] += gram[h][n];
          }
          split_pair(r0[0], r0[1], high[0][h], low[0][h]);
          split_pair(r0[2], r0[3], high[0][h + 2], low[0][h + 2]);
          split_pair(r1[0], r1[1], high[1][h], low[1][h]);
          split_pair(r1[2], r1[3], high[1][h + 2], low[1][h + 2]);
        }
        if (slot == 0 && unit == 0) barrier_wait(shared.bent + at, chunk / Tile::kHalves % 2);
        products_wait();  // those of the step before
        if (unit == 0) {
          constexpr int kBefore = kSlots - 1;
          const int before = slot == 0 ? kBefore : slot - 1;
          if (slot > 0 || chunk > 0) flush(before);
          if (slot == 0 && chunk > 0 && lane == 0) barrier_arrive(shared.used + (chunk - 1) % Tile::kHalves);
        }
        const unsigned matrix = halves + at * Tile::kHalvesBytes + (unit * Tile::kRuns + run) * 2 * Tile::kMatrixBytes;
        const uint64_t y_high = matrix_at(matrix), y_low = matrix_at(matrix + Tile::kMatrixBytes);
        products_begin();
#pragma unroll
        for (int r = 0; r < 2; ++r) {  // the small ones first
          if (unit == 0) {
            multiply_wide<false>(product[r], low[r], y_high);
          } else {
            multiply_wide<true>(product[r], low[r], y_high);
          }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) multiply_wide<true>(product[r], high[r], y_low);
#pragma unroll
        for (int r = 0; r < 2; ++r) multiply_wide<true>(product[r], high[r], y_high);
        products_commit();
      }
    }
    if (lane == 0) barrier_arrive(shared.read + stage);
  }
  products_wait();
  flush(kSlots - 1);
}

// What the bounds are made of, where the stages were.
template <int P, class Tile>
struct HopperResults {
  static constexpr int kPitch = Tile::kSources + 8;
  float* inner;        // [run][target][source]
  SourceBound* bound;  // [run][source]
  float* size;         // [source][P]

  __device__ explicit HopperResults(unsigned char* shared) {
    inner = reinterpret_cast<float*>(shared);
    bound = reinterpret_cast<SourceBound*>(inner + Tile::kTargets * kPitch);
    size = reinterpret_cast<float*>(bound + Tile::kRuns * Tile::kSources);
  }
  static constexpr int kBytes =
      (Tile::kTargets * kPitch + Tile::kSources * P) * 4 + Tile::kRuns * Tile::kSources * sizeof(SourceBound);
};

template <typename T, int P, int kBlocks, int kSlots, class Tile>
__device__ __forceinline__ void leave_sums(const HopperPart& part, const HopperShared<T, P, Tile>& shared,
                                           const HopperResults<P, Tile>& results, int band, const int (&runs)[kSlots],
                                           const HopperSums<P, kBlocks, kSlots>& sums) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = band + threadIdx.x / 32 % 4 * 16 + g + h * 8;
    SourceSums<P> source;
#pragma unroll
    for (int p = 0; p < P; ++p) {
      // Summed term by term, eight a chunk: enlarged by what that may have lost.
      source.size[p] = root(over_quarter(sums.size[h][p])) * (1.f + (part.chunks * 4.f + 16.f) * 0x1p-23f);
      if (q == 0) results.size[row * P + p] = source.size[p];
    }
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const int run = runs[slot];
      source.r00 = over_quarter(sums.gram[slot][h][0]);
      source.r01 = over_quarter(sums.gram[slot][h][1]);
      source.r11 = over_quarter(sums.gram[slot][h][2]);
      const RunNorms line{shared.norm[Tile::kTargets + run * 2], shared.norm[Tile::kTargets + run * 2 + 1]};
      const float* numbers = shared.table + (run * Tile::kSources + row) * Tile::kRowNumbers;
      if (q == 0) results.bound[run * Tile::kSources + row] = SourceBound(source, line, numbers);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          results.inner[(run * Tile::kRun + block * 8 + q * 2 + e) * results.kPitch + row] =
              sums.inner[slot][block][h * 2 + e];
        }
      }
    }
  }
}

// All threads: a warp has eight sources and four targets, whole sectors of bounds and of coefficients.
template <typename T, int P, class Tile>
__device__ __forceinline__ void write_bounds(const HopperArgs& args, const HopperPart& part,
                                             const HopperShared<T, P, Tile>& shared,
                                             const HopperResults<P, Tile>& results) {
  const float* coefficients = args.coefficients + part.group * args.coefficient_stride;
  // Terms of one float sum: two a chunk at most; 136: the four sums of tensor cores a chunk whose addends are not
  // small.
  const float terms = 2.f * static_cast<float>(part.chunks);
  const SumError error{(terms + 64.f + 136.f) * 0x1p-24f,
                       0x1p-24f * sqrtf(static_cast<float>(part.chunks) * Tile::kChunk)};
  float2* bounds =
      reinterpret_cast<float2*>(args.bounds) + (part.split * args.groups + part.group) * args.nodes * args.nodes;
  const int bands = (part.sources + 7) / 8, lane = threadIdx.x % 32;
  constexpr int kWarps = Tile::kThreads / 32, kAtOnce = 4;  // pairs of a thread, whose coefficients come together
  const int columns_on = kWarps / bands * 4, bands_on = kWarps % bands;
  int column = threadIdx.x / 32 / bands * 4 + lane / 8, at = threadIdx.x / 32 % bands;
  while (column < part.targets) {
    int columns[kAtOnce], rows[kAtOnce];
    float c[kAtOnce][P];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int row = at * 8 + lane % 8;
      const int64_t i = part.tile.source + row, j = part.tile.target + column;
      const bool wanted = row < part.sources && column < part.targets && j > i;
      columns[k] = wanted ? column : -1;
      rows[k] = row;
#pragma unroll
      for (int p = 0; p < P; ++p) c[k][p] = wanted ? coefficients[(i * args.nodes + j) * P + p] : 0.f;
      column += columns_on;
      at += bands_on;
      if (at >= bands) {
        at -= bands;
        column += 4;
      }
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (columns[k] < 0) continue;
      const int row = rows[k], run = columns[k] >= part.length ? 1 : 0;
      const int within = columns[k] + run * (Tile::kRun - part.length);
      const float* numbers = shared.table + (run * Tile::kSources + row) * Tile::kRowNumbers;
      const RunNorms line{shared.norm[Tile::kTargets + run * 2], shared.norm[Tile::kTargets + run * 2 + 1]};
      bounds[(part.tile.target + columns[k]) * args.nodes + part.tile.source + row] =
          bound_cost<P>(results.bound[run * Tile::kSources + row], results.size + row * P, line, error, numbers, c[k],
                        shared.share[columns[k]], shared.way[within] * numbers[1],
                        results.inner[within * results.kPitch + row], shared.norm[within]);
    }
  }
}

#endif

// Grid: splits * groups * tiles.
template <typename T, int P, int kBlocks>
__global__ void __launch_bounds__(HopperTile<T, P, kBlocks>::kThreads, 1)
    screen_tiles_hopper(const __grid_constant__ HopperArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Tile = HopperTile<T, P, kBlocks>;
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  const HopperShared<T, P, Tile> shared(shared_bytes);
  const HopperPart part(args);
  HopperLoader<T, P, Tile> loader(args, part);
  if (threadIdx.x == 0) {
    const int warps = 4 * part.warpgroups();
    for (int k = 0; k < Tile::kStages; ++k) {
      barrier_init(shared.full + k, 1);
      barrier_init(shared.read + k, 4 + warps);
    }
    for (int k = 0; k < Tile::kHalves; ++k) {
      barrier_init(shared.bent + k, 4);
      barrier_init(shared.used + k, warps);
    }
    fence_shared_for_engines();
    for (int k = 0; k < min(Tile::kStages, part.chunks); ++k) {
      loader.load(args, part, shared.stages + k * Tile::kStageBytes, shared.full + k);
    }
  }

  // `way` is laid out by run, as the products are.
  for (int k = threadIdx.x; k < part.targets; k += Tile::kThreads) {
    const int run = k / part.length, first = part.first(run), last = part.last(run);
    const double* place = args.place + part.tile.target;
    const double whole = place[first] - place[last], rest = place[k] - place[last];
    shared.way[run * Tile::kRun + k - first] = static_cast<float>(rest);
    shared.share[k] = whole == 0.0 ? 1.f : static_cast<float>(rest / whole);
  }
  __syncthreads();
  const float* coefficients = args.coefficients + part.group * args.coefficient_stride;
  for (int k = threadIdx.x; k < Tile::kRuns * Tile::kSources; k += Tile::kThreads) {
    const int run = k / Tile::kSources, row = k % Tile::kSources, first = part.first(run), last = part.last(run);
    float* numbers = shared.table + k * Tile::kRowNumbers;
    if (row < part.sources) {
      step_numbers<P>(args, coefficients, part.tile.source + row, part.tile.target + first, part.tile.target + last,
                      shared.share + first, shared.way + run * Tile::kRun, numbers);
    } else {
      for (int n = 0; n < Tile::kRowNumbers; ++n) numbers[n] = 0.f;
    }
  }
  __syncthreads();

  // Each role as one branch to its end: the registers ask for it. Norms are made between sums and bounds.
  const HopperResults<P, Tile> results(shared.stages);
  static_assert(results.kBytes <= Tile::kStages * Tile::kStageBytes);
  const auto make_norms = [&] {
    __syncthreads();
    for (int k = threadIdx.x; k < Tile::kRuns * (Tile::kRun + 2); k += Tile::kThreads) {
      const int run = k / (Tile::kRun + 2), within = k % (Tile::kRun + 2);
      float total = 0.f;
#pragma unroll
      for (int unit = 0; unit < Tile::kUnits; ++unit) {
        total += shared.parts[(unit * Tile::kRuns + run) * (Tile::kRun + 2) + within];
      }
      shared.norm[within < Tile::kRun ? run * Tile::kRun + within : Tile::kTargets + run * 2 + within - Tile::kRun] =
          root(total);
    }
    __syncthreads();
  };
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0) - 1;  // known to be uniform
  if (warpgroup < 0) {
    give_registers<56>();
    bend_targets_hopper<T, P, kBlocks>(args, part, shared, loader);
    make_norms();
  } else {
    take_registers<224>();
    const int band = part.band(warpgroup);
    const bool some[2] = {part.active(warpgroup, 0), part.active(warpgroup, 1)};
    if (some[0] && some[1]) {
      const int runs[2] = {0, 1};
      HopperSums<P, kBlocks, 2> sums{};
      multiply_sources<T, P, kBlocks, 2>(part, shared, band, runs, sums);
      make_norms();
      leave_sums<T, P, kBlocks, 2>(part, shared, results, band, runs, sums);
    } else if (some[0] || some[1]) {
      const int runs[1] = {some[0] ? 0 : 1};
      HopperSums<P, kBlocks, 1> sums{};
      multiply_sources<T, P, kBlocks, 1>(part, shared, band, runs, sums);
      make_norms();
      leave_sums<T, P, kBlocks, 1>(part, shared, results, band, runs, sums);
    } else {
      make_norms();
    }
  }
  __syncthreads();
  write_bounds<T, P>(args, part, shared, results);
#endif
}

}  // namespace oss_ext::cuda
