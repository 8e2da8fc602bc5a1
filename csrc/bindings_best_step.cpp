// best_step: screen, shortlist, weigh and choose as one call.
#include "bindings_best_step.h"

#include "kernel_arguments.h"
#include "oss_ext/best_step.h"

namespace oss_ext::python {
namespace {

// Bytes lent for one call, the latest last.
class Workspace {
 public:
  explicit Workspace(const Launch& launch) : launch_(launch) {}

  template <typename T>
  T* lend(int64_t count) {
    kept_.push_back(launch_.allocate(count * static_cast<int64_t>(sizeof(T))));
    return reinterpret_cast<T*>(read_tensor(kept_.back(), "workspace").data);
  }

  // The rows lent last, of so many numbers each, joined by `exchange(what, bytes, bytes of a row)` to those of the
  // other processes: how many there are then.
  template <typename T>
  int64_t exchange(const py::object& exchange, const char* what, T*& data, int64_t numbers) {
    const int64_t bytes = numbers * static_cast<int64_t>(sizeof(T));
    if (!exchange.is_none()) kept_.push_back(exchange(what, kept_.back(), bytes));
    const TensorArgument all = read_tensor(kept_.back(), what);
    data = reinterpret_cast<T*>(all.data);
    return bytes == 0 ? 0 : all.size(0) / bytes;
  }

 private:
  const Launch& launch_;
  std::vector<py::object> kept_;
};

// What both calls read: screening's arguments but for the places and the bounds.
std::vector<TensorArgument> take_steps(const std::vector<py::object>& basis, py::handle coefficients, py::handle target,
                                       int64_t source_begin, int64_t source_end, bool joint, ScreenParams& params) {
  auto inputs = take_basis(basis, params);
  const TensorArgument like = inputs[0];
  inputs.push_back(take_coefficients(coefficients, params, like));
  inputs.push_back(take_target(target, params, like));
  take_sources(params, source_begin, source_end);
  params.joint = joint;
  params.splits = 0;
  if (like.device.cuda) {
    params.splits = cuda::screen_splits(params, source_begin, source_end, like.device.index);
    if (params.splits < 0) raise_on(static_cast<Status>(params.splits), "best_step");
  }
  return inputs;
}

bool can_best_step(const std::vector<py::object>& basis, py::handle coefficients, py::handle target,
                   int64_t source_begin, int64_t source_end, bool joint) {
  ScreenParams params{};
  take_steps(basis, coefficients, target, source_begin, source_end, joint, params);
  return params.splits > 0;
}

bool best_step(const std::vector<py::object>& basis, py::handle coefficients, py::handle target,
               const py::object& place, int64_t source_begin, int64_t source_end, bool joint, py::handle values,
               py::handle backpointers, py::handle out, const py::object& exchange, const Launch& launch) {
  ScreenParams screening{};
  const auto inputs = take_steps(basis, coefficients, target, source_begin, source_end, joint, screening);
  const TensorArgument& like = inputs[0];
  screening.place = static_cast<const double*>(take_vector(place, "place", screening.nodes, "float64", like));
  const int64_t groups = joint ? 1 : screening.batch, nodes = screening.nodes;
  const auto shape = joint ? std::vector<int64_t>{nodes} : std::vector<int64_t>{groups, nodes};
  const auto value_out = take_output(values, "values", shape, "float64", like);
  const auto pointer_out = take_output(backpointers, "backpointers", shape, "int32", like);
  const auto state_out = take_output(out, "out", like.sizes, like.dtype, like);
  want_all_apart(state_out, inputs);
  if (screening.splits == 0) return false;

  const int device = like.device.index;
  void* stream = stream_of(launch);
  Workspace workspace(launch);
  const int64_t table = groups * nodes * nodes;
  screening.bounds = workspace.lend<float>(screening.splits * table * 2);
  run("screen", [&] { return cuda::screen(screening, device, stream); });

  ShortlistParams listing{};
  listing.parts = workspace.exchange(exchange, "bounds", screening.bounds, table * 2);
  listing.bounds = screening.bounds;
  listing.groups = groups;
  listing.nodes = nodes;
  listing.source_begin = source_begin;
  listing.source_end = source_end;
  listing.sources = workspace.lend<int32_t>(table);
  listing.counts = workspace.lend<int32_t>(groups * nodes);
  run("shortlist", [&] { return cuda::shortlist(listing, device, stream); });

  WeighParams weighing{};
  static_cast<StepsParams&>(weighing) = screening;
  weighing.sources = listing.sources;
  weighing.counts = listing.counts;
  weighing.parts = cuda::weigh_parts(screening);
  weighing.out = state_out.data;
  const int64_t row = nodes * (nodes - 1) / 2 * weighing.parts;
  weighing.exact = workspace.lend<double>(screening.batch * row);
  run("weigh", [&] { return cuda::weigh(weighing, device, stream); });

  ChooseParams choosing{};
  static_cast<StepsParams&>(choosing) = screening;
  choosing.all = workspace.exchange(exchange, "exact", weighing.exact, row);
  choosing.exact = weighing.exact;
  choosing.sources = listing.sources;
  choosing.counts = listing.counts;
  choosing.parts = weighing.parts;
  choosing.values = reinterpret_cast<double*>(value_out.data);
  choosing.backpointers = reinterpret_cast<int32_t*>(pointer_out.data);
  choosing.out = state_out.data;
  run("choose", [&] { return cuda::choose(choosing, device, stream); });
  return true;
}

}  // namespace

void bind_best_step(py::module_& m) {
  m.def("can_best_step", &can_best_step);
  m.def("best_step", &best_step);
}

}  // namespace oss_ext::python
