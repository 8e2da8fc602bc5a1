#include <algorithm>

#include "oss_ext/best_step.h"
#include "oss_ext/cuda/screen.cuh"
#include "oss_ext/cuda/shortlist.cuh"
#include "oss_ext/cuda/weigh.cuh"

namespace oss_ext::cuda {
namespace {

constexpr int kMostScreened = 2;  // basis vectors: more do not fit into registers
constexpr int64_t kMendBlocks = 1024;

template <typename Body>
Status dispatch_float(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f32:
      return body(float{});
    case DType::bf16:
      return body(__nv_bfloat16{});
    case DType::f16:
      return body(__half{});
    case DType::f64:
      break;
  }
  return kUnsupportedDtype;
}

bool aligned(const StepsParams& params, int64_t bytes) {
  bool all = params.dim * element_size(params.dtype) % bytes == 0;
  const auto look = [&](const RowsView& rows) {
    const int64_t size = element_size(params.dtype);
    all = all && reinterpret_cast<uintptr_t>(rows.data) % bytes == 0 && rows.batch_stride * size % bytes == 0 &&
          rows.node_stride * size % bytes == 0;
  };
  for (int p = 0; p < params.basis_count; ++p) look(params.basis[p]);
  look(params.target);
  return all;
}

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

// Tiles of even size, and the splits of the dims that give every multiprocessor a block.
template <class Tile>
ScreenArgs plan_screen(const StepsParams& params, int64_t source_begin, int64_t source_end, int device) {
  ScreenArgs args{};
  args.joint = params.joint;
  args.groups = params.joint ? 1 : params.batch;
  args.source_begin = source_begin;
  args.source_end = source_end;
  args.run = runs_of(params.nodes - 1).length;
  args.tile_targets = Tile::kRuns * args.run;
  const int64_t sources = std::max<int64_t>(source_end - source_begin, 1);
  args.tile_sources = ceil_div(ceil_div(sources, ceil_div(sources, Tile::kSources)), 16) * 16;
  args.tiles = ScreenPlace::count(source_begin, source_end, params.nodes, args.tile_sources, args.tile_targets);
  args.chunks_per_sample = ceil_div(params.dim, Tile::kChunk);
  args.chunks = args.chunks_per_sample * (params.joint ? params.batch : 1);
  const int64_t blocks = std::max<int64_t>(args.tiles * args.groups, 1);
  const int64_t at_once = std::max(1, multiprocessors(device));
  // Rounds of blocks, each as long as its chunks and what a block costs apart from them.
  constexpr int64_t kBlockChunks = 6;
  int64_t best = INT64_MAX;
  for (int64_t splits = 1; splits <= std::max<int64_t>(1, std::min(args.chunks, ceil_div(2 * at_once, blocks)));
       ++splits) {
    const int64_t took = ceil_div(blocks * splits, at_once) * (ceil_div(args.chunks, splits) + kBlockChunks);
    if (took < best) {
      best = took;
      args.splits = splits;
    }
  }
  return args;
}

WeighArgs weigh_args(const StepsParams& params, const int32_t* sources, const int32_t* counts, void* out) {
  WeighArgs args{};
  take_rows(params, args);
  args.coefficients = static_cast<const float*>(params.coefficients);
  args.coefficient_stride = params.coefficient_stride;
  args.joint = params.joint;
  args.sources = sources;
  args.counts = counts;
  args.out = out;
  return args;
}

}  // namespace

int64_t screen_splits(const StepsParams& params, int64_t source_begin, int64_t source_end, int device) {
  if (params.dtype == DType::f64 || params.basis_count > kMostScreened || !aligned(params, 16) ||
      (params.joint && params.coefficient_stride != 0) || params.nodes < 2) {
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
    using Tile = ScreenTile<decltype(element), decltype(count)::value, decltype(blocks)::value>;
    if (shared >= Tile::kBytes) splits = plan_screen<Tile>(params, source_begin, source_end, device).splits;
    return kOk;
  });
  return splits;
}

Status screen(const ScreenParams& params, int device, void* stream) {
  DeviceGuard guard(device);
  if (guard.status() != kOk) return guard.status();
  return dispatch_screen(params, [&](auto element, auto count, auto run) {
    using T = decltype(element);
    constexpr int P = decltype(count)::value, kBlocks = decltype(run)::value;
    using Tile = ScreenTile<T, P, kBlocks>;
    ScreenArgs args = plan_screen<Tile>(params, params.source_begin, params.source_end, device);
    if (args.splits != params.splits) return kInvalidArgument;
    take_rows(params, args);
    args.coefficients = static_cast<const float*>(params.coefficients);
    args.coefficient_stride = params.coefficient_stride;
    args.place = params.place;
    args.bounds = params.bounds;
    const int64_t blocks = args.tiles * args.groups * args.splits;
    if (blocks == 0) return kOk;
    const auto kernel = screen_tiles<T, P, kBlocks>;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kBytes);
    if (error != cudaSuccess) return static_cast<Status>(error);
    kernel<<<blocks, Tile::kThreads, Tile::kBytes, static_cast<cudaStream_t>(stream)>>>(args);
    return launch_status();
  });
}

Status shortlist(const ShortlistParams& params, int device, void* stream) {
  DeviceGuard guard(device);
  if (guard.status() != kOk) return guard.status();
  const int64_t blocks = params.groups * params.nodes;
  if (blocks == 0) return kOk;
  shortlist_sources<<<blocks, kShortlistThreads, 0, static_cast<cudaStream_t>(stream)>>>(params);
  return launch_status();
}

int64_t weigh_parts(const StepsParams& params) {
  return params.dim <= kWeighShort ? 1 : ceil_div(params.dim, kWeighSpan);
}

Status weigh(const WeighParams& params, int device, void* stream) {
  DeviceGuard guard(device);
  if (guard.status() != kOk) return guard.status();
  const auto on = static_cast<cudaStream_t>(stream);
  if (!aligned(params, kWeighPack * element_size(params.dtype))) return kInvalidArgument;
  if (params.parts != weigh_parts(params)) return kInvalidArgument;
  WeighArgs args = weigh_args(params, params.sources, params.counts, params.out);
  args.parts = params.parts;
  args.exact = params.exact;
  const int64_t rows = params.batch * params.nodes;
  if (rows == 0) return kOk;
  return dispatch_float(params.dtype, [&](auto element) {
    using T = decltype(element);
    return dispatch_basis_count(params.basis_count, [&](auto count) {
      constexpr int P = decltype(count)::value;
      if (params.dim <= kWeighShort) {
        int lanes = 1;
        while (lanes < 32 && lanes * kWeighPack < params.dim) lanes *= 2;
        weigh_short<T, P><<<ceil_div(rows * lanes, kWeighThreads), kWeighThreads, 0, on>>>(args, lanes);
      } else {
        weigh_long<T, P><<<rows * args.parts, kWeighThreads, 0, on>>>(args);
      }
      return launch_status();
    });
  });
}

Status choose(const ChooseParams& params, int device, void* stream) {
  DeviceGuard guard(device);
  if (guard.status() != kOk) return guard.status();
  const auto on = static_cast<cudaStream_t>(stream);
  const int64_t groups = params.joint ? 1 : params.batch, rows = params.batch * params.nodes;
  if (groups == 0) return kOk;
  choose_sources<<<groups * params.nodes, kChooseThreads, 0, on>>>(params);
  if (Status status = launch_status()) return status;
  if (rows == 0) return kOk;
  const WeighArgs args = weigh_args(params, params.sources, params.counts, params.out);
  return dispatch_float(params.dtype, [&](auto element) {
    using T = decltype(element);
    return dispatch_basis_count(params.basis_count, [&](auto count) {
      const int64_t at_once = std::min<int64_t>(ceil_div(rows, kMendBlocks), kWeighThreads);
      const int64_t blocks = ceil_div(rows, at_once);
      const int64_t parts = std::clamp<int64_t>(2 * kMendBlocks / blocks, 1, weigh_parts(params));
      mend_states<T, decltype(count)::value>
          <<<dim3(blocks, parts), kWeighThreads, 0, on>>>(args, params.backpointers, at_once);
      return launch_status();
    });
  });
}

}  // namespace oss_ext::cuda
