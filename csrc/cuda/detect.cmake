# Decides whether to compile CUDA, and for which architectures. Included by the top-level file, where a language must be
# enabled. Sets OSS_EXT_CUDA_COMPILER and OSS_EXT_CUDA_ARCHITECTURES: empty for a CPU build.
set(OSS_EXT_CUDA_COMPILER "")
set(OSS_EXT_CUDA_ARCHITECTURES "")
if(NOT OSS_EXT_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
endif()
if(NOT CMAKE_CUDA_COMPILER OR OSS_EXT_CUDA STREQUAL "OFF")
  if(OSS_EXT_CUDA STREQUAL "ON")
    message(FATAL_ERROR "OSS_EXT_CUDA=ON, but no CUDA compiler was found. Put nvcc on PATH, or set CUDACXX or "
                        "CMAKE_CUDA_COMPILER to it; OSS_EXT_CUDA=OFF builds the CPU kernels alone.")
  endif()
  message(NOTICE "oss_ext: CPU kernels only (OSS_EXT_CUDA=${OSS_EXT_CUDA}, no CUDA compiler in use)")
  return()
endif()

# Architectures: what the user asked for, else the GPUs present, else a build that runs on all from sm_80 on: machine code
# for 8.x and 9.0, and PTX that the driver compiles once for 10.x, 12.x and later.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                  OUTPUT_VARIABLE present RESULT_VARIABLE failed ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT failed AND present MATCHES "^[0-9]+\\.[0-9]+(\n[0-9]+\\.[0-9]+)*$")
    string(REPLACE "." "" present "${present}")
    string(REPLACE "\n" ";" present "${present}")
    list(REMOVE_DUPLICATES present)
    set(CMAKE_CUDA_ARCHITECTURES ${present})
  else()
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
  endif()
endif()
# Kernels for 9.0 use instructions that only the architecture 90a has; later GPUs take PTX without them.
list(TRANSFORM CMAKE_CUDA_ARCHITECTURES REPLACE "^90$" "90a-real;90-virtual")
list(TRANSFORM CMAKE_CUDA_ARCHITECTURES REPLACE "^90-real$" "90a-real")
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
set(OSS_EXT_CUDA_COMPILER "${CMAKE_CUDA_COMPILER_ID} ${CMAKE_CUDA_COMPILER_VERSION}")
string(REPLACE ";" " " OSS_EXT_CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")
message(NOTICE "oss_ext: CPU and CUDA kernels (nvcc ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${OSS_EXT_CUDA_ARCHITECTURES})")
