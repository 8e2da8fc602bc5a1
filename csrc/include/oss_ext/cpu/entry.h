// How every CPU entry ends: exceptions become a Status, a dtype becomes a type.
#pragma once

#include <new>

#include "oss_ext/types.h"

namespace oss_ext::cpu {

// Runs fn(); memory that runs out is a Status, since no exception leaves an entry.
template <class Fn>
Status guarded(const Fn& fn) {
  try {
    fn();
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
  return kOk;
}

// Calls fn(float{}), or fn(double{}) for f64: the accumulate type of a dtype.
template <class Fn>
Status guarded_for(DType dtype, const Fn& fn) {
  return guarded([&] {
    if (dtype == DType::f64) {
      fn(double{});
    } else {
      fn(float{});
    }
  });
}

}  // namespace oss_ext::cpu
