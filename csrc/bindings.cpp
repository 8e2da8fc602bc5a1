// The Python module oss_ext._C: checks tensors, fills the parameter structs, calls the CPU or the CUDA entry.
// Outputs are allocated by the caller (oss_ext/kernels.py); `allocate(bytes)` hands out CUDA workspace, and
// `allocate_cost(parts)` the one output whose shape is decided here.
#include "bindings_best_step.h"
#include "kernel_arguments.h"
#include "oss_ext/advance.h"
#include "oss_ext/gram.h"
#include "oss_ext/min_plus.h"
#include "oss_ext/min_reduce.h"
#include "oss_ext/pairwise_cost.h"

namespace oss_ext::python {
namespace {

py::object pairwise_cost(const std::vector<py::object>& basis, py::handle coefficients, py::handle target,
                         const py::object& weight, const py::object& target_weight, int64_t source_begin,
                         int64_t source_end, bool joint, const py::object& allocate_cost, const Launch& launch) {
  PairwiseCostParams params{};
  auto inputs = take_basis(basis, params);
  const TensorArgument like = inputs[0];
  const std::string acc = acc_name(params.dtype);
  inputs.push_back(take_coefficients(coefficients, params, like));
  inputs.push_back(take_target(target, params, like));
  params.weight = take_vector(weight, "weight", params.dim, acc, like);
  params.target_weight = take_vector(target_weight, "target_weight", params.nodes, acc, like);
  take_sources(params, source_begin, source_end);
  params.plan_batch = launch.plan_batch;
  params.samples_per_sum = 1;
  if (joint) {
    params.samples_per_sum = like.device.cuda ? cuda::pairwise_cost_samples_per_sum(params, like.device.index)
                                              : cpu::pairwise_cost_samples_per_sum(params);
    if (params.samples_per_sum < 1) raise_on(static_cast<Status>(params.samples_per_sum), "pairwise_cost");
  }
  const int64_t parts = (params.batch + params.samples_per_sum - 1) / params.samples_per_sum;
  py::object cost = allocate_cost(parts);
  const auto out = take_output(cost, "cost", {parts, params.nodes, params.nodes}, acc, like);
  want_all_apart(out, inputs);
  params.cost = out.data;
  py::object keep;
  if (like.device.cuda) {
    lend_workspace(params, cuda::pairwise_cost_workspace(params, like.device.index), launch, keep, "pairwise_cost");
  }
  run("pairwise_cost", [&] {
    return like.device.cuda ? cuda::pairwise_cost(params, like.device.index, stream_of(launch))
                            : cpu::pairwise_cost(params, launch.threads);
  });
  return cost;
}

TensorArgument take_cost(py::handle cost, DType& dtype) {
  TensorArgument in = read_tensor(cost, "cost");
  if (in.rank() != 3) fail(in, "shape " + text_of(in.sizes), "[batch, sources, targets]");
  if (in.dtype != "float32" && in.dtype != "float64") {
    throw py::type_error("cost: got dtype " + in.dtype + ", wanted float32 or float64");
  }
  want_contiguous(in, 2);
  dtype = read_dtype(in);
  return in;
}

void min_reduce(py::handle cost, bool joint, py::handle values, py::handle backpointers, const Launch& launch) {
  MinReduceParams params{};
  const TensorArgument in = take_cost(cost, params.dtype);
  params.batch = in.size(0);
  params.sources = in.size(1);
  params.targets = in.size(2);
  params.cost = in.data;
  params.batch_stride = in.stride(0);
  params.source_stride = in.stride(1);
  params.joint = joint;
  const auto shape = joint ? std::vector<int64_t>{params.targets} : std::vector<int64_t>{params.batch, params.targets};
  const auto value_out = take_output(values, "values", shape, "float64", in);
  const auto pointer_out = take_output(backpointers, "backpointers", shape, "int32", in);
  want_all_apart(value_out, {in, pointer_out});
  want_apart(pointer_out, in);
  params.values = reinterpret_cast<double*>(value_out.data);
  params.backpointers = reinterpret_cast<int32_t*>(pointer_out.data);
  py::object keep;
  if (in.device.cuda) {
    lend_workspace(params, cuda::min_reduce_workspace(params, in.device.index), launch, keep, "min_reduce");
  }
  run("min_reduce", [&] {
    return in.device.cuda ? cuda::min_reduce(params, in.device.index, stream_of(launch))
                          : cpu::min_reduce(params, launch.threads);
  });
}

void advance(const std::vector<py::object>& basis, py::handle coefficients, py::handle backpointers, py::handle out,
             const Launch& launch) {
  AdvanceParams params{};
  auto inputs = take_basis(basis, params);
  const TensorArgument like = inputs[0];
  inputs.push_back(take_coefficients(coefficients, params, like));
  TensorArgument pointers = read_tensor(backpointers, "backpointers");
  want_device(pointers, like);
  want_dtype(pointers, "int32");
  const bool shared = pointers.rank() == 1;
  want_shape(pointers, shared ? std::vector<int64_t>{params.nodes} : std::vector<int64_t>{params.batch, params.nodes},
             "[nodes], or [batch, nodes]");
  want_contiguous(pointers, shared ? 0 : 1);
  params.backpointers = reinterpret_cast<const int32_t*>(pointers.data);
  params.backpointer_stride = shared ? 0 : pointers.stride(0);
  inputs.push_back(pointers);
  const auto result = take_output(out, "out", like.sizes, like.dtype, like);
  want_all_apart(result, inputs);
  params.out = result.data;
  run("advance", [&] {
    return like.device.cuda ? cuda::advance(params, like.device.index, stream_of(launch))
                            : cpu::advance(params, launch.threads);
  });
}

void gram(const std::vector<py::object>& basis, py::handle target, const py::object& weight, int64_t source_begin,
          int64_t source_end, py::handle gram_out, py::handle moment_out, const Launch& launch) {
  GramParams params{};
  auto inputs = take_basis(basis, params);
  const TensorArgument like = inputs[0];
  inputs.push_back(take_target(target, params, like));
  params.weight = static_cast<const double*>(take_vector(weight, "weight", params.dim, "float64", like));
  take_sources(params, source_begin, source_end);
  params.plan_batch = launch.plan_batch;
  const int64_t P = params.basis_count;
  const auto gram_result = take_output(gram_out, "gram", {params.batch, params.nodes, P, P}, "float64", like);
  const auto moment_result =
      take_output(moment_out, "moment", {params.batch, params.nodes, params.nodes, P}, "float64", like);
  want_all_apart(gram_result, inputs);
  want_all_apart(moment_result, inputs);
  want_apart(gram_result, moment_result);
  params.gram = reinterpret_cast<double*>(gram_result.data);
  params.moment = reinterpret_cast<double*>(moment_result.data);
  py::object keep;
  if (like.device.cuda) lend_workspace(params, cuda::gram_workspace(params, like.device.index), launch, keep, "gram");
  run("gram", [&] {
    return like.device.cuda ? cuda::gram(params, like.device.index, stream_of(launch))
                            : cpu::gram(params, launch.threads);
  });
}

void min_plus(py::handle cost, int64_t steps, py::handle initial, double discount, py::handle values,
              py::handle backpointers, const Launch& launch) {
  MinPlusParams params{};
  const TensorArgument in = take_cost(cost, params.dtype);
  params.batch = in.size(0);
  params.nodes = in.size(1);
  if (params.nodes < 1 || in.size(2) != params.nodes) {
    fail(in, "shape " + text_of(in.sizes), "[batch, nodes, nodes], nodes >= 1");
  }
  if (steps < 1) throw py::value_error("steps: got " + std::to_string(steps) + ", wanted >= 1");
  params.steps = steps;
  params.cost = in.data;
  params.batch_stride = in.stride(0);
  params.source_stride = in.stride(1);
  const TensorArgument start = take_output(initial, "initial", {params.nodes}, "float64", in);
  params.initial = reinterpret_cast<const double*>(start.data);
  params.discount = discount;
  const std::vector<int64_t> shape = {steps, params.batch, params.nodes};
  const auto value_out = take_output(values, "values", shape, "float64", in);
  const auto pointer_out = take_output(backpointers, "backpointers", shape, "int32", in);
  want_all_apart(value_out, {in, start, pointer_out});
  want_all_apart(pointer_out, {in, start});
  params.values = reinterpret_cast<double*>(value_out.data);
  params.backpointers = reinterpret_cast<int32_t*>(pointer_out.data);
  run("min_plus", [&] {
    return in.device.cuda ? cuda::min_plus(params, in.device.index, stream_of(launch))
                          : cpu::min_plus(params, launch.threads);
  });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of oss_ext; use oss_ext.kernels.";
  py::class_<Launch>(m, "Launch")
      .def(py::init<int, uintptr_t, py::object, int64_t>(), py::arg("threads"), py::arg("stream"), py::arg("allocate"),
           py::arg("plan_batch") = 0);
  m.def("pairwise_cost", &pairwise_cost);
  m.def("min_reduce", &min_reduce);
  m.def("advance", &advance);
  m.def("gram", &gram);
  m.def("min_plus", &min_plus);
  bind_best_step(m);
  m.attr("MAX_BASIS") = kMaxBasis;
  m.def("build_info", [] {
    py::dict info;
    info["version"] = OSS_EXT_VERSION;
    info["cuda"] = cuda::compiled();
    info["cuda_architectures"] = OSS_EXT_CUDA_ARCHITECTURES;
    info["cuda_compiler"] = OSS_EXT_CUDA_COMPILER;
    info["compiler"] = OSS_EXT_COMPILER;
    return info;
  });
}

}  // namespace oss_ext::python
