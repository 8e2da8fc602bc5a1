// How blocks of (sources x targets) cover the pairs i < j.
#pragma once

#include <cstdint>

namespace oss_ext::cuda {

// Where tile `index` of the upper triangle starts: bands of kRows sources from `begin` on, each band's columns starting
// just right of its first source, so that little of a tile lies below the diagonal.
template <int kRows, int kColumns>
struct Triangle {
  int64_t source, target;

  static __host__ __device__ int64_t columns(int64_t source, int64_t nodes) {
    return nodes - 1 > source ? (nodes - 1 - source + kColumns - 1) / kColumns : 0;
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

}  // namespace oss_ext::cuda
