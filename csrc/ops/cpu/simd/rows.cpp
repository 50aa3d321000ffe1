// The row primitives in plain loops that compilers vectorise. Compiled once per instruction set, each time with
// HMSA_SIMD_NAMESPACE naming it (v2, v3, v4 of x86-64, or generic), see CMakeLists.txt.
//
// Everything below is inside an unnamed namespace or HMSA_SIMD_NAMESPACE: an inline function shared with another
// translation unit could be merged by the linker into the copy built for a newer processor.
#include "ops/cpu/simd/rows.h"

#include "core/blend.h"

#ifndef HMSA_SIMD_NAMESPACE
#define HMSA_SIMD_NAMESPACE generic
#endif
#define HMSA_STRINGIZE_(x) #x
#define HMSA_STRINGIZE(x) HMSA_STRINGIZE_(x)

namespace hmsa {
namespace {

// One vector of sources holds what a vector of outputs reads wherever a row is stretched: it is loaded once and both
// taps are picked from it in registers, several times faster than gathering them from memory.
#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 0;
#endif

template <typename T>
int64_t expand_vectors(T*, const T*, int32_t, const int32_t*, const int32_t*, const T*, int64_t) {
  return 0;
}

#if defined(__AVX2__)
int64_t expand_vectors(float* __restrict__ to, const float* __restrict__ from, int32_t shift,
                       const int32_t* __restrict__ first, const int32_t* __restrict__ second,
                       const float* __restrict__ weight, int64_t n) {
  typedef float Floats __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
  typedef int32_t Ints __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
  int64_t x = 0;
  for (; x + kLanes <= n; x += kLanes) {
    const int32_t base = first[x];
    if (second[x + kLanes - 1] - base >= kLanes) break;  // a reduction: the plain loop goes on
    const Floats source = *reinterpret_cast<const Floats*>(from + (base - shift));
    const Floats a = __builtin_shuffle(source, *reinterpret_cast<const Ints*>(first + x) - base);
    const Floats b = __builtin_shuffle(source, *reinterpret_cast<const Ints*>(second + x) - base);
    const Floats w = *reinterpret_cast<const Floats*>(weight + x);
    *reinterpret_cast<Floats*>(to + x) = (1.0f - w) * a + w * b;
  }
  return x;
}
#endif

template <typename T>
void expand(T* __restrict__ to, const T* __restrict__ from, int32_t shift, const int32_t* __restrict__ first,
            const int32_t* __restrict__ second, const T* __restrict__ weight, int64_t n) {
  for (int64_t x = expand_vectors(to, from, shift, first, second, weight, n); x < n; ++x) {
    to[x] = hmsa::lerp(from[first[x] - shift], from[second[x] - shift], weight[x]);
  }
}

template <typename T>
void lerp(T* __restrict__ to, const T* __restrict__ a, const T* __restrict__ b, T weight, int64_t n) {
  for (int64_t x = 0; x < n; ++x) to[x] = hmsa::lerp(a[x], b[x], weight);
}

template <typename T>
void multiply(T* __restrict__ to, const T* __restrict__ a, const T* __restrict__ b, int64_t n) {
  for (int64_t x = 0; x < n; ++x) to[x] = a[x] * b[x];
}

template <typename T>
void multiply_complement(T* __restrict__ to, const T* __restrict__ a, int64_t n) {
  for (int64_t x = 0; x < n; ++x) to[x] *= T(1) - a[x];
}

template <typename T>
void multiply_add(T* __restrict__ to, const T* __restrict__ a, const T* __restrict__ b, int64_t n) {
  for (int64_t x = 0; x < n; ++x) to[x] += a[x] * b[x];
}

template <typename T>
void multiply_difference_add(T* __restrict__ to, const T* __restrict__ a, const T* __restrict__ b,
                             const T* __restrict__ c, int64_t n) {
  for (int64_t x = 0; x < n; ++x) to[x] += a[x] * (b[x] - c[x]);
}

// Four rows at a time, so that the sum stays in registers and is written once.
template <typename T>
void gather(T* __restrict__ to, const T* __restrict__ first, int64_t pitch, const T* __restrict__ weight, int32_t count,
            int64_t n) {
  if (count == 0) {
    for (int64_t x = 0; x < n; ++x) to[x] = 0;
  }
  for (int32_t k = 0; k < count; k += 4) {
    const T* a = first + k * pitch;
    const T* b = k + 1 < count ? a + pitch : a;
    const T* c = k + 2 < count ? a + 2 * pitch : a;
    const T* d = k + 3 < count ? a + 3 * pitch : a;
    const T wa = weight[k];
    const T wb = k + 1 < count ? weight[k + 1] : T(0);
    const T wc = k + 2 < count ? weight[k + 2] : T(0);
    const T wd = k + 3 < count ? weight[k + 3] : T(0);
    if (k == 0) {
      for (int64_t x = 0; x < n; ++x) to[x] = wa * a[x] + wb * b[x] + wc * c[x] + wd * d[x];
    } else {
      for (int64_t x = 0; x < n; ++x) to[x] += wa * a[x] + wb * b[x] + wc * c[x] + wd * d[x];
    }
  }
}

// sum_k weight[k] from[k], four chains of additions side by side.
template <typename T>
T dot(const T* __restrict__ weight, const T* __restrict__ from, int32_t count) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T)), aligned(alignof(T)), may_alias));
  Four sums = {0, 0, 0, 0};
  int32_t k = 0;
  for (; k + 4 <= count; k += 4) {
    sums += *reinterpret_cast<const Four*>(weight + k) * *reinterpret_cast<const Four*>(from + k);
  }
  T sum = (sums[0] + sums[2]) + (sums[1] + sums[3]);
  for (; k < count; ++k) sum += weight[k] * from[k];
  return sum;
}

template <typename T>
void contract(T* __restrict__ to, const T* __restrict__ from, int32_t shift, const int32_t* __restrict__ origin,
              const int32_t* __restrict__ start, const T* __restrict__ weight, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    to[i] = dot(weight + start[i], from + (origin[i] - shift), start[i + 1] - start[i]);
  }
}

template <typename T>
void blend_upper(T* __restrict__ to, const T* __restrict__ attention, const T* __restrict__ logit0,
                 const T* __restrict__ logit1, T logit_weight, const T* __restrict__ before0,
                 const T* __restrict__ before1, T before_weight, int64_t n) {
  for (int64_t x = 0; x < n; ++x) {
    const T logit = hmsa::lerp(logit0[x], logit1[x], logit_weight);
    const T before = hmsa::lerp(before0[x], before1[x], before_weight);
    to[x] = hmsa::blend_upper(attention[x], logit, before);
  }
}

template <typename T>
void blend_lower(T* to, const T* __restrict__ attention, const T* __restrict__ product0, const T* __restrict__ product1,
                 T product_weight, const T* before, int64_t n) {
  for (int64_t x = 0; x < n; ++x) {  // `before` may be `to`: each element is read before it is written
    to[x] = hmsa::blend_lower(attention[x], hmsa::lerp(product0[x], product1[x], product_weight), before[x]);
  }
}

// Conversions. Float and double are copied; half types go through float.
template <typename T>
T widen(T value, T*) {
  return value;
}
template <typename S, typename T>
T widen(S value, T*) {
  return static_cast<T>(to_float(value));
}
template <typename T>
void narrow(T* to, T value) {
  *to = value;
}
template <typename T>
void narrow(Half* to, T value) {
  *to = to_half(static_cast<float>(value));
}
template <typename T>
void narrow(BFloat16* to, T value) {
  *to = to_bfloat16(static_cast<float>(value));
}

template <typename S, typename T>
void load(T* __restrict__ to, const S* __restrict__ from, int64_t stride, int64_t n) {
  if (stride == 1) {
    for (int64_t x = 0; x < n; ++x) to[x] = widen(from[x], to);
  } else {
    for (int64_t x = 0; x < n; ++x) to[x] = widen(from[x * stride], to);
  }
}

template <typename S, typename T>
void store(S* __restrict__ to, int64_t stride, const T* __restrict__ from, int64_t n) {
  if (stride == 1) {
    for (int64_t x = 0; x < n; ++x) narrow(to + x, from[x]);
  } else {
    for (int64_t x = 0; x < n; ++x) narrow(to + x * stride, from[x]);
  }
}

template <typename T>
constexpr RowOps<T> table() {
  return RowOps<T>{HMSA_STRINGIZE(HMSA_SIMD_NAMESPACE),
                   expand<T>,
                   lerp<T>,
                   multiply<T>,
                   multiply_complement<T>,
                   multiply_add<T>,
                   multiply_difference_add<T>,
                   gather<T>,
                   contract<T>,
                   blend_upper<T>,
                   blend_lower<T>,
                   load<T, T>,
                   store<T, T>,
                   load<Half, T>,
                   store<Half, T>,
                   load<BFloat16, T>,
                   store<BFloat16, T>};
}

}  // namespace

namespace HMSA_SIMD_NAMESPACE {
extern const RowOps<float> float_rows;
extern const RowOps<double> double_rows;
const RowOps<float> float_rows = table<float>();
const RowOps<double> double_rows = table<double>();
}  // namespace HMSA_SIMD_NAMESPACE

}  // namespace hmsa
