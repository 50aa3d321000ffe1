// The CPU kernel of the prediction: labels and confidence against plain loops in double, and labels alone, of which most
// classes are never fused, against the labels with a confidence, bit for bit.
#include "ops/cpu/fuse_scales_argmax.h"
#include "tests/cpu_cases.h"
#include "tests/instruction_sets.h"
#include "tests/label_cases.h"

#if defined(__SANITIZE_ADDRESS__)
#include "ops/cpu/fuse_scales_argmax.cpp"
#endif

namespace {

using namespace testing;

template <typename T>
struct Result {
  std::vector<int32_t> labels;
  std::vector<T> confidence;
};

// `c` has the images of all views.
template <typename S>
Result<hmsa::arithmetic_t<S>> predict(const Case& c, const Setup<S>& setup, int views, bool with_confidence,
                                      int threads) {
  hmsa::FuseScalesArgmax<S> problem{};
  set_inputs(problem, c, setup);
  problem.batch = c.batch / views;
  problem.views = views;
  const auto pixels = static_cast<size_t>(problem.batch) * c.size.height * c.size.width;
  Result<hmsa::arithmetic_t<S>> result;
  result.confidence.assign(pixels, -7);
  problem.confidence = with_confidence ? result.confidence.data() : nullptr;
  std::vector<uint8_t> bytes(pixels, 0xee);
  result.labels.assign(pixels, -7);
  problem.labels = c.channels <= 256 ? static_cast<void*>(bytes.data()) : result.labels.data();
  hmsa::cpu::fuse_scales_argmax(problem, parts(threads));
  if (c.channels <= 256) result.labels.assign(bytes.begin(), bytes.end());
  return result;
}

template <typename S>
void expect_prediction(Case c, Layout layout, int views) {
  using T = hmsa::arithmetic_t<S>;
  const double tolerance = sizeof(T) == sizeof(float) ? 2e-5 : 1e-12;
  c.batch *= views;
  const Setup<S> setup(c, layout);
  const std::string what = text_of(c) + ", " + name_of(layout) + ", views " + std::to_string(views);
  Map fused = reference::fuse_scales(setup.problem);
  if (views == 2) fused = reference::average_views(fused);
  const reference::Prediction wanted = reference::argmax(fused);
  const Result<T> got = predict(c, setup, views, true, 1);
  reference::for_all(wanted.confidence, [&](int b, int, int y, int x) {
    const size_t i = (static_cast<size_t>(b) * c.size.height + y) * c.size.width + x;
    const auto label = static_cast<int>(got.labels[i]);
    const auto best = static_cast<int>(wanted.labels.at(b, y, x));
    EXPECT(label == best || fused.at(b, best, y, x) - fused.at(b, label, y, x) <= tolerance, what, ", pixel ", i, ": ",
           label, " instead of ", best);
    EXPECT(near(got.confidence[i], wanted.confidence.values[i], tolerance), what, ", pixel ", i);
  });
  for (const int threads : {1, 3}) EXPECT(predict(c, setup, views, false, threads).labels == got.labels, what);
}

void predictions_match_plain_loops() {
  for (const Case& c : cases()) expect_prediction<float>(c, Layout::kContiguous, 1);
  for (const Case& c : large_cases()) expect_prediction<float>(c, Layout::kGaps, 2);
}

void predictions_match_in_every_dtype_and_layout() {
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kGaps}) {
    const Case c{{2.0, 1.0, 0.5}, {37, 70}, {{19, 35}, {10, 18}, {5, 9}}, 1, 5, false, false};
    expect_prediction<float>(c, layout, 1);
    expect_prediction<double>(c, layout, 2);
    expect_prediction<Half>(c, layout, 1);
    expect_prediction<BFloat16>(c, layout, 2);
  }
}

// Regions of one class each, such that blocks of one candidate, of few and of many all occur.
template <typename S>
void expect_regions(const Case& c, Layout layout, int views, double spread) {
  Setup<S> setup(c, layout);
  const std::string what = text_of(c) + ", " + name_of(layout) + ", spread " + std::to_string(spread);
  for (size_t i = 0; i < setup.problem.logits.size(); ++i) {
    Map& logits = setup.problem.logits[i];
    const Map noise = random_map(c.batch, c.channels, c.heads[i], -spread, spread, 5 + static_cast<uint32_t>(i));
    reference::for_all(logits, [&](int b, int k, int y, int x) {
      const int region = 3 * y / c.heads[i].height + 2 * (4 * x / c.heads[i].width);
      logits.at(b, k, y, x) = (k == region % c.channels ? 4.0 : 0.0) + noise.at(b, k, y, x);
    });
    setup.logits[i]->store(logits);
  }
  const std::vector<int32_t> wanted = predict(c, setup, views, true, 1).labels;
  EXPECT(predict(c, setup, views, false, 2).labels == wanted, what);
}

void labels_alone_are_the_same_where_classes_fall() {
  for (const double spread : {0.0, 0.5, 3.0, 6.0}) {
    const Case c{{2.0, 1.0, 0.5}, {70, 300}, {{35, 150}, {18, 75}, {9, 38}}, 2, 9, false, false};
    expect_regions<float>(c, Layout::kContiguous, 1, spread);
    expect_regions<float>(c, Layout::kChannelsLast, 2, spread);
    expect_regions<Half>(c, Layout::kChannelsLast, 1, spread);
    expect_regions<double>(c, Layout::kGaps, 2, spread);
    expect_regions<float>({{1.0, 0.5}, {70, 150}, {{18, 38}, {9, 19}}, 1, 300, false, true}, Layout::kContiguous, 1,
                          spread);
  }
}

int run_all() {
  RUN_TEST(predictions_match_plain_loops);
  RUN_TEST(predictions_match_in_every_dtype_and_layout);
  RUN_TEST(labels_alone_are_the_same_where_classes_fall);
  return testing::finish();
}

}  // namespace

int main() { return run_with_each_instruction_set(run_all); }
