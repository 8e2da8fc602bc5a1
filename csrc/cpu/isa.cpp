#include "oss_ext/cpu/isa.h"

#include <cstdlib>
#include <cstring>

#if defined(OSS_EXT_X86_ISAS)
#include <cpuid.h>
#endif

namespace oss_ext::cpu {
namespace {

#if defined(OSS_EXT_X86_ISAS)
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 29));
}

const IsaKernels& choose() {
  __builtin_cpu_init();
  const char* wanted = std::getenv("OSS_EXT_CPU_ISA");
  const auto allowed = [wanted](const char* narrower) { return !wanted || std::strcmp(wanted, narrower) != 0; };
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && allowed("avx2") && allowed("baseline")) return avx512_kernels();
  if (avx2 && allowed("baseline")) return avx2_kernels();
  return baseline_kernels();
}
#else
const IsaKernels& choose() { return baseline_kernels(); }
#endif

}  // namespace

const IsaKernels& isa_kernels() {
  static const IsaKernels& kernels = choose();
  return kernels;
}

}  // namespace oss_ext::cpu
