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

template <typename T>
void expand(T* __restrict__ to, const T* __restrict__ from, int32_t shift, const int32_t* __restrict__ first,
            const int32_t* __restrict__ second, const T* __restrict__ weight, int64_t n) {
  for (int64_t x = 0; x < n; ++x) {
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

template <typename T>
void contract(T* __restrict__ to, const T* __restrict__ from, int32_t shift, const int32_t* __restrict__ origin,
              const int32_t* __restrict__ start, const T* __restrict__ weight, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const T* source = from + (origin[i] - shift);
    T sum = 0;
    for (int32_t k = start[i]; k < start[i + 1]; ++k) sum += weight[k] * source[k - start[i]];
    to[i] = sum;
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
