// What the caller may ask of the CUDA side as such.
#pragma once

#include "oss_ext/types.h"

namespace oss_ext::cuda {

bool compiled();
// The CUDA runtime's name and text for a positive Status; static storage.
const char* error_string(Status status);

}  // namespace oss_ext::cuda
