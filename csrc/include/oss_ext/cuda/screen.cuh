// Bounds of the costs of all steps i -> j from half-precision tensor cores.
//
// With y_f and y_l the targets at both ends of a run of targets, and l_j the share of the way from y_l to y_f that j has
// by its place, a residual is cut into
//     z_ij - y_j = f_ij - y''_j,    y''_j = y_j - (l_j y_f + (1 - l_j) y_l),    f_ij = w_ij r0_i + (1 - w_ij) r1_i + ...
// where r0_i and r1_i are what the steps of i to two targets of the run miss the straight line by. All three are small
// where steps are good, so that nothing cancels in
//     |z_ij - y_j|^2 = |f_ij|^2 - 2 <f_ij, y''_j> + |y''_j|^2.
// The products <r, y''> come from tensor cores, each number as the sum of two halves (22 bits). For a step whose
// coefficients are affine in the place (Euler's are), f_ij is those two terms alone; what is left of others, |...|, goes
// into the bound.
//
// The bound. Let n_f = |w r0| + |(1 - w) r1| and n_y = |y''|. A float sum of n terms is off by at most n 2^-24 of the sum
// of their sizes, and a tensor core's sum of 16 products and one addend, whose addends may be cut at the largest one's
// 24 bits, by 17 x 2^-23; |sum a b| <= |a| |b| then gives at most kappa (n_f + n_y)^2 in all. The vectors themselves are
// off by roundings of their terms, and by what is left out, E in norm: |norm' - norm| <= E. Non-finite: no bound.
#pragma once

#include "oss_ext/best_step.h"
#include "oss_ext/cuda/pairwise_cost.cuh"

namespace oss_ext::cuda {

struct ScreenArgs : RowArgs {
  const float* coefficients;
  int64_t coefficient_stride;
  const double* place;
  int64_t source_begin, source_end;
  int64_t groups, tiles, splits;
  int64_t tile_sources, tile_targets;  // at most ScreenTile's, multiples of 16 and 8
  int64_t chunks_per_sample, chunks;   // chunks: of a group
  bool joint;
  float* bounds;
};

template <typename T, int P>
struct ScreenTile {
  static constexpr int kWarps = 8, kThreads = 32 * kWarps;
  static constexpr int kSources = 16 * kWarps, kRun = 64, kRuns = 2, kTargets = kRun * kRuns;
  static constexpr int kChunk = 128 / static_cast<int>(sizeof(T));  // numbers of a row at a time: 128 bytes
  static constexpr int kQuads = kChunk / 4;
  static constexpr int kStages = 3;
  static constexpr int kRows = P * kSources + kTargets;
  static constexpr int kStageBytes = kRows * 128;
  static constexpr int kHalvesBytes = kTargets * kQuads * 16;  // per quad of a target: four high, four low halves
  static constexpr int kRowNumbers = 2 * P + 2;  // of a source and a run: both steps' coefficients, l, 1 / the way
  static constexpr int kTableBytes = (kRuns * kSources * kRowNumbers + 2 * kTargets) * 4;
  static constexpr int kNormBytes = (kTargets + 2 * kRuns) * kQuads * 4;  // of bent targets, of the runs' ends
  static constexpr int kBytes = kStages * kStageBytes + 2 * kHalvesBytes + kTableBytes + kNormBytes;
};

// Where tile `index` of the upper triangle is: columns of targets, each with its sources from the first on.
struct ScreenPlace {
  int64_t source, source_end, target, target_end;  // half open

  static __host__ __device__ int64_t bands(int64_t begin, int64_t end, int64_t last, int64_t height) {
    const int64_t some = (end < last ? end : last) - begin;  // sources below the last target
    return some > 0 ? (some + height - 1) / height : 0;
  }
  static int64_t count(int64_t begin, int64_t end, int64_t nodes, int64_t height, int64_t width) {
    int64_t total = 0;
    for (int64_t j = 1; j < nodes; j += width) {
      total += bands(begin, end, (j + width < nodes ? j + width : nodes) - 1, height);
    }
    return total;
  }
  __device__ ScreenPlace(int64_t index, const ScreenArgs& args) {
    target = 1;
    for (;; target += args.tile_targets) {
      target_end = min(target + args.tile_targets, args.nodes);
      const int64_t here = bands(args.source_begin, args.source_end, target_end - 1, args.tile_sources);
      if (index < here) break;
      index -= here;
    }
    source = args.source_begin + index * args.tile_sources;
    source_end = min(min(source + args.tile_sources, args.source_end), target_end - 1);
  }
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

__device__ __forceinline__ unsigned half_bits(__half2 x) { return *reinterpret_cast<unsigned*>(&x); }

// Two numbers as high and low halves: 22 bits of each.
__device__ __forceinline__ void split_pair(float a, float b, unsigned& high, unsigned& low) {
  const __half2 h = __floats2half2_rn(a, b);
  const float2 back = __half22float2(h);
  high = half_bits(h);
  low = half_bits(__floats2half2_rn(a - back.x, b - back.y));
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

// One chunk of every row of the tile, zero beyond the dimension. Rows that the tile does not have are left as they are:
// nothing of them is used.
template <typename T, int P>
__device__ __forceinline__ void load_screen_chunk(const ScreenArgs& args, const ScreenPlace& tile, int64_t sample,
                                                  int64_t first, unsigned char* stage) {
  using Tile = ScreenTile<T, P>;
  constexpr int kUnit = 16 / static_cast<int>(sizeof(T)), kAtOnce = Tile::kThreads / 8;
  const int unit = threadIdx.x % 8, row0 = threadIdx.x / 8;
  const int swizzle = sizeof(T) == 4 ? (row0 & 1) << 2 : (row0 & 3) << 1;
  unsigned char* to = stage + row0 * 128 + ((unit ^ swizzle) << 4);
  const int64_t d = first + unit * kUnit;
  const bool inside = d < args.dim;
  const int sources = static_cast<int>(tile.source_end - tile.source);
  const int targets = static_cast<int>(tile.target_end - tile.target);
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const T* from = args.basis_row<T>(p, sample, tile.source + row0) + (inside ? d : 0);
#pragma unroll
    for (int m = 0; m < Tile::kSources / kAtOnce; ++m) {
      if (row0 + m * kAtOnce < sources) {
        copy_async_16_or_zero(to + (p * Tile::kSources + m * kAtOnce) * 128, from + m * kAtOnce * args.node_stride[p],
                              inside);
      }
    }
  }
  const T* from = args.target_row<T>(sample, tile.target + row0) + (inside ? d : 0);
#pragma unroll
  for (int m = 0; m < Tile::kTargets / kAtOnce; ++m) {
    if (row0 + m * kAtOnce < targets) {
      copy_async_16_or_zero(to + (P * Tile::kSources + m * kAtOnce) * 128, from + m * kAtOnce * args.target_node_stride,
                            inside);
    }
  }
}

// The targets of a chunk less their straight line, as halves for the tensor cores; their squares are summed on the way,
// and after them those of the line's ends.
template <typename T, int P>
__device__ __forceinline__ void bend_targets(const unsigned char* stage, const float* share, int targets, uint4* halves,
                                             float* norms) {
  using Tile = ScreenTile<T, P>;
  constexpr int kAtOnce = Tile::kThreads / Tile::kQuads;
  const int quad = threadIdx.x % Tile::kQuads;
  const unsigned char* rows = stage + P * Tile::kSources * 128;
#pragma unroll
  for (int run = 0; run < Tile::kRuns; ++run) {
    const int first = run * Tile::kRun, last = min(first + Tile::kRun, targets) - 1;
    if (first >= targets) break;
    float line_first[4], line[4];
    read_quad<T>(rows, first, quad, line_first);
    read_quad<T>(rows, last, quad, line);
#pragma unroll
    for (int m = 0; m < Tile::kRun / kAtOnce; ++m) {
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

__device__ __forceinline__ float over_quarter(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Grid: splits * groups * tiles.
template <typename T, int P>
__global__ void __launch_bounds__(ScreenTile<T, P>::kThreads, 1)
    screen_tiles(const __grid_constant__ ScreenArgs args) {
  using Tile = ScreenTile<T, P>;
  constexpr int kRuns = Tile::kRuns, kBlocks = Tile::kRun / 8;
  extern __shared__ __align__(128) unsigned char shared[];
  unsigned char* stages = shared;
  uint4* halves = reinterpret_cast<uint4*>(shared + Tile::kStages * Tile::kStageBytes);
  float* norms = reinterpret_cast<float*>(halves + 2 * Tile::kHalvesBytes / 16);
  float* table = norms + Tile::kNormBytes / 4;                        // [run][source][kRowNumbers]
  float* share = table + kRuns * Tile::kSources * Tile::kRowNumbers;  // [target]
  float* way = share + Tile::kTargets;                                // [target], to the last one of the run

  const ScreenPlace tile(blockIdx.x % args.tiles, args);
  const int64_t group = blockIdx.x / args.tiles % args.groups, split = blockIdx.x / args.tiles / args.groups;
  const int64_t begin = args.chunks * split / args.splits, end = args.chunks * (split + 1) / args.splits;
  const int sources = static_cast<int>(tile.source_end - tile.source);
  const int targets = static_cast<int>(tile.target_end - tile.target);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const float* coefficients = args.coefficients + group * args.coefficient_stride;

  const auto load = [&](int64_t chunk) {
    if (chunk < end) {
      const int64_t sample = args.joint ? chunk / args.chunks_per_sample : group;
      const int64_t first = (args.joint ? chunk % args.chunks_per_sample : chunk) * Tile::kChunk;
      load_screen_chunk<T, P>(args, tile, sample, first, stages + (chunk - begin) % Tile::kStages * Tile::kStageBytes);
    }
    commit_copies();
  };
  load(begin);
  load(begin + 1);

  for (int k = threadIdx.x; k < Tile::kNormBytes / 4; k += Tile::kThreads) norms[k] = 0.f;
  for (int k = threadIdx.x; k < targets; k += Tile::kThreads) {
    const int first = k / Tile::kRun * Tile::kRun, last = min(first + Tile::kRun, targets) - 1;
    const double* place = args.place + tile.target;
    const double whole = place[first] - place[last], rest = place[k] - place[last];
    way[k] = static_cast<float>(rest);
    share[k] = whole == 0.0 ? 1.f : static_cast<float>(rest / whole);
  }
  __syncthreads();
  for (int k = threadIdx.x; k < kRuns * sources; k += Tile::kThreads) {
    const int run = k / sources, row = k % sources;
    const int first = run * Tile::kRun, last = min(first + Tile::kRun, targets) - 1;
    const int64_t i = tile.source + row;
    float* numbers = table + (run * Tile::kSources + row) * Tile::kRowNumbers;
    const bool wanted = first < targets && i < tile.target + last;
    const int64_t far = tile.target + last, near = max(tile.target + first, min(i + 1, far));
#pragma unroll
    for (int p = 0; p < P; ++p) {
      numbers[p] = wanted ? coefficients[(i * args.nodes + near) * P + p] : 0.f;
      numbers[P + p] = wanted ? coefficients[(i * args.nodes + far) * P + p] : 0.f;
    }
    const float whole = wanted ? way[near - tile.target] : 0.f;
    numbers[2 * P] = wanted ? share[near - tile.target] : 0.f;
    numbers[2 * P + 1] = whole == 0.f ? 0.f : 1.f / whole;
  }

  float sum[kRuns][kBlocks][2][4] = {};  // [run][block of 8 targets][r0, r1]
  float gram[kRuns][2][3] = {};          // [run][row g, g + 8]: |r0|^2, <r0, r1>, |r1|^2
  float size[2][P] = {};                 // |u_p|^2
  bool active[kRuns];
#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
    const int last = min((run + 1) * Tile::kRun, targets) - 1;
    active[run] = run * Tile::kRun < targets && warp * 16 < sources && tile.source + warp * 16 < tile.target + last;
  }
  const bool second = targets > Tile::kRun;

  wait_copies<1>();
  __syncthreads();
  if (begin < end) bend_targets<T, P>(stages, share, targets, halves, norms);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    wait_copies<0>();
    __syncthreads();
    load(chunk + 2);
    const int at = static_cast<int>((chunk - begin) % Tile::kStages);
    const unsigned char* stage = stages + at * Tile::kStageBytes;
    if (chunk + 1 < end) {
      const int next = at + 1 == Tile::kStages ? 0 : at + 1;
      bend_targets<T, P>(stages + next * Tile::kStageBytes, share, targets,
                         halves + (chunk + 1 - begin) % 2 * (Tile::kHalvesBytes / 16), norms);
    }
    const uint4* bent = halves + (chunk - begin) % 2 * (Tile::kHalvesBytes / 16);
#pragma unroll
    for (int part = 0; part < Tile::kChunk / 32; ++part) {
#pragma unroll
      for (int run = 0; run < kRuns; ++run) {
        if (!active[run]) continue;
        const int first = run * Tile::kRun, last = min(first + Tile::kRun, targets) - 1;
        unsigned high[2][2][4], low[2][2][4];  // [step of 16 numbers][r0, r1]
        float here[2][3] = {}, sizes[2][P] = {};
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int quad = (part * 2 + k) * 4 + q;
          float slope[4], line[4];
          read_quad<T>(stage, P * Tile::kSources + first, quad, slope);
          read_quad<T>(stage, P * Tile::kSources + last, quad, line);
#pragma unroll
          for (int e = 0; e < 4; ++e) slope[e] -= line[e];
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int row = warp * 16 + h * 8 + g;
            const float* numbers = table + (run * Tile::kSources + row) * Tile::kRowNumbers;
            float r0[4], r1[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              r0[e] = -fmaf(numbers[2 * P], slope[e], line[e]);
              r1[e] = -line[e];
            }
#pragma unroll
            for (int p = 0; p < P; ++p) {
              float u[4];
              read_quad<T>(stage, p * Tile::kSources + row, quad, u);
#pragma unroll
              for (int e = 0; e < 4; ++e) {
                r0[e] = fmaf(numbers[p], u[e], r0[e]);
                r1[e] = fmaf(numbers[P + p], u[e], r1[e]);
                if (run == kRuns - 1 || !second) sizes[h][p] = fmaf(u[e], u[e], sizes[h][p]);
              }
            }
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              here[h][0] = fmaf(r0[e], r0[e], here[h][0]);
              here[h][1] = fmaf(r0[e], r1[e], here[h][1]);
              here[h][2] = fmaf(r1[e], r1[e], here[h][2]);
            }
            split_pair(r0[0], r0[1], high[k][0][h], low[k][0][h]);
            split_pair(r0[2], r0[3], high[k][0][h + 2], low[k][0][h + 2]);
            split_pair(r1[0], r1[1], high[k][1][h], low[k][1][h]);
            split_pair(r1[2], r1[3], high[k][1][h + 2], low[k][1][h + 2]);
          }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
          for (int k = 0; k < 3; ++k) gram[run][h][k] += here[h][k];
#pragma unroll
          for (int p = 0; p < P; ++p) size[h][p] += sizes[h][p];
        }
#pragma unroll
        for (int pair = 0; pair < kBlocks; pair += 2) {
          if (first + pair * 8 > last) break;
          // Four sums at a time, so that neighbouring products do not wait for one another. The second block may lie
          // beyond the targets: what it is computed from is not used.
          uint4 b[2][2];  // [block][step of 16 numbers]
#pragma unroll
          for (int block = 0; block < 2; ++block) {
            const int row = first + (pair + block) * 8 + g;
#pragma unroll
            for (int k = 0; k < 2; ++k) {
              b[block][k] = bent[row * Tile::kQuads + (((part * 2 + k) * 4 + q) ^ ((row & 1) << 2))];
            }
          }
          float products[2][2][4] = {};
#pragma unroll
          for (int step = 0; step < 6; ++step) {  // the small ones first
            const int k = step % 2;
#pragma unroll
            for (int block = 0; block < 2; ++block) {
              const uint4& y = b[block][k];
#pragma unroll
              for (int r = 0; r < 2; ++r) {
                if (step < 2) {
                  multiply(products[block][r], low[k][r], y.x, y.y);
                } else if (step < 4) {
                  multiply(products[block][r], high[k][r], y.z, y.w);
                } else {
                  multiply(products[block][r], high[k][r], y.x, y.y);
                }
              }
            }
          }
#pragma unroll
          for (int block = 0; block < 2; ++block) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
#pragma unroll
              for (int e = 0; e < 4; ++e) sum[run][pair + block][r][e] += products[block][r][e];
            }
          }
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

  constexpr float kUlp = 0x1p-24f;
  const float flushes = static_cast<float>((end - begin) * (Tile::kChunk / 32));
  const float kappa = (flushes + 128.f) * kUlp;
  const float halves_lost = 0x1p-24f * sqrtf(static_cast<float>((end - begin) * Tile::kChunk));
  float2* bounds = reinterpret_cast<float2*>(args.bounds) + (split * args.groups + group) * args.nodes * args.nodes;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int p = 0; p < P; ++p) size[h][p] = sqrtf(over_quarter(size[h][p]));
  }
#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
    if (!active[run]) continue;
    const int first = run * Tile::kRun, last = min(first + Tile::kRun, targets) - 1;
    const float norm_first = norm[Tile::kTargets + run * 2], norm_last = norm[Tile::kTargets + run * 2 + 1];
    const float line_size = norm_first + norm_last;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float r00 = over_quarter(gram[run][h][0]), r01 = over_quarter(gram[run][h][1]),
                  r11 = over_quarter(gram[run][h][2]);
      const int row = warp * 16 + h * 8 + g;
      const int64_t i = tile.source + row;
      if (row >= sources || i >= tile.target + last) continue;
      const float* numbers = table + (run * Tile::kSources + row) * Tile::kRowNumbers;
      float off0 = line_size, off1 = line_size;  // what r0 and r1 are rounded by
#pragma unroll
      for (int p = 0; p < P; ++p) {
        off0 += fabsf(numbers[p]) * size[h][p];
        off1 += fabsf(numbers[P + p]) * size[h][p];
      }
      off0 *= (P + 4) * kUlp;
      off1 *= (P + 4) * kUlp;
      const float norm0 = sqrtf(r00), norm1 = sqrtf(r11);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = first + block * 8 + q * 2 + e;
          const int64_t j = tile.target + column;
          if (column > last || j <= i) continue;
          const float w0 = way[column] * numbers[2 * P + 1], w1 = 1.f - w0;
          const float x0 = sum[run][block][0][h * 2 + e], x1 = sum[run][block][1][h * 2 + e];
          const float y = norm[column];
          const float cost = fmaf(w0 * w0, r00, fmaf(2.f * w0 * w1, r01, w1 * w1 * r11)) -
                             2.f * fmaf(w0, x0, w1 * x1) + y * y;
          const float f = fabsf(w0) * norm0 + fabsf(w1) * norm1;
          const float spread =
              kappa * (f + y) * (f + y) + 2.f * halves_lost * (f + (fabsf(w0) + fabsf(w1)) * y);
          float off = fabsf(w0) * off0 + fabsf(w1) * off1 + 4.f * kUlp * (y + 2.f * line_size);
          const float along = fabsf(fmaf(w0, numbers[2 * P], -share[column]));
          off += along * norm_first + (along + kUlp) * norm_last;
          const float* c = coefficients + (i * args.nodes + j) * P;
#pragma unroll
          for (int p = 0; p < P; ++p) {
            const float left = fabsf(fmaf(w0, numbers[p], fmaf(w1, numbers[P + p], -c[p])));
            off += (left + kUlp * fabsf(w0 * numbers[p])) * size[h][p];
          }
          off *= 1.0001f;
          const float low = fmaxf(sqrtf(fmaxf(cost - spread, 0.f)) - off, 0.f);
          const float high = sqrtf(fmaxf(cost + spread, 0.f)) + off;
          float2 pair{low * low * (1.f - 0x1p-20f), high * high * (1.f + 0x1p-20f)};
          if (!isfinite(cost) || !isfinite(pair.y)) pair = {0.f, INFINITY};
          bounds[j * args.nodes + i] = pair;
        }
      }
    }
  }
}

}  // namespace oss_ext::cuda
