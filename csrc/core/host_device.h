// Qualifiers for arithmetic that is shared by the CPU kernels, the CUDA kernels and the tests.
//
// Everything under core/ is plain C++17: it knows nothing of torch, of threads or of CUDA streams.
//
// HMSA_HOST_DEVICE is inlined wherever it is used; HMSA_HOST_DEVICE_CALL stays a call on the GPU: for code that is long
// and seldom reached, where inlining costs minutes of compile time and registers.
#pragma once

#if defined(__CUDACC__)
#define HMSA_HOST_DEVICE __host__ __device__ __forceinline__
#define HMSA_HOST_DEVICE_CALL inline __host__ __device__ __noinline__
#elif defined(__GNUC__)
// Always inlined: code compiled for several instruction sets must not share an out-of-line copy of a function.
#define HMSA_HOST_DEVICE inline __attribute__((always_inline))
#define HMSA_HOST_DEVICE_CALL inline
#else
#define HMSA_HOST_DEVICE inline
#define HMSA_HOST_DEVICE_CALL inline
#endif
