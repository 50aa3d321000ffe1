// A CUDA stream, for headers that must not need the CUDA toolkit.
#pragma once

namespace hmsa {
namespace cuda {

using StreamHandle = void*;  // cudaStream_t

}  // namespace cuda
}  // namespace hmsa
