#include <cuda_runtime.h>

#include "oss_ext/device.h"

namespace oss_ext::cuda {

bool compiled() { return true; }
const char* error_string(Status status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

}  // namespace oss_ext::cuda
