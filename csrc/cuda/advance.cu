#include "oss_ext/advance.h"
#include "oss_ext/cuda/advance.cuh"

namespace oss_ext::cuda {
namespace {

template <typename T, int P, int kCount>
Status launch(const AdvanceParams& params, cudaStream_t stream) {
  AdvanceArgs args{};
  take_basis(params, args);
  args.packs = params.dim / kCount;
  args.coefficients = params.coefficients;
  args.coefficient_stride = params.coefficient_stride;
  args.backpointers = params.backpointers;
  args.backpointer_stride = params.backpointer_stride;
  args.out = params.out;
  const int64_t threads = params.batch * params.nodes * args.packs;
  const auto kernel =
      threads < (int64_t{1} << 31) ? advance_rows<T, P, kCount, uint32_t> : advance_rows<T, P, kCount, int64_t>;
  kernel<<<ceil_div(threads, 256), 256, 0, stream>>>(args);
  return launch_status();
}

}  // namespace

Status advance(const AdvanceParams& params, int device, void* stream) {
  DeviceGuard guard(device);
  if (guard.status() != kOk) return guard.status();
  if (params.batch == 0) return kOk;
  return dispatch_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int kVector = 16 / sizeof(T);
    bool aligned = params.dim % kVector == 0;
    for (int p = 0; p < params.basis_count; ++p) aligned = aligned && rows_aligned(params.basis[p], sizeof(T));
    return dispatch_basis_count(params.basis_count, [&](auto count) {
      constexpr int P = decltype(count)::value;
      const auto on = static_cast<cudaStream_t>(stream);
      return aligned ? launch<T, P, kVector>(params, on) : launch<T, P, 1>(params, on);
    });
  });
}

}  // namespace oss_ext::cuda
