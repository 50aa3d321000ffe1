// The row primitives in plain loops that compilers vectorise. Compiled once per instruction set, each time with
// HMSA_SIMD_NAMESPACE naming it (v2, v3, v4 of x86-64, or generic), see CMakeLists.txt.
//
// Everything below is inside an unnamed namespace or HMSA_SIMD_NAMESPACE: an inline function shared with another
// translation unit could be merged by the linker into the copy built for a newer processor.
#include "ops/cpu/simd/rows.h"

#include <cstring>

#include "core/blend.h"
#include "ops/cpu/simd/permute.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef HMSA_SIMD_NAMESPACE
#define HMSA_SIMD_NAMESPACE generic
#endif
#define HMSA_STRINGIZE_(x) #x
#define HMSA_STRINGIZE(x) HMSA_STRINGIZE_(x)

namespace hmsa {
namespace {

template <typename T>
int64_t resample_vectors(T*, const T*, const TapTable<T>&, int64_t) {
  return 0;
}

#if defined(__AVX2__)
// A vector of outputs whose taps all lie in the vector of sources from `base` on ...
template <int kTaps>
struct Near {
  Lanes lanes[kTaps];

  static bool fits(const TapTable<float>& table, int64_t x) {
    return table.index[(kTaps - 1) * table.pitch + x + kLanes - 1] - table.index[x] < kLanes;
  }
  Near(const TapTable<float>& table, int64_t x) {
    for (int k = 0; k < kTaps; ++k) lanes[k] = lanes_from(table.index + k * table.pitch + x, table.index[x]);
  }
  Floats sum(const float* source, const Floats* weight) const {
    const Floats all = load_floats(source);
    Floats sum = multiply_floats(weight[0], pick(all, lanes[0]));
    for (int k = 1; k < kTaps; ++k) sum = multiply_add_floats(weight[k], pick(all, lanes[k]), sum);
    return sum;
  }
};

// ... or each tap in two vectors of its own. (Taps between the first and the last may go back from one output to the next,
// where outputs of fewer taps repeat one.)
template <int kTaps>
struct Wide {
  Lanes lanes[kTaps];
  int32_t first[kTaps];

  static bool fits(const TapTable<float>& table, int64_t x) {
    for (int k = 0; k < kTaps; ++k) {
      const int32_t* index = table.index + k * table.pitch + x;
      if (largest(index) - least(index) >= 2 * kLanes) return false;
    }
    return true;
  }
  Wide(const TapTable<float>& table, int64_t x) {
    for (int k = 0; k < kTaps; ++k) {
      const int32_t* index = table.index + k * table.pitch + x;
      const int32_t base = least(index);
      first[k] = base - table.index[x];
      lanes[k] = lanes_from(index, base);
    }
  }
  Floats sum(const float* source, const Floats* weight) const {
    Floats sum = multiply_floats(weight[0], tap(source, 0));
    for (int k = 1; k < kTaps; ++k) sum = multiply_add_floats(weight[k], tap(source, k), sum);
    return sum;
  }

 private:
  static int32_t least(const int32_t* index) {
    int32_t value = index[0];
    for (int64_t lane = 1; lane < kLanes; ++lane) value = index[lane] < value ? index[lane] : value;
    return value;
  }
  static int32_t largest(const int32_t* index) {
    int32_t value = index[0];
    for (int64_t lane = 1; lane < kLanes; ++lane) value = index[lane] > value ? index[lane] : value;
    return value;
  }
  Floats tap(const float* source, int k) const {
    return pick(load_floats(source + first[k]), load_floats(source + first[k] + kLanes), lanes[k]);
  }
};

#if !defined(__AVX512F__)
// ... or pairs of taps side by side, two elements from one output to the next: what a map enlarged by two gathers. Sums
// are made in the order 0, 1, 4, 5, 2, 3, 6, 7 of the outputs, in which two loads hold both taps of a pair.
template <int kTaps>
struct Halves {
  static bool fits(const TapTable<float>& table, int64_t x) {
    if (kTaps % 2 != 0) return false;
    for (int k = 0; k < kTaps; ++k) {
      const int32_t* index = table.index + k * table.pitch + x;
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        if (index[lane] != table.index[x] + k + 2 * lane) return false;
      }
    }
    return true;
  }
  Halves(const TapTable<float>&, int64_t) {}
  static Floats turned(Floats value) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(value), 0xd8)); }
  Floats sum(const float* source, const Floats* weight) const {
    Floats sum = {};
    for (int k = 0; k < kTaps; k += 2) {
      const Floats low = load_floats(source + k), high = load_floats(source + k + kLanes);
      const Floats even = _mm256_shuffle_ps(low, high, 0x88), odd = _mm256_shuffle_ps(low, high, 0xdd);
      sum = k == 0 ? multiply_floats(weight[0], even) : multiply_add_floats(weight[k], even, sum);
      sum = multiply_add_floats(weight[k + 1], odd, sum);
    }
    return turned(sum);
  }
};
#endif

// How the weights of a vector of outputs are kept.
template <typename Reach>
Floats arranged(const Reach&, Floats weight) {
  return weight;
}
#if !defined(__AVX512F__)
template <int kTaps>
Floats arranged(const Halves<kTaps>& halves, Floats weight) {
  return halves.turned(weight);
}
#endif

// `count` vectors of outputs from x on, the table of the first of which holds for all.
template <typename Reach, int kTaps>
void resample_like(float* __restrict__ to, const float* __restrict__ from, const TapTable<float>& table, int64_t x,
                   int64_t count) {
  const Reach reach(table, x);
  Floats weight[kTaps];
  for (int k = 0; k < kTaps; ++k) weight[k] = arranged(reach, load_floats(table.weight + k * table.pitch + x));
  const float* source = from + table.index[x];
  const int32_t step = table.step * static_cast<int32_t>(kLanes / TapTable<float>::kPeriod);
  for (int64_t v = 0; v < count; ++v) {
    store_floats(to + x + v * kLanes, reach.sum(source + v * step, weight));
  }
}

// The number of outputs made, in whole vectors, before one that reads too widely: the plain loop goes on from there.
template <int kTaps>
int64_t resample_vectors(float* to, const float* from, const TapTable<float>& table, int64_t n) {
  int64_t x = 0;
  while (x + kLanes <= n) {
    const int64_t steady = (table.steady.hi < n ? table.steady.hi : n) - x;
    const int64_t count = x >= table.steady.lo && steady >= kLanes ? steady / kLanes : 1;
    if (Near<kTaps>::fits(table, x)) {
      resample_like<Near<kTaps>, kTaps>(to, from, table, x, count);
#if !defined(__AVX512F__)
    } else if (Halves<kTaps>::fits(table, x)) {
      resample_like<Halves<kTaps>, kTaps>(to, from, table, x, count);
#endif
    } else if (Wide<kTaps>::fits(table, x)) {
      resample_like<Wide<kTaps>, kTaps>(to, from, table, x, count);
    } else {
      break;
    }
    x += count * kLanes;
  }
  return x;
}

int64_t resample_vectors(float* to, const float* from, const TapTable<float>& table, int64_t n) {
  switch (table.taps) {
    case 1:
      return resample_vectors<1>(to, from, table, n);
    case 2:
      return resample_vectors<2>(to, from, table, n);
    case 3:
      return resample_vectors<3>(to, from, table, n);
    case 4:
      return resample_vectors<4>(to, from, table, n);
    case 5:
      return resample_vectors<5>(to, from, table, n);
    case 6:
      return resample_vectors<6>(to, from, table, n);
    default:
      return 0;
  }
}
#endif

template <typename T>
void resample(T* __restrict__ to, const T* __restrict__ from, int32_t shift, const TapTable<T>& table, int64_t n) {
  for (int64_t x = resample_vectors(to, from - shift, table, n); x < n; ++x) {
    T sum = 0;
    for (int k = 0; k < table.taps; ++k) {
      sum += table.weight[k * table.pitch + x] * from[table.index[k * table.pitch + x] - shift];
    }
    to[x] = sum;
  }
}

template <typename T>
void sum_rows(T* __restrict__ to, const T* const* rows, const T* weights, int count, int64_t n) {
  const T* __restrict__ a = rows[0];
  const T* __restrict__ b = rows[1];
  const T* __restrict__ c = rows[count > 2 ? 2 : 0];
  const T* __restrict__ d = rows[count > 3 ? 3 : 0];
  const T wa = weights[0], wb = weights[1], wc = weights[count > 2 ? 2 : 0], wd = weights[count > 3 ? 3 : 0];
  if (count == 2) {
    for (int64_t x = 0; x < n; ++x) to[x] = wa * a[x] + wb * b[x];
  } else if (count == 3) {
    for (int64_t x = 0; x < n; ++x) to[x] = wa * a[x] + wb * b[x] + wc * c[x];
  } else {
    for (int64_t x = 0; x < n; ++x) to[x] = wa * a[x] + wb * b[x] + wc * c[x] + wd * d[x];
  }
}

// The sums stay in registers while all rows are added, one after the other: the same bits as row by row.
template <int kRows, bool kFresh, typename T>
void spread_rows(T* __restrict__ to0, T* __restrict__ to1, const T* const* rows, const T (*weights)[4], int64_t n) {
  const T* __restrict__ a = rows[0];
  const T* __restrict__ b = rows[kRows > 1 ? 1 : 0];
  const T* __restrict__ c = rows[kRows > 2 ? 2 : 0];
  const T* __restrict__ d = rows[kRows > 3 ? 3 : 0];
  const auto add = [](T sum, const T* w, T a, T b, T c, T d) {
    sum += w[0] * a;
    if (kRows > 1) sum += w[1] * b;
    if (kRows > 2) sum += w[2] * c;
    if (kRows > 3) sum += w[3] * d;
    return sum;
  };
  const T v[4] = {weights[0][0], weights[0][1], weights[0][2], weights[0][3]};
  if (to1 == nullptr) {
    for (int64_t x = 0; x < n; ++x) to0[x] = add(kFresh ? T(0) : to0[x], v, a[x], b[x], c[x], d[x]);
    return;
  }
  const T w[4] = {weights[1][0], weights[1][1], weights[1][2], weights[1][3]};
  for (int64_t x = 0; x < n; ++x) {
    to0[x] = add(to0[x], v, a[x], b[x], c[x], d[x]);
    to1[x] = add(kFresh ? T(0) : to1[x], w, a[x], b[x], c[x], d[x]);
  }
}

template <int kRows, typename T>
void spread_rows(T* const* to, int targets, bool fresh, const T* const* rows, const T (*weights)[4], int64_t n) {
  T* second = targets > 1 ? to[1] : nullptr;
  if (fresh) {
    spread_rows<kRows, true>(to[0], second, rows, weights, n);
  } else {
    spread_rows<kRows, false>(to[0], second, rows, weights, n);
  }
}

template <typename T>
void spread(T* const* to, int targets, bool fresh, const T* const* rows, const T (*weights)[4], int count, int64_t n) {
  if (count == 4) return spread_rows<4>(to, targets, fresh, rows, weights, n);
  if (count == 3) return spread_rows<3>(to, targets, fresh, rows, weights, n);
  if (count == 2) return spread_rows<2>(to, targets, fresh, rows, weights, n);
  spread_rows<1>(to, targets, fresh, rows, weights, n);
}

// Rows that may be the same memory are read before they are written, element by element: no dependence between
// iterations, which is what `ivdep` says.

template <typename T>
void multiply(T* to, const T* a, const T* b, int64_t n) {
#pragma GCC ivdep
  for (int64_t x = 0; x < n; ++x) to[x] = a[x] * b[x];
}

template <typename T>
void subtract(T* __restrict__ to, const T* __restrict__ a, int64_t n) {
  for (int64_t x = 0; x < n; ++x) to[x] -= a[x];
}

template <typename T>
void multiply_complement(T* to, const T* a, const T* b, int64_t n) {
#pragma GCC ivdep
  for (int64_t x = 0; x < n; ++x) to[x] = (T(1) - a[x]) * b[x];
}

template <typename T>
T at(const RowPair<T>& pair, int64_t x) {
  return hmsa::lerp(pair.a[x], pair.b[x], pair.weight);
}

template <typename T>
void lerp(T* __restrict__ to, RowPair<T> pair, int64_t n) {
  for (int64_t x = 0; x < n; ++x) to[x] = at(pair, x);
}

template <typename T>
void lerp_multiply(T* __restrict__ to, RowPair<T> pair, const T* __restrict__ a, int64_t n) {
  for (int64_t x = 0; x < n; ++x) to[x] = at(pair, x) * a[x];
}

template <typename T>
void blend_upper(T* to, const T* attention, RowPair<T> logit, RowPair<T> before, int64_t n) {
#pragma GCC ivdep
  for (int64_t x = 0; x < n; ++x) to[x] = hmsa::blend_upper(attention[x], at(logit, x), at(before, x));
}

template <typename T>
void blend_lower(T* to, const T* attention, RowPair<T> product, RowPair<T> before, int64_t n) {
#pragma GCC ivdep
  for (int64_t x = 0; x < n; ++x) to[x] = hmsa::blend_lower(attention[x], at(product, x), at(before, x));
}

#if defined(__AVX2__)
__m256 at(const RowPair<float>& pair, int64_t x, __m256 near, __m256 far) {
  return _mm256_fmadd_ps(near, _mm256_loadu_ps(pair.a + x), _mm256_mul_ps(far, _mm256_loadu_ps(pair.b + x)));
}

void blend_last(float* to, const float* attention, RowPair<float> product, RowPair<float> before, int64_t n) {
  const __m256 one = _mm256_set1_ps(1.0f);
  const __m256 product_near = _mm256_set1_ps(1.0f - product.weight), product_far = _mm256_set1_ps(product.weight);
  const __m256 before_near = _mm256_set1_ps(1.0f - before.weight), before_far = _mm256_set1_ps(before.weight);
  const auto blend = [&](int64_t x) {
    return _mm256_fmadd_ps(_mm256_sub_ps(one, _mm256_loadu_ps(attention + x)), at(before, x, before_near, before_far),
                           at(product, x, product_near, product_far));
  };
  const auto write_some = [&](int64_t x, int64_t count) {
    float some[8];
    _mm256_storeu_ps(some, blend(x));
    std::memcpy(to + x, some, static_cast<size_t>(count) * sizeof(float));
  };
  // Streams are written in whole aligned vectors.
  const auto misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % 32 / sizeof(float));
  int64_t x = misaligned == 0 ? 0 : 8 - misaligned;
  if (x > n) x = n;
  if (x > 0) write_some(0, x);
  for (; x + 8 <= n; x += 8) _mm256_stream_ps(to + x, blend(x));
  if (x < n) write_some(x, n - x);
}

void end_streams() { _mm_sfence(); }
#else
void blend_last(float* to, const float* attention, RowPair<float> product, RowPair<float> before, int64_t n) {
  blend_lower(to, attention, product, before, n);
}

void end_streams() {}
#endif

void blend_last(double* to, const double* attention, RowPair<double> product, RowPair<double> before, int64_t n) {
  blend_lower(to, attention, product, before, n);
}

template <typename T>
void lower_backward(T* to, T* sum, const T* grad, const T* attention, RowPair<T> before, int64_t n) {
#pragma GCC ivdep
  for (int64_t x = 0; x < n; ++x) {
    const T g = grad[x];
    sum[x] += g * at(before, x);
    to[x] = (T(1) - attention[x]) * g;
  }
}

template <typename T>
void upper_backward(T* to, T* product, T* sum, const T* grad, const T* attention, RowPair<T> logit, RowPair<T> before,
                    int64_t n) {
#pragma GCC ivdep
  for (int64_t x = 0; x < n; ++x) {
    const T g = grad[x];
    sum[x] += g * (at(logit, x) - at(before, x));
    product[x] = attention[x] * g;
    to[x] = (T(1) - attention[x]) * g;
  }
}

template <typename T>
void lerp_multiply_add(T* __restrict__ sum, RowPair<T> pair, const T* __restrict__ grad, int64_t n) {
  for (int64_t x = 0; x < n; ++x) sum[x] += at(pair, x) * grad[x];
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

#if defined(__AVX2__)
// The same in vectors of eight, for a multiple of eight weights: what a head at stride 4 or 8 gathers.
__m256 products(const float* weight, const float* from, int32_t count) {
  __m256 sum = _mm256_mul_ps(_mm256_loadu_ps(weight), _mm256_loadu_ps(from));
  for (int32_t k = 8; k < count; k += 8) {
    sum = _mm256_fmadd_ps(_mm256_loadu_ps(weight + k), _mm256_loadu_ps(from + k), sum);
  }
  return sum;
}

// The sums of the elements of eight vectors, each in the order ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)).
__m256 add_across(const __m256* v) {
  const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  const __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

// Sums begin .. end - 1. As many as have a multiple of eight terms, up to eight, are summed together: how many they are
// does not change a bit of any.
void contract_between(float* __restrict__ to, const float* __restrict__ from, const SumTable<float>& table,
                      int64_t begin, int64_t end) {
  const int32_t* __restrict__ origin = table.origin;
  const int32_t* __restrict__ start = table.start;
  const float* __restrict__ weight = table.weight;
  __m256 sums[8] = {};
  for (int64_t i = begin; i < end;) {
    int64_t count = 0;
    for (; count < 8 && i + count < end; ++count) {
      const int32_t k = start[i + count];
      const int32_t terms = start[i + count + 1] - k;
      if (terms == 0 || terms % 8 != 0) break;
      sums[count] = products(weight + k, from + origin[i + count], terms);
    }
    if (count == 8) {
      _mm256_storeu_ps(to + i, add_across(sums));
    } else if (count > 0) {
      float few[8];
      _mm256_storeu_ps(few, add_across(sums));
      for (int64_t k = 0; k < count; ++k) to[i + k] = few[k];
    } else {
      to[i] = dot(weight + start[i], from + origin[i], start[i + 1] - start[i]);
      count = 1;
    }
    i += count;
  }
}

// Elements k, 4 + k, 8 + k and so on of 32 for k < 4, each in the order 0, 2, 4, 6, 1, 3, 5, 7.
struct Fourths {
  __m256 of[4];

  explicit Fourths(const float* from) {
    const __m256 a = _mm256_loadu_ps(from), b = _mm256_loadu_ps(from + 8);
    const __m256 c = _mm256_loadu_ps(from + 16), d = _mm256_loadu_ps(from + 24);
    const __m256 ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
    const __m256 cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
    of[0] = _mm256_shuffle_ps(ab_low, cd_low, 0x44);
    of[1] = _mm256_shuffle_ps(ab_low, cd_low, 0xee);
    of[2] = _mm256_shuffle_ps(ab_high, cd_high, 0x44);
    of[3] = _mm256_shuffle_ps(ab_high, cd_high, 0xee);
  }
};

// Sums of eight terms with the same weights, four elements from one to the next: what a map enlarged by four gathers.
void contract_fours(float* __restrict__ to, const float* __restrict__ from, const float* __restrict__ weight,
                    int64_t n) {
  __m256 weights[8];
  for (int k = 0; k < 8; ++k) weights[k] = _mm256_set1_ps(weight[k]);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const Fourths near(from + 4 * i), far(from + 4 * i + 4);
    __m256 sum = _mm256_mul_ps(weights[0], near.of[0]);
    for (int k = 1; k < 4; ++k) sum = _mm256_fmadd_ps(weights[k], near.of[k], sum);
    for (int k = 0; k < 4; ++k) sum = _mm256_fmadd_ps(weights[4 + k], far.of[k], sum);
    _mm256_storeu_ps(to + i, _mm256_permutevar8x32_ps(sum, order));
  }
  for (; i < n; ++i) {  // in the same order
    __m128 sum = _mm_mul_ss(_mm_load_ss(weight), _mm_load_ss(from + 4 * i));
    for (int k = 1; k < 8; ++k) sum = _mm_fmadd_ss(_mm_load_ss(weight + k), _mm_load_ss(from + 4 * i + k), sum);
    _mm_store_ss(to + i, sum);
  }
}

void contract(float* to, const float* from, int32_t shift, const SumTable<float>& table, int64_t n) {
  const float* source = from - shift;
  const int64_t lo = table.steady.lo < 0 ? 0 : table.steady.lo;
  const int64_t hi = table.steady.hi < n ? table.steady.hi : n;
  if (lo >= hi || table.step != 4 || table.start[lo + 1] - table.start[lo] != 8) {
    contract_between(to, source, table, 0, n);
    return;
  }
  contract_between(to, source, table, 0, lo);
  contract_fours(to + lo, source + table.origin[lo], table.weight + table.start[lo], hi - lo);
  contract_between(to, source, table, hi, n);
}
#endif

template <typename T>
void contract(T* __restrict__ to, const T* __restrict__ from, int32_t shift, const SumTable<T>& table, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const int32_t start = table.start[i];
    to[i] = dot(table.weight + start, from + (table.origin[i] - shift), table.start[i + 1] - start);
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

// Float16 in one instruction for eight elements where the processor has it; the number of elements converted.
template <typename S, typename T>
int64_t load_vectors(T*, const S*, int64_t) {
  return 0;
}
template <typename S, typename T>
int64_t store_vectors(S*, const T*, int64_t) {
  return 0;
}

#if defined(__F16C__)
int64_t load_vectors(float* __restrict__ to, const Half* __restrict__ from, int64_t n) {
  int64_t x = 0;
  for (; x + 8 <= n; x += 8) {
    _mm256_storeu_ps(to + x, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + x))));
  }
  return x;
}

int64_t store_vectors(Half* __restrict__ to, const float* __restrict__ from, int64_t n) {
  int64_t x = 0;
  for (; x + 8 <= n; x += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + x),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + x), _MM_FROUND_TO_NEAREST_INT));
  }
  return x;
}
#endif

template <typename S, typename T>
void load(T* __restrict__ to, const S* __restrict__ from, int64_t stride, int64_t n) {
  if (stride == 1) {
    for (int64_t x = load_vectors(to, from, n); x < n; ++x) to[x] = widen(from[x], to);
  } else {
    for (int64_t x = 0; x < n; ++x) to[x] = widen(from[x * stride], to);
  }
}

template <typename S, typename T>
void store(S* __restrict__ to, int64_t stride, const T* __restrict__ from, int64_t n) {
  if (stride == 1) {
    for (int64_t x = store_vectors(to, from, n); x < n; ++x) narrow(to + x, from[x]);
  } else {
    for (int64_t x = 0; x < n; ++x) narrow(to + x * stride, from[x]);
  }
}

// Channels side by side in memory: squares of 4 x 4 are turned in registers, so that neither side is touched in single
// elements.
template <typename T>
void turn_square(T* __restrict__ to, int64_t to_pitch, const T* __restrict__ from, int64_t from_pitch) {
  for (int j = 0; j < 4; ++j) {
    for (int k = 0; k < 4; ++k) to[j * to_pitch + k] = from[k * from_pitch + j];
  }
}

#if defined(__x86_64__)
inline void turn_square(float* __restrict__ to, int64_t to_pitch, const float* __restrict__ from, int64_t from_pitch) {
  __m128 a = _mm_loadu_ps(from);
  __m128 b = _mm_loadu_ps(from + from_pitch);
  __m128 c = _mm_loadu_ps(from + 2 * from_pitch);
  __m128 d = _mm_loadu_ps(from + 3 * from_pitch);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(to, a);
  _mm_storeu_ps(to + to_pitch, b);
  _mm_storeu_ps(to + 2 * to_pitch, c);
  _mm_storeu_ps(to + 3 * to_pitch, d);
}
#endif

template <typename T>
void split_pixels(T* __restrict__ rows, int64_t pitch, const T* __restrict__ pixels, int64_t stride, int64_t channels,
                  int64_t n) {
  for (int64_t x = 0; x < n; x += 4) {
    const T* from = pixels + x * stride;
    T* to = rows + x;
    const int64_t count = n - x < 4 ? n - x : 4;
    if (count == 4 && channels >= 4) {
      for (int64_t c = 0; c + 4 < channels; c += 4) turn_square(to + c * pitch, pitch, from + c, stride);
      turn_square(to + (channels - 4) * pitch, pitch, from + (channels - 4), stride);  // may overlap the one before
      continue;
    }
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t k = 0; k < count; ++k) to[c * pitch + k] = from[k * stride + c];
    }
  }
}

template <typename T>
void join_pixels(T* __restrict__ pixels, int64_t stride, const T* __restrict__ rows, int64_t pitch, int64_t channels,
                 int64_t n) {
  for (int64_t x = 0; x < n; x += 4) {
    const T* from = rows + x;
    T* to = pixels + x * stride;
    const int64_t count = n - x < 4 ? n - x : 4;
    if (count == 4 && channels >= 4) {
      for (int64_t c = 0; c + 4 < channels; c += 4) turn_square(to + c, stride, from + c * pitch, pitch);
      turn_square(to + (channels - 4), stride, from + (channels - 4) * pitch, pitch);
      continue;
    }
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t k = 0; k < count; ++k) to[k * stride + c] = from[c * pitch + k];
    }
  }
}

template <typename T>
constexpr RowOps<T> table() {
  RowOps<T> ops{};
  ops.name = HMSA_STRINGIZE(HMSA_SIMD_NAMESPACE);
  ops.resample = resample<T>;
  ops.contract = contract;
  ops.sum_rows = sum_rows<T>;
  ops.spread = spread<T>;
  ops.multiply = multiply<T>;
  ops.subtract = subtract<T>;
  ops.multiply_complement = multiply_complement<T>;
  ops.lerp = lerp<T>;
  ops.lerp_multiply = lerp_multiply<T>;
  ops.blend_upper = blend_upper<T>;
  ops.blend_lower = blend_lower<T>;
  ops.blend_last = blend_last;
  ops.lower_backward = lower_backward<T>;
  ops.upper_backward = upper_backward<T>;
  ops.lerp_multiply_add = lerp_multiply_add<T>;
  ops.load = load<T, T>;
  ops.store = store<T, T>;
  ops.load_half = load<Half, T>;
  ops.store_half = store<Half, T>;
  ops.load_bfloat16 = load<BFloat16, T>;
  ops.store_bfloat16 = store<BFloat16, T>;
  ops.end_streams = end_streams;
  ops.split_pixels = split_pixels<T>;
  ops.join_pixels = join_pixels<T>;
  return ops;
}

}  // namespace

namespace HMSA_SIMD_NAMESPACE {
extern const RowOps<float> float_rows;
extern const RowOps<double> double_rows;
const RowOps<float> float_rows = table<float>();
const RowOps<double> double_rows = table<double>();
}  // namespace HMSA_SIMD_NAMESPACE

}  // namespace hmsa
