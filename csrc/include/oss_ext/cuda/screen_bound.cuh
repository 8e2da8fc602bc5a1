// Bounds of the costs of all steps i -> j from half-precision tensor cores.
//
// With y_f and y_l the targets at both ends of a run of targets, and l_j the share of the way from y_l to y_f that j
// has by its place, a residual is cut into
//     z_ij - y_j = f_ij - y''_j,    y''_j = y_j - (l_j y_f + (1 - l_j) y_l),    f_ij = w_ij r0_i + (1 - w_ij) r1_i +
//     ...
// where r0_i and r1_i are what the steps of i to two targets of the run miss the straight line by. All three are small
// where steps are good, so that nothing cancels in
//     |z_ij - y_j|^2 = |f_ij|^2 - 2 <f_ij, y''_j> + |y''_j|^2.
// The products <r, y''> come from tensor cores, each number as the sum of two halves (22 bits). For a step whose
// coefficients are affine in the place (Euler's are), f_ij is those two terms alone; what is left of others, |...|,
// goes into the bound.
//
// The bound. Let n_f = |w r0| + |(1 - w) r1| and n_y = |y''|. A float sum of n terms is off by at most n 2^-24 of the
// sum of their sizes, and a tensor core's sum of 16 products and one addend, whose addends may be cut at the largest
// one's 24 bits, by 17 x 2^-23; |sum a b| <= |a| |b| then gives at most kappa (n_f + n_y)^2 in all. The vectors
// themselves are off by roundings of their terms, and by what is left out, E in norm: |norm' - norm| <= E. Non-finite:
// no bound.
//
// Tensor cores add up a few such sums before floats do: s of them in a row are off by s 17 x 2^-23 of |a| |b| of those
// numbers, and Cauchy-Schwarz over the parts gives the same for the whole. Sums whose addends are all products of a low
// half, at most 2^-10 of the others, do not count. kappa is 2^-24 times the terms of the longest float sum, the tensor
// cores' 34 s, and 64 for all that does not grow: weights, sums over lanes, roots (2^-22 each).
#pragma once

#include "oss_ext/best_step.h"
#include "oss_ext/cuda/common.cuh"

namespace oss_ext::cuda {

struct ScreenArgs : RowArgs {
  const float* coefficients;
  int64_t coefficient_stride;
  const double* place;
  int64_t source_begin, source_end;
  int64_t groups, tiles, splits;
  int64_t tile_sources, tile_targets;  // at most ScreenTile's
  int64_t run;                         // targets of a run, at most ScreenTile's
  int64_t chunks_per_sample, chunks;   // chunks: of a group
  bool joint;
  float* bounds;
};

// Where tile `index` of the upper triangle is: columns of targets, each with its sources from the first on.
struct ScreenPlace {
  int source, source_end, target, target_end;  // half open

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
    int64_t j = 1, here;
    while (index >= (here = bands(args.source_begin, args.source_end, min(j + args.tile_targets, args.nodes) - 1,
                                  args.tile_sources))) {
      index -= here;
      j += args.tile_targets;
    }
    target = static_cast<int>(j);
    target_end = static_cast<int>(min(j + args.tile_targets, args.nodes));
    source = static_cast<int>(args.source_begin + index * args.tile_sources);
    source_end = static_cast<int>(min(min(source + args.tile_sources, args.source_end), int64_t{target_end} - 1));
  }
};

__device__ __forceinline__ unsigned half_bits(__half2 x) { return *reinterpret_cast<unsigned*>(&x); }

// Two numbers as high and low halves: 22 bits of each.
__device__ __forceinline__ void split_pair(float a, float b, unsigned& high, unsigned& low) {
  const __half2 h = __floats2half2_rn(a, b);
  const float2 back = __half22float2(h);
  high = half_bits(h);
  low = half_bits(__floats2half2_rn(a - back.x, b - back.y));
}

__device__ __forceinline__ float over_quarter(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// A step's part in a run: the first target of the run that it can lead to and the last one.
//   numbers: [0] l of the near one, [1] 1 / the way between them, [2, 2 + P) the coefficients of the step to the near
//   one, [2 + P, 2 + 2 P) to the far one
template <int P>
__device__ __forceinline__ void step_numbers(const ScreenArgs& args, const float* coefficients, int64_t i,
                                             int64_t first, int64_t last, const float* share, const float* way,
                                             float* numbers) {
  const bool wanted = first <= last && i < last;
  const int64_t near = max(first, min(i + 1, last));
#pragma unroll
  for (int p = 0; p < P; ++p) {
    numbers[2 + p] = wanted ? coefficients[(i * args.nodes + near) * P + p] : 0.f;
    numbers[2 + P + p] = wanted ? coefficients[(i * args.nodes + last) * P + p] : 0.f;
  }
  const float whole = wanted ? way[near - first] : 0.f;
  numbers[0] = wanted ? share[near - first] : 0.f;
  numbers[1] = whole == 0.f ? 0.f : 1.f / whole;
}

// Sums over the dims for a source and a run.
template <int P>
struct SourceSums {
  float r00, r01, r11;  // |r0|^2, <r0, r1>, |r1|^2
  float size[P];        // |u_p|
};
struct RunNorms {
  float first, last;  // of the targets at its ends
};
struct SumError {
  float kappa, halves_lost;
};

__device__ __forceinline__ float root(float x) {  // within 2^-22
  float y;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// What the bounds of all steps of a source to a run have in common.
struct SourceBound {
  float r00, r01, r11, norm0, norm1, off0, off1;  // off: what r0 and r1 are rounded by

  SourceBound() = default;
  template <int P>
  __device__ __forceinline__ SourceBound(const SourceSums<P>& sums, const RunNorms& line, const float* numbers)
      : r00(sums.r00), r01(sums.r01), r11(sums.r11), norm0(root(r00)), norm1(root(r11)) {
    constexpr float kRounding = (P + 4) * 0x1p-24f;
    off0 = off1 = line.first + line.last;
#pragma unroll
    for (int p = 0; p < P; ++p) {
      off0 += fabsf(numbers[2 + p]) * sums.size[p];
      off1 += fabsf(numbers[2 + P + p]) * sums.size[p];
    }
    off0 *= kRounding;
    off1 *= kRounding;
  }
};

// Bounds of |z_ij - y_j|^2. `inner` is <f_ij, y''>, w0 r0's weight, y = |y''|, c the coefficients of the step itself.
template <int P>
__device__ __forceinline__ float2 bound_cost(const SourceBound& source, const float* size, const RunNorms& line,
                                             const SumError& error, const float* numbers, const float* c, float share,
                                             float w0, float inner, float y) {
  constexpr float kUlp = 0x1p-24f;
  const float w1 = 1.f - w0, w0_size = fabsf(w0), w1_size = fabsf(w1);
  const float cost =
      fmaf(w0 * w0, source.r00, fmaf(2.f * w0 * w1, source.r01, w1 * w1 * source.r11)) - 2.f * inner + y * y;
  const float f = w0_size * source.norm0 + w1_size * source.norm1;
  constexpr float kUnderflow = 0x1p-100f;  // more than squares may lose that are too small for a float
  const float spread =
      error.kappa * (f + y) * (f + y) + 2.f * error.halves_lost * (f + (w0_size + w1_size) * y) + kUnderflow;
  const float along = fabsf(fmaf(w0, numbers[0], -share));
  float off = w0_size * source.off0 + w1_size * source.off1 + 4.f * kUlp * (y + 2.f * (line.first + line.last)) +
              along * line.first + (along + kUlp) * line.last;
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const float left = fabsf(fmaf(w0, numbers[2 + p], fmaf(w1, numbers[2 + P + p], -c[p])));
    off += (left + kUlp * fabsf(w0 * numbers[2 + p])) * size[p];
  }
  off *= 1.0001f;
  const float low = fmaxf(root(fmaxf(cost - spread, 0.f)) - off, 0.f);
  const float high = root(fmaxf(cost + spread, kUnderflow)) + off;
  const float2 pair{low * low * (1.f - 0x1p-19f), high * high * (1.f + 0x1p-19f)};
  return isfinite(cost) && isfinite(pair.y) ? pair : float2{0.f, INFINITY};
}

}  // namespace oss_ext::cuda
