#include <algorithm>

#include "oss_ext/best_step.h"
#include "oss_ext/cuda/best_step_launch.cuh"
#include "oss_ext/cuda/screen.cuh"
#ifdef OSS_EXT_HOPPER
#include "oss_ext/cuda/screen_hopper.cuh"
#endif

namespace oss_ext::cuda {
namespace {

constexpr int kMostScreened = 2;  // basis vectors: more do not fit into registers
constexpr int64_t kRunsOfTile = 2;
constexpr int64_t kMostNodes = 4096;  // shortlist keeps the bounds of a target in shared memory

// The run length for so many targets: runs of even length, in tiles of two.
struct Runs {
  int64_t count, length;
  int blocks;  // of ScreenTile
};
Runs runs_of(int64_t targets) {
  const int64_t count = std::max<int64_t>(ceil_div(targets, 64), 2),
                length = std::max<int64_t>(ceil_div(targets, count), 1);
  return {count, length, length <= 32 ? 4 : length <= 56 ? 7 : 8};
}

// body(element, P, blocks), as types.
template <typename Body>
Status dispatch_screen(const StepsParams& params, Body&& body) {
  return dispatch_float(params.dtype, [&](auto element) {
    const auto with_basis = [&](auto count) {
      switch (runs_of(params.nodes - 1).blocks) {
        case 4:
          return body(element, count, Int<4>{});
        case 7:
          return body(element, count, Int<7>{});
        default:
          return body(element, count, Int<8>{});
      }
    };
    return params.basis_count == 1 ? with_basis(Int<1>{}) : with_basis(Int<2>{});
  });
}

// Tiles of even size of up to so many sources, and the splits of the dims that give every multiprocessor a block.
void plan_tiles(const StepsParams& params, int64_t source_begin, int64_t source_end, int64_t most_sources,
                ScreenArgs& args) {
  args.joint = params.joint;
  args.groups = params.joint ? 1 : params.batch;
  args.source_begin = source_begin;
  args.source_end = source_end;
  args.run = runs_of(params.nodes - 1).length;
  args.tile_targets = kRunsOfTile * args.run;
  const int64_t sources = std::max<int64_t>(source_end - source_begin, 1);
  args.tile_sources = ceil_div(ceil_div(sources, ceil_div(sources, most_sources)), 8) * 8;
  args.tiles = ScreenPlace::count(source_begin, source_end, params.nodes, args.tile_sources, args.tile_targets);
}

// Rounds of blocks, each as long as its chunks and what a block costs apart from them.
void plan_splits(ScreenArgs& args, int device) {
  constexpr int64_t kBlockChunks = 6;
  const int64_t blocks = std::max<int64_t>(args.tiles * args.groups, 1);
  const int64_t at_once = std::max(1, multiprocessors(device));
  const int64_t most = std::max<int64_t>(1, std::min(args.chunks, ceil_div(2 * at_once, blocks)));
  int64_t best = INT64_MAX;
  for (int64_t splits = 1; splits <= most; ++splits) {
    const int64_t took = ceil_div(blocks * splits, at_once) * (ceil_div(args.chunks, splits) + kBlockChunks);
    if (took < best) {
      best = took;
      args.splits = splits;
    }
  }
}

void take_screen(const ScreenParams& params, ScreenArgs& args) {
  take_rows(params, args);
  args.coefficients = static_cast<const float*>(params.coefficients);
  args.coefficient_stride = params.coefficient_stride;
  args.place = params.place;
  args.bounds = params.bounds;
}

template <class Tile, typename Args>
Status launch_screen(void (*kernel)(Args), const Args& args, void* stream) {
  const int64_t blocks = args.tiles * args.groups * args.splits;
  if (blocks == 0) return kOk;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kBytes);
  if (error != cudaSuccess) return static_cast<Status>(error);
  kernel<<<blocks, Tile::kThreads, Tile::kBytes, static_cast<cudaStream_t>(stream)>>>(args);
  return launch_status();
}

template <typename T, int P, int kBlocks>
ScreenArgs plan_screen(const StepsParams& params, int64_t source_begin, int64_t source_end, int device) {
  using Tile = ScreenTile<T, P, kBlocks>;
  ScreenArgs args{};
  plan_tiles(params, source_begin, source_end, Tile::kSources, args);
  args.chunks_per_sample = ceil_div(params.dim, Tile::kChunk);
  args.chunks = args.chunks_per_sample * (params.joint ? params.batch : 1);
  plan_splits(args, device);
  return args;
}

#ifdef OSS_EXT_HOPPER
using EncodeMap = decltype(&cuTensorMapEncodeTiled);

EncodeMap find_encode_map() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
  const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
  if (error != cudaSuccess) cudaGetLastError();
  return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<EncodeMap>(found) : nullptr;
}

// Boxes of a unit of `box` neighbouring nodes. False: the copy engine cannot bring these rows.
bool map_rows(const StepsParams& params, const RowsView& rows, int64_t box, CUtensorMap& map) {
  static const EncodeMap encode = find_encode_map();
  const auto size = static_cast<uint64_t>(element_size(params.dtype));
  const auto type = params.dtype == DType::f32    ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                    : params.dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                  : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(params.dim), static_cast<cuuint64_t>(params.nodes),
                               static_cast<cuuint64_t>(params.batch)};
  const cuuint64_t strides[2] = {rows.node_stride * size,
                                 params.batch > 1 ? rows.batch_stride * size : sizes[1] * rows.node_stride * size};
  const cuuint32_t boxes[3] = {kUnit, static_cast<cuuint32_t>(box), 1}, steps[3] = {1, 1, 1};
  return encode != nullptr && strides[0] > 0 && strides[1] > 0 &&
         encode(&map, type, 3, const_cast<void*>(rows.data), sizes, strides, boxes, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// False where the kernel does not suit device or rows.
template <typename T, int P, int kBlocks>
bool plan_hopper(const StepsParams& params, int64_t source_begin, int64_t source_end, int device, HopperArgs& args) {
  using Tile = HopperTile<T, P, kBlocks>;
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  if (major != 9 || minor != 0 || params.batch < 1 || params.dim > INT32_MAX - Tile::kChunk) return false;
  plan_tiles(params, source_begin, source_end, Tile::kSources, args);
  args.units_per_sample = ceil_div(params.dim, kUnit);
  args.chunks = ceil_div(args.units_per_sample * (params.joint ? params.batch : 1), Tile::kUnits);
  plan_splits(args, device);
  bool all = args.chunks > 0;
  for (int p = 0; p < P; ++p) all = all && map_rows(params, params.basis[p], args.tile_sources, args.rows[p]);
  return all && map_rows(params, params.target, args.tile_targets, args.rows[P]);
}
#endif

}  // namespace

int64_t screen_splits(const StepsParams& params, int64_t source_begin, int64_t source_end, int device) {
  if (params.dtype == DType::f64 || params.basis_count > kMostScreened || !aligned(params, 16) ||
      (params.joint && params.coefficient_stride != 0) || params.nodes < 2 || params.nodes > kMostNodes) {
    return 0;
  }
  int shared = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return -1;
  }
  int64_t splits = 0;
  dispatch_screen(params, [&](auto element, auto count, auto blocks) {
    using T = decltype(element);
    constexpr int P = decltype(count)::value, kBlocks = decltype(blocks)::value;
#ifdef OSS_EXT_HOPPER
    HopperArgs args{};
    if (plan_hopper<T, P, kBlocks>(params, source_begin, source_end, device, args)) {
      splits = args.splits;
      return kOk;
    }
#endif
    if (shared >= ScreenTile<T, P, kBlocks>::kBytes) {
      splits = plan_screen<T, P, kBlocks>(params, source_begin, source_end, device).splits;
    }
    return kOk;
  });
  return splits;
}

Status screen(const ScreenParams& params, int device, void* stream) {
  DeviceGuard guard(device);
  if (guard.status() != kOk) return guard.status();
  return dispatch_screen(params, [&](auto element, auto count, auto blocks) {
    using T = decltype(element);
    constexpr int P = decltype(count)::value, kBlocks = decltype(blocks)::value;
#ifdef OSS_EXT_HOPPER
    HopperArgs wide{};
    if (plan_hopper<T, P, kBlocks>(params, params.source_begin, params.source_end, device, wide)) {
      if (wide.splits != params.splits) return kInvalidArgument;
      take_screen(params, wide);
      return launch_screen<HopperTile<T, P, kBlocks>>(screen_tiles_hopper<T, P, kBlocks>, wide, stream);
    }
#endif
    ScreenArgs args = plan_screen<T, P, kBlocks>(params, params.source_begin, params.source_end, device);
    if (args.splits != params.splits) return kInvalidArgument;
    take_screen(params, args);
    return launch_screen<ScreenTile<T, P, kBlocks>>(screen_tiles<T, P, kBlocks>, args, stream);
  });
}

}  // namespace oss_ext::cuda
