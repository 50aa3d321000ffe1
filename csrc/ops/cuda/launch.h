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
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/check.h"
#include "ops/cuda/device.h"

#if defined(__CUDACC__)

#define HMSA_SHARED(type, name, extent) __shared__ type name extent

// Functions of a thread: inlined, or a call where the code is long and seldom reached.
#define HMSA_DEVICE __device__ __forceinline__
#define HMSA_DEVICE_CALL inline __device__ __noinline__

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

#else

#define HMSA_PARAMETER const
#define HMSA_MOST_REGISTERS(n)
#define HMSA_DEVICE inline
#define HMSA_DEVICE_CALL inline
#define HMSA_DEVICE_PHASE inline __attribute__((noinline))
#define HMSA_UNROLL
#define HMSA_ROLLED
#define HMSA_UNROLL_BY(n)

#endif

namespace hmsa {
namespace cuda {

// Where HMSA_LAUNCH stands, and its arguments as they are written there: for errors.
struct LaunchSite {
  const char* file;
  const char* arguments;
};

// The op, and the kernel where it has a name of its own: "cross_entropy_forward: cross_entropy_total_kernel".
inline std::string name_of(const LaunchSite& site) {
  const char* slash = std::strrchr(site.file, '/');
  std::string op = slash != nullptr ? slash + 1 : site.file;
  op = op.substr(0, op.find('.'));
  // The kernel ends with its template arguments; these, namespaces and parentheses are left out.
  std::string kernel = site.arguments;
  kernel = kernel.substr(0, kernel.find_first_of("<,"));
  const std::size_t begin = kernel.find_last_of("(:");
  if (begin != std::string::npos) kernel = kernel.substr(begin + 1);
  return kernel == "kernel" ? op : op + ": " + kernel;
}

struct LaunchShape {
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes;  // dynamic
};

[[noreturn]] inline void refuse(const LaunchSite& site, const LaunchShape& shape, std::size_t static_bytes,
                                const std::string& reason) {
  const auto sides = [](const dim3& d) { return concat("(", d.x, ", ", d.y, ", ", d.z, ")"); };
  throw std::runtime_error(concat(name_of(site), " cannot be launched with grid ", sides(shape.grid), ", block ",
                                  sides(shape.block), ", ", shape.shared_bytes, " bytes of dynamic and ", static_bytes,
                                  " of static shared memory: ", reason));
}

[[noreturn]] inline void fail(const LaunchSite& site, const void* kernel, const LaunchShape& shape, cudaError_t error) {
  // Nothing of it is left for the next launch, which may be a good one.
  cudaGetLastError();
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) cudaGetLastError();
  refuse(site, shape, attributes.sharedSizeBytes, cudaGetErrorString(error));
}

// Lets a kernel have as much dynamic shared memory as the device has for a block, and throws if a launch asks for more.
// Without it, static and dynamic bytes together may be 48 KiB. Done once for each kernel and device, and with the same
// numbers whatever the launch: another thread's launch of the kernel may come between this and the launch at hand.
inline void opt_in_to_shared_memory(const LaunchSite& site, const void* kernel, const LaunchShape& shape) {
  struct Limits {
    std::size_t static_bytes, dynamic_bytes;
  };
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, Limits> known;
  const int device = current_device();
  const auto most = static_cast<std::size_t>(device_limits(device).shared_per_block);
  const auto limits = [&] {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find({device, kernel});
    if (found != known.end()) return found->second;
    const auto demand = [&](cudaError_t error) {
      if (error != cudaSuccess) fail(site, kernel, shape, error);
    };
    cudaFuncAttributes attributes{};
    demand(cudaFuncGetAttributes(&attributes, kernel));
    const Limits limits{attributes.sharedSizeBytes, most - attributes.sharedSizeBytes};
    demand(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(limits.dynamic_bytes)));
    // Plans count on all of a multiprocessor's shared memory, which the driver may else leave to the L1 cache.
    demand(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100));
    return known.emplace(std::make_pair(device, kernel), limits).first->second;
  }();
  if (shape.shared_bytes > limits.dynamic_bytes) {
    refuse(site, shape, limits.static_bytes, concat("a block on this GPU has ", most, " bytes at most"));
  }
}

// Starts kernel(args...). The launch is checked, the execution is not: it is asynchronous. An error that other code has
// left with the runtime is not taken for one of the launch.
template <typename... Parameters, typename... Arguments>
void launch(const LaunchSite& site, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
            cudaStream_t stream, Arguments&&... arguments) {
  const LaunchShape shape{grid, block, shared_bytes};
  const auto address = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > 0) opt_in_to_shared_memory(site, address, shape);
#if defined(__CUDACC__)
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
#else
  const cudaError_t error = host_run::run(name_of(site).c_str(), kernel, grid, block, shared_bytes, stream,
                                          std::forward<Arguments>(arguments)...);
#endif
  if (error != cudaSuccess) fail(site, address, shape, error);
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
#define HMSA_LAUNCH(...) ::hmsa::cuda::launch(::hmsa::cuda::LaunchSite{__FILE__, #__VA_ARGS__}, __VA_ARGS__)
