// The instructions of sm_90a that a kernel needs around its arithmetic: barriers in shared memory, bulk tensor copies,
// products of a warpgroup.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace oss_ext::cuda {

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// A barrier in shared memory, used over and over: the phase of its n-th use is n % 2.
__device__ __forceinline__ void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(arrivals));
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, int bytes) {  // arrives, and so many bytes will
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, int phase) {
  asm volatile(
      "{\n.reg .pred done;\nWAIT:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra DONE;\nbra WAIT;\nDONE:\n}\n" ::"r"(shared_address(barrier)),
      "r"(phase)
      : "memory");
}
// What this thread wrote to shared memory becomes visible to the tensor cores and the copy engine.
__device__ __forceinline__ void fence_shared_for_engines() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// Four matrices of 8 x 8 halves, two neighbours a lane each, four lanes a row; lane 8 m + r says where row r of the
// m-th goes.
__device__ __forceinline__ void store_matrices(void* row, const unsigned (&pairs)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(shared_address(row)),
               "r"(pairs[0]), "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3])
               : "memory");
}

// The box of `map` at (number, node, sample) to shared memory, zero outside the tensor.
__device__ __forceinline__ void copy_box(void* to, const CUtensorMap& map, int number, int node, int sample,
                                         uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
      "[%5];\n" ::"r"(shared_address(to)),
      "l"(&map), "r"(number), "r"(node), "r"(sample), "r"(shared_address(barrier))
      : "memory");
}

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
__device__ __forceinline__ void products_wait() { asm volatile("wgmma.wait_group.sync.aligned 0;\n" ::: "memory"); }

// A matrix of halves [rows, 16] in shared memory: eight rows of 16 bytes are 128 bytes together, the two of eight rows
// neighbours, the next eight rows after them.
__device__ __forceinline__ uint64_t matrix_at(unsigned address) {
  return (address >> 4 & 0x3fff) | uint64_t{128 >> 4} << 16 | uint64_t{256 >> 4} << 32;
}

// sum [64 rows, 8 kBlocks] = a [64, 16] b^T, or is added to with kOnto; asynchronous until products_wait.
template <bool kOnto, int kBlocks>
__device__ __forceinline__ void multiply_wide(float (&sum)[kBlocks][4], const unsigned (&a)[4], uint64_t b) {
  static_assert(kBlocks == 4 || kBlocks == 7 || kBlocks == 8);
#define OSS_EXT_ONTO(k) "+f"(sum[k][0]), "+f"(sum[k][1]), "+f"(sum[k][2]), "+f"(sum[k][3])
#define OSS_EXT_NEW(k) "+f"(sum[k][0]), "+f"(sum[k][1]), "+f"(sum[k][2]), "+f"(sum[k][3])
  if constexpr (kBlocks == 4 && kOnto) {
    asm volatile(
        "{\n.reg .pred onto;\nsetp.ne.b32 onto, 1, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, "
        "{%16,%17,%18,%19}, %20, onto, 1, 1, 0;\n}\n"
        : OSS_EXT_ONTO(0), OSS_EXT_ONTO(1), OSS_EXT_ONTO(2), OSS_EXT_ONTO(3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else if constexpr (kBlocks == 4 && !kOnto) {
    asm volatile(
        "{\n.reg .pred onto;\nsetp.ne.b32 onto, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, "
        "{%16,%17,%18,%19}, %20, onto, 1, 1, 0;\n}\n"
        : OSS_EXT_NEW(0), OSS_EXT_NEW(1), OSS_EXT_NEW(2), OSS_EXT_NEW(3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else if constexpr (kBlocks == 7 && kOnto) {
    asm volatile(
        "{\n.reg .pred onto;\nsetp.ne.b32 onto, 1, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n56k16.f32.f16.f16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27}, "
        "{%28,%29,%30,%31}, %32, onto, 1, 1, 0;\n}\n"
        : OSS_EXT_ONTO(0), OSS_EXT_ONTO(1), OSS_EXT_ONTO(2), OSS_EXT_ONTO(3), OSS_EXT_ONTO(4), OSS_EXT_ONTO(5),
          OSS_EXT_ONTO(6)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else if constexpr (kBlocks == 7 && !kOnto) {
    asm volatile(
        "{\n.reg .pred onto;\nsetp.ne.b32 onto, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n56k16.f32.f16.f16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27}, "
        "{%28,%29,%30,%31}, %32, onto, 1, 1, 0;\n}\n"
        : OSS_EXT_NEW(0), OSS_EXT_NEW(1), OSS_EXT_NEW(2), OSS_EXT_NEW(3), OSS_EXT_NEW(4), OSS_EXT_NEW(5), OSS_EXT_NEW(6)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else if constexpr (kBlocks == 8 && kOnto) {
    asm volatile(
        "{\n.reg .pred onto;\nsetp.ne.b32 onto, 1, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%"
        "29,%30,%31}, {%32,%33,%34,%35}, %36, onto, 1, 1, 0;\n}\n"
        : OSS_EXT_ONTO(0), OSS_EXT_ONTO(1), OSS_EXT_ONTO(2), OSS_EXT_ONTO(3), OSS_EXT_ONTO(4), OSS_EXT_ONTO(5),
          OSS_EXT_ONTO(6), OSS_EXT_ONTO(7)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else if constexpr (kBlocks == 8 && !kOnto) {
    asm volatile(
        "{\n.reg .pred onto;\nsetp.ne.b32 onto, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%"
        "29,%30,%31}, {%32,%33,%34,%35}, %36, onto, 1, 1, 0;\n}\n"
        : OSS_EXT_NEW(0), OSS_EXT_NEW(1), OSS_EXT_NEW(2), OSS_EXT_NEW(3), OSS_EXT_NEW(4), OSS_EXT_NEW(5),
          OSS_EXT_NEW(6), OSS_EXT_NEW(7)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
#undef OSS_EXT_ONTO
#undef OSS_EXT_NEW
}

}  // namespace oss_ext::cuda
