// The CUDA kernel of the confusion matrix, run on the CPU by host_run, against a loop over the pixels.
#include "host_run/cuda_host.h"
// The kernels see CUDA as a .cu file does.
#include "ops/cuda/confusion_matrix.cu"
#include "tests/label_cases.h"

namespace {

using namespace testing;

struct Counts {
  std::vector<int64_t> counts;
  int64_t invalid = -7;

  bool operator==(const Counts& other) const { return counts == other.counts && invalid == other.invalid; }
};

Counts count(const StoredLabels& prediction, const StoredLabels& target, int batch, Size size, int classes,
             int64_t ignore_index) {
  Counts result;
  result.counts.assign(static_cast<size_t>(classes) * classes, -7);
  const hmsa::ConfusionMatrix problem{prediction.view, target.view,          batch,
                                      size.height,     size.width,           classes,
                                      ignore_index,    result.counts.data(), &result.invalid};
  // Memory of the blocks' own, which holds anything.
  std::vector<uint32_t> partials(static_cast<size_t>(hmsa::cuda::confusion_matrix_partials(problem)), 77);
  hmsa::cuda::launch_confusion_matrix(problem, partials.data(), nullptr);
  return result;
}

Counts plainly(const Labels& prediction, const Labels& target, int classes, int64_t ignore_index) {
  Counts result;
  result.counts.assign(static_cast<size_t>(classes) * classes, 0);
  result.invalid = 0;
  for (size_t i = 0; i < target.values.size(); ++i) {
    const int64_t t = target.values[i];
    const int64_t p = prediction.values[i];
    if (t == ignore_index) continue;
    if (t < 0 || t >= classes || p < 0 || p >= classes) {
      ++result.invalid;
    } else {
      ++result.counts[static_cast<size_t>(t * classes + p)];
    }
  }
  return result;
}

void expect_counts(const Labels& prediction, const Labels& target, LabelType prediction_type, LabelType target_type,
                   bool gaps, int classes, int64_t ignore_index) {
  const std::string what = std::to_string(target.batch) + " x " + std::to_string(target.size.height) + " x " +
                           std::to_string(target.size.width) + ", classes " + std::to_string(classes) + ", types " +
                           std::to_string(static_cast<int>(prediction_type)) + " " +
                           std::to_string(static_cast<int>(target_type));
  const StoredLabels stored_prediction(prediction, prediction_type, gaps);
  const StoredLabels stored_target(target, target_type, gaps);
  const Counts wanted = plainly(prediction, target, classes, ignore_index);
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    hmsa::host_run::seed() = seed;
    const Counts got = count(stored_prediction, stored_target, target.batch, target.size, classes, ignore_index);
    EXPECT(got == wanted, what, ": invalid ", got.invalid, " instead of ", wanted.invalid);
  }
}

constexpr LabelType kTypes[] = {LabelType::kUint8, LabelType::kInt16, LabelType::kInt32, LabelType::kInt64};

// A shared histogram up to 110 classes, more than one block, tiles that go round.
void counts_match_a_loop() {
  for (const int classes : {1, 2, 19, 110, 111, 150}) {
    for (const Size size : {Size{1, 1}, Size{37, 50}, Size{130, 70}}) {
      const Labels prediction = random_labels(3, size, classes, 0, 0.0, 1);
      const Labels target = random_labels(3, size, classes, 255, 0.3, 2);
      expect_counts(prediction, target, LabelType::kUint8, LabelType::kUint8, false, classes, 255);
    }
  }
}

void counts_match_for_every_type() {
  const Labels prediction = random_labels(2, {23, 35}, 5, 0, 0.0, 1);
  const Labels target = random_labels(2, {23, 35}, 5, 255, 0.3, 2);
  for (const LabelType prediction_type : kTypes) {
    for (const LabelType target_type : kTypes) {
      expect_counts(prediction, target, prediction_type, target_type, prediction_type == target_type, 5, 255);
    }
  }
}

// A single row, which is folded into an image and a rest.
void flat_labels_match() {
  for (const int width : {512, 513, 1024, 3000}) {
    const Labels prediction = random_labels(2, {1, width}, 5, 0, 0.0, 1);
    const Labels target = random_labels(2, {1, width}, 5, 255, 0.3, 2);
    for (const LabelType type : kTypes) expect_counts(prediction, target, type, type, width % 2 == 1, 5, 255);
  }
}

// Rows of a larger map, which begin and end anywhere and are longer than a warp's stretch.
void rows_of_a_larger_map_match() {
  const Size whole{9, 700};
  for (const int left : {0, 3, 8}) {
    const Size part{9, 700 - left - 2};
    const Labels predictions = random_labels(2, whole, 5, 0, 0.0, 1), targets = random_labels(2, whole, 5, 255, 0.3, 2);
    Labels prediction(2, part), target(2, part);
    for (int b = 0; b < 2; ++b) {
      for (int y = 0; y < part.height; ++y) {
        for (int x = 0; x < part.width; ++x) {
          prediction.at(b, y, x) = predictions.at(b, y, x + left);
          target.at(b, y, x) = targets.at(b, y, x + left);
        }
      }
    }
    const Counts wanted = plainly(prediction, target, 5, 255);
    for (const LabelType type : kTypes) {
      StoredLabels stored_prediction(predictions, LabelType::kUint8, false), stored_target(targets, type, false);
      const auto move = [&](LabelView& view) {
        hmsa::visit_label_type(view.type,
                               [&](auto label) { view.data = static_cast<const decltype(label)*>(view.data) + left; });
      };
      move(stored_prediction.view);
      move(stored_target.view);
      const Counts got = count(stored_prediction, stored_target, 2, part, 5, 255);
      EXPECT(got == wanted, "from column ", left, ", type ", static_cast<int>(type));
    }
  }
}

// Long runs of equal pairs, as in real label maps.
void runs_match() {
  Labels prediction(1, {150, 40});
  Labels target(1, {150, 40});
  for (int y = 0; y < 150; ++y) {
    for (int x = 0; x < 40; ++x) {
      target.at(0, y, x) = y / 37 % 3;
      prediction.at(0, y, x) = (y + 2) / 37 % 3;
    }
  }
  expect_counts(prediction, target, LabelType::kUint8, LabelType::kInt64, false, 3, 255);
}

// Any prediction at ignored pixels; elsewhere what is no class is counted.
void labels_out_of_range_are_invalid() {
  for (const int64_t ignore_index : {int64_t{-100}, int64_t{2}, int64_t{255}}) {
    Labels prediction = random_labels(1, {20, 33}, 4, 0, 0.0, 1);
    Labels target = random_labels(1, {20, 33}, 4, ignore_index, 0.3, 2);
    for (size_t i = 0; i < target.values.size(); i += 7) prediction.values[i] = i % 2 == 0 ? 4 : -1;
    for (size_t i = 0; i < target.values.size(); i += 11) target.values[i] = i % 2 == 0 ? 200 : -5;
    expect_counts(prediction, target, LabelType::kInt16, LabelType::kInt32, true, 4, ignore_index);
  }
}

// 2^32 + 1 is not class 1.
void wide_labels_are_not_cut_off() {
  Labels prediction(1, {2, 2});
  Labels target(1, {2, 2});
  target.at(0, 0, 1) = (int64_t{1} << 32) + 1;
  prediction.at(0, 1, 0) = (int64_t{1} << 32) + 1;
  expect_counts(prediction, target, LabelType::kInt64, LabelType::kInt64, false, 3, 255);
}

void nothing_counts_nothing() {
  const Labels one(1, {1, 1});
  const StoredLabels labels(one, LabelType::kUint8, false);
  const Counts got = count(labels, labels, 0, {5, 6}, 3, 255);
  EXPECT(got == (Counts{std::vector<int64_t>(9, 0), 0}));
}

}  // namespace

int main() {
  RUN_TEST(counts_match_a_loop);
  RUN_TEST(counts_match_for_every_type);
  RUN_TEST(flat_labels_match);
  RUN_TEST(rows_of_a_larger_map_match);
  RUN_TEST(runs_match);
  RUN_TEST(labels_out_of_range_are_invalid);
  RUN_TEST(wide_labels_are_not_cut_off);
  RUN_TEST(nothing_counts_nothing);
  return testing::finish();
}
