// exp, log and log1p for vectors of floats, without branches: for the row primitives, compiled once per instruction set.
//
// Accuracy: exp 1 ulp (results below the smallest normal number become 0, above 2.4e38 infinity), log_positive and log1p
// 2 ulp. NaN in gives NaN out. Doubles go element by element through the C library: they are there for checks.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace hmsa {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// A vector of T, the integers of the same width (comparisons give -1 and 0), and moves between vectors and memory.
template <typename T>
struct Vector;

template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t mask __attribute__((vector_size(kVectorBytes)));
  static constexpr int64_t kLanes = kVectorBytes / sizeof(float);
};

template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t mask __attribute__((vector_size(kVectorBytes)));
  static constexpr int64_t kLanes = kVectorBytes / sizeof(double);
};

template <typename T>
using vector_t = typename Vector<T>::type;
template <typename T>
using mask_t = typename Vector<T>::mask;

template <typename T>
inline vector_t<T> load_vector(const T* from) {
  vector_t<T> value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <typename T>
inline void store_vector(T* to, vector_t<T> value) {
  std::memcpy(to, &value, sizeof(value));
}

template <typename T>
inline vector_t<T> all(T value) {
  return value - vector_t<T>{};
}

using FloatVector = vector_t<float>;
using IntVector = mask_t<float>;
typedef uint32_t BitVector __attribute__((vector_size(kVectorBytes)));
using DoubleVector = vector_t<double>;

// Without the limits of its range.
inline FloatVector exp_between(FloatVector x) {
  // x = n ln 2 + r. Adding 1.5 * 2^23 rounds to the nearest whole n and leaves it in the low bits.
  constexpr float kRound = 12582912.0f;
  const FloatVector shifted = x * 1.44269504088896341f + kRound;
  const FloatVector n = shifted - kRound;
  FloatVector r = x - n * 0.693359375f;
  r = r + n * 2.12194440054690583e-4f;
  // exp(r) = 1 + r + r^2 q(r) for |r| <= ln 2 / 2. The relative error of this q, fitted by reweighted least squares, is
  // 3.1e-9. Its halves need not wait for each other.
  const FloatVector square = r * r;
  const FloatVector upper = (r * 8.36874544620514e-3f + 4.1668388992548e-2f) + square * 1.38145394157618e-3f;
  const FloatVector q = (r * 1.66665211319923e-1f + 4.99999940395355e-1f) + square * upper;
  const FloatVector p = (square * q + r) + 1.0f;
  // times 2^n, by adding to the exponent
  BitVector bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits << 23) + 0x3f800000u;
  FloatVector scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return p * scale;
}

// For x <= 88: differences from a largest logit or from a log-sum-exp.
inline FloatVector exp_below(FloatVector x) { return x < all(-87.33654f) ? all(0.0f) : exp_between(x); }

inline FloatVector exp_of(FloatVector x) { return x > all(88.37626f) ? all(HUGE_VALF) : exp_below(x); }

// For x > 0, and infinity.
inline FloatVector log_positive(FloatVector x) {
  // x = 2^n m with m in [sqrt(1/2), sqrt(2))
  BitVector bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const IntVector exponent = reinterpret_cast<IntVector>(bits - 0x3f3504f3u) >> 23;  // of sqrt(1/2)
  bits = bits - (reinterpret_cast<BitVector>(exponent) << 23);
  FloatVector m;
  std::memcpy(&m, &bits, sizeof(m));
  const FloatVector n = __builtin_convertvector(exponent, FloatVector);
  // log(1 + f), coefficients of Cephes logf
  const FloatVector f = m - 1.0f;
  const FloatVector z = f * f;
  FloatVector p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  p = p * f * z;
  p = p - n * 2.12194440e-4f - z * 0.5f;
  FloatVector result = f + p + n * 0.693359375f;
  result = x == all(HUGE_VALF) ? x : result;
  return x == x ? result : x;
}

// log(1 + x) for x >= 0, as accurate for a small x.
inline FloatVector log1p_positive(FloatVector x) {
  const FloatVector u = x + 1.0f;
  // What the addition lost, by the derivative of the logarithm.
  const FloatVector lost = (x - (u - 1.0f)) / u;
  const FloatVector result = log_positive(u) + lost;
  return x == all(HUGE_VALF) ? x : result;
}

template <typename Function>
inline DoubleVector each(DoubleVector x, Function function) {
  for (int64_t k = 0; k < Vector<double>::kLanes; ++k) x[k] = function(x[k]);
  return x;
}

inline DoubleVector exp_of(DoubleVector x) {
  return each(x, [](double value) { return std::exp(value); });
}
inline DoubleVector exp_below(DoubleVector x) { return exp_of(x); }
inline DoubleVector log_positive(DoubleVector x) {
  return each(x, [](double value) { return std::log(value); });
}
inline DoubleVector log1p_positive(DoubleVector x) {
  return each(x, [](double value) { return std::log1p(value); });
}

}  // namespace
}  // namespace hmsa
