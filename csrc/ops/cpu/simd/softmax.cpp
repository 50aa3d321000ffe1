// The primitives of softmax.h, compiled once per instruction set like rows.cpp.
#include "ops/cpu/simd/softmax.h"

#include "ops/cpu/simd/exponentials.h"
#include "ops/cpu/simd/rows.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef HMSA_SIMD_NAMESPACE
#define HMSA_SIMD_NAMESPACE generic
#endif

namespace hmsa {
namespace {

static_assert(2 * kVectorBytes / sizeof(float) <= kRowSlack + 1, "a last vector may reach behind its row");

// Some vectors of pixels at a time, so that their chains of additions run side by side.
constexpr int kSide = 2;

template <typename T>
struct Pixels {
  vector_t<T> v[kSide];

  static constexpr int64_t kCount = kSide * Vector<T>::kLanes;

  static Pixels load(const T* from) {
    Pixels pixels;
    for (int k = 0; k < kSide; ++k) pixels.v[k] = load_vector(from + k * Vector<T>::kLanes);
    return pixels;
  }
  void store(T* to) const {
    for (int k = 0; k < kSide; ++k) store_vector(to + k * Vector<T>::kLanes, v[k]);
  }
};

template <typename T>
Pixels<T> largest_of(const T* planes, int64_t pitch, int64_t channels) {
  Pixels<T> m = Pixels<T>::load(planes);
  for (int64_t c = 1; c < channels; ++c) {
    const Pixels<T> z = Pixels<T>::load(planes + c * pitch);
    for (int k = 0; k < kSide; ++k) m.v[k] = z.v[k] > m.v[k] ? z.v[k] : m.v[k];
  }
  return m;
}

// sum_c exp(z_c - m) but for one channel that has m: small sums are not lost beside its 1. Calls at_largest(c, masks).
template <typename T, typename AtLargest>
Pixels<T> rest_of(const Pixels<T>& m, const T* planes, int64_t pitch, int64_t channels, const AtLargest& at_largest) {
  Pixels<T> sum;
  mask_t<T> ties[kSide];  // minus their number: a mask is -1
  for (int k = 0; k < kSide; ++k) {
    sum.v[k] = vector_t<T>{};
    ties[k] = mask_t<T>{};
  }
  for (int64_t c = channels - 1; c >= 0; --c) {
    const Pixels<T> z = Pixels<T>::load(planes + c * pitch);
    mask_t<T> is_largest[kSide];
    for (int k = 0; k < kSide; ++k) {
      const vector_t<T> e = exp_below(z.v[k] - m.v[k]);
      is_largest[k] = z.v[k] == m.v[k];
      sum.v[k] += is_largest[k] ? vector_t<T>{} : e;
      ties[k] += is_largest[k];
    }
    at_largest(c, is_largest);
  }
  for (int k = 0; k < kSide; ++k) {
    sum.v[k] -= __builtin_convertvector(ties[k], vector_t<T>) + T(1);
    sum.v[k] += m.v[k] - m.v[k];  // NaN where m is infinite, as in inf - inf
  }
  return sum;
}

template <typename T>
void log_sum(T* largest, T* log_rest, const T* planes, int64_t pitch, int64_t channels, int64_t n) {
  for (int64_t x = 0; x < n; x += Pixels<T>::kCount) {
    const Pixels<T> m = largest_of(planes + x, pitch, channels);
    Pixels<T> rest = rest_of(m, planes + x, pitch, channels, [](int64_t, const mask_t<T>*) {});
    for (int k = 0; k < kSide; ++k) rest.v[k] = log1p_positive(rest.v[k]);
    m.store(largest + x);
    rest.store(log_rest + x);
  }
}

// The first NaN, else the first of the largest: the rule of torch.argmax.
template <typename T>
int32_t argmax_of_pixel(const T* planes, int64_t pitch, int64_t channels) {
  int32_t best = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const T z = planes[c * pitch];
    if (z != z) return static_cast<int32_t>(c);
    if (z > planes[best * pitch]) best = static_cast<int32_t>(c);
  }
  return best;
}

template <typename T>
void argmax(int32_t* label, T* confidence, const T* planes, int64_t pitch, int64_t channels, int64_t n) {
  using Lanes = Vector<T>;
  for (int64_t x = 0; x < n; x += Pixels<T>::kCount) {
    const Pixels<T> m = largest_of(planes + x, pitch, channels);
    mask_t<T> best[kSide] = {};
    const Pixels<T> rest = rest_of(m, planes + x, pitch, channels, [&](int64_t c, const mask_t<T>* is_largest) {
      const auto index = static_cast<decltype(best[0][0] + 0)>(c) - mask_t<T>{};
      for (int k = 0; k < kSide; ++k) best[k] = is_largest[k] ? index : best[k];
    });
    bool regular = true;
    for (int k = 0; k < kSide; ++k) {
      const vector_t<T> probability = T(1) / (rest.v[k] + T(1));
      store_vector(confidence + x + k * Lanes::kLanes, probability);
      for (int64_t lane = 0; lane < Lanes::kLanes; ++lane) {
        label[x + k * Lanes::kLanes + lane] = static_cast<int32_t>(best[k][lane]);
        regular &= probability[lane] == probability[lane];
      }
    }
    if (regular) continue;
    for (int64_t at = x; at < x + Pixels<T>::kCount && at < n; ++at) {
      if (confidence[at] != confidence[at]) label[at] = argmax_of_pixel(planes + at, pitch, channels);
    }
  }
}

template <typename T>
void label(int32_t* label, const T* planes, int64_t pitch, const int32_t* names, int64_t channels, int64_t n) {
  using Lanes = Vector<T>;
  for (int64_t x = 0; x < n; x += Pixels<T>::kCount) {
    Pixels<T> m = Pixels<T>::load(planes + x);
    Pixels<T> sum = m;
    mask_t<T> best[kSide];
    const auto named = [&](int64_t c) { return static_cast<decltype(best[0][0] + 0)>(names[c]) - mask_t<T>{}; };
    for (int k = 0; k < kSide; ++k) best[k] = named(0);
    for (int64_t c = 1; c < channels; ++c) {
      const Pixels<T> z = Pixels<T>::load(planes + x + c * pitch);
      for (int k = 0; k < kSide; ++k) {
        const mask_t<T> larger = z.v[k] > m.v[k];
        m.v[k] = larger ? z.v[k] : m.v[k];
        best[k] = larger ? named(c) : best[k];
        sum.v[k] += z.v[k];
      }
    }
    bool regular = true;
    for (int k = 0; k < kSide; ++k) {
      for (int64_t lane = 0; lane < Lanes::kLanes; ++lane) {
        label[x + k * Lanes::kLanes + lane] = static_cast<int32_t>(best[k][lane]);
        regular &= sum.v[k][lane] == sum.v[k][lane];
      }
    }
    if (regular) continue;
    for (int64_t at = x; at < x + Pixels<T>::kCount && at < n; ++at) {
      label[at] = names[argmax_of_pixel(planes + at, pitch, channels)];
    }
  }
}

template <typename T>
bool bound(T* least, T* largest, const T* row, int64_t n) {
  using Lanes = Vector<T>;
  T low = *least, high = *largest;
  bool numbers = true;
  int64_t x = 0;
  if (n >= Lanes::kLanes) {
    vector_t<T> lows = load_vector(row), highs = lows;
    mask_t<T> is_number = lows == lows;
    const auto take = [&](int64_t at) {
      const vector_t<T> z = load_vector(row + at);
      lows = z < lows ? z : lows;
      highs = z > highs ? z : highs;
      is_number &= z == z;
    };
    for (x = Lanes::kLanes; x + Lanes::kLanes <= n; x += Lanes::kLanes) take(x);
    if (x < n) take(n - Lanes::kLanes);
    for (int64_t lane = 0; lane < Lanes::kLanes; ++lane) {
      low = lows[lane] < low ? lows[lane] : low;
      high = highs[lane] > high ? highs[lane] : high;
      numbers &= is_number[lane] != 0;
    }
    x = n;
  }
  for (; x < n; ++x) {
    low = row[x] < low ? row[x] : low;
    high = row[x] > high ? row[x] : high;
    numbers &= row[x] == row[x];
  }
  *least = low;
  *largest = high;
  return numbers;
}

template <typename T>
bool exceeds(const T* a, const T* b, T margin, int64_t n) {
  using Lanes = Vector<T>;
  int64_t x = 0;
  if (n >= Lanes::kLanes) {
    // Four vectors between two looks: most rows that do not exceed tell so at once.
    const auto all_exceed = [&](const mask_t<T>& larger) {
      int64_t count = 0;
      for (int64_t lane = 0; lane < Lanes::kLanes; ++lane) count -= larger[lane];
      return count == Lanes::kLanes;
    };
    const auto larger = [&](int64_t at) { return load_vector(a + at) - load_vector(b + at) > all(margin); };
    if (!all_exceed(larger(0))) return false;
    for (x = Lanes::kLanes; x + 4 * Lanes::kLanes <= n; x += 4 * Lanes::kLanes) {
      mask_t<T> each = larger(x);
      for (int k = 1; k < 4; ++k) each &= larger(x + k * Lanes::kLanes);
      if (!all_exceed(each)) return false;
    }
    mask_t<T> last = larger(n - Lanes::kLanes);
    for (; x + Lanes::kLanes < n; x += Lanes::kLanes) last &= larger(x);
    return all_exceed(last);
  }
  for (; x < n; ++x) {
    if (!(a[x] - b[x] > margin)) return false;
  }
  return true;
}

template <typename T>
void weighted_sum(T* to, const T* planes, int64_t pitch, const T* weight, int64_t channels, int64_t n) {
  for (int64_t x = 0; x < n; ++x) to[x] = T(0);
  for (int64_t c = 0; c < channels; ++c) {
    const T* __restrict__ row = planes + c * pitch;
    const T w = weight == nullptr ? T(1) : weight[c];
    for (int64_t x = 0; x < n; ++x) to[x] += w * row[x];
  }
}

// What the gradient is made of, beside the exponential.
enum class GradientOf { kOneNumber, kRows, kRowsSmoothed };

template <GradientOf kOf, typename T>
void gradient(T* grad, const CrossEntropyGradientRow<T> row, int64_t n) {  // by value: `grad` cannot alias a copy
  using Lanes = Vector<T>;
  constexpr bool kRows = kOf != GradientOf::kOneNumber;
  const vector_t<T> channel = all(row.channel), one = all(row.grad);
  for (int64_t x = 0; x < n; x += Lanes::kLanes) {
    const vector_t<T> p = exp_below(load_vector(row.logit + x) - load_vector(row.log_sum_exp + x));
    vector_t<T> g = (kRows ? load_vector(row.all_of + x) : one) * p;
    const vector_t<T> own = kRows ? load_vector(row.own + x) : one;
    g -= load_vector(row.label + x) == channel ? own : vector_t<T>{};
    if (kOf == GradientOf::kRowsSmoothed) g -= row.weight * load_vector(row.smooth + x);
    store_vector(grad + x, g);
  }
}

template <typename T>
void cross_entropy_gradient(T* grad, const CrossEntropyGradientRow<T>& row, int64_t n) {
  if (row.all_of == nullptr) {
    gradient<GradientOf::kOneNumber>(grad, row, n);
  } else if (row.smooth == nullptr) {
    gradient<GradientOf::kRows>(grad, row, n);
  } else {
    gradient<GradientOf::kRowsSmoothed>(grad, row, n);
  }
}

template <typename T>
void cross_entropy_backward(T* __restrict__ to, T* __restrict__ grad, T* __restrict__ sum,
                            const CrossEntropyLowerRow<T>& of, int64_t n) {
  using Lanes = Vector<T>;
  const CrossEntropyLowerRow<T> row = of;  // a copy that no store can change
  const vector_t<T> channel = all(row.channel), own = all(row.grad);
  const auto lerp = [](const RowPair<T>& pair, int64_t x) {
    return (T(1) - pair.weight) * load_vector(pair.a + x) + pair.weight * load_vector(pair.b + x);
  };
  for (int64_t x = 0; x < n; x += Lanes::kLanes) {
    const vector_t<T> before = lerp(row.before, x);
    const vector_t<T> keep = T(1) - load_vector(row.attention + x);
    const vector_t<T> z = lerp(row.product, x) + keep * before;
    vector_t<T> g = row.grad * exp_below(z - load_vector(row.log_sum_exp + x));
    g -= load_vector(row.label + x) == channel ? own : vector_t<T>{};
    store_vector(grad + x, g);
    store_vector(sum + x, load_vector(sum + x) + g * before);
    store_vector(to + x, keep * g);
  }
}

#if defined(__AVX2__)
// Eight labels of 64 bits: the number that were taken. A label is told by its halves: that of a class has no upper one.
int64_t load_label_vectors(float* to, const LabelElements<int64_t>& labels, int64_t n, bool* regular) {
  if (labels.stride != 1 || labels.classes > INT32_MAX) return 0;
  const auto ignored = static_cast<uint64_t>(labels.ignore_index);
  const __m256i ignored_low = _mm256_set1_epi32(static_cast<int32_t>(ignored & 0xffffffffu));
  const __m256i ignored_high = _mm256_set1_epi32(static_cast<int32_t>(ignored >> 32));
  const __m256i largest = _mm256_set1_epi32(static_cast<int32_t>(labels.classes - 1));
  const __m256i order = _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7), zero = _mm256_setzero_si256();
  __m256i all_known = _mm256_cmpeq_epi32(zero, zero);
  int64_t x = 0;
  for (; x + 8 <= n; x += 8) {
    const __m256 a = _mm256_loadu_ps(reinterpret_cast<const float*>(labels.from + x));
    const __m256 b = _mm256_loadu_ps(reinterpret_cast<const float*>(labels.from + x + 4));
    const __m256i low = _mm256_permutevar8x32_epi32(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)), order);
    const __m256i high = _mm256_permutevar8x32_epi32(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd)), order);
    const __m256i is_ignored =
        _mm256_and_si256(_mm256_cmpeq_epi32(low, ignored_low), _mm256_cmpeq_epi32(high, ignored_high));
    const __m256i is_small = _mm256_cmpeq_epi32(_mm256_min_epu32(low, largest), low);
    const __m256i is_class = _mm256_and_si256(_mm256_cmpeq_epi32(high, zero), is_small);
    all_known = _mm256_and_si256(all_known, _mm256_or_si256(is_class, is_ignored));
    // -1, all bits, where it is no class or ignored.
    const __m256i none = _mm256_or_si256(is_ignored, _mm256_xor_si256(is_class, _mm256_cmpeq_epi32(zero, zero)));
    _mm256_storeu_ps(to + x, _mm256_cvtepi32_ps(_mm256_or_si256(low, none)));
  }
  *regular = _mm256_movemask_epi8(all_known) == -1;
  return x;
}
#endif
template <typename T, typename L>
int64_t load_label_vectors(T*, const LabelElements<L>&, int64_t, bool*) {
  return 0;
}

// One comparison without a branch: a negative label is a large number without a sign.
template <typename T, typename L>
bool load_labels(T* __restrict__ to, LabelElements<L> labels, int64_t n) {
  bool regular = true;
  const int64_t begin = load_label_vectors(to, labels, n, &regular);
  const auto classes = static_cast<uint64_t>(labels.classes);
  const int64_t ignore_index = labels.ignore_index;
  const L* __restrict__ from = labels.from;
  const int64_t stride = labels.stride;
  int64_t wrong = 0;
  const auto take = [&](int64_t x, int64_t label) {
    const bool is_ignored = label == ignore_index;
    const bool is_class = (static_cast<uint64_t>(label) < classes) & !is_ignored;
    wrong |= static_cast<int64_t>(!(is_class | is_ignored));
    to[x] = static_cast<T>(is_class ? static_cast<int32_t>(label) : -1);
  };
  if (stride == 1) {
    for (int64_t x = begin; x < n; ++x) take(x, from[x]);
  } else {
    for (int64_t x = begin; x < n; ++x) take(x, from[x * stride]);
  }
  return regular && wrong == 0;
}

template <typename T>
void pick_from(T* __restrict__ to, const T* __restrict__ planes, int64_t pitch, const T* __restrict__ channel,
               int64_t begin, int64_t n) {
  for (int64_t x = begin; x < n; ++x) {
    const auto c = static_cast<int32_t>(channel[x]);
    to[x] = planes[(c < 0 ? 0 : c) * pitch + x];
  }
}

template <typename T>
void pick(T* to, const T* planes, int64_t pitch, const T* channel, int64_t n) {
  pick_from(to, planes, pitch, channel, 0, n);
}

#if defined(__AVX2__)
void pick(float* to, const float* planes, int64_t pitch, const float* channel, int64_t n) {
  const __m256i pitches = _mm256_set1_epi32(static_cast<int32_t>(pitch)), zero = _mm256_setzero_si256();
  int64_t x = 0;
  for (; x + 8 <= n; x += 8) {
    const __m256i c = _mm256_max_epi32(_mm256_cvttps_epi32(_mm256_loadu_ps(channel + x)), zero);
    const __m256i at = _mm256_add_epi32(_mm256_mullo_epi32(c, pitches), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    _mm256_storeu_ps(to + x, _mm256_i32gather_ps(planes + x, at, 4));
  }
  pick_from(to, planes, pitch, channel, x, n);
}
#endif

template <typename T>
void cross_entropy_loss(T* __restrict__ loss, T* __restrict__ log_sum_exp, T* __restrict__ weight,
                        const CrossEntropyLossRow<T>& of, int64_t n) {
  const CrossEntropyLossRow<T> row = of;
  const T* __restrict__ largest = row.largest;
  const T* __restrict__ log_rest = row.log_rest;
  const T* __restrict__ own = row.own;
  const T* __restrict__ label = row.label;
  for (int64_t x = 0; x < n; ++x) {
    log_sum_exp[x] = largest[x] + log_rest[x];
    const T w = label[x] < T(0) ? T(0) : weight[x];
    // (largest - own) + log_rest: a small loss is not lost beside large logits.
    const T of_label = row.share * w * ((largest[x] - own[x]) + log_rest[x]);
    weight[x] = w;
    loss[x] = label[x] < T(0) ? T(0) : of_label;
  }
}

// Four chains of additions side by side.
template <typename T>
double sum(const T* __restrict__ row, int64_t n) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T)), aligned(alignof(T)), may_alias));
  typedef double FourDoubles __attribute__((vector_size(4 * sizeof(double))));
  FourDoubles sums = {0, 0, 0, 0};
  int64_t x = 0;
  for (; x + 4 <= n; x += 4) {
    sums += __builtin_convertvector(*reinterpret_cast<const Four*>(row + x), FourDoubles);
  }
  for (; x < n; ++x) sums[0] += static_cast<double>(row[x]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <typename T>
void average_mirrored(T* to, const T* a, const T* b, int64_t n) {
#pragma GCC ivdep
  for (int64_t x = 0; x < n; ++x) to[x] = (a[x] + b[n - 1 - x]) * T(0.5);
}

template <typename T>
constexpr SoftmaxOps<T> softmax_table() {
  SoftmaxOps<T> ops{};
  ops.load_labels_uint8 = load_labels<T, uint8_t>;
  ops.load_labels_int16 = load_labels<T, int16_t>;
  ops.load_labels_int32 = load_labels<T, int32_t>;
  ops.load_labels_int64 = load_labels<T, int64_t>;
  ops.pick = pick;
  ops.cross_entropy_loss = cross_entropy_loss<T>;
  ops.sum = sum<T>;
  ops.cross_entropy_backward = cross_entropy_backward<T>;
  ops.log_sum = log_sum<T>;
  ops.argmax = argmax<T>;
  ops.label = label<T>;
  ops.bound = bound<T>;
  ops.exceeds = exceeds<T>;
  ops.weighted_sum = weighted_sum<T>;
  ops.cross_entropy_gradient = cross_entropy_gradient<T>;
  ops.average_mirrored = average_mirrored<T>;
  return ops;
}

}  // namespace

namespace HMSA_SIMD_NAMESPACE {
extern const SoftmaxOps<float> float_softmax;
extern const SoftmaxOps<double> double_softmax;
const SoftmaxOps<float> float_softmax = softmax_table<float>();
const SoftmaxOps<double> double_softmax = softmax_table<double>();
}  // namespace HMSA_SIMD_NAMESPACE

}  // namespace hmsa
