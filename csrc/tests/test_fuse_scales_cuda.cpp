// The CUDA kernels of fuse_scales, run on the CPU by host_run, against plain loops in double.
#include "host_run/cuda_host.h"
// The kernels see CUDA as a .cu file does.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "ops/cuda/fuse_scales_backward.cu"
#include "ops/cuda/fuse_scales_forward.cu"
#include "tests/fuse_scales_reference.h"
#include "tests/testing.h"

namespace {

using hmsa::BFloat16;
using hmsa::Chain;
using hmsa::Extent;
using hmsa::Half;
using hmsa::MapView;
using reference::Map;
using reference::Problem;
using reference::Size;

constexpr uint64_t kSeeds = 3;

// ---- maps in memory -------------------------------------------------------------------------------------------------

enum class Layout { kContiguous, kChannelsLast, kGaps };

const char* name_of(Layout layout) {
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

std::string text_of(const Case& c) {
  std::string text = "scales";
  for (const double scale : c.scales) text += " " + std::to_string(scale).substr(0, 4);
  text += ", size " + std::to_string(c.size.height) + " x " + std::to_string(c.size.width) + ", heads";
  for (const Size head : c.heads) text += " " + std::to_string(head.height) + "x" + std::to_string(head.width);
  return text + ", batch " + std::to_string(c.batch) + ", channels " + std::to_string(c.channels) +
         (c.class_wise ? ", class-wise" : "") + (c.align_corners ? ", align_corners" : "");
}

std::vector<Case> cases() {
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

// Shapes from a fixed sequence: one to four scales, sides up to 40.
std::vector<Case> random_cases(int count) {
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

Map random_map(int batch, int channels, Size size, double low, double high, uint32_t seed) {
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

// ---- forward --------------------------------------------------------------------------------------------------------

template <typename S>
Stored<S> forward(const Case& c, const Setup<S>& setup, Layout layout) {
  Stored<S> output(c.batch, c.channels, c.size, layout);
  hmsa::FuseScalesForward<S> problem{};
  problem.chain = setup.chain;
  problem.batch = c.batch;
  problem.classes = c.channels;
  for (int i = 0; i < setup.chain.count; ++i) {
    problem.logits[i] = setup.logits[i]->const_view();
    if (i > 0) problem.attention[i] = setup.attention[i]->const_view();
  }
  problem.output = output.view;
  hmsa::cuda::launch_fuse_scales_forward(problem, nullptr);
  return output;
}

template <typename S>
void expect_forward(const Case& c, Layout layout) {
  const std::string what = text_of(c) + ", " + name_of(layout);
  const Setup<S> setup(c, layout);
  hmsa::host_run::seed() = 0;
  const Stored<S> output = forward(c, setup, layout);
  expect_close<S>(output.load(), reference::fuse_scales(setup.problem), what);
  EXPECT(output.gaps_untouched(), what);
  for (uint64_t seed = 1; seed < kSeeds; ++seed) {
    hmsa::host_run::seed() = seed;
    EXPECT(output.same_bits(forward(c, setup, layout)), what, ", seed ", seed);
  }
}

void forward_matches_plain_loops() {
  for (const Case& c : cases()) expect_forward<float>(c, Layout::kContiguous);
}

void forward_matches_in_every_dtype_and_layout() {
  const std::vector<Case> all = cases();
  for (const size_t i : {size_t{0}, size_t{2}, size_t{4}, size_t{10}}) {
    for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kGaps}) {
      expect_forward<float>(all[i], layout);
      expect_forward<double>(all[i], layout);
      expect_forward<Half>(all[i], layout);
      expect_forward<BFloat16>(all[i], layout);
    }
  }
}

void forward_matches_on_random_shapes() {
  for (const Case& c : random_cases(30))
    expect_forward<double>(c, c.batch == 1 ? Layout::kGaps : Layout::kChannelsLast);
}

// ---- backward -------------------------------------------------------------------------------------------------------

template <typename S>
struct Gradients {
  std::vector<std::unique_ptr<Stored<S>>> logits, attention;
};

// Bit i of `wanted_logits` and `wanted_attention`: whether the gradient of scale i is asked for.
template <typename S>
Gradients<S> backward(const Case& c, const Setup<S>& setup, const Stored<S>& grad, Layout layout,
                      unsigned wanted_logits, unsigned wanted_attention) {
  Gradients<S> gradients;
  hmsa::FuseScalesBackward<S> problem{};
  problem.chain = setup.chain;
  problem.batch = c.batch;
  problem.classes = c.channels;
  problem.grad_output = grad.const_view();
  for (int i = 0; i < setup.chain.count; ++i) {
    const Stored<S>& logits = *setup.logits[i];
    const Stored<S>& attention = *setup.attention[i];
    gradients.logits.push_back(std::make_unique<Stored<S>>(c.batch, logits.channels, logits.size, layout));
    gradients.attention.push_back(std::make_unique<Stored<S>>(c.batch, attention.channels, attention.size, layout));
    problem.logits[i] = logits.const_view();
    if (wanted_logits >> i & 1) problem.grad_logits[i] = gradients.logits[i]->view;
    if (i == 0) continue;
    problem.attention[i] = attention.const_view();
    if (wanted_attention >> i & 1) problem.grad_attention[i] = gradients.attention[i]->view;
  }
  const auto numbers = static_cast<size_t>(hmsa::cuda::fuse_scales_backward_workspace(problem));
  const hmsa::host_run::PoisonedMemory workspace(numbers * sizeof(hmsa::arithmetic_t<S>));
  hmsa::cuda::launch_fuse_scales_backward(problem, workspace.data(), nullptr);
  return gradients;
}

template <typename S>
void expect_backward(const Case& c, Layout layout) {
  const std::string what = text_of(c) + ", " + name_of(layout);
  const Setup<S> setup(c, layout);
  Map g = random_map(c.batch, c.channels, c.size, -1, 1, 99);
  Stored<S> grad(c.batch, c.channels, c.size, layout);
  grad.store(g);
  const reference::Gradients wanted = reference::fuse_scales_backward(setup.problem, g);
  hmsa::host_run::seed() = 0;
  const Gradients<S> got = backward(c, setup, grad, layout, ~0u, ~0u);
  for (size_t i = 0; i < c.scales.size(); ++i) {
    const std::string scale = what + ", scale " + std::to_string(i);
    expect_close<S>(got.logits[i]->load(), wanted.logits[i], scale + " logits");
    EXPECT(got.logits[i]->gaps_untouched(), scale);
    if (i == 0) continue;
    expect_close<S>(got.attention[i]->load(), wanted.attention[i], scale + " attention");
    EXPECT(got.attention[i]->gaps_untouched(), scale);
  }
  for (uint64_t seed = 1; seed < kSeeds; ++seed) {
    hmsa::host_run::seed() = seed;
    const Gradients<S> again = backward(c, setup, grad, layout, ~0u, ~0u);
    for (size_t i = 0; i < c.scales.size(); ++i) {
      EXPECT(got.logits[i]->same_bits(*again.logits[i]), what, ", seed ", seed, ", scale ", i);
      EXPECT(got.attention[i]->same_bits(*again.attention[i]), what, ", seed ", seed, ", scale ", i);
    }
  }
}

void backward_matches_plain_loops() {
  for (const Case& c : cases()) expect_backward<float>(c, Layout::kContiguous);
}

void backward_matches_in_every_dtype_and_layout() {
  const std::vector<Case> all = cases();
  for (const size_t i : {size_t{2}, size_t{4}, size_t{10}}) {
    for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kGaps}) {
      expect_backward<float>(all[i], layout);
      expect_backward<double>(all[i], layout);
      expect_backward<Half>(all[i], layout);
      expect_backward<BFloat16>(all[i], layout);
    }
  }
}

void backward_matches_on_random_shapes() {
  for (const Case& c : random_cases(15)) {
    expect_backward<double>(c, c.batch == 1 ? Layout::kGaps : Layout::kChannelsLast);
  }
}

// Each gradient alone: the same bits as with all the others, and nothing written that was not asked for.
void gradients_do_not_depend_on_which_are_wanted() {
  const std::vector<Case> all = cases();
  for (const Case& c : {all[2], all[4], all[6], all[8]}) {
    const Setup<float> setup(c, Layout::kContiguous);
    Map g = random_map(c.batch, c.channels, c.size, -1, 1, 99);
    Stored<float> grad(c.batch, c.channels, c.size, Layout::kContiguous);
    grad.store(g);
    const Gradients<float> every = backward(c, setup, grad, Layout::kContiguous, ~0u, ~0u);
    const Gradients<float> none = backward(c, setup, grad, Layout::kContiguous, 0, 0);
    for (size_t i = 0; i < c.scales.size(); ++i) {
      const Gradients<float> one = backward(c, setup, grad, Layout::kContiguous, 1u << i, 0);
      const Gradients<float> other = backward(c, setup, grad, Layout::kContiguous, 0, 1u << i);
      for (size_t j = 0; j < c.scales.size(); ++j) {
        EXPECT(one.logits[j]->same_bits(*(i == j ? every : none).logits[j]), text_of(c), ", ", i, ", ", j);
        EXPECT(one.attention[j]->same_bits(*none.attention[j]), text_of(c), ", ", i, ", ", j);
        EXPECT(other.logits[j]->same_bits(*none.logits[j]), text_of(c), ", ", i, ", ", j);
        EXPECT(other.attention[j]->same_bits(*(i == j ? every : none).attention[j]), text_of(c), ", ", i, ", ", j);
      }
    }
  }
}

// ---- the reference itself ---------------------------------------------------------------------------------------------

// Values of the published system for logits and attention given by formulas (reference code run in float64).
void reference_gives_the_published_values() {
  const auto fused = [](Size size, std::vector<double> scales) {
    Problem p;
    p.size = size;
    p.scales = std::move(scales);
    for (size_t i = 0; i < p.scales.size(); ++i) {
      const Size grid = p.grid(i);
      const Size head{(grid.height + 3) / 4, (grid.width + 3) / 4};
      Map logits(1, 3, head);
      Map attention(1, 1, head);
      reference::for_all(logits, [&](int, int c, int y, int x) {
        logits.at(0, c, y, x) = std::sin(0.5 * (c + 1) * y + 0.3 * x + 0.1 * grid.height);
        attention.at(0, 0, y, x) = 1.0 / (1.0 + std::exp(-std::cos(0.4 * y - 0.2 * x + 0.05 * grid.width)));
      });
      p.logits.push_back(logits);
      p.attention.push_back(attention);
    }
    return reference::fuse_scales(p);
  };
  const auto expect = [](const Map& map, double sum, double first, double middle, double last) {
    double total = 0;
    for (const double value : map.values) total += value;
    EXPECT(std::fabs(total - sum) < 2e-9, total, " instead of ", sum);
    EXPECT(std::fabs(map.at(0, 0, 0, 0) - first) < 1e-10, map.at(0, 0, 0, 0));
    EXPECT(std::fabs(map.at(0, 1, 7, 11) - middle) < 1e-10, map.at(0, 1, 7, 11));
    const double corner = map.at(0, 2, map.size.height - 1, map.size.width - 1);
    EXPECT(std::fabs(corner - last) < 1e-10, corner);
  };
  expect(fused({16, 24}, {1.0, 0.5}), 610.4238242184, 0.8033286416, 0.4673758899, 0.4612258023);
  expect(fused({16, 24}, {2.0, 1.0, 0.5}), 636.4651906280, 0.6710664488, 0.6442896329, 0.1922735468);
  expect(fused({16, 24}, {2.0, 1.0, 0.5, 0.25}), 607.0640803836, 0.4676638134, 0.5441171719, 0.5222267577);
  expect(fused({16, 24}, {2.0, 1.5, 1.0, 0.5}), 622.8756501399, 0.7109196924, 0.5742823929, 0.2288301278);
  expect(fused({16, 24}, {1.0}), -108.8872761344, 0.9995736030, -0.4467579632, 0.9679196720);
  expect(fused({17, 23}, {2.0, 1.0, 0.5}), 654.0707550085, 0.6505005592, 0.5822026130, 0.1738396432);
  expect(fused({17, 23}, {2.0, 1.0, 0.5, 0.25}), 619.5528231732, 0.4612413638, 0.5346119277, 0.5175979358);
}

// The loss sum(g * P) is linear in the logits and bilinear in each attention, so a central difference is exact but for
// rounding.
void reference_gradients_are_differences() {
  for (const Case& c : cases()) {
    Setup<double> setup(c, Layout::kContiguous);
    Problem& p = setup.problem;
    const Map g = random_map(c.batch, c.channels, c.size, -1, 1, 99);
    const reference::Gradients gradients = reference::fuse_scales_backward(p, g);
    const auto loss = [&] {
      const Map fused = reference::fuse_scales(p);
      double sum = 0;
      for (size_t i = 0; i < fused.values.size(); ++i) sum += g.values[i] * fused.values[i];
      return sum;
    };
    const auto expect_difference = [&](Map& input, const Map& gradient) {
      const size_t k = input.values.size() / 2;
      const double kept = input.values[k];
      input.values[k] = kept + 0.5;
      const double above = loss();
      input.values[k] = kept - 0.5;
      const double difference = above - loss();
      input.values[k] = kept;
      EXPECT(std::fabs(difference - gradient.values[k]) < 1e-9, text_of(c), ": ", difference, ", ", gradient.values[k]);
    };
    for (size_t i = 0; i < c.scales.size(); ++i) {
      expect_difference(p.logits[i], gradients.logits[i]);
      if (i > 0) expect_difference(p.attention[i], gradients.attention[i]);
    }
  }
}

}  // namespace

int main() {
  RUN_TEST(reference_gives_the_published_values);
  RUN_TEST(reference_gradients_are_differences);
  RUN_TEST(forward_matches_plain_loops);
  RUN_TEST(forward_matches_in_every_dtype_and_layout);
  RUN_TEST(forward_matches_on_random_shapes);
  RUN_TEST(backward_matches_plain_loops);
  RUN_TEST(backward_matches_in_every_dtype_and_layout);
  RUN_TEST(backward_matches_on_random_shapes);
  RUN_TEST(gradients_do_not_depend_on_which_are_wanted);
  return testing::finish();
}
