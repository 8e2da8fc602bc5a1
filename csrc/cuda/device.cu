#include "oss_ext/device.h"

#include <cuda_runtime.h>

namespace oss_ext::cuda {

bool compiled() { return true; }
const char* error_string(Status status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

}  // namespace oss_ext::cuda
