// Elements picked from vectors of floats in registers: for the row primitives, compiled once per instruction set. There is
// nothing here for less than AVX2.
#pragma once

#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace hmsa {
namespace {

// One or two vectors of sources hold what a vector of outputs reads, wherever a row is stretched or shrunk by up to two:
// taps are picked from them in registers, several times faster than gathering. Lanes count through both vectors.
#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
using Floats = __m512;
using Lanes = __m512i;

inline Floats load_floats(const float* at) { return _mm512_loadu_ps(at); }
inline void store_floats(float* at, Floats value) { _mm512_storeu_ps(at, value); }
inline Lanes lanes_from(const int32_t* index, int32_t base) {
  return _mm512_sub_epi32(_mm512_loadu_si512(index), _mm512_set1_epi32(base));
}
// (The form without a mask makes GCC 12 warn of its own header.)
inline Floats pick(Floats from, Lanes lanes) { return _mm512_maskz_permutexvar_ps(0xffff, lanes, from); }
inline Floats pick(Floats low, Floats high, Lanes lanes) { return _mm512_permutex2var_ps(low, lanes, high); }
inline Floats multiply_floats(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats multiply_add_floats(Floats a, Floats b, Floats sum) { return _mm512_fmadd_ps(a, b, sum); }
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8;
using Floats = __m256;
using Lanes = __m256i;

inline Floats load_floats(const float* at) { return _mm256_loadu_ps(at); }
inline void store_floats(float* at, Floats value) { _mm256_storeu_ps(at, value); }
inline Lanes lanes_from(const int32_t* index, int32_t base) {
  return _mm256_sub_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)), _mm256_set1_epi32(base));
}
inline Floats pick(Floats from, Lanes lanes) { return _mm256_permutevar8x32_ps(from, lanes); }
inline Floats pick(Floats low, Floats high, Lanes lanes) {
  // Bit 3 of a lane says which vector it lies in; shifted to the sign it chooses for blendv.
  const __m256 in_high = _mm256_castsi256_ps(_mm256_slli_epi32(lanes, 28));
  return _mm256_blendv_ps(pick(low, lanes), pick(high, lanes), in_high);
}
inline Floats multiply_floats(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats multiply_add_floats(Floats a, Floats b, Floats sum) { return _mm256_fmadd_ps(a, b, sum); }
#endif

}  // namespace
}  // namespace hmsa
