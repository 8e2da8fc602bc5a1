// Reads what the kernels need from a torch tensor through its Python attributes, so that no torch headers or libraries
// are wanted at build time, and turns a wrong one into an error that names the argument.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "oss_ext/types.h"

namespace oss_ext::python {

namespace py = pybind11;

struct Device {
  bool cuda = false;
  int index = 0;
  bool operator==(const Device& other) const { return cuda == other.cuda && index == other.index; }
  std::string text() const { return cuda ? "cuda:" + std::to_string(index) : "cpu"; }
};

struct TensorArgument {
  std::string name;
  char* data = nullptr;
  std::vector<int64_t> sizes, strides;
  std::string dtype;  // as torch prints it, without "torch."
  Device device;

  int64_t size(int k) const { return sizes[static_cast<size_t>(k)]; }
  int64_t stride(int k) const { return strides[static_cast<size_t>(k)]; }
  int rank() const { return static_cast<int>(sizes.size()); }
};

inline std::string text_of(const std::vector<int64_t>& sizes) {
  std::string out = "[";
  for (size_t k = 0; k < sizes.size(); ++k) out += (k ? ", " : "") + std::to_string(sizes[k]);
  return out + "]";
}

[[noreturn]] inline void fail(const TensorArgument& t, const std::string& came, const std::string& wanted) {
  throw py::value_error(t.name + ": got " + came + ", wanted " + wanted);
}

// A call reads half a dozen tensors, so this is kept short: a dtype is told by its object, not by its text.
inline const char* dtype_name(PyObject* dtype) {
  struct Known {
    const char* name;
    PyObject* object;
  };
  static const std::vector<Known> known = [] {
    std::vector<Known> list;
    py::module_ torch = py::module_::import("torch");
    for (const char* name : {"float32", "bfloat16", "float16", "float64", "int32", "int64", "uint8", "bool"}) {
      list.push_back({name, py::object(torch.attr(name)).release().ptr()});
    }
    return list;
  }();
  for (const Known& entry : known) {
    if (entry.object == dtype) return entry.name;
  }
  return nullptr;
}

inline std::vector<int64_t> read_tuple(py::handle object) {
  std::vector<int64_t> values;
  for (py::handle item : py::reinterpret_borrow<py::tuple>(object)) values.push_back(item.cast<int64_t>());
  return values;
}

inline TensorArgument read_tensor(py::handle object, const std::string& name) {
  TensorArgument t;
  t.name = name;
  try {
    t.sizes = read_tuple(object.attr("shape"));
    t.strides = read_tuple(object.attr("stride")());
    py::object dtype = object.attr("dtype"), device = object.attr("device");
    const char* known = dtype_name(dtype.ptr());
    t.dtype = known ? known : py::str(dtype).cast<std::string>();
    const auto type = device.attr("type").cast<std::string>();
    if (type != "cpu" && type != "cuda") {
      throw py::value_error(name + ": got device '" + type + "', wanted 'cpu' or 'cuda'");
    }
    t.device.cuda = type == "cuda";
    if (t.device.cuda) t.device.index = device.attr("index").cast<int>();
    t.data = reinterpret_cast<char*>(object.attr("data_ptr")().cast<uintptr_t>());
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_AttributeError)) throw;
    throw py::type_error(name + ": got " + py::type::of(object).attr("__name__").cast<std::string>() +
                         ", wanted a torch.Tensor");
  }
  return t;
}

// The dtype of inputs that the kernels take.
inline DType read_dtype(const TensorArgument& t) {
  if (t.dtype == "float32") return DType::f32;
  if (t.dtype == "bfloat16") return DType::bf16;
  if (t.dtype == "float16") return DType::f16;
  if (t.dtype == "float64") return DType::f64;
  throw py::type_error(t.name + ": got dtype " + t.dtype + ", wanted float32, bfloat16, float16 or float64");
}

inline const char* acc_name(DType dtype) { return dtype == DType::f64 ? "float64" : "float32"; }

inline void want_dtype(const TensorArgument& t, const std::string& wanted) {
  if (t.dtype != wanted) throw py::type_error(t.name + ": got dtype " + t.dtype + ", wanted " + wanted);
}

inline void want_device(const TensorArgument& t, const TensorArgument& like) {
  if (!(t.device == like.device))
    fail(t, "device " + t.device.text(), like.device.text() + ", the device of " + like.name);
}

inline void want_shape(const TensorArgument& t, const std::vector<int64_t>& wanted, const char* meaning) {
  if (t.sizes != wanted) fail(t, "shape " + text_of(t.sizes), text_of(wanted) + " = " + meaning);
}

// Strides of dimensions of size 1 (and of empty tensors) carry no meaning, so they are not looked at.
inline bool dense_from(const TensorArgument& t, int first) {
  int64_t expected = 1;
  for (int k = t.rank() - 1; k >= first; --k) {
    if (t.size(k) == 0) return true;
    if (t.size(k) != 1 && t.stride(k) != expected) return false;
    expected *= t.size(k);
  }
  return true;
}

// first: the leading dimensions before it may have any stride.
inline void want_contiguous(const TensorArgument& t, int first = 0) {
  if (dense_from(t, first)) return;
  const std::string which =
      first == 0 ? "a contiguous tensor" : "the last " + std::to_string(t.rank() - first) + " dimension(s) contiguous";
  fail(t, "strides " + text_of(t.strides) + " for shape " + text_of(t.sizes), which + " (call .contiguous())");
}

// First and one-past-last byte that the tensor can touch; empty tensors touch none.
inline std::pair<const char*, const char*> extent(const TensorArgument& t, int64_t element_bytes) {
  int64_t low = 0, high = 0;
  for (int k = 0; k < t.rank(); ++k) {
    if (t.size(k) == 0) return {t.data, t.data};
    (t.stride(k) < 0 ? low : high) += (t.size(k) - 1) * t.stride(k);
  }
  return {t.data + low * element_bytes, t.data + (high + 1) * element_bytes};
}

inline int64_t bytes_of_dtype(const TensorArgument& t) {
  return t.dtype == "float64" ? 8 : (t.dtype == "float32" || t.dtype == "int32") ? 4 : t.dtype == "uint8" ? 1 : 2;
}

inline void want_apart(const TensorArgument& out, const TensorArgument& in) {
  const auto a = extent(out, bytes_of_dtype(out)), b = extent(in, bytes_of_dtype(in));
  if (a.first < b.second && b.first < a.second) {
    fail(out, "memory that overlaps " + in.name, "memory of its own");
  }
}

}  // namespace oss_ext::python
