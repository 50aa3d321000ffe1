// The primitives of softmax.h, compiled once per instruction set like rows.cpp.
#include "ops/cpu/simd/softmax.h"

#include "ops/cpu/simd/exponentials.h"
#include "ops/cpu/simd/rows.h"

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

template <bool kSmooth, typename T>
void gradient(T* grad, const CrossEntropyGradientRow<T> row, int64_t n) {  // by value: `grad` cannot alias a copy
  using Lanes = Vector<T>;
  const auto [logit, log_sum_exp, label, all_of, own, smooth, channel, weight] = row;
  for (int64_t x = 0; x < n; x += Lanes::kLanes) {
    const vector_t<T> p = exp_below(load_vector(logit + x) - load_vector(log_sum_exp + x));
    vector_t<T> g = load_vector(all_of + x) * p;
    g -= load_vector(label + x) == all(channel) ? load_vector(own + x) : vector_t<T>{};
    if (kSmooth) g -= weight * load_vector(smooth + x);
    store_vector(grad + x, g);
  }
}

template <typename T>
void cross_entropy_gradient(T* grad, const CrossEntropyGradientRow<T>& row, int64_t n) {
  if (row.smooth == nullptr) {
    gradient<false>(grad, row, n);
  } else {
    gradient<true>(grad, row, n);
  }
}

template <typename T>
void average_mirrored(T* to, const T* a, const T* b, int64_t n) {
#pragma GCC ivdep
  for (int64_t x = 0; x < n; ++x) to[x] = (a[x] + b[n - 1 - x]) * T(0.5);
}

template <typename T>
constexpr SoftmaxOps<T> softmax_table() {
  SoftmaxOps<T> ops{};
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
