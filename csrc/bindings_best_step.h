#pragma once

#include <pybind11/pybind11.h>

namespace oss_ext::python {

void bind_best_step(pybind11::module_& m);

}  // namespace oss_ext::python
