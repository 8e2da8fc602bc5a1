// Matrix products in double on the tensor cores.
#pragma once

#include <cuda_runtime.h>

namespace oss_ext::cuda {

// sum += A B where `wanted`, which all lanes of the warp agree on: A is 16 x 8, B 8 x 8. Of A, a lane has at a[k] the
// numbers at rows lane / 4 (.x) and lane / 4 + 8 (.y), and of B's column lane / 4 those that meet a[0] (.x) and a[1]
// (.y); the four lanes of a row cover all eight columns of A and rows of B, in any order that both keep.
// sum[2 h + c] is at row lane / 4 + 8 h, column 2 (lane % 4) + c.
__device__ __forceinline__ void multiply_double(double (&sum)[4], const double2 (&a)[2], double2 b, bool wanted) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.s32 wanted, %10, 0;\n"
      "@wanted mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      "}\n"
      : "+d"(sum[0]), "+d"(sum[1]), "+d"(sum[2]), "+d"(sum[3])
      : "d"(a[0].x), "d"(a[0].y), "d"(a[1].x), "d"(a[1].y), "d"(b.x), "d"(b.y), "r"(static_cast<int>(wanted)));
#else
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    asm volatile(
        "{\n"
        ".reg .pred wanted;\n"
        "setp.ne.s32 wanted, %6, 0;\n"
        "@wanted mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%4}, {%0,%1};\n"
        "@wanted mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%3}, {%5}, {%0,%1};\n"
        "}\n"
        : "+d"(sum[2 * half]), "+d"(sum[2 * half + 1])
        : "d"(half ? a[0].y : a[0].x), "d"(half ? a[1].y : a[1].x), "d"(b.x), "d"(b.y), "r"(static_cast<int>(wanted)));
  }
#endif
}

}  // namespace oss_ext::cuda
