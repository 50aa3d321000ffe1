// The CUDA kernels of the cross-entropy, backward, run on the CPU by host_run, against plain loops in double.
#include "host_run/cuda_host.h"
// GCC unrolls the loops over scales beyond kMaxScales, although chain.count bounds them, and warns of its own doing.
// AddressSanitizer and UndefinedBehaviorSanitizer watch the subscripts for real.
#pragma GCC diagnostic ignored "-Warray-bounds"
// The kernels see CUDA as a .cu file does.
#define HMSA_NO_INSTANTIATIONS
#include "ops/cuda/fuse_scales_channel_sums.cu"
#include "ops/cuda/fuse_scales_cross_entropy_backward.cu"
#include "ops/cuda/gradient_parts.cu"
#include "tests/label_cases.h"

#include <algorithm>

namespace {

using namespace testing;
using hmsa::Reduction;
using hmsa::cuda::BandPlan;
using hmsa::cuda::kBandBytes;

template <typename S>
struct Gradients {
  std::vector<std::unique_ptr<Stored<S>>> logits, attention;

  bool same_bits(const Gradients& other) const {
    bool same = true;
    for (size_t i = 0; i < logits.size(); ++i) {
      same = same && logits[i]->same_bits(*other.logits[i]) && attention[i]->same_bits(*other.attention[i]);
    }
    return same;
  }
};

// A problem, what it points to, and what is expected of it.
template <typename S>
struct Loss {
  using T = hmsa::arithmetic_t<S>;
  Case c;
  Layout layout;
  Setup<S> setup;
  Target target;
  Map grad_loss;  // of each pixel; for the mean before it is divided
  std::vector<T> weight, log_sum_exp, stored_grad;
  T total_weight = 0;
  std::unique_ptr<StoredLabels> labels;
  hmsa::FuseScalesCrossEntropyBackward<S> problem{};

  Loss(const Case& c, Layout layout, const Target& given, Reduction reduction, LabelType type = LabelType::kUint8)
      : c(c), layout(layout), setup(c, layout), target(given), grad_loss(c.batch, 1, c.size) {
    weight = stored_weights<T>(target);
    target.label_smoothing = static_cast<T>(target.label_smoothing);
    labels = std::make_unique<StoredLabels>(target.labels, type, layout == Layout::kGaps);
    set_inputs(problem, c, setup);
    problem.target = {labels->view, weight.data(), target.ignore_index, static_cast<T>(target.label_smoothing)};
    const reference::CrossEntropy loss = reference::cross_entropy(reference::fuse_scales(setup.problem), target);
    for (const double lse : loss.log_sum_exp.values) log_sum_exp.push_back(static_cast<T>(lse));
    problem.log_sum_exp = log_sum_exp.data();
    total_weight = static_cast<T>(loss.total_weight);
    std::mt19937 random(11);
    // Pixels by rows from the bottom for the map, to have strides of their own; one number otherwise.
    const bool map = reduction == Reduction::kNone;
    for (double& value : grad_loss.values) {
      if (map || stored_grad.empty()) stored_grad.push_back(static_cast<T>(0.5 + random() / 4294967296.0));
      value = stored_grad.back();
    }
    problem.grad_loss = {stored_grad.data(), 0, 0, 0};
    if (map) problem.grad_loss = {stored_grad.data(), int64_t{c.size.height} * c.size.width, c.size.width, 1};
    if (reduction == Reduction::kMean) {
      problem.total_weight = &total_weight;
      for (double& value : grad_loss.values) value /= total_weight;
    }
  }

  reference::Gradients expected() const {
    const Map fused = reference::fuse_scales(setup.problem);
    return reference::fuse_scales_backward(setup.problem, reference::cross_entropy_gradient(fused, target, grad_loss));
  }

  // Bit i of what is wanted: the gradient of scale i. In bands of so many bytes.
  Gradients<S> run(int64_t bytes, unsigned wanted_logits = ~0u, unsigned wanted_attention = ~0u) const {
    return run_with(wanted_logits, wanted_attention, [&](const auto& asked) {
      const int64_t numbers = hmsa::cuda::band_backward_workspace<S>(asked, asked, bytes);
      const hmsa::host_run::PoisonedMemory workspace(static_cast<size_t>(numbers) * sizeof(T));
      hmsa::cuda::forward::launch_in_bands(asked, bytes, workspace.data(), nullptr);
    });
  }
  // In one pass, without any workspace.
  Gradients<S> run_octaves(unsigned wanted_logits = ~0u, unsigned wanted_attention = ~0u) const {
    return run_with(wanted_logits, wanted_attention, [&](const auto& asked) {
      const auto none = [&](int64_t numbers) -> void* {
        EXPECT(false, text_of(c), ": asks for ", numbers, " numbers");
        return nullptr;
      };
      hmsa::cuda::launch_fuse_scales_cross_entropy_backward(asked, none, nullptr);
    });
  }

  template <typename Launch>
  Gradients<S> run_with(unsigned wanted_logits, unsigned wanted_attention, const Launch& launch) const {
    Gradients<S> gradients;
    hmsa::FuseScalesCrossEntropyBackward<S> asked = problem;
    for (int i = 0; i < setup.chain.count; ++i) {
      const auto like = [&](const Stored<S>& map) {
        return std::make_unique<Stored<S>>(c.batch, map.channels, map.size, layout);
      };
      gradients.logits.push_back(like(*setup.logits[i]));
      gradients.attention.push_back(like(*setup.attention[i]));
      if (wanted_logits >> i & 1) asked.grad_logits[i] = gradients.logits[i]->view;
      if (i > 0 && (wanted_attention >> i & 1)) asked.grad_attention[i] = gradients.attention[i]->view;
    }
    launch(asked);
    return gradients;
  }
};

// Relative to the largest gradient, or that of the loss, since a lone class has none of its own; and for half precision
// the smallest number that it has.
template <typename S>
void expect_near(const Map& got, const Map& wanted, double grad_loss, const std::string& what) {
  double largest = grad_loss;
  for (const double value : wanted.values) largest = std::fmax(largest, std::fabs(value));
  const double calculated = sizeof(hmsa::arithmetic_t<S>) == sizeof(float) ? 1e-5 : 1e-12;
  for (size_t i = 0; i < wanted.values.size(); ++i) {
    const double tolerance = calculated * largest + Precision<S>::stored * std::fabs(wanted.values[i]) +
                             (std::is_same_v<S, Half> ? 0x1p-25 : 0.0);
    EXPECT(near(got.values[i], wanted.values[i], tolerance), what, ", element ", i, ": ", got.values[i], " instead of ",
           wanted.values[i]);
  }
}

template <typename S>
void expect_gradients(const Case& c, const Gradients<S>& got, const reference::Gradients& wanted, double grad_loss,
                      const std::string& what) {
  for (size_t i = 0; i < c.scales.size(); ++i) {
    const std::string scale = what + ", scale " + std::to_string(i);
    expect_near<S>(got.logits[i]->load(), wanted.logits[i], grad_loss, scale + " logits");
    EXPECT(got.logits[i]->gaps_untouched(), scale);
    if (i == 0) continue;
    expect_near<S>(got.attention[i]->load(), wanted.attention[i], grad_loss, scale + " attention");
    EXPECT(got.attention[i]->gaps_untouched(), scale);
  }
}

template <typename S>
void expect_backward(const Case& c, Layout layout, const Target& target, Reduction reduction, LabelType type) {
  const std::string what = text_of(c) + ", " + name_of(layout) + ", smoothing " +
                           std::to_string(target.label_smoothing) + ", reduction " +
                           std::to_string(static_cast<int>(reduction));
  const Loss<S> loss(c, layout, target, reduction, type);
  const reference::Gradients wanted = loss.expected();
  const double grad_loss = *std::max_element(loss.grad_loss.values.begin(), loss.grad_loss.values.end());
  hmsa::host_run::seed() = 0;
  const Gradients<S> got = loss.run(kBandBytes);
  expect_gradients(c, got, wanted, grad_loss, what);
  // Another order of threads and blocks, and about two bands.
  hmsa::host_run::seed() = 1;
  const int64_t row = static_cast<int64_t>(sizeof(typename Loss<S>::T)) * c.channels * c.size.width;
  const int64_t bytes = row * (c.size.height * 3 / 4 + 1);
  EXPECT(got.same_bits(loss.run(bytes)), what, ", bands of ", bytes, " bytes");
}

template <typename S>
void expect_backward(const Case& c, Layout layout, bool weights, double smoothing, Reduction reduction,
                     LabelType type = LabelType::kUint8) {
  expect_backward<S>(c, layout, random_target(c, weights, smoothing), reduction, type);
}

constexpr Reduction kReductions[] = {Reduction::kNone, Reduction::kSum, Reduction::kMean};

void gradients_match_plain_loops() {
  int k = 0;
  for (const Case& c : cases()) {
    expect_backward<float>(c, Layout::kContiguous, k % 2 == 1, k % 3 == 2 ? 0.1 : 0.0, kReductions[k % 3]);
    ++k;
  }
}

template <typename S>
void expect_everywhere(const Case& c) {
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kGaps}) {
    expect_backward<S>(c, layout, true, 0.2, Reduction::kMean, LabelType::kInt64);
  }
  expect_backward<S>(c, Layout::kChannelsLast, false, 0.0, Reduction::kSum, LabelType::kInt16);
  expect_backward<S>(c, Layout::kContiguous, true, 0.0, Reduction::kNone, LabelType::kInt32);
}

// bfloat16 differs from float16 in the conversion alone, which other tests have, and takes minutes more to compile.
void gradients_match_in_every_layout() {
  for (const Case& c : {Case{{1.0, 0.5}, {18, 20}, {{5, 5}, {3, 3}}, 2, 6, false, false},
                        Case{{2.0, 1.0, 0.5}, {11, 13}, {{6, 7}, {3, 4}, {2, 2}}, 1, 3, true, true}}) {
    expect_everywhere<float>(c);
    expect_everywhere<double>(c);
    expect_everywhere<Half>(c);
  }
}

void gradients_match_on_random_shapes() {
  int k = 0;
  for (const Case& c : random_cases(9)) {
    expect_backward<double>(c, k % 2 == 0 ? Layout::kGaps : Layout::kChannelsLast, true, k % 2 == 0 ? 0.3 : 0.0,
                            kReductions[k % 3], LabelType::kInt64);
    ++k;
  }
}

void gradients_match_with_many_classes() {
  for (const int classes : {1, 37, 150}) {
    const Case c{{1.0}, {16, 18}, {{4, 5}}, 2, classes, false, false};
    expect_backward<float>(c, Layout::kContiguous, true, 0.1, Reduction::kMean, LabelType::kInt32);
    expect_backward<Half>(c, Layout::kChannelsLast, false, 0.0, Reduction::kMean, LabelType::kInt16);
  }
}

template <typename S>
void expect_octaves(const Case& c, Layout layout, bool weights, double smoothing, Reduction reduction,
                    LabelType type = LabelType::kUint8) {
  const std::string what = text_of(c) + ", " + name_of(layout) + ", one pass, smoothing " + std::to_string(smoothing) +
                           ", reduction " + std::to_string(static_cast<int>(reduction));
  const Loss<S> loss(c, layout, random_target(c, weights, smoothing), reduction, type);
  const double grad_loss = *std::max_element(loss.grad_loss.values.begin(), loss.grad_loss.values.end());
  hmsa::host_run::seed() = 0;
  const Gradients<S> got = loss.run_octaves();
  expect_gradients(c, got, loss.expected(), grad_loss, what);
  hmsa::host_run::seed() = 1;
  EXPECT(got.same_bits(loss.run_octaves()), what);
}

void octaves_match() {
  int k = 0;
  for (const Case& c : quarter_cases()) {
    if (c.channels > 100) continue;  // takes minutes here
    expect_octaves<float>(c, Layout::kContiguous, k % 2 == 0, 0.0, kReductions[k % 3]);
    expect_octaves<float>(c, Layout::kGaps, k % 2 == 1, 0.2, kReductions[(k + 1) % 3], LabelType::kInt64);
    expect_octaves<Half>(c, Layout::kChannelsLast, false, k % 2 == 0 ? 0.1 : 0.0, Reduction::kMean, LabelType::kInt32);
    ++k;
  }
}

void octaves_ignore_pixels_and_tell_of_wrong_labels() {
  const Case c{{2.0, 1.0, 0.5}, {16, 24}, {{8, 12}, {4, 6}, {2, 3}}, 1, 5, false, false};
  Target target = random_target(c, true, 0.1);
  target.labels = random_labels(c.batch, c.size, c.channels, target.ignore_index, 1.0, 3);
  const Gradients<float> nothing = Loss<float>(c, Layout::kContiguous, target, Reduction::kMean).run_octaves();
  for (size_t i = 0; i < c.scales.size(); ++i) {
    for (const float value : nothing.logits[i]->memory) EXPECT(value == 0.0f, "logits ", i, ": ", value);
    if (i == 0) continue;
    for (const float value : nothing.attention[i]->memory) EXPECT(value == 0.0f, "attention ", i, ": ", value);
  }
  for (const double smoothing : {0.0, 0.1}) {
    target = random_target(c, false, smoothing);
    target.labels.at(0, 3, 20) = 5;
    const Loss<float> loss(c, Layout::kContiguous, target, Reduction::kSum);
    const Gradients<float> got = loss.run_octaves();
    const reference::Gradients wanted = loss.expected();
    for (size_t i = 0; i < c.scales.size(); ++i) {
      const Map gradient = got.logits[i]->load();
      bool any = false;
      reference::for_all(gradient, [&](int b, int k, int y, int x) {
        any = any || std::isnan(gradient.at(b, k, y, x));
        EXPECT(std::isnan(gradient.at(b, k, y, x)) == std::isnan(wanted.logits[i].at(b, k, y, x)), i, ": ", k, ", ", y,
               ", ", x, ": ", gradient.at(b, k, y, x));
      });
      EXPECT(any, "scale ", i);
    }
  }
}

void octaves_do_not_depend_on_which_gradients_are_wanted() {
  const Case c{{2.0, 1.0, 0.5}, {16, 24}, {{8, 12}, {4, 6}, {2, 3}}, 1, 9, false, false};
  const Loss<float> loss(c, Layout::kContiguous, random_target(c, true, 0.0), Reduction::kMean);
  const Gradients<float> every = loss.run_octaves();
  const Gradients<float> none = loss.run_octaves(0, 0);
  for (size_t i = 0; i < c.scales.size(); ++i) {
    const Gradients<float> one = loss.run_octaves(1u << i, 0);
    const Gradients<float> other = loss.run_octaves(0, 1u << i);
    for (size_t j = 0; j < c.scales.size(); ++j) {
      EXPECT(one.logits[j]->same_bits(*(i == j ? every : none).logits[j]), i, ", ", j);
      EXPECT(other.attention[j]->same_bits(*(i == j ? every : none).attention[j]), i, ", ", j);
    }
  }
}

// Rows, columns, images and classes: what a band is of depends on what fits.
void bands_change_no_bit() {
  const std::vector<Case> all = {
      {{1.0, 0.5}, {32, 36}, {{4, 5}, {2, 3}}, 2, 5, false, false},
      {{2.0, 1.0, 0.5}, {40, 44}, {{10, 11}, {5, 6}, {3, 3}}, 1, 3, false, false},
      {{1.5, 1.0, 0.5}, {40, 44}, {{8, 9}, {5, 6}, {3, 3}}, 1, 3, true, false},
      {{1.0}, {40, 64}, {{10, 16}}, 3, 9, false, true},
      {{0.5}, {19, 22}, {{3, 3}}, 1, 4, false, false},
  };
  bool rows = false, columns = false, images = false, classes = false, class_by_class = false;
  for (const Case& c : all) {
    const Loss<float> loss(c, Layout::kContiguous, random_target(c, true, 0.1), Reduction::kMean);
    const Gradients<float> whole = loss.run(kBandBytes);
    for (const int64_t bytes : {30'000, 6'000}) {
      hmsa::FuseScalesCrossEntropyBackward<float> asked = loss.problem;
      for (int i = 0; i < asked.chain.count; ++i) {
        asked.grad_logits[i] = whole.logits[i]->view;
        if (i > 0) asked.grad_attention[i] = whole.attention[i]->view;
      }
      const BandPlan plan = hmsa::cuda::plan_bands<float>(asked, asked, bytes);
      rows = rows || plan.parts.height > 1;
      columns = columns || plan.parts.width > 1;
      images = images || (c.batch > 1 && plan.images < c.batch);
      classes = classes || (!c.class_wise && plan.classes < c.channels);
      class_by_class = class_by_class || (c.class_wise && plan.classes < c.channels);
      const int64_t finest = hmsa::cuda::most_pixels(asked.chain, hmsa::cuda::finest_division(asked.chain));
      EXPECT(plan.numbers() * 4 <= bytes || finest * (c.channels + plan.maps) * 4 > bytes, text_of(c), ": ",
             plan.numbers(), " numbers for ", bytes, " bytes");
      EXPECT(whole.same_bits(loss.run(bytes)), text_of(c), ", bands of ", bytes, " bytes");
    }
  }
  EXPECT(rows && columns && images && classes && class_by_class, rows, columns, images, classes, class_by_class);
}

// Each gradient alone: the same bits as with all the others, and nothing written that was not asked for.
void gradients_do_not_depend_on_which_are_wanted() {
  const Case c{{2.0, 1.0, 0.5}, {17, 24}, {{9, 12}, {5, 6}, {3, 3}}, 1, 9, false, false};
  const Loss<float> loss(c, Layout::kContiguous, random_target(c, true, 0.0), Reduction::kMean);
  const Gradients<float> every = loss.run(kBandBytes);
  const Gradients<float> none = loss.run(kBandBytes, 0, 0);
  for (size_t i = 0; i < c.scales.size(); ++i) {
    const Gradients<float> one = loss.run(20'000, 1u << i, 0);
    const Gradients<float> other = loss.run(20'000, 0, 1u << i);
    for (size_t j = 0; j < c.scales.size(); ++j) {
      EXPECT(one.logits[j]->same_bits(*(i == j ? every : none).logits[j]), i, ", ", j);
      EXPECT(one.attention[j]->same_bits(*none.attention[j]), i, ", ", j);
      EXPECT(other.logits[j]->same_bits(*none.logits[j]), i, ", ", j);
      EXPECT(other.attention[j]->same_bits(*(i == j ? every : none).attention[j]), i, ", ", j);
    }
  }
}

// Also of the mean over no pixels.
void ignored_pixels_have_no_gradient() {
  const Case c{{1.0, 0.5}, {6, 7}, {{3, 4}, {2, 2}}, 1, 3, false, false};
  for (const Reduction reduction : kReductions) {
    Target target = random_target(c, true, 0.1);
    target.labels = random_labels(c.batch, c.size, c.channels, target.ignore_index, 1.0, 3);
    const Loss<float> loss(c, Layout::kContiguous, target, reduction);
    const Gradients<float> got = loss.run(kBandBytes);
    for (size_t i = 0; i < c.scales.size(); ++i) {
      for (const float value : got.logits[i]->memory) EXPECT(value == 0.0f, "logits ", i, ": ", value);
      if (i == 0) continue;
      for (const float value : got.attention[i]->memory) EXPECT(value == 0.0f, "attention ", i, ": ", value);
    }
  }
}

// Heads as large as the output: the gradient of a pixel is all that a label reaches.
void wrong_labels_make_their_gradient_nan() {
  const Case c{{1.0}, {4, 8}, {{4, 8}}, 1, 5, false, false};
  for (const int64_t wrong : {5, 254}) {
    Target target = random_target(c, false, 0.0);
    target.labels.at(0, 2, 3) = wrong;
    const Loss<float> loss(c, Layout::kContiguous, target, Reduction::kSum);
    const Map got = loss.run(kBandBytes).logits[0]->load();
    const Map wanted = reference::cross_entropy_gradient(loss.setup.problem.logits[0], loss.target, loss.grad_loss);
    reference::for_all(got, [&](int b, int k, int y, int x) {
      EXPECT(std::isnan(got.at(b, k, y, x)) == (y == 2 && x == 3), k, ", ", y, ", ", x, ": ", got.at(b, k, y, x));
      EXPECT(near(got.at(b, k, y, x), wanted.at(b, k, y, x), 1e-5), k, ", ", y, ", ", x);
    });
  }
}

int64_t workspace_of(const Case& c, bool attention) {
  hmsa::FuseScalesCrossEntropyBackward<float> problem{};
  std::vector<Extent> heads;
  for (const Size head : c.heads) heads.push_back({head.height, head.width});
  problem.chain = hmsa::make_chain(static_cast<int>(c.scales.size()), c.scales.data(), heads.data(),
                                   {c.size.height, c.size.width}, c.class_wise, c.align_corners);
  problem.batch = c.batch;
  problem.classes = c.channels;
  float any = 0;
  for (int i = 0; i < problem.chain.count; ++i) {
    problem.grad_logits[i].data = &any;
    if (attention && i > 0) problem.grad_attention[i].data = &any;
  }
  return hmsa::cuda::band_backward_workspace<float>(problem, problem, kBandBytes) * static_cast<int64_t>(sizeof(float));
}

void the_workspace_is_bounded() {
  const std::vector<Case> all = {
      {{1.0, 0.5}, {1024, 2048}, {{256, 512}, {128, 256}}, 1, 19, false, false},
      {{2.0, 1.0, 0.5}, {1024, 2048}, {{512, 1024}, {256, 512}, {128, 256}}, 2, 19, false, false},
      {{2.0, 1.0, 0.5}, {1024, 2048}, {{512, 1024}, {256, 512}, {128, 256}}, 1, 65, true, false},
      {{1.0, 0.25}, {1024, 2048}, {{128, 256}, {32, 64}}, 1, 150, false, false},
      {{1.0}, {512, 512}, {{128, 128}}, 8, 150, false, false},
      {{1.0, 0.5}, {1024, 1024}, {{32, 32}, {16, 16}}, 1, 65, false, false},
      {{1.0}, {4096, 8192}, {{1024, 2048}}, 1, 19, false, false},
      {{1.0, 0.5}, {64, 64}, {{16, 16}, {8, 8}}, 100, 19, false, false},
  };
  for (const Case& c : all) {
    for (const bool attention : {false, true}) {
      const int64_t bytes = workspace_of(c, attention);
      EXPECT(bytes > 0 && bytes <= kBandBytes, text_of(c), ": ", bytes);
    }
  }
}

}  // namespace

int main() {
  RUN_TEST(gradients_match_plain_loops);
  RUN_TEST(gradients_match_in_every_layout);
  RUN_TEST(gradients_match_on_random_shapes);
  RUN_TEST(gradients_match_with_many_classes);
  RUN_TEST(octaves_match);
  RUN_TEST(octaves_ignore_pixels_and_tell_of_wrong_labels);
  RUN_TEST(octaves_do_not_depend_on_which_gradients_are_wanted);
  RUN_TEST(bands_change_no_bit);
  RUN_TEST(gradients_do_not_depend_on_which_are_wanted);
  RUN_TEST(ignored_pixels_have_no_gradient);
  RUN_TEST(wrong_labels_make_their_gradient_nan);
  RUN_TEST(the_workspace_is_bounded);
  return testing::finish();
}
