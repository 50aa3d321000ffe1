// How a .cu file here starts a kernel and asks for shared memory, under nvcc and under csrc/host_run alike.
//
//     template <typename S, int N>
//     __global__ void blur(const S* from, S* to) {
//       HMSA_SHARED(float, tile, [8][33]);        // static: __shared__ float tile[8][33]
//       HMSA_DYNAMIC_SHARED(float, rows);         // dynamic: float* rows, as many bytes as the launch gave
//       ...
//     }
//     HMSA_LAUNCH(blur<float, 4>, grid, block, shared_bytes, stream, from, to);
//
// Plain __shared__ is refused by host_run, which could not fill it with NaN at the start of each block. A .cu file
// includes this header, core/ and nothing of torch; the registration with torch lives in the .cpp beside it.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#define HMSA_SHARED(type, name, extent) __shared__ type name extent

// Functions of a thread: inlined, or a call where the code is long and seldom reached.
#define HMSA_DEVICE __device__ __forceinline__
#define HMSA_DEVICE_CALL __device__ __noinline__

// A stretch of work between barriers. Inlined on the GPU, where a call would have to save registers; a call on the CPU,
// where the sanitizers take minutes to compile all of a kernel as one function.
#define HMSA_DEVICE_PHASE HMSA_DEVICE

// Before a loop: over a thread's registers, which must be unrolled, or one that must not.
#define HMSA_UNROLL _Pragma("unroll")
#define HMSA_ROLLED _Pragma("unroll 1")
#define HMSA_PRAGMA(text) _Pragma(#text)
#define HMSA_UNROLL_BY(n) HMSA_PRAGMA(unroll n)

// A large struct as a kernel's parameter: read where it lies in constant memory, never copied to each thread's stack.
#define HMSA_PARAMETER const __grid_constant__

// Registers of a thread, where blocks of an odd number of warps could have more than __launch_bounds__ gives them.
#define HMSA_MOST_REGISTERS(n) __maxnreg__(n)

// One symbol of one type for all kernels of a file: an extern array per type would clash between instantiations.
#define HMSA_DYNAMIC_SHARED(type, name)                                       \
  extern __shared__ __align__(16) unsigned char hmsa_dynamic_shared_memory[]; \
  type* const name = reinterpret_cast<type*>(hmsa_dynamic_shared_memory)

#elif defined(HMSA_HOST_RUN)

#define HMSA_PARAMETER const
#define HMSA_MOST_REGISTERS(n)
#define HMSA_DEVICE inline
#define HMSA_DEVICE_CALL inline
#define HMSA_DEVICE_PHASE inline __attribute__((noinline))
#define HMSA_UNROLL
#define HMSA_ROLLED
#define HMSA_UNROLL_BY(n)

#else
#error "a .cu file needs nvcc, or g++ with -include csrc/host_run/cuda_host.h"
#endif

namespace hmsa {
namespace cuda {

// Throws std::runtime_error when a runtime call failed; `what` names the call.
inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
  }
}

// Starts kernel(args...). More than the 48 KiB of shared memory that every kernel may have is opted in to. The launch
// is checked, the execution is not: it is asynchronous.
template <typename... Parameters, typename... Arguments>
void launch(const char* call, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
            cudaStream_t stream, Arguments&&... arguments) {
  constexpr std::size_t kWithoutOptIn = 48 * 1024;
  if (shared_bytes > kWithoutOptIn) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
          call);
  }
#if defined(__CUDACC__)
  kernel<<<grid, block, shared_bytes, stream>>>(std::forward<Arguments>(arguments)...);
#else
  host_run::run(call, kernel, grid, block, shared_bytes, stream, std::forward<Arguments>(arguments)...);
#endif
  check(cudaGetLastError(), call);
}

}  // namespace cuda
}  // namespace hmsa

// HMSA_INSTANTIATE(declaration): explicit instantiation of a template. A test that includes the .cu file and defines
// HMSA_NO_INSTANTIATIONS compiles only what it uses.
#if defined(HMSA_NO_INSTANTIATIONS)
#define HMSA_INSTANTIATE(...)
#else
#define HMSA_INSTANTIATE(...) template __VA_ARGS__
#endif

// HMSA_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...); `kernel` may be a template with commas.
#define HMSA_LAUNCH(...) ::hmsa::cuda::launch(#__VA_ARGS__, __VA_ARGS__)
