// Qualifiers for arithmetic that is shared by the CPU kernels, the CUDA kernels and the tests.
//
// Everything under core/ is plain C++17: it knows nothing of torch, of threads or of CUDA streams.
#pragma once

#if defined(__CUDACC__)
#define HMSA_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// Always inlined: code compiled for several instruction sets must not share an out-of-line copy of a function.
#define HMSA_HOST_DEVICE inline __attribute__((always_inline))
#else
#define HMSA_HOST_DEVICE inline
#endif
