// How blocks of (sources x targets) cover the pairs i < j.
#pragma once

#include <cstdint>

#include "oss_ext/cuda/common.cuh"

namespace oss_ext::cuda {

// Where tile `index` of the upper triangle starts: bands of kRows sources from `begin` on, each band's columns starting
// just right of its first source, so that little of a tile lies below the diagonal. A band has at least kLeast tiles:
// with 1, every source is in one, the last node too, which has no targets.
template <int kRows, int kColumns, int kLeast = 0>
struct Triangle {
  int64_t source, target;

  static __host__ __device__ int64_t columns(int64_t source, int64_t nodes) {
    const int64_t needed = nodes - 1 > source ? (nodes - 1 - source + kColumns - 1) / kColumns : 0;
    return needed > kLeast ? needed : kLeast;
  }
  static int64_t count(int64_t begin, int64_t end, int64_t nodes) {
    int64_t total = 0;
    for (int64_t i = begin; i < end; i += kRows) total += columns(i, nodes);
    return total;
  }
  __device__ Triangle(int64_t index, int64_t begin, int64_t nodes) {
    source = begin;
    for (int64_t here = columns(source, nodes); index >= here; here = columns(source, nodes)) {
      index -= here;
      source += kRows;
    }
    target = source + 1 + index * kColumns;
  }
};

// What kernels over such tiles are told.
struct PairArgs : RowArgs {
  int64_t source_begin, source_end;
  int64_t tiles;   // of the upper triangle, a sample
  int64_t splits;  // parts that the dimension is cut into
};

template <typename Params>
void take_pairs(const Params& params, int64_t tiles, int64_t splits, PairArgs& args) {
  take_rows(params, args);
  args.source_begin = params.source_begin;
  args.source_end = params.source_end;
  args.tiles = tiles;
  args.splits = splits;
}

}  // namespace oss_ext::cuda
