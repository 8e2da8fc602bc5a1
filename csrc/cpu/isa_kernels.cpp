// Compiled once for every instruction set, with OSS_EXT_ISA naming the function that hands out this copy's kernels.
#include "oss_ext/cpu/combine.h"
#include "oss_ext/cpu/gram_tile.h"
#include "oss_ext/cpu/isa.h"
#include "oss_ext/cpu/pairwise_tile.h"

#define OSS_EXT_JOIN_(a, b) a##b
#define OSS_EXT_JOIN(a, b) OSS_EXT_JOIN_(a, b)
#define OSS_EXT_TEXT_(a) #a
#define OSS_EXT_TEXT(a) OSS_EXT_TEXT_(a)

namespace oss_ext::cpu {

const IsaKernels& OSS_EXT_JOIN(OSS_EXT_ISA, _kernels)() {
  static constexpr IsaKernels kernels{OSS_EXT_TEXT(OSS_EXT_ISA), pairwise, moment, gram, combine};
  return kernels;
}

}  // namespace oss_ext::cpu
