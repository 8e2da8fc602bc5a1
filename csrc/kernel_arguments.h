// What every bound operation does with its arguments: reads and checks tensors, lends workspace, runs, raises.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "oss_ext/device.h"
#include "tensor_argument.h"

namespace oss_ext::python {

// Where a call runs: threads on the CPU, the current stream on CUDA. plan_batch: as in PairwiseCostParams.
struct Launch {
  int threads;
  uintptr_t stream;
  py::object allocate;
  int64_t plan_batch;
};

inline void raise_on(Status status, const char* operation) {
  if (status == kOk) return;
  const std::string op = operation;
  if (status == kNotCompiled) {
    throw std::runtime_error(
        op +
        ": the tensors are on CUDA, but this build of oss_ext has CPU kernels only "
        "(no CUDA compiler was found when it was built); reinstall with nvcc on PATH, or pass CPU tensors");
  }
  if (status == kOutOfMemory) throw std::bad_alloc();
  if (status > 0) {
    throw std::runtime_error(
        op + ": " + cuda::error_string(status) +
        " (CUDA needs an NVIDIA GPU, a driver that the CUDA runtime of this build accepts, and kernels "
        "for the GPU's architecture: see oss_ext.build_info())");
  }
  throw py::value_error(op + ": the kernel refused its arguments (status " + std::to_string(status) + ")");
}

template <typename Params>
void lend_workspace(Params& params, int64_t wanted, const Launch& launch, py::object& keep, const char* operation) {
  if (wanted < 0) raise_on(static_cast<Status>(wanted), operation);
  params.workspace = nullptr;
  params.workspace_bytes = wanted;
  if (wanted == 0) return;
  keep = launch.allocate(wanted);
  params.workspace = read_tensor(keep, "workspace").data;
}

template <typename Call>
void run(const char* operation, Call&& call) {
  Status status;
  {
    py::gil_scoped_release release;
    status = call();
  }
  raise_on(status, operation);
}

inline void* stream_of(const Launch& launch) { return reinterpret_cast<void*>(launch.stream); }

// basis: P tensors [B, M, D] of one dtype and device. Fills the views of params and returns them for further checks.
template <typename Params>
std::vector<TensorArgument> take_basis(const std::vector<py::object>& basis, Params& params) {
  if (basis.empty() || basis.size() > static_cast<size_t>(kMaxBasis)) {
    throw py::value_error("basis: got " + std::to_string(basis.size()) + " tensors, wanted 1 to " +
                          std::to_string(kMaxBasis));
  }
  std::vector<TensorArgument> read;
  for (size_t p = 0; p < basis.size(); ++p) {
    read.push_back(read_tensor(basis[p], "basis[" + std::to_string(p) + "]"));
    const TensorArgument& t = read.back();
    if (t.rank() != 3) fail(t, "shape " + text_of(t.sizes), "[batch, nodes, dim]");
    want_device(t, read[0]);
    if (p == 0) {
      params.dtype = read_dtype(t);
      if (t.size(1) < 1 || t.size(2) < 1) fail(t, "shape " + text_of(t.sizes), "[batch, nodes >= 1, dim >= 1]");
    }
    want_dtype(t, read[0].dtype);
    want_shape(t, read[0].sizes, "[batch, nodes, dim], the shape of basis[0]");
    want_contiguous(t, 2);
    params.basis[p] = {t.data, t.stride(0), t.stride(1)};
  }
  params.basis_count = static_cast<int>(basis.size());
  params.batch = read[0].size(0);
  params.nodes = read[0].size(1);
  params.dim = read[0].size(2);
  return read;
}

template <typename Params>
TensorArgument take_coefficients(py::handle object, Params& params, const TensorArgument& like) {
  TensorArgument t = read_tensor(object, "coefficients");
  want_device(t, like);
  want_dtype(t, acc_name(params.dtype));
  const bool shared = t.rank() == 3;
  const std::vector<int64_t> own = {params.nodes, params.nodes, params.basis_count};
  std::vector<int64_t> wanted = own;
  if (!shared) wanted.insert(wanted.begin(), params.batch);
  want_shape(t, wanted, "[nodes, nodes, P], or [batch, nodes, nodes, P]");
  want_contiguous(t, shared ? 0 : 1);
  params.coefficients = t.data;
  params.coefficient_stride = shared ? 0 : t.stride(0);
  return t;
}

template <typename Params>
TensorArgument take_target(py::handle object, Params& params, const TensorArgument& like) {
  TensorArgument t = read_tensor(object, "target");
  want_device(t, like);
  want_dtype(t, like.dtype);
  want_shape(t, like.sizes, "[batch, nodes, dim], the shape of basis[0]");
  want_contiguous(t, 2);
  params.target = {t.data, t.stride(0), t.stride(1)};
  return t;
}

inline const void* take_vector(const py::object& object, const char* name, int64_t length, const std::string& dtype,
                               const TensorArgument& like) {
  if (object.is_none()) return nullptr;
  TensorArgument t = read_tensor(object, name);
  want_device(t, like);
  want_dtype(t, dtype);
  want_shape(t, {length}, "one number an entry");
  want_contiguous(t);
  return t.data;
}

inline TensorArgument take_output(py::handle object, const char* name, const std::vector<int64_t>& shape,
                                  const std::string& dtype, const TensorArgument& like) {
  TensorArgument t = read_tensor(object, name);
  want_device(t, like);
  want_dtype(t, dtype);
  want_shape(t, shape, "the shape of the result");
  want_contiguous(t);
  return t;
}

inline void want_all_apart(const TensorArgument& out, const std::vector<TensorArgument>& inputs) {
  for (const auto& in : inputs) want_apart(out, in);
}

template <typename Params>
void take_sources(Params& params, int64_t begin, int64_t end) {
  if (begin < 0 || end < begin || end > params.nodes) {
    throw py::value_error("sources: got (" + std::to_string(begin) + ", " + std::to_string(end) +
                          "), wanted 0 <= begin <= end <= nodes = " + std::to_string(params.nodes));
  }
  params.source_begin = begin;
  params.source_end = end;
}

}  // namespace oss_ext::python
