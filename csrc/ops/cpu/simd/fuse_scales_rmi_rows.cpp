// The primitives of fuse_scales_rmi_rows.h, compiled once per instruction set like rows.cpp.
#include "ops/cpu/simd/fuse_scales_rmi_rows.h"

#include "ops/cpu/simd/exponentials.h"
#include "ops/cpu/simd/rows.h"

#ifndef HMSA_SIMD_NAMESPACE
#define HMSA_SIMD_NAMESPACE generic
#endif

namespace hmsa {
namespace {

// sigmoid(z) and what it is made of: with e = exp(-|z|) nothing overflows and nothing cancels,
//
//     sigmoid(z) = 1 / (1 + e) or e / (1 + e),   its derivative e / (1 + e)^2,   softplus(z) = max(z, 0) + log(1 + e)
template <typename T>
struct Sigmoid {
  vector_t<T> e;
  vector_t<T> larger;  // of sigmoid(z) and sigmoid(-z)

  explicit Sigmoid(vector_t<T> z) {
    e = exp_of(z > vector_t<T>{} ? -z : z);
    larger = T(1) / (e + T(1));
  }
  vector_t<T> of(vector_t<T> z) const { return z > vector_t<T>{} ? larger : larger * e; }
};

// The binary cross-entropy of logit z is softplus(z), or softplus(-z) where the label is the channel. Over the rows of
// a window the logarithms are taken together: prod(1 + e) = 1 + q, where q, a sum of positive numbers, is exact to a
// few ulp however small they are.
template <int kRows, bool kPool, bool kLoss, typename T>
void sum_rows_of_window(T* probability, T* labelled, double* loss, const T* const* logits, const T* const* labels,
                        T channel, int64_t n) {
  using V = vector_t<T>;
  constexpr int64_t kLanes = Vector<T>::kLanes;
  for (int64_t x = 0; x < n; x += kLanes) {
    V sum{}, count{}, hinge{}, q{};
    for (int k = 0; k < kRows; ++k) {
      const V z = load_vector(logits[k] + x);
      const V label = load_vector(labels[k] + x);
      const mask_t<T> valid = label >= V{};
      const mask_t<T> own = label == all(channel);
      const Sigmoid<T> sigmoid(z);
      if (kPool) {
        sum += valid ? sigmoid.of(z) : V{};
        count += own ? all(T(1)) : V{};
      }
      if (kLoss) {
        const V u = own ? -z : z;
        const V e = valid ? sigmoid.e : V{};
        hinge += valid & (u > V{}) ? u : V{};
        q += e + q * e;
      }
    }
    if (kPool) {
      store_vector(probability + x, sum);
      store_vector(labelled + x, count);
    }
    if (kLoss) {
      T row[kLanes];
      store_vector(row, static_cast<V>(hinge + log1p_positive(q)));
      const int64_t count = n - x < kLanes ? n - x : kLanes;
      if (count == kLanes) {
        for (int64_t k = 0; k < kLanes; ++k) loss[x + k] += static_cast<double>(row[k]);
      } else {
        for (int64_t k = 0; k < count; ++k) loss[x + k] += static_cast<double>(row[k]);
      }
    }
  }
}

template <bool kPool, bool kLoss, typename T>
void sum_rows_of_window(T* probability, T* labelled, double* loss, const T* const* logits, const T* const* labels,
                        int rows, T channel, int64_t n) {
  if (rows == 4) return sum_rows_of_window<4, kPool, kLoss>(probability, labelled, loss, logits, labels, channel, n);
  if (rows == 3) return sum_rows_of_window<3, kPool, kLoss>(probability, labelled, loss, logits, labels, channel, n);
  if (rows == 2) return sum_rows_of_window<2, kPool, kLoss>(probability, labelled, loss, logits, labels, channel, n);
  sum_rows_of_window<1, kPool, kLoss>(probability, labelled, loss, logits, labels, channel, n);
}

template <typename T>
void sum_window_rows(T* probability, T* labelled, double* loss, const T* const* logits, const T* const* labels,
                     int rows, T channel, int64_t n) {
  if (probability == nullptr) {
    sum_rows_of_window<false, true>(probability, labelled, loss, logits, labels, rows, channel, n);
  } else if (loss == nullptr) {
    sum_rows_of_window<true, false>(probability, labelled, loss, logits, labels, rows, channel, n);
  } else {
    sum_rows_of_window<true, true>(probability, labelled, loss, logits, labels, rows, channel, n);
  }
}

template <typename T>
void pool_columns(double* __restrict__ to, const T* __restrict__ from, int64_t n) {
  for (int64_t k = 0; k < n; ++k) {
    const T sum = (from[4 * k] + from[4 * k + 1]) + (from[4 * k + 2] + from[4 * k + 3]);
    to[k] = static_cast<double>(sum) * (1 / kRmiWindow);
  }
}

template <bool kPooled, typename T>
void rmi_gradient_of(T* grad, const T* logit, const T* label, const T* pooled, T bce, T channel, int64_t n) {
  using V = vector_t<T>;
  for (int64_t x = 0; x < n; x += Vector<T>::kLanes) {
    const V z = load_vector(logit + x);
    const V y = load_vector(label + x);
    const mask_t<T> own = y == all(channel);
    const Sigmoid<T> sigmoid(z);
    // p - y: where the label is the channel, -sigmoid(-z)
    const V u = own ? -z : z;
    const V missing = sigmoid.of(u);
    V g = bce * (own ? -missing : missing);
    if (kPooled) g += load_vector(pooled + x) * (sigmoid.e * sigmoid.larger * sigmoid.larger);
    store_vector(grad + x, static_cast<V>(y >= V{} ? g : V{}));
  }
}

template <typename T>
void rmi_gradient(T* grad, const T* logit, const T* label, const T* pooled, T bce, T channel, int64_t n) {
  if (pooled == nullptr) {
    rmi_gradient_of<false>(grad, logit, label, pooled, bce, channel, n);
  } else {
    rmi_gradient_of<true>(grad, logit, label, pooled, bce, channel, n);
  }
}

// ---- pooled rows ----------------------------------------------------------------------------------------------------

constexpr int64_t kDoubles = Vector<double>::kLanes;

double sum_of_lanes(DoubleVector v) {
  double sum = 0;
  for (int64_t k = 0; k < kDoubles; ++k) sum += v[k];
  return sum;
}

double row_sum(const double* row, int64_t n) {
  DoubleVector sums[4] = {};
  int64_t x = 0;
  for (; x + 4 * kDoubles <= n; x += 4 * kDoubles) {
    for (int k = 0; k < 4; ++k) sums[k] += load_vector(row + x + k * kDoubles);
  }
  double total = sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; x < n; ++x) total += row[x];
  return total;
}

void row_products(double (*to)[2][kRmiTaps], const double* const* a, const double* const* b, int64_t n) {
  for (int k = 0; k < 2; ++k) {
    const double* right = b[k] - kRmiReach;
    DoubleVector sums[2][kRmiTaps] = {};
    int64_t x = 0;
    for (; x + kDoubles <= n; x += kDoubles) {
      const DoubleVector first = load_vector(a[0] + x), second = load_vector(a[1] + x);
      for (int d = 0; d < kRmiTaps; ++d) {
        const DoubleVector other = load_vector(right + x + d);
        sums[0][d] += first * other;
        sums[1][d] += second * other;
      }
    }
    for (int i = 0; i < 2; ++i) {
      for (int d = 0; d < kRmiTaps; ++d) {
        double total = sum_of_lanes(sums[i][d]);
        for (int64_t rest = x; rest < n; ++rest) total += a[i][rest] * right[rest + d];
        to[i][k][d] = total;
      }
    }
  }
}

template <typename T>
void correlate(T* __restrict__ to, const double* const* rows, const double (*weight)[kRmiTaps], double constant,
               int64_t n) {
  constexpr int kRows = 2 * kRmiTaps;
  int64_t x = 0;
  for (; x + kDoubles <= n; x += kDoubles) {
    DoubleVector sum = all(constant);
    for (int i = 0; i < kRows; ++i) {
      for (int d = 0; d < kRmiTaps; ++d) sum += weight[i][d] * load_vector(rows[i] + x + d - kRmiReach);
    }
    for (int64_t k = 0; k < kDoubles; ++k) to[x + k] = static_cast<T>(sum[k]);
  }
  for (; x < n; ++x) {
    double sum = constant;
    for (int i = 0; i < kRows; ++i) {
      for (int d = 0; d < kRmiTaps; ++d) sum += weight[i][d] * rows[i][x + d - kRmiReach];
    }
    to[x] = static_cast<T>(sum);
  }
}

template <typename T>
constexpr RmiOps<T> rmi_table() {
  RmiOps<T> ops{};
  ops.sum_window_rows = sum_window_rows<T>;
  ops.pool_columns = pool_columns<T>;
  ops.gradient = rmi_gradient<T>;
  ops.sum = row_sum;
  ops.products = row_products;
  ops.correlate = correlate<T>;
  return ops;
}

}  // namespace

namespace HMSA_SIMD_NAMESPACE {
extern const RmiOps<float> float_rmi;
extern const RmiOps<double> double_rmi;
const RmiOps<float> float_rmi = rmi_table<float>();
const RmiOps<double> double_rmi = rmi_table<double>();
}  // namespace HMSA_SIMD_NAMESPACE

}  // namespace hmsa
