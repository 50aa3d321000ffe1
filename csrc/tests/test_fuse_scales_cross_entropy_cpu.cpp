// The CPU kernels of cross-entropy and argmax against plain loops in double, whatever the number of threads.
//
// Plain, this tests the row primitives of every instruction set that the processor has. Sanitized, the sources are
// compiled right here with their primitives in plain C++, so that the sanitizers see every access.
#include <cmath>

#include "ops/cpu/fuse_scales_argmax.h"
#include "ops/cpu/fuse_scales_cross_entropy.h"
#include "tests/cpu_cases.h"
#include "tests/fuse_scales_cross_entropy_reference.h"
#include "tests/instruction_sets.h"

#if defined(__SANITIZE_ADDRESS__)
#include "ops/cpu/fuse_scales_argmax.cpp"
#include "ops/cpu/fuse_scales_cross_entropy_backward.cpp"
#include "ops/cpu/fuse_scales_cross_entropy_forward.cpp"
#endif

namespace {

using namespace testing;
using hmsa::Reduction;

constexpr int64_t kIgnored = 7;

template <typename S, typename Inputs>
void set_inputs(Inputs& inputs, const Case& c, const Setup<S>& setup) {
  inputs.chain = setup.chain;
  inputs.batch = c.batch;
  inputs.classes = c.channels;
  for (int i = 0; i < setup.chain.count; ++i) {
    inputs.logits[i] = setup.logits[i]->const_view();
    if (i > 0) inputs.attention[i] = setup.attention[i]->const_view();
  }
}

// Labels, a fifth of them ignored, as L with a gap behind every pixel; and what else the loss is told.
template <typename L, typename T>
struct TargetSetup {
  reference::Target target;
  std::vector<L> memory;
  std::vector<T> weight;
  hmsa::CrossEntropyTarget<T> view{};

  TargetSetup(const Case& c, bool weighted, double smoothing) {
    std::mt19937 random(5);
    target.labels = reference::Labels(c.batch, c.size);
    target.ignore_index = kIgnored;
    target.label_smoothing = static_cast<double>(static_cast<T>(smoothing));
    for (int64_t& label : target.labels.values) {
      label = random() % 5 == 0 ? kIgnored : static_cast<int64_t>(random() % static_cast<unsigned>(c.channels));
      memory.push_back(static_cast<L>(label));
      memory.push_back(static_cast<L>(99));
    }
    for (int k = 0; k < c.channels; ++k) {
      weight.push_back(weighted ? static_cast<T>(0.25 + 0.5 * k) : T(1));
      target.weight.push_back(static_cast<double>(weight.back()));
    }
    const int64_t width = c.size.width;
    view.labels = {memory.data(), type(), 2 * width * c.size.height, 2 * width, 2};
    view.weight = weighted ? weight.data() : nullptr;
    view.ignore_index = kIgnored;
    view.label_smoothing = static_cast<T>(smoothing);
  }

  static hmsa::LabelType type() {
    return sizeof(L) == 1   ? hmsa::LabelType::kUint8
           : sizeof(L) == 2 ? hmsa::LabelType::kInt16
           : sizeof(L) == 4 ? hmsa::LabelType::kInt32
                            : hmsa::LabelType::kInt64;
  }
};

bool near(double got, double wanted, double tolerance) {
  return (std::isnan(got) && std::isnan(wanted)) || std::fabs(got - wanted) <= tolerance;
}

// Forward and backward, every reduction, at several divisions of the work.
template <typename S, typename L>
void expect_cross_entropy(const Case& c, Layout layout, bool weighted, double smoothing) {
  using T = hmsa::arithmetic_t<S>;
  const Setup<S> setup(c, layout);
  TargetSetup<L, T> target(c, weighted, smoothing);
  const Map fused = reference::fuse_scales(setup.problem);
  const reference::CrossEntropy wanted = reference::cross_entropy(fused, target.target);
  const double tolerance = Precision<T>::calculated * 8;
  const size_t pixels = wanted.loss.values.size();

  for (const Reduction reduction : {Reduction::kNone, Reduction::kSum, Reduction::kMean}) {
    const std::string what = text_of(c) + ", " + name_of(layout) + ", reduction " +
                             std::to_string(static_cast<int>(reduction)) + (weighted ? ", weighted" : "") +
                             ", smoothing " + std::to_string(smoothing);
    const bool is_map = reduction == Reduction::kNone;
    std::vector<T> loss(is_map ? pixels : 1), log_sum_exp(pixels), first_loss;
    T total_weight = -1;
    hmsa::FuseScalesCrossEntropyForward<S> forward{};
    set_inputs(forward, c, setup);
    forward.target = target.view;
    forward.reduction = reduction;
    forward.loss = loss.data();
    forward.log_sum_exp = log_sum_exp.data();
    forward.total_weight = &total_weight;
    for (const int threads : {1, 2, 7}) {
      const hmsa::cpu::WrongLabels wrong = hmsa::cpu::fuse_scales_cross_entropy_forward(forward, parts(threads));
      EXPECT_EQUAL(wrong.pixels, int64_t{0}, what);
      if (threads == 1) first_loss = loss;
      EXPECT(std::memcmp(loss.data(), first_loss.data(), loss.size() * sizeof(T)) == 0, what, ", threads ", threads);
    }
    EXPECT(near(total_weight, wanted.total_weight, 1e-6 * wanted.total_weight), what);
    for (size_t k = 0; k < pixels; ++k) {
      EXPECT(near(log_sum_exp[k], wanted.log_sum_exp.values[k], tolerance * 4), what, ", log-sum-exp ", k);
      if (is_map) {
        EXPECT(near(loss[k], wanted.loss.values[k], tolerance * 4), what, ", loss ", k, ": ", loss[k], " instead of ",
               wanted.loss.values[k]);
      }
    }
    if (!is_map) {
      const double value = reduction == Reduction::kSum ? wanted.sum : wanted.sum / wanted.total_weight;
      EXPECT(near(loss[0], value, 2e-6 * std::fabs(value)), what, ", loss ", loss[0], " instead of ", value);
    }

    // Backward, from a gradient for each pixel or from one number.
    Map grad = random_map(c.batch, 1, c.size, -1, 1, 77);
    std::vector<T> grad_memory;
    for (double& value : grad.values) {
      if (!is_map) value = 0.7;
      grad_memory.push_back(static_cast<T>(value));
      value = static_cast<double>(grad_memory.back()) / (reduction == Reduction::kMean ? wanted.total_weight : 1.0);
    }
    const Map g = reference::cross_entropy_gradient(fused, target.target, grad);
    const reference::Gradients gradients = reference::fuse_scales_backward(setup.problem, g);
    hmsa::FuseScalesCrossEntropyBackward<S> backward{};
    set_inputs(backward, c, setup);
    backward.target = target.view;
    const int64_t width = c.size.width;
    backward.grad_loss = {grad_memory.data(), is_map ? width * c.size.height : 0, is_map ? width : 0, is_map ? 1 : 0};
    backward.log_sum_exp = log_sum_exp.data();
    backward.total_weight = reduction == Reduction::kMean ? &total_weight : nullptr;
    std::vector<std::unique_ptr<Stored<S>>> first_maps;
    for (const int threads : {1, 2, 7}) {
      std::vector<std::unique_ptr<Stored<S>>> maps;
      for (int i = 0; i < setup.chain.count; ++i) {
        const Stored<S>& z = *setup.logits[i];
        const Stored<S>& a = *setup.attention[i];
        maps.push_back(std::make_unique<Stored<S>>(c.batch, z.channels, z.size, layout));
        backward.grad_logits[i] = maps.back()->view;
        maps.push_back(std::make_unique<Stored<S>>(c.batch, a.channels, a.size, layout));
        if (i > 0) backward.grad_attention[i] = maps.back()->view;
      }
      hmsa::cpu::fuse_scales_cross_entropy_backward(backward, parts(threads));
      for (size_t m = 0; m < maps.size(); ++m) {
        const std::string which = what + (m % 2 == 0 ? ", logits " : ", attention ") + std::to_string(m / 2);
        if (threads > 1) {
          EXPECT(maps[m]->same_bits(*first_maps[m]), which, ", threads ", threads);
        } else if (m != 1) {
          EXPECT(maps[m]->gaps_untouched(), which);
          const Map& all = m % 2 == 0 ? gradients.logits[m / 2] : gradients.attention[m / 2];
          // Rounding adds up over what an element reaches. One class has gradients of zero, made of terms that cancel.
          double scale = 0;
          for (const double value : grad.values) scale = std::fmax(scale, std::fabs(value));
          for (const double value : all.values) scale = std::fmax(scale, std::fabs(value));
          const Map got = maps[m]->load();
          for (size_t k = 0; k < all.values.size(); ++k) {
            const double stored = Precision<S>::stored * std::fabs(all.values[k]);
            EXPECT(near(got.values[k], all.values[k], Precision<T>::calculated * 4 * scale + stored), which,
                   ", element ", k, ": ", got.values[k], " instead of ", all.values[k]);
          }
        }
      }
      if (threads == 1) first_maps = std::move(maps);
    }
  }
}

template <typename S>
void expect_argmax(const Case& c, Layout layout, int views) {
  using T = hmsa::arithmetic_t<S>;
  const std::string what = text_of(c) + ", " + name_of(layout) + ", views " + std::to_string(views);
  const Setup<S> setup(c, layout);
  Map fused = reference::fuse_scales(setup.problem);
  if (views == 2) fused = reference::average_views(fused);
  const reference::Prediction wanted = reference::argmax(fused);
  const size_t pixels = wanted.labels.values.size();
  std::vector<uint8_t> labels(pixels + 1, 99);
  std::vector<T> confidence(pixels + 1, T(-9));
  hmsa::FuseScalesArgmax<S> problem{};
  set_inputs(problem, c, setup);
  problem.batch = c.batch / views;
  problem.views = views;
  problem.labels = labels.data();
  problem.confidence = confidence.data();
  for (const int threads : {1, 3}) {
    hmsa::cpu::fuse_scales_argmax(problem, parts(threads));
    EXPECT(labels[pixels] == 99 && confidence[pixels] == T(-9), what);
    size_t k = 0;
    reference::for_all(wanted.confidence, [&](int b, int, int y, int x) {
      const double gap = fused.at(b, static_cast<int>(wanted.labels.at(b, y, x)), y, x) - fused.at(b, labels[k], y, x);
      EXPECT(labels[k] < c.channels && gap <= 1e-5, what, ", pixel ", k, ": label ", int(labels[k]));
      EXPECT(near(confidence[k], wanted.confidence.at(b, 0, y, x), 8 * Precision<T>::calculated), what, ", pixel ", k,
             ": ", confidence[k], " instead of ", wanted.confidence.at(b, 0, y, x));
      ++k;
    });
  }
}

void cross_entropy_matches_plain_loops() {
  int k = 0;
  for (const Case& c : cases()) {
    ++k;
    expect_cross_entropy<float, uint8_t>(c, Layout::kContiguous, k % 2 == 0, k % 3 == 0 ? 0.1 : 0.0);
  }
  for (const Case& c : large_cases()) expect_cross_entropy<float, int64_t>(c, Layout::kChannelsLast, true, 0.0);
}

void cross_entropy_matches_in_every_dtype_and_layout() {
  const std::vector<Case> all = cases();
  for (const size_t i : {size_t{2}, size_t{4}, size_t{10}}) {
    for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kGaps}) {
      expect_cross_entropy<float, int16_t>(all[i], layout, false, 0.2);
      expect_cross_entropy<double, int32_t>(all[i], layout, true, 0.2);
      expect_cross_entropy<Half, uint8_t>(all[i], layout, true, 0.0);
      expect_cross_entropy<BFloat16, int64_t>(all[i], layout, false, 0.0);
    }
  }
}

void cross_entropy_matches_on_random_shapes() {
  for (const Case& c : random_cases(40)) {
    expect_cross_entropy<double, uint8_t>(c, c.batch == 1 ? Layout::kGaps : Layout::kChannelsLast, c.class_wise,
                                          c.align_corners ? 0.3 : 0.0);
  }
}

// Nothing but ignored pixels: the mean is NaN, the sum zero, and no gradient is other than zero.
void ignored_pixels_have_no_gradient() {
  const Case c = cases()[2];
  const Setup<float> setup(c, Layout::kContiguous);
  TargetSetup<uint8_t, float> target(c, false, 0.1);
  for (uint8_t& label : target.memory) label = kIgnored;
  const size_t pixels = target.target.labels.values.size();
  for (const Reduction reduction : {Reduction::kSum, Reduction::kMean}) {
    std::vector<float> log_sum_exp(pixels);
    float loss = -1, total_weight = -1, grad = 1;
    hmsa::FuseScalesCrossEntropyForward<float> forward{};
    set_inputs(forward, c, setup);
    forward.target = target.view;
    forward.reduction = reduction;
    forward.loss = &loss;
    forward.log_sum_exp = log_sum_exp.data();
    forward.total_weight = &total_weight;
    hmsa::cpu::fuse_scales_cross_entropy_forward(forward, parts(2));
    EXPECT(reduction == Reduction::kSum ? loss == 0 : std::isnan(loss), loss);
    EXPECT_EQUAL(total_weight, 0.0f);
    hmsa::FuseScalesCrossEntropyBackward<float> backward{};
    set_inputs(backward, c, setup);
    backward.target = target.view;
    backward.grad_loss = {&grad, 0, 0, 0};
    backward.log_sum_exp = log_sum_exp.data();
    backward.total_weight = reduction == Reduction::kMean ? &total_weight : nullptr;
    Stored<float> gradient(c.batch, c.channels, c.heads[1], Layout::kContiguous);
    backward.grad_logits[1] = gradient.view;
    hmsa::cpu::fuse_scales_cross_entropy_backward(backward, parts(2));
    for (const double value : gradient.load().values) EXPECT_EQUAL(value, 0.0);
  }
}

void wrong_labels_are_counted() {
  const Case c = cases()[0];
  const Setup<float> setup(c, Layout::kContiguous);
  TargetSetup<int16_t, float> target(c, false, 0.0);
  target.memory[0] = -3;
  target.memory[2] = 40;
  target.memory[target.memory.size() - 2] = static_cast<int16_t>(c.channels);
  std::vector<float> log_sum_exp(target.target.labels.values.size());
  float loss, total_weight;
  hmsa::FuseScalesCrossEntropyForward<float> forward{};
  set_inputs(forward, c, setup);
  forward.target = target.view;
  forward.reduction = Reduction::kSum;
  forward.loss = &loss;
  forward.log_sum_exp = log_sum_exp.data();
  forward.total_weight = &total_weight;
  const hmsa::cpu::WrongLabels wrong = hmsa::cpu::fuse_scales_cross_entropy_forward(forward, parts(3));
  EXPECT_EQUAL(wrong.pixels, int64_t{3});
  EXPECT_EQUAL(wrong.least, int64_t{-3});
  EXPECT_EQUAL(wrong.largest, int64_t{40});
}

void argmax_matches_plain_loops() {
  for (const Case& c : cases()) expect_argmax<float>(c, Layout::kContiguous, 1);
  for (const Case& c : large_cases()) expect_argmax<float>(c, Layout::kGaps, 1);
  for (const Case& c : random_cases(40)) expect_argmax<double>(c, Layout::kChannelsLast, c.batch);
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kGaps}) {
    expect_argmax<Half>(cases()[2], layout, 2);
    expect_argmax<BFloat16>(large_cases()[5], layout, 2);
  }
}

int run_all() {
  RUN_TEST(cross_entropy_matches_plain_loops);
  RUN_TEST(cross_entropy_matches_in_every_dtype_and_layout);
  RUN_TEST(cross_entropy_matches_on_random_shapes);
  RUN_TEST(ignored_pixels_have_no_gradient);
  RUN_TEST(wrong_labels_are_counted);
  RUN_TEST(argmax_matches_plain_loops);
  return finish();
}

}  // namespace

int main() { return run_with_each_instruction_set(run_all); }
