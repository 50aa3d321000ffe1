// The row primitives of losses and predictions against plain loops in double, each instruction set that the processor
// has, at many lengths, alignments and numbers of channels; and the accuracy of the exponential and the logarithm.
#include "ops/cpu/simd/softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "ops/cpu/simd/rows.h"
#include "tests/instruction_sets.h"

namespace {

using namespace hmsa;
using namespace testing;

std::mt19937 random_bits(11);

template <typename T>
T number(double low, double high) {
  return static_cast<T>(std::uniform_real_distribution<double>(low, high)(random_bits));
}

template <typename T>
constexpr double tolerance = sizeof(T) == 4 ? 3e-7 : 1e-15;

// Rows of n numbers, one for each channel, with the slack that the primitives may read.
template <typename T>
struct Rows {
  int64_t channels, n, pitch;
  std::vector<T> memory;

  Rows(int64_t channels, int64_t n, int64_t gap, double reach)
      : channels(channels), n(n), pitch(n + gap), memory(static_cast<size_t>(channels * pitch + kRowSlack)) {
    for (T& value : memory) value = number<T>(-reach, reach);
  }
  T* data() { return memory.data(); }
  T& at(int64_t c, int64_t x) { return memory[static_cast<size_t>(c * pitch + x)]; }
};

template <typename T>
std::vector<T> row_of(int64_t n, double low, double high) {
  std::vector<T> row(static_cast<size_t>(n + kRowSlack));
  for (T& value : row) value = number<T>(low, high);
  return row;
}

template <typename Check>
void for_shapes(const Check& check) {
  for (const int64_t channels : {1, 2, 3, 19, 150}) {
    for (const int64_t n : {1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 64, 70}) {
      for (const double reach : {0.1, 8.0, 90.0}) check(channels, n, reach);
    }
  }
}

// log sum_c exp(z_c - m) without the 1 of the largest: exact to the last digits even where it is 1e-30.
template <typename T>
double log_rest_of(Rows<T>& z, int64_t x, double m) {
  double rest = -1;
  for (int64_t c = 0; c < z.channels; ++c) {
    if (z.at(c, x) == m) rest += 1;
  }
  for (int64_t c = 0; c < z.channels; ++c) {
    if (z.at(c, x) != m) rest += std::exp(z.at(c, x) - m);
  }
  return std::log1p(rest);
}

template <typename T>
double largest_of(Rows<T>& z, int64_t x) {
  double m = z.at(0, x);
  for (int64_t c = 1; c < z.channels; ++c) m = std::fmax(m, z.at(c, x));
  return m;
}

template <typename T>
void log_sums_keep_small_rests() {
  for_shapes([](int64_t channels, int64_t n, double reach) {
    Rows<T> z(channels, n, n % 5, reach);
    for (int64_t c = 0; c < channels; ++c) z.at(c, 0) = T(0.25);  // all alike
    std::vector<T> largest = row_of<T>(n, 0, 0), log_rest = largest;
    softmax_ops<T>().log_sum(largest.data(), log_rest.data(), z.data(), z.pitch, channels, n);
    for (int64_t x = 0; x < n; ++x) {
      const double m = largest_of(z, x);
      EXPECT_EQUAL(static_cast<double>(largest[x]), m);
      const double wanted = log_rest_of(z, x, m);
      // Where exp of the difference is below the smallest number of the type, the rest is zero.
      const double error = std::fabs(log_rest[x] - wanted);
      EXPECT(error <= 4 * tolerance<T> * wanted * (1 + 0.1 * reach) + 1e-37, "channels ", channels, ", n ", n,
             ", reach ", reach, ", element ", x, ": ", log_rest[x], " instead of ", wanted);
    }
  });
}

template <typename T>
void labels_are_the_first_of_the_largest() {
  for_shapes([](int64_t channels, int64_t n, double reach) {
    Rows<T> z(channels, n, n % 3, reach);
    for (int64_t c = 0; c < channels; ++c) {
      z.at(c, n / 2) = T(c % 2);                                 // ties
      if (n > 2) z.at(c, 0) = c == 1 || c == 4 ? T(NAN) : T(c);  // the first NaN
      if (n > 2) z.at(c, n - 1) = c >= 2 ? T(INFINITY) : T(c);   // the first infinity
    }
    std::vector<T> confidence = row_of<T>(n, 0, 0);
    std::vector<int32_t> label(static_cast<size_t>(n + kRowSlack + 1));
    softmax_ops<T>().argmax(label.data(), confidence.data(), z.data(), z.pitch, channels, n);
    for (int64_t x = 0; x < n; ++x) {
      int32_t best = 0;
      bool regular = true;
      for (int64_t c = 0; c < channels; ++c) {
        const bool was_nan = std::isnan(z.at(best, x));
        if (!was_nan && (std::isnan(z.at(c, x)) || z.at(c, x) > z.at(best, x))) best = static_cast<int32_t>(c);
        regular = regular && std::isfinite(z.at(c, x));
      }
      EXPECT_EQUAL(label[x], best, "channels ", channels, ", n ", n, ", element ", x);
      if (!regular) {
        EXPECT(std::isnan(confidence[x]), "channels ", channels, ", n ", n, ", element ", x, ": ", confidence[x]);
        continue;
      }
      const double wanted = std::exp(-log_rest_of(z, x, largest_of(z, x)));
      EXPECT(std::fabs(confidence[x] - wanted) <= 20 * tolerance<T>, "channels ", channels, ", n ", n, ", element ", x,
             ": ", confidence[x], " instead of ", wanted);
    }
  });
}

template <typename T>
void labels_alone_are_those_with_a_probability() {
  for_shapes([](int64_t channels, int64_t n, double reach) {
    Rows<T> z(channels, n, n % 3, reach);
    for (int64_t c = 0; c < channels; ++c) {
      z.at(c, n / 2) = T(c % 2);
      if (n > 2) z.at(c, 0) = c == 1 || c == 4 ? T(NAN) : T(c);
      if (n > 2) z.at(c, n - 1) = c >= 2 ? T(INFINITY) : -T(INFINITY);
    }
    std::vector<T> confidence = row_of<T>(n, 0, 0);
    std::vector<int32_t> label(static_cast<size_t>(n + kRowSlack + 1)), alone = label, names;
    for (int32_t c = 0; c < channels; ++c) names.push_back(3 * c + 1);
    softmax_ops<T>().argmax(label.data(), confidence.data(), z.data(), z.pitch, channels, n);
    softmax_ops<T>().label(alone.data(), z.data(), z.pitch, names.data(), channels, n);
    for (int64_t x = 0; x < n; ++x) {
      EXPECT_EQUAL(alone[x], 3 * label[x] + 1, "channels ", channels, ", n ", n, ", element ", x);
    }
  });
}

template <typename T>
void bounds_and_margins_hold_for_every_element() {
  const SoftmaxOps<T>& ops = softmax_ops<T>();
  for (int64_t n = 1; n < 70; ++n) {
    std::vector<T> a, b;  // without slack
    for (int64_t x = 0; x < n; ++x) {
      a.push_back(number<T>(-1, 1));
      b.push_back(a.back() - T(0.5));
    }
    T least = T(0.25), largest = T(0.125);
    const T low = std::min(least, *std::min_element(a.begin(), a.end()));
    const T high = std::max(largest, *std::max_element(a.begin(), a.end()));
    EXPECT(ops.bound(&least, &largest, a.data(), n));
    EXPECT_EQUAL(least, low);
    EXPECT_EQUAL(largest, high);
    EXPECT(ops.exceeds(a.data(), b.data(), T(0.49), n) && !ops.exceeds(a.data(), b.data(), T(0.51), n));
    for (int64_t x = 0; x < n; ++x) {
      const T kept = a[static_cast<size_t>(x)];
      a[static_cast<size_t>(x)] = b[static_cast<size_t>(x)];
      EXPECT(!ops.exceeds(a.data(), b.data(), T(0), n), "n ", n, ", element ", x);
      a[static_cast<size_t>(x)] = T(NAN);
      EXPECT(!ops.exceeds(a.data(), b.data(), T(0), n), "n ", n, ", element ", x);
      EXPECT(!ops.bound(&least, &largest, a.data(), n), "n ", n, ", element ", x);
      a[static_cast<size_t>(x)] = kept;
    }
  }
}

template <typename T>
void not_a_number_and_infinities_pass_through() {
  for (const double bad : {double(NAN), double(INFINITY)}) {
    Rows<T> z(3, 5, 0, 1);
    z.at(1, 2) = static_cast<T>(bad);
    for (int64_t c = 0; c < 3; ++c) z.at(c, 4) = -T(INFINITY);
    std::vector<T> largest = row_of<T>(5, 0, 0), log_rest = largest;
    softmax_ops<T>().log_sum(largest.data(), log_rest.data(), z.data(), z.pitch, 3, 5);
    EXPECT(std::isfinite(log_rest[1]) && std::isfinite(log_rest[3]));
    EXPECT(std::isnan(log_rest[2]) && std::isnan(log_rest[4]));
  }
}

template <typename T>
void gradients_and_sums_follow_their_formulas() {
  const SoftmaxOps<T>& ops = softmax_ops<T>();
  for_shapes([&](int64_t channels, int64_t n, double reach) {
    Rows<T> z(channels, n, 0, reach);
    const std::vector<T> weight = row_of<T>(channels, 0, 2);
    std::vector<T> to = row_of<T>(n, 0, 0);
    for (const bool weighted : {false, true}) {
      ops.weighted_sum(to.data(), z.data(), z.pitch, weighted ? weight.data() : nullptr, channels, n);
      for (int64_t x = 0; x < n; ++x) {
        double sum = 0;
        for (int64_t c = 0; c < channels; ++c) sum += (weighted ? double(weight[c]) : 1.0) * z.at(c, x);
        EXPECT(std::fabs(to[x] - sum) <= tolerance<T> * reach * 2 * double(channels), "element ", x, ": ", to[x],
               " instead of ", sum);
      }
    }
    std::vector<T> lse = row_of<T>(n, reach, reach + 2), all_of = row_of<T>(n, 0, 1), own = row_of<T>(n, 0, 1),
                   smooth = row_of<T>(n, 0, 1), label(to.size());
    for (int64_t x = 0; x < n; ++x) label[x] = static_cast<T>(x % (channels + 1) - 1);
    const int64_t c = channels / 2;
    for (const bool smoothed : {false, true}) {
      ops.cross_entropy_gradient(to.data(),
                                 {z.data() + c * z.pitch, lse.data(), label.data(), T(0), all_of.data(), own.data(),
                                  smoothed ? smooth.data() : nullptr, static_cast<T>(c), T(0.3)},
                                 n);
      for (int64_t x = 0; x < n; ++x) {
        const double wanted = double(all_of[x]) * std::exp(double(z.at(c, x) - lse[x])) -
                              (label[x] == T(c) ? own[x] : T(0)) - (smoothed ? double(T(0.3)) * smooth[x] : 0.0);
        EXPECT(std::fabs(to[x] - wanted) <= 2 * tolerance<T>, "element ", x, ": ", to[x], " instead of ", wanted);
      }
    }
    std::vector<T> mirrored = row_of<T>(n, -1, 1);
    const std::vector<T> before = all_of;
    ops.average_mirrored(all_of.data(), all_of.data(), mirrored.data(), n);
    for (int64_t x = 0; x < n; ++x) EXPECT_EQUAL(all_of[x], (before[x] + mirrored[n - 1 - x]) * T(0.5));
  });
}

// One gradient for all pixels is rows of it; and the pass in registers is the three steps one after the other.
template <typename T>
void the_pass_of_a_lower_scale_follows_its_formulas() {
  const SoftmaxOps<T>& ops = softmax_ops<T>();
  for_shapes([&](int64_t channels, int64_t n, double reach) {
    const auto row = [&](double low, double high) { return row_of<T>(n, low, high); };
    const std::vector<T> attention = row(0, 1), a = row(-reach, reach), b = row(-reach, reach), c = row(-reach, reach),
                         d = row(-reach, reach), sum_before = row(-1, 1), grads(attention.size(), T(0.7));
    std::vector<T> lse = row(2 * reach, 2 * reach + 2), label(attention.size()), to = row(0, 0), g = row(0, 0),
                   sum = sum_before;
    for (int64_t x = 0; x < n; ++x) {
      label[x] = static_cast<T>(x % (channels + 1) - 1);
      if (label[x] < 0) lse[x] = static_cast<T>(INFINITY);
    }
    const auto channel = static_cast<T>(channels / 2);
    ops.cross_entropy_backward(to.data(), g.data(), sum.data(),
                               {attention.data(),
                                {a.data(), b.data(), T(0.3)},
                                {c.data(), d.data(), T(0.6)},
                                lse.data(),
                                label.data(),
                                channel,
                                T(0.7)},
                               n);
    std::vector<T> z = row(0, 0), one = row(0, 0), rows = row(0, 0);
    for (int64_t x = 0; x < n; ++x) {
      const double before = 0.4 * c[x] + 0.6 * d[x];
      const double logit = 0.7 * a[x] + 0.3 * b[x] + (1 - attention[x]) * before;
      const double wanted = label[x] < 0 ? 0 : 0.7 * (std::exp(logit - lse[x]) - (label[x] == channel));
      const double slack = 8 * tolerance<T> * (1 + reach);
      EXPECT(std::fabs(g[x] - wanted) <= slack, "g of ", x, ": ", g[x], " instead of ", wanted);
      EXPECT(std::fabs(to[x] - (1 - attention[x]) * wanted) <= slack, "element ", x, ": ", to[x]);
      EXPECT(std::fabs(sum[x] - (sum_before[x] + wanted * before)) <= slack * (1 + reach), "sum of ", x, ": ", sum[x]);
      EXPECT(label[x] >= 0 || (g[x] == 0 && sum[x] == sum_before[x]), "an ignored pixel has a gradient");
      z[x] = static_cast<T>(logit);
    }
    ops.cross_entropy_gradient(
        one.data(), {z.data(), lse.data(), label.data(), T(0.7), nullptr, nullptr, nullptr, channel, T(1)}, n);
    ops.cross_entropy_gradient(
        rows.data(), {z.data(), lse.data(), label.data(), T(0), grads.data(), grads.data(), nullptr, channel, T(1)}, n);
    for (int64_t x = 0; x < n; ++x) EXPECT_EQUAL(one[x], rows[x]);
  });
}

template <typename T>
void losses_follow_their_formula() {
  const SoftmaxOps<T>& ops = softmax_ops<T>();
  for_shapes([&](int64_t channels, int64_t n, double reach) {
    Rows<T> z(channels, n, 0, reach);
    std::vector<T> largest = row_of<T>(n, 0, reach), rest = row_of<T>(n, 0, 3), label = row_of<T>(n, 0, 0), own = label,
                   weight = row_of<T>(n, 0, 2), loss = own, lse = own;
    const std::vector<T> weight_before = weight;
    for (int64_t x = 0; x < n; ++x) label[x] = static_cast<T>((7 * x) % (channels + 1) - 1);
    ops.pick(own.data(), z.data(), z.pitch, label.data(), n);
    for (int64_t x = 0; x < n; ++x) EXPECT_EQUAL(own[x], z.at(std::max<int64_t>(int64_t(label[x]), 0), x));
    ops.cross_entropy_loss(loss.data(), lse.data(), weight.data(),
                           {largest.data(), rest.data(), own.data(), label.data(), T(0.9)}, n);
    double sum = 0;
    for (int64_t x = 0; x < n; ++x) {
      const double wanted = label[x] < 0 ? 0 : 0.9 * weight_before[x] * (double(largest[x]) - own[x] + rest[x]);
      EXPECT(std::fabs(loss[x] - wanted) <= 8 * tolerance<T> * (3 + 2 * reach), "element ", x, ": ", loss[x],
             " instead of ", wanted);
      EXPECT_EQUAL(weight[x], label[x] < 0 ? T(0) : weight_before[x]);
      EXPECT_EQUAL(lse[x], largest[x] + rest[x]);
      sum += loss[x];
    }
    const double added = ops.sum(loss.data(), n);
    EXPECT(std::fabs(added - sum) <= 1e-12 * std::fabs(sum), "sum ", added, " instead of ", sum);
  });
}

// Every type, stride and kind of label, the extreme ones, too.
template <typename T, typename L>
void labels_are_told_apart_as(bool (*load)(T*, hmsa::LabelElements<L>, int64_t)) {
  constexpr int64_t kClasses = 19;
  const L odd[] = {0,
                   18,
                   19,
                   20,
                   127,
                   static_cast<L>(-1),
                   static_cast<L>(-100),
                   std::numeric_limits<L>::max(),
                   std::numeric_limits<L>::min(),
                   static_cast<L>(int64_t(1) << 32),
                   static_cast<L>((int64_t(1) << 32) + 3)};
  for (const int64_t ignore_index : {int64_t(255), int64_t(-1), int64_t(-100), int64_t(3), (int64_t(1) << 32) + 3}) {
    for (const int64_t stride : {1, 3}) {
      for (const int64_t n : {1, 7, 8, 23, 40}) {
        for (const bool with_odd : {false, true}) {
          std::vector<L> from(n * stride);
          for (size_t k = 0; k < from.size(); ++k) {
            from[k] = with_odd && number<float>(0, 1) < 0.3 ? odd[size_t(number<float>(0, 10.9f))]
                                                            : static_cast<L>(number<float>(0, 18.9f));
          }
          std::vector<T> to(n + kRowSlack);
          bool wanted = true;
          const bool regular = load(to.data(), {from.data(), stride, kClasses, ignore_index}, n);
          for (int64_t x = 0; x < n; ++x) {
            const auto label = static_cast<int64_t>(from[x * stride]);
            const bool is_class = label >= 0 && label < kClasses && label != ignore_index;
            wanted = wanted && (is_class || label == ignore_index);
            EXPECT(to[x] == static_cast<T>(is_class ? label : -1), "label ", label, " gave ", to[x]);
          }
          EXPECT_EQUAL(regular, wanted);
        }
      }
    }
  }
}

template <typename T>
void labels_are_told_apart() {
  labels_are_told_apart_as<T>(softmax_ops<T>().load_labels_uint8);
  labels_are_told_apart_as<T>(softmax_ops<T>().load_labels_int16);
  labels_are_told_apart_as<T>(softmax_ops<T>().load_labels_int32);
  labels_are_told_apart_as<T>(softmax_ops<T>().load_labels_int64);
}

// exp by way of the gradient: one channel, no label. Over its range, against the C library in double.
void exponentials_are_accurate() {
  const SoftmaxOps<float>& ops = softmax_ops<float>();
  constexpr int64_t n = 4096;
  std::vector<float> x(n + kRowSlack), zero(n + kRowSlack), one(n + kRowSlack, 1.0f), label(n + kRowSlack, -1.0f),
      e = zero;
  const hmsa::CrossEntropyGradientRow<float> row{x.data(),    zero.data(), label.data(), 0.0f, one.data(),
                                                 zero.data(), nullptr,     0.0f,         0.0f};
  double worst = 0;
  for (int round = 0; round < 20; ++round) {
    for (float& value : x) value = number<float>(-87.3, 88.3);
    ops.cross_entropy_gradient(e.data(), row, n);
    for (int64_t k = 0; k < n; ++k) {
      worst = std::fmax(worst, std::fabs(e[k] / std::exp(double(x[k])) - 1));
    }
  }
  EXPECT(worst < 1.3e-7, "relative error ", worst);
  const float special[] = {-INFINITY, -1e30f, -88.0f, NAN, 0.0f};
  std::copy(std::begin(special), std::end(special), x.begin());
  ops.cross_entropy_gradient(e.data(), row, 5);
  EXPECT(e[0] == 0 && e[1] == 0 && e[2] == 0 && std::isnan(e[3]) && e[4] == 1);
}

int run_all() {
  RUN_TEST(the_pass_of_a_lower_scale_follows_its_formulas<float>);
  RUN_TEST(the_pass_of_a_lower_scale_follows_its_formulas<double>);
  RUN_TEST(losses_follow_their_formula<float>);
  RUN_TEST(losses_follow_their_formula<double>);
  RUN_TEST(labels_are_told_apart<float>);
  RUN_TEST(labels_are_told_apart<double>);
  RUN_TEST(log_sums_keep_small_rests<float>);
  RUN_TEST(log_sums_keep_small_rests<double>);
  RUN_TEST(labels_are_the_first_of_the_largest<float>);
  RUN_TEST(labels_are_the_first_of_the_largest<double>);
  RUN_TEST(labels_alone_are_those_with_a_probability<float>);
  RUN_TEST(labels_alone_are_those_with_a_probability<double>);
  RUN_TEST(bounds_and_margins_hold_for_every_element<float>);
  RUN_TEST(bounds_and_margins_hold_for_every_element<double>);
  RUN_TEST(not_a_number_and_infinities_pass_through<float>);
  RUN_TEST(not_a_number_and_infinities_pass_through<double>);
  RUN_TEST(gradients_and_sums_follow_their_formulas<float>);
  RUN_TEST(gradients_and_sums_follow_their_formulas<double>);
  RUN_TEST(exponentials_are_accurate);
  return finish();
}

}  // namespace

int main() { return run_with_each_instruction_set(run_all); }
