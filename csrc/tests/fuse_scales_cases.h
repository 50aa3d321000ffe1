// Problems for the kernels of fuse_scales, in double for the reference and in memory for the kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/half.h"
#include "core/problem.h"
#include "tests/fuse_scales_reference.h"
#include "tests/testing.h"

namespace testing {

using hmsa::BFloat16;
using hmsa::Chain;
using hmsa::Extent;
using hmsa::Half;
using hmsa::MapView;
using reference::Map;
using reference::Problem;
using reference::Size;

constexpr uint64_t kSeeds = 3;  // orders of threads and blocks that each kernel is run in

// ---- maps in memory -------------------------------------------------------------------------------------------------

enum class Layout { kContiguous, kChannelsLast, kGaps };

inline const char* name_of(Layout layout) {
  return layout == Layout::kContiguous ? "contiguous" : layout == Layout::kChannelsLast ? "channels_last" : "gaps";
}

// A map as a kernel gets it: no byte more than its last element needs, and NaN wherever no element lies.
template <typename S>
struct Stored {
  int batch, channels;
  Size size;
  std::vector<S> memory;
  MapView<S> view;

  Stored(int b, int c, Size s, Layout layout) : batch(b), channels(c), size(s) {
    int64_t row, column, channel, image;
    switch (layout) {
      case Layout::kContiguous:
        column = 1, row = s.width, channel = row * s.height, image = channel * c;
        break;
      case Layout::kChannelsLast:
        channel = 1, column = c, row = column * s.width, image = row * s.height;
        break;
      default:
        column = 2, row = 2 * s.width + 3, channel = row * s.height + 1, image = channel * c + 5;
    }
    const int64_t last = (b - 1) * image + (c - 1) * channel + (s.height - 1) * row + (s.width - 1) * column;
    memory.resize(static_cast<size_t>(last) + 1);
    std::memset(memory.data(), 0xff, memory.size() * sizeof(S));
    view = MapView<S>{memory.data(), image, channel, row, column};
  }

  MapView<const S> const_view() const { return {view.data, view.batch, view.channel, view.row, view.column}; }

  static void put(float* to, double value) { *to = static_cast<float>(value); }
  static void put(double* to, double value) { *to = value; }
  static void put(Half* to, double value) { *to = hmsa::to_half(static_cast<float>(value)); }
  static void put(BFloat16* to, double value) { *to = hmsa::to_bfloat16(static_cast<float>(value)); }

  // Writes the map, and what each element became in S back into it.
  void store(Map& map) {
    reference::for_all(map, [&](int b, int c, int y, int x) {
      put(view.at(b, c, y, x), map.at(b, c, y, x));
      map.at(b, c, y, x) = hmsa::to_arithmetic(*view.at(b, c, y, x));
    });
  }

  Map load() const {
    Map map(batch, channels, size);
    reference::for_all(
        map, [&](int b, int c, int y, int x) { map.at(b, c, y, x) = hmsa::to_arithmetic(*view.at(b, c, y, x)); });
    return map;
  }

  bool gaps_untouched() const {
    std::vector<char> element(memory.size(), 0);
    reference::for_all(Map(batch, channels, size),
                       [&](int b, int c, int y, int x) { element[view.at(b, c, y, x) - memory.data()] = 1; });
    const std::vector<unsigned char> untouched(sizeof(S), 0xff);
    for (size_t i = 0; i < memory.size(); ++i) {
      if (!element[i] && std::memcmp(&memory[i], untouched.data(), sizeof(S)) != 0) return false;
    }
    return true;
  }

  bool same_bits(const Stored& other) const {
    return std::memcmp(memory.data(), other.memory.data(), memory.size() * sizeof(S)) == 0;
  }
};

// ---- problems -------------------------------------------------------------------------------------------------------

struct Case {
  std::vector<double> scales;
  Size size;
  std::vector<Size> heads;
  int batch = 1;
  int channels = 3;
  bool class_wise = false;
  bool align_corners = false;
};

inline std::string text_of(const Case& c) {
  std::string text = "scales";
  for (const double scale : c.scales) text += " " + std::to_string(scale).substr(0, 4);
  text += ", size " + std::to_string(c.size.height) + " x " + std::to_string(c.size.width) + ", heads";
  for (const Size head : c.heads) text += " " + std::to_string(head.height) + "x" + std::to_string(head.width);
  return text + ", batch " + std::to_string(c.batch) + ", channels " + std::to_string(c.channels) +
         (c.class_wise ? ", class-wise" : "") + (c.align_corners ? ", align_corners" : "");
}

inline std::vector<Case> cases() {
  return {
      // two scales, as in training; sides that a tile does not divide; more blocks than one
      {{1.0, 0.5}, {18, 70}, {{5, 18}, {3, 9}}, 2, 5, false, false},
      {{1.0, 0.5}, {37, 66}, {{37, 66}, {18, 33}}, 1, 2, false, false},
      // three, as in evaluation, with grids that floor unevenly
      {{2.0, 1.0, 0.5}, {17, 23}, {{9, 12}, {5, 6}, {3, 3}}, 2, 4, false, false},
      {{2.0, 1.0, 0.5}, {17, 23}, {{9, 12}, {5, 6}, {3, 3}}, 1, 5, true, false},
      {{2.0, 1.0, 0.5}, {9, 11}, {{5, 6}, {3, 3}, {2, 2}}, 1, 2, true, true},
      // only above, only below, many
      {{2.0, 1.5, 1.0}, {10, 13}, {{5, 7}, {4, 5}, {3, 4}}, 1, 3, false, true},
      {{1.0, 0.75, 0.5, 0.25}, {21, 12}, {{6, 3}, {4, 3}, {3, 2}, {2, 1}}, 1, 6, false, false},
      {{2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.3},
       {7, 9},
       {{4, 5}, {4, 4}, {3, 4}, {3, 3}, {2, 3}, {2, 2}, {1, 2}, {1, 1}},
       1,
       2,
       false,
       false},
      // one scale: the identity, and through a grid of its own
      {{1.0}, {20, 33}, {{5, 9}}, 2, 7, false, false},
      {{1.0}, {6, 5}, {{6, 5}}, 1, 3, false, false},
      {{0.5}, {19, 22}, {{3, 3}}, 1, 4, false, false},
      {{2.0}, {9, 10}, {{5, 5}}, 1, 4, false, true},
      // one-pixel maps, heads larger than their grids, one class, a steep ratio of scales
      {{1.0, 0.5}, {2, 2}, {{1, 1}, {1, 1}}, 3, 1, false, false},
      {{1.0, 0.5}, {8, 8}, {{19, 17}, {9, 23}}, 1, 2, false, false},
      {{1.0, 0.02}, {100, 60}, {{3, 2}, {1, 1}}, 1, 2, false, false},
      {{4.0, 1.0}, {6, 7}, {{24, 28}, {2, 2}}, 1, 2, true, false},
      {{1.0}, {1, 1}, {{40, 70}}, 1, 1, false, false},
  };
}

// Scales 1 and 0.5, 2 and 1, and all three, with heads at a quarter: one unit of 8 x 8 and several, several blocks side by
// side and one below the other, sides that are a multiple of four only, more classes than a block takes.
inline std::vector<Case> octave_cases() {
  return {
      {{1.0, 0.5}, {8, 8}, {{2, 2}, {1, 1}}, 1, 2, false, false},
      {{1.0, 0.5}, {40, 240}, {{10, 60}, {5, 30}}, 2, 3, false, false},
      {{1.0, 0.5}, {24, 64}, {{6, 16}, {3, 8}}, 1, 25, false, false},
      {{2.0, 1.0}, {4, 8}, {{2, 4}, {1, 2}}, 1, 2, false, false},
      {{2.0, 1.0}, {28, 124}, {{14, 62}, {7, 31}}, 2, 3, false, false},
      {{2.0, 1.0}, {12, 20}, {{6, 10}, {3, 5}}, 1, 25, false, false},
      {{2.0, 1.0, 0.5}, {8, 16}, {{4, 8}, {2, 4}, {1, 2}}, 1, 2, false, false},
      {{2.0, 1.0, 0.5}, {72, 128}, {{36, 64}, {18, 32}, {9, 16}}, 1, 3, false, false},
      {{2.0, 1.0, 0.5}, {16, 24}, {{8, 12}, {4, 6}, {2, 3}}, 2, 45, false, false},
  };
}

// What the forward kernels of octaves take for losses and predictions: a lone scale with its head at a quarter, too; and as
// many classes as need several chunks.
inline std::vector<Case> quarter_cases() {
  std::vector<Case> all = octave_cases();
  all.push_back({{1.0}, {12, 236}, {{3, 59}}, 2, 7, false, false});
  all.push_back({{1.0}, {20, 8}, {{5, 2}}, 1, 70, false, false});
  all.push_back({{1.0, 0.5}, {8, 8}, {{2, 2}, {1, 1}}, 1, 260, false, false});
  return all;
}

// Shapes from a fixed sequence: one to four scales, sides up to 40.
inline std::vector<Case> random_cases(int count) {
  std::mt19937 random(7);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  const double above[] = {3.0, 2.0, 1.5, 1.25};
  const double under[] = {0.8, 0.5, 0.35, 0.25};
  std::vector<Case> all;
  for (int k = 0; k < count; ++k) {
    Case c;
    for (const double scale : above) {
      if (below(4) == 0) c.scales.push_back(scale);
    }
    c.scales.push_back(1.0);
    for (const double scale : under) {
      if (below(4) == 0) c.scales.push_back(scale);
    }
    c.size = {4 + below(36), 4 + below(36)};
    for (const double scale : c.scales) {
      const int stride = 1 << below(4);
      const auto side = [&](int full) {
        const int grid = static_cast<int>(std::floor(full * scale));
        return (grid + stride - 1) / stride;
      };
      c.heads.push_back({side(c.size.height), side(c.size.width)});
    }
    c.batch = 1 + below(2);
    c.channels = 1 + below(6);
    c.class_wise = below(3) == 0;
    c.align_corners = below(3) == 0;
    all.push_back(c);
  }
  return all;
}

inline Map random_map(int batch, int channels, Size size, double low, double high, uint32_t seed) {
  std::mt19937 random(seed);
  Map map(batch, channels, size);
  for (double& value : map.values) value = low + (high - low) * (random() / 4294967296.0);
  return map;
}

// The problem in double and the same in S, both with the numbers that S can hold.
template <typename S>
struct Setup {
  Problem problem;
  Chain chain;
  std::vector<std::unique_ptr<Stored<S>>> logits, attention;

  Setup(const Case& c, Layout layout) {
    problem.scales = c.scales;
    problem.size = c.size;
    problem.align_corners = c.align_corners;
    std::vector<Extent> heads;
    for (size_t i = 0; i < c.scales.size(); ++i) {
      const uint32_t seed = static_cast<uint32_t>(10 * i + 1);
      const int attention_channels = c.class_wise ? c.channels : 1;
      heads.push_back({c.heads[i].height, c.heads[i].width});
      problem.logits.push_back(random_map(c.batch, c.channels, c.heads[i], -4, 4, seed));
      problem.attention.push_back(random_map(c.batch, attention_channels, c.heads[i], 0, 1, seed + 1));
      logits.push_back(std::make_unique<Stored<S>>(c.batch, c.channels, c.heads[i], layout));
      attention.push_back(std::make_unique<Stored<S>>(c.batch, attention_channels, c.heads[i], layout));
      logits.back()->store(problem.logits.back());
      attention.back()->store(problem.attention.back());
    }
    chain = hmsa::make_chain(static_cast<int>(c.scales.size()), c.scales.data(), heads.data(),
                             {c.size.height, c.size.width}, c.class_wise, c.align_corners);
  }
};

// What the forward kernels are given.
template <typename S>
hmsa::FuseScalesForward<S> forward_problem(const Case& c, const Setup<S>& setup, Stored<S>& output) {
  hmsa::FuseScalesForward<S> problem{};
  problem.chain = setup.chain;
  problem.batch = c.batch;
  problem.classes = c.channels;
  for (int i = 0; i < setup.chain.count; ++i) {
    problem.logits[i] = setup.logits[i]->const_view();
    if (i > 0) problem.attention[i] = setup.attention[i]->const_view();
  }
  problem.output = output.view;
  return problem;
}

// Kernels calculate in float, or double, and round once to S: `calculated` is for the first, the unit roundoff of S for
// the second.
template <typename S>
struct Precision;
template <>
struct Precision<double> {
  static constexpr double calculated = 1e-13, stored = 0;
};
template <>
struct Precision<float> {
  static constexpr double calculated = 4e-6, stored = 0;
};
template <>
struct Precision<Half> {
  static constexpr double calculated = 4e-6, stored = 0x1p-11;
};
template <>
struct Precision<BFloat16> {
  static constexpr double calculated = 4e-6, stored = 0x1p-8;
};

template <typename S>
void expect_close(const Map& got, const Map& wanted, const std::string& what) {
  double largest = 0;
  for (const double value : wanted.values) largest = std::fmax(largest, std::fabs(value));
  for (size_t i = 0; i < wanted.values.size(); ++i) {
    const double tolerance = Precision<S>::calculated * largest + Precision<S>::stored * std::fabs(wanted.values[i]);
    EXPECT(std::fabs(got.values[i] - wanted.values[i]) <= tolerance, what, ", element ", i, ": ", got.values[i],
           " instead of ", wanted.values[i]);
  }
}

}  // namespace testing
