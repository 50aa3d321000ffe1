// Which instruction set the row primitives of the CPU kernels use (simd/dispatch.cpp).
#pragma once

namespace hmsa {

// v2, v3 or v4 on x86-64 (for x86-64-v2 and so on), generic elsewhere. The choice is made once: the best that the
// processor has, or the one that the environment variable HMSA_SIMD names. Throws std::runtime_error where HMSA_SIMD
// names no instruction set of the library, or one that the processor lacks.
const char* instruction_set();

}  // namespace hmsa
