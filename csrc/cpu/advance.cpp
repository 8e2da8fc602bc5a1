#include "oss_ext/advance.h"

#include <limits>
#include <new>

#include "oss_ext/cpu/entry.h"
#include "oss_ext/cpu/isa.h"
#include "oss_ext/cpu/parallel.h"

namespace oss_ext::cpu {
namespace {

// Dims of one task.
constexpr int64_t kChunk = 64 * kBlockDim;

void fill_nan(DType dtype, int64_t count, void* out) {
  if (dtype == DType::f64) {
    std::fill_n(static_cast<double*>(out), count, std::numeric_limits<double>::quiet_NaN());
  } else if (dtype == DType::f32) {
    std::fill_n(static_cast<float*>(out), count, std::numeric_limits<float>::quiet_NaN());
  } else {
    std::fill_n(static_cast<uint16_t*>(out), count, static_cast<uint16_t>(dtype == DType::f16 ? 0x7e00 : 0x7fc0));
  }
}

void run(const AdvanceParams& params, int threads) {
  const IsaKernels& isa = isa_kernels();
  const int64_t nodes = params.nodes, dim = params.dim, size = element_size(params.dtype);
  const int64_t chunks = (dim + kChunk - 1) / kChunk;
  const int64_t tasks = params.batch * nodes * chunks;
  const double operations = static_cast<double>(params.batch) * nodes * dim * (params.basis_count + 1) / 8;
  parallel_for(tasks, worker_count(tasks, threads, operations), [&](int64_t index, int) {
    const int64_t first = index % chunks * kChunk;
    const int64_t target = index / chunks % nodes, sample = index / chunks / nodes;
    const int64_t count = std::min(kChunk, dim - first);
    char* out = static_cast<char*>(params.out) + ((sample * nodes + target) * dim + first) * size;
    const int64_t source = params.backpointers[sample * params.backpointer_stride + target];
    if (source < 0 || source >= nodes) return fill_nan(params.dtype, count, out);
    const void* rows[kMaxBasis];
    for (int p = 0; p < params.basis_count; ++p) {
      const RowsView& view = params.basis[p];
      rows[p] =
          static_cast<const char*>(view.data) + (sample * view.batch_stride + source * view.node_stride + first) * size;
    }
    const char* coefficients =
        static_cast<const char*>(params.coefficients) +
        (sample * params.coefficient_stride + (source * nodes + target) * params.basis_count) * acc_size(params.dtype);
    isa.combine(params.dtype, params.basis_count, rows, coefficients, count, out);
  });
}

}  // namespace

Status advance(const AdvanceParams& params, int threads) {
  if (params.batch < 0 || params.nodes < 1 || params.dim < 1) return kInvalidArgument;
  if (params.basis_count < 1 || params.basis_count > kMaxBasis) return kInvalidArgument;
  if (params.dtype != DType::f32 && params.dtype != DType::bf16 && params.dtype != DType::f16 &&
      params.dtype != DType::f64)
    return kUnsupportedDtype;
  return guarded([&] { run(params, threads); });
}

}  // namespace oss_ext::cpu
