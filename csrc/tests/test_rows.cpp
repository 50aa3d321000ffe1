// The row primitives against plain loops in double, each instruction set that the processor has, at every length up to
// a few vectors and every alignment, with NaN around what may be written and behind what may be read.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <tuple>
#include <vector>

#include "core/resize.h"
#include "ops/cpu/axis.h"
#include "ops/cpu/simd/rows.h"
#include "tests/instruction_sets.h"

namespace {

using namespace hmsa;
using namespace testing;

constexpr int64_t kLongest = 70;

std::mt19937 random_bits(7);

template <typename T>
T number() {
  return std::uniform_real_distribution<T>(-1, 1)(random_bits);
}

// n random numbers at an offset from an aligned address, NaN before and behind.
template <typename T>
struct Row {
  int64_t offset;
  int64_t length;
  std::vector<T> memory;

  Row(int64_t offset, int64_t n) : offset(offset + 16), length(n) {
    memory.assign(this->offset + n + kRowSlack + 1, std::numeric_limits<T>::quiet_NaN());
    for (int64_t x = 0; x < n; ++x) data()[x] = number<T>();
  }
  T* data() { return memory.data() + offset; }
  T operator[](int64_t x) const { return memory[offset + x]; }

  bool untouched_around() const {
    for (int64_t k = 0; k < static_cast<int64_t>(memory.size()); ++k) {
      if ((k < offset || k >= offset + length) && !std::isnan(memory[k])) return false;
    }
    return true;
  }
};

template <typename T>
double tolerance() {
  return sizeof(T) == 4 ? 2e-6 : 4e-15;
}

// Calls check(n, offset) for many lengths and alignments.
template <typename Check>
void for_lengths(const Check& check) {
  for (int64_t n = 0; n <= kLongest; n += n < 36 ? 1 : 5) {
    for (int64_t offset = 0; offset < 9; ++offset) check(n, offset);
  }
}

template <typename T, typename Wanted>
void expect_row(const Row<T>& got, const char* what, const Wanted& wanted) {
  EXPECT(got.untouched_around(), what, ", n ", got.length, ", offset ", got.offset);
  for (int64_t x = 0; x < got.length; ++x) {
    EXPECT(std::fabs(got[x] - wanted(x)) <= tolerance<T>(), what, ", n ", got.length, ", offset ", got.offset,
           ", element ", x, ": ", got[x], " instead of ", wanted(x));
  }
}

template <typename T>
void blends_follow_their_formulas() {
  const RowOps<T>& ops = row_ops<T>();
  for_lengths([&](int64_t n, int64_t offset) {
    Row<T> to(offset, n), a(1, n), p(2, n), q(3, n), b(4, n), c(5, n), g(6, n), sum(7, n), product(offset, n);
    const T w = T(0.3), v = T(0.6);
    const RowPair<T> first{p.data(), q.data(), w}, second{b.data(), c.data(), v};
    const auto at_first = [&](int64_t x) { return (1.0 - w) * p[x] + double(w) * q[x]; };
    const auto at_second = [&](int64_t x) { return (1.0 - v) * b[x] + double(v) * c[x]; };

    ops.lerp(to.data(), first, n);
    expect_row(to, "lerp", at_first);
    ops.lerp_multiply(to.data(), first, a.data(), n);
    expect_row(to, "lerp_multiply", [&](int64_t x) { return at_first(x) * a[x]; });
    ops.blend_upper(to.data(), a.data(), first, second, n);
    expect_row(to, "blend_upper", [&](int64_t x) { return a[x] * at_first(x) + (1.0 - a[x]) * at_second(x); });
    const auto lower = [&](int64_t x) { return at_first(x) + (1.0 - a[x]) * at_second(x); };
    ops.blend_lower(to.data(), a.data(), first, second, n);
    expect_row(to, "blend_lower", lower);
    ops.blend_last(to.data(), a.data(), first, second, n);
    ops.end_streams();
    expect_row(to, "blend_last", lower);

    const Row<T> before = sum;
    ops.lower_backward(to.data(), sum.data(), g.data(), a.data(), second, n);
    expect_row(to, "lower_backward", [&](int64_t x) { return (1.0 - a[x]) * g[x]; });
    expect_row(sum, "lower_backward's sum", [&](int64_t x) { return before[x] + g[x] * at_second(x); });
    const Row<T> again = sum;
    ops.upper_backward(to.data(), product.data(), sum.data(), g.data(), a.data(), first, second, n);
    expect_row(to, "upper_backward", [&](int64_t x) { return (1.0 - a[x]) * g[x]; });
    expect_row(product, "upper_backward's product", [&](int64_t x) { return double(a[x]) * g[x]; });
    expect_row(sum, "upper_backward's sum", [&](int64_t x) { return again[x] + g[x] * (at_first(x) - at_second(x)); });
  });
}

template <typename T>
void sums_of_rows_and_their_adjoint_agree() {
  const RowOps<T>& ops = row_ops<T>();
  const T weights[2][4] = {{T(0.1), T(-0.7), T(0.4), T(0.9)}, {T(0.8), T(0.2), T(-0.3), T(0.5)}};
  for_lengths([&](int64_t n, int64_t offset) {
    std::vector<Row<T>> from;
    for (int k = 0; k < 4; ++k) from.emplace_back(offset + k, n);
    const T* const rows[4] = {from[0].data(), from[1].data(), from[2].data(), from[3].data()};
    for (int count = 1; count <= 4; ++count) {
      const auto sum_of = [&](int j, int64_t x) {
        double sum = 0;
        for (int k = 0; k < count; ++k) sum += double(weights[j][k]) * from[k][x];
        return sum;
      };
      Row<T> to(offset, n), second(3, n);
      if (count > 1) {
        ops.sum_rows(to.data(), rows, weights[0], count, n);
        expect_row(to, "sum_rows", [&](int64_t x) { return sum_of(0, x); });
      }
      for (const auto& [targets, fresh] : {std::pair{1, false}, {1, true}, {2, false}, {2, true}}) {
        Row<T> to_before = to, second_before = second;
        T* const both[2] = {to.data(), second.data()};
        if (fresh) {  // what it holds must not be read
          std::fill_n(both[targets - 1], n, static_cast<T>(NAN));
          Row<T>& before = targets == 1 ? to_before : second_before;
          std::fill_n(before.data(), n, T(0));
        }
        ops.spread(both, targets, fresh, rows, weights, count, n);
        expect_row(to, "spread", [&](int64_t x) { return to_before[x] + sum_of(0, x); });
        expect_row(second, "spread's second",
                   [&, targets = targets](int64_t x) { return second_before[x] + (targets > 1 ? sum_of(1, x) : 0.0); });
      }
    }
  });
}

// Both directions of the columns' resize, whatever the ratio, from every column on.
template <typename T>
void resampling_follows_its_table() {
  const RowOps<T>& ops = row_ops<T>();
  for (const auto& [in, out] : {std::pair{20, 80},
                                {40, 80},
                                {80, 40},
                                {80, 20},
                                {9, 71},
                                {64, 80},
                                {1, 40},
                                {70, 70},
                                {150, 21},
                                {10, 160},
                                {33, 66}}) {
    const AxisMap map = make_axis_map(in, out, false);
    Axis<T> axis(map);
    axis.make_adjoint();
    Row<T> low(0, in), high(0, out);
    for (int32_t lo = 0; lo < out; lo += 3) {
      Row<T> to(lo % 8, out - lo);
      ops.resample(to.data(), low.data(), 0, axis.table(Range{lo, out}), out - lo);
      expect_row(to, "resample", [&](int64_t x) {
        const Taps<double> taps = map.template taps<double>(static_cast<int32_t>(lo + x));
        return (1.0 - taps.weight) * low[taps.first] + taps.weight * low[taps.second];
      });
    }
    std::vector<T> whole;
    for (int32_t lo = 0; lo < in; lo += 3) {
      const auto adjoint = [&](int64_t i) {
        double sum = 0;
        for (int32_t o = 0; o < out; ++o) {
          sum += map.template weight<double>(o, static_cast<int32_t>(lo + i)) * high[o];
        }
        return sum;
      };
      Row<T> to(lo % 8, in - lo);
      ops.contract(to.data(), high.data(), 0, axis.sum_table(Range{lo, in}), in - lo);
      expect_row(to, "contract", adjoint);
      if (lo == 0) {
        whole.assign(to.data(), to.data() + in);
      } else {
        for (int32_t i = lo; i < in; ++i) EXPECT_EQUAL(to[i - lo], whole[i]);  // the same bits in any part
      }
      if (axis.fan_index.empty()) continue;
      ops.resample(to.data(), high.data(), 0, axis.fan_table(Range{lo, in}), in - lo);
      expect_row(to, "resample's adjoint", adjoint);
    }
  }
}

// Two resizes in one, whose outputs read one to four elements each: taps that some of them lack repeat another.
template <typename T>
void resampling_follows_composed_tables() {
  const RowOps<T>& ops = row_ops<T>();
  for (const bool align_corners : {false, true}) {
    for (const auto& [in, middle, out] : {std::tuple{67, 36, 72},
                                          {4, 11, 71},
                                          {40, 80, 40},
                                          {80, 160, 80},
                                          {33, 45, 70},
                                          {90, 20, 64},
                                          {16, 64, 96},
                                          {70, 35, 71},
                                          {128, 100, 64},
                                          {50, 33, 67}}) {
      const ComposedMap map{make_axis_map(in, middle, align_corners), make_axis_map(middle, out, align_corners)};
      const Axis<T> axis(map);
      Row<T> from(0, in);
      for (int32_t lo = 0; lo < out; lo += 5) {
        Row<T> to(lo % 8, out - lo);
        ops.resample(to.data(), from.data(), 0, axis.table(Range{lo, out}), out - lo);
        expect_row(to, "resample, composed", [&](int64_t x) {
          const ComposedTaps<double> taps = map.template taps<double>(static_cast<int32_t>(lo + x));
          double sum = 0;
          for (int k = 0; k < taps.count; ++k) sum += taps.weight[k] * from[taps.index[k]];
          return sum;
        });
      }
    }
  }
}

// A label must not depend on where the tile of its pixel begins.
template <typename T>
void rows_in_parts_have_the_same_bits() {
  const RowOps<T>& ops = row_ops<T>();
  constexpr int32_t kIn = 61, kOut = 233;
  const Axis<T> axis(make_axis_map(kIn, kOut, false));
  const Axis<T> composed(ComposedMap{make_axis_map(kIn, 400, false), make_axis_map(400, kOut, false)});
  Row<T> from(0, kIn), a(0, kOut), b(1, kOut), c(2, kOut), d(3, kOut), attention(5, kOut);
  const T* rows[4] = {a.data(), b.data(), c.data(), d.data()};
  const T weights[4] = {T(0.3), T(0.21), T(0.4), T(0.09)};
  const auto expect_parts = [&](const char* name, const auto& make) {
    Row<T> whole(0, kOut);
    make(whole.data(), 0, kOut);
    for (const int64_t length : {1, 3, 7, 16, 33, 64, 100}) {
      for (int64_t lo = 0; lo < kOut; lo += length) {
        const int64_t n = std::min<int64_t>(length, kOut - lo);
        Row<T> part(lo % 5, n);
        make(part.data(), lo, n);
        for (int64_t x = 0; x < n; ++x) EXPECT_EQUAL(part[x], whole[lo + x], name, ", ", lo, " + ", x, " of ", n);
      }
    }
  };
  for (const Axis<T>* table : {&axis, &composed}) {
    expect_parts("resample", [&](T* to, int64_t lo, int64_t n) {
      const auto first = static_cast<int32_t>(lo);
      ops.resample(to, from.data(), 0, table->table(Range{first, first + static_cast<int32_t>(n)}), n);
    });
  }
  const auto pair = [&](const Row<T>& near, const Row<T>& far, int64_t lo) {
    return RowPair<T>{near.memory.data() + near.offset + lo, far.memory.data() + far.offset + lo, T(0.37)};
  };
  for (const int count : {2, 3, 4}) {
    expect_parts("sum_rows", [&](T* to, int64_t lo, int64_t n) {
      const T* some[4] = {rows[0] + lo, rows[1] + lo, rows[2] + lo, rows[3] + lo};
      ops.sum_rows(to, some, weights, count, n);
    });
  }
  expect_parts("lerp", [&](T* to, int64_t lo, int64_t n) { ops.lerp(to, pair(a, b, lo), n); });
  expect_parts("lerp_multiply",
               [&](T* to, int64_t lo, int64_t n) { ops.lerp_multiply(to, pair(a, b, lo), attention.data() + lo, n); });
  expect_parts("blend_upper", [&](T* to, int64_t lo, int64_t n) {
    ops.blend_upper(to, attention.data() + lo, pair(a, b, lo), pair(c, d, lo), n);
  });
  expect_parts("blend_lower", [&](T* to, int64_t lo, int64_t n) {
    ops.blend_lower(to, attention.data() + lo, pair(a, b, lo), pair(c, d, lo), n);
  });
}

template <typename T>
void pixels_are_split_and_joined() {
  const RowOps<T>& ops = row_ops<T>();
  for (int64_t channels = 1; channels <= 11; ++channels) {
    for (int64_t n = 1; n <= 13; ++n) {
      const int64_t stride = channels + n % 3, pitch = n + channels % 4;
      Row<T> pixels(1, (n - 1) * stride + channels), rows(3, (channels - 1) * pitch + n),
          back(2, (n - 1) * stride + channels);
      ops.split_pixels(rows.data(), pitch, pixels.data(), stride, channels, n);
      ops.join_pixels(back.data(), stride, rows.data(), pitch, channels, n);
      EXPECT(rows.untouched_around() && back.untouched_around());
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t x = 0; x < n; ++x) {
          EXPECT_EQUAL(rows[c * pitch + x], pixels[x * stride + c]);
          EXPECT_EQUAL(back[x * stride + c], pixels[x * stride + c]);
        }
      }
    }
  }
}

template <typename S>
void stored_types_are_converted() {
  const RowOps<float>& ops = row_ops<float>();
  const MemoryOps<S, float> memory = memory_ops<S, float>(ops);
  std::vector<S> bits(1 << 16);
  for (size_t k = 0; k < bits.size(); ++k) bits[k].bits = static_cast<uint16_t>(k);
  std::vector<float> wide(bits.size());
  std::vector<S> back(bits.size());
  memory.load(wide.data(), bits.data(), 1, static_cast<int64_t>(bits.size()));
  memory.store(back.data(), 1, wide.data(), static_cast<int64_t>(bits.size()));
  for (size_t k = 0; k < bits.size(); ++k) {
    const float one = to_arithmetic(bits[k]);
    EXPECT(wide[k] == one || (std::isnan(wide[k]) && std::isnan(one)), "bits ", k);
    if (!std::isnan(one)) EXPECT_EQUAL(back[k].bits, bits[k].bits);
    if (std::isnan(one)) EXPECT(std::isnan(to_arithmetic(back[k])), "bits ", k);
  }
  // Numbers between the representable ones, in vectors and one by one, round alike.
  for (int64_t n = 1; n < 40; ++n) {
    Row<float> from(n % 5, n);
    std::vector<S> all(n), single(n);
    memory.store(all.data(), 1, from.data(), n);
    for (int64_t x = 0; x < n; ++x) {
      memory.store(single.data() + x, 1, from.data() + x, 1);
      EXPECT_EQUAL(all[x].bits, single[x].bits);
    }
  }
}

int run_all() {
  RUN_TEST(blends_follow_their_formulas<float>);
  RUN_TEST(blends_follow_their_formulas<double>);
  RUN_TEST(sums_of_rows_and_their_adjoint_agree<float>);
  RUN_TEST(sums_of_rows_and_their_adjoint_agree<double>);
  RUN_TEST(resampling_follows_its_table<float>);
  RUN_TEST(resampling_follows_its_table<double>);
  RUN_TEST(resampling_follows_composed_tables<float>);
  RUN_TEST(resampling_follows_composed_tables<double>);
  RUN_TEST(rows_in_parts_have_the_same_bits<float>);
  RUN_TEST(rows_in_parts_have_the_same_bits<double>);
  RUN_TEST(pixels_are_split_and_joined<float>);
  RUN_TEST(pixels_are_split_and_joined<double>);
  RUN_TEST(stored_types_are_converted<Half>);
  RUN_TEST(stored_types_are_converted<BFloat16>);
  return finish();
}

}  // namespace

int main() { return run_with_each_instruction_set(run_all); }
