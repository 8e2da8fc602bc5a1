// The number of basis vectors as a type. Included by the sources that are compiled once for every instruction set.
#pragma once

#include "oss_ext/cpu/simd.h"
#include "oss_ext/types.h"

namespace oss_ext::cpu {
namespace {

template <int P>
struct BasisCount {
  static constexpr int value = P;
};

// Calls fn(BasisCount<P>{}) for count = P, which the entries have checked.
template <class Fn>
OSS_EXT_INLINE void with_basis_count(int count, const Fn& fn) {
  static_assert(kMaxBasis == 6, "a case for every count");
  switch (count) {
    case 1:
      return fn(BasisCount<1>{});
    case 2:
      return fn(BasisCount<2>{});
    case 3:
      return fn(BasisCount<3>{});
    case 4:
      return fn(BasisCount<4>{});
    case 5:
      return fn(BasisCount<5>{});
    default:
      return fn(BasisCount<6>{});
  }
}

}  // namespace
}  // namespace oss_ext::cpu
